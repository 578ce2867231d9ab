/** What clients do with objects; `objecter.ts` implements it over the network. */
import type { Epoch, PgId, PoolId } from "../../cluster/base/ids.js";
import { ANY_SNAP_CONTEXT } from "../../cluster/base/object-name.js";

export interface ObjectAddress {
  pool: PoolId;
  object: string;
}
/** Goes with every operation on a file's object (design §5 Truncation); zeros for volumes. */
export interface Truncation {
  seq: number;
  /** Bytes of this object (not of the file) that survived the last truncation. */
  size: number;
}
export const NO_TRUNCATION: Truncation = Object.freeze({ seq: 0, size: 0 });

export interface AccessOptions {
  truncation: Truncation;
  /** From the capability or lock under which the operation is done: makes OSDs see fences first. */
  minEpoch: Epoch;
  /** Changes of a volume's objects: its snapshots. Absent: there are none. */
  snapshots?: SnapContext;
  /** Reads: the object as it was at this snapshot. */
  snap?: number;
  /** Of a volume that is a clone: where an object comes from that it does not have itself. */
  parents?: readonly ObjectParent[];
}
/** An object of a volume's parent, at a snapshot of the parent; next comes the parent's parent. */
export interface ObjectParent {
  readonly object: string;
  readonly snap: number;
}
/**
 * Under which snapshots an object is changed. One that has seen newer ones refuses it with
 * StaleSnapshots.
 */
export interface SnapContext {
  /** The newest id there has been. */
  readonly seq: number;
  /** The newest that exists; 0: none. What an object was before it is preserved. */
  readonly newest: number;
}
/** For removing what belongs to nobody any more. */
export const ANY_SNAPSHOTS: SnapContext = Object.freeze({ seq: ANY_SNAP_CONTEXT, newest: 0 });

export interface ObjectStat {
  exists: boolean;
  size: number;
  mtimeNs: bigint;
  truncateSeq: number;
  allocated: number;
  /** Ascending: what the object was at the snapshots in (from, id]. Also if it does not exist. */
  clones: readonly { id: number; from: number }[];
  /** What it was at snapshots up to this one is in `clones`, or it was not there. */
  snapSeq: number;
}
export interface ObjectContent {
  exists: boolean;
  /** The object's size in bytes. */
  size: number;
  /** Bytes [offset, min(offset + length, size)) of the object; holes are zeros. */
  data: Buffer;
  mtimeNs: bigint;
  /** `data` is not needed any more: its memory is used again. At most once; not necessary. */
  recycle?: () => void;
}

/**
 * Every method waits through failovers and map changes, resending under one request number, until
 * it has the final answer or the operation deadline is over (TimedOut). Changes resolve when
 * durable on every in-sync member. Fails with Fenced when this client is fenced, NoSpace, Corrupt
 * (no good copy), ShuttingDown.
 */
export interface ObjectAccess {
  read(
    address: ObjectAddress,
    offset: number,
    length: number,
    options: AccessOptions,
  ): Promise<ObjectContent>;
  stat(address: ObjectAddress, options: AccessOptions): Promise<ObjectStat>;
  /** Runs that hold data, ascending. */
  extents(
    address: ObjectAddress,
    offset: number,
    length: number,
    options: AccessOptions,
  ): Promise<{
    exists: boolean;
    size: number;
    extents: readonly { offset: number; length: number }[];
  }>;
  /**
   * `data` must not change until the promise settles. Any alignment. Resolves with the object's
   * size.
   */
  write(
    address: ObjectAddress,
    offset: number,
    data: readonly Buffer[],
    options: AccessOptions & {
      mtimeNs: bigint;
      /** Nothing happens when the object exists. */
      ifAbsent?: boolean;
    },
  ): Promise<number>;
  /**
   * [offset, offset + length) reads as zeros; whole blocks become holes. Does not extend the
   * object.
   */
  zero(
    address: ObjectAddress,
    offset: number,
    length: number,
    options: AccessOptions & { mtimeNs: bigint },
  ): Promise<void>;
  /**
   * Cuts the object where `truncation` says, unless it has seen that truncation: then it may hold
   * newer data. A file's next truncation to a larger size must wait until every object that the
   * last one cut has been trimmed or removed.
   */
  trim(address: ObjectAddress, options: AccessOptions): Promise<void>;
  /** Cuts the object to `size` bytes. */
  truncate(
    address: ObjectAddress,
    size: number,
    options: AccessOptions & { mtimeNs: bigint },
  ): Promise<void>;
  /**
   * No error when it does not exist. Unless `unconditional`, keeps an object whose truncation is as
   * new as `truncation.seq`. `whiteout`: of one that exists an empty one
   * stays.
   */
  remove(
    address: ObjectAddress,
    options: AccessOptions & { unconditional: boolean; whiteout?: boolean },
  ): Promise<void>;
}

/** Which objects there are. */
export interface ObjectListing {
  /**
   * Objects of a placement group in name order, beginning after `after`, as its primary has them:
   * one that is not listed was absent. Waits and fails as the methods of `ObjectAccess` do.
   */
  list(
    pg: PgId,
    after: string,
    options: { limit: number; minEpoch: Epoch },
  ): Promise<readonly { object: string }[]>;
}

/** What those who look after volumes do besides. */
export interface VolumeObjects extends ObjectAccess {
  /** The object becomes what it was at the snapshot, which may be nothing. */
  rollback(
    address: ObjectAddress,
    snap: number,
    options: AccessOptions & { mtimeNs: bigint },
  ): Promise<void>;
  /**
   * The object is there from now on, with what it is by `parents`, at all snapshots of its volume
   * too; nothing happens when it is there or when they have nothing. No reader sees a difference.
   */
  copyUp(address: ObjectAddress, options: AccessOptions): Promise<void>;
}
