/**
 * Messages between clients and the MDS leader (design §6). Bodies are msgpack (control messages);
 * numbers are u53, times are nanoseconds since 1970 as bigint, names are Buffers (bytes, 1 … 255).
 *
 * A client opens a session, then sends requests with rising ids. An answer is *unsafe* until the
 * leader pushes a `Safe` with at least its `journal` number: until then the client keeps the
 * request and replays it, in order, to a new leader (which answers from memory what it already
 * has). `wait: "safe"` delays the answer itself.
 */
import type { ClientId, Epoch, Ino, Interval, OsdId, PgId, PoolId } from "../cluster/base/ids.js";
import type { ErrorBody } from "../cluster/wire/error-body.js";
import { defineCall, definePost, msgpack } from "../cluster/wire/registry.js";
import type { FsckStatus } from "./proto-fsck.js";
import { withListings } from "./proto-listing.js";
import type {
  DirectoryName,
  DirectoryTotals,
  DirectoryUsage,
  QuotaLimits,
  QuotaReport,
} from "./proto-totals.js";

export const ROOT_INO: Ino = 1;
export const NAME_MAX = 255;
export const SYMLINK_MAX = 4095;
export const XATTR_NAME_MAX = 255;
export const XATTR_VALUE_MAX = 65_536;
/** Extended attributes that are POSIX access control lists (mds/core/acl.ts). */
export const ACL_ACCESS = "system.posix_acl_access";
export const ACL_DEFAULT = "system.posix_acl_default";
/** All extended attributes of one inode together. */
export const XATTR_TOTAL_MAX = 131_072;
export const LINK_MAX = 65_000;
/** Largest file, in bytes: 8 EiB does not fit a u53; 4 PiB do. */
export const FILE_SIZE_MAX = 2 ** 52;

export interface Layout {
  pool: PoolId;
  objectSize: number;
  stripeUnit: number;
  stripeCount: number;
}

export interface Inode {
  ino: Ino;
  /** File type and permission bits. */
  mode: number;
  nlink: number;
  uid: number;
  gid: number;
  rdev: number;
  /** Bytes; for a directory the number of its entries. */
  size: number;
  atimeNs: bigint;
  mtimeNs: bigint;
  ctimeNs: bigint;
  btimeNs: bigint;
  /** Rises with every truncation (design §5 Truncation); both go with every object operation. */
  truncateSeq: number;
  truncateSize: number;
  /** Absent for anything but regular files. */
  layout?: Layout;
  /** Regular files: bytes of the blocks that hold data (`st_blocks`). */
  allocated: number;
  /** `allocated` may be wrong: its last writer died or failed. The leader counts. */
  recount: boolean;
  /** Symlinks only. */
  target?: Buffer;
  /** How many extended attributes there are, so that a client need not ask. */
  xattrCount: number;
}

/**
 * What a session may cache of one inode. shared: attributes, data for reading, and of a directory
 * its names (also absent ones). sole: nobody else holds anything of it or has it open, so the
 * holder may change attributes, and names in a directory, itself, and tell the leader afterwards
 * (`MdsCall.replay`). Given unasked to mounts that change something; not journaled, because like
 * shared it is told to a new leader before anybody else is served. exclusive (files only): also
 * buffered writes; the holder is the authority on size and mtime.
 */
export type CapabilityMode = "none" | "shared" | "sole" | "exclusive";
const CAPABILITY_RANK: Record<CapabilityMode, number> = {
  none: 0,
  shared: 1,
  sole: 2,
  exclusive: 3,
};
export function covers(held: CapabilityMode, wanted: CapabilityMode): boolean {
  return CAPABILITY_RANK[held] >= CAPABILITY_RANK[wanted];
}
/** What a new file's exclusive grant lets its maker write: one object. */
export const NEW_FILE_GRANT = 4 * 2 ** 20;

/**
 * Every answer brings the capabilities that it grants; a grant never lowers what the session holds.
 */
export interface Grant {
  ino: Ino;
  mode: CapabilityMode;
  /** Rises with each grant or recall of this inode: late messages are recognised by it. */
  seq: number;
  /** exclusive: writes at or beyond this offset need an `extend` first. */
  maxSize: number;
  /** Object operations under this grant carry at least this epoch, so that fences are seen. */
  minEpoch: Epoch;
}

export type SessionType = "mount" | "nbd" | "cli" | "library";

export interface Held {
  ino: Ino;
  mode: CapabilityMode;
  seq: number;
}
/** Part of `SessionOpen.held`, where that is too much for one message. */
export interface Claim {
  held: Held[];
}
export interface SessionOpen {
  type: SessionType;
  /**
   * `host:type:path`: a new session with the same instance fences its predecessor at once. Empty:
   * no predecessor.
   */
  instance: string;
  /** For people: host name, process id, mount path or exports. */
  host: string;
  pid: number;
  detail: string;
  /**
   * 0 for a new session; else the session's id, to go on after a lost connection or with a new
   * leader.
   */
  client: ClientId;
  /** Going on: what the session holds. */
  held: Held[];
  /** How many more were said before, by `MdsClaim` on the same connection. */
  claimed?: number;
  /** Going on: unlinked files that it has open. */
  orphans: Ino[];
  /** Going on: files that it has open without holding a capability (released with `open`). */
  open?: Ino[];
  /** Going on: the locks that its programs hold; a new leader knows of none. */
  locks?: LockClaim[];
  /** The oldest request id whose answer is missing or unsafe. */
  floor: number;
  /**
   * Which worker of its mount asks, from 0 (absent). A higher one than the session has known takes
   * it over: what earlier workers do is void from then on (mds/takeover.ts).
   */
  generation?: number;
  /** It has taken the session over and not yet ended that with `MdsTakenOver`. */
  restoring?: boolean;
}
export interface SessionOpened {
  client: ClientId;
  /** The id of its object operations: the session's own, or that of the worker that took over. */
  worker: ClientId;
  /** Requests below this number are over: nobody asks for their outcome again. */
  floor: number;
  term: number;
  leaseMs: number;
  /** Everything up to here is safe. */
  safe: number;
  /**
   * Requests of this client at or above its floor that the leader has executed, so they need no
   * replay.
   */
  completed: number[];
  /** An operation is one of a running cluster; clients compare it with what they know. */
  clusterId: string;
  epoch: Epoch;
}

/**
 * Owner, group and times of new or changed inodes come from the client, so that a replay does the
 * same again.
 */
export interface Actor {
  uid: number;
  gid: number;
  timeNs: bigint;
}

/** What the exclusive holder of a file says of it. */
export interface LastWord {
  size: number;
  mtimeNs: bigint;
  allocated: number;
  recount: boolean;
}
/** What the maker of a file has done to it before it told of it, written (and durable) or set. */
export interface MadeAttributes extends LastWord {
  mode: number;
  uid: number;
  gid: number;
  atimeNs: bigint;
  ctimeNs: bigint;
}
/** Files in one `accessed`. */
export const ACCESSED_MAX = 1_024;

export type Request =
  | { op: "lookup"; parent: Ino; name: Buffer }
  | { op: "getattr"; ino: Ino }
  /** Raises what the session holds; `exclusive` is journaled before it is answered. */
  | { op: "acquire"; ino: Ino; mode: "shared" | "exclusive" }
  /**
   * Attributes come along when `plus`; entries follow `cookie` (0: the start) in cookie order. "."
   * and ".." are not listed. `alone`: the mount is about to change the directory, and asks for it
   * and what is in it under sole capabilities, as far as nobody else has anything of them.
   */
  | { op: "readdir"; ino: Ino; cookie: number; limit: number; plus: boolean; alone?: true }
  /**
   * Any kind of inode, as `mode` says. `ino` is from the session's range. A regular file comes with
   * an exclusive grant.
   * `exclusive: false` on an existing regular file answers with that file (open with O_CREAT). */
  | {
      op: "create";
      parent: Ino;
      name: Buffer;
      ino: Ino;
      mode: number;
      rdev: number;
      target?: Buffer;
      /** Permission bits before the umask: where a default access control list starts from. */
      unmasked?: number;
      exclusive: boolean;
      /** The layout that the maker has begun to use (from `inoRange`); a replay carries it. */
      layout?: Layout;
      /** Regular files only. */
      attributes?: MadeAttributes;
      actor: Actor;
    }
  /**
   * A regular file without a name (O_TMPFILE), open in this session: `link` gives it one,
   * `orphanRelease` ends it. Group and access control list come from `parent`.
   */
  | { op: "tmpfile"; parent: Ino; ino: Ino; mode: number; unmasked?: number; actor: Actor }
  | { op: "link"; ino: Ino; parent: Ino; name: Buffer; actor: Actor }
  /**
   * `stillOpen`: this session keeps the file if its last name goes (tell `orphanRelease` at the
   * last close).
   */
  | { op: "unlink"; parent: Ino; name: Buffer; stillOpen: boolean; actor: Actor }
  | { op: "rmdir"; parent: Ino; name: Buffer; actor: Actor }
  | {
      op: "rename";
      parent: Ino;
      name: Buffer;
      newParent: Ino;
      newName: Buffer;
      noReplace: boolean;
      exchange: boolean;
      /** As for unlink, about the replaced file. */
      stillOpen: boolean;
      actor: Actor;
    }
  /**
   * Absent members stay. `size` truncates or extends (needs the exclusive grant, which it
   * acquires); `clearSuid` as write(2) does.
   */
  | {
      op: "setattr";
      ino: Ino;
      mode?: number;
      uid?: number;
      gid?: number;
      size?: number;
      atimeNs?: bigint;
      mtimeNs?: bigint;
      clearSuid?: boolean;
      actor: Actor;
    }
  /**
   * The exclusive holder tells size and mtime of data that is durable (on close, fsync, recall, now
   * and then).
   */
  | ({ op: "publish"; ino: Ino } & LastWord)
  /** Reads since: never awaited by anybody, and others' cached attributes stay as they are. */
  | { op: "accessed"; reads: { ino: Ino; atimeNs: bigint }[] }
  /** Raises maxSize to at least `size`; the leader is generous. Journaled before it is answered. */
  | { op: "extend"; ino: Ino; size: number }
  | { op: "orphanRelease"; ino: Ino }
  | { op: "getxattrs"; ino: Ino }
  | {
      op: "setxattr";
      ino: Ino;
      name: Buffer;
      value: Buffer;
      create: boolean;
      replace: boolean;
      /** An access control list by someone who may not set the set-group-id bit: it goes. */
      clearSgid?: boolean;
      actor: Actor;
    }
  | { op: "removexattr"; ino: Ino; name: Buffer; actor: Actor }
  /** Of a directory, recursively; answered when everything that it counts is safe. */
  | { op: "totals"; ino: Ino }
  /** A limit left out stays, 0 is none. What is above a new limit already may stay and shrink. */
  | { op: "quotaSet"; ino: Ino; maxBytes?: number; maxInodes?: number }
  | { op: "statfs" }
  /** A fresh range of inode numbers for `create`, journaled before it is answered. */
  | { op: "inoRange" }
  /** `size` in bytes; a layout member left out is the pool's. Exists when the name is taken. */
  | {
      op: "volumeCreate";
      name: string;
      size: number;
      pool: string;
      objectSize?: number;
      stripeUnit?: number;
      stripeCount?: number;
      actor: Actor;
    }
  | { op: "volumeList" }
  | { op: "volumeInfo"; name: string }
  /** Refused (Busy) while a session has it open. Its objects go to the purge queue. */
  | { op: "volumeRemove"; name: string }
  /**
   * Growth is at once, also of a volume in use. Shrinking needs `shrink` and nobody who has it
   * open; it is under way (`shrinkTo`) until what is beyond the new end is gone, and then the size
   * changes.
   */
  | { op: "volumeResize"; name: string; size: number; shrink: boolean }
  /** Also of a volume in use: whoever has it open goes on. */
  | { op: "volumeRename"; name: string; newName: string }
  /** Of each export; 0: no limit, a member left out stays as it is. `bandwidth`: bytes a second. */
  | { op: "volumeLimit"; name: string; iops?: number; bandwidth?: number }
  /**
   * Registers this session as a user; `write` takes the exclusive lock: the second writer gets Busy
   * with the owner's name. `force`: that owner is fenced and evicted first. `holder` names a
   * line of succession (an attachment whose servers follow each other); with `continues` the lock
   * is given only if nobody outside that line has had it since: StaleHandle otherwise.
   */
  | {
      op: "volumeOpen";
      name: string;
      write: boolean;
      force?: boolean;
      holder?: string;
      continues?: boolean;
    }
  | { op: "volumeClose"; id: number }
  /** What the volumes in use here did lately; kept in the leader's memory until the next report. */
  | { op: "volumeReport"; volumes: VolumeActivity[] }
  | { op: "volumeTop" }
  /**
   * Whoever has the volume open for writing stops first; the answer has the volume with the new
   * snapshot last. Exists when the name is taken. `origin`: of one that was imported.
   */
  | { op: "volumeSnapCreate"; name: string; snapshot: string; origin?: string; actor: Actor }
  /** Refused (Busy) while it is protected or open. What only it needs goes to the purge queue. */
  | { op: "volumeSnapRemove"; name: string; snapshot: string }
  | { op: "volumeSnapProtect"; name: string; snapshot: string; isProtected: boolean }
  /**
   * The volume becomes what it was: in the background, and nobody can open it before that is done.
   * Refused (Busy) while it is open.
   */
  | { op: "volumeRollback"; name: string; snapshot: string }
  /**
   * By the session that has the volume open for writing: its record, with a grant (`contextKey`) to
   * change objects under the snapshots that it names.
   */
  | { op: "volumeContext"; id: number }
  /** A volume that begins as what `name` was at the snapshot. Exists when the name is taken. */
  | { op: "volumeClone"; name: string; snapshot: string; newName: string; actor: Actor }
  /** The volume gets what it has of its parent as its own, in the background, also while in use. */
  | { op: "volumeFlatten"; name: string }
  /**
   * Takes a lock on a file. `waiter` 0: answered with `conflict` when somebody is in the way; else
   * it waits under that number (the session's own, above 0), and `MdsLockOutcome` tells the end of
   * it. Asked again under the same number it goes on waiting.
   */
  | ({ op: "lock"; waiter: number } & LockClaim)
  | { op: "unlock"; kind: LockKind; ino: Ino; owner: string; start: bigint; end: bigint }
  /** What stands in the way of such a lock (F_GETLK). */
  | ({ op: "lockTest" } & LockClaim)
  /** Ends a wait; `unknown`: there is none (any more), its outcome has been told. */
  | { op: "lockCancel"; waiter: number }
  /** Waits until everything this session did before is safe. */
  | { op: "sync" };

export type Operation = Request["op"];

/** flock(2) or fcntl(2): the two know nothing of each other. */
export type LockKind = "flock" | "posix";
export type LockMode = "shared" | "exclusive";
/** Last byte that a lock can cover: to the end of the file, however long it becomes. */
export const LOCK_END = 2n ** 63n - 1n;
/** A lock that one of a session's programs holds or wants. */
export interface LockClaim {
  kind: LockKind;
  ino: Ino;
  /** The session's name for who holds it: up to 16 hex digits. */
  owner: string;
  mode: LockMode;
  /** First and last byte; flock covers all. */
  start: bigint;
  end: bigint;
  /** For people and F_GETLK. */
  pid: number;
}

export interface DirectoryEntry {
  name: Buffer;
  ino: Ino;
  /** S_IFMT bits. */
  type: number;
  /**
   * Continue after this entry from here; grows along the listing, stable while the directory
   * changes.
   */
  cookie: number;
  /** With `plus`. */
  inode?: Inode;
}

export interface Volume {
  id: number;
  name: string;
  /** Bytes. */
  size: number;
  layout: Layout;
  createdNs: bigint;
  /** What its objects are named by (cluster/base/object-name.ts). */
  objectPrefix: string;
  /** What it was cloned from; null: nothing, or it has become independent. */
  parent: VolumeParent | null;
  /** The parent, its parent and so on. */
  ancestors: VolumeAncestor[];
  /** volumeInfo, volumeList: the clones of its snapshots. */
  children: { name: string; snap: number }[];
  /** It is being made independent of its parent. */
  isFlattening: boolean;
  features: string[];
  /** The newest snapshot id there has been. */
  snapSeq: number;
  /** Ascending by id. */
  snapshots: VolumeSnapshot[];
  /** It is being returned to the snapshot with this id; 0: no. */
  rollbackTo: number;
  /** Opened as NAME@SNAPSHOT: the id, and `size` is what it was; 0: the volume itself. */
  snapshot: number;
  /** Rises with every change of the record. */
  revision: number;
  /** It becomes this small when what is beyond is gone; 0: no shrinking is under way. */
  shrinkTo: number;
  /** Operations and bytes a second of each export; 0: no limit. */
  iopsLimit: number;
  bandwidthLimit: number;
  /** Who has the exclusive lock: a description for people, or empty. */
  owner: string;
  ownerClient: ClientId;
  /** When it took the lock; 0n without an owner. */
  ownerSinceNs: bigint;
  /**
   * Who has had the exclusive lock last, whether or not it has it still. Whatever else changes
   * bytes of a volume that nobody has open for writing (a rollback) must set another one: a line of
   * servers that goes on would not know.
   */
  writer: VolumeWriter;
}

export interface VolumeParent {
  /** Id. */
  volume: number;
  /** Snapshot id. */
  snap: number;
  /** Bytes of the volume that can come from the parent; less after it was shrunk. */
  overlap: number;
}
export interface VolumeAncestor {
  name: string;
  snapshot: string;
  objectPrefix: string;
  /** Snapshot id. */
  snap: number;
  /** Of the volume at the snapshot. */
  size: number;
}

export interface VolumeWriter {
  /** 0: nobody yet. */
  client: ClientId;
  sinceNs: bigint;
  /** Its line of succession (`volumeOpen`); may be empty. */
  holder: string;
}

/** Latencies in microseconds. */
export interface VolumeLatencies {
  p50Us: number;
  p99Us: number;
  maxUs: number;
}
/** What one server did for a volume in `spanMs`. */
export interface VolumeActivity {
  volume: number;
  spanMs: number;
  reads: number;
  writes: number;
  others: number;
  readBytes: number;
  writeBytes: number;
  read: VolumeLatencies;
  write: VolumeLatencies;
  other: VolumeLatencies;
  failures: number;
  /** Milliseconds that connections were held back by the volume's limits. */
  heldMs: number;
}
export interface VolumeTop {
  name: string;
  /** The server, for people. */
  server: string;
  client: ClientId;
  activity: VolumeActivity;
}

/** Deletes of a volume in the background. `done` of `total` are objects or placement groups. */
export interface VolumePurge {
  volume: number;
  name: string;
  /**
   * clones: what removed snapshots have left. rollback: the volume is returned to a snapshot.
   * flatten: it gets what it has of its parent as its own.
   */
  what: "objects" | "clones" | "rollback" | "flatten";
  /** The volume stays, smaller. */
  shrinking: boolean;
  done: number;
  total: number;
}

export interface VolumeSnapshot {
  id: number;
  name: string;
  /** Of the volume at that time. */
  size: number;
  createdNs: bigint;
  isProtected: boolean;
  /** Of one that was imported: what it is a copy of, on whatever cluster. "" of all others. */
  origin: string;
}
/** Capabilities below this number are contexts of volumes (mds/core/snapshot.ts). */
const CONTEXTS = -(2 ** 40);
export function contextKey(volume: number): number {
  return CONTEXTS - volume;
}
export function isContextKey(key: number): boolean {
  return key <= CONTEXTS;
}
/** What `volumeClose` calls an open volume, or an open snapshot of it. */
export function volumeUse({ id, snapshot }: Pick<Volume, "id" | "snapshot">): number {
  return id + snapshot * 2 ** 32;
}

export interface FileSystemUsage {
  /** Bytes, as one copy of the data counts. */
  total: number;
  available: number;
  inodes: number;
}

/** Which members are present follows from the operation. */
export interface Answer {
  inode?: Inode;
  entries?: DirectoryEntry[];
  /** readdir: nothing follows the entries. */
  end?: boolean;
  /**
   * The parent directory after the change or look-up (its times and link count are newer than a
   * cached one's).
   */
  parent?: Inode;
  newParent?: Inode;
  /**
   * unlink, rename: the inode whose name went, with its new link count (0: it lives while open).
   */
  removed?: Inode;
  /** rename with exchange: the other inode. */
  other?: Inode;
  xattrs?: { name: Buffer; value: Buffer }[];
  usage?: FileSystemUsage;
  /** totals, quotaSet. */
  totals?: DirectoryTotals;
  /** `layout`: of new files, so that their maker need not ask; absent while there is no pool. */
  inoRange?: { first: Ino; count: number; layout?: Layout };
  volume?: Volume;
  volumes?: Volume[];
  /** lock, lockTest (`conflict` with its `holder`, or `granted`), lockCancel. */
  lock?: {
    outcome: "granted" | "queued" | "conflict" | "deadlock" | "full" | "cancelled" | "unknown";
    holder?: { client: ClientId; mode: LockMode; start: bigint; end: bigint; pid: number };
  };
  /** volumeList: removed and shrinking volumes whose space is not all free yet. */
  volumePurges?: VolumePurge[];
  volumeTop?: VolumeTop[];
  /**
   * volumeOpen: object operations under the lock carry at least this epoch, so that fences are
   * seen.
   */
  minEpoch?: Epoch;
}

export interface MdsCall {
  id: number;
  /**
   * The client's oldest request whose answer is missing or unsafe: memory of earlier ones may be
   * dropped.
   */
  floor: number;
  /** "safe": answer only when it is safe. */
  wait: "unsafe" | "safe";
  /**
   * Its caller has had an answer, by an earlier leader or by the client itself under a sole
   * capability: executed in the order of the ids and before anything that comes later, unless the
   * journal has it.
   */
  replay: boolean;
  request: Request;
}
export interface MdsReply {
  id: number;
  /** Number of the journal batch that will hold the change; 0 when nothing changed. */
  journal: number;
  /**
   * NotFound of a look-up brings grants too (a cached absence). Other failures are error replies of
   * the messenger.
   */
  notFound: boolean;
  answer: Answer;
  grants: Grant[];
}

/** Several requests in one frame, in the order of their ids. Those that are replays are answered
 * with their grants alone: the client knows the rest. */
export interface MdsBatch {
  floor: number;
  calls: { id: number; replay: boolean; request: Request }[];
}
/** When all of them have been executed. */
export interface MdsBatchReply {
  replies: (MdsReply | MdsRefusal)[];
}
export interface MdsRefusal {
  id: number;
  error: ErrorBody;
}

/** Leader to client: everything up to this journal number is in ZooKeeper. */
export interface Safe {
  journal: number;
}
/** Leader to client: lower what you hold of `ino` to `mode`; answered by `Released` when done. */
export interface Recall {
  ino: Ino;
  mode: CapabilityMode;
  seq: number;
}
/**
 * The answer to `Recall`, and an unasked release. An exclusive holder has made its data durable
 * first.
 */
export interface Released {
  ino: Ino;
  mode: CapabilityMode;
  seq: number;
  /** The authority's last word, when it was exclusive. */
  last?: LastWord;
  /**
   * The session still has the file open: it becomes an orphan of this session if its last name
   * goes.
   */
  open: boolean;
}

/** Leader to client: the end of a lock's wait. */
export interface LockOutcomeMessage {
  waiter: number;
  outcome: "granted" | "deadlock";
}

/**
 * A worker that took a session over has sent again whatever its predecessor had not heard to be
 * safe: the session's capabilities end. How far these files were written is asked of their objects.
 */
export interface TakeoverEnd {
  client: ClientId;
  inos: Ino[];
}
export interface TakenOver {
  /** What was found of the files that the predecessor had a write grant of. */
  sizes: { ino: Ino; size: number }[];
}

/** Client to leader, every third of the lease. Also how a leader learns that a session lives. */
export interface KeepAlive {
  client: ClientId;
  floor: number;
}
export interface KeptAlive {
  term: number;
  safe: number;
  leaseMs: number;
  /**
   * The store has lately shown that the term is still this leader's. Without that the session is
   * kept here, but the lease is not extended: a successor may have ended it.
   */
  confirmed: boolean;
}

/** State for `dss status` and `dss mds ls`; needs no session. */
export interface MdsStatus {
  leader: number;
  term: number;
  journal: number;
  safe: number;
  sessions: {
    id: ClientId;
    type: SessionType;
    host: string;
    pid: number;
    detail: string;
    instance: string;
    capabilities: number;
  }[];
  inodes: number;
  volumes: number;
  /** `volumes`: those of the entries that are about volumes. */
  purgeQueue: { entries: number; bytes: number; volumes: VolumePurge[] };
  warnings: {
    code: string;
    severity: "HEALTH_WARN" | "HEALTH_ERR";
    summary: string;
    detail: string[];
  }[];
}

/** Operations on the cluster map by people and by OSDs; the leader's coordinator executes them. */
export type AdminRequest =
  | { op: "status" }
  | { op: "osdOut"; id: number }
  | { op: "osdIn"; id: number }
  | { op: "osdReweight"; id: number; weight: number }
  | { op: "osdRemove"; id: number }
  | {
      op: "poolCreate";
      pool: {
        name: string;
        replicas: number;
        minimum: number;
        pgCount: number;
        objectSize: number;
        stripeUnit: number;
        stripeCount: number;
      };
    }
  | { op: "fence"; client: ClientId }
  /** Begins a check; while one with the same settings runs, its state is answered. Else Busy. */
  | { op: "fsck"; repair: boolean; objects: boolean }
  /** NotFound: another leader began it, or another run has begun since. */
  | { op: "fsckStatus"; run: string; after: number }
  /** `dss du`: a directory, and those in it with `children`. */
  | ({ op: "usage"; children: boolean } & DirectoryName)
  | ({ op: "quotaSet" } & DirectoryName & Partial<QuotaLimits>)
  | { op: "quotaList" }
  | { op: "flag"; flag: string; isSet: boolean }
  | { op: "workProfile"; profile?: string }
  /**
   * By the PG's primary, about its in-sync set (see the coordinator's events of the same names).
   */
  | { op: "removeMember"; pg: PgId; interval: Interval; requester: OsdId; member: OsdId }
  | {
      op: "addMember";
      pg: PgId;
      interval: Interval;
      requester: OsdId;
      member: OsdId;
      incarnation: string;
    }
  /**
   * By an OSD that cannot reach another one. It refuses connections: the leader looks for itself;
   * or it is silent: the leader counts who says so.
   */
  | { op: "osdUnreachable"; id: OsdId; incarnation: string; reporter: OsdId; silent: boolean }
  /** By an OSD that is shown as down and hears most of its peers. */
  | { op: "osdAlive"; id: OsdId; incarnation: string };
export interface AdminReply {
  epoch: Epoch;
  status?: MdsStatus;
  fsck?: FsckStatus;
  usage?: DirectoryUsage;
  /** quotaSet. */
  totals?: DirectoryTotals;
  quotas?: QuotaReport[];
}

/**
 * The session ends in good order: its capabilities, locks and orphans are dropped without a fence.
 */
export interface SessionClose {
  client: ClientId;
}

// Calls of a link belong to the session that was opened on it last. Daemons that do not lead fail
// all of them with NotLeader.
export const OpenMdsSession = defineCall(300, "OpenMdsSession", {
  request: msgpack<SessionOpen>(),
  reply: msgpack<SessionOpened>(),
});
export const MdsClaim = defineCall(334, "MdsClaim", {
  request: msgpack<Claim>(),
  reply: msgpack<Record<string, never>>(),
});
export const CloseMdsSession = defineCall(302, "CloseMdsSession", {
  request: msgpack<SessionClose>(),
  reply: msgpack<Record<string, never>>(),
});
/** NoSession: the session has ended (evicted or unknown); nothing it held counts any more. */
export const MdsOperation = defineCall(304, "MdsOperation", {
  request: msgpack<MdsCall>(),
  reply: withListings(msgpack<MdsReply>()),
});
export const MdsOperations = defineCall(320, "MdsOperations", {
  request: msgpack<MdsBatch>(),
  reply: msgpack<MdsBatchReply>(),
});
export const MdsTakenOver = defineCall(332, "MdsTakenOver", {
  request: msgpack<TakeoverEnd>(),
  reply: msgpack<TakenOver>(),
});
export const MdsKeepAlive = defineCall(306, "MdsKeepAlive", {
  request: msgpack<KeepAlive>(),
  reply: msgpack<KeptAlive>(),
});
export const MdsAdmin = defineCall(308, "MdsAdmin", {
  request: msgpack<AdminRequest>(),
  reply: msgpack<AdminReply>(),
});
/** Between metadata servers: a standby that hears nothing from the leader for 3 s challenges it. */
export interface MdsPinged {
  leading: boolean;
  term: number;
}
export const MdsPing = defineCall(316, "MdsPing", {
  request: msgpack<Record<string, never>>(),
  reply: msgpack<MdsPinged>(),
});
export const MdsSafe = definePost(310, "MdsSafe", msgpack<Safe>());
export const MdsRecall = definePost(312, "MdsRecall", msgpack<Recall>());
/** To everybody who has the volume open: its size or its limits have changed. */
export const MdsVolumeChanged = definePost(318, "MdsVolumeChanged", msgpack<Volume>());
export const MdsReleased = definePost(314, "MdsReleased", msgpack<Released>());
export const MdsLockOutcome = definePost(330, "MdsLockOutcome", msgpack<LockOutcomeMessage>());
