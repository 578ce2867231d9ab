/**
 * Decisions of scrub (design §5 Scrub): which copies differ, which one is right, when a PG's next
 * scrub is due. Pure; osd/scrubber.ts carries it out.
 */
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import type { OsdId } from "../../cluster/base/ids.js";
import { compareVersions, type Version } from "./version.js";

/** What one member's index says of an object. */
export interface CopyRow {
  object: string;
  size: number;
  version: Version;
  truncateSeq: number;
  snapSeq: number;
  /** Over the checksums of all blocks. */
  digest: number;
}
export interface Copy {
  member: OsdId;
  /** Undefined: it does not have the object. */
  row: CopyRow | undefined;
}
export interface Listing {
  member: OsdId;
  /** In name order. */
  rows: readonly CopyRow[];
  /** There are no more after them. */
  complete: boolean;
}

export function equalRows(a: CopyRow | undefined, b: CopyRow | undefined): boolean {
  if (a === undefined || b === undefined) return a === b;
  return (
    a.size === b.size &&
    a.truncateSeq === b.truncateSeq &&
    a.snapSeq === b.snapSeq &&
    a.digest === b.digest &&
    compareVersions(a.version, b.version) === 0
  );
}

/**
 * One chunk: the objects up to where every listing reaches, and those of them that are not the same
 * everywhere. A write under way looks like a difference, so a suspect is looked at again under its
 * lock. `cursor` is undefined when that is the end.
 */
export function compareCopies(listings: readonly Listing[]): {
  objects: string[];
  suspects: string[];
  cursor: string | undefined;
} {
  const ends = listings
    .filter(({ complete }) => !complete)
    .map(({ rows }) => rows[rows.length - 1]!.object);
  const cursor = ends.length === 0 ? undefined : ends.reduce((a, b) => (a < b ? a : b));
  const found = new Map<string, (CopyRow | undefined)[]>();
  listings.forEach(({ rows }, i) => {
    for (const row of rows) {
      if (cursor !== undefined && row.object > cursor) continue;
      let copies = found.get(row.object);
      if (copies === undefined) {
        copies = listings.map(() => undefined);
        found.set(row.object, copies);
      }
      copies[i] = row;
    }
  });
  const objects = [...found.keys()].sort();
  const suspects = objects.filter((object) => {
    const copies = found.get(object)!;
    return !copies.every((row) => equalRows(row, copies[0]));
  });
  return { objects, suspects, cursor };
}

export type Verdict =
  | { verdict: "equal" }
  /** The copy of `source` is right; `wrong` are to receive it. */
  | { verdict: "copy"; source: OsdId; wrong: OsdId[] }
  /** It was removed; `wrong` have it still. */
  | { verdict: "remove"; wrong: OsdId[] };

/**
 * Which copy is right, when no write is under way. The log decides where it knows the object: it
 * was removed, or not. Else most members do, and a tie keeps the object, because a leftover does
 * less harm than a loss. Of the copies the newest version counts, of several contents the one that
 * most members have, and of as many the primary's.
 */
export function judgeCopies(
  copies: readonly Copy[],
  primary: OsdId,
  /** The log's newest entry for the object, if it shows one. */
  lastEntry: { version: Version; removed: boolean } | undefined,
): Verdict {
  if (copies.every(({ row }) => equalRows(row, copies[0]?.row))) return { verdict: "equal" };
  const present = copies.filter(({ row }) => row !== undefined);
  const newest = present.reduce((a, b) =>
    compareVersions(b.row!.version, a.row!.version) > 0 ? b : a,
  );
  const isOlder =
    lastEntry !== undefined && compareVersions(newest.row!.version, lastEntry.version) < 0;
  const isRemoved =
    lastEntry === undefined
      ? present.length * 2 < copies.length
      : lastEntry.removed && (isOlder || present.length * 2 < copies.length);
  if (isRemoved) return { verdict: "remove", wrong: present.map(({ member }) => member) };
  const candidates = present.filter(
    ({ row }) => compareVersions(row!.version, newest.row!.version) === 0,
  );
  const votes = (copy: Copy): number =>
    candidates.filter(({ row }) => equalRows(row, copy.row)).length;
  const source = candidates.reduce((best, copy) => {
    const more = votes(copy) - votes(best);
    return more > 0 || (more === 0 && copy.member === primary) ? copy : best;
  });
  const wrong = copies.filter(({ row }) => !equalRows(row, source.row));
  return { verdict: "copy", source: source.member, wrong: wrong.map(({ member }) => member) };
}

/** When a PG was scrubbed last, and what that left; milliseconds since 1970, 0: never. */
export interface ScrubStamps {
  lightMs: number;
  deepMs: number;
  /** Errors found by the last scrub, and how many of them are left. */
  found: number;
  left: number;
}
export const NEVER_SCRUBBED: ScrubStamps = Object.freeze({
  lightMs: 0,
  deepMs: 0,
  found: 0,
  left: 0,
});

/**
 * Which scrub is due at `nowMs`. A PG that was never scrubbed has its turn within one interval from
 * `knownMs`, when this primary took it up, spread by its number: they must not all come at once.
 */
export function scrubDue(
  stamps: ScrubStamps,
  at: { nowMs: number; knownMs: number; pg: number },
  intervals: { lightMs: number; deepMs: number },
): "light" | "deep" | undefined {
  const phase = ((at.pg * 2_654_435_761) % 2 ** 32) / 2 ** 32;
  const dueMs = (lastMs: number, interval: number): number =>
    lastMs > 0 ? lastMs + interval : at.knownMs + phase * interval;
  if (at.nowMs >= dueMs(stamps.deepMs, intervals.deepMs)) return "deep";
  return at.nowMs >= dueMs(stamps.lightMs, intervals.lightMs) ? "light" : undefined;
}

/** Neighbouring blocks as runs, ascending. */
export function blockRuns(
  blocks: readonly { offset: number }[],
): { offset: number; length: number }[] {
  const runs: { offset: number; length: number }[] = [];
  for (const { offset } of blocks) {
    const last = runs.at(-1);
    if (last !== undefined && last.offset + last.length === offset) last.length += BLOCK_SIZE;
    else runs.push({ offset, length: BLOCK_SIZE });
  }
  return runs;
}
