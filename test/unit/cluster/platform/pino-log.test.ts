/** The log of real programs: lines are whole JSON documents and none is lost at the end. */
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { DssError } from "../../../../cluster/base/errors.js";
import { createLogger } from "../../../../cluster/platform/pino-log.js";
import { tempFolder } from "../../../support/temp.js";

const linesOf = (file: string): Record<string, unknown>[] =>
  readFileSync(file, "utf8")
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as Record<string, unknown>);

t.test("events are JSON lines with level, time, fields and message", (t) => {
  const file = join(tempFolder(t), "new", "osd.log");
  const log = createLogger({ file, fields: { name: "osd.3" } });
  log.info({ epoch: 7 }, "map received");
  log.debug({}, "not written");
  log.child({ pg: "1.2" }).warn({ request: 5 }, "late\nreply");
  const [first, second, ...more] = linesOf(file);
  t.match(first, { level: "info", epoch: 7, message: "map received", name: "osd.3" });
  t.match(first, { pid: process.pid, time: /^\d{4}-\d\d-\d\dT[\d:.]+Z$/ });
  t.match(second, { level: "warn", pg: "1.2", request: 5, message: "late\nreply" });
  t.same(more, []);
  t.end();
});

t.test("errors keep their code and causes", (t) => {
  const file = join(tempFolder(t), "log");
  const cause = new DssError("Disk", "write failed", { cause: new Error("EIO") });
  const error = new DssError("NotPrimary", "moved", { cause, epoch: 9 });
  createLogger({ file }).error({ error }, "gave up");
  t.match(linesOf(file)[0], {
    error: {
      code: "NotPrimary",
      epoch: 9,
      cause: { code: "Disk", message: "write failed", cause: { message: /EIO/ } },
    },
  });
  t.end();
});

t.test("the level can be chosen and changed", (t) => {
  const file = join(tempFolder(t), "log");
  const log = createLogger({ file, level: "error" });
  log.warn({}, "no");
  log.setLevel("debug");
  log.debug({}, "yes");
  t.same(
    linesOf(file).map((line) => line["message"]),
    ["yes"],
  );
  t.end();
});

t.test("an existing log is continued, and one that cannot be opened is refused", (t) => {
  const folder = tempFolder(t);
  const file = join(folder, "log");
  writeFileSync(file, '{"message":"before"}\n');
  createLogger({ file }).info({}, "after");
  t.same(
    linesOf(file).map((line) => line["message"]),
    ["before", "after"],
  );
  t.throws(() => createLogger({ file: join(file, "x") }), { code: "Configuration" });
  t.notOk(existsSync(join(folder, "x")));
  t.end();
});

t.test("a buffered log is complete after exit and after an uncaught exception", (t) => {
  const folder = tempFolder(t);
  const module = new URL("../../../../cluster/platform/pino-log.js", import.meta.url).href;
  for (const end of ["process.exit(0)", "throw new Error('bug')"]) {
    const file = join(folder, end.slice(0, 5));
    const program = `
      import { createLogger } from ${JSON.stringify(module)};
      const log = createLogger({ file: ${JSON.stringify(file)}, buffered: 65536 });
      for (let i = 0; i < 100; i++) log.child({ i }).info({}, "event");
      ${end};`;
    try {
      execFileSync(process.execPath, ["--input-type=module", "-e", program], { stdio: "ignore" });
    } catch (error) {
      t.match(end, /throw/, String(error));
    }
    t.equal(linesOf(file).length, 100, end);
  }
  t.end();
});
