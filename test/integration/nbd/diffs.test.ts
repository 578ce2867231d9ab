/** Differences between snapshots on a real cluster: small, whole or refused, and repeatable. */
import { readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { startCluster, type Cluster } from "../../support/cluster.js";
import { tempFolder } from "../../support/temp.js";

const MIB = 1024 * 1024;

t.setTimeout(300_000);
let cluster: Cluster;
let folder: string;
t.before(async () => {
  folder = tempFolder(t, "diffs");
  cluster = await startCluster(t);
});

const volume = (...args: string[]): Promise<string> => cluster.ok(["volume", ...args]);
const refused = (...args: string[]) => cluster.dss(["volume", ...args]);
const read = (name: string, at: number): Promise<string> => volume("read", name, String(at), "6");

t.test("a copy is brought up to date by what has changed, or stays as it is", async (t) => {
  const [first, second] = [join(folder, "first"), join(folder, "second")];
  await volume("create", "disk", "40M");
  await volume("write", "disk", String(9 * MIB), "before");
  await volume("snap", "create", "disk@one");
  await volume("write", "disk", String(9 * MIB + 3), "XX");
  await volume("write", "disk", String(30 * MIB), "second");
  await volume("snap", "create", "disk@two");
  await volume("export-diff", "disk@one", first);
  await volume("export-diff", "disk@two", second, "--from", "one");
  t.ok(statSync(second).size < 16_384, `${statSync(second).size} bytes: two blocks`);

  const early = await refused("import-diff", second, "copy");
  t.match(early, { code: 1, stderr: /there is no volume copy/ });
  await volume("import-diff", first, "copy");
  t.equal(await read("copy", 9 * MIB), "before");

  const bytes = readFileSync(second);
  writeFileSync(`${second}.bad`, bytes);
  truncateSync(`${second}.bad`, bytes.length - 9);
  t.match(await refused("import-diff", `${second}.bad`, "copy"), {
    ...{ code: 1, stderr: /the difference is incomplete/ },
  });
  const input = bytes.subarray(0, bytes.length - 9);
  const piped = await cluster.dss(["volume", "import-diff", "-", "copy"], { input });
  t.match(piped, { code: 1, stderr: /copy is what it was at one/ });
  t.equal(await read("copy", 9 * MIB), "before", "what was written is undone");

  await volume("write", "copy", "0", "other");
  const other = await refused("import-diff", second, "copy");
  t.match(other, { code: 1, stderr: /has changed since its snapshot one/ });
  await volume("import-diff", second, "copy", "--rollback");
  t.equal(await read("copy", 9 * MIB), "befXXe");
  t.equal(await read("copy", 0), "\0".repeat(6));
  t.equal(await read("copy@two", 30 * MIB), "second");
  t.match(await refused("import-diff", second, "copy"), { code: 1, stderr: /was applied/ });

  await volume("create", "stranger", "40M");
  await volume("snap", "create", "stranger@one");
  t.match(await refused("import-diff", second, "stranger"), {
    ...{ code: 1, stderr: /not the one that the difference begins with/ },
  });
});
