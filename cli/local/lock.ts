/** One `dss cluster up` or `down` at a time: a kernel lock in the data folder that ends with us. */
import { mkdirSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { DssError, isDssError } from "../../cluster/base/errors.js";
import { openNodeDisk } from "../../cluster/platform/node-disk.js";

const PAUSE_MS = 100;

/** Waits for the other command that long. Errors: Busy. */
export async function lockFolder(folder: string, withinMs: number): Promise<() => Promise<void>> {
  mkdirSync(folder, { recursive: true, mode: 0o755 });
  const disk = await openNodeDisk(folder);
  const start = performance.now();
  for (;;) {
    try {
      const lock = await disk.lock("lock");
      return () => lock.release();
    } catch (error) {
      if (!isDssError(error, "Busy")) throw error;
      if (performance.now() - start > withinMs) {
        throw new DssError("Busy", `another dss command is changing the cluster in ${folder}`, {
          cause: error,
          hint: "wait until it has ended, then try again",
        });
      }
    }
    await sleep(PAUSE_MS);
  }
}
