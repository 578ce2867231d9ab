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
import { start, succeed } from "../support/process.js";

/** How long the sleepers of the campaign sleep once; 0: until they are taken for dead. */
const SLEEP_MS = Number(process.env["DSS_FAILURES_SLEEP_SECONDS"] ?? 0) * 1_000;
const HEALTHY_MS = 120_000;

const cluster = await startCluster(t, {
  osds: 5,
  mds: 2,
  zookeeper: 3,
  env: {
    DSS_DOWN_OUT_MS: "4s",
    DSS_MDS_SESSION_LEASE_MS: "6s",
    DSS_MDS_RECALL_TIMEOUT_MS: "5s",
  },
});
const load = await FaultLoad.start(t, cluster);
const sleep = (ms: number) => new Promise((done) => setTimeout(done, ms));

/** Everything that was killed comes back; the cluster heals under the load. */
async function restore(): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      await cluster.up();
      await cluster.healthy(HEALTHY_MS / 3);
      return;
    } catch (error) {
      // While a daemon was gone another program may have taken its port: it then gets another.
      if (attempt === 3) throw error;
    }
  }
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
  await stopAndWake(t, "stop primary", { id: primary!, sleepMs: SLEEP_MS });
});

await t.test("SIGSTOP of a replica", async (t) => {
  const [, replica] = await membersOf(cluster, "load");
  await stopAndWake(t, "stop replica", { id: replica!, sleepMs: 0 });
});

async function stopAndWake(
  t: Tap,
  name: string,
  { id, sleepMs }: { id: number; sleepMs: number },
): Promise<void> {
  const { pid } = await osdProcess(cluster, id);
  try {
    await measure(t, load, { name, goalMs: SILENCE_GOAL_MS }, () => cluster.kill([pid], "SIGSTOP"));
    await shownDown(cluster, id);
    await sleep(sleepMs);
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
  } finally {
    await cluster.kill([pid], "SIGCONT");
  }
  await cluster.healthy(HEALTHY_MS);
});

/** Holds a file open for writing, and writes into it when it is told to. */
const LATE_WRITER = `
import { constants, openSync, writeSync } from "node:fs";
const file = openSync(process.argv[1], constants.O_RDWR | constants.O_CREAT | constants.O_DIRECT);
writeSync(file, Buffer.alloc(4096, "1"), 0, 4096, 0);
process.on("SIGUSR2", () => {
  let outcome = "written";
  try {
    writeSync(file, Buffer.alloc(4096, "2"), 0, 4096, 0);
  } catch (error) {
    outcome = "refused: " + error.code;
  }
  console.log(outcome);
  process.exit(0);
});
console.log("ready");
setInterval(() => undefined, 1000);
`;

await t.test("SIGSTOP of a mount: its file goes to another, and it changes nothing more", async (t) => {
  const second = await cluster.mountAgain("second");
  const name = "taken";
  // A program of its own: it hangs in the kernel as long as the mount sleeps.
  const options = ["--input-type=module", "-e", LATE_WRITER, join(second, name)];
  const writer = start(t, process.execPath, options);
  await writer.output(/ready/);
  const { clients } = await cluster.json<{ clients: { mount: string; pid: number }[] }>(["status"]);
  const { pid } = clients.find(({ mount }) => mount === second)!;
  await cluster.kill([pid], "SIGSTOP");
  try {
    writer.signal("SIGUSR2");
    const path = join(cluster.mount, name);
    const write = `printf '%4096s' '' | tr ' ' 3 | dd of=${path} conv=notrunc,fsync status=none`;
    await succeed(t, "bash", ["-c", write], { withinMs: 60_000 });
    await sleep(SLEEP_MS);
  } finally {
    await cluster.kill([pid], "SIGCONT");
  }
  const [outcome] = await writer.output(/written|refused: \w+/, 60_000);
  t.match(outcome, /refused/, "the late write of an evicted mount fails");
  for (const mount of [cluster.mount, second]) {
    const path = join(mount, name);
    const text = await succeed(t, "head", ["-c", "4096", path], { withinMs: 30_000 });
    t.equal(text, "3".repeat(4096), `${mount} shows what its successor wrote`);
  }
});

await t.test("no client saw an error or a wrong byte", async (t) => {
  await load.stop();
  t.ok(load.passes > 0, `${load.passes} passes of fio`);
  t.match(readFileSync(join(cluster.data, "log", "mount.log"), "utf8"), /mounted/);
});
