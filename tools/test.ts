/**
 * `npm test`: runs every test file in its own Node process, part by part, counts what really ran,
 * and checks after each file that nothing was left behind. The last line is
 * `N passed, N failed[, N skipped]`; the exit code is 0 only if something ran and nothing failed.
 *
 * A file is run directly (node-tap's library prints TAP when a test file is executed), not through
 * the tap command: that saves its loader and plugin build, needs no network, and one file can be
 * run by hand in the same way. Owner of the run's temporary folder and of every marked process.
 *
 * Files that start clusters have a network of their own (a network namespace), so that two of them
 * run at a time on the same ports; where that is not permitted they run one after the other.
 */
import { spawn, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { chmodSync, createWriteStream, existsSync, mkdirSync, mkdtempSync } from "node:fs";
import { readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { FILE_VARIABLE, findLeftovers, markedProcesses, RUN_VARIABLE } from "./leftovers.js";
import { countTap, failuresOf } from "./tap-count.js";
import { PARTS, partOf, ROOT, selectTests } from "./test-parts.js";
import type { Part } from "./test-parts.js";

/** The compiled tree that this file is part of. */
const BUILD = fileURLToPath(new URL("..", import.meta.url));
const LOGS = join(BUILD, "test-logs");
/** Processes that were told to end get this long before they count as left over. */
const SETTLE_MS = 3_000;
const FAILURE_LINES_MAX = 120;
const FILES_AT_A_TIME = 2;

const RUN_ID = `${process.pid}-${randomBytes(4).toString("hex")}`;
// Short, because paths of unix sockets have at most 107 bytes.
const FOLDER = mkdtempSync(join(tmpdir(), "dss-t-"));
// Tests that act as another user must be able to pass through.
chmodSync(FOLDER, 0o711);

/** The mark of a file's processes, and where its temporary files, mounts and sockets are. */
interface Traces {
  readonly id: string;
  readonly folder: string;
}
/** Of the files that run now. */
const underWay = new Set<Traces>();
let filesRun = 0;

interface Outcome {
  passed: number;
  failed: number;
  skipped: number;
}

const total: Outcome = { passed: 0, failed: 0, skipped: 0 };
let stopping = false;

const print = (line: string): void => void process.stdout.write(`${line}\n`);
const seconds = (since: number): string => `${((performance.now() - since) / 1000).toFixed(1)} s`;

async function main(): Promise<number> {
  const args = process.argv.slice(2);
  const { files, unknown } = selectTests(args);
  if (unknown.length > 0) {
    print(`no test matches ${unknown.join(", ")}; parts: ${PARTS.map((p) => p.name).join(", ")}`);
    return 2;
  }
  rmSync(LOGS, { recursive: true, force: true });
  for (const part of PARTS) {
    const own = files.filter((file) => partOf(file) === part);
    if (own.length > 0 && !stopping) await runPart(part, own);
  }
  const strict = process.env["CI"] === "true" && total.skipped > 0;
  if (strict) print("skipped tests count as failures in CI");
  if (total.passed + total.failed === 0) print("no test ran");
  const skipped = total.skipped > 0 ? `, ${total.skipped} skipped` : "";
  print(`${total.passed} passed, ${total.failed} failed${skipped}`);
  return total.failed > 0 || total.passed === 0 || strict || stopping ? 1 : 0;
}

/** Runs its arguments where only they listen and connect. */
const OWN_NETWORK = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"'];
let networksWork: boolean | undefined;
function canHaveNetworks(): boolean {
  const [program = "", ...args] = OWN_NETWORK;
  networksWork ??= spawnSync(program, [...args, "true"], { stdio: "ignore" }).status === 0;
  return networksWork;
}

async function runPart(part: Part, files: readonly string[]): Promise<void> {
  const start = performance.now();
  const isolated = part.startsClusters && canHaveNetworks();
  const concurrency = part.startsClusters && !isolated ? 1 : FILES_AT_A_TIME;
  const deadline = start + part.limitSeconds * 1000;
  const sum: Outcome = { passed: 0, failed: 0, skipped: 0 };
  const queue = [...files];
  const worker = async (): Promise<void> => {
    for (let file = queue.shift(); file !== undefined && !stopping; file = queue.shift()) {
      if (performance.now() >= deadline) {
        print(`FAILED ${file}: not run, the part's limit of ${part.limitSeconds} s is used up`);
        sum.failed++;
        continue;
      }
      const outcome = await runFile(file, deadline, isolated);
      sum.passed += outcome.passed;
      sum.failed += outcome.failed;
      sum.skipped += outcome.skipped;
    }
  };
  await Promise.all(Array.from({ length: concurrency }, worker));
  const over = performance.now() - start > part.budgetSeconds * 1000;
  const note = over ? ` (over its budget of ${part.budgetSeconds} s)` : "";
  const skipped = sum.skipped > 0 ? `, ${sum.skipped} skipped` : "";
  print(
    `${sum.failed > 0 ? "FAILED" : "ok"} ${part.title}: ${files.length} files, ` +
      `${sum.passed} passed, ${sum.failed} failed${skipped}, ${seconds(start)}${note}`,
  );
  total.passed += sum.passed;
  total.failed += sum.failed;
  total.skipped += sum.skipped;
}

/** Runs one test file to its end or to the deadline, and reports what it said and left behind. */
async function runFile(file: string, deadline: number, isolated: boolean): Promise<Outcome> {
  const start = performance.now();
  const program = join(BUILD, file.replace(/\.ts$/, ".js"));
  const log = join(LOGS, file.replace(/\.test\.ts$/, ".log"));
  mkdirSync(dirname(log), { recursive: true });
  if (!existsSync(program)) {
    print(`FAILED ${file}: not built`);
    return { passed: 0, failed: 1, skipped: 0 };
  }
  const limitMs = Math.max(1_000, deadline - performance.now());
  const number = String(++filesRun);
  const traces = { id: `${RUN_ID}-${number}`, folder: join(FOLDER, number) };
  mkdirSync(traces.folder);
  chmodSync(traces.folder, 0o711);
  underWay.add(traces);
  const node = [process.execPath, "--enable-source-maps", program];
  const command = isolated ? [...OWN_NETWORK, ...node] : node;
  const { reason, output } = await execute({ file, command, traces, log, limitMs });
  const left = await clean(file, traces);
  underWay.delete(traces);

  const figures = countTap(output);
  const problems: string[] = [];
  if (figures.unexplained > 0) problems.push(`${figures.unexplained} skips without a reason`);
  if (reason !== undefined && figures.failed === 0) problems.push(reason);
  if (figures.bailedOut) problems.push("bailed out");
  if (reason === undefined && !figures.planned) problems.push("ran no test");
  const failed = figures.failed + problems.length;
  if (failed > 0) {
    print(`FAILED ${file}: ${[...problems, `${figures.failed} assertions`].join("; ")}`);
    const lines = failuresOf(output);
    for (const line of lines.slice(0, FAILURE_LINES_MAX)) print(`    ${line}`);
    if (problems.length > 0) print(`  | ${lastLines(log)}`);
    print(`    everything it printed: ${log}`);
  } else if (performance.now() - start > 10_000) print(`  ${file}: ${seconds(start)}`);
  return { passed: figures.passed, failed: failed + left, skipped: figures.skipped };
}

const lastLines = (log: string): string =>
  readFileSync(log, "utf8").trim().split("\n").slice(-30).join("\n  | ");

/** Runs a compiled test; `reason` says why its end was not a good one. */
async function execute(run: {
  file: string;
  command: readonly string[];
  traces: Traces;
  log: string;
  limitMs: number;
}): Promise<{ reason: string | undefined; output: string }> {
  const { file, traces, log, limitMs } = run;
  const [program = "", ...args] = run.command;
  const child = spawn(program, args, {
    cwd: ROOT,
    detached: true, // Its own group, so that a test that hangs is stopped with its children.
    stdio: ["ignore", "pipe", "pipe"],
    env: {
      ...process.env,
      [RUN_VARIABLE]: traces.id,
      [FILE_VARIABLE]: file,
      TMPDIR: traces.folder,
      // The runner's limits count; tap's own 30 s would cut short tests of real clusters.
      TAP_TIMEOUT: String(Math.ceil(limitMs / 1000)),
      FORCE_COLOR: "0",
    },
  });
  const sink = createWriteStream(log);
  const said: Buffer[] = [];
  child.stdout.on("data", (chunk: Buffer) => {
    said.push(chunk);
    sink.write(chunk);
  });
  child.stderr.pipe(sink, { end: false });
  let timedOut = false;
  const timer = setTimeout(() => {
    timedOut = true;
    killGroup(child.pid);
  }, limitMs);
  const reason = await new Promise<string | undefined>((done) => {
    child.on("error", (error) => done(`cannot start: ${error.message}`));
    child.on("exit", (code, signal) => {
      // A child of the test that holds the pipe open must not hold up the run: it is left over.
      const patience = setTimeout(() => child.stdout.destroy(), 500);
      child.on("close", () => {
        clearTimeout(patience);
        if (timedOut) done(`stopped after ${Math.round(limitMs / 1000)} s`);
        else if (signal !== null) done(`killed by ${signal}`);
        else done(code === 0 ? undefined : `exit code ${code}`);
      });
      setTimeout(() => child.stderr.destroy(), 500).unref();
    });
  });
  clearTimeout(timer);
  await new Promise<void>((done) => sink.end(done));
  return { reason, output: Buffer.concat(said).toString("utf8") };
}

function killGroup(pid: number | undefined): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // Already gone.
  }
}

/** Reports and removes what is left; returns how many things it were. */
async function clean(after: string, { id, folder }: Traces): Promise<number> {
  const start = performance.now();
  while (markedProcesses(id).length > 0 && performance.now() - start < SETTLE_MS) {
    await new Promise((done) => setTimeout(done, 50));
  }
  const leftovers = findLeftovers(id, folder);
  for (const { what, remove } of leftovers) {
    print(`LEFT BEHIND after ${after}: ${what}`);
    remove();
  }
  rmSync(folder, { recursive: true, force: true });
  return leftovers.length;
}

for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  process.on(signal, () => {
    stopping = true;
    print(`stopped by ${signal}`);
    for (const { id } of underWay) {
      for (const { pid } of markedProcesses(id)) {
        try {
          process.kill(pid, "SIGKILL");
        } catch {
          // Already gone.
        }
      }
    }
  });
}

try {
  process.exitCode = await main();
} finally {
  for (const { id, folder } of underWay) {
    for (const { remove } of findLeftovers(id, folder)) remove();
  }
  rmSync(FOLDER, { recursive: true, force: true });
}
