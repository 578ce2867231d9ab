/**
 * Processes that outlive the command: started detached with a log file, recorded with their start
 * time, and stopped only when the record still names the same process. A number alone would not do:
 * it is given to another program sooner or later, and that one must never be signalled.
 */
import { spawn } from "node:child_process";
import { closeSync, openSync, readFileSync, readSync, renameSync, statSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { DssError } from "../../cluster/base/errors.js";

export interface ProcessIdentity {
  pid: number;
  /** Clock ticks since boot at which it started (proc(5), field 22 of stat). */
  startTicks: number;
  /** Ticks count from the boot with this id. */
  bootId: string;
}

let ownBootId: string | undefined;
export function bootId(): string {
  ownBootId ??= readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  return ownBootId;
}

/**
 * State letter and start time from the text of /proc/PID/stat, whose second field may hold
 * anything.
 */
export function parseStat(text: string): { state: string; startTicks: number } | undefined {
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  const startTicks = Number(fields[19]);
  const state = fields[0];
  if (state === undefined || state === "" || !Number.isSafeInteger(startTicks)) return undefined;
  return { state, startTicks };
}

function readStat(pid: number): { state: string; startTicks: number } | undefined {
  try {
    return parseStat(readFileSync(`/proc/${pid}/stat`, "latin1"));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ESRCH") return undefined;
    throw error;
  }
}

/** Undefined when there is no such process. */
export function identify(pid: number): ProcessIdentity | undefined {
  const stat = readStat(pid);
  return stat && { pid, startTicks: stat.startTicks, bootId: bootId() };
}

/** The very process that was recorded still runs (a zombie does not). */
export function isAlive(identity: ProcessIdentity): boolean {
  if (identity.bootId !== bootId()) return false;
  const stat = readStat(identity.pid);
  return stat !== undefined && stat.startTicks === identity.startTicks && !/[ZX]/.test(stat.state);
}

/**
 * The process has ended, but for its parent's knowing of it or for threads that are in the kernel
 * and cannot leave it: nothing of its own runs any more.
 */
export const isZombie = (pid: number): boolean => readStat(pid)?.state === "Z";

/** False when it has ended meanwhile. */
export function signal(identity: ProcessIdentity, name: NodeJS.Signals): boolean {
  if (!isAlive(identity)) return false;
  try {
    process.kill(identity.pid, name);
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ESRCH") return false;
    if (code !== "EPERM") throw error;
    throw new DssError("NotPermitted", `process ${identity.pid} belongs to another user`, {
      cause: error,
      hint: "run the command as the user who started it, or as root",
    });
  }
}

/** True when it has ended within the time. */
export async function waitForEnd(identity: ProcessIdentity, withinMs: number): Promise<boolean> {
  const start = performance.now();
  let pauseMs = 5;
  while (isAlive(identity)) {
    if (performance.now() - start >= withinMs) return false;
    await sleep(pauseMs);
    pauseMs = Math.min(50, pauseMs * 2);
  }
  return true;
}

export type Stopped = "was not running" | "ended" | "killed";

/** Asks it to end, waits, and ends it by force if it does not. */
export async function stop(identity: ProcessIdentity, graceMs: number): Promise<Stopped> {
  if (!signal(identity, "SIGTERM")) return "was not running";
  signal(identity, "SIGCONT"); // A process that somebody has stopped could not end.
  if (await waitForEnd(identity, graceMs)) return "ended";
  signal(identity, "SIGKILL");
  if (await waitForEnd(identity, 10_000)) return "killed";
  throw new DssError("TimedOut", `process ${identity.pid} does not end, even by SIGKILL`, {
    hint: "it waits for the kernel: see the state of its mounts and disks",
  });
}

/**
 * The process that serves the mount at the moment; its supervisor starts another one when it dies.
 * Without a supervisor (other drivers) the recorded process serves itself.
 */
export function servingPid({ pid }: ProcessIdentity): number {
  let children: string;
  try {
    children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8");
  } catch {
    return pid; // It has ended, or the kernel does not tell.
  }
  const isWorker = (child: string): boolean => {
    try {
      return readFileSync(`/proc/${child}/cmdline`, "utf8").includes("\0--worker\0");
    } catch {
      return false;
    }
  };
  return Number(children.split(" ").filter(Boolean).find(isWorker) ?? pid);
}

// ---- Starting ----------------------------------------------------------------------------------

/** Older lines are kept in one file beside it when a log is larger than this at a start. */
const LOG_BYTES_MAX = 16 * 2 ** 20;

/**
 * For processes that run for days (glibc, mallopt(3)): blocks of 128 KiB and more go back to the
 * system when they are freed. Left to itself the allocator learns from the first large blocks to
 * keep the next ones, of up to 32 MiB, among the small ones, and their holes stay resident.
 */
const ALLOCATOR = {
  MALLOC_MMAP_THRESHOLD_: String(128 * 1024),
  MALLOC_TRIM_THRESHOLD_: String(16 * 1024 * 1024),
};
/**
 * MiB; V8 takes 16 left to itself. Each has two, which a daemon fills however little of it lives;
 * half of it fits better into a processor's cache, and collections are as quick.
 */
const YOUNG_OBJECTS = "--max-semi-space-size=8";

/** This process's environment for a daemon; what the user has set goes before what we think. */
export function daemonEnvironment(more: Readonly<Record<string, string>> = {}): NodeJS.ProcessEnv {
  const NODE_OPTIONS = [YOUNG_OBJECTS, process.env.NODE_OPTIONS ?? ""].join(" ").trim();
  return { ...ALLOCATOR, ...process.env, NODE_OPTIONS, ...more };
}

export interface Started extends ProcessIdentity {
  /** Bytes of the log before the process wrote to it. */
  logStart: number;
  /** Whether it has ended, and how; undefined while it runs. */
  ended(): string | undefined;
}

export interface Launch {
  program: string;
  args: readonly string[];
  log: string;
  cwd?: string;
  env?: Readonly<Record<string, string>>;
}

/** Starts a process of its own session; this command neither waits for it nor keeps it. */
export async function startDetached(launch: Launch): Promise<Started> {
  const size = statSync(launch.log, { throwIfNoEntry: false })?.size ?? 0;
  if (size > LOG_BYTES_MAX) renameSync(launch.log, `${launch.log}.1`);
  const fd = openSync(launch.log, "a", 0o640);
  const logStart = size > LOG_BYTES_MAX ? 0 : size;
  try {
    const child = spawn(launch.program, launch.args, {
      detached: true,
      stdio: ["ignore", fd, fd],
      // Not the caller's folder: it would keep that folder's file system from being unmounted.
      cwd: launch.cwd ?? "/",
      env: daemonEnvironment(launch.env),
    });
    let end: string | undefined;
    child.once("exit", (code, signalName) => {
      end = signalName === null ? `exit code ${code}` : `ended by ${signalName}`;
    });
    await new Promise<void>((resolve, reject) => {
      child.once("spawn", resolve);
      child.once("error", (cause) => {
        reject(new DssError("Configuration", `cannot start ${launch.program}`, { cause }));
      });
    });
    child.unref();
    const identity = identify(child.pid!);
    if (identity === undefined) {
      throw new DssError("Configuration", `${launch.program} ended at once`, {
        hint: `see ${launch.log}`,
      });
    }
    return { ...identity, logStart, ended: () => end ?? (isAlive(identity) ? undefined : "gone") };
  } finally {
    closeSync(fd);
  }
}

/**
 * The error about a process that did not start, in its own last words: those it printed as a
 * failing command does ("dss: what", then the hint), else the end of its log from `start` on.
 */
export function failureIn(log: string, start: number, what: string, ended: string): DssError {
  const lines = readFrom(log, start).split("\n");
  const last = lines.findLastIndex((line) => line.startsWith("dss: "));
  if (last >= 0) {
    const hint = /^ {5}(\S.*)$/.exec(lines[last + 1] ?? "")?.[1];
    const message = lines[last]!.slice("dss: ".length);
    return new DssError("Configuration", `${what}: ${message}`, { hint: hint ?? `see ${log}` });
  }
  const spoken = lines
    .map((line) => line.trim())
    .filter((line) => line !== "" && !/^at /.test(line))
    .slice(-2)
    .map(plainLine)
    .join("; ");
  const words = spoken === "" ? "" : `: ${spoken}`;
  return new DssError("Configuration", `${what}: its process ended (${ended})${words}`, {
    hint: `see ${log}`,
  });
}

const WORDS_MAX = 16_384;

/** The end of the log, at most from `start` on; "" when there is none. */
function readFrom(log: string, start: number): string {
  const size = statSync(log, { throwIfNoEntry: false })?.size ?? 0;
  const length = Math.max(0, Math.min(size - start, WORDS_MAX));
  if (length === 0) return "";
  const fd = openSync(log, "r");
  try {
    const buffer = Buffer.alloc(length);
    return buffer.toString("utf8", 0, readSync(fd, buffer, 0, length, size - length));
  } finally {
    closeSync(fd);
  }
}

function plainLine(line: string): string {
  if (!line.startsWith("{")) return line;
  try {
    const entry = JSON.parse(line) as { message?: unknown; error?: unknown };
    const parts = [entry.message, textOf(entry.error)];
    return parts.filter((part) => typeof part === "string").join(": ") || line;
  } catch {
    return line;
  }
}

function textOf(error: unknown): unknown {
  return typeof error === "object" && error !== null && "message" in error ? error.message : error;
}
