/**
 * The campaign `failures`: what each repeat measured is kept in one file a step, and judged by the
 * medians when all repeats are done (design §4: service goes on within 2 s of `kill -9`, within 8 s
 * of SIGSTOP or a silent partition).
 */
import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";

/** Repeats of each case. */
export const REPEATS = 10;
/** The first repeat's sleepers sleep this long. */
const LONG_SLEEP_SECONDS = 120;

/** One measured failure, as recordStall of test/support/fault-load.ts writes it. */
interface Stall {
  name: string;
  limitMs: number;
  longestMs: number;
  load: number;
}

const recordOf = (folder: string, step: number): string => join(folder, `failures-${step}.jsonl`);

/** Steps 1 to REPEATS kill and stop processes, the others cut links. */
export function failuresStep(
  step: number,
  folder: string,
): { program: string; env: Record<string, string> } {
  const record = recordOf(folder, step);
  // Of an attempt that failed or was stopped.
  rmSync(record, { force: true });
  const program = step <= REPEATS ? "crash-failover" : "crash-partition";
  const sleep = step === 1 ? { DSS_FAILURES_SLEEP_SECONDS: String(LONG_SLEEP_SECONDS) } : {};
  return {
    program: `test/integration/${program}.test.js`,
    env: { DSS_FAILURES_RECORD: record, ...sleep },
  };
}

const median = (values: readonly number[]): number => {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length / 2;
  const low = sorted[Math.ceil(middle) - 1] ?? 0;
  return (low + (sorted[Math.floor(middle)] ?? low)) / 2;
};

/** Medians of all that was measured; `good` when each is within its goal. */
export function failuresSummary(folder: string): { lines: string[]; good: boolean } {
  const cases = new Map<string, Stall[]>();
  for (let step = 1; step <= 2 * REPEATS; step++) {
    const path = recordOf(folder, step);
    if (!existsSync(path)) continue;
    for (const line of readFileSync(path, "utf8").trim().split("\n")) {
      if (line === "") continue;
      const stall = JSON.parse(line) as Stall;
      cases.set(stall.name, [...(cases.get(stall.name) ?? []), stall]);
    }
  }
  let good = true;
  const lines = [...cases].map(([name, stalls]) => {
    const longest = stalls.map(({ longestMs }) => longestMs);
    const middle = median(longest);
    const goal = stalls[0]!.limitMs;
    good &&= middle <= goal;
    return (
      `${name.padEnd(32)} median ${Math.round(middle)} ms, longest ${Math.max(...longest)} ms of ` +
      `${stalls.length}; goal ${goal} ms; load average ${median(stalls.map(({ load }) => load))}` +
      (middle <= goal ? "" : " MISSED")
    );
  });
  return { lines, good };
}
