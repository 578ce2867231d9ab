/** Loads that keep a number of operations under way, and what such a load has seen. */
export interface Loop {
  readonly operations: number;
  readonly seconds: number;
  /** Of each operation, in microseconds, ascending. */
  readonly latencies: readonly number[];
}

/**
 * Starts an operation whenever fewer than `depth` are under way; waits for the last. `start` calls
 * `done` once, later than it returns.
 */
export async function keepInFlight(
  depth: number,
  seconds: number,
  start: (done: () => void) => void,
): Promise<Loop> {
  const latencies: number[] = [];
  const began = performance.now();
  const end = began + seconds * 1000;
  await new Promise<void>((resolve) => {
    let inFlight = 0;
    const next = (): void => {
      if (performance.now() >= end) {
        if (inFlight === 0) resolve();
        return;
      }
      inFlight++;
      const at = performance.now();
      start(() => {
        latencies.push((performance.now() - at) * 1000);
        inFlight--;
        next();
      });
    };
    for (let i = 0; i < depth; i++) next();
  });
  return loopOf(latencies, began);
}

/** One after the other, on this thread. */
export function repeat(seconds: number, operation: () => void): Loop {
  const latencies: number[] = [];
  const began = performance.now();
  const end = began + seconds * 1000;
  for (let at = began; at < end;) {
    operation();
    const now = performance.now();
    latencies.push((now - at) * 1000);
    at = now;
  }
  return loopOf(latencies, began);
}

function loopOf(latencies: number[], began: number): Loop {
  const seconds = (performance.now() - began) / 1000;
  latencies.sort((a, b) => a - b);
  return { operations: latencies.length, seconds, latencies };
}

/** The latency that the fraction of all operations did not exceed. */
export const quantile = ({ latencies }: Loop, fraction: number): number =>
  latencies[Math.floor(latencies.length * fraction)] ?? 0;
