/**
 * Works off the purge queue in the background: objects of deleted files and volumes, ends of
 * truncated files and shrinking volumes, pages of removed directories. The queue is journaled and
 * an entry goes only when its work is done, so nothing is forgotten; doing a part twice is
 * harmless. Bounded parallelism leaves the OSDs to clients, and the object of a deleted file that
 * has only one rests for a while first, and then they go at a measured pace: who deletes many, and
 * who works after that, has the machines to himself. Not what was cut off a file that lives on: who
 * makes that longer waits for it.
 *
 * Where there may be many more objects than placement groups, which are mostly holes then, the
 * groups are asked which objects there are, instead of trying every one. So they are about
 * snapshots: clones that none needs are removed, and objects return to what they were; and a volume
 * that is made independent of its parent gets the parent's objects as its own.
 */
import { describeError } from "../cluster/base/errors.js";
import { pgId, type Epoch, type PgId } from "../cluster/base/ids.js";
import { Fifo } from "../cluster/base/fifo.js";
import type { Logger } from "../cluster/base/log.js";
import {
  cloneIdOf,
  isClonePrefix,
  isObjectOf,
  listedFrom,
  objectIndex,
  objectName,
} from "../cluster/base/object-name.js";
import { inParallel } from "../cluster/base/parallel.js";
import type { Clock, Timer } from "../cluster/platform/ports.js";
import {
  ANY_SNAPSHOTS,
  type ObjectParent,
  type SnapContext,
  type VolumeObjects,
} from "../osd/client/object-access.js";
import { parentObjects } from "../osd/client/ancestry.js";
import { objectCount, objectSizeWithin } from "../osd/client/striper.js";
import { directoryPageKey, purgePageNumber, type PurgeEntry } from "./core/page.js";
import { ancestorsOf } from "./core/clone.js";
import type { Delta } from "./core/delta.js";
import type { Metadata } from "./core/metadata.js";
import { VOLUMES_KEY } from "./core/volume.js";
import type { VolumeAncestor } from "./proto.js";

const PARALLEL = 8;
/** Deleted files of few objects, and removed directories, that are worked off at a time. */
const SMALL_PARALLEL = 64;
/** Entries that one journal record ends at most. */
const TOGETHER = 32;
/** A small one that waits longer, for an OSD that is away perhaps, makes room for others… */
const SLOW_MS = 3_000;
/** …as long as there are not so many. */
const UNDER_WAY_MAX = 1_024;
/** So much rests at most. */
const RESTING_MAX = 16_384;
const RESTING_BYTES_MAX = 256 * 2 ** 20;
/** Nothing does while less than this part of all space is free. */
const SCARCE = 0.1;
/** How often that is looked at. */
const LOOK_MS = 1_000;
/** How often those who have rested enough are looked for… */
const ROUSE_MS = 100;
/** …and how many are taken then: so many, or this part of all, so that none rests much longer. */
const ROUSED_MIN = 50;
const ROUSED_PART = 0.01;
/** Files of so few objects have all of them, most likely. */
const SURE_MAX = 16;
/** Progress is journaled after this many objects. */
const STEP = 1024;
/** With more possible objects than that, placement groups are asked for them. */
const LISTED_FROM = 4_096;
/** Progress is journaled after this many placement groups. */
const GROUPS_STEP = 16;
const RETRY_MS = 1_000;
/** Facts of one journal record about dropped directory pages. */
const DROPS = 64;

/** Objects of a placement group in name order, as its primary has them. */
export interface PurgeLister {
  pools(): readonly { id: number; pgCount: number }[];
  /** Errors: NotActive and others that pass. */
  listActive(
    pg: PgId,
    after: string,
    options: { limit: number; minEpoch: Epoch },
  ): Promise<readonly { object: string }[]>;
}

export interface PurgerParts {
  metadata: Metadata;
  objects: Pick<VolumeObjects, "stat" | "remove" | "trim" | "truncate" | "rollback" | "copyUp">;
  lister: PurgeLister;
  /** Requests carry it: what fenced clients sent is over then. */
  minEpoch(): Epoch;
  /** Facts about the volume once the work is done. */
  completed(entry: PurgeEntry): Delta[];
  clock: Clock;
  logger: Logger;
  /** How long the object of a deleted file rests. */
  restMs: number;
  /** Bytes for files. */
  usage(): { total: number; available: number };
  /**
   * Runs `work` with the pages in memory that it looks at and that its record changes; journals and
   * applies the record.
   */
  change(work: () => Delta[], hides?: readonly number[]): Promise<void>;
  /** Runs `read` with its pages in memory. */
  read<T>(read: () => T): Promise<T>;
  stopped(): boolean;
  /**
   * The entry is in the journal for good: until then its file may yet come back with the next
   * leader.
   */
  isSafe(id: number): boolean;
}

/** An entry whose work is done, but for the record that says so. */
interface Freed {
  entry: PurgeEntry;
  /** What that record says besides. */
  facts: readonly Delta[];
  recorded: () => void;
  failed: (error: unknown) => void;
}

type Kind = "small" | "large";
interface Resting {
  readonly id: number;
  /** That it will free, about. */
  readonly bytes: number;
  readonly untilMs: number;
}

export class Purger {
  /** Entries that have not begun, the oldest first. */
  private waiting = { small: new Fifo<number>(), large: new Fifo<number>() };
  /** Small ones before that, the oldest first. */
  private readonly resting = new Fifo<Resting>();
  private restingBytes = 0;
  /** At the space that is free, and when. */
  private looked = { atMs: Number.NEGATIVE_INFINITY, isScarce: false };
  private restTimer: Timer | undefined;
  private readonly active = new Set<number>();
  /** Room for entries of either kind. */
  private readonly room = { small: SMALL_PARALLEL, large: PARALLEL };
  private freed: Freed[] = [];
  private recordDue = false;
  /** Objects or placement groups that are done, by entry. */
  private readonly doneSteps = new Map<number, number>();
  private scheduled = false;

  constructor(private readonly parts: PurgerParts) {}

  /** With what earlier leaders left. */
  start(): void {
    this.waiting = { small: new Fifo(), large: new Fifo() };
    for (const entry of this.parts.metadata.purges()) {
      if (!this.active.has(entry.id)) this.waiting[kindOf(entry)].push(entry.id);
    }
    this.wake();
  }
  stop(): void {
    this.restTimer?.cancel();
  }
  /** Journaled, though perhaps not for good yet; `isDeleted` when its file does not live on. */
  add(entry: PurgeEntry, isDeleted: boolean): void {
    const { restMs, clock, stopped } = this.parts;
    if (stopped()) return;
    if (restMs === 0 || !isDeleted || !freesLittle(entry) || this.isScarce()) {
      this.waiting[kindOf(entry)].push(entry.id);
      return;
    }
    const bytes = Math.min(entry.likely, entry.bound);
    this.resting.push({ id: entry.id, bytes, untilMs: clock.now() + restMs });
    this.restingBytes += bytes;
    while (this.resting.length > RESTING_MAX || this.restingBytes > RESTING_BYTES_MAX) this.rouse();
    this.restTimer ??= clock.setTimer(Math.min(restMs, LOOK_MS), () => this.rouseRested());
  }
  /** There may be work. */
  wake(): void {
    if (this.scheduled || this.parts.stopped()) return;
    this.scheduled = true;
    this.parts.clock.defer(() => {
      this.scheduled = false;
      this.fill();
    });
  }
  progress(entry: PurgeEntry): { done: number; total: number } {
    const total = this.isListed(entry)
      ? this.pgCount(entry) * passesOf(entry)
      : objectCount(entry.layout, entry.bound);
    return { done: Math.max(entry.next, this.doneSteps.get(entry.id) ?? 0), total };
  }

  private isScarce(): boolean {
    const { clock, usage } = this.parts;
    if (clock.now() >= this.looked.atMs + LOOK_MS) {
      const { total, available } = usage();
      this.looked = { atMs: clock.now(), isScarce: available < SCARCE * total };
    }
    return this.looked.isScarce;
  }
  /** The one that has rested longest. */
  private rouse(): void {
    const { id, bytes } = this.resting.shift()!;
    this.restingBytes -= bytes;
    this.waiting.small.push(id);
  }
  private rouseRested(): void {
    const { clock } = this.parts;
    this.restTimer = undefined;
    const isScarce = this.isScarce();
    let room = Math.max(ROUSED_MIN, Math.ceil(ROUSED_PART * this.resting.length));
    for (let first; (first = this.resting.first()) !== undefined; room--) {
      const leftMs = first.untilMs - clock.now();
      if ((leftMs > 0 || room === 0) && !isScarce) {
        const restMs = Math.min(Math.max(leftMs, ROUSE_MS), LOOK_MS);
        this.restTimer = clock.setTimer(restMs, () => this.rouseRested());
        break;
      }
      this.rouse();
    }
    this.wake();
  }

  private fill(): void {
    const { metadata, stopped, isSafe } = this.parts;
    if (stopped()) return;
    const { room, active } = this;
    for (const kind of KINDS) {
      const waiting = this.waiting[kind];
      for (let id; (id = waiting.first()) !== undefined;) {
        if (room[kind] === 0 || active.size >= UNDER_WAY_MAX || !isSafe(id)) break;
        waiting.shift();
        const entry = metadata.purge(id); // fsck may have taken it away.
        if (entry !== undefined && !active.has(id)) this.begin(entry, kind);
      }
    }
  }
  private begin(entry: PurgeEntry, kind: Kind): void {
    const { room, active } = this;
    active.add(entry.id);
    room[kind]--;
    let holdsRoom = true;
    const makeRoom = (): void => {
      if (holdsRoom) room[kind]++;
      holdsRoom = false;
      this.wake();
    };
    const slow = kind === "small" ? this.parts.clock.setTimer(SLOW_MS, makeRoom) : undefined;
    void this.work(entry).then((isDone) => {
      slow?.cancel();
      active.delete(entry.id);
      if (!isDone) this.waiting[kind].push(entry.id);
      makeRoom();
    });
  }

  /** False when it has to be done again. */
  private async work(entry: PurgeEntry): Promise<boolean> {
    try {
      const facts = await this.free(entry);
      await new Promise<void>((recorded, failed) => {
        this.freed.push({ entry, facts, recorded, failed });
        this.recordSoon();
      });
      return true;
    } catch (error) {
      if (this.parts.stopped()) return false;
      this.parts.logger.warn(
        { purge: entry.id, prefix: entry.prefix, err: describeError(error) },
        "deleted data could not be freed yet; trying again",
      );
      await new Promise<void>((resolve) => void this.parts.clock.setTimer(RETRY_MS, resolve));
      return false;
    }
  }
  /** Resolves with what the record that ends the entry has to say besides. */
  private async free(entry: PurgeEntry): Promise<readonly Delta[]> {
    if (entry.what === "directory") return await this.dropPages(entry);
    if (this.isListed(entry)) await this.removeListed(entry);
    else await this.removeObjects(entry);
    return [];
  }

  /** What OSDs have answered in one turn of the event loop ends with one record. */
  private recordSoon(): void {
    if (this.recordDue) return;
    this.recordDue = true;
    this.parts.clock.defer(() => {
      this.recordDue = false;
      const { freed } = this;
      this.freed = [];
      for (let at = 0; at < freed.length; at += TOGETHER) {
        const part = freed.slice(at, at + TOGETHER);
        this.record(part).then(
          () => part.forEach(({ recorded }) => recorded()),
          (error: unknown) => part.forEach(({ failed }) => failed(error)),
        );
      }
    });
  }
  private async record(freed: readonly Freed[]): Promise<void> {
    const { completed } = this.parts;
    const entries = freed.map(({ entry }) => entry);
    await this.parts.change(
      () => [
        ...freed.flatMap(({ facts }) => facts),
        ...entries.flatMap(completed),
        ...this.done(entries),
      ],
      entries.some(({ volume }) => volume !== 0) ? [VOLUMES_KEY] : [],
    );
    for (const { id } of entries) this.doneSteps.delete(id);
  }
  private done(freed: readonly PurgeEntry[]): Delta[] {
    const { metadata } = this.parts;
    const record: Delta[] = [];
    const left = new Map<number, number>();
    for (const { id } of freed) {
      if (metadata.purge(id) === undefined) continue;
      record.push({ d: "purgeRemove", id });
      const page = purgePageNumber(id);
      const others = (left.get(page) ?? metadata.purgeNeighbours(id)) - 1;
      left.set(page, others);
      if (others === 0) record.push({ d: "purgePage", page, used: false });
    }
    return record;
  }

  private async removeObjects(entry: PurgeEntry): Promise<void> {
    const count = objectCount(entry.layout, entry.bound);
    // Of a large file many may be holes, which are cheaper to ask about than to remove.
    const likely = count > SURE_MAX ? 0 : objectCount(entry.layout, entry.likely);
    for (let start = entry.next; start < count; start += STEP) {
      const end = Math.min(count, start + STEP);
      let next = start;
      const worker = async (): Promise<void> => {
        while (next < end && !this.parts.stopped()) {
          const index = next++;
          const keep = objectSizeWithin(entry.layout, index, entry.from);
          if (keep === 0) await this.removeObject(entry, index, index < likely);
          else if (keep < entry.layout.objectSize) await this.trimObject(entry, index, keep);
        }
      };
      await Promise.all(Array.from({ length: Math.min(PARALLEL, end - start) }, worker));
      if (this.parts.stopped()) throw new Error("stopped");
      this.doneSteps.set(entry.id, end);
      if (end < count) {
        await this.parts.change(() => [{ d: "purgeProgress", id: entry.id, next: end }]);
      }
    }
  }
  private isListed(entry: PurgeEntry): boolean {
    if (entry.what !== "objects") return true;
    const { layout, bound, from } = entry;
    return objectCount(layout, bound) - objectCount(layout, from) > LISTED_FROM;
  }
  private pgCount(entry: PurgeEntry): number {
    const pools = this.parts.lister.pools();
    return pools.find((pool) => pool.id === entry.layout.pool)?.pgCount ?? 0;
  }

  /** One placement group after the other; `next` counts them. */
  private async removeListed(entry: PurgeEntry): Promise<void> {
    const groups = this.pgCount(entry);
    const steps = groups * passesOf(entry);
    for (let step = entry.next; step < steps; step++) {
      this.doneSteps.set(entry.id, step);
      await this.removeGroup(entry, pgId(entry.layout.pool, step % groups));
      // Not every one: that would be a commit for each, most of them for nothing.
      if ((step + 1) % GROUPS_STEP !== 0 || step + 1 === steps) continue;
      await this.parts.change(() => [{ d: "purgeProgress", id: entry.id, next: step + 1 }]);
    }
  }
  private async removeGroup(entry: PurgeEntry, pg: PgId): Promise<void> {
    const { lister, minEpoch } = this.parts;
    const prefix = listedFrom(entry.prefix);
    const parents = this.ancestorsFor(entry).map(({ objectPrefix }) => objectPrefix);
    const prefixes = entry.what === "flatten" ? parents : [entry.prefix, ...parents];
    for (let after = prefix; ;) {
      if (this.parts.stopped()) throw new Error("stopped");
      const options = { limit: STEP, minEpoch: minEpoch() };
      const listed = await lister.listActive(pg, after, options);
      const family = listed.filter(({ object }) => object.startsWith(prefix));
      const names = family
        .map(({ object }) => object)
        .filter((object) => prefixes.some((each) => isObjectOf(each, object)));
      const isAboutClones = entry.what === "clones";
      const ofIndex = (name: string): string => objectName(entry.prefix, objectIndex(name));
      const work = isAboutClones ? names : [...new Set(names.map(ofIndex))];
      await inParallel(work, PARALLEL, async (object) => {
        if (this.parts.stopped()) return;
        if (isAboutClones) return await this.removeUnneeded(entry, object);
        if (entry.what === "rollback") return await this.rollBack(entry, object);
        const index = objectIndex(object);
        if (entry.what === "flatten") return await this.copyUp(entry, index);
        const keep = objectSizeWithin(entry.layout, index, entry.from);
        if (keep === 0) await this.removeObject(entry, index, true);
        else if (keep < entry.layout.objectSize) await this.trimObject(entry, index, keep);
      });
      // Names come in order: the first one of another prefix ends the list.
      const last = listed.at(-1);
      if (last === undefined || family.length < listed.length || listed.length < STEP) return;
      after = last.object;
    }
  }
  /** Under which snapshots a volume's objects are changed; those of files have none. */
  private contextOf(entry: PurgeEntry): SnapContext | undefined {
    if (entry.volume === 0) return undefined;
    const volume = this.parts.metadata.volume(entry.volume);
    if (volume === undefined) return ANY_SNAPSHOTS;
    return { seq: volume.snapSeq, newest: volume.snapshots.at(-1)?.id ?? 0 };
  }
  /** Where a volume that shrinks or becomes independent has objects from besides its own. */
  private ancestorsFor(entry: PurgeEntry): readonly VolumeAncestor[] {
    const { metadata } = this.parts;
    const isAffected = entry.what === "flatten" || entry.shrinks;
    const volume = isAffected ? metadata.volume(entry.volume) : undefined;
    return volume === undefined ? [] : ancestorsOf(metadata, volume);
  }
  private parentsOf(entry: PurgeEntry, index: number): readonly ObjectParent[] {
    return parentObjects(this.ancestorsFor(entry), entry.layout, index);
  }
  private async copyUp(entry: PurgeEntry, index: number): Promise<void> {
    const { objects, minEpoch } = this.parts;
    const address = { pool: entry.layout.pool, object: objectName(entry.prefix, index) };
    const options = { truncation: NONE, minEpoch: minEpoch() };
    if ((await objects.stat(address, options)).exists) return;
    await objects.copyUp(address, { ...options, parents: this.parentsOf(entry, index) });
  }
  private async removeUnneeded(entry: PurgeEntry, object: string): Promise<void> {
    const id = cloneIdOf(object);
    if (id === undefined) return;
    const { objects, minEpoch, metadata } = this.parts;
    const address = { pool: entry.layout.pool, object };
    const options = { truncation: NONE, minEpoch: minEpoch(), snapshots: ANY_SNAPSHOTS };
    const { exists, snapSeq } = await objects.stat(address, options);
    const snapshots = metadata.volume(entry.volume)?.snapshots ?? [];
    if (!exists || snapshots.some((each) => each.id > snapSeq && each.id <= id)) return;
    await objects.remove(address, { ...options, unconditional: true });
  }
  private async rollBack(entry: PurgeEntry, object: string): Promise<void> {
    const { objects, minEpoch, clock } = this.parts;
    const address = { pool: entry.layout.pool, object };
    const options = { truncation: NONE, minEpoch: minEpoch() };
    const { exists, snapSeq } = await objects.stat(address, options);
    if (exists && snapSeq < entry.snap) return; // It has not changed since.
    const snapshots = this.contextOf(entry)!;
    await objects.rollback(address, entry.snap, { ...options, snapshots, mtimeNs: clock.wallNs() });
  }

  private async removeObject(entry: PurgeEntry, index: number, likely: boolean): Promise<void> {
    const { objects, minEpoch } = this.parts;
    const address = { pool: entry.layout.pool, object: objectName(entry.prefix, index) };
    const truncation = { seq: entry.truncateSeq, size: 0 };
    const parents = this.parentsOf(entry, index);
    const options = { truncation, minEpoch: minEpoch(), parents };
    if (!likely && !(await objects.stat(address, { ...options, truncation: NONE })).exists) return;
    const { unconditional } = entry;
    const snapshots = this.contextOf(entry);
    if (snapshots === undefined) await objects.remove(address, { ...options, unconditional });
    else {
      const isThere = this.parts.metadata.volume(entry.volume) !== undefined;
      const whiteout = snapshots.newest > 0 || (isThere && isClonePrefix(entry.prefix));
      await objects.remove(address, { ...options, unconditional, snapshots, whiteout });
    }
  }

  /** The file keeps the first bytes of this object. */
  private async trimObject(entry: PurgeEntry, index: number, keep: number): Promise<void> {
    const { objects, minEpoch, clock } = this.parts;
    const address = { pool: entry.layout.pool, object: objectName(entry.prefix, index) };
    if (!entry.unconditional) {
      const truncation = { seq: entry.truncateSeq, size: keep };
      await objects.trim(address, { truncation, minEpoch: minEpoch() });
      return;
    }
    const options = {
      truncation: NONE,
      minEpoch: minEpoch(),
      parents: this.parentsOf(entry, index),
    };
    const found = await objects.stat(address, options);
    if (!found.exists || found.size <= keep) return;
    const snapshots = this.contextOf(entry) ?? ANY_SNAPSHOTS;
    await objects.truncate(address, keep, { ...options, snapshots, mtimeNs: clock.wallNs() });
  }

  /**
   * Takes down the tree of a removed directory's pages, leaves first. What it resolves with drops
   * the root, which for most directories is all.
   */
  private async dropPages({ ino }: PurgeEntry): Promise<readonly Delta[]> {
    const { metadata } = this.parts;
    const prefixes: string[] = [];
    const walk = async (prefix: string): Promise<void> => {
      const split = await this.parts.read(() => {
        const page = metadata.cache.get(directoryPageKey(ino, prefix));
        return page.body.kind === "d" && page.body.split;
      });
      if (split) for (const digit of "0123456789abcdef") await walk(prefix + digit);
      prefixes.push(prefix);
    };
    await walk("");
    const drop = (prefix: string): Delta => ({ d: "directoryDrop", directory: ino, prefix });
    prefixes.pop();
    for (let at = 0; at < prefixes.length; at += DROPS) {
      const part = prefixes.slice(at, at + DROPS);
      await this.parts.change(() => part.map(drop));
    }
    return [drop("")];
  }
}
const KINDS = ["large", "small"] as const;
/** Of a small one, neither it nor its record is large. */
function kindOf(entry: PurgeEntry): Kind {
  if (entry.what === "directory") return "small";
  return isOfFile(entry) && objectsOf(entry) <= SURE_MAX ? "small" : "large";
}
const freesLittle = (entry: PurgeEntry): boolean => isOfFile(entry) && objectsOf(entry) === 1;
const isOfFile = ({ what, volume }: PurgeEntry): boolean => what === "objects" && volume === 0;
const objectsOf = ({ layout, bound }: PurgeEntry): number => objectCount(layout, bound);
/**
 * What a fenced client had sent may still be on its way to the disks while its placement group is
 * listed for the first time. An object of a removed volume that comes then is waste, which fsck
 * finds; in a volume that lives on it would be wrong bytes.
 */
function passesOf(entry: PurgeEntry): number {
  return entry.shrinks || entry.what === "rollback" ? 2 : 1;
}
const NONE = Object.freeze({ seq: 0, size: 0 });
