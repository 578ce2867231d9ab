/** Which test belongs where, and what arguments of `npm test` mean. */
import t from "tap";
import { packagesNeeded, PARTS, partOf, selectTests } from "../../../tools/test-parts.js";

t.test("a file belongs to the part with the longest matching prefix", (t) => {
  const name = (file: string) => partOf(file)?.name;
  t.equal(name("test/tidy.test.ts"), "unit");
  t.equal(name("test/unit/cluster/base/ids.test.ts"), "unit");
  t.equal(name("test/fuzz/config.test.ts"), "unit");
  t.equal(name("test/sim/replication.test.ts"), "sim");
  t.equal(name("test/integration/osd-kill.test.ts"), "crash");
  t.equal(name("test/integration/power.test.ts"), "recovery");
  t.equal(name("test/integration/mount/cp.test.ts"), "files");
  t.equal(name("test/posix/rename.test.ts"), "files");
  t.equal(name("test/integration/nbd/volumes.test.ts"), "nbd");
  t.equal(name("test/elsewhere.test.ts"), undefined);
  t.equal(new Set(PARTS.map((part) => part.name)).size, PARTS.length);
  const budget = PARTS.reduce((sum, part) => sum + part.budgetSeconds, 0);
  t.ok(budget <= 25 * 60, `all parts together: ${budget} s`);
  t.end();
});

t.test("parts, files, folders and built files can be named", (t) => {
  const self = "test/unit/tools/test-parts.test.ts";
  t.same(selectTests([self]).files, [self]);
  t.same(selectTests([`dist/${self.replace(/ts$/, "js")}`]).files, [self]);
  t.ok(selectTests(["test/unit/tools/"]).files.includes(self));
  t.ok(selectTests(["unit"]).files.includes(self));
  t.notOk(selectTests(["sim"]).files.includes(self));
  t.ok(selectTests([]).files.length >= selectTests(["unit"]).files.length);
  t.same(selectTests(["unti", self]), { files: [self], unknown: ["unti"] });
  t.same(packagesNeeded(["unit"]), []);
  t.end();
});
