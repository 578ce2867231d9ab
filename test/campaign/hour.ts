/**
 * The campaign `soak`, as a program: `hour.js SEED MINUTES [RECORD]` on a cluster of its own. fio
 * writes, syncs and verifies on the mount and on a volume, and a program saves and reads small
 * files, for that long; every five minutes one OSD ends, by `kill -9` and by SIGTERM in turn, and
 * comes back. All the while the resident memory of every process is noted. Exit code 0: no program
 * saw an error or a wrong byte, the cluster is healthy and checks itself clean in the end, and no
 * process grew in the last third of the time. RECORD: the figures as JSON.
 */
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Prng } from "../../cluster/base/prng.js";
import { anonymousBytes, residentBytes } from "../bench/measure.js";
import { isGone, startCluster, type Cluster } from "../support/cluster.js";
import { BUILD, succeed } from "../support/process.js";
import { endWithProcess, Scope } from "../support/scope.js";
import { waitFor } from "../support/temp.js";
import { verifyWithFio } from "./fio-load.js";
import type { SaverResult } from "./saver.js";

const RESTART_EVERY_MS = 300_000;
const DOWN_MS = 10_000;
/** Before the next one ends, everything has its copies again, however busy the machine is. */
const HEALTHY_MS = 270_000;
const SAMPLE_MS = 10_000;
/** Each program of the load runs that long, with another seed each time. */
const TURN_S = 120;
const TURN_MS = 600_000;
const VOLUME_BYTES = 2 ** 30;
/** More than the most of the second third by this is growth. */
const GROWTH = 1.1;
const GROWTH_BYTES = 8 * 2 ** 20;

const scope = new Scope();
const MIB = 2 ** 20;

/** Bytes, one figure a sample; 0 while the process does not run. */
interface Figures {
  readonly resident: number[];
  /** Without the pages of files, an OSD's index among them. */
  readonly anonymous: number[];
}
/** Process name, then its figures. */
type Memory = Map<string, Figures>;

function note({ resident, anonymous }: Figures, sample: number, pid: number): void {
  while (resident.length < sample) {
    resident.push(0);
    anonymous.push(0);
  }
  let all = 0;
  let own = 0;
  try {
    all = residentBytes(pid);
    own = anonymousBytes(pid);
  } catch {
    // It has ended.
  }
  resident.push(all);
  anonymous.push(own);
}

/** One program after the other until `over()`. */
async function turns(
  over: () => boolean,
  turn: (number: number) => Promise<unknown>,
): Promise<number> {
  let done = 0;
  while (!over()) await turn(++done);
  return done;
}

function fio(seed: number, where: readonly string[]): Promise<void> {
  const load = { seed, seconds: TURN_S, mib: 256, fsyncEvery: 64, withinMs: TURN_MS };
  return verifyWithFio(scope, load, where);
}

async function save(cluster: Cluster, seed: number): Promise<void> {
  const folder = join(cluster.mount, `saves-${seed}`);
  const args = [`${BUILD}test/campaign/saver.js`, folder, String(seed), String(TURN_S)];
  const told = await succeed(scope, process.execPath, args, { withinMs: TURN_MS });
  const { again } = JSON.parse(told) as SaverResult;
  if (again > 0) throw new Error(`saves of small files saw ${again} errors`);
  rmSync(folder, { recursive: true });
}

async function restarts(cluster: Cluster, random: Prng, over: () => boolean): Promise<number> {
  let done = 0;
  for (let next = performance.now() + RESTART_EVERY_MS; ; next += RESTART_EVERY_MS) {
    while (performance.now() < next && !over()) await sleep(1_000);
    if (over()) return done;
    const osds = await cluster.processes("osd");
    const osd = osds[done % osds.length]!;
    await cluster.kill([osd.pid], done % 2 === 0 ? "SIGKILL" : "SIGTERM");
    await waitFor(`the end of ${osd.name}`, () => isGone(osd.pid), { withinMs: 60_000 });
    await sleep(random.int(1_000, DOWN_MS));
    await cluster.up();
    await cluster.healthy(HEALTHY_MS).catch(async (error: Error) => {
      for (const [, pg] of error.message.matchAll(/PG (\S+) \(/g)) {
        console.log((await cluster.dss(["pg", "show", pg!])).stdout);
      }
      throw error;
    });
    done++;
  }
}

async function watch(
  cluster: Cluster,
  others: readonly { name: string; pid: number }[],
  over: () => boolean,
): Promise<Memory> {
  const memory: Memory = new Map();
  for (let sample = 0; !over(); sample++) {
    const { processes } = await cluster.status();
    const supervisors = processes.flatMap(({ name, supervisor: pid }) =>
      pid === undefined ? [] : [{ name: `${name} (supervisor)`, pid }],
    );
    for (const { name, pid } of [...processes, ...supervisors, ...others]) {
      const figures = memory.get(name) ?? { resident: [], anonymous: [] };
      note(figures, sample, pid);
      memory.set(name, figures);
    }
    await sleep(SAMPLE_MS);
  }
  return memory;
}

interface Grown {
  name: string;
  /** The most of each third of the time, bytes. */
  thirds: Thirds;
  anonymous: Thirds;
  good: boolean;
  /** MiB resident, one figure a minute. */
  minutes: number[];
}
type Thirds = readonly [number, number, number];

function mostOfThirds(figures: readonly number[]): Thirds {
  const length = figures.length / 3;
  const most = (third: number): number =>
    Math.max(0, ...figures.slice(Math.floor(third * length), Math.ceil((third + 1) * length)));
  return [most(0), most(1), most(2)];
}
function judge(memory: Memory): Grown[] {
  return [...memory].map(([name, { resident, anonymous }]) => {
    const thirds = mostOfThirds(resident);
    const inMinutes = resident.filter((_, at) => at % (60_000 / SAMPLE_MS) === 0);
    return {
      ...{ name, thirds, anonymous: mostOfThirds(anonymous) },
      good: thirds[2] <= thirds[1] * GROWTH + GROWTH_BYTES,
      minutes: inMinutes.map((bytes) => Math.round(bytes / MIB)),
    };
  });
}

function print(grown: readonly Grown[]): void {
  const inMib = (all: Thirds): string =>
    all.map((bytes) => String(Math.round(bytes / MIB)).padStart(6)).join(" ");
  console.log("resident, the most of each third of the time, MiB, and without pages of files:");
  for (const { name, thirds, anonymous, good } of grown) {
    console.log(`  ${inMib(thirds)} ${inMib(anonymous)}  ${name}${good ? "" : "  GROWS"}`);
  }
}

async function soak(cluster: Cluster, seed: number, minutes: number): Promise<Grown[]> {
  const random = new Prng(seed);
  const end = performance.now() + minutes * 60_000;
  let failed = false;
  const over = (): boolean => failed || performance.now() >= end;
  const { server, socket } = await cluster.serve("soak", VOLUME_BYTES);
  const volume = ["--ioengine=nbd", `--uri=nbd+unix:///soak?socket=${socket}`, "--iodepth=8"];
  mkdirSync(join(cluster.mount, "fio"));
  const onMount = ["--ioengine=psync", `--directory=${join(cluster.mount, "fio")}`];
  const seeds = (turn: number): number => seed * 1_000 + turn;
  const parts = [
    turns(over, (turn) => fio(seeds(turn), onMount)),
    turns(over, (turn) => fio(seeds(turn), volume)),
    turns(over, (turn) => save(cluster, seeds(turn))),
    restarts(cluster, random, over),
  ] as const;
  for (const part of parts) part.catch(() => (failed = true));
  const watched = watch(cluster, [{ name: "volume server", pid: server.pid }], over);
  watched.catch(() => (failed = true));
  const outcome = await Promise.allSettled(parts);
  const grown = judge(await watched);
  print(grown);
  for (const part of outcome) if (part.status === "rejected") throw part.reason;
  const [files, blocks, saves, restarted] = await Promise.all(parts);
  console.log(
    `${minutes} minutes: ${files} turns of fio on the mount, ${blocks} on the volume and ` +
      `${saves} of small files without an error, ${restarted} OSDs restarted`,
  );
  await server.stop();
  return grown;
}

const [seedText = "1", minutesText = "55", record] = process.argv.slice(2);
endWithProcess(scope);
try {
  const cluster = await startCluster(scope);
  const grown = await soak(cluster, Number(seedText), Number(minutesText));
  await cluster.healthy(HEALTHY_MS);
  console.log((await cluster.ok(["fsck"], { withinMs: 300_000 })).trim());
  const unequal = await cluster.unequalCopies("soak");
  const result = { minutes: Number(minutesText), grown, unequal };
  if (record !== undefined) writeFileSync(record, JSON.stringify(result));
  if (unequal.length > 0) console.log(`copies that differ: ${unequal.join("; ")}`);
  if (unequal.length > 0 || grown.some(({ good }) => !good)) process.exitCode = 1;
} finally {
  await scope.end();
}
