/** The kernel's NBD client and its devices, through nbd-client(8) and sysfs. */
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { DssError } from "../../cluster/base/errors.js";

const CLIENT_MS = 20_000;
/** Connections of a device: its requests are sent from several of the kernel's queues. */
export const NBD_CONNECTIONS = 4;

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
      "load it (modprobe nbd), or use the volume without it: " +
      `dss volume attach --loop ${volume}, or dss volume serve ${volume} --unix /run/${volume}.sock`,
  });
}

function deviceNumbers(): number[] {
  return readdirSync("/dev")
    .filter((name) => /^nbd\d+$/.test(name))
    .map((name) => Number(name.slice(3)))
    .sort((a, b) => a - b);
}

/** The process that connected the device, as the kernel shows it; undefined: not connected. */
export function nbdOwner(device: string): string | undefined {
  try {
    return readFileSync(`/sys/block/${device.replace(/^\/dev\//, "")}/pid`, "utf8").trim();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

export function chooseNbd(wanted: string | undefined): string {
  if (wanted === undefined) {
    const free = deviceNumbers().find((number) => nbdOwner(`/dev/nbd${number}`) === undefined);
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
  if (nbdOwner(wanted) !== undefined) {
    throw new DssError("Busy", `${wanted} is in use`, { hint: "see dss volume attached" });
  }
  return wanted;
}

/** Connects the device to the export on the socket; returns its owner, see `nbdOwner`. */
export function connectNbd(target: {
  device: string;
  socket: string;
  volume: string;
  readOnly: boolean;
}): string {
  const { device, socket, volume, readOnly } = target;
  const connections = ["-connections", String(NBD_CONNECTIONS)];
  const options = ["-name", volume, "-timeout", "0", ...connections];
  nbdClient(
    ["-unix", socket, device, ...options, ...(readOnly ? ["-readonly"] : [])],
    `cannot attach ${volume} to ${device}`,
  );
  return nbdOwner(device) ?? "";
}

/** The kernel writes back first. */
export function disconnectNbd(device: string): void {
  nbdClient(["-d", device], `cannot detach ${device}`);
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
