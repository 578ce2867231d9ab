/**
 * The file suites on the mount of a real cluster: 3 OSDs, 2 metadata servers, the kernel's FUSE.
 * One cluster for all, because starting one takes longer than most of the tests.
 */
import { chmodSync, mkdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { startCluster } from "../../support/cluster.js";
import { tempFolder } from "../../support/temp.js";
import { coherenceSuite } from "../../posix/coherence-suite.js";
import { differentialSuite } from "../../posix/differential-suite.js";
import { locksSuite } from "../../posix/locks-suite.js";
import { optionsSuite } from "../../posix/options-suite.js";
import { posixSuite, randomSuite } from "../../posix/posix-suite.js";
import { programsSuite } from "../../posix/programs-suite.js";
import { totalsSuite } from "../../posix/totals-suite.js";
import { twoMountsSuite } from "../../posix/two-mounts-suite.js";

const cluster = await startCluster(t);
const local = tempFolder(t, "local");

/** Neither the client nor the kernel keeps a byte. */
async function cold(): Promise<void> {
  await cluster.remount();
  writeFileSync("/proc/sys/vm/drop_caches", "3");
}
const place = (name: string) => {
  const folder = join(cluster.mount, name);
  mkdirSync(folder);
  mkdirSync(join(local, name));
  return { folder, local: join(local, name), scale: 1, cold };
};

await posixSuite(t, place("posix"));
await t.test("programs", (t) => programsSuite(t, place("programs")));
await randomSuite(t, place("random"), { seeds: [1, 2], count: 1_500 });
await t.test("mount options", (t) => optionsSuite(t, cluster));
await t.test("totals and quotas", async (t) => {
  await totalsSuite(t, cluster);
  await cluster.up(); // A leader was killed.
});
let second = "";
await t.test("a second mount", async (t) => {
  second = await cluster.mountAgain("second");
  t.ok(second);
});
await t.test("locks", (t) => locksSuite(t, cluster, second));
await t.test("two mounts", async (t) => {
  mkdirSync(join(cluster.mount, "two"));
  await twoMountsSuite(t, { a: join(cluster.mount, "two"), b: join(second, "two") });
  await t.test("the root of the file system", async (t) => {
    for (const mode of [0o750, 0o755]) {
      const before = statSync(cluster.mount);
      chmodSync(second, mode);
      t.equal(statSync(cluster.mount).mode & 0o777, mode);
      mkdirSync(join(second, `in-root-${mode}`));
      t.equal(statSync(cluster.mount).nlink, before.nlink + 1);
    }
  });
  const ways = [join(cluster.mount, "two"), join(second, "two")] as const;
  const places = { ways, local: join(local, "posix") };
  await t.test("beside a local file system", (t) =>
    differentialSuite(t, places, { seeds: [1, 2], length: 300 }),
  );
  await t.test("rounds of coherence", (t) => coherenceSuite(t, [cluster.mount, second]));
  await cluster.ok(["umount", second]);
});
await t.test("every copy of every placement group is in place afterwards", async (t) => {
  interface Pg {
    pg: string;
    up: number[];
    inSync: number[];
  }
  await cluster.up(); // A leader was killed.
  await cluster.healthy();
  const pgs = await cluster.json<Pg[]>(["pg", "ls"]);
  t.ok(pgs.length > 0);
  for (const { pg, up, inSync } of pgs) {
    t.equal(up.length, 3, pg);
    t.same([...inSync].sort(), [...up].sort(), pg);
  }
});
