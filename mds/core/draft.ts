/**
 * The changes that one operation wants, before anything is changed: an overlay of new inode records
 * over the metadata, and the journal facts in order. Pure. What it reads may raise PageFault;
 * `finish` also asks for every page that applying will touch.
 */
import type { Ino } from "../../cluster/base/ids.js";
import { DssError } from "../../cluster/base/errors.js";
import type { Access, CapabilityTable } from "./capability.js";
import type { Delta } from "./delta.js";
import {
  DIRECTORY_PAGE_BYTES,
  DIRECTORY_PAGE_ENTRIES,
  HASH_DIGITS,
  dentryBytes,
  hashDigits,
} from "./dentry.js";
import { COLLISIONS_MAX, firstCookie, nameHash } from "../proto-order.js";
import { isDirectory, S_IFMT, type InodeRecord } from "./inode.js";
import type { Metadata } from "./metadata.js";
import {
  directoryPageKey,
  purgePageKey,
  purgePageNumber,
  type Counter,
  type PurgeEntry,
} from "./page.js";
import { faultTogether } from "./metadata.js";
import { checkQuotas } from "./quota.js";
import { totalsChanges } from "./totals-changes.js";
import { NEW_FILE_GRANT, type LastWord, type Layout } from "../proto.js";

/** Those of a volume say so. */
type NewPurge = Omit<PurgeEntry, "id" | "next" | "volume" | "name" | "shrinks" | "snap"> &
  Partial<Pick<PurgeEntry, "volume" | "name" | "shrinks" | "snap">>;

export class Draft {
  private readonly inodes = new Map<Ino, InodeRecord | undefined>();
  private readonly counters = new Map<Counter, number>();
  private readonly facts: Delta[] = [];
  /** It may not make more of anything than the quotas permit: QuotaExceeded from `finish`. */
  isLimited = false;

  constructor(private readonly metadata: Metadata) {}

  get changed(): boolean {
    return this.inodes.size > 0 || this.facts.length > 0;
  }
  add(delta: Delta): void {
    this.facts.push(delta);
  }
  counter(name: Counter): number {
    return this.counters.get(name) ?? this.metadata.counter(name);
  }
  setCounter(name: Counter, value: number): void {
    this.counters.set(name, value);
  }

  inode(ino: Ino): InodeRecord | undefined {
    return this.inodes.has(ino) ? this.inodes.get(ino) : this.metadata.inode(ino);
  }
  put(inode: InodeRecord): InodeRecord {
    this.inodes.set(inode.ino, inode);
    return inode;
  }
  /** Of an inode number under which nothing is stored. */
  createInode(inode: InodeRecord): InodeRecord {
    if (isDirectory(inode)) this.metadata.cache.loadEmpty(directoryPageKey(inode.ino, ""));
    this.setCounter("inodes", this.counter("inodes") + 1);
    return this.put(inode);
  }
  /**
   * The last name and the last opener are gone: the inode goes, and its data to the purge queue.
   */
  removeInode(inode: InodeRecord, capabilities: CapabilityTable): void {
    this.inodes.set(inode.ino, undefined);
    this.setCounter("inodes", Math.max(0, this.counter("inodes") - 1));
    if (inode.xattrCount > 0) this.add({ d: "xattrDrop", ino: inode.ino });
    const hadNames = inode.nlink > 1 && !isDirectory(inode); // Those of a directory are ".."s.
    if (hadNames) this.add({ d: "linkDrop", ino: inode.ino });
    if (this.metadata.quotas.has(inode.ino)) this.add({ d: "quotaRemove", ino: inode.ino });
    const bound = dataBound(this.metadata, capabilities, inode);
    const holder = capabilities.exclusiveHolder(inode.ino);
    if (holder !== undefined) this.add({ d: "grantRemove", id: holder, ino: inode.ino });
    if (inode.layout !== undefined && bound > 0) {
      this.purge({
        what: "objects",
        ino: inode.ino,
        prefix: inode.ino.toString(16),
        layout: inode.layout,
        from: 0,
        likely: Math.min(inode.size, bound),
        bound,
        // Newer than anything written to the file, so that nothing of it survives.
        truncateSeq: inode.truncateSeq + 1,
        unconditional: false,
      });
    }
  }
  purge(entry: NewPurge): void {
    const id = this.counter("nextPurge");
    this.setCounter("nextPurge", id + 1);
    const page = purgePageNumber(id);
    if (!this.metadata.super.purgePages.has(page)) this.add({ d: "purgePage", page, used: true });
    const defaults = { volume: 0, name: "", shrinks: false, snap: 0, next: 0 };
    this.add({ d: "purgePut", entry: { ...defaults, ...entry, id } });
  }

  /** Adds or replaces a name, splitting the directory's page first when it is full. */
  link(directory: Ino, name: Buffer, target: { ino: Ino; mode: number }): void {
    const hash = nameHash(name);
    const digits = hashDigits(hash);
    const { page, prefix } = this.metadata.directoryPage(directory, digits);
    const { entries, bytes } = page.body;
    const type = target.mode & S_IFMT;
    const known = this.metadata.dentry(directory, name);
    if (known !== undefined) {
      this.add({
        d: "dentryPut",
        directory,
        entry: { name, ino: target.ino, type, cookie: known.cookie },
      });
      return;
    }
    const first = firstCookie(hash);
    if (page.body.cookies === undefined) {
      page.body.cookies = new Set();
      for (const entry of entries.values()) page.body.cookies.add(entry.cookie);
    }
    const taken = page.body.cookies;
    let cookie = first;
    while (taken.has(cookie)) cookie++;
    if (cookie >= first + COLLISIONS_MAX) {
      throw new DssError("NoSpace", `too many names of equal hash in directory ${directory}`);
    }
    const full =
      entries.size >= DIRECTORY_PAGE_ENTRIES || bytes + dentryBytes(name) > DIRECTORY_PAGE_BYTES;
    if (full && prefix.length < HASH_DIGITS) {
      this.add({ d: "directorySplit", directory, prefix });
    }
    this.add({ d: "dentryPut", directory, entry: { name, ino: target.ino, type, cookie } });
  }
  unlink(directory: Ino, name: Buffer): void {
    this.add({ d: "dentryRemove", directory, name });
  }
  /** The pages of an empty directory that goes. */
  dropDirectory(directory: Ino, layout: Layout | undefined): void {
    const { page, prefix } = this.metadata.directoryPage(directory, hashDigits(0));
    // One page that is empty is not stored anyway; a tree of them is taken down in the background.
    if (prefix === "") this.add({ d: "directoryDrop", directory, prefix });
    else {
      this.purge({
        what: "directory",
        ino: directory,
        prefix: page.key,
        layout: layout ?? { pool: 0, objectSize: 1, stripeUnit: 1, stripeCount: 1 },
        from: 0,
        likely: 0,
        bound: 0,
        truncateSeq: 0,
        unconditional: false,
      });
    }
  }

  /**
   * The record for the journal; raises PageFault unless every page that it touches is in memory.
   */
  finish(): Delta[] {
    const record: Delta[] = [];
    for (const [ino, inode] of this.inodes) {
      record.push(inode === undefined ? { d: "inodeRemove", ino } : { d: "inodePut", inode });
    }
    record.push(...this.facts);
    const totals = totalsChanges(this.metadata, this.inodes);
    if (this.isLimited) checkQuotas(this.metadata, totals);
    record.push(...totals);
    for (const [counter, value] of this.counters) record.push({ d: "counter", counter, value });
    this.requirePages(record);
    return record;
  }
  private requirePages(record: readonly Delta[]): void {
    for (const delta of record) {
      this.metadata.require(delta);
      if (delta.d === "purgePut") {
        faultTogether(this.metadata.cache, [purgePageKey(purgePageNumber(delta.entry.id))]);
      } else if (delta.d === "directorySplit") {
        const keys = [...HEX].map((h) => directoryPageKey(delta.directory, delta.prefix + h));
        faultTogether(this.metadata.cache, keys);
      }
    }
  }
}
const HEX = "0123456789abcdef";

/** Of an operation that quotas may refuse, unless its caller has had an answer already. */
export function limitedDraft(metadata: Metadata, access: Access): Draft {
  const draft = new Draft(metadata);
  draft.isLimited = !access.answered;
  return draft;
}

/**
 * Below this offset the file may have data: what is known, and what the holder of a write grant may
 * have written.
 */
export function dataBound(
  metadata: Metadata,
  capabilities: CapabilityTable,
  inode: InodeRecord,
): number {
  const holder = capabilities.exclusiveHolder(inode.ino);
  const granted =
    holder === undefined ? 0 : (metadata.session(holder)?.exclusive.get(inode.ino) ?? 0);
  return Math.max(inode.dataMax, granted);
}

const MiB = 2 ** 20;
/** One object: deleting a small file then need not look for others. */
const GRANT_MIN = NEW_FILE_GRANT;
/**
 * Probing after a crash looks at every object between the published size and the grant: 16 GiB are
 * 4,096 objects.
 */
const GRANT_AHEAD_MAX = 16 * 1024 * MiB;
const FILE_MAX = 2 ** 52;

/**
 * How far a writer may go without asking when data ends at `end`: four times as far, at least 4
 * MiB, at most 16 GiB more.
 */
export function grantSize(end: number): number {
  const ahead = Math.min(3 * end, GRANT_AHEAD_MAX);
  const wanted = Math.max(GRANT_MIN, end + ahead);
  return Math.min(FILE_MAX, Math.ceil(wanted / (4 * MiB)) * 4 * MiB);
}

/**
 * A session's exclusive grant ends without a last word of its holder (or with one, `size`): data
 * ends where the grant did.
 */
export function afterGrant(
  inode: InodeRecord,
  grant: number,
  last: LastWord | undefined,
): InodeRecord {
  if (last === undefined) {
    const dataMax = Math.max(inode.dataMax, grant);
    return { ...inode, dataMax, recount: true, reservedTo: 0 };
  }
  const bound = Math.max(inode.dataMax, grant);
  return {
    ...inode,
    size: last.size,
    mtimeNs: last.mtimeNs,
    allocated: last.allocated,
    recount: last.recount,
    ctimeNs: last.mtimeNs > inode.ctimeNs ? last.mtimeNs : inode.ctimeNs,
    dataMax: Math.min(bound, last.size),
    reservedTo: 0,
  };
}
