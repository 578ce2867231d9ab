/**
 * The campaign `coherence`: 100,000 rounds of two mounts (test/posix/coherence) in steps, each with
 * a cluster and a seed of its own, a failover and a killed client. What each counted is kept in one
 * file a step, and added up.
 */
import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { RunCounts } from "../posix/coherence/run.js";

export const COHERENCE_STEPS = 50;
const ROUNDS = 2_000;
/** Seeds that no test uses. */
const FIRST_SEED = 100;

export interface CoherenceFigures extends RunCounts {
  readonly failovers: number;
  readonly kills: number;
}

const recordOf = (folder: string, step: number): string => join(folder, `coherence-${step}.json`);

export function coherenceStep(step: number, folder: string): { program: string; args: string[] } {
  const record = recordOf(folder, step);
  rmSync(record, { force: true }); // Of an attempt that failed or was stopped.
  const seed = String(FIRST_SEED + step);
  return {
    program: "test/campaign/coherence.js",
    args: ["--seed", seed, "--rounds", String(ROUNDS), "--record", record],
  };
}

export function coherenceSummary(folder: string): { lines: string[]; good: boolean } {
  const rounds: Record<string, number> = {};
  let [failovers, kills, longestMs] = [0, 0, 0];
  for (let step = 1; step <= COHERENCE_STEPS; step++) {
    const path = recordOf(folder, step);
    if (!existsSync(path)) continue;
    const figures = JSON.parse(readFileSync(path, "utf8")) as CoherenceFigures;
    for (const [kind, count] of Object.entries(figures.rounds)) {
      rounds[kind] = (rounds[kind] ?? 0) + count;
    }
    failovers += figures.failovers;
    kills += figures.kills;
    longestMs = Math.max(longestMs, figures.longestMs);
  }
  const kinds = Object.entries(rounds).sort();
  const total = kinds.reduce((sum, [, count]) => sum + count, 0);
  const lines = kinds.map(([kind, count]) => `${kind}: ${count} rounds`);
  lines.push(
    `coherence: ${total} rounds, 0 stale results, ${failovers} failovers, ${kills} clients ` +
      `killed; the longest round took ${(longestMs / 1000).toFixed(1)} s`,
  );
  return { lines, good: true };
}
