/**
 * Is a history of reads and writes of one register linearizable? Every written value is different,
 * so a polynomial test decides it (Gibbons and Korach, "Testing shared memories", 1997): the
 * operations on one value form a cluster with a zone, from the first end to the last start of them.
 * Pure.
 */
export interface Operation {
  kind: "read" | "write";
  value: number;
  start: number;
  /** Infinity: never answered; it may take effect at any time, or never. */
  end: number;
}

/** What every register holds in the beginning. */
export const INITIAL = 0;

interface Zone {
  value: number;
  /**
   * Forward: the value held at least from `low` to `high`. Backward: it may have held for an
   * instant anywhere between.
   */
  forward: boolean;
  low: number;
  high: number;
}

/** Undefined when it is linearizable; else why not. */
export function linearizabilityFault(history: readonly Operation[]): string | undefined {
  const clusters = new Map<number, { write: Operation; reads: Operation[] }>();
  const initial: Operation = { kind: "write", value: INITIAL, start: -2, end: -1 };
  clusters.set(INITIAL, { write: initial, reads: [] });
  for (const operation of history) {
    if (operation.kind !== "write") continue;
    clusters.set(operation.value, { write: operation, reads: [] });
  }
  for (const operation of history) {
    if (operation.kind !== "read" || operation.end === Infinity) continue;
    const cluster = clusters.get(operation.value);
    if (cluster === undefined) return `read ${operation.value}, which was never written`;
    if (operation.end < cluster.write.start) {
      return `read ${operation.value} at ${operation.end} before it was written`;
    }
    cluster.reads.push(operation);
  }
  const zones: Zone[] = [];
  for (const [value, { write, reads }] of clusters) {
    if (reads.length === 0 && write.end === Infinity) continue; // It may never have happened.
    const firstEnd = Math.min(write.end, ...reads.map(({ end }) => end));
    const lastStart = Math.max(write.start, ...reads.map(({ start }) => start));
    const forward = firstEnd < lastStart;
    const low = Math.min(firstEnd, lastStart);
    const high = Math.max(firstEnd, lastStart);
    zones.push({ value, forward, low, high });
  }
  return overlap(zones);
}

/** Two values cannot hold at once, nor one for an instant in the middle of what held throughout. */
function overlap(zones: readonly Zone[]): string | undefined {
  const forward = zones.filter((zone) => zone.forward).sort((a, b) => a.low - b.low);
  for (let i = 1; i < forward.length; i++) {
    const [a, b] = [forward[i - 1]!, forward[i]!];
    if (b.low < a.high) return `${a.value} (${span(a)}) and ${b.value} (${span(b)}) both held`;
  }
  for (const zone of zones) {
    if (zone.forward) continue;
    const around = forward.find((f) => f.low < zone.low && zone.high < f.high);
    if (around !== undefined) {
      const held = `${around.value} (${span(around)}) held`;
      return `${zone.value} (${span(zone)}) took effect while ${held}`;
    }
  }
  return undefined;
}
function span({ low, high }: Zone): string {
  return `${low.toFixed(3)} to ${high.toFixed(3)} ms`;
}
