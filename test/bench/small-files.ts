/**
 * Small files, as a program: `small-files.js FOLDER PHASE COUNT WORKERS`. Prints operations a
 * second. Phases: create (1 KiB each), stat, read, delete. The files are shared out among the
 * workers; each has ten directories of its own and does one thing after the other, as a program
 * does that knows nothing of promises: threads with synchronous calls. A create is open, write and
 * close, without asking for durability.
 */
import {
  closeSync,
  constants,
  mkdirSync,
  openSync,
  readFileSync,
  rmdirSync,
  statSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { Worker, isMainThread, parentPort, workerData } from "node:worker_threads";

const DIRECTORIES = 10;
const content = Buffer.alloc(1024, "dss ");

interface Share {
  folder: string;
  phase: string;
  count: number;
  worker: number;
}
interface Span {
  startNs: bigint;
  endNs: bigint;
}

function once(phase: string, path: string): void {
  switch (phase) {
    case "create": {
      const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL;
      const file = openSync(path, flags, 0o644);
      writeSync(file, content);
      closeSync(file);
      return;
    }
    case "stat": {
      const { size } = statSync(path);
      if (size !== content.length) throw new Error(`${path} has ${size} bytes`);
      return;
    }
    case "read":
      if (!readFileSync(path).equals(content)) throw new Error(`${path} has wrong bytes`);
      return;
    case "delete":
      unlinkSync(path);
      return;
    default:
      throw new Error(`no phase "${phase}"`);
  }
}

function work({ folder, phase, count, worker }: Share): Span {
  const directories = Array.from({ length: DIRECTORIES }, (_, i) => join(folder, `${worker}-${i}`));
  if (phase === "create") for (const directory of directories) mkdirSync(directory);
  const startNs = process.hrtime.bigint();
  for (let i = 0; i < count; i++) once(phase, join(directories[i % DIRECTORIES]!, `f${i}`));
  const endNs = process.hrtime.bigint();
  if (phase === "delete") for (const directory of directories) rmdirSync(directory);
  return { startNs, endNs };
}

function share(data: Share): Promise<Span> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL(import.meta.url), { workerData: data });
    worker.once("message", resolve);
    worker.once("error", reject);
  });
}

if (isMainThread) {
  const [folder = "", phase = "", countText = "0", workersText = "1"] = process.argv.slice(2);
  const workers = Number(workersText);
  const count = Math.floor(Number(countText) / workers);
  const spans = await Promise.all(
    Array.from({ length: workers }, (_, worker) => share({ folder, phase, count, worker })),
  );
  const start = spans.reduce((min, { startNs }) => (startNs < min ? startNs : min), 1n << 62n);
  const end = spans.reduce((max, { endNs }) => (endNs > max ? endNs : max), 0n);
  process.stdout.write(`${(count * workers) / (Number(end - start) / 1e9)}\n`);
} else {
  parentPort!.postMessage(work(workerData as Share));
}
