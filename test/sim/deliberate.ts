/** The deliberate faults (osd/core/faults.ts), and the scenario that finds each. */
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import type { Faults } from "../../osd/core/faults.js";
import type { Scenario } from "./scenarios.js";

/**
 * `seed` is the first one that found it when it was last measured: tests begin there, to be quick.
 */
export const FOUND_BY: Record<keyof Faults, { scenario: Scenario; seed: number }> = {
  acknowledgeBeforeSync: { scenario: "failover", seed: 1 },
  skipIntervalCheck: { scenario: "failover", seed: 2 },
  promoteWithoutWaiting: { scenario: "failover", seed: 6 },
  readWithoutGrants: { scenario: "failover", seed: 9 },
  forgetRetries: { scenario: "failover", seed: 8 },
  dropLearnerWrites: { scenario: "failover", seed: 7 },
  joinWithoutSync: { scenario: "thin", seed: 1 },
  ignoreTruncation: { scenario: "writer", seed: 1 },
};

/**
 * In a process of its own, because some faults end in a failed assertion that stops it, as it would
 * stop a daemon.
 */
export async function seedsToFind(
  fault: keyof Faults,
  { first, seeds }: { first: number; seeds: number },
): Promise<{ needed: number; seen: string } | undefined> {
  const main = fileURLToPath(new URL("./main.js", import.meta.url));
  const { scenario } = FOUND_BY[fault];
  const range = ["--seed", String(first), "--seeds", String(seeds)];
  const args = ["--scenario", scenario, "--fault", fault, ...range];
  const output = await new Promise<string>((resolve) => {
    execFile(process.execPath, [main, ...args], (_failed, stdout) => resolve(stdout));
  });
  const found = /seed (\d+) failed: (.*)/.exec(output);
  return found === null ? undefined : { needed: Number(found[1]) - first + 1, seen: found[2]! };
}
