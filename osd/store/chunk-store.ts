/**
 * The chunk store of one OSD: objects, PG logs and retry memory of every PG it holds (design §5).
 * `file-store.ts` keeps them on a disk, `memory-store.ts` is its twin for tests; both pass
 * test/unit/osd/store/suite.ts.
 *
 * Everything is in whole 4 KiB blocks: the primary has merged partial ones. Bytes between an
 * object's size and the end of its last block are zero. A block that was never written, or was
 * dropped, is a hole and reads as zeros.
 *
 * Order: `apply` calls of one PG become visible and durable in call order. A transaction is visible
 * to `read`, `stat` and `log` as soon as `apply` returns; it is durable when its callback runs
 * without an error. After a crash a store holds, per PG, a prefix of what was applied, and at least
 * all that was reported durable.
 */
import { DssError } from "../../cluster/base/errors.js";
import { formatPg, type PgId } from "../../cluster/base/ids.js";
import type { Version } from "../core/version.js";

export { compareVersions, VERSION_ZERO, type Version } from "../core/version.js";

/**
 * write: `data` replaces the blocks from `offset`. zero: the blocks of [offset, offset + length)
 * become holes.
 * truncate: `data` (none, or the one merged tail block) goes to `offset` and every block after it
 * is dropped.
 * remove: the object ceases to exist. touch: creates an empty object or only changes size, mtime
 * and truncation. copy: the object has the blocks of `source`, which is of the same family (an
 * object and its snapshot clones), instead of its own.
 */
export const OpKind = { write: 1, zero: 2, truncate: 3, remove: 4, touch: 5, copy: 6 } as const;
export type OpKind = (typeof OpKind)[keyof typeof OpKind];

/** One log entry of a PG: who asked for what, and the version it got. */
export interface LogEntry {
  version: Version;
  kind: OpKind;
  object: string;
  /** The asking client's id and its request number; 0 and 0 for an internal operation. */
  client: number;
  sequence: number;
  /** The object's size in bytes after the operation. */
  size: number;
}

export interface Transaction extends LogEntry {
  pg: PgId;
  /** The client's lowest unanswered sequence: answers below it may be forgotten. */
  floor: number;
  /** Byte offset in the object, a multiple of 4,096. */
  offset: number;
  /** zero only: bytes, a multiple of 4,096. */
  length: number;
  /**
   * write and truncate: whole blocks. The store may keep it until the callback; the caller must not
   * change it.
   */
  data: readonly Buffer[];
  /** crc32 of each block of `data`. */
  sums: Uint32Array;
  mtimeNs: bigint;
  truncateSeq: number;
  /** See ObjectInfo. */
  snapSeq: number;
  /** copy only: an object that exists. */
  source?: string;
}

export interface ObjectInfo {
  /** Bytes. */
  size: number;
  version: Version;
  mtimeNs: bigint;
  truncateSeq: number;
  /**
   * The newest snapshot id that a change of the object knew of: what it was at any snapshot up to
   * that is in a clone, or nothing. Of a clone: what its head had when it was made.
   */
  snapSeq: number;
  /** Bytes of blocks that are not holes. */
  allocated: number;
}

export interface ObjectRead {
  /**
   * Whole blocks that cover the range asked for, clipped to the object's last block; holes are
   * zeros.
   * The pieces stay valid after later writes. */
  data: Buffer[];
  /** crc32 of each block of `data`, verified. */
  sums: Uint32Array;
  info: ObjectInfo;
  /** The bytes are not needed any more: their memory is used again. Called once or never. */
  recycle?: () => void;
}

/** What recovery copies: a whole object at one version. */
export interface ObjectImage {
  info: ObjectInfo;
  /** Non-hole runs, ascending: whole blocks with their checksums. */
  extents: { offset: number; data: Buffer; sums: Uint32Array }[];
  /**
   * Blocks whose right bytes are nowhere: `extents` has filler for them, with the filler's
   * checksum. The copy records this checksum instead, so that they are never read, and can be
   * repaired later.
   */
  spoiled?: readonly SpoiledBlock[];
  /** The extents are not needed any more: their memory may be used again. At most once. */
  recycle?: () => void;
}

export interface SpoiledBlock {
  /** Byte offset in the object. */
  offset: number;
  /** The checksum that the right bytes have. */
  sum: number;
}

/**
 * The index has lost or garbled something of a PG: what the store says of it cannot be believed
 * any more. By the time this is thrown the PG's meta is the one for damaged PGs.
 */
export class StructureDamage extends DssError {
  constructor(
    readonly pg: PgId,
    readonly what: string,
  ) {
    super("Corrupt", `the index of PG ${formatPg(pg)} is damaged: ${what}`);
  }
}

/** What verifying the index of one PG has found. */
export interface IndexCheck {
  entries: number;
  /** Entries that were damaged or missing; those that memory still knew are written anew. */
  damaged: number;
  /** Something is gone: as with StructureDamage. */
  lost: boolean;
}

/** A run of blocks that belongs to an object: whole blocks with their checksums. */
export type BlockRun = ObjectImage["extents"][number];

/** What an object was at the snapshots in (from, id]. */
export interface SnapClone {
  id: number;
  from: number;
}

/** What reading a copy through has found. */
export interface CopyCheck {
  info: ObjectInfo;
  /** Bytes that were read and verified. */
  bytes: number;
  /** Damaged blocks, ascending, with the checksums that their bytes should have. */
  bad: SpoiledBlock[];
}

export interface PgInfo {
  pg: PgId;
  /** The newest log entry, or what a finished recovery declared. */
  last: Version;
  /** Everything after this version is in the log. */
  logTail: Version;
  objects: number;
  /** Allocated bytes. */
  bytes: number;
  /** Peering's own durable record (opaque to the store). */
  meta: Buffer;
}

export interface StoreUsage {
  /** Bytes allocated to objects; what several share counts once. */
  used: number;
  /** Bytes that objects may use in all: `used` plus what the disk still has, less the reserve. */
  total: number;
  objects: number;
}

/**
 * Remembered answers of one PG, for retries (design §4 Retries). Serialised for peering and
 * backfill.
 */
export interface RetryRecord {
  client: number;
  floor: number;
  answers: { sequence: number; version: Version; size: number }[];
}

/**
 * Called once: without an error when durable. After an error the store is dead and the OSD must
 * stop.
 */
export type Durable = (error?: Error) => void;

export interface ChunkStore {
  /** Identity of this disk: with the OSD id it names a member (design §4 Joining). */
  readonly uuid: string;

  listPgs(): PgId[];
  hasPg(pg: PgId): boolean;
  /** Creates an empty PG; a no-op when it exists. Durable when the callback runs. */
  createPg(pg: PgId, meta: Buffer, done: Durable): void;
  /** Forgets the PG and everything in it. */
  removePg(pg: PgId, done: Durable): void;
  pgInfo(pg: PgId): PgInfo | undefined;
  setPgMeta(pg: PgId, meta: Buffer, done: Durable): void;

  /** Appends one log entry and does what it says. Asserts that its version is above `last`. */
  apply(transaction: Transaction, done: Durable): void;
  stat(pg: PgId, object: string): ObjectInfo | undefined;
  /**
   * Undefined when the object does not exist; Corrupt when a block fails its checksum (never bad
   * bytes).
   */
  read(pg: PgId, object: string, offset: number, length: number): Promise<ObjectRead | undefined>;
  /** Non-hole runs of [offset, offset + length), ascending. */
  extents(
    pg: PgId,
    object: string,
    offset: number,
    length: number,
  ): { offset: number; length: number }[];
  /** The object's snapshot clones, ascending. */
  clones(pg: PgId, object: string): SnapClone[];
  /** Objects in name order after `after` ("" from the start), at most `limit`. */
  list(pg: PgId, after: string, limit: number): { object: string; info: ObjectInfo }[];

  /**
   * Entries after `after`, ascending, at most `limit`; undefined when the log no longer reaches
   * back so far.
   */
  log(pg: PgId, after: Version, limit: number): LogEntry[] | undefined;
  /**
   * The version of the newest entry at or below `version`, or undefined when the log does not tell.
   */
  newestAtOrBelow(pg: PgId, version: Version): Version | undefined;
  /** Drops entries at or below `tail`. */
  trimLog(pg: PgId, tail: Version): void;
  /**
   * Replaces the entries after `common` by `entries` without touching any object (peering: the
   * objects
   * they name are recovered by `install` and `discard`). `last` becomes the newest entry's version.
   * */
  rewriteLog(pg: PgId, common: Version, entries: readonly LogEntry[], done: Durable): void;

  /**
   * The whole object for a copy elsewhere; undefined when it does not exist. Corrupt as `read`, or,
   * when that is `tolerated`, with what is damaged as `spoiled`.
   */
  image(pg: PgId, object: string, tolerated?: boolean): Promise<ObjectImage | undefined>;
  /** Reads the object's blocks of [offset, offset + length) and tells which are damaged. */
  check(pg: PgId, object: string, offset: number, length: number): Promise<CopyCheck | undefined>;
  /**
   * Puts right bytes where the object's blocks have just these checksums; blocks that were changed
   * meanwhile are left alone, so that it can never make a block older. No log entry; true when
   * something was written. Durable when the callback runs.
   */
  repair(pg: PgId, object: string, runs: readonly BlockRun[], done: Durable): boolean;
  /**
   * crc32 over (block number, block checksum) of every block that is not a hole, as it should be.
   * Undefined when the object does not exist.
   */
  digest(pg: PgId, object: string): number | undefined;
  /** Replaces the object by the image. Adds no log entry. */
  install(pg: PgId, object: string, image: ObjectImage, done: Durable): void;
  /** Removes the object without a log entry. */
  discard(pg: PgId, object: string, done: Durable): void;

  /**
   * The answer given to this request, if it was executed; "below-floor" when it may have been
   * forgotten.
   */
  answered(
    pg: PgId,
    client: number,
    sequence: number,
  ): { version: Version; size: number } | "below-floor" | undefined;
  exportRetries(pg: PgId): RetryRecord[];
  /**
   * Adds what is not known yet; durable with the next `setPgMeta`, `apply` or `rewriteLog` of this
   * PG.
   */
  mergeRetries(pg: PgId, records: readonly RetryRecord[]): void;
  /** The client is fenced and gone: its answers are not needed any more. */
  forgetClient(client: number): void;

  /**
   * Reads every entry of the PG in the index and compares it with what is known. Resolves when what
   * could be mended is so on disk: it is not found again.
   */
  verifyIndex(pg: PgId): Promise<IndexCheck>;
  /**
   * Called in the turn in which damage of the index is found, and for what opening the store has
   * found: objects of the PG may be gone, and its meta is that of a damaged PG.
   */
  onDamage(listener: (damage: StructureDamage) => void): void;
  /** PGs may be gone without a trace: whatever should be here and is not was lost. */
  readonly mayLackPgs: boolean;
  /** The PGs that were lost have been created anew, as damaged ones. */
  lackNoted(): Promise<void>;

  usage(): StoreUsage;
  /** Figures for status and benchmarks. */
  counters(): Record<string, number>;
  /** Makes everything durable and closes. */
  close(): Promise<void>;
}
