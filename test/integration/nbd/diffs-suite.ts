/** Differences between snapshots on a real cluster: small, whole or refused, and repeatable. */
import { readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { cluster, folder } from "./volumes-support.js";

const MIB = 1024 * 1024;

const volume = (...args: string[]): Promise<string> => cluster.ok(["volume", ...args]);
const refused = (...args: string[]) => cluster.dss(["volume", ...args]);
const read = (name: string, at: number): Promise<string> => volume("read", name, String(at), "6");

t.test("a copy is brought up to date by what has changed, or stays as it is", async (t) => {
  const [first, second] = [join(folder, "first.diff"), join(folder, "second.diff")];
  await volume("create", "data", "40M");
  await volume("write", "data", String(9 * MIB), "before");
  await volume("snap", "create", "data@one");
  await volume("write", "data", String(9 * MIB + 3), "XX");
  await volume("write", "data", String(30 * MIB), "second");
  await volume("snap", "create", "data@two");
  await volume("export-diff", "data@one", first);
  await volume("export-diff", "data@two", second, "--from", "one");
  t.ok(statSync(second).size < 16_384, `${statSync(second).size} bytes: two blocks`);

  const early = await refused("import-diff", second, "data-copy");
  t.match(early, { code: 1, stderr: /there is no volume data-copy/ });
  await volume("import-diff", first, "data-copy");
  t.equal(await read("data-copy", 9 * MIB), "before");

  const bytes = readFileSync(second);
  writeFileSync(`${second}.bad`, bytes);
  truncateSync(`${second}.bad`, bytes.length - 9);
  t.match(await refused("import-diff", `${second}.bad`, "data-copy"), {
    ...{ code: 1, stderr: /the difference is incomplete/ },
  });
  const input = bytes.subarray(0, bytes.length - 9);
  const piped = await cluster.dss(["volume", "import-diff", "-", "data-copy"], { input });
  t.match(piped, { code: 1, stderr: /data-copy is what it was at one/ });
  t.equal(await read("data-copy", 9 * MIB), "before", "what was written is undone");

  await volume("write", "data-copy", "0", "other");
  const other = await refused("import-diff", second, "data-copy");
  t.match(other, { code: 1, stderr: /has changed since its snapshot one/ });
  await volume("import-diff", second, "data-copy", "--rollback");
  t.equal(await read("data-copy", 9 * MIB), "befXXe");
  t.equal(await read("data-copy", 0), "\0".repeat(6));
  t.equal(await read("data-copy@two", 30 * MIB), "second");
  t.match(await refused("import-diff", second, "data-copy"), { code: 1, stderr: /was applied/ });

  await volume("create", "stranger", "40M");
  await volume("snap", "create", "stranger@one");
  t.match(await refused("import-diff", second, "stranger"), {
    ...{ code: 1, stderr: /not the one that the difference begins with/ },
  });
});
