/** `dss umount PATH`. */
import type { Command } from "commander";
import { resolve } from "node:path";
import { examples } from "./options.js";
import { printLine } from "./output.js";

/** A program that has just ended may still hold the mount for a moment. */
const BUSY_MS = 500;

export function register(command: Command): void {
  command
    .argument("<path>", "where it is mounted")
    .option(
      "-f, --force",
      "take it away even while it is used; what cannot be written back is lost",
    )
    .action(async (path: string, options: { force?: boolean }) => {
      const { stopMount } = await import("./local/mounts.js");
      await stopMount(path, { force: options.force === true, busyMs: BUSY_MS });
      printLine(`unmounted ${resolve(path)}`);
    });
  examples(command, "dss umount /mnt/dss");
}
