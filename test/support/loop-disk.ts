/**
 * A small disk of its own: an ext4 file system in a file, on a loop device, mounted. It is taken
 * away when the test ends; a run that was killed leaves a mount below its temporary folder, which
 * the runner finds.
 */
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Teardown } from "./temp.js";

const COMMAND_MS = 30_000;
const command = (program: string, ...args: string[]): void => {
  execFileSync(program, args, { stdio: ["ignore", "ignore", "pipe"], timeout: COMMAND_MS });
};

/** Mounts a new disk of `bytes` at FOLDER/NAME and returns that path. Needs root. */
export function loopDisk(t: Teardown, folder: string, name: string, bytes: number): string {
  const image = join(folder, `${name}.img`);
  const path = join(folder, name);
  mkdirSync(path);
  t.teardown(() => {
    // Lazily: what still has a file open there must not keep the device.
    if (readFileSync("/proc/self/mountinfo", "utf8").includes(` ${path} `)) {
      command("umount", "-l", path);
    }
    rmSync(image, { force: true });
  });
  command("truncate", "-s", String(bytes), image);
  command("mkfs.ext4", "-q", "-F", "-m", "0", image);
  // The kernel gives the loop device back with the mount.
  command("mount", "-o", "loop", image, path);
  rmSync(join(path, "lost+found"), { recursive: true });
  return path;
}
