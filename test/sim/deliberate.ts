/** The deliberate faults, the scenario that finds each, and the campaign that proves it. */
import type { Faults } from "../../osd/core/faults.js";
import { injectFault } from "../../osd/core/faults.js";
import { runScenario, type Scenario } from "./scenarios.js";

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

/** How many seeds it takes, and what was seen; undefined when `seeds` were not enough. */
export async function seedsToFind(
  fault: keyof Faults,
  seeds: number,
): Promise<{ needed: number; seen: string } | undefined> {
  injectFault(fault);
  try {
    for (let seed = 1; seed <= seeds; seed++) {
      try {
        await runScenario(FOUND_BY[fault], seed);
      } catch (error) {
        const [seen = ""] = String(error).split("\n");
        return { needed: seed, seen };
      }
    }
    return undefined;
  } finally {
    injectFault(undefined);
  }
}
