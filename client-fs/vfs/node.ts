/**
 * One inode as this mount knows it: attributes, the capability under which they may be believed,
 * names (of a directory), operations in progress, opens. Owned by the `NodeTable`; the file's
 * bytes are in `FileData`.
 *
 * Attributes are valid while `mode` is not "none". Under "exclusive" this mount is the authority
 * on size and mtime.
 */
import { DssError } from "../../cluster/base/errors.js";
import type { Epoch, Ino } from "../../cluster/base/ids.js";
import type { CapabilityMode, Inode, LastWord, Recall } from "../../mds/proto.js";
import type { FileData } from "./file-data.js";
import type { FileSpace } from "./file-space.js";
import type { DirectoryHandle } from "./handle.js";
import type { KernelListing } from "./kernel-listings.js";

export const S_IFMT = 0o170000;
export const S_IFREG = 0o100000;
export const S_IFDIR = 0o040000;
export const S_IFLNK = 0o120000;
export const S_ISUID = 0o4000;
export const S_ISGID = 0o2000;
export const S_IXGRP = 0o010;

/** What the leader asked back. `stage`: see `NodeTable.surrender`. */
export interface PendingRecall {
  mode: CapabilityMode;
  seq: number;
  stage: "drain" | "flush" | "invalidate";
  /** Data operations that were let through while the kernel dropped its pages. */
  admitted: number;
}

/** The mount looks at the inode, so that the kernel takes its size (kernel-cache.ts). */
export interface Look {
  /** Who asks, and what it was answered. */
  pid: number | undefined;
  size: number | undefined;
  /** Somebody asked for its name. */
  wasAsked: boolean;
  /** It had to ask again: the answer was thrown away. */
  wasLost: boolean;
  /** Somebody asked, and there was no capability to answer under. */
  wasRefused: boolean;
}
export const newLook = (): Look => ({
  pid: undefined,
  size: undefined,
  wasAsked: false,
  wasLost: false,
  wasRefused: false,
});

/** Bytes of whole pages of the kernel. */
export interface PageRange {
  readonly start: number;
  readonly end: number;
}

export class Node {
  /** As the MDS told last, with local size and mtime under the exclusive capability. */
  inode: Inode | undefined = undefined;
  mode: CapabilityMode = "none";
  seq = 0;
  maxSize = 0;
  /** The leader gave no more than this (a quota): not asked ahead of need again. */
  refusedBeyond = -1;
  minEpoch: Epoch = 0;
  /** Data operations that rely on the capability until they end. */
  pins = 0;
  recall: PendingRecall | undefined = undefined;
  /** A request for the capability is on its way. */
  acquiring: { mode: CapabilityMode; done: Promise<void> } | undefined = undefined;
  /** A recall that came before the answer that brings what it recalls. */
  early: Recall | undefined = undefined;
  /** What the kernel has locked for writes that wait for the capability. */
  readonly locked = new Set<PageRange>();
  /** Wait for the recall to be over. */
  readonly gate: (() => void)[] = [];
  /** References that the kernel counts. */
  lookups = 0;
  /** The size that the kernel has for certain, if there is one. */
  kernelSize: number | undefined = undefined;
  look: Look | undefined = undefined;
  /**
   * Open while the kernel was told to drop what it knew without a look (an earlier worker's, or
   * without a lease): it throws away the size that whoever reads just then has asked for.
   */
  sizeUnsure = false;
  /** Drops in the kernel under way that began while nobody had it open, and so without a look. */
  blindDrops = 0;
  /** There was no look lately: none before that moment. */
  blindUntilMs = 0;
  /** Resolves at the end of that look: false when there can be none. */
  looking: Promise<boolean> | undefined = undefined;
  opens = 0;
  writers = 0;
  /** Made by this mount, and nobody else has looked at it since. */
  unshared = false;
  /** Requests of ours on their way that may change it: until then nothing is decided here. */
  asked = 0;
  /** Changes made here that the leader has not confirmed. */
  promised = 0;
  /** The number of the last of them: answers to earlier requests are older. */
  promisedUpTo = 0;
  /** Directories: the names that these are about. */
  promisedNames: Map<string, number> | undefined = undefined;
  /** Its last name was taken away here. */
  removed = false;
  /** Unlinked, and ours until the last close. */
  orphan = false;
  /** The leader was told at a release that the file is open here. */
  toldOpen = false;
  /** Orphaned when the session ended: its data may be gone. */
  stale = false;
  /** Directory that a name of it was last seen in: for "..". */
  parent: Ino = 1;
  /** Directories: what is known of their names; 0 means that the name does not exist. */
  names: Map<string, Ino> | undefined = undefined;
  /** Directories: `names` has all of them. */
  complete = false;
  /** Directories: `seq` of the grant under which the mount asked to be alone. */
  aloneAsked = -1;
  /** Directories: counts look-ups of the kernel. */
  looks = 0;
  /** Directories: counts how often `names` was thrown away. */
  namesEpoch = 0;
  /** Rises also with each name that this mount makes or removes: what was listed before is old. */
  listingEpoch = 0;
  /** Directories: what the kernel may have of the listing. */
  kernelListing: KernelListing | undefined = undefined;
  /**
   * Handles that were given entries and have not asked again, with the time of it: the kernel may
   * not have taken the answer yet. Allocated when needed.
   */
  given: Map<DirectoryHandle, number> | undefined = undefined;
  xattrs: Map<string, Buffer> | undefined = undefined;
  data: FileData | undefined = undefined;
  /** What is allocated, while exclusive and written to: newer than the inode's figure. */
  space: FileSpace | undefined = undefined;
  /** Size, mtime and blocks that the MDS knows, while exclusive. */
  publishedSize = 0;
  publishedMtimeNs = 0n;
  publishedAllocated = 0;
  publishedRecount = false;
  /** It was cut to nothing since its last writer closed it. */
  replacing = false;
  /** A size change is on its way to the MDS: no other size may be told. */
  resizing = 0;
  /** Serialises operations that change the size as a whole with writes. */
  barrier: Promise<void> | undefined = undefined;
  /** Removal in progress: an open waits for its outcome. */
  removing: Promise<void> | undefined = undefined;
  /** The last failed write-back; handles compare `errorSeq` with what they reported. */
  error: DssError | undefined = undefined;
  errorSeq = 0;
  /** Data were lost with an earlier worker, and nobody has been told: the next one hears. */
  errorUnseen = false;
  /** What the worker's record says of its data (data-marks.ts). */
  marks = 0;
  /** The kernel may hold pages that it was not told to drop. */
  kernelMayBeStale = false;

  constructor(readonly ino: Ino) {}

  get isDirectory(): boolean {
    return this.inode !== undefined && (this.inode.mode & S_IFMT) === S_IFDIR;
  }
  get isRegular(): boolean {
    return this.inode !== undefined && (this.inode.mode & S_IFMT) === S_IFREG;
  }
  get size(): number {
    return this.inode?.size ?? 0;
  }
  get idle(): boolean {
    return (
      this.lookups === 0 &&
      this.opens === 0 &&
      this.pins === 0 &&
      this.recall === undefined &&
      this.acquiring === undefined &&
      this.removing === undefined &&
      this.promised === 0 &&
      this.asked === 0 &&
      this.barrier === undefined &&
      (this.data === undefined || this.data.clean)
    );
  }
  /** The holder's word on size, mtime and blocks is newer than the MDS's. */
  get unpublished(): boolean {
    const { inode } = this;
    if (this.mode !== "exclusive" || inode === undefined) return false;
    const { allocated, recount } = this.space ?? inode;
    return (
      inode.size !== this.publishedSize ||
      inode.mtimeNs !== this.publishedMtimeNs ||
      allocated !== this.publishedAllocated ||
      recount !== this.publishedRecount
    );
  }
  /** What its exclusive holder says of it. */
  lastWord(): LastWord {
    const { size, mtimeNs } = this.inode!;
    const { allocated, recount } = this.space ?? this.inode!;
    return { size, mtimeNs, allocated, recount };
  }
  /** The MDS has this. */
  noteTold({ size, mtimeNs, allocated, recount }: LastWord): void {
    this.publishedSize = size;
    this.publishedMtimeNs = mtimeNs;
    this.publishedAllocated = allocated;
    this.publishedRecount = recount;
  }
  /** The capability goes: others may write to it. */
  endSpace(): void {
    const { space, inode } = this;
    this.space = undefined;
    if (space === undefined || inode === undefined) return;
    this.inode = { ...inode, allocated: space.allocated, recount: space.recount };
  }

  /** The kernel's own write: with its answer the file reaches that far there. */
  writtenByKernel(end: number): void {
    if (this.kernelSize !== undefined && end > this.kernelSize) this.kernelSize = end;
  }

  dropNames(): void {
    this.names = undefined;
    this.complete = false;
    this.namesEpoch++;
    this.listingEpoch++;
  }

  fail(error: DssError): void {
    this.error = error;
    this.errorSeq++;
  }
}

/** What a system call reports of a write-back that failed before it. */
export function writeBackError(cause: DssError | undefined): DssError {
  const code = cause?.code === "NoSpace" ? "NoSpace" : "Disk";
  return new DssError(code, "an earlier write failed", { cause });
}
