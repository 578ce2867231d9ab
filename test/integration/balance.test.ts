/**
 * Data moves while fio writes and verifies on the mount and on a volume: a fourth OSD joins, one is
 * drained and comes back, one is lost for good. No client sees an error or a wrong byte, and
 * balancing alone never leaves fewer than three good copies.
 *
 * `npm run campaign balance` measures the same with more data.
 */
import { rmSync } from "node:fs";
import t from "tap";
import { startCluster } from "../support/cluster.js";
import { CopiesWatch } from "../support/copies-watch.js";
import { healedWithout, osdProcess } from "../support/fault-cases.js";
import { FaultLoad } from "../support/fault-load.js";

const SETTLED_MS = 60_000;

const cluster = await startCluster(t, { osds: 3, mds: 2, env: { DSS_DOWN_OUT_MS: "4s" } });
const watch = await CopiesWatch.start(t, (await cluster.status()).zookeeper);
const load = await FaultLoad.start(t, cluster);

await t.test("a fourth OSD joins and gets its share", async (t) => {
  await cluster.up(["--osds", "4"]);
  await watch.settled(SETTLED_MS);
  t.ok(watch.lowest >= 3, `never fewer than ${watch.lowest} copies in ${watch.looks} looks`);
  const used = await watch.used();
  t.ok((used.get(3) ?? 0) > 0, `osd.3 has ${used.get(3)} bytes`);
});

await t.test("drain empties an OSD and says that it is safe; then it comes back", async (t) => {
  watch.reset();
  const said = await cluster.ok(["osd", "drain", "1"], { withinMs: SETTLED_MS });
  t.match(said, /safe to remove/);
  t.equal((await watch.used()).get(1), 0, "nothing is left on its disk");
  const refused = await cluster.dss(["osd", "rm", "1"]);
  t.equal(refused.code, 1, "it runs");
  t.match(refused.stderr, /stop its daemon first/);
  const hopeless = await cluster.dss(["osd", "drain", "2"]);
  t.equal(hopeless.code, 1, "three copies need three OSDs");
  await cluster.ok(["osd", "in", "1"]);
  await watch.settled(SETTLED_MS);
  t.ok(watch.lowest >= 3, `never fewer than ${watch.lowest} copies in ${watch.looks} looks`);
});

await t.test("an OSD that is lost for good is replaced without help", async (t) => {
  const { pid, data } = await osdProcess(cluster, 2);
  await cluster.kill([pid]);
  rmSync(data, { recursive: true });
  await healedWithout(cluster, 2);
  await watch.settled(SETTLED_MS);
  const removed = await cluster.ok(["osd", "rm", "2"]);
  t.match(removed, /is removed/);
  await cluster.healthy();
});

await t.test("flags: set, shown, and I/O waits for the end of a pause", async (t) => {
  await cluster.ok(["cluster", "set", "pause"]);
  const { health } = await cluster.json<{ health: { checks: { code: string }[] } }>(["status"]);
  t.ok(health.checks.some(({ code }) => code === "CLUSTER_FLAGS"));
  await load.prober.report();
  await new Promise((done) => setTimeout(done, 1_500));
  const { longest, errors } = await load.prober.report();
  t.ok(Math.max(...Object.values(longest)) >= 1_000, "somebody waits");
  t.same(errors, []);
  await cluster.ok(["cluster", "unset", "pause"]);
  await cluster.healthy();
});

await t.test("no client saw an error or a wrong byte", async (t) => {
  await load.stop();
  await watch.stop();
  t.ok(load.passes > 0, `${load.passes} passes of fio`);
});
