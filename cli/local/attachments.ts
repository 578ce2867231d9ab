/**
 * Volumes attached to this machine's kernel: for each a server in the background on a unix socket,
 * the kernel's NBD client on a device, and a record `RUNTIME/volumes/<hash of the name>.json`.
 * Order: server, kernel client, record; taken apart the other way round, so that a failure on the
 * way leaves nothing behind.
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
  writeFileSync,
} from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { DssError } from "../../cluster/base/errors.js";
import { runtimeFolder } from "./folders.js";
import { MAIN } from "./mounts.js";
import { failureIn, isAlive, startDetached, stop, type ProcessIdentity } from "./process.js";

export interface Attachment {
  volume: string;
  device: string;
  socket: string;
  server: ProcessIdentity;
  log: string;
  zookeeper: string;
  readOnly: boolean;
}

const SERVING_MS = 20_000;
const CLIENT_MS = 20_000;
/** A server writes back and flushes before it ends. */
const STOP_MS = 60_000;
/** Larger would not fit the kernel's address of a unix socket. */
const SOCKET_PATH_MAX = 107;

const folder = (): string => join(runtimeFolder(), "volumes");
const hashOf = (volume: string): string =>
  createHash("sha256").update(volume).digest("hex").slice(0, 16);
const recordPath = (volume: string): string => join(folder(), `${hashOf(volume)}.json`);

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

export const isServing = (attachment: Attachment): boolean => isAlive(attachment.server);

// ---- The kernel --------------------------------------------------------------------------------

/**
 * Loads the kernel's NBD client where it exists. Errors: NotSupported, saying what to do instead.
 */
export function requireKernelNbd(volume: string): void {
  if (deviceNumbers().length > 0) return;
  if (process.getuid?.() === 0) {
    spawnSync("modprobe", ["nbd"], { stdio: "ignore", timeout: 10_000 });
    if (deviceNumbers().length > 0) return;
  }
  const reason = existsSync("/sys/module/nbd")
    ? "the kernel has nbd, but there is no /dev/nbd0"
    : "this machine's kernel has no nbd module";
  throw new DssError("NotSupported", `cannot attach ${volume}: ${reason}`, {
    hint:
      "load it (modprobe nbd), or use the volume without the kernel: " +
      `dss volume serve ${volume} --unix /run/${volume}.sock`,
  });
}

function deviceNumbers(): number[] {
  return readdirSync("/dev")
    .filter((name) => /^nbd\d+$/.test(name))
    .map((name) => Number(name.slice(3)))
    .sort((a, b) => a - b);
}

/** The kernel shows the client's process for a device that is connected. */
const isConnected = (device: string): boolean =>
  existsSync(`/sys/block/${device.replace(/^\/dev\//, "")}/pid`);

function chooseDevice(wanted: string | undefined): string {
  if (wanted === undefined) {
    const free = deviceNumbers().find((number) => !isConnected(`/dev/nbd${number}`));
    if (free !== undefined) return `/dev/nbd${free}`;
    throw new DssError("Busy", "every NBD device of this machine is in use", {
      hint: "detach one, or load the module with more: modprobe nbd nbds_max=64",
    });
  }
  if (!/^\/dev\/nbd\d+$/.test(wanted)) {
    throw new DssError("InvalidArgument", `${wanted} is not an NBD device`, {
      hint: "give /dev/nbd0, /dev/nbd1, …; or leave it out to take the first that is free",
    });
  }
  if (!existsSync(wanted)) throw new DssError("NotFound", `there is no device ${wanted}`);
  if (isConnected(wanted)) {
    throw new DssError("Busy", `${wanted} is in use`, { hint: "see dss volume attached" });
  }
  return wanted;
}

function nbdClient(args: readonly string[], what: string): void {
  const result = spawnSync("nbd-client", args, { encoding: "utf8", timeout: CLIENT_MS });
  if (result.error !== undefined) {
    throw new DssError("Configuration", `cannot run nbd-client: ${result.error.message}`, {
      hint: "apt-get install nbd-client",
    });
  }
  if (result.status === 0) return;
  const said = `${result.stderr}${result.stdout}`.trim().split("\n").at(-1) ?? "";
  throw new DssError("Disk", `${what}: ${said || `nbd-client ended with ${result.status}`}`);
}

// ---- Attaching ---------------------------------------------------------------------------------

export interface AttachRequest {
  volume: string;
  zookeeper: string;
  device?: string;
  readOnly: boolean;
}

/** `requireKernelNbd` has passed and the volume exists. */
export async function attach(request: AttachRequest): Promise<Attachment> {
  const { volume, zookeeper, readOnly } = request;
  const earlier = allAttachments().find((each) => each.volume === volume);
  if (earlier !== undefined && isServing(earlier)) {
    throw new DssError("Busy", `${volume} is attached as ${earlier.device}`, {
      hint: `detach it first: dss volume detach ${volume}`,
    });
  }
  if (earlier !== undefined) await detach(earlier);
  const device = chooseDevice(request.device);
  mkdirSync(folder(), { recursive: true, mode: 0o755 });
  const socket = join(folder(), `${hashOf(volume)}.sock`);
  if (Buffer.byteLength(socket) > SOCKET_PATH_MAX) {
    throw new DssError("NameTooLong", `${socket} is too long for a unix socket`, {
      hint: "set XDG_RUNTIME_DIR or DSS_DATA to a shorter path",
    });
  }
  const log = join(folder(), `${hashOf(volume)}.log`);
  const options = readOnly ? ["--read-only"] : [];
  const server = await startDetached({
    program: process.execPath,
    args: [MAIN, "volume", "serve", volume, "--unix", socket, "--zookeeper", zookeeper, ...options],
    log,
  });
  const { pid, startTicks, bootId } = server;
  const identity = { pid, startTicks, bootId };
  try {
    const start = performance.now();
    while (!(await accepts(socket))) {
      const ended = server.ended();
      if (ended !== undefined)
        throw failureIn(log, server.logStart, `cannot serve ${volume}`, ended);
      if (performance.now() - start > SERVING_MS) {
        throw new DssError("TimedOut", `the server of ${volume} did not start`, {
          hint: `see ${log}`,
        });
      }
      await sleep(15);
    }
    nbdClient(
      [
        "-unix",
        socket,
        device,
        "-name",
        volume,
        "-timeout",
        "0",
        ...(readOnly ? ["-readonly"] : []),
      ],
      `cannot attach ${volume} to ${device}`,
    );
  } catch (error) {
    await stop(identity, STOP_MS);
    rmSync(socket, { force: true });
    throw error;
  }
  const attachment: Attachment = {
    ...{ volume, device, socket, server: identity, log, zookeeper, readOnly },
  };
  writeFileSync(`${recordPath(volume)}.new`, `${JSON.stringify(attachment)}\n`);
  renameSync(`${recordPath(volume)}.new`, recordPath(volume));
  return attachment;
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

/** Disconnects the device (the kernel writes back first), then ends the server, which flushes. */
export async function detach(attachment: Attachment): Promise<void> {
  const { volume, device, socket, server, log } = attachment;
  if (isConnected(device)) {
    if (isMounted(device)) {
      throw new DssError("Busy", `${device} (volume ${volume}) is mounted`, {
        hint: `unmount it first: umount ${device}`,
      });
    }
    nbdClient(["-d", device], `cannot detach ${device}`);
  }
  const outcome = await stop(server, STOP_MS);
  rmSync(socket, { force: true });
  rmSync(recordPath(volume), { force: true });
  if (outcome !== "killed") return;
  throw new DssError("TimedOut", `the server of ${volume} had to be killed`, {
    hint: `what no flush had confirmed may be lost; see ${log}`,
  });
}

function isMounted(device: string): boolean {
  return readFileSync("/proc/self/mounts", "utf8")
    .split("\n")
    .some((line) => line.startsWith(`${device} `) || line.startsWith(`${device}p`));
}
