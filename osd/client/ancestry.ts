/**
 * Where a volume that was cloned finds the objects that it does not have itself. Pure.
 *
 * Objects that a clone and its parent have under one index are of one family: they are in the same
 * placement group, so the OSD falls through from one to the next by itself (docs/decisions/0010).
 */
import { objectName } from "../../cluster/base/object-name.js";
import type { ObjectParent } from "./object-access.js";
import { objectCount, type StripeLayout } from "./striper.js";

/** A volume at a snapshot; after it comes its own parent. */
export interface Ancestor {
  readonly objectPrefix: string;
  readonly snap: number;
  /** Of the volume at the snapshot, in bytes: beyond it there is nothing, also further up. */
  readonly size: number;
}

const NONE: readonly ObjectParent[] = [];

export function parentObjects(
  ancestors: readonly Ancestor[],
  layout: StripeLayout,
  index: number,
): readonly ObjectParent[] {
  if (ancestors.length === 0) return NONE;
  const parents: ObjectParent[] = [];
  for (const { objectPrefix, snap, size } of ancestors) {
    if (index >= objectCount(layout, size)) break;
    parents.push({ object: objectName(objectPrefix, index), snap });
  }
  return parents;
}
