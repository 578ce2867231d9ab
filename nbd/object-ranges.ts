/**
 * A byte range of a volume as one range per object, however finely it is striped: the bytes that
 * a contiguous range has in one object are contiguous there, so each object needs one operation.
 * Pure.
 */
import { assert } from "../cluster/base/assert.js";
import { extentsOf, type Extent, type StripeLayout } from "../osd/client/striper.js";

export interface ObjectRange {
  readonly index: number;
  /** Byte offset in the object. */
  readonly offset: number;
  /** Bytes. */
  length: number;
  /** Ascending both in the object and in the volume. */
  readonly pieces: Extent[];
}

export interface ObjectRanges {
  /** In volume order: together they are the range. */
  readonly extents: readonly Extent[];
  readonly objects: readonly ObjectRange[];
}

export function objectRanges(layout: StripeLayout, offset: number, length: number): ObjectRanges {
  const extents = extentsOf(layout, offset, length);
  const byIndex = new Map<number, ObjectRange>();
  for (const extent of extents) {
    const object = byIndex.get(extent.index);
    if (object === undefined) {
      const { index, offset: start, length: bytes } = extent;
      byIndex.set(index, { index, offset: start, length: bytes, pieces: [extent] });
      continue;
    }
    assert(object.offset + object.length === extent.offset, `object ${extent.index} has a gap`);
    object.length += extent.length;
    object.pieces.push(extent);
  }
  return { extents, objects: [...byIndex.values()] };
}
