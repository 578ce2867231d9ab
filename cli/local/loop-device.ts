/** Loop devices over a volume's file (volume-file.ts), through losetup(8) and sysfs. */
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { DssError } from "../../cluster/base/errors.js";

const COMMAND_MS = 60_000;
/** The kernel lets go of the file when the last user of the device has closed it. */
const RELEASE_MS = 10_000;

function losetup(args: readonly string[], what: string): string {
  const result = spawnSync("losetup", args, { encoding: "utf8", timeout: COMMAND_MS });
  if (result.error !== undefined) {
    throw new DssError("Configuration", `cannot run losetup: ${result.error.message}`, {
      hint: "apt-get install mount",
    });
  }
  if (result.status === 0) return result.stdout.trim();
  const said = result.stderr.trim().split("\n").at(-1) ?? "";
  throw new DssError("Disk", `${what}: ${said || `losetup ended with ${result.status}`}`, {
    hint: "attaching needs root, and a kernel with loop devices (modprobe loop)",
  });
}

/** The file behind the device; undefined: none. */
export function loopFile(device: string): string | undefined {
  const path = `/sys/block/${device.replace(/^\/dev\//, "")}/loop/backing_file`;
  try {
    return readFileSync(path, "utf8").trim();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENXIO") return undefined;
    throw error;
  }
}

/** Past the page cache: the device has one of its own. Returns the device. */
export function connectLoop(target: {
  file: string;
  wanted: string | undefined;
  readOnly: boolean;
  volume: string;
}): string {
  const { file, wanted, readOnly, volume } = target;
  if (wanted !== undefined && !/^\/dev\/loop\d+$/.test(wanted)) {
    throw new DssError("InvalidArgument", `${wanted} is not a loop device`, {
      hint: "give /dev/loop0, …; or leave it out to take the first that is free",
    });
  }
  if (wanted !== undefined && loopFile(wanted) !== undefined) {
    throw new DssError("Busy", `${wanted} is in use`, { hint: "see losetup --list" });
  }
  const options = ["--direct-io=on", ...(readOnly ? ["--read-only"] : [])];
  const where = wanted === undefined ? ["--find", "--show", file] : [wanted, file];
  const printed = losetup([...options, ...where], `cannot attach ${volume}`);
  return wanted ?? printed;
}

/** Resolves when the kernel has written back and let go of the file. */
export async function disconnectLoop(device: string): Promise<void> {
  if (existsSync(device)) {
    spawnSync("blockdev", ["--flushbufs", device], { stdio: "ignore", timeout: COMMAND_MS });
  }
  losetup(["--detach", device], `cannot detach ${device}`);
  const start = performance.now();
  while (loopFile(device) !== undefined) {
    if (performance.now() - start > RELEASE_MS) {
      throw new DssError("Busy", `${device} is still in use`, {
        hint: "end what uses it (lsof, fuser); it goes away by itself then",
      });
    }
    await sleep(20);
  }
}
