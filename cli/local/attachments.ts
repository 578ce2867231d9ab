/**
 * Volumes attached to this machine's kernel: for each a supervisor in the background (it outlives
 * the server of the volume, see supervise.ts), a device of the kernel's that is connected to it,
 * and a record `RUNTIME/volumes/<hash of the name>.json`. The device is an NBD device, or a loop
 * device over a FUSE file of the supervisor's. A link `RUNTIME/volumes/by-name/NAME` leads to it.
 *
 * Order: supervisor, device, record; taken apart the other way round, so that a failure on the way
 * leaves nothing behind.
 */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { DssError } from "../../cluster/base/errors.js";
import { runtimeFolder } from "./folders.js";
import { chooseNbd, connectNbd, disconnectNbd, nbdOwner } from "./kernel-nbd.js";
import { connectLoop, disconnectLoop, loopFile } from "./loop-device.js";
import { MAIN } from "./mounts.js";
import { failureIn, isAlive, startDetached, stop, type ProcessIdentity } from "./process.js";
import { SOCKET_PATH_MAX } from "./supervise.js";

export interface Attachment {
  volume: string;
  device: string;
  kind: "nbd" | "loop";
  /** What the device is connected to: the supervisor's socket, or its file. */
  target: string;
  /** By what the device is recognised: its number may be somebody else's meanwhile. */
  owner: string;
  supervisor: ProcessIdentity;
  log: string;
  zookeeper: string;
  readOnly: boolean;
}

const SERVING_MS = 60_000;
/** A server gives its lock back before it ends. */
const STOP_MS = 60_000;

const folder = (): string => join(runtimeFolder(), "volumes");
const hashOf = (volume: string): string =>
  createHash("sha256").update(volume).digest("hex").slice(0, 16);
const recordPath = (volume: string): string => join(folder(), `${hashOf(volume)}.json`);
const linkPath = (volume: string): string => join(folder(), "by-name", volume);

export function allAttachments(): Attachment[] {
  if (!existsSync(folder())) return [];
  return readdirSync(folder())
    .filter((name) => name.endsWith(".json"))
    .flatMap((name) => {
      try {
        return [JSON.parse(readFileSync(join(folder(), name), "utf8")) as Attachment];
      } catch {
        return []; // It was removed meanwhile.
      }
    });
}

/** The supervisor runs and the device is still its own. */
export const isServing = (attachment: Attachment): boolean =>
  isAlive(attachment.supervisor) && isConnected(attachment);

function isConnected({ device, kind, target, owner }: Attachment): boolean {
  return kind === "loop" ? loopFile(device) === target : nbdOwner(device) === owner;
}

// ---- Attaching ---------------------------------------------------------------------------------

export interface AttachRequest {
  volume: string;
  zookeeper: string;
  kind: "nbd" | "loop";
  device?: string;
  readOnly: boolean;
  /** Takes the volume from its owner. */
  force: boolean;
}

/** `requireKernelNbd` has passed where it matters, and the volume exists. */
export async function attach(request: AttachRequest): Promise<Attachment> {
  const { volume, zookeeper, readOnly, kind, force } = request;
  const earlier = allAttachments().find((each) => each.volume === volume);
  if (earlier !== undefined && isServing(earlier)) {
    throw new DssError("Busy", `${volume} is attached as ${earlier.device}`, {
      hint: `detach it first: dss volume detach ${volume}`,
    });
  }
  if (earlier !== undefined) await detach(earlier);
  const chosen = kind === "nbd" ? chooseNbd(request.device) : request.device;
  mkdirSync(join(folder(), "by-name"), { recursive: true, mode: 0o755 });
  const place = placeOf(volume, kind);
  const log = join(folder(), `${hashOf(volume)}.log`);
  const options = [...(readOnly ? ["--read-only"] : []), ...(force ? ["--force"] : [])];
  const started = await startDetached({
    program: process.execPath,
    args: [MAIN, "volume", "serve", volume, ...place.args, "--zookeeper", zookeeper, ...options],
    log,
  });
  const { pid, startTicks, bootId } = started;
  const supervisor = { pid, startTicks, bootId };
  const { target } = place;
  try {
    const start = performance.now();
    while (!(await place.isReady())) {
      const ended = started.ended();
      if (ended !== undefined) {
        throw failureIn(log, started.logStart, `cannot attach ${volume}`, ended);
      }
      if (performance.now() - start > SERVING_MS) {
        throw new DssError("TimedOut", `the server of ${volume} did not start`, {
          hint: `see ${log}`,
        });
      }
      await sleep(15);
    }
    const connected =
      kind === "nbd"
        ? {
            device: chosen!,
            owner: connectNbd({ device: chosen!, socket: target, volume, readOnly }),
          }
        : {
            device: connectLoop({ file: target, wanted: chosen, readOnly, volume }),
            owner: target,
          };
    const attachment = { volume, kind, target, supervisor, log, zookeeper, readOnly, ...connected };
    record(attachment);
    return attachment;
  } catch (error) {
    await stop(supervisor, STOP_MS);
    place.clear();
    throw error;
  }
}

interface Place {
  readonly target: string;
  /** Arguments of `dss volume serve`. */
  readonly args: readonly string[];
  isReady(): Promise<boolean>;
  clear(): void;
}

function placeOf(volume: string, kind: "nbd" | "loop"): Place {
  if (kind === "nbd") {
    const socket = join(folder(), `${hashOf(volume)}.sock`);
    if (Buffer.byteLength(socket) > SOCKET_PATH_MAX) {
      throw new DssError("NameTooLong", `${socket} is too long for a unix socket`, {
        hint: "set XDG_RUNTIME_DIR or DSS_DATA to a shorter path",
      });
    }
    return {
      target: socket,
      args: ["--supervise", "--unix", socket],
      isReady: () => accepts(socket),
      clear: () => rmSync(socket, { force: true }),
    };
  }
  const mountpoint = join(folder(), `${hashOf(volume)}.d`);
  const clear = (): void => {
    if (mountsAt(mountpoint)) {
      spawnSync("umount", ["-l", mountpoint], { stdio: "ignore", timeout: 10_000 });
    }
  };
  clear(); // A supervisor that was killed leaves a mount that nobody answers.
  mkdirSync(mountpoint, { recursive: true, mode: 0o700 });
  const file = join(mountpoint, volume);
  return {
    target: file,
    args: ["--file", mountpoint],
    isReady: async () => mountsAt(mountpoint) && existsSync(file),
    clear,
  };
}

const mountsAt = (path: string): boolean =>
  readFileSync("/proc/self/mounts", "utf8").includes(` ${path} `);

function record(attachment: Attachment): void {
  const { volume, device } = attachment;
  rmSync(linkPath(volume), { force: true });
  symlinkSync(device, linkPath(volume));
  writeFileSync(`${recordPath(volume)}.new`, `${JSON.stringify(attachment)}\n`);
  renameSync(`${recordPath(volume)}.new`, recordPath(volume));
}

function accepts(socket: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = connect({ path: socket });
    probe.once("connect", () => {
      probe.destroy();
      resolve(true);
    });
    probe.once("error", () => resolve(false));
  });
}

/**
 * Disconnects the device (the kernel writes back first), then ends the supervisor, whose server
 * flushes and gives its lock back. A device that is another's by now is left alone.
 */
export async function detach(attachment: Attachment): Promise<void> {
  const { volume, device, kind, supervisor, log } = attachment;
  if (isConnected(attachment)) {
    refuseInUse(device, volume);
    if (kind === "loop") await disconnectLoop(device);
    else disconnectNbd(device);
  }
  const outcome = await stop(supervisor, STOP_MS);
  placeOf(volume, kind).clear();
  rmSync(linkPath(volume), { force: true });
  rmSync(recordPath(volume), { force: true });
  if (outcome !== "killed") return;
  throw new DssError("TimedOut", `the supervisor of ${volume} had to be killed`, {
    hint: `what no flush had confirmed may be lost; see ${log}`,
  });
}

/** Errors: Busy when the device, or a part of it, is mounted or part of another device. */
function refuseInUse(device: string, volume: string): void {
  const mounted = readFileSync("/proc/self/mounts", "utf8")
    .split("\n")
    .find((line) => line.startsWith(`${device} `) || line.startsWith(`${device}p`));
  if (mounted !== undefined) {
    const [what, where] = mounted.split(" ");
    throw new DssError("Busy", `${what} (volume ${volume}) is mounted at ${where}`, {
      hint: `unmount it first: umount ${where}`,
    });
  }
  const holders = join("/sys/block", device.replace(/^\/dev\//, ""), "holders");
  const held = existsSync(holders) ? readdirSync(holders) : [];
  if (held.length > 0) {
    throw new DssError("Busy", `${device} (volume ${volume}) is part of ${held.join(", ")}`, {
      hint: "take that apart first",
    });
  }
}
