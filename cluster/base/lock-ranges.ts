/**
 * What one owner has locked of one file: ranges of bytes in a mode each, sorted, disjoint, and
 * joined where they touch in the same mode. Pure; lists are changed in place, their ranges never.
 */
export interface LockedRange {
  /** First and last byte. */
  readonly start: bigint;
  readonly end: bigint;
  readonly mode: "shared" | "exclusive";
  readonly pid: number;
}

/** Sets [start, end] to the mode of `wanted`, or unlocks it. */
export function setRange(
  ranges: LockedRange[],
  { start, end }: { start: bigint; end: bigint },
  wanted: { mode: LockedRange["mode"]; pid: number } | undefined,
): void {
  // With those that only touch it: they may become one with it.
  const first = firstReaching(ranges, start - 1n);
  let last = first;
  const pieces: LockedRange[] = [];
  const add = (piece: LockedRange): void => {
    const before = pieces[pieces.length - 1];
    if (before?.mode === piece.mode && before.end + 1n === piece.start) {
      pieces[pieces.length - 1] = { ...before, end: piece.end };
    } else pieces.push(piece);
  };
  const after: LockedRange[] = [];
  for (; last < ranges.length && ranges[last]!.start <= end + 1n; last++) {
    const range = ranges[last]!;
    if (range.start < start) add(range.end < start ? range : { ...range, end: start - 1n });
    if (range.end > end) after.push(range.start > end ? range : { ...range, start: end + 1n });
  }
  if (wanted !== undefined) add({ start, end, mode: wanted.mode, pid: wanted.pid });
  after.forEach(add);
  ranges.splice(first, last - first, ...pieces);
}

/** Leaves nothing in [start, end] above shared. */
export function lowerRange(
  ranges: LockedRange[],
  { start, end }: { start: bigint; end: bigint },
): void {
  for (const range of [...ranges]) {
    if (range.mode !== "exclusive" || range.end < start || range.start > end) continue;
    const part = {
      start: range.start < start ? start : range.start,
      end: range.end > end ? end : range.end,
    };
    setRange(ranges, part, { mode: "shared", pid: range.pid });
  }
}

/** Index of the first range that ends at or after `byte`. */
export function firstReaching(ranges: readonly LockedRange[], byte: bigint): number {
  let low = 0;
  let high = ranges.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (ranges[middle]!.end < byte) low = middle + 1;
    else high = middle;
  }
  return low;
}
