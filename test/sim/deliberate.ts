/** The deliberate faults (cluster/base/faults.ts), and the scenario that finds each. */
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import type { Faults } from "../../cluster/base/faults.js";
import type { Scenario } from "./scenarios.js";

/**
 * Each scenario provokes what the fault breaks again and again, so a few seeds find it however the
 * timing of the product changes; docs/simulator.md has what was measured.
 */
export const FOUND_BY: Record<keyof Faults, Scenario> = {
  acknowledgeBeforeSync: "power",
  skipIntervalCheck: "lease",
  promoteWithoutWaiting: "lease",
  readWithoutGrants: "lease",
  forgetRetries: "retry",
  dropLearnerWrites: "learner",
  joinWithoutSync: "thin",
  ignoreTruncation: "writer",
  overwriteEarly: "power",
  recycleEarly: "power",
  skipChecksum: "rot",
  skipTermCheck: "sleep",
  showUnsafe: "loss",
  grantBeforeFence: "handover",
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
  const scenario = FOUND_BY[fault];
  const range = ["--seed", String(first), "--seeds", String(seeds)];
  const args = ["--scenario", scenario, "--fault", fault, ...range];
  const output = await new Promise<string>((resolve) => {
    execFile(process.execPath, [main, ...args], (_failed, stdout) => resolve(stdout));
  });
  const found = /seed (\d+) failed: (.*)/.exec(output);
  return found === null ? undefined : { needed: Number(found[1]) - first + 1, seen: found[2]! };
}
