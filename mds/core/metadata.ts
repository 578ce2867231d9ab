/**
 * The replicated state of the MDS: pages, and `apply`, the only thing that changes them, for new
 * operations and for replay alike. Pure and synchronous; a page that is not in memory raises
 * PageFault before anything changed.
 *
 * Counters, sessions, volumes and the purge queue are always in memory (`residentKeys` says which
 * pages these are); whoever loads the metadata pins them.
 */
import { assert, unreachable } from "../../cluster/base/assert.js";
import type { ClientId, Ino } from "../../cluster/base/ids.js";
import type { Delta } from "./delta.js";
import { hashOfCookie, nameHash } from "../proto-order.js";
import { dentryBytes, hashDigits, nameKey, type Dentry } from "./dentry.js";
import { isDirectory, type InodeRecord } from "./inode.js";
import { PageCache, PageFault } from "./page-cache.js";
import type { Quota } from "./quota.js";
import { NO_TOTALS, addTotals, isZero, type Totals } from "./totals.js";
import { makeChain, type Chain, type TotalsAdd } from "./totals-changes.js";
import {
  INODES_PER_PAGE,
  QUOTAS_KEY,
  SUPER_KEY,
  VOLUMES_PER_PAGE,
  directoryPageKey,
  emptySession,
  inodePageKey,
  linksPageKey,
  purgePageKey,
  purgePageNumber,
  sessionPageKey,
  volumePageKey,
  xattrPageKey,
  type Counter,
  type DirectoryBody,
  type InodesBody,
  type LinksBody,
  type Page,
  type PageBody,
  type PurgeEntry,
  type PurgesBody,
  type QuotasBody,
  type SessionBody,
  type SuperBody,
  type VolumeRecord,
  type VolumesBody,
  type XattrsBody,
} from "./page.js";

const HEX = "0123456789abcdef";
const BUSY_PAGES = 256;
/** Directories whose chains are remembered. */
const CHAINS_MAX = 16_384;
/** A chain as long as this may go round in a circle: that is damage. */
const CHAIN_LONG = 64;

export class Metadata {
  readonly cache: PageCache;
  /** Void as soon as any directory moves. */
  private readonly chains = new Map<Ino, Chain>();
  /** Found without their keys: the same few pages change all the time. */
  private readonly busy = new Array<{ number: number; page: Page<InodesBody> } | undefined>(
    BUSY_PAGES,
  );

  constructor(cacheBytes: number) {
    this.cache = new PageCache(cacheBytes);
  }

  // Readers. All may raise PageFault.

  inode(ino: Ino): InodeRecord | undefined {
    return this.inodesPage(ino).body.inodes.get(ino);
  }
  private inodesPage(ino: Ino): Page<InodesBody> {
    const number = Math.floor(ino / INODES_PER_PAGE);
    const known = this.busy[number % BUSY_PAGES];
    // A dirty page is the one in the cache, and stays there: it need not be marked as used.
    if (known?.number === number && known.page.dirtyFrom !== 0) return known.page;
    const page = this.cache.get(inodePageKey(ino)) as Page<InodesBody>;
    this.busy[number % BUSY_PAGES] = { number, page };
    return page;
  }
  /** The page that holds (or would hold) names with this hash. */
  directoryPage(directory: Ino, digits: string): { page: Page<DirectoryBody>; prefix: string } {
    for (let length = 0; ; length++) {
      const prefix = digits.slice(0, length);
      const page = this.cache.get(directoryPageKey(directory, prefix)) as Page<DirectoryBody>;
      if (!page.body.split) return { page, prefix };
      assert(length < digits.length, `directory ${directory} is split too deep`);
    }
  }
  dentry(directory: Ino, name: Buffer): Dentry | undefined {
    const { page } = this.directoryPage(directory, hashDigits(nameHash(name)));
    return page.body.entries.get(nameKey(name));
  }
  xattrs(ino: Ino): Map<string, Buffer> {
    return this.body<XattrsBody>(xattrPageKey(ino)).values;
  }
  /** Where the names of a file with several are. */
  links(ino: Ino): ReadonlyMap<Ino, number> {
    return this.body<LinksBody>(linksPageKey(ino)).directories;
  }
  /** Of a directory; as they are now. */
  totals(ino: Ino): Readonly<Totals> {
    return this.inodesPage(ino).body.totals.get(ino) ?? NO_TOTALS;
  }
  get quotas(): ReadonlyMap<Ino, Quota> {
    return this.body<QuotasBody>(QUOTAS_KEY).quotas;
  }
  /** The directory and all above it. What is damaged ends it early. */
  chain(directory: Ino): Chain {
    const known = this.chains.get(directory);
    if (known !== undefined) return known;
    const inos: Ino[] = [];
    let seen: Set<Ino> | undefined;
    for (let at = directory; ;) {
      const inode = this.inode(at);
      if (inode === undefined || seen?.has(at) === true) return makeChain(inos);
      inos.push(at);
      seen?.add(at);
      if (inos.length === CHAIN_LONG) seen = new Set(inos);
      if (inode.parent === at) break; // The root.
      at = inode.parent;
    }
    const chain = makeChain(inos);
    if (this.chains.size >= CHAINS_MAX) this.chains.clear();
    this.chains.set(directory, chain);
    return chain;
  }
  get super(): SuperBody {
    return this.body<SuperBody>(SUPER_KEY);
  }
  counter(name: Counter): number {
    return this.super.counters[name];
  }
  session(id: ClientId): SessionBody | undefined {
    if (!this.super.sessions.has(id)) return undefined;
    return this.body<SessionBody>(sessionPageKey(id));
  }
  *sessions(): Iterable<SessionBody> {
    for (const id of this.super.sessions) yield this.body<SessionBody>(sessionPageKey(id));
  }
  volume(id: number): VolumeRecord | undefined {
    return this.body<VolumesBody>(volumePageKey(id)).volumes.get(id);
  }
  *volumes(): Iterable<VolumeRecord> {
    for (let id = 0; id < this.counter("nextVolume"); id += VOLUMES_PER_PAGE) {
      yield* this.body<VolumesBody>(volumePageKey(id)).volumes.values();
    }
  }
  purge(id: number): PurgeEntry | undefined {
    const page = purgePageNumber(id);
    if (!this.super.purgePages.has(page)) return undefined;
    return this.body<PurgesBody>(purgePageKey(page)).entries.get(id);
  }
  /** Entries in the page that holds this one. */
  purgeNeighbours(id: number): number {
    return this.body<PurgesBody>(purgePageKey(purgePageNumber(id))).entries.size;
  }
  *purges(): Iterable<PurgeEntry> {
    for (const number of this.super.purgePages) {
      yield* this.body<PurgesBody>(purgePageKey(number)).entries.values();
    }
  }
  /** Is data of the inode being deleted that a file of `below` bytes would show again? */
  isPurging(ino: Ino, below: number): boolean {
    for (const entry of this.purges()) {
      if (entry.what === "objects" && entry.ino === ino && entry.from < below) return true;
    }
    return false;
  }
  /** Pages that must be in memory, as far as those already loaded tell. */
  residentKeys(): string[] {
    const { sessions, purgePages, counters } = this.super;
    const keys = [SUPER_KEY, QUOTAS_KEY, ...[...sessions].map(sessionPageKey)];
    for (const number of purgePages) keys.push(purgePageKey(number));
    for (let id = 0; id < counters.nextVolume; id += VOLUMES_PER_PAGE) keys.push(volumePageKey(id));
    return keys;
  }

  /** Fails with PageFault, and changes nothing, unless every page that `delta` touches is here. */
  require(delta: Delta): void {
    if (delta.d === "totalsAdd") {
      for (const { inos } of delta.chain.pages) this.inodesPage(inos[0]!);
      return;
    }
    for (const key of this.keysOf(delta)) this.cache.get(key);
  }

  private keysOf(delta: Delta): string[] {
    switch (delta.d) {
      case "inodePut":
        return [inodePageKey(delta.inode.ino)];
      case "inodeRemove":
        return [inodePageKey(delta.ino)];
      case "dentryPut":
        return [this.leafKey(delta.directory, hashOfCookie(delta.entry.cookie))];
      case "dentryRemove":
        return [this.leafKey(delta.directory, nameHash(delta.name))];
      case "directorySplit": {
        const keys = [directoryPageKey(delta.directory, delta.prefix)];
        for (const digit of HEX) keys.push(directoryPageKey(delta.directory, delta.prefix + digit));
        return keys;
      }
      case "directoryDrop":
        return [directoryPageKey(delta.directory, delta.prefix)];
      case "totalsAdd":
        return delta.chain.pages.map(({ key }) => key);
      case "linkPut":
      case "linkDrop":
        return [linksPageKey(delta.ino)];
      case "quotaPut":
      case "quotaRemove":
        return [QUOTAS_KEY];
      case "xattrPut":
      case "xattrRemove":
      case "xattrDrop":
        return [xattrPageKey(delta.ino)];
      case "sessionPut":
      case "sessionWorker":
      case "sessionRemove":
      case "sessionDone":
      case "sessionRange":
      case "orphanAdd":
      case "orphanRemove":
      case "grantPut":
      case "grantRemove":
      case "volumeUse":
      case "volumeLeave":
        return [sessionPageKey(delta.id)];
      case "volumePut":
        return [volumePageKey(delta.volume.id)];
      case "volumeRemove":
        return [volumePageKey(delta.volume)];
      case "purgePut":
        return [purgePageKey(purgePageNumber(delta.entry.id))];
      case "purgeProgress":
      case "purgeRemove":
        return [purgePageKey(purgePageNumber(delta.id))];
      case "purgePage":
      case "sessionListed":
      case "counter":
        return [SUPER_KEY];
      default:
        return unreachable(delta, "journal record");
    }
  }
  private leafKey(directory: Ino, hash: number): string {
    return this.directoryPage(directory, hashDigits(hash)).page.key;
  }

  /**
   * Applies one fact of batch `seq`. A page whose stored form already had that batch is left alone,
   * so replay may begin anywhere at or below the first batch that a page lacks. In replay, facts
   * about what has gone since are ignored.
   */
  apply(delta: Delta, seq: number): void {
    if (delta.d === "directorySplit" || delta.d === "totalsAdd") {
      this.require(delta);
      if (delta.d === "totalsAdd") this.applyTotals(delta, seq);
      else this.applySplit(delta.directory, delta.prefix, seq);
      return;
    }
    const [key] = this.keysOf(delta); // Of one page: nothing has changed if it is not here.
    const page = this.cache.get(key!);
    if (seq <= page.storedApplied) return;
    if (delta.d === "inodePut") this.noteMove(page.body, delta.inode);
    change(page.body, delta);
    this.cache.changed(page, seq);
    const { kind } = page.body;
    if (kind === "s" || kind === "c" || kind === "v" || kind === "p") {
      this.cache.setResident(page, kind === "s" || kind === "v" || !page.empty);
    }
  }
  /** A directory that gets another parent changes every chain through it. */
  private noteMove(body: PageBody, inode: InodeRecord): void {
    if (body.kind !== "i" || !isDirectory(inode)) return;
    const known = body.inodes.get(inode.ino);
    if (known !== undefined && known.parent !== inode.parent) this.chains.clear();
  }
  /** Like any fact, but about several pages, each of which may have it already. */
  private applyTotals({ chain, by }: TotalsAdd, seq: number): void {
    for (const { inos } of chain.pages) {
      const page = this.inodesPage(inos[0]!);
      if (seq <= page.storedApplied) continue;
      const { inodes, totals } = page.body;
      for (const ino of inos) {
        const known = totals.get(ino);
        if (known !== undefined) {
          addTotals(known, by);
          if (isZero(known)) totals.delete(ino);
        } else if (inodes.has(ino)) totals.set(ino, { ...by });
      }
      this.cache.changed(page, seq);
    }
  }

  /**
   * The children are written before the parent (checkpoint), so a stored parent that is split has
   * all of them stored; where the parent is not yet split in store, children that are stored keep
   * their newer form and the rest come from the parent.
   */
  private applySplit(directory: Ino, prefix: string, seq: number): void {
    const parent = this.cache.get(directoryPageKey(directory, prefix)) as Page<DirectoryBody>;
    if (seq <= parent.storedApplied || parent.body.split) return;
    for (const digit of HEX) {
      const key = directoryPageKey(directory, prefix + digit);
      const child = this.cache.get(key) as Page<DirectoryBody>;
      if (seq > child.storedApplied) this.cache.changed(child, seq);
    }
    for (const [key, entry] of parent.body.entries) {
      const digit = hashDigits(hashOfCookie(entry.cookie)).charAt(prefix.length);
      const child = this.cache.get(directoryPageKey(directory, prefix + digit));
      if (seq <= child.storedApplied) continue;
      const body = child.body as DirectoryBody;
      body.entries.set(key, entry);
      body.bytes += dentryBytes(entry.name);
      body.sorted = undefined;
      body.cookies = undefined;
    }
    parent.body.split = true;
    parent.body.entries = new Map();
    parent.body.bytes = 0;
    parent.body.sorted = undefined;
    parent.body.cookies = undefined;
    this.cache.changed(parent, seq);
  }

  private body<B extends PageBody>(key: string): B {
    return this.cache.get(key).body as B;
  }
}

/** Runs `read` over several keys at once, so that a fault names all of them. */
export function faultTogether(cache: PageCache, keys: Iterable<string>): void {
  const missing: string[] = [];
  for (const key of keys) {
    cache.touched?.add(key);
    if (!cache.has(key)) missing.push(key);
  }
  if (missing.length > 0) throw new PageFault(missing);
}

function change(body: PageBody, delta: Delta): void {
  switch (body.kind) {
    case "i":
      if (delta.d === "inodePut") body.inodes.set(delta.inode.ino, delta.inode);
      else if (delta.d === "inodeRemove") {
        body.inodes.delete(delta.ino);
        body.totals.delete(delta.ino);
      }
      return;
    case "l":
      if (delta.d === "linkDrop") body.directories.clear();
      else if (delta.d !== "linkPut") return;
      else if (delta.count > 0) body.directories.set(delta.directory, delta.count);
      else body.directories.delete(delta.directory);
      return;
    case "q":
      if (delta.d === "quotaPut") body.quotas.set(delta.ino, delta.quota);
      else if (delta.d === "quotaRemove") body.quotas.delete(delta.ino);
      return;
    case "d":
      return changeDirectory(body, delta);
    case "x":
      if (delta.d === "xattrPut") body.values.set(nameKey(delta.name), delta.value);
      else if (delta.d === "xattrRemove") body.values.delete(nameKey(delta.name));
      else if (delta.d === "xattrDrop") body.values.clear();
      return;
    case "c":
      return changeSession(body, delta);
    case "v":
      if (delta.d === "volumePut") body.volumes.set(delta.volume.id, delta.volume);
      else if (delta.d === "volumeRemove") body.volumes.delete(delta.volume);
      return;
    case "p":
      return changePurges(body, delta);
    case "s":
      if (delta.d === "counter") body.counters[delta.counter] = delta.value;
      else if (delta.d === "sessionListed") toggle(body.sessions, delta.id, delta.live);
      else if (delta.d === "purgePage") toggle(body.purgePages, delta.page, delta.used);
  }
}
function toggle(set: Set<number>, value: number, present: boolean): void {
  if (present) set.add(value);
  else set.delete(value);
}

function changeDirectory(body: DirectoryBody, delta: Delta): void {
  if (delta.d === "dentryPut") {
    const key = nameKey(delta.entry.name);
    const old = body.entries.get(key);
    if (old === undefined) body.bytes += dentryBytes(delta.entry.name);
    else if (old.cookie !== delta.entry.cookie) body.cookies?.delete(old.cookie);
    body.cookies?.add(delta.entry.cookie);
    body.entries.set(key, delta.entry);
    body.dropped = false;
    body.sorted = undefined;
  } else if (delta.d === "dentryRemove") {
    const old = body.entries.get(nameKey(delta.name));
    if (old === undefined) return;
    body.entries.delete(nameKey(delta.name));
    body.cookies?.delete(old.cookie);
    body.bytes -= dentryBytes(old.name);
    body.sorted = undefined;
  } else if (delta.d === "directoryDrop") {
    body.entries = new Map();
    body.bytes = 0;
    body.split = false;
    body.dropped = true;
    body.sorted = undefined;
    body.cookies = undefined;
  }
}

function changePurges(body: PurgesBody, delta: Delta): void {
  if (delta.d === "purgePut") body.entries.set(delta.entry.id, delta.entry);
  else if (delta.d === "purgeRemove") body.entries.delete(delta.id);
  else if (delta.d === "purgeProgress") {
    const entry = body.entries.get(delta.id);
    if (entry !== undefined) body.entries.set(delta.id, { ...entry, next: delta.next });
  }
}

function changeSession(body: SessionBody, delta: Delta): void {
  switch (delta.d) {
    case "sessionPut": {
      const { d: _d, ...fields } = delta;
      Object.assign(body, emptySession(body.id), fields, { live: true });
      return;
    }
    case "sessionWorker":
      body.worker = delta.worker;
      body.generation = delta.generation;
      body.pid = delta.pid;
      return;
    case "sessionRemove":
      Object.assign(body, emptySession(body.id));
      return;
    case "sessionDone":
      body.completed.add(delta.request);
      if (delta.floor > body.floor) {
        body.floor = delta.floor;
        for (const id of body.completed) if (id < delta.floor) body.completed.delete(id);
      }
      return;
    case "sessionRange":
      body.ranges.push({ first: delta.first, count: delta.count });
      // A client uses its ranges in order and holds a few at most; old ones are used up.
      if (body.ranges.length > SESSION_RANGES) body.ranges.shift();
      return;
    case "orphanAdd":
      body.orphans.add(delta.ino);
      return;
    case "orphanRemove":
      body.orphans.delete(delta.ino);
      return;
    case "grantPut":
      body.exclusive.set(delta.ino, delta.maxSize);
      return;
    case "grantRemove":
      body.exclusive.delete(delta.ino);
      return;
    case "volumeUse":
      body.volumes.set(delta.volume, delta.write);
      return;
    case "volumeLeave":
      body.volumes.delete(delta.volume);
      return;
    default: // Of other pages.
      return;
  }
}
/** Ranges of inode numbers that a session may have in use at once. */
const SESSION_RANGES = 16;
