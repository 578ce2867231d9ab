/**
 * `npm run bench [-- --json FILE] [--runs N] [--only WORD] [--mount PATH] [--subset] [--against FILE]`
 * and `npm run bench -- --compare A B`: fio and many files on the mount, the same block tests on a
 * volume over NBD, on a cluster of its own (3 OSDs, 3 copies, 2 metadata servers); many files
 * also on the local disk beside it. Figures are medians with their range over at least three runs;
 * with the processor time of each daemon and its memory. docs/performance.md says how to read it.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { ROOT } from "../../tools/test-parts.js";
import { Cluster } from "../support/cluster.js";
import { runProgram, UsageError } from "../support/program.js";
import { tempFolder } from "../support/temp.js";
import { runFio } from "./fio.js";
import { describeCommit, describeMachine, residentBytes, withCpu } from "./measure.js";
import type { Watched } from "./measure.js";
import { compareDocuments, describeDocument, readDocument } from "./report.js";
import { summarize } from "./report.js";
import type { Document, Memory, Result, Run } from "./report.js";
import { endWithProcess, Scope } from "../support/scope.js";
import { FileTests, type FileSizes, type Place } from "./file-tests.js";

const RUNS_MIN = 3;
const IDLE_MS = 5_000;
const PROGRAM_MS = 180_000;
const VOLUME_BYTES = 2 ** 30;

interface Sizes extends FileSizes {
  readonly profile: "full" | "subset";
  readonly seconds: number;
  readonly sequential: string;
  /** Random reads and writes stay in this much, which is written beforehand. */
  readonly area: string;
  /** Of the tests, these alone; all when left out. */
  readonly names?: RegExp;
}

const FULL: Sizes = {
  profile: "full",
  seconds: 4,
  sequential: "512M",
  area: "256M",
  smallFiles: 10_000,
  treeFiles: 3_000,
  entries: 100_000,
};

/** A minute in all: enough to see that a change has made something slow. */
const SUBSET: Sizes = {
  profile: "subset",
  seconds: 2,
  sequential: "128M",
  area: "64M",
  smallFiles: 800,
  treeFiles: 0,
  entries: 0,
  names: /^mount: (?!random read)|^small files: .*, 1 at a time|^volume: (sequential|random) write/,
};

interface Workload {
  readonly name: string;
  readonly unit: Result["unit"];
  readonly direction: "read" | "write";
  /** Caches are emptied before each run. */
  readonly cold?: boolean;
  readonly args: readonly string[];
}

/** The same on both; what differs is where, the engine, and what "direct" means. */
function workloads(deep: readonly string[], plain: readonly string[], sizes: Sizes): Workload[] {
  const { sequential, seconds, area } = sizes;
  const timed = ["--time_based", `--runtime=${seconds}`, `--size=${area}`];
  return [
    {
      name: "sequential write 1 MiB",
      unit: "MB/s",
      direction: "write",
      args: [...plain, "--rw=write", "--bs=1M", `--size=${sequential}`, "--end_fsync=1"],
    },
    {
      name: "sequential read 1 MiB, cold",
      unit: "MB/s",
      direction: "read",
      cold: true,
      args: [...plain, "--rw=read", "--bs=1M", `--size=${sequential}`],
    },
    {
      name: "random write 4 KiB, 16 in flight",
      unit: "/s",
      direction: "write",
      args: [...deep, "--rw=randwrite", "--bs=4k", ...timed],
    },
    {
      name: "random read 4 KiB, 16 in flight",
      unit: "/s",
      direction: "read",
      args: [...deep, "--rw=randread", "--bs=4k", ...timed],
    },
    {
      name: "write 4 KiB + fsync",
      unit: "/s",
      direction: "write",
      args: [...plain, "--rw=randwrite", "--bs=4k", "--fsync=1", ...timed],
    },
  ];
}

interface Target {
  readonly prefix: string;
  readonly workloads: readonly Workload[];
  readonly place: readonly string[];
  /** Processes whose time and memory count. */
  processes(): Promise<Watched[]>;
  cold(): void;
}

async function measureOnce(bench: Scope, target: Target, workload: Workload): Promise<Run> {
  const args = [...target.place, "--randrepeat=0", ...workload.args];
  const result = await runFio(bench, args, { withinMs: PROGRAM_MS });
  const { bytesPerSecond, operationsPerSecond, p50, p99 } = result[workload.direction];
  return {
    figure: workload.unit === "MB/s" ? bytesPerSecond / 1e6 : operationsPerSecond,
    cpu: {},
    p50: p50 ?? 0,
    p99: p99 ?? 0,
  };
}

async function measureTarget(
  bench: Scope,
  target: Target,
  { runs, isWanted }: Options,
): Promise<Result[]> {
  const results: Result[] = [];
  for (const workload of target.workloads) {
    const name = `${target.prefix}: ${workload.name}`;
    if (!isWanted(name)) continue;
    const done: Run[] = [];
    for (let i = 0; i < runs; i++) {
      if (workload.cold === true) target.cold();
      const processes = await target.processes();
      const { value, cpu } = await withCpu(processes, () => measureOnce(bench, target, workload));
      done.push({ ...value, cpu });
    }
    results.push(announce(summarize(name, workload.unit, done)));
  }
  return results;
}

function announce(result: Result): Result {
  process.stderr.write(`${result.name}: ${result.median} ${result.unit}\n`);
  return result;
}

/** Many files: on the mount, on one without extended attributes, and on the local disk. */
async function measureFiles(
  bench: Scope,
  cluster: Cluster,
  { runs, isWanted, sizes }: Options,
): Promise<Result[]> {
  const plain = join(cluster.folder, "noxattr");
  const local = join(cluster.folder, "local");
  for (const folder of [plain, local]) mkdirSync(folder);
  const processes = async (): Promise<readonly Watched[]> => (await cluster.status()).processes;
  const cold = (mount?: string) => (): void => cluster.dropCaches(mount);
  const places: Place[] = [
    { prefix: "", folder: cluster.mount, processes, cold: cold() },
    { prefix: "noxattr: ", folder: plain, processes, cold: cold(plain) },
    { prefix: "local disk: ", folder: local, processes: () => Promise.resolve([]), cold: cold() },
  ];
  const results: Result[] = [];
  for (const place of places) {
    if (place.folder === plain) await cluster.ok(["mount", plain, "-o", "noxattr"]);
    const tests = new FileTests(bench, place, isWanted);
    results.push(...(await tests.run(runs, sizes)).map(announce));
    if (place.folder === plain) await cluster.ok(["umount", plain], { withinMs: PROGRAM_MS });
  }
  return results;
}

function memoryOf(processes: readonly Watched[]): Memory {
  const each = processes.map(({ name, role, pid }) => ({ name, role, bytes: residentBytes(pid) }));
  const total = each
    .filter(({ role }) => role !== "zookeeper")
    .reduce((sum, { bytes }) => sum + bytes, 0);
  return { processes: each, total };
}

interface Options {
  readonly runs: number;
  readonly isWanted: (name: string) => boolean;
  readonly sizes: Sizes;
  readonly mount: string | undefined;
}

async function measure(bench: Scope, options: Options): Promise<Document> {
  const start = performance.now();
  const folder = tempFolder(bench, "bench");
  const { mount, sizes } = options;
  const cluster = new Cluster(bench, { folder, ...(mount !== undefined && { mount }) });
  await cluster.up();
  await cluster.healthy();
  await new Promise((done) => setTimeout(done, IDLE_MS));
  const idle = memoryOf((await cluster.status()).processes);

  const results: Result[] = [];
  const direct = ["--ioengine=libaio", "--direct=1", "--iodepth=16"];
  const files: Target = {
    prefix: "mount",
    place: [`--filename=${join(cluster.mount, "bench-file")}`],
    workloads: workloads(direct, ["--ioengine=psync"], sizes),
    processes: async () => [...(await cluster.status()).processes],
    cold: () => cluster.dropCaches(),
  };
  results.push(...(await measureTarget(bench, files, options)));
  results.push(...(await measureFiles(bench, cluster, options)));

  const { server, socket } = await cluster.serve("bench", VOLUME_BYTES);
  const nbd: Watched = { name: "nbd", role: "nbd", pid: server.pid };
  // fio knows an engine's own options only after the engine.
  const place = ["--ioengine=nbd", `--uri=nbd+unix:///bench?socket=${socket}`];
  const volume: Target = {
    prefix: "volume",
    place,
    // The kernel reads ahead and writes behind on a block device: a few requests at a time.
    workloads: workloads(["--iodepth=16"], ["--iodepth=4"], sizes).map((workload) =>
      workload.name.includes("fsync")
        ? { ...workload, args: workload.args.map((arg) => arg.replace("iodepth=4", "iodepth=1")) }
        : workload,
    ),
    processes: async () => [...(await cluster.status()).processes, nbd],
    // Its server keeps no data.
    cold: () => cluster.dropCaches(),
  };
  results.push(...(await measureTarget(bench, volume, options)));
  const loaded = memoryOf([...(await cluster.status()).processes, nbd]);
  return {
    format: 1,
    commit: describeCommit(ROOT),
    date: new Date().toISOString(),
    seconds: (performance.now() - start) / 1000,
    machine: describeMachine(),
    profile: sizes.profile,
    idle,
    loaded,
    results,
  };
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      json: { type: "string" },
      runs: { type: "string", default: String(RUNS_MIN) },
      only: { type: "string", default: "" },
      mount: { type: "string" },
      compare: { type: "boolean", default: false },
      subset: { type: "boolean", default: false },
      against: { type: "string" },
    },
  });
  if (values.compare) {
    const [a, b] = positionals;
    if (a === undefined || b === undefined || positionals.length > 2) {
      throw new UsageError("--compare needs two files that --json has written");
    }
    process.stdout.write(`${compareDocuments(readDocument(a), readDocument(b))}\n`);
    return 0;
  }
  if (positionals.length > 0) throw new UsageError(`what is "${positionals[0]}"?`);
  const runs = Number(values.runs);
  if (!Number.isInteger(runs) || runs < RUNS_MIN || runs > 100) {
    throw new UsageError(`--runs ${values.runs}: give a whole number from ${RUNS_MIN} to 100`);
  }
  if (values.mount !== undefined) mkdirSync(values.mount, { recursive: true });
  const sizes = values.subset ? SUBSET : FULL;
  const isWanted = (name: string): boolean =>
    name.includes(values.only) && sizes.names?.test(name) !== false;
  // Before the measurement: a file that is missing then would cost a whole run.
  const against = values.against === undefined ? undefined : readDocument(values.against);
  const bench = new Scope();
  endWithProcess(bench);
  try {
    const document = await measure(bench, { runs, isWanted, sizes, mount: values.mount });
    if (document.results.length === 0) throw new UsageError(`no test is named "${values.only}"`);
    process.stdout.write(`${describeDocument(document)}\n`);
    if (against !== undefined) {
      process.stdout.write(`\n${compareDocuments(against, document)}\n`);
    }
    if (values.json !== undefined) {
      writeFileSync(values.json, `${JSON.stringify(document, null, 2)}\n`);
      process.stderr.write(`written to ${values.json}\n`);
    }
    return 0;
  } finally {
    await bench.end();
  }
}

await runProgram("bench", main);
