/**
 * Benchmark of the chunk store on a real directory: durable 4 KiB applies with 1, 16 and 64 in
 * flight, 1 MiB writes, and reads. `node store.js [--dir PATH] [--seconds S] [--json FILE]`
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { BLOCK_SIZE, blockChecksums } from "../../cluster/base/checksum.js";
import { silentLogger } from "../../cluster/base/log.js";
import { Prng } from "../../cluster/base/prng.js";
import { openNodeDisk } from "../../cluster/platform/node-disk.js";
import { nodeClock, nodeRandom } from "../../cluster/platform/node.js";
import { OpKind } from "../../osd/store/chunk-store.js";
import { FileStore } from "../../osd/store/file-store.js";

const { values } = parseArgs({
  options: {
    dir: { type: "string", default: tmpdir() },
    seconds: { type: "string", default: "4" },
    json: { type: "string" },
    only: { type: "string", default: "" },
  },
});
const seconds = Number(values.seconds);
const directory = mkdtempSync(join(values.dir, "dss-bench-store-"));
const MiB = 1024 * 1024;
const OBJECT = 4 * MiB;
const OBJECTS = 64;
const PGS = 16;
const random = new Prng(1);

const store = await FileStore.open(await openNodeDisk(directory), {
  osdId: 1,
  logger: silentLogger,
  clock: nodeClock,
  random: nodeRandom,
});
for (let pg = 0; pg < PGS; pg++) {
  await new Promise<void>((resolve) =>
    store.createPg(65_536 + pg, Buffer.alloc(0), () => resolve()),
  );
}

const sequences = new Uint32Array(PGS);
function write(
  object: number,
  offset: number,
  data: Buffer,
  sums: Uint32Array,
  done: () => void,
): void {
  const pg = object % PGS;
  const seq = ++sequences[pg]!;
  if (seq % 256 === 0 && seq > 2_000) store.trimLog(65_536 + pg, { interval: 1, seq: seq - 2_000 });
  store.apply(
    {
      pg: 65_536 + pg,
      version: { interval: 1, seq },
      kind: OpKind.write,
      object: `10000000001.${object.toString(16).padStart(8, "0")}`,
      client: 70_000,
      sequence: seq,
      floor: Math.max(1, seq - 64),
      size: OBJECT,
      offset,
      length: 0,
      data: [data],
      sums,
      mtimeNs: 1_700_000_000_000_000_000n,
      truncateSeq: 0,
      snapSeq: 0,
    },
    (error) => {
      if (error) throw error;
      done();
    },
  );
}

interface Result {
  name: string;
  perSecond: number;
  mibPerSecond: number;
  p50Us: number;
  p99Us: number;
  cpuUs: number;
}
const results: Result[] = [];

async function measure(
  name: string,
  depth: number,
  bytes: number,
  start: (done: () => void) => void,
): Promise<void> {
  if (values.only !== "" && !name.includes(values.only)) return;
  const latencies: number[] = [];
  const cpu = process.cpuUsage();
  const began = performance.now();
  const end = began + seconds * 1000;
  await new Promise<void>((resolve) => {
    let inFlight = 0;
    const next = (): void => {
      if (performance.now() >= end) {
        if (inFlight === 0) resolve();
        return;
      }
      inFlight++;
      const at = performance.now();
      start(() => {
        latencies.push((performance.now() - at) * 1000);
        inFlight--;
        next();
      });
    };
    for (let i = 0; i < depth; i++) next();
  });
  const took = (performance.now() - began) / 1000;
  const used = process.cpuUsage(cpu);
  latencies.sort((a, b) => a - b);
  const count = latencies.length;
  const result = {
    name,
    perSecond: Math.round(count / took),
    mibPerSecond: Math.round((count * bytes) / MiB / took),
    p50Us: Math.round(latencies[count >> 1]!),
    p99Us: Math.round(latencies[Math.floor(count * 0.99)]!),
    cpuUs: Math.round((used.user + used.system) / count),
  };
  results.push(result);
  const rss = Math.round(process.memoryUsage.rss() / MiB);
  console.log(
    `${name.padEnd(28)} ${String(result.perSecond).padStart(8)}/s ${String(result.mibPerSecond).padStart(6)} MiB/s` +
      `  p50 ${String(result.p50Us).padStart(6)} µs  p99 ${String(result.p99Us).padStart(6)} µs` +
      `  cpu ${String(result.cpuUs).padStart(5)} µs/op  rss ${rss} MiB`,
  );
}

console.log(
  `store in ${directory}, ${seconds} s each, rss ${Math.round(process.memoryUsage.rss() / MiB)} MiB idle`,
);
const large = random.bytes(MiB);
const largeSums = blockChecksums(large);
const small = random.bytes(BLOCK_SIZE);
const smallSums = blockChecksums(small);
let position = 0;
const nextLarge = (done: () => void): void => {
  const at = position++ % (OBJECTS * 4);
  write(Math.floor(at / 4), (at % 4) * MiB, large, largeSums, done);
};
// Fills the objects first, so that what follows overwrites and reads.
await new Promise<void>((resolve) => {
  let left = OBJECTS * 4;
  for (let i = 0; i < OBJECTS * 4; i++) nextLarge(() => --left === 0 && resolve());
});
for (const depth of [1, 4, 16]) await measure(`write 1 MiB x${depth}`, depth, MiB, nextLarge);
const nextSmall = (done: () => void): void =>
  write(random.int(0, OBJECTS - 1), random.int(0, 1023) * BLOCK_SIZE, small, smallSums, done);
for (const depth of [1, 16, 64])
  await measure(`write 4 KiB random x${depth}`, depth, BLOCK_SIZE, nextSmall);
const read =
  (bytes: number) =>
  (done: () => void): void => {
    const object = random.int(0, OBJECTS - 1);
    const offset = random.int(0, OBJECT / bytes - 1) * bytes;
    store
      .read(
        65_536 + (object % PGS),
        `10000000001.${object.toString(16).padStart(8, "0")}`,
        offset,
        bytes,
      )
      .then(done, (error: unknown) => {
        throw error;
      });
  };
await measure("read 4 KiB random x16", 16, BLOCK_SIZE, read(BLOCK_SIZE));
for (const depth of [1, 4]) await measure(`read 1 MiB random x${depth}`, depth, MiB, read(MiB));
console.log(JSON.stringify(store.counters()));
const closing = performance.now();
await store.close();
console.log(`close ${Math.round(performance.now() - closing)} ms`);
const opening = performance.now();
const again = await FileStore.open(await openNodeDisk(directory), {
  osdId: 1,
  logger: silentLogger,
  clock: nodeClock,
  random: nodeRandom,
});
console.log(`open ${Math.round(performance.now() - opening)} ms`);
await again.close();
if (values.json !== undefined) writeFileSync(values.json, JSON.stringify({ results }, null, 2));
rmSync(directory, { recursive: true });
