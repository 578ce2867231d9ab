/**
 * Messages of the OSDs: objects for clients, replication and peering between members, figures for
 * people. See docs/architecture.md for the flows. Offsets and sizes are bytes within one object.
 */
import { ANCESTORS_MAX } from "../cluster/base/object-name.js";
import {
  ascii,
  bool,
  i64,
  list,
  struct,
  u32,
  u53,
  u8,
  type Infer,
} from "../cluster/wire/struct.js";
import { defineCall, msgpack } from "../cluster/wire/registry.js";

/** Largest object: offsets in an object fit 32 bits and a whole object fits one frame. */
export const OBJECT_SIZE_MAX = 4 * 1024 * 1024;
export const OBJECT_NAME_MAX = 200;

/**
 * Operations that change an object; the numbers are `OpKind` of the chunk store. rollback: the
 * object becomes what it was at snapshot `snap`. copyUp: one that is not there becomes what it is
 * by `parents`, at all snapshots of its volume.
 */
export const WriteKind = {
  ...{ write: 1, zero: 2, truncate: 3, remove: 4, rollback: 7, copyUp: 8 },
} as const;
export type WriteKind = (typeof WriteKind)[keyof typeof WriteKind];
/**
 * remove, truncate: whatever the object's truncation says (the file is gone for good, or it is a
 * volume's). Without it an object that has seen the request's truncation is left alone; `truncate`
 * then cuts at truncateSize.
 */
export const WRITE_UNCONDITIONAL = 1;
/** write: nothing happens when the object exists. */
export const WRITE_IF_ABSENT = 2;
/**
 * remove: an empty object stays of one that exists: it keeps the snapshot context.
 */
export const WRITE_WHITEOUT = 4;

/**
 * Of a volume that is a clone: where an object is found that the volume does not have itself. The
 * volume's parent at the snapshot, then the parent's, and so on; all are of one family.
 */
const ObjectParent = struct("ObjectParent", { snap: u32, object: ascii });
export type ObjectParent = Infer<typeof ObjectParent>;

/**
 * A change by a client. write: the frame's data go to `offset`. zero: [offset, offset + length).
 * truncate: to size `offset`. (client, sequence) makes a repetition harmless; `floor` is the
 * client's lowest unanswered sequence. truncateSeq and truncateSize (within this object) are the
 * inode's (design §5 Truncation). snapSeq is the volume's newest snapshot id, existing or not: an
 * object that has seen a newer one refuses the change (StaleSnapshots). snapNewest is the newest
 * that exists (0: none): an object that has not seen it is preserved as a clone first. An object
 * that is not there becomes what it is by `parents` before it changes.
 */
export const OsdWrite = struct("OsdWrite", {
  pg: u32,
  interval: u32,
  minEpoch: u32,
  client: u32,
  sequence: u53,
  floor: u53,
  kind: u8,
  flags: u8,
  offset: u32,
  length: u32,
  truncateSeq: u32,
  truncateSize: u32,
  snapSeq: u32,
  snapNewest: u32,
  snap: u32,
  mtimeNs: i64,
  object: ascii,
  parents: list(ObjectParent, ANCESTORS_MAX),
});
export type OsdWrite = Infer<typeof OsdWrite>;
/** Durable on every in-sync member. `size` is the object's size after the operation. */
export const OsdWriteReply = struct("OsdWriteReply", { interval: u32, seq: u53, size: u32 });
export type OsdWriteReply = Infer<typeof OsdWriteReply>;
export const WriteObject = defineCall(100, "WriteObject", {
  request: OsdWrite,
  reply: OsdWriteReply,
  sums: "request",
});

/**
 * `snap`: the object as it was at that snapshot; 0: as it is. Of one that was not there: as it is
 * by `parents`.
 */
export const OsdRead = struct("OsdRead", {
  pg: u32,
  interval: u32,
  minEpoch: u32,
  client: u32,
  offset: u32,
  length: u32,
  truncateSeq: u32,
  truncateSize: u32,
  snap: u32,
  object: ascii,
  parents: list(ObjectParent, ANCESTORS_MAX),
});
export type OsdRead = Infer<typeof OsdRead>;
/**
 * The data are the whole blocks around the range asked for, clipped to the object's last block, and
 * begin at `dataOffset` (so that their stored checksums go with them). Bytes at or beyond `size`
 * are to be taken as zeros.
 */
export const OsdReadReply = struct("OsdReadReply", {
  exists: bool,
  size: u32,
  dataOffset: u32,
  mtimeNs: i64,
});
export type OsdReadReply = Infer<typeof OsdReadReply>;
export const ReadObject = defineCall(102, "ReadObject", { request: OsdRead, reply: OsdReadReply });

/** More snapshots of one volume are refused. */
export const SNAPSHOTS_MAX = 1_000;
/** What the object was at the snapshots in (from, id]. */
const ObjectClone = struct("ObjectClone", { id: u32, from: u32 });
export const OsdStatReply = struct("OsdStatReply", {
  exists: bool,
  size: u32,
  mtimeNs: i64,
  truncateSeq: u32,
  snapSeq: u32,
  allocated: u32,
  clones: list(ObjectClone, 2 * SNAPSHOTS_MAX),
});
export type OsdStatReply = Infer<typeof OsdStatReply>;
/** offset and length of the request are ignored. */
export const StatObject = defineCall(104, "StatObject", { request: OsdRead, reply: OsdStatReply });

const Extent = struct("Extent", { offset: u32, length: u32 });
export const OsdExtentsReply = struct("OsdExtentsReply", {
  exists: bool,
  size: u32,
  extents: list(Extent, 2048),
});
export type OsdExtentsReply = Infer<typeof OsdExtentsReply>;
/** Which parts of the range hold data. */
export const ObjectExtents = defineCall(106, "ObjectExtents", {
  request: OsdRead,
  reply: OsdExtentsReply,
});

/** Replication of one log entry, primary to member; its data are whole blocks. */
export const OsdRepOp = struct("OsdRepOp", {
  pg: u32,
  interval: u32,
  seq: u53,
  client: u32,
  sequence: u53,
  floor: u53,
  kind: u8,
  offset: u32,
  length: u32,
  size: u32,
  truncateSeq: u32,
  snapSeq: u32,
  mtimeNs: i64,
  object: ascii,
  /** Of a copy (OpKind), every member from its own; "" otherwise. */
  source: ascii,
});
export type OsdRepOp = Infer<typeof OsdRepOp>;
const Empty = struct("Empty", {});
/** How full the answering OSD is, in bytes; `total` is what objects may use in all. */
export const OsdFillLevel = struct("OsdFillLevel", { used: u53, total: u53 });
export type OsdFillLevel = Infer<typeof OsdFillLevel>;
/** Answered when synced. */
export const RepOp = defineCall(120, "RepOp", {
  request: OsdRepOp,
  reply: OsdFillLevel,
  sums: "request",
});

export interface WireVersion {
  interval: number;
  seq: number;
}
export interface WireLogEntry {
  version: WireVersion;
  kind: number;
  object: string;
  client: number;
  sequence: number;
  size: number;
}
export interface WireRetry {
  client: number;
  floor: number;
  answers: { sequence: number; version: WireVersion; size: number }[];
}

/** Peering: what a member has of the PG. From then on the member refuses older intervals. */
export interface PgInfoRequest {
  pg: number;
  interval: number;
  /**
   * Rises with every new beginning of the primary in this interval: what an earlier one sent is
   * refused from now on.
   */
  attempt: number;
}
export interface PgInfoReply {
  exists: boolean;
  last: WireVersion;
  logTail: WireVersion;
  objects: number;
  /** Objects that its log names but whose bytes it does not have yet. */
  missing: string[];
  /** Where its log ended before it took over entries for which it has not all the bytes yet. */
  base: WireVersion;
  /**
   * Backfill has come so far: objects with greater names are not there. Absent: it is not needed.
   */
  cursor?: string;
  /**
   * How long an earlier primary may still serve reads on this member's promise, in milliseconds
   * from now.
   */
  grantMs: number;
  level: OsdFillLevel;
  /** The OSD that it promised it to; -1: it does not know. */
  grantHolder: number;
}
export const PgGetInfo = defineCall(130, "PgGetInfo", {
  request: msgpack<PgInfoRequest>(),
  reply: msgpack<PgInfoReply>(),
});

export interface PgLogRequest {
  pg: number;
  interval: number;
  after: WireVersion;
  /** Retry records of clients above this number are wanted, too. */
  retriesAfter?: number;
}
/** One page; ask again after its last entry and its last client for more. */
export interface PgLogReply {
  entries: WireLogEntry[];
  more: boolean;
  retries: WireRetry[];
  moreRetries: boolean;
}
export const PgGetLog = defineCall(132, "PgGetLog", {
  request: msgpack<PgLogRequest>(),
  reply: msgpack<PgLogReply>(),
});

/**
 * The member takes the authoritative log after `common` and notes the objects it must receive;
 * answered when synced.
 */
export interface PgAdoptRequest {
  pg: number;
  interval: number;
  attempt: number;
  /** Create the PG empty if it is not there. */
  create: boolean;
  /** Nothing of what the member has is known to be right: every object is compared (backfill). */
  startOver: boolean;
  /** `missing` and `retries` only: the log stays until a later message (osd/log-transfer.ts). */
  noteOnly?: boolean;
  common: WireVersion;
  entries: WireLogEntry[];
  retries: WireRetry[];
  missing: string[];
}
export const PgAdoptLog = defineCall(134, "PgAdoptLog", {
  request: msgpack<PgAdoptRequest>(),
  reply: msgpack<Record<string, never>>(),
});

const ImageExtent = struct("ImageExtent", { offset: u32, length: u32 });
const SpoiledBlock = struct("SpoiledBlock", { offset: u32, sum: u32 });
/** What blocks the member's old copy of an object has: the reply's data are their digests. */
export const OsdBlockDigests = struct("OsdBlockDigests", {
  pg: u32,
  interval: u32,
  attempt: u32,
  object: ascii,
});
export type OsdBlockDigests = Infer<typeof OsdBlockDigests>;
/** False: there is no copy, or not a whole one. */
export const OsdBlockDigestsReply = struct("OsdBlockDigestsReply", { exists: bool });
export type OsdBlockDigestsReply = Infer<typeof OsdBlockDigestsReply>;
export const BlockDigests = defineCall(156, "BlockDigests", {
  request: OsdBlockDigests,
  reply: OsdBlockDigestsReply,
});

/**
 * A whole object; the data of its extents follow one another in the frame. Answered when synced.
 * With `patch` the data are only those of `carried`; the member has the other blocks (osd/
 * image-patch.ts).
 */
export const OsdPush = struct("OsdPush", {
  pg: u32,
  interval: u32,
  attempt: u32,
  /**
   * The member must have every log entry up to this one, or else an older one could be applied to
   * the image.
   */
  asOf: u53,
  exists: bool,
  size: u32,
  versionInterval: u32,
  versionSeq: u53,
  mtimeNs: i64,
  truncateSeq: u32,
  snapSeq: u32,
  extents: list(ImageExtent, 2048),
  /**
   * Blocks whose right bytes nobody has: the data has filler for them, the copy records these
   * checksums.
   */
  spoiled: list(SpoiledBlock, 2048),
  patch: bool,
  carried: list(ImageExtent, 2048),
  object: ascii,
});
export type OsdPush = Infer<typeof OsdPush>;
export const PushObject = defineCall(136, "PushObject", {
  request: OsdPush,
  reply: OsdFillLevel,
  sums: "request",
});
/** The primary asks a member that has it for a whole object. */
export const OsdPull = struct("OsdPull", { pg: u32, interval: u32, object: ascii });
export const PullObject = defineCall(138, "PullObject", {
  request: OsdPull,
  reply: OsdPush,
  sums: "reply",
});

/**
 * One member asks another for its bytes of an object, to repair its own copy: whole blocks from
 * `offset`, verified. Corrupt when one of them is damaged there, too.
 */
export const OsdCopyRead = struct("OsdCopyRead", {
  pg: u32,
  interval: u32,
  offset: u32,
  length: u32,
  object: ascii,
});
export type OsdCopyRead = Infer<typeof OsdCopyRead>;
export const OsdCopyReply = struct("OsdCopyReply", {
  exists: bool,
  versionInterval: u32,
  versionSeq: u53,
  dataOffset: u32,
});
export type OsdCopyReply = Infer<typeof OsdCopyReply>;
export const CopyRead = defineCall(160, "CopyRead", {
  request: OsdCopyRead,
  reply: OsdCopyReply,
  sums: "reply",
});

/** A copy on this very OSD, whoever is primary: read and verified for `dss pg locate --verify`. */
export const OsdDigest = struct("OsdDigest", { pg: u32, object: ascii });
export const OsdDigestReply = struct("OsdDigestReply", {
  exists: bool,
  size: u32,
  versionInterval: u32,
  versionSeq: u53,
  /**
   * crc32 over (block index, block crc32) of every block that is not a hole; the bytes were read
   * and verified.
   */
  digest: u32,
  allocated: u32,
});
export type OsdDigestReply = Infer<typeof OsdDigestReply>;
export const DigestObject = defineCall(140, "DigestObject", {
  request: OsdDigest,
  reply: OsdDigestReply,
});
export const OsdList = struct("OsdList", { pg: u32, after: ascii, limit: u32 });
const ListedObject = struct("ListedObject", {
  object: ascii,
  size: u32,
  versionInterval: u32,
  versionSeq: u53,
  snapSeq: u32,
  allocated: u32,
});
export const OsdListReply = struct("OsdListReply", { objects: list(ListedObject, 10_000) });
/**
 * The same as the primary has them in this interval; NotActive and NotPrimary as for a read.
 */
export const OsdActiveList = struct("OsdActiveList", {
  pg: u32,
  interval: u32,
  minEpoch: u32,
  after: ascii,
  limit: u32,
});
export const ListActive = defineCall(172, "ListActive", {
  request: OsdActiveList,
  reply: OsdListReply,
});
/**
 * What the objects of a volume take, of one copy: as the primary has them. `prefix` is that of the
 * volume's record.
 */
export const OsdMeasure = struct("OsdMeasure", { pg: u32, interval: u32, prefix: ascii });
export const OsdMeasured = struct("OsdMeasured", { objects: u53, bytes: u53, allocated: u53 });
export type OsdMeasured = Infer<typeof OsdMeasured>;
export const MeasureObjects = defineCall(174, "MeasureObjects", {
  request: OsdMeasure,
  reply: OsdMeasured,
});
export const ListObjects = defineCall(142, "ListObjects", {
  request: OsdList,
  reply: OsdListReply,
});

/**
 * Permission to serve reads (core/leases.ts): for every PG that the asking primary shares with this
 * OSD.
 */
export interface LeaseRequest {
  pgs: { pg: number; interval: number }[];
}
export interface LeaseReply {
  granted: number[];
}
export const GrantLease = defineCall(146, "GrantLease", {
  request: msgpack<LeaseRequest>(),
  reply: msgpack<LeaseReply>(),
});
/**
 * Answered once the receiver has entered this interval of the PG, or has nothing of it: it serves
 * no more reads on what it was granted in earlier ones.
 */
export const OsdRelease = struct("OsdRelease", { pg: u32, interval: u32 });
export const ReleaseLease = defineCall(154, "ReleaseLease", { request: OsdRelease, reply: Empty });
/** Heartbeat between OSDs that share PGs. */
export const PingOsd = defineCall(148, "PingOsd", { request: Empty, reply: OsdFillLevel });

/**
 * A step of backfill: objects up to `cursor` (absent: all) are as the primary's after entry `asOf`,
 * but for those in `missing`, which follow. Refused unless the member's log ends at `asOf`;
 * answered when durable.
 */
export interface PgBackfillRequest {
  pg: number;
  interval: number;
  attempt: number;
  asOf: number;
  missing: string[];
  cursor?: string;
}
export const PgBackfill = defineCall(150, "PgBackfill", {
  request: msgpack<PgBackfillRequest>(),
  reply: msgpack<Record<string, never>>(),
});

/** What a PG does on one OSD: osd/core/peering.ts has the same states with their transitions. */
export type PgState = "stray" | "replica" | "waiting" | "peering" | "active" | "incomplete";
/** An OSD that an active primary is bringing up to date. */
export interface LearnerStatus {
  osd: number;
  phase: "asking" | "adopting" | "recovering" | "backfilling" | "joining";
  /** Objects and bytes known to be missing there. */
  missing: number;
  missingBytes: number;
  /** Objects compared so far, of about `objects` of the PG; 0 unless backfilling. */
  compared: number;
  /** Everything is compared, because the logs do not tell what differs. */
  backfill: boolean;
  /** Its disk is too full to take copies: recovery waits. */
  tooFull: boolean;
  /** What is still to be copied, estimated where it is not known yet. */
  objectsLeft: number;
  bytesLeft: number;
}
/** Scrub: what a member's index says of the next objects of a PG, in name order. */
export interface ScrubRow {
  object: string;
  size: number;
  version: WireVersion;
  truncateSeq: number;
  snapSeq: number;
  digest: number;
}
export interface ScrubListRequest {
  pg: number;
  interval: number;
  after: string;
  limit: number;
}
export interface ScrubListReply {
  rows: ScrubRow[];
  complete: boolean;
}
export const ScrubList = defineCall(162, "ScrubList", {
  request: msgpack<ScrubListRequest>(),
  reply: msgpack<ScrubListReply>(),
});
/**
 * Scrub: what a member has of one object. `deep`: it first reads and verifies all of it, and
 * repairs what is damaged.
 */
export interface ScrubObjectRequest {
  pg: number;
  interval: number;
  object: string;
  deep: boolean;
}
export interface ScrubObjectReply {
  /** Absent: it does not have the object. */
  row?: ScrubRow;
  /** Bytes read and verified. */
  bytes: number;
  /** Damaged blocks found, and how many of them are damaged still. */
  found: number;
  left: number;
}
export const ScrubObject = defineCall(164, "ScrubObject", {
  request: msgpack<ScrubObjectRequest>(),
  reply: msgpack<ScrubObjectReply>(),
});
/**
 * Deep scrub begins: the member verifies every entry of its index of the PG. Entries that memory
 * still knows are written anew; when something is gone the member leaves the set and is filled.
 */
export const ScrubIndex = defineCall(170, "ScrubIndex", {
  request: msgpack<{ pg: number; interval: number }>(),
  reply: msgpack<{ entries: number; damaged: number; lost: boolean }>(),
});

/** Scrub of a PG has ended: its stamps are kept by every member, who may be primary next. */
export interface ScrubStampsMessage {
  lightMs: number;
  deepMs: number;
  found: number;
  left: number;
}
export interface ScrubEndedRequest {
  pg: number;
  interval: number;
  stamps: ScrubStampsMessage;
}
export const ScrubEnded = defineCall(166, "ScrubEnded", {
  request: msgpack<ScrubEndedRequest>(),
  reply: msgpack<Record<string, never>>(),
});
/** A person asks the PG's primary for a scrub. `sinceMs`: it is done once a stamp is as new. */
export interface StartScrubRequest {
  pg: number;
  deep: boolean;
}
export const StartScrub = defineCall(168, "StartScrub", {
  request: msgpack<StartScrubRequest>(),
  reply: msgpack<{ sinceMs: number }>(),
});
/** What scrub does about a PG on its primary. */
export interface ScrubStatus extends ScrubStampsMessage {
  state: "idle" | "waiting" | "running";
  deep: boolean;
  /** Objects compared by the scrub under way, of about as many as the PG has. */
  done: number;
}

/** An object with damaged blocks that could not be repaired on this OSD. */
export interface DamagedObject {
  object: string;
  blocks: number;
  /** Members that may have the right bytes and did not answer; none: every copy is damaged. */
  waitsFor: number[];
}
export interface OsdStatus {
  id: number;
  uuid: string;
  version: string;
  pid: number;
  epoch: number;
  startedMs: number;
  used: number;
  total: number;
  objects: number;
  /** OSDs that have no room for writes that came here. */
  refusing: number[];
  /** `reason` tells people why a PG is not active. */
  pgs: {
    pg: number;
    state: PgState;
    interval: number;
    objects: number;
    bytes: number;
    reason: string;
    learners: LearnerStatus[];
    /** Objects of this OSD's copy that are damaged; the first of them by name. */
    damaged: number;
    damagedObjects: DamagedObject[];
    /** Of primaries only. */
    scrub?: ScrubStatus;
  }[];
  /** What this OSD copies to others, per second, over the last seconds. */
  recovery: { bytesPerSecond: number; objectsPerSecond: number };
  /** Monotonic counts: read, write and recovery operations and bytes, checksum errors… */
  counters: Record<string, number>;
  /** Milliseconds since damage was met last, repaired or not; absent: longer ago than is told. */
  damageSeenMs?: number;
}
export const GetOsdStatus = defineCall(144, "GetOsdStatus", {
  request: msgpack<Record<string, never>>(),
  reply: msgpack<OsdStatus>(),
});
