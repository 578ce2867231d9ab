/**
 * The scenarios by name, as tests and campaigns run them: everything else follows from the seed.
 */
import type { Logger } from "../../cluster/base/log.js";
import { runFilesScenario } from "./files-scenario.js";
import { runFailoverScenario, type Trouble } from "./failover-scenario.js";
import { runOsdScenario } from "./osd-scenario.js";
import { runHolderScenario } from "./holder-scenario.js";
import { runSnapshotsScenario } from "./snapshots-scenario.js";
import { runVolumesScenario } from "./volumes-scenario.js";
import { memoryDisk, simulatedDisk } from "./stores.js";

/**
 * failover: five OSDs under every fault. thin: the same, with one copy enough to serve. writer:
 * three OSDs and one writer whose every byte is known, with zeroing and truncation. snapshots: the
 * same with four OSDs, and with snapshots. volumes: a client's volumes against a model, with sizes
 * and names that change, under OSDs and metadata servers that crash. holder: snapshots of a volume
 * while it is written. The others are rounds of one trouble (failover-scenario.ts).
 */
export const SCENARIOS = [
  "failover",
  "thin",
  "writer",
  "snapshots",
  "volumes",
  "holder",
  "power",
  "lease",
  "deposed",
  "retry",
  "learner",
  "rot",
  "members",
  "files",
  "sleep",
  "loss",
  "handover",
] as const;
export type Scenario = (typeof SCENARIOS)[number];

/** What is at stake is the disk. */
const NEEDS_DISK: ReadonlySet<Scenario> = new Set<Scenario>(["power", "rot"]);

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
  const disk = seed % 4 === 0 && !NEEDS_DISK.has(scenario) ? memoryDisk : simulatedDisk;
  if (scenario === "writer") {
    const result = await runOsdScenario({ seed, disk, operations: 400, ...log });
    return { ...result, faults: result.osdCrashes + result.clientCrashes };
  }
  if (scenario === "snapshots") {
    return await runSnapshotsScenario({ seed, disk, operations: 400, ...log });
  }
  if (scenario === "volumes") {
    return await runVolumesScenario({ seed, disk, operations: 400, ...log });
  }
  if (scenario === "holder") {
    return await runHolderScenario({ seed, disk, snapshots: 12, ...log });
  }
  if (scenario === "files" || isFilesTrouble(scenario)) {
    const trouble = scenario === "files" ? "mixed" : scenario;
    const files = await runFilesScenario({ seed, disk, operations: 500, trouble, ...log });
    return { ...files, faults: sum(files.faults) };
  }
  const minimum = scenario === "thin" ? 1 : 2;
  const trouble: Trouble = scenario === "failover" || scenario === "thin" ? "mixed" : scenario;
  const options = { seed, disk, operations: 1_600, minimum, trouble, ...log };
  const result = await runFailoverScenario(options);
  return { ...result, faults: sum(result.faults) };
}

function isFilesTrouble(scenario: Scenario): scenario is "sleep" | "loss" | "handover" {
  return scenario === "sleep" || scenario === "loss" || scenario === "handover";
}
function sum(counts: Record<string, number>): number {
  return Object.values(counts).reduce((total, count) => total + count, 0);
}
