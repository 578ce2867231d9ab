/**
 * One open file or directory of this mount: how it was opened, what it reported, where its reader
 * is.
 */
import type { Ino } from "../../cluster/base/ids.js";
import type { DirectoryEntry, MdsReply } from "../../mds/proto.js";
import type { Node } from "./node.js";

/** Entries of a directory that always come with attributes. */
const ATTRIBUTES_ALWAYS = 1_024;

export const O_ACCMODE = 0o3;
export const O_WRONLY = 0o1;
export const O_RDWR = 0o2;
export const O_EXCL = 0o200;
export const O_TRUNC = 0o1000;
export const O_APPEND = 0o2000;
export const O_DSYNC = 0o10000;
export const O_SYNC = 0o4010000;
/** Linux x86-64 and most others; arm has another value, which its kernel passes. */
export const O_DIRECT = process.arch === "arm" || process.arch === "arm64" ? 0o200000 : 0o40000;

/** What a sequential reader looks like from here. */
export interface ReadStream {
  /** Where the next read of a sequential reader begins. */
  next: number;
  /** Bytes to have under way beyond that; 0 while the reader jumps. */
  window: number;
}

export class FileHandle {
  readonly stream: ReadStream = { next: 0, window: 0 };
  readonly writable: boolean;
  readonly direct: boolean;
  /** `Node.errorSeq` that was reported through this handle. */
  seenError: number;
  /** The kernel may have had pages of it when it was opened. */
  keptCache = false;
  /** A read of it was considered for the time of access. */
  readNoted = false;
  /** It had a lock that went with its session: others may change what the lock protects. */
  lostLock = false;

  constructor(
    readonly id: number,
    readonly ino: Ino,
    readonly flags: number,
    seenError: number,
  ) {
    this.writable = (flags & O_ACCMODE) !== 0;
    this.direct = (flags & O_DIRECT) !== 0;
    this.seenError = seenError;
  }
}

interface ListingAhead {
  /** `Node.listingEpoch` when it was asked for. */
  readonly epoch: number;
  readonly cookie: number;
  readonly plus: boolean;
  /** Undefined: it failed. */
  readonly reply: Promise<MdsReply | undefined>;
}

export class DirectoryHandle {
  /** The listing's page in hand: entries that follow `from`. */
  entries: DirectoryEntry[] = [];
  from = -1;
  end = false;
  /** `Node.listingEpoch` when the page was asked for. */
  pageEpoch = -1;
  /**
   * `Node.namesEpoch` when a listing from the start began and nothing was skipped since; -1: not
   * so.
   */
  whole = -1;
  /** The page after the one in hand, under way. */
  ahead: ListingAhead | undefined = undefined;
  /** `Node.listingEpoch` when the kernel began to keep this listing; undefined: it does not. */
  epoch: number | undefined = undefined;
  /** Every entry since the start came with attributes, or its reader looked at it. */
  hadAttributes = false;
  /** `Node.looks` when the reader began. */
  private looks = 0;
  private isLooking = false;

  /**
   * Whether who reads the directory from here on is given attributes. The kernel keeps an inode
   * for each that it gets: of a large directory only for readers who have looked at entries of it
   * since they began, as `ls -l` does and `ls` does not.
   */
  wantsAttributes(directory: Node, cookie: number): boolean {
    if (directory.size <= ATTRIBUTES_ALWAYS) return true;
    if (cookie === 0) {
      this.looks = directory.looks;
      this.isLooking = false;
    } else if (directory.looks !== this.looks) this.isLooking = true;
    return this.isLooking;
  }

  constructor(
    readonly id: number,
    readonly ino: Ino,
  ) {}

  /** rewinddir(3) must see what changed since. */
  rewind(): void {
    this.from = -1;
    this.ahead = undefined;
    this.hadAttributes = true;
  }
  /** What is still in hand from `index` on was listed before something changed. */
  discardFrom(index: number): void {
    this.entries = this.entries.slice(0, index);
    this.end = false;
    this.ahead = undefined;
  }
  /** Whether it follows the page in hand without a gap. */
  continuesAt(cookie: number): boolean {
    return this.from >= 0 && (this.entries.at(-1)?.cookie ?? this.from) === cookie;
  }
  /** The page after `cookie`, if it was asked for since the directory changed. */
  async takeAhead(cookie: number, plus: boolean, epoch: number): Promise<MdsReply | undefined> {
    const { ahead } = this;
    this.ahead = undefined;
    if (ahead === undefined || ahead.epoch !== epoch || (plus && !ahead.plus)) return undefined;
    return ahead.cookie === cookie ? ahead.reply : undefined;
  }
}
