/**
 * A short run of the rounds in test/posix/coherence, always the same: what one mount does, the
 * other sees. `npm run campaign coherence` runs 100,000, while processes are killed.
 */
import type { Test } from "tap";
import { describeCounts, KINDS, runRounds } from "./coherence/run.js";

const SEED = 1;
const ROUNDS = 5 * Object.keys(KINDS).length;

export async function coherenceSuite(t: Test, mounts: readonly [string, string]): Promise<void> {
  const counts = await runRounds(t, { mounts, seed: SEED, rounds: ROUNDS, pairs: 2 });
  const done = Object.values(counts.rounds).reduce((sum, count) => sum + count, 0);
  t.equal(done, ROUNDS, describeCounts(counts));
}
