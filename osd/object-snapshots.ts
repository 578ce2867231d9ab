/**
 * What an object was at a snapshot, what it is by the volume that its own was cloned from, and what
 * has to be kept of it before it changes (docs/decisions/0007, 0010). Runs on the primary, under
 * the lock of the object's family: all objects that share blocks with it have one.
 */
import { blockCeil } from "./core/blocks.js";
import { DssError } from "../cluster/base/errors.js";
import type { PgId } from "../cluster/base/ids.js";
import { cloneIdOf, cloneName } from "../cluster/base/object-name.js";
import type { ObjectParent, OsdRead, OsdStatReply, OsdWrite } from "./proto.js";
import type { ChunkStore, ObjectInfo, SnapClone } from "./store/chunk-store.js";

/**
 * Under which name the bytes of the object as it was at `snap` (0: as it is) are kept: its own or
 * that of the first parent that had it. Undefined: there are none; or else it may be one that is
 * not there.
 */
export function nameAt(
  store: ChunkStore,
  pg: PgId,
  request: { object: string; snap: number; parents: readonly ObjectParent[] },
): string | undefined {
  const own = ownNameAt(store, pg, request);
  if (request.parents.length === 0) return own;
  if (own !== undefined && (request.snap !== 0 || store.stat(pg, own) !== undefined)) return own;
  return nameByParents(store, pg, request.parents);
}
/** The same without parents. */
export function ownNameAt(
  store: ChunkStore,
  pg: PgId,
  { object, snap }: ObjectParent,
): string | undefined {
  if (snap === 0) return object;
  const clone = cloneAt(store.clones(pg, object), snap);
  if (clone !== undefined) return clone.from < snap ? cloneName(object, clone.id) : undefined;
  const head = store.stat(pg, object);
  return head !== undefined && head.snapSeq < snap ? object : undefined;
}
/** Where the bytes come from of an object that the volume does not have. */
export function nameByParents(
  store: ChunkStore,
  pg: PgId,
  parents: readonly ObjectParent[],
): string | undefined {
  for (const parent of parents) {
    const name = ownNameAt(store, pg, parent);
    if (name !== undefined) return name;
  }
  return undefined;
}
function cloneAt(clones: readonly SnapClone[], snap: number): SnapClone | undefined {
  return clones.find(({ id }) => id >= snap);
}

/** The clone that the change has to make first; undefined: none. Fails with StaleSnapshots. */
export function cloneToMake(
  store: ChunkStore,
  pg: PgId,
  message: OsdWrite,
  info: ObjectInfo | undefined,
): string | undefined {
  if (info === undefined || cloneIdOf(message.object) !== undefined) return undefined;
  const { object, snapSeq, snapNewest } = message;
  if (snapSeq < info.snapSeq) {
    const text = `${object} has seen snapshot ${info.snapSeq}, the request only ${snapSeq}`;
    throw new DssError("StaleSnapshots", text, { hint: "open the volume again" });
  }
  if (snapNewest <= info.snapSeq) return undefined;
  // It was made by a change that came no further.
  const isThere = store.clones(pg, object).some(({ id }) => id === snapNewest);
  return isThere ? undefined : cloneName(object, snapNewest);
}

export function statReply(store: ChunkStore, pg: PgId, message: OsdRead): OsdStatReply {
  const name = nameAt(store, pg, message);
  const info = name === undefined ? undefined : store.stat(pg, name);
  const clones = store.clones(pg, message.object);
  if (info === undefined) {
    const none = { size: 0, mtimeNs: 0n, truncateSeq: 0, snapSeq: 0, allocated: 0 };
    return { exists: false, ...none, clones };
  }
  const { mtimeNs, truncateSeq, snapSeq } = info;
  const size = effectiveSize(info, message);
  const runs = size < info.size ? effectiveExtents(store, pg, { name: name!, info, message }) : [];
  const allocated =
    size < info.size ? runs.reduce((bytes, { length }) => bytes + length, 0) : info.allocated;
  return { exists: true, size, mtimeNs, truncateSeq, snapSeq, allocated, clones };
}

/** Where the object has blocks: those of `range`, or all. */
export function effectiveExtents(
  store: ChunkStore,
  pg: PgId,
  { name, info, message }: { name: string; info: ObjectInfo; message: OsdRead },
  range = { offset: 0, length: info.size },
): { offset: number; length: number }[] {
  const { offset, length } = range;
  const size = effectiveSize(info, message);
  const end = size < info.size ? Math.min(offset + length, blockCeil(size)) : offset + length;
  return end > offset ? store.extents(pg, name, offset, end - offset) : [];
}
/** A reader that knows of a newer truncation does not see what it cut off. */
export function effectiveSize(info: ObjectInfo, message: OsdRead): number {
  return message.truncateSeq > info.truncateSeq
    ? Math.min(info.size, message.truncateSize)
    : info.size;
}
