/**
 * Small files, as a program: `small-files.js FOLDER PHASE COUNT WORKERS [SECONDS]`. Prints one JSON
 * document: operations done and the seconds they took. Phases: create (1 KiB each), stat, list
 * (each directory with the attributes of its entries, as `ls -l`), read, delete. The files are
 * shared out among the workers, which are processes; each has ten directories of its own and does
 * one thing after the other. A create is open, write and close, without asking for durability. A
 * worker that is not done after SECONDS stops there; later phases take the files that there are.
 */
import { fork } from "node:child_process";
import {
  closeSync,
  constants,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  statSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const DIRECTORIES = 10;
const SECONDS_DEFAULT = 120;
const content = Buffer.alloc(1024, "dss ");

interface Share {
  readonly folder: string;
  readonly phase: string;
  readonly count: number;
  readonly worker: number;
  readonly seconds: number;
}
/** Nanoseconds of the monotonic clock, which all processes of a machine share. */
interface Span {
  readonly operations: number;
  readonly startNs: string;
  readonly endNs: string;
}
export interface SmallFilesResult {
  readonly operations: number;
  readonly seconds: number;
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

const directoriesOf = ({ folder, worker }: Share): string[] =>
  Array.from({ length: DIRECTORIES }, (_, i) => join(folder, `${worker}-${i}`));

function work(share: Share): Span {
  const { phase, count, seconds } = share;
  const directories = directoriesOf(share);
  const startNs = process.hrtime.bigint();
  const deadline = startNs + BigInt(Math.round(seconds * 1e9));
  let operations = 0;
  if (phase === "list") {
    for (const directory of directories) {
      for (const name of readdirSync(directory)) {
        const { size } = lstatSync(join(directory, name));
        if (size !== content.length) throw new Error(`${name} has ${size} bytes`);
        operations++;
      }
    }
  } else {
    for (let i = 0; i < count && process.hrtime.bigint() < deadline; i++) {
      try {
        once(phase, join(directories[i % DIRECTORIES]!, `f${i}`));
      } catch (error) {
        const missing = (error as NodeJS.ErrnoException).code === "ENOENT";
        // The create stopped here, at its time limit.
        if (missing && phase !== "create" && i > 0) break;
        throw error;
      }
      operations++;
    }
  }
  const endNs = process.hrtime.bigint();
  return { operations, startNs: String(startNs), endNs: String(endNs) };
}

/** One worker process: says that it is ready, waits for the word, works, says what it did. */
function runWorker(share: Share): void {
  if (share.phase === "create") {
    for (const directory of directoriesOf(share)) mkdirSync(directory);
  }
  process.once("message", () => {
    const span = work(share);
    if (share.phase === "delete" && span.operations === share.count) {
      for (const directory of directoriesOf(share)) rmdirSync(directory);
    }
    process.send!(span, () => process.disconnect());
  });
  process.send!("ready");
}

/** Starts the workers, lets them go at the same moment, and waits for all. */
async function runAll(shares: readonly Share[]): Promise<Span[]> {
  const children = shares.map((share) =>
    fork(fileURLToPath(import.meta.url), ["--worker", JSON.stringify(share)]),
  );
  let ready = 0;
  try {
    return await Promise.all(
      children.map(
        (child) =>
          new Promise<Span>((resolve, reject) => {
            child.on("message", (message) => {
              if (message !== "ready") resolve(message as Span);
              else if (++ready === children.length) for (const each of children) each.send("go");
            });
            child.on("error", reject);
            child.on("exit", (code) => reject(new Error(`a worker ended with code ${code}`)));
          }),
      ),
    );
  } catch (error) {
    for (const child of children) child.kill("SIGKILL");
    throw error;
  }
}

const [first = "", phase = "", countText = "0", workersText = "1", secondsText] =
  process.argv.slice(2);
if (first === "--worker") {
  runWorker(JSON.parse(phase) as Share);
} else {
  const workers = Number(workersText);
  const count = Math.floor(Number(countText) / workers);
  const seconds = Number(secondsText ?? SECONDS_DEFAULT);
  const spans = await runAll(
    Array.from({ length: workers }, (_, worker) => ({
      ...{ folder: first, phase, count, worker, seconds },
    })),
  );
  const starts = spans.map(({ startNs }) => BigInt(startNs)).sort((a, b) => (a < b ? -1 : 1));
  const ends = spans.map(({ endNs }) => BigInt(endNs)).sort((a, b) => (a < b ? -1 : 1));
  const result: SmallFilesResult = {
    operations: spans.reduce((sum, { operations }) => sum + operations, 0),
    seconds: Number(ends.at(-1)! - starts[0]!) / 1e9,
  };
  process.stdout.write(`${JSON.stringify(result)}\n`);
}
