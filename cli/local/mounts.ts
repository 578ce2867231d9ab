/**
 * Mounts of this machine: their workers in the background, their records and their end.
 *
 * One record a mount, `RUNTIME/mounts/<hash of the path>.json`, written by the command that starts
 * the worker. The worker adds how it ended, so that `dss umount` can tell a flush that failed from
 * one that worked; whoever has reported the end removes the record.
 */
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { statfs } from "node:fs/promises";
import { join, resolve } from "node:path";
import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { DssError, isDssError } from "../../cluster/base/errors.js";
import { silentLogger } from "../../cluster/base/log.js";
import type { Config } from "../../cluster/config/options.js";
import {
  findMount,
  isFuseMount,
  prepareMountpoint,
  threadPoolSize,
  unmountPath,
  type MountInfo,
} from "../../client-fs/fuse/device.js";
import { runtimeFolder } from "./folders.js";
import type { ControlReply, ControlRequest, MountSupervision } from "./mount-supervisor.js";
import {
  failureIn,
  isAlive,
  signal,
  startDetached,
  waitForEnd,
  type ProcessIdentity,
} from "./process.js";

export interface MountRecord extends ProcessIdentity {
  mountpoint: string;
  zookeeper: string;
  log: string;
  /**
   * "" after a good end, else what went wrong; absent while the worker runs or when it was killed.
   */
  ended?: string;
}

export interface MountRequest {
  path: string;
  zookeeper: string;
  log: string;
  /** As for `-o`. */
  options?: string;
  driver?: string;
  /** Further arguments for the worker. */
  settings?: readonly string[];
  survival: Survival;
}
/** When a mount goes on and when it ends. */
export type Survival = Pick<Config["client"], "restartWorker" | "abortStuckMs">;

export const MAIN = fileURLToPath(new URL("../main.js", import.meta.url));
const SUPERVISOR = fileURLToPath(new URL("./mount-supervisor-program.js", import.meta.url));
/** It holds a descriptor and waits: a small heap is enough. */
const SUPERVISOR_FLAGS = ["--max-old-space-size=32", "--max-semi-space-size=1"];
const USABLE_MS = 30_000;
const FLUSH_MS = 120_000;
/** A stat of a mount that takes longer does not count as an answer. */
const ANSWER_MS = 2_000;

const recordFolder = (): string => join(runtimeFolder(), "mounts");
const recordPath = (mountpoint: string): string =>
  join(
    recordFolder(),
    `${createHash("sha256").update(mountpoint).digest("hex").slice(0, 24)}.json`,
  );

function writeRecord(record: MountRecord): void {
  mkdirSync(recordFolder(), { recursive: true, mode: 0o755 });
  const path = recordPath(record.mountpoint);
  writeFileSync(`${path}.new`, `${JSON.stringify(record)}\n`);
  renameSync(`${path}.new`, path);
}

export function readRecord(mountpoint: string): MountRecord | undefined {
  try {
    const record = JSON.parse(readFileSync(recordPath(mountpoint), "utf8")) as MountRecord;
    return record.mountpoint === mountpoint && record.pid > 1 ? record : undefined;
  } catch (error) {
    // Written atomically: anything but absence is another program's file, and no record of ours.
    if (error instanceof SyntaxError) return undefined;
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

const forget = (mountpoint: string): void => rmSync(recordPath(mountpoint), { force: true });

/** Every mount that was started here and not yet ended by `dss umount`. */
export function allMounts(): MountRecord[] {
  if (!existsSync(recordFolder())) return [];
  return readdirSync(recordFolder())
    .filter((name) => name.endsWith(".json"))
    .flatMap((name) => {
      try {
        const path = join(recordFolder(), name);
        return [JSON.parse(readFileSync(path, "utf8")) as MountRecord];
      } catch {
        return []; // It was removed meanwhile.
      }
    });
}

/** For the process that serves it: says how it ended. `pid`: the process of the record. */
export function recordEnd(mountpoint: string, ended: string, pid = process.pid): void {
  const record = readRecord(mountpoint);
  if (record?.pid === pid) writeRecord({ ...record, ended });
}

/** Where the supervisor of a mount can be talked to. */
export const controlPath = (mountpoint: string): string =>
  recordPath(mountpoint).replace(/json$/, "sock");

/** What supervises a mount with these arguments of its worker. */
export function supervisionOf(
  mountpoint: string,
  args: readonly string[],
  { restartWorker, abortStuckMs }: Survival,
): MountSupervision {
  mkdirSync(recordFolder(), { recursive: true, mode: 0o755 });
  return {
    ...{ mountpoint, program: MAIN, args, env: workerEnvironment() },
    control: controlPath(mountpoint),
    restarts: restartWorker === "always",
    abortStuckMs,
  };
}

/** This program's version serves the mount from now on. Errors: NotFound, Busy. */
export async function upgradeMount(path: string): Promise<ControlReply> {
  const mountpoint = resolve(path);
  const record = readRecord(mountpoint);
  if (record === undefined || !isAlive(record)) {
    throw new DssError("NotFound", `there is no mount of dss at ${mountpoint}`, {
      hint: "see them with: findmnt -t fuse.dss",
    });
  }
  const reply = await askSupervisor(mountpoint, { upgrade: MAIN });
  if (reply.done) return reply;
  throw new DssError(
    "Busy",
    `${mountpoint} was not upgraded: ${reply.error ?? "no reason given"}`,
    {
      hint: `see ${record.log}`,
    },
  );
}
function askSupervisor(mountpoint: string, request: ControlRequest): Promise<ControlReply> {
  return new Promise((resolve, reject) => {
    const fail = (cause: unknown): void =>
      reject(
        new DssError("NotFound", `the mount at ${mountpoint} has no supervisor to ask`, {
          cause,
          hint: "only mounts of the kernel driver can be upgraded: unmount and mount it again",
        }),
      );
    const socket = connect(controlPath(mountpoint));
    let text = "";
    socket.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
    socket.once("connect", () => socket.write(`${JSON.stringify(request)}\n`));
    socket.once("error", fail);
    socket.once("close", () => {
      try {
        resolve(JSON.parse(text) as ControlReply);
      } catch (error) {
        fail(error);
      }
    });
  });
}

/** Environment that a process with a mount needs from its start. */
export function workerEnvironment(): Record<string, string> {
  const threads = Math.max(threadPoolSize(), Number(process.env["UV_THREADPOOL_SIZE"] ?? 0) || 0);
  return { UV_THREADPOOL_SIZE: String(threads) };
}

/** The mount answers; "dead" when its process is gone, "none" when nothing of FUSE is mounted. */
export async function probe(mountpoint: string): Promise<"none" | "dead" | "hung" | "usable"> {
  const found = findMount(mountpoint);
  if (found === undefined || !isFuseMount(found)) return "none";
  // The kernel may still answer from its cache, or wait for the last descriptor to close.
  const record = readRecord(mountpoint);
  if (record !== undefined && !isMountAlive(record)) return "dead";
  return await answerOf(mountpoint);
}
async function answerOf(mountpoint: string): Promise<"dead" | "hung" | "usable"> {
  const answered = statfs(mountpoint).then(
    () => "usable" as const,
    (error: NodeJS.ErrnoException) =>
      error.code === "ENOTCONN" || error.code === "ECONNABORTED" ? ("dead" as const) : "usable",
  );
  return await Promise.race([answered, sleep(ANSWER_MS, "hung" as const, { ref: false })]);
}

/**
 * The canonical path of a directory that can be mounted on; takes a dead mount away. Errors:
 * NotFound, NotDirectory, NotEmpty, Busy.
 */
export async function checkMountpoint(
  path: string,
  options: readonly string[] = [],
): Promise<string> {
  return await prepareMountpoint({
    mountpoint: path,
    logger: silentLogger,
    allowNonEmpty: options.includes("nonempty"),
  });
}

/** Starts a worker in the background and returns when the mount is usable. */
export async function startMount(request: MountRequest): Promise<MountRecord> {
  const mountpoint = await checkMountpoint(request.path, request.options?.split(","));
  const { options, driver = "kernel" } = request;
  const given = [
    ...["--zookeeper", request.zookeeper],
    ...(options === undefined ? [] : ["-o", options]),
    ...(request.settings ?? []),
  ];
  const supervision = JSON.stringify(supervisionOf(mountpoint, given, request.survival));
  const worker = await startDetached({
    program: process.execPath,
    args:
      driver === "kernel"
        ? [...SUPERVISOR_FLAGS, SUPERVISOR, mountpoint, supervision]
        : [MAIN, "mount", mountpoint, "--foreground", "--driver", driver, ...given],
    log: request.log,
    env: workerEnvironment(),
  });
  const { pid, startTicks, bootId } = worker;
  const record: MountRecord = {
    ...{ pid, startTicks, bootId, mountpoint },
    zookeeper: request.zookeeper,
    log: request.log,
  };
  writeRecord(record);
  const start = performance.now();
  while ((await probe(mountpoint)) !== "usable" || findMount(mountpoint) === undefined) {
    const ended = worker.ended();
    if (ended !== undefined) {
      forget(mountpoint);
      throw failureIn(request.log, worker.logStart, `cannot mount ${mountpoint}`, ended);
    }
    if (performance.now() - start > USABLE_MS) {
      signal(worker, "SIGKILL");
      await waitForEnd(worker, 5_000);
      await takeAway(mountpoint);
      forget(mountpoint);
      throw new DssError("TimedOut", `${mountpoint} was not usable within ${USABLE_MS / 1000} s`, {
        hint: `see ${request.log}, and dss health`,
      });
    }
    await sleep(15);
  }
  return record;
}

function isOurs(found: MountInfo): boolean {
  return isFuseMount(found) && found.type.endsWith(".dss");
}

/**
 * Lazily, so that it also works on a mount whose process is gone; nothing when there is none. The
 * supervisor may be dead and a thread of the worker live on, waiting in the kernel for what only
 * its process would have answered (a page to be let go): nobody who uses the mount would ever hear
 * anything. Then the connection is ended, too.
 */
export async function takeAway(mountpoint: string): Promise<void> {
  const found = findMount(mountpoint);
  if (found === undefined || !isOurs(found)) return;
  const record = readRecord(mountpoint);
  const mayHang = record === undefined || !isMountAlive(record);
  const abort = mayHang && (await answerOf(mountpoint)) === "hung";
  try {
    await unmountPath(mountpoint, { lazy: true, abort });
  } catch (error) {
    if (!isDssError(error, "NotFound")) throw error;
  }
}

export interface UnmountOptions {
  /** Take it away even while it is used; its process writes back what it can and is then ended. */
  force?: boolean;
  /** Keep asking a busy mount for that long (a process that is about to end). */
  busyMs?: number;
}

/** Unmounts, waits until everything is written back and the worker has ended. */
export async function stopMount(path: string, options: UnmountOptions = {}): Promise<void> {
  const mountpoint = resolve(path);
  const record = readRecord(mountpoint);
  const found = findMount(mountpoint);
  const isThere = found !== undefined && isOurs(found);
  if (!isThere && record === undefined) {
    const what = found === undefined ? "nothing is mounted" : `a ${found.type} is mounted`;
    throw new DssError("NotFound", `${what} at ${mountpoint}`, {
      hint: "dss umount ends mounts of dss; see them with: findmnt -t fuse.dss",
    });
  }
  if (isThere) await unmount(mountpoint, options);
  if (record === undefined) return;
  await finish(record, options);
}

async function unmount(mountpoint: string, options: UnmountOptions): Promise<void> {
  if (options.force === true || (await probe(mountpoint)) === "dead") {
    await takeAway(mountpoint);
    return;
  }
  const start = performance.now();
  for (;;) {
    try {
      await unmountPath(mountpoint);
      return;
    } catch (error) {
      if (isDssError(error, "NotFound")) return;
      if (!isDssError(error, "Busy")) throw error;
      if (performance.now() - start < (options.busyMs ?? 0)) {
        await sleep(100);
        continue;
      }
      const users = usersOf(mountpoint);
      const shown = users.slice(0, 5).map(({ pid, command }) => `${command} (${pid})`);
      if (users.length > shown.length) shown.push(`${users.length - shown.length} more`);
      const by = shown.length === 0 ? "" : ` by ${shown.join(", ")}`;
      throw new DssError("Busy", `${mountpoint} is in use${by}`, {
        hint: `end them and try again, or: dss umount --force ${mountpoint}`,
      });
    }
  }
}

async function finish(record: MountRecord, options: UnmountOptions): Promise<void> {
  const { mountpoint, log } = record;
  if (options.force === true) signal(record, "SIGTERM");
  const ended = await waitForEnd(record, options.force === true ? 10_000 : FLUSH_MS);
  if (!ended && options.force !== true) {
    throw new DssError("TimedOut", `${mountpoint} is unmounted, but still writes its data back`, {
      hint: `see dss health and ${log}; dss umount --force ${mountpoint} gives the data up`,
    });
  }
  if (!ended) {
    signal(record, "SIGKILL");
    await waitForEnd(record, 5_000);
  }
  const outcome = readRecord(mountpoint)?.ended;
  forget(mountpoint);
  if (outcome === "" || options.force === true) return;
  throw new DssError(
    "Disk",
    outcome === undefined
      ? `the process of ${mountpoint} had died: what it had not written back is lost`
      : `not everything could be written back from ${mountpoint}: ${outcome}`,
    { hint: `see ${log}` },
  );
}

/** The record's process (the supervisor, if there is one) still runs. */
export function isMountAlive(record: MountRecord): boolean {
  return isAlive(record);
}

/** Processes with a working folder, root, program or open file below the path. */
export function usersOf(mountpoint: string): { pid: number; command: string }[] {
  const below = (path: string): boolean => path === mountpoint || path.startsWith(`${mountpoint}/`);
  const links = (pid: string): string[] => {
    const named = ["cwd", "root", "exe"].map((name) => `/proc/${pid}/${name}`);
    try {
      named.push(...readdirSync(`/proc/${pid}/fd`).map((fd) => `/proc/${pid}/fd/${fd}`));
    } catch {
      // Another user's process, or one that has ended.
    }
    return named;
  };
  const uses = (link: string): boolean => {
    try {
      return below(readlinkSync(link));
    } catch {
      return false;
    }
  };
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .filter((pid) => links(pid).some(uses))
    .map((pid) => {
      let command = "?";
      try {
        command = readFileSync(`/proc/${pid}/comm`, "utf8").trim();
      } catch {
        // It has ended.
      }
      return { pid: Number(pid), command };
    });
}
