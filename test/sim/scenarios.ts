/**
 * The scenarios by name, as tests and campaigns run them: everything else follows from the seed.
 */
import type { Logger } from "../../cluster/base/log.js";
import { runFailoverScenario, type Trouble } from "./failover-scenario.js";
import { runOsdScenario } from "./osd-scenario.js";
import { memoryDisk, simulatedDisk } from "./stores.js";

/**
 * failover: five OSDs under every fault. thin: the same, with one copy enough to serve. writer:
 * three OSDs and one writer whose every byte is known, with zeroing and truncation. The others are
 * rounds of one trouble (failover-scenario.ts).
 */
export const SCENARIOS = [
  "failover",
  "thin",
  "writer",
  "power",
  "lease",
  "deposed",
  "retry",
  "learner",
] as const;
export type Scenario = (typeof SCENARIOS)[number];

export interface Outcome {
  simulatedMs: number;
  operations: number;
  faults: number;
}

export async function runScenario(
  scenario: Scenario,
  seed: number,
  logger?: Logger,
): Promise<Outcome> {
  const log = logger === undefined ? {} : { logger };
  // Every fourth seed on stores that forget nothing: faults of the protocol alone.
  const disk = seed % 4 === 0 && scenario !== "power" ? memoryDisk : simulatedDisk;
  if (scenario === "writer") {
    const result = await runOsdScenario({ seed, disk, operations: 400, ...log });
    return { ...result, faults: result.osdCrashes + result.clientCrashes };
  }
  const minimum = scenario === "thin" ? 1 : 2;
  const trouble: Trouble = scenario === "failover" || scenario === "thin" ? "mixed" : scenario;
  const options = { seed, disk, operations: 1_600, minimum, trouble, ...log };
  const result = await runFailoverScenario(options);
  const faults = Object.values(result.faults).reduce((sum, count) => sum + count, 0);
  return { ...result, faults };
}
