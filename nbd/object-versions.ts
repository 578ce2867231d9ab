/**
 * Which objects of a volume may differ between two of its snapshots, told from what their OSDs keep
 * of them: no bytes are read. Pure.
 *
 * An object that changes under a snapshot is preserved as a clone first (docs/decisions/0007). So
 * two snapshots with the same clone of an object, or with none and the same head, have the same
 * bytes.
 */
import type { ObjectStat } from "../osd/client/object-access.js";
import type { StripeLayout } from "../osd/client/striper.js";

/** A snapshot id; 0: as the volume is now. */
export function isSameAt(stat: Stat, from: number, to: number): boolean {
  return versionAt(stat, from) === versionAt(stat, to);
}
type Stat = Pick<ObjectStat, "exists" | "clones" | "snapSeq">;

/** The clone's id, or the head, or what the volume has of a parent: which never changes. */
function versionAt({ exists, clones, snapSeq }: Stat, snap: number): number | "head" | "parent" {
  if (snap === 0) return exists ? "head" : "parent";
  const clone = clones.find(({ id }) => id >= snap);
  if (clone !== undefined) return clone.from < snap ? clone.id : "parent";
  return exists && snapSeq < snap ? "head" : "parent";
}

/** Where the bytes of an object are in its volume, below `size`, ascending. */
export function* rangesOf(
  layout: StripeLayout,
  index: number,
  size: number,
): Generator<{ offset: number; length: number }> {
  const { objectSize, stripeUnit, stripeCount } = layout;
  const units = objectSize / stripeUnit;
  const set = Math.floor(index / stripeCount);
  const step = stripeCount === 1 ? objectSize : stripeUnit;
  for (let unit = 0; unit < units; unit += step / stripeUnit) {
    const stripe = set * units + unit;
    const offset = (stripe * stripeCount + (index % stripeCount)) * stripeUnit;
    if (offset >= size) return;
    yield { offset, length: Math.min(step, size - offset) };
  }
}
