/**
 * One step of the campaign `balance`, as a program: `balance.js STEP` with a name of STEPS below,
 * each on a cluster of its own. It prints its figures and fails when one misses its goal: what an
 * absence costs, what a new OSD costs and what its arrival does to clients, that an OSD can be
 * emptied, that a lost one is replaced, and how a busy OSD is shared.
 */
import { rmSync } from "node:fs";
import { join } from "node:path";
import { startCluster, type Cluster } from "../support/cluster.js";
import { CopiesWatch } from "../support/copies-watch.js";
import { healedWithout, osdProcess, shownDown } from "../support/fault-cases.js";
import { succeed } from "../support/process.js";
import { Scope } from "../support/scope.js";

const MIB = 2 ** 20;
const STEP_MS = 600_000;
const AWAY_MIB = 500;
const JOIN_MIB = 2048;
/** Of what changed while an OSD was away. */
const COPIED_MAX = 1.2;
/** Of the ideal share of a new OSD. */
const MOVED_MAX = 1.15;
/** Of the throughput before. */
const THROUGHPUT_MIN = 0.6;
const MEASURE_SECONDS = 12;

/** Other bytes than those of the first time: what is the same is not copied. */
const OTHER = ["--randseed=77", "--refill_buffers"];

const step = new Scope();
const missed: string[] = [];
function figure(text: string, isGood: boolean): void {
  console.log(`${isGood ? "  " : "MISSED "}${text}`);
  if (!isGood) missed.push(text);
}

/** fio on a file of the mount; what it writes carries checksums. */
async function fio(cluster: Cluster, args: readonly string[]): Promise<FioJob> {
  const output = await succeed(
    step,
    "fio",
    [
      "--name=data",
      `--filename=${join(cluster.mount, "data")}`,
      "--ioengine=psync",
      "--verify=crc32c",
      "--verify_fatal=1",
      "--verify_state_save=0",
      "--output-format=json",
      ...args,
    ],
    { withinMs: STEP_MS },
  );
  const { jobs } = JSON.parse(output.slice(output.indexOf("{"))) as { jobs: [FioJob] };
  return jobs[0];
}
interface FioJob {
  write: { io_bytes: number; iops: number };
  read: { io_bytes: number; iops: number };
}
const fill = (cluster: Cluster, mib: number): Promise<FioJob> =>
  fio(cluster, ["--rw=write", "--bs=1M", `--size=${mib}M`, "--do_verify=0", "--end_fsync=1"]);
/** Every byte as it was written last. */
const verify = (cluster: Cluster, mib: number): Promise<FioJob> =>
  fio(cluster, ["--rw=read", "--bs=1M", `--size=${mib}M`, "--verify_only"]);

async function start(osds: number, env: Record<string, string> = {}): Promise<CopiesWatch> {
  cluster = await startCluster(step, { osds, env });
  return await CopiesWatch.start(step, (await cluster.status()).zookeeper);
}
let cluster!: Cluster;

/** An OSD is away while data change: what is copied when it comes back. */
async function away(change: { title: string; args: string[] }): Promise<void> {
  const watch = await start(3, { DSS_DOWN_OUT_MS: "1h" });
  await fill(cluster, AWAY_MIB);
  const { pid } = await osdProcess(cluster, 2);
  await cluster.kill([pid]);
  await shownDown(cluster, 2);
  const job = await fio(cluster, [...change.args, `--size=${AWAY_MIB}M`, "--do_verify=0"]);
  const changed = job.write.io_bytes;
  const before = await watch.counters("recoveryBytes");
  await cluster.up();
  const begin = performance.now();
  await watch.settled(STEP_MS);
  const seconds = (performance.now() - begin) / 1000;
  const copied = await watch.rise("recoveryBytes", before);
  const text =
    `${change.title}: ${(changed / MIB).toFixed(0)} MiB changed, ${(copied / MIB).toFixed(0)} MiB ` +
    `copied (${(copied / changed).toFixed(2)} times) in ${seconds.toFixed(1)} s`;
  figure(text, copied <= COPIED_MAX * changed);
  if (change.args.includes("--rw=write")) await verify(cluster, AWAY_MIB);
}

/** A fourth OSD joins while a client works. */
async function joins(): Promise<void> {
  const watch = await start(3);
  await fill(cluster, JOIN_MIB);
  const { server, socket } = await cluster.serve("load", 256 * MIB);
  const volume = [
    ...["--name=client", "--ioengine=nbd", `--uri=nbd+unix:///load?socket=${socket}`],
    ...["--rw=randrw", "--rwmixread=50", "--bs=4k", "--size=256M", "--iodepth=16"],
    ...["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--verify_backlog=1024"],
    ...["--time_based", "--output-format=json"],
  ];
  const work = async (seconds: number): Promise<number> => {
    const args = [...volume, `--runtime=${seconds}`];
    const output = await succeed(step, "fio", args, { withinMs: STEP_MS });
    const { jobs } = JSON.parse(output.slice(output.indexOf("{"))) as { jobs: [FioJob] };
    return jobs[0].read.iops + jobs[0].write.iops;
  };
  await work(MEASURE_SECONDS / 2);
  const normal = await work(MEASURE_SECONDS);
  watch.reset();
  const [before, holds] = await Promise.all([watch.counters("recoveryBytes"), watch.used()]);
  await cluster.up(["--osds", "4"]);
  let isMoving = true;
  const begin = performance.now();
  const settled = watch.settled(STEP_MS).finally(() => (isMoving = false));
  settled.catch(() => undefined); // Thrown below.
  const rates: number[] = [];
  // Only passes that moved data all the time count; the first one does in any case.
  do {
    const rate = await work(MEASURE_SECONDS);
    if (isMoving || rates.length === 0) rates.push(rate);
  } while (isMoving);
  await settled;
  const seconds = (performance.now() - begin) / 1000;
  const after = await work(MEASURE_SECONDS);
  const moved = await watch.rise("recoveryBytes", before);
  const total = [...holds.values()].reduce((sum, bytes) => sum + bytes, 0);
  const ideal = total / 4;
  const share = (moved / ideal).toFixed(2);
  const text = `${(moved / MIB).toFixed(0)} MiB moved, ${share} of the ideal share`;
  figure(`${text}, in ${seconds.toFixed(0)} s`, moved <= MOVED_MAX * ideal);
  const mean = rates.reduce((sum, rate) => sum + rate, 0) / rates.length;
  figure(
    `client: ${normal.toFixed(0)} IOPS before, ${rates.map((rate) => rate.toFixed(0)).join(", ")} ` +
      `while data moves: ${((100 * mean) / normal).toFixed(0)} %, ` +
      `${after.toFixed(0)} afterwards`,
    mean >= THROUGHPUT_MIN * normal,
  );
  figure(`never fewer than ${watch.lowest} copies in ${watch.looks} looks`, watch.lowest >= 3);
  await server.stop();
  await verify(cluster, JOIN_MIB);
}

async function drains(): Promise<void> {
  const watch = await start(4);
  await fill(cluster, AWAY_MIB);
  watch.reset();
  const begin = performance.now();
  const said = await cluster.ok(["osd", "drain", "1"], { withinMs: STEP_MS });
  const seconds = (performance.now() - begin) / 1000;
  figure(`drained in ${seconds.toFixed(1)} s: ${said.trim()}`, /safe to remove/.test(said));
  figure(`never fewer than ${watch.lowest} copies in ${watch.looks} looks`, watch.lowest >= 3);
  const left = (await watch.used()).get(1);
  figure(`${left} bytes are left on it`, left === 0);
  const { pid } = await osdProcess(cluster, 1);
  await cluster.kill([pid], "SIGTERM");
  await shownDown(cluster, 1);
  await cluster.ok(["osd", "rm", "1"]);
  await verify(cluster, AWAY_MIB);
}

async function lost(): Promise<void> {
  const watch = await start(4, { DSS_DOWN_OUT_MS: "5s" });
  await fill(cluster, AWAY_MIB);
  const { pid, data } = await osdProcess(cluster, 2);
  const begin = performance.now();
  await cluster.kill([pid]);
  rmSync(data, { recursive: true });
  await healedWithout(cluster, 2);
  const seconds = (performance.now() - begin) / 1000;
  figure(`full redundancy ${seconds.toFixed(1)} s after the loss, 5 s of them to become out`, true);
  figure(`in between ${watch.lowest} copies`, watch.lowest >= 2);
  await cluster.ok(["osd", "rm", "2"]);
  await verify(cluster, AWAY_MIB);
}

/**
 * How a saturated OSD divides itself between a client and recovery. Counted where both always want
 * more: on OSDs that copy to a new one while a client keeps many requests open.
 */
async function shares(): Promise<void> {
  const watch = await start(3);
  await fill(cluster, JOIN_MIB);
  const { server, socket } = await cluster.serve("load", 512 * MIB);
  await cluster.ok(["cluster", "set", "norebalance"]);
  await cluster.up(["--osds", "4"]);
  const args = [
    ...["--name=client", "--ioengine=nbd", `--uri=nbd+unix:///load?socket=${socket}`],
    ...["--rw=randwrite", "--bs=64k", "--size=512M", "--iodepth=128", "--minimal"],
    ...["--time_based", `--runtime=${8 * MEASURE_SECONDS}`],
  ];
  const load = succeed(step, "fio", args, { withinMs: STEP_MS });
  load.catch(() => undefined); // Thrown below.
  await new Promise((done) => setTimeout(done, 2_000));
  await cluster.ok(["cluster", "unset", "norebalance"]);
  for (const [profile, due] of [
    ["client", 15 / 95],
    ["balanced", 40 / 90],
    ["recovery", 65 / 90],
  ] as const) {
    await cluster.ok(["cluster", "profile", profile]);
    await new Promise((done) => setTimeout(done, 2_000));
    const names = ["sharedClientWork", "sharedRecoveryWork"] as const;
    const before = await Promise.all(names.map((each) => watch.counters(each)));
    await new Promise((done) => setTimeout(done, 6_000));
    const [client = 0, recovery = 0] = await Promise.all(
      names.map((each, i) => watch.rise(each, before[i]!)),
    );
    const part = recovery / (client + recovery);
    const rates = [client, recovery].map((bytes) => (bytes / MIB / 6).toFixed(0));
    const text =
      `${profile}: client ${rates[0]} MiB/s, recovery ${rates[1]} MiB/s of work: ` +
      `${(100 * part).toFixed(0)} % of ${(100 * due).toFixed(0)} %`;
    figure(text, Math.abs(part - due) <= 0.1);
  }
  await load;
  await watch.settled(STEP_MS);
  await server.stop();
}

const STEPS: Readonly<Record<string, () => Promise<void>>> = {
  away: () => away({ title: "rewritten in order", args: ["--rw=write", "--bs=1M", ...OTHER] }),
  random: () =>
    away({
      title: "64 KiB here and there",
      args: ["--rw=randwrite", "--bs=64k", `--io_size=${AWAY_MIB / 5}M`, ...OTHER],
    }),
  join: joins,
  drain: drains,
  lost,
  shares,
};

const [name = ""] = process.argv.slice(2);
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => void step.end().finally(() => process.exit(130)));
}
try {
  const chosen = STEPS[name];
  if (chosen === undefined) throw new Error(`no step "${name}"`);
  console.log(name);
  await chosen();
  // Every copy of every object, read and compared.
  await cluster.ok(["scrub", "--deep", "all"], { withinMs: STEP_MS });
  await cluster.healthy();
  if (missed.length > 0) throw new Error(`missed: ${missed.join("; ")}`);
} finally {
  await step.end();
}
