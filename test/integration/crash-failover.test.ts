/**
 * Every kind of process is killed (`kill -9`), and then stopped (SIGSTOP) for a while, under a load
 * of fio with verification on the mount and on a volume. Clients see a delay, never an error or a
 * wrong byte; who wakes up again does no harm. One cluster: 5 OSDs, 2 metadata servers, 3
 * ZooKeeper servers; placement groups have 3 copies and serve with 2.
 *
 * `npm run campaign failures` repeats it and judges the medians of the stalls (design §4).
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { startCluster } from "../support/cluster.js";
import {
  healedWithout,
  KILL_GOAL_MS,
  measure,
  membersOf,
  osdProcess,
  shownDown,
  SILENCE_GOAL_MS,
  zookeeperLeader,
  type Tap,
} from "../support/fault-cases.js";
import { FaultLoad } from "../support/fault-load.js";

/** How long the sleepers of the campaign sleep once; 0: until they are taken for dead. */
const SLEEP_MS = Number(process.env["DSS_FAILURES_SLEEP_SECONDS"] ?? 0) * 1_000;
const HEALTHY_MS = 120_000;

const cluster = await startCluster(t, {
  osds: 5,
  mds: 2,
  zookeeper: 3,
  env: { DSS_DOWN_OUT_MS: "4s" },
});
const load = await FaultLoad.start(t, cluster);
const sleep = (ms: number) => new Promise((done) => setTimeout(done, ms));

/** Everything that was killed comes back; the cluster heals under the load. */
async function restore(): Promise<void> {
  await cluster.up();
  await cluster.healthy(HEALTHY_MS);
}

await t.test("kill -9 of a primary", async (t) => {
  const [primary] = await membersOf(cluster, "load");
  const { pid } = await osdProcess(cluster, primary!);
  await measure(t, load, { name: "kill primary", goalMs: KILL_GOAL_MS }, () => cluster.kill([pid]));
  await restore();
});

await t.test("kill -9 of a replica", async (t) => {
  const [, replica] = await membersOf(cluster, "load");
  const { pid } = await osdProcess(cluster, replica!);
  await measure(t, load, { name: "kill replica", goalMs: KILL_GOAL_MS }, () => cluster.kill([pid]));
  await restore();
});

await t.test("kill -9 of the leading metadata server", async (t) => {
  const pid = await cluster.leaderPid();
  const options = { name: "kill MDS leader", goalMs: KILL_GOAL_MS };
  await measure(t, load, options, () => cluster.kill([pid]));
  t.not(await cluster.leaderPid(), pid);
  await restore();
});

await t.test("kill -9 of two of five OSDs, the second when the first is replaced", async (t) => {
  const [first, second] = await membersOf(cluster, "load");
  for (const id of [first!, second!]) {
    const { pid } = await osdProcess(cluster, id);
    const options = { name: "kill two of five OSDs", goalMs: KILL_GOAL_MS };
    await measure(t, load, options, () => cluster.kill([pid]));
    await healedWithout(cluster, ...(id === first ? [first] : [first!, second!]));
  }
  await restore();
});

await t.test("kill -9 of the leading ZooKeeper server", async (t) => {
  const { pid } = await zookeeperLeader(cluster);
  const options = { name: "kill ZooKeeper leader", goalMs: SILENCE_GOAL_MS, settleMs: 5_000 };
  await measure(t, load, options, () => cluster.kill([pid]));
  await restore();
});

await t.test("SIGSTOP of a primary", async (t) => {
  const [primary] = await membersOf(cluster, "load");
  await stopAndWake(t, "stop primary", primary!);
});

await t.test("SIGSTOP of a replica", async (t) => {
  const [, replica] = await membersOf(cluster, "load");
  await stopAndWake(t, "stop replica", replica!);
});

async function stopAndWake(t: Tap, name: string, id: number): Promise<void> {
  const { pid } = await osdProcess(cluster, id);
  try {
    await measure(t, load, { name, goalMs: SILENCE_GOAL_MS }, () => cluster.kill([pid], "SIGSTOP"));
    await shownDown(cluster, id);
    await sleep(SLEEP_MS);
  } finally {
    await cluster.kill([pid], "SIGCONT");
  }
  // It is the same process that comes back: it learns what happened meanwhile.
  await cluster.healthy(HEALTHY_MS);
  t.equal((await osdProcess(cluster, id)).pid, pid);
}

await t.test("SIGSTOP of the leading metadata server", async (t) => {
  const pid = await cluster.leaderPid();
  const options = { name: "stop MDS leader", goalMs: SILENCE_GOAL_MS };
  try {
    await measure(t, load, options, () => cluster.kill([pid], "SIGSTOP"));
    await sleep(SLEEP_MS);
  } finally {
    await cluster.kill([pid], "SIGCONT");
  }
  const leader = await cluster.leaderPid();
  t.not(leader, pid, "another one leads");
  await cluster.healthy(HEALTHY_MS);
  t.equal(await cluster.leaderPid(), leader, "and goes on leading when the first wakes up");
  const sleeper = (await cluster.processes("mds")).find((each) => each.pid === pid);
  t.match(readFileSync(sleeper!.log, "utf8"), /no longer the leader/);
});

await t.test("SIGSTOP of the leading ZooKeeper server", async (t) => {
  const { pid } = await zookeeperLeader(cluster);
  const options = { name: "stop ZooKeeper leader", goalMs: SILENCE_GOAL_MS };
  try {
    await measure(t, load, options, () => cluster.kill([pid], "SIGSTOP"));
    await sleep(SLEEP_MS);
  } finally {
    await cluster.kill([pid], "SIGCONT");
  }
  await cluster.healthy(HEALTHY_MS);
});

await t.test("no client saw an error or a wrong byte", async (t) => {
  await load.stop();
  t.ok(load.passes > 0, `${load.passes} passes of fio`);
  t.match(readFileSync(join(cluster.data, "log", "mount.log"), "utf8"), /mounted/);
});
