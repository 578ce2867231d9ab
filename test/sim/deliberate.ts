/** The deliberate faults (osd/core/faults.ts), and the scenario that finds each. */
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import type { Faults } from "../../osd/core/faults.js";
import type { Scenario } from "./scenarios.js";

export const FOUND_BY: Record<keyof Faults, Scenario> = {
  acknowledgeBeforeSync: "failover",
  skipIntervalCheck: "failover",
  promoteWithoutWaiting: "failover",
  readWithoutGrants: "failover",
  forgetRetries: "failover",
  dropLearnerWrites: "failover",
  joinWithoutSync: "thin",
  ignoreTruncation: "writer",
};

/**
 * In a process of its own, because some faults end in a failed assertion that stops it, as it would
 * stop a daemon.
 */
export async function seedsToFind(
  fault: keyof Faults,
  seeds: number,
): Promise<{ needed: number; seen: string } | undefined> {
  const main = fileURLToPath(new URL("./main.js", import.meta.url));
  const args = ["--scenario", FOUND_BY[fault], "--fault", fault, "--seeds", String(seeds)];
  const output = await new Promise<string>((resolve) => {
    execFile(process.execPath, [main, ...args], (_failed, stdout) => resolve(stdout));
  });
  const found = /seed (\d+) failed: (.*)/.exec(output);
  return found === null ? undefined : { needed: Number(found[1]), seen: found[2]! };
}
