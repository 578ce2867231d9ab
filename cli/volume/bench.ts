/** `dss volume bench`: how fast a volume is through the library, without NBD or a kernel. */
import type { Command } from "commander";
import { DssError } from "../../cluster/base/errors.js";
import { Prng } from "../../cluster/base/prng.js";
import type { BlockImage } from "../../nbd/block-image.js";
import { Meter } from "../../nbd/meter.js";
import { UsageError } from "../failure.js";
import { examples, withJson } from "../options.js";
import { note, printJson, printTable } from "../output.js";
import { formatSize, KIB, MIB, parseCount, parseSize } from "../sizes.js";
import { usageOf } from "./du.js";
import { withImage } from "./image.js";
import { infoOf, inSession } from "./session.js";

interface Test {
  name: string;
  write: boolean;
  random: boolean;
  block: number;
  depth: number;
}
/** The questions people ask of a disk: throughput, operations, and latency of one at a time. */
const TESTS: readonly Test[] = [
  { name: "seq-write", write: true, random: false, block: MIB, depth: 8 },
  { name: "rand-write", write: true, random: true, block: 4 * KIB, depth: 32 },
  { name: "rand-write-1", write: true, random: true, block: 4 * KIB, depth: 1 },
  { name: "seq-read", write: false, random: false, block: MIB, depth: 8 },
  { name: "rand-read", write: false, random: true, block: 4 * KIB, depth: 32 },
  { name: "rand-read-1", write: false, random: true, block: 4 * KIB, depth: 1 },
];
const READ_TESTS = TESTS.filter(({ write }) => !write);

interface Flags {
  tests?: string;
  seconds: string;
  range?: string;
  blockSize?: string;
  depth?: string;
  seed: string;
  yes?: boolean;
  json?: boolean;
}
export interface BenchRow {
  test: string;
  blockSize: number;
  depth: number;
  operationsPerSecond: number;
  bytesPerSecond: number;
  p50Us: number;
  p99Us: number;
  maxUs: number;
}

function testsOf(flags: Flags): Test[] {
  const bytes = { bare: "bytes", min: 512, max: 32 * MIB } as const;
  const block = flags.blockSize && parseSize(flags.blockSize, { what: "block size", ...bytes });
  const depth = flags.depth && parseCount(flags.depth, { what: "--depth", min: 1, max: 1_024 });
  const names = flags.tests?.split(",") ?? READ_TESTS.map(({ name }) => name);
  return names.map((name) => {
    const found = TESTS.find((test) => test.name === name.trim());
    if (found === undefined) {
      const known = TESTS.map((test) => test.name).join(", ");
      throw new UsageError(`there is no test "${name}"`, `the tests are: ${known}`);
    }
    return { ...found, ...(block && { block }), ...(depth && { depth }) };
  });
}

async function runTest(image: BlockImage, test: Test, run: Run): Promise<BenchRow> {
  const { block, depth } = test;
  const slots = Math.floor(run.range / block);
  const random = new Prng(run.seed);
  // Bytes that nothing can compress, made once: making them is not what is measured.
  const data = Buffer.allocUnsafe(block);
  for (let at = 0; at < block; at++) data[at] = random.int(0, 255);
  const meter = new Meter({ now: () => performance.now() });
  const begin = performance.now();
  const end = begin + run.seconds * 1_000;
  let next = 0;
  const worker = async (): Promise<void> => {
    for (let at = performance.now(); at < end; at = performance.now()) {
      const slot = test.random ? random.int(0, slots - 1) : next++ % slots;
      if (test.write) await image.write(slot * block, data, { fua: true });
      else await image.read(slot * block, block);
      meter.done(test.write ? "write" : "read", block, performance.now() - at);
    }
  };
  const ended = await Promise.allSettled(Array.from({ length: depth }, worker));
  for (const each of ended) if (each.status === "rejected") throw each.reason;
  const seconds = (performance.now() - begin) / 1_000;
  const done = meter.take();
  const operations = done.reads + done.writes;
  return {
    ...{ test: test.name, blockSize: block, depth },
    operationsPerSecond: Math.round(operations / seconds),
    bytesPerSecond: Math.round((operations * block) / seconds),
    ...(test.write ? done.write : done.read),
  };
}

interface Run {
  /** The first bytes of the volume are used. */
  range: number;
  seconds: number;
  seed: number;
}

export function registerBenchmark(parent: Command): void {
  const bench = withJson(
    parent
      .command("bench")
      .description("measure a volume; tests that write destroy what is on it")
      .argument("<name>", "name of the volume")
      .option("--tests <names>", `of ${TESTS.map(({ name }) => name).join(", ")} (the reads)`)
      .option("--seconds <count>", "length of each test", "5")
      .option("--range <size>", "use only so much of the volume's beginning (1G or all)")
      .option("--block-size <size>", "bytes of a request, instead of the test's own")
      .option("--depth <count>", "requests at a time, instead of the test's own")
      .option("--seed <number>", "of the random places", "1")
      .option("--yes", "write although the volume is not empty: its data are lost"),
  );
  bench.action(async (name: string, flags: Flags) => {
    const tests = testsOf(flags);
    const seconds = parseCount(flags.seconds, { what: "--seconds", min: 1, max: 86_400 });
    const seed = parseCount(flags.seed, { what: "--seed", min: 0, max: 2 ** 31 });
    const write = tests.some((test) => test.write);
    const { size } = await inSession(bench, async (mds, client) => {
      const volume = await infoOf(mds, name);
      if (write && flags.yes !== true) {
        const { objects } = await usageOf(client, volume);
        if (objects > 0) {
          throw new DssError("InvalidArgument", `volume ${name} is not empty`, {
            hint: "tests that write overwrite its data; if they may be lost, add --yes",
          });
        }
      }
      return volume;
    });
    const least = Math.max(...tests.map((test) => test.block));
    const bounds = { what: "--range", bare: "bytes", min: least, max: size } as const;
    const range =
      flags.range === undefined ? Math.min(size, 1024 * MIB) : parseSize(flags.range, bounds);
    if (range < least) {
      throw new DssError("InvalidArgument", `volume ${name} is smaller than a block of a test`);
    }
    if (write) note(`writing over the first ${formatSize(range)} of ${name}`);
    const rows: BenchRow[] = [];
    await withImage(bench, { name, write }, async (image) => {
      for (const test of tests) {
        if (flags.json !== true) note(`${test.name}: ${seconds} s`);
        rows.push(await runTest(image, test, { range, seconds, seed }));
      }
    });
    if (flags.json === true) {
      printJson(rows);
      return;
    }
    const cells = rows.map((row) => [
      ...[row.test, formatSize(row.blockSize), row.depth, row.operationsPerSecond],
      `${formatSize(row.bytesPerSecond)}/s`,
      ...[row.p50Us, row.p99Us, row.maxUs].map((us) => (us / 1_000).toFixed(2)),
    ]);
    printTable(["TEST", "BLOCK", "DEPTH", "OPS/S", "SPEED", "MS 50%", "99%", "MAX"], cells);
  });
  examples(
    bench,
    "dss volume bench mydevice",
    "dss volume bench scratch --tests seq-write,rand-write,seq-read --seconds 10",
  );
}
