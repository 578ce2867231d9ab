/**
 * Is a history of operations on a few names linearizable? Exact search (Wing and Gong, "Testing
 * and verifying concurrent objects", 1993, with Lowe's memory of what was tried). Every created
 * inode is another, so the state after an operation is known. Pure.
 */

/** What each name stands for; 0: nothing. */
export type Names = readonly number[];

export interface NameOperation {
  /** For messages. */
  what: string;
  start: number;
  /** Infinity: never answered; it took effect at some time, or never. */
  end: number;
  /** It was answered and may have been lost again: it took effect before its end, or never. */
  isLost?: boolean;
  /** The names afterwards; undefined when the operation cannot have had its outcome here. */
  run(names: Names): Names | undefined;
}

/** More states than this and the answer is "undecided": unknown outcomes make too many. */
const STATES_MAX = 300_000;

/** Undefined when it is linearizable; else the operations that cannot be placed. */
export function namesFault(
  history: readonly NameOperation[],
  initial: Names,
): string | "undecided" | undefined {
  const operations = [...history].sort((a, b) => a.start - b.start);
  const done = new Array<boolean>(operations.length).fill(false);
  const tried = new Set<string>();
  let furthest = 0;
  let stuck = "";
  let isOver = false;

  /** `latest`: the latest start of those that are placed. */
  const search = (first: number, names: Names, latest: number): boolean => {
    while (first < operations.length && done[first] === true) first++;
    // Nothing can be placed after the first end of those that are not placed yet.
    let limit = Infinity;
    for (let i = first; i < operations.length && operations[i]!.start <= limit; i++) {
      const { end, isLost } = operations[i]!;
      if (done[i] !== true && isLost !== true) limit = Math.min(limit, end);
    }
    if (limit === Infinity) return true; // What is left may never have happened.
    const candidates: number[] = [];
    const extras: number[] = [];
    for (let i = first; i < operations.length && operations[i]!.start <= limit; i++) {
      if (done[i] === true) extras.push(i);
      else candidates.push(i);
    }
    const key = `${first}|${extras.join()}|${names.join()}`;
    if (tried.has(key)) return false;
    tried.add(key);
    if (tried.size > STATES_MAX) isOver = true;
    if (isOver) return false;
    if (first >= furthest) {
      furthest = first;
      const lines = candidates.map((i) => describe(operations[i]!)).join("; ");
      stuck = `names ${names.join()}: none of these can be next: ${lines}`;
    }
    // What is certain to have happened first: it prunes best.
    candidates.sort((a, b) => endOf(operations[a]!) - endOf(operations[b]!));
    for (const i of candidates) {
      const { start, end, run } = operations[i]!;
      const after = latest > end ? undefined : run(names);
      if (after === undefined) continue;
      done[i] = true;
      if (search(first, after, Math.max(latest, start))) return true;
      done[i] = false;
    }
    return false;
  };

  if (search(0, initial, 0)) return undefined;
  return isOver ? "undecided" : stuck;
}

function endOf({ end, isLost }: NameOperation): number {
  return isLost === true ? Infinity : end;
}
function describe({ what, start, end }: NameOperation): string {
  return `${what} (${start.toFixed(2)} to ${end.toFixed(2)})`;
}
