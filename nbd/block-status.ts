/**
 * What a range of a volume consists of, from what is known of its objects. Pure.
 *
 * Invariants: extents are in volume order, add up to a prefix of the range, and neighbours differ.
 * A block that an object holds counts as data though it may be zeros; everything else is a hole.
 */
import { extentsOf, type StripeLayout } from "../osd/client/striper.js";
import type { ImageExtent } from "./block-image.js";

/** Bytes [offset, offset + length) of an object hold data. */
export interface ObjectRun {
  readonly offset: number;
  readonly length: number;
}

/** Pieces of one status answer: finely striped volumes have thousands in every object. */
const PIECES_MAX = 65_536;
const OBJECTS_MAX = 1_024;

/** How much of a range one answer looks at, bytes: a prefix of it. */
export function statusSpan(layout: StripeLayout, offset: number, length: number): number {
  const setBytes = layout.objectSize * layout.stripeCount;
  const sets = Math.max(1, Math.floor(OBJECTS_MAX / layout.stripeCount));
  const end = (Math.floor(offset / setBytes) + sets) * setBytes;
  return Math.min(length, end - offset, PIECES_MAX * layout.stripeUnit);
}

/** `runsOf` gives the runs of an object in the range, ascending; none for one that is missing. */
export function volumeExtents(
  layout: StripeLayout,
  range: { offset: number; length: number },
  runsOf: (index: number) => readonly ObjectRun[],
  extentsMax: number,
): ImageExtent[] {
  const list = new ExtentList(extentsMax);
  for (const { index, offset, length } of extentsOf(layout, range.offset, range.length)) {
    const end = offset + length;
    let at = offset;
    for (const run of runsOf(index)) {
      const start = Math.max(run.offset, at);
      const stop = Math.min(run.offset + run.length, end);
      if (stop <= start) continue;
      list.add(start - at, true);
      list.add(stop - start, false);
      at = stop;
    }
    list.add(end - at, true);
    if (list.full) break;
  }
  return list.extents;
}

class ExtentList {
  readonly extents: { length: number; hole: boolean; zero: boolean }[] = [];
  /** One more than fits has begun: what is there is final. */
  full = false;

  constructor(private readonly max: number) {}

  add(length: number, hole: boolean): void {
    if (length === 0 || this.full) return;
    const last = this.extents.at(-1);
    if (last?.hole === hole) last.length += length;
    else if (this.extents.length === this.max) this.full = true;
    else this.extents.push({ length, hole, zero: hole });
  }
}
