/**
 * Benchmark of the chunk store on a real directory: durable 4 KiB applies with 1, 16 and 64 in
 * flight, 1 MiB writes, and reads. `node store.js [--dir PATH] [--seconds S] [--json FILE]`
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import { keepInFlight, quantile } from "./closed-loop.js";
import { openStore, StoreLoad } from "./store-load.js";

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
const OBJECTS = 64;

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
  const cpu = process.cpuUsage();
  const loop = await keepInFlight(depth, seconds, start);
  const used = process.cpuUsage(cpu);
  const count = loop.operations;
  const result = {
    name,
    perSecond: Math.round(count / loop.seconds),
    mibPerSecond: Math.round((count * bytes) / MiB / loop.seconds),
    p50Us: Math.round(quantile(loop, 0.5)),
    p99Us: Math.round(quantile(loop, 0.99)),
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

const idle = Math.round(process.memoryUsage.rss() / MiB);
console.log(`store in ${directory}, ${seconds} s each, rss ${idle} MiB before it is open`);
const load = await StoreLoad.open(directory, OBJECTS);
for (const depth of [1, 4, 16]) {
  await measure(`write 1 MiB x${depth}`, depth, MiB, (done) => load.writeLarge(done));
}
for (const depth of [1, 16, 64]) {
  const start = (done: () => void): void => load.writeSmall(done);
  await measure(`write 4 KiB random x${depth}`, depth, BLOCK_SIZE, start);
}
await measure("read 4 KiB random x16", 16, BLOCK_SIZE, (done) => load.read(BLOCK_SIZE, done));
for (const depth of [1, 4]) {
  await measure(`read 1 MiB random x${depth}`, depth, MiB, (done) => load.read(MiB, done));
}
console.log(JSON.stringify(load.store.counters()));
const closing = performance.now();
await load.store.close();
console.log(`close ${Math.round(performance.now() - closing)} ms`);
const opening = performance.now();
const again = await openStore(directory);
console.log(`open ${Math.round(performance.now() - opening)} ms`);
await again.close();
if (values.json !== undefined) writeFileSync(values.json, JSON.stringify({ results }, null, 2));
rmSync(directory, { recursive: true });
