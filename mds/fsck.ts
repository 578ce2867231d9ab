/**
 * `dss fsck` in the leader: walks all metadata and all objects while everything goes on, and
 * reports what contradicts itself; with `repair` it puts it right.
 *
 * Nothing is stopped. Every single judgement is made on one moment of the leader's memory; what
 * needs a walk (how many names lead to an inode) counts only for inodes that no operation gave or
 * took a name meanwhile. An object without an owner is one that was there before its owner was
 * looked for and is there after. Numbers of inodes are never used again, so nobody can come to own
 * it. A sweep is a run that looks for such objects alone and removes them; the leader does it by
 * itself now and then.
 *
 * Memory is bounded: a counter of two bytes for each inode number of a window, the numbers touched
 * meanwhile, pages of the cache, and a limited list of findings.
 */
import { DssError, describeError, isDssError } from "../cluster/base/errors.js";
import { formatPg, pgId, type Ino, type PgId } from "../cluster/base/ids.js";
import { ANY_SNAPSHOTS, NO_TRUNCATION } from "../osd/client/object-access.js";
import { fileSizeProvedBy, objectSizeWithin } from "../osd/client/striper.js";
import type { Access } from "./core/capability.js";
import type { Delta } from "./core/delta.js";
import type { Dentry } from "./core/dentry.js";
import {
  LinkCounts,
  badLinks,
  badNames,
  cycleAbove,
  deleteInode,
  dropPurge,
  isPurgeInUse,
  removeName,
  rescue,
  setInode,
  setInodeTotal,
  setType,
  type FoundName,
} from "./core/fsck.js";
import { S_IFDIR, isDirectory, type InodeRecord } from "./core/inode.js";
import { decodeBatch } from "./core/journal.js";
import { emptyPlan } from "./core/plan.js";
import { INODES_PER_PAGE, directoryPageKey, encodePage, inodePageKey } from "./core/page.js";
import { badObjects, type BadObject, type ListedObject } from "./fsck-objects.js";
import { TotalsCheck } from "./fsck-totals.js";
import type { LeaderInside } from "./leader.js";
import { ROOT_INO } from "./proto.js";
import { type FsckFinding, type FsckKind, type FsckStatus } from "./proto-fsck.js";

type Listed = Omit<ListedObject, "pool">;

/** Lists the objects of a placement group, as its primary has them, in name order. */
export interface ObjectLister {
  pools(): readonly { id: number; pgCount: number }[];
  list(pg: PgId, after: string, limit: number): Promise<readonly Listed[]>;
}

export interface FsckSettings {
  repair: boolean;
  objects: boolean;
  /** Nothing but objects without an owner. */
  leftoversOnly?: boolean;
}

/** Inode numbers counted in one walk: 32 MiB of counters. */
const WINDOW = 2 ** 24;
const PAGES_AT_ONCE = 16;
const NAMES_AT_ONCE = 256;
const OBJECTS_AT_ONCE = 128;
const FINDINGS_MAX = 10_000;
/** Findings in one answer. */
const ANSWER_MAX = 200;
/** Inodes that change meanwhile; beyond it the walk begins anew later. */
const TOUCHED_MAX = 2_000_000;
const LIST_TRIES = 5;
const LIST_RETRY_MS = 1_000;
const HEX = "0123456789abcdef";

const ABOUT_NAMES: ReadonlySet<FsckKind> = new Set<FsckKind>([
  "name-without-inode",
  "directory-parent",
  "inode-without-name",
  "cycle",
  "unlinked-inode",
  "file-home",
]);

class Stopped extends Error {}

export class Fsck {
  private run: FsckRun | undefined;
  private sweeping: FsckRun | undefined;
  private runs = 0;

  constructor(
    private readonly inside: LeaderInside,
    private readonly lister: ObjectLister | undefined,
    /** Of this leader. */
    private readonly term: number,
  ) {}

  start(settings: FsckSettings): FsckStatus {
    const { run } = this;
    if (run?.state === "running") {
      if (run.isLike(settings)) return run.status(Infinity);
      throw new DssError("Busy", "another fsck is running", { hint: "wait for its end" });
    }
    this.sweeping?.stop(); // What it has not come to is looked at now.
    return (this.run = this.begin(settings)).status(Infinity);
  }
  /** Collects leftovers of deleted files, unless a run is under way, which finds them too. */
  sweep(): void {
    if (this.run?.state === "running" || this.sweeping?.state === "running") return;
    this.sweeping = this.begin({ repair: true, objects: true, leftoversOnly: true });
  }
  private begin(settings: FsckSettings): FsckRun {
    const id = `${this.term}.${++this.runs}`;
    const run = new FsckRun(id, this.inside, this.lister, settings);
    run.begin();
    return run;
  }

  status(id: string, after: number): FsckStatus {
    if (this.run?.id === id) return this.run.status(after);
    throw new DssError("NotFound", "this check is over: another leader or another run took over");
  }
}

class FsckRun {
  state: FsckStatus["state"] = "running";
  private phase: FsckStatus["phase"] = "journal";
  private readonly counts = { inodes: 0, names: 0, objects: 0, pgs: 0, pgsTotal: 0 };
  private found = 0;
  private repaired = 0;
  private readonly findings: FsckFinding[] = [];
  private error = "";
  /** Inodes that were given or lost a name since the walk began. */
  private touched = new Set<Ino>();
  private created = 0;
  private isStopped = false;
  /** Every page could be read. */
  private isWhole = true;
  /** Names or homes are wrong, and stay so: totals say nothing then. */
  private isUnsound = false;
  private readonly secondNames: FoundName[] = [];
  private readonly totals: TotalsCheck;

  constructor(
    readonly id: string,
    private readonly inside: LeaderInside,
    private readonly lister: ObjectLister | undefined,
    private readonly settings: FsckSettings,
  ) {
    this.totals = new TotalsCheck({
      metadata: inside.metadata,
      look: (read) => this.look(read),
      readOr: (fallback, read) => this.readOr(fallback, read),
      eachName: (directory, visit) => this.walkPage(directory, "", { visit, check: false }),
      report: (kind, what, repair) => this.report(kind, what, repair),
      change: (repair) => this.change(repair),
      isTouched: (ino) => this.touched.has(ino),
    });
  }

  isLike({ repair, objects }: FsckSettings): boolean {
    return this.settings.repair === repair && this.settings.objects === objects;
  }
  status(after: number): FsckStatus {
    const { id: run, state, phase, found, repaired, error } = this;
    const { repair } = this.settings;
    const findings = this.findings.slice(after, after + ANSWER_MAX);
    return { run, state, phase, repair, ...this.counts, found, repaired, findings, error };
  }

  stop(): void {
    this.isStopped = true;
  }
  begin(): void {
    const { logger } = this.inside;
    logger.info({ run: this.id, ...this.settings }, "fsck begins");
    const stopObserving = this.inside.operations.observe((record) => this.observe(record));
    this.work().then(
      () => {
        stopObserving();
        this.state = "done";
        this.phase = "done";
        const { found, repaired } = this;
        logger.info({ run: this.id, ...this.counts, found, repaired }, "fsck is done");
      },
      (error: unknown) => {
        stopObserving();
        this.state = "failed";
        this.error = error instanceof Stopped ? "it was stopped" : describeError(error);
        logger.warn({ run: this.id, error: this.error }, "fsck failed");
      },
    );
  }

  private async work(): Promise<void> {
    // Before that a session's replays may still make what looks as if it had no owner.
    await this.inside.active();
    if (this.settings.leftoversOnly !== true) await this.checkMetadata();
    if (this.settings.objects && this.lister !== undefined) {
      this.phase = "objects";
      await this.checkObjects(this.lister);
    }
    if (this.repaired === 0) return;
    const { journal } = this.inside;
    await new Promise<void>((resolve) => journal.whenSafe(journal.last, resolve));
  }
  private async checkMetadata(): Promise<void> {
    await this.checkJournal();
    for (let first = 0; first < this.nextIno(); first += WINDOW) {
      await this.checkWindow(new LinkCounts(first, Math.min(WINDOW, this.nextIno() - first)));
    }
    this.phase = "totals";
    if (this.isWhole) await this.totals.checkQuotas();
    if (this.isWhole && !this.isUnsound) await this.totals.checkTotals();
    this.phase = "purge queue";
    await this.checkPurges();
  }

  // ---- Tools -----------------------------------------------------------------------------------

  private get metadata() {
    return this.inside.metadata;
  }
  private nextIno(): Ino {
    return this.metadata.counter("nextIno");
  }
  private alive(): void {
    if (this.isStopped || this.inside.stopped()) throw new Stopped();
  }
  /** One moment of the metadata. */
  private async look<T>(read: () => T): Promise<T> {
    this.alive();
    return this.inside.loader.run(read);
  }
  private observe(record: readonly Delta[]): void {
    this.totals.observe(record);
    let names = false;
    for (const { d } of record) {
      if (d === "dentryPut" || d === "dentryRemove") names = true;
      else if (d === "counter") this.created++;
    }
    for (const delta of record) {
      if (delta.d === "dentryPut") this.touched.add(delta.entry.ino);
      else if (delta.d === "inodeRemove") this.touched.add(delta.ino);
      else if (names && delta.d === "inodePut") this.touched.add(delta.inode.ino);
      else if (delta.d === "orphanAdd" || delta.d === "orphanRemove") this.touched.add(delta.ino);
    }
  }
  /** Counts a finding and, if that is wanted, puts it right: true. */
  private async report(
    kind: FsckKind,
    what: string,
    repair?: () => Promise<boolean>,
  ): Promise<boolean> {
    const isRepaired = this.settings.repair && repair !== undefined && (await repair());
    this.found++;
    if (isRepaired) this.repaired++;
    else if (ABOUT_NAMES.has(kind)) this.isUnsound = true;
    this.inside.logger.warn({ run: this.id, kind, what, repaired: isRepaired }, "fsck found");
    if (this.findings.length < FINDINGS_MAX) {
      this.findings.push({ kind, what, repaired: isRepaired });
    }
    return isRepaired;
  }
  /** Journals a repair like any operation: others' capabilities are recalled first. */
  private change(repair: (access: Access, timeNs: bigint) => Delta[]): Promise<boolean> {
    const timeNs = this.inside.clock.wallNs();
    return new Promise((resolve, reject) => {
      this.inside.operations.submit({
        session: 0,
        plan: (access) => {
          const record = repair(access, timeNs);
          const inos = record.flatMap((d) => (d.d === "inodePut" ? [d.inode.ino] : []));
          return { ...emptyPlan(), record, hides: inos };
        },
        done: (_plan, seq) => resolve(seq > 0),
        fail: reject,
      });
    });
  }

  // ---- Journal and pages -----------------------------------------------------------------------

  private async checkJournal(): Promise<void> {
    this.phase = "journal";
    const { store, journal } = this.inside;
    const from = this.inside.checkpoint();
    const until = journal.safe;
    const there = new Set(await store.journal());
    for (let seq = from + 1; seq <= until; seq++) {
      this.alive();
      const problem = there.has(seq) ? await this.batchProblem(seq) : "is missing";
      // It may have been trimmed meanwhile.
      if (problem === undefined || seq <= this.inside.checkpoint()) continue;
      await this.report("journal-damaged", `journal batch ${seq} ${problem}`);
    }
  }
  private async batchProblem(seq: number): Promise<string | undefined> {
    const data = await this.inside.store.readBatch(seq);
    if (data === undefined) return "is missing";
    try {
      decodeBatch(seq, data);
      return undefined;
    } catch (error) {
      return `is damaged: ${describeError(error)}`;
    }
  }

  /** False: it cannot be read, which was reported. */
  private async checkPage(key: string): Promise<boolean> {
    const { store, journal } = this.inside;
    const { cache } = this.metadata;
    const page = cache.peek(key);
    const isClean = (): boolean => page?.dirtyFrom === 0 && page.flushingFrom === 0;
    try {
      if (page === undefined) {
        const applied = await this.look(() => cache.get(key).applied);
        if (applied <= journal.current) return true;
        const what = `page ${key} has batch ${applied}, the journal ends at ${journal.current}`;
        await this.report("page-damaged", what);
        return true;
      }
      if (!isClean()) return true; // It is about to be written.
      const { applied } = page;
      const wanted = page.empty ? undefined : encodePage(page);
      const same = async (): Promise<boolean> => {
        const stored = await store.loadPage(key);
        if (cache.peek(key) !== page || !isClean() || page.applied !== applied) return true;
        if (stored === undefined) return wanted === undefined || !page.stored;
        return wanted !== undefined && stored.equals(wanted);
      };
      // A second look: its writing may just have ended.
      if ((await same()) || (await same())) return true;
      await this.report("page-differs", `page ${key} in store is not what was written`, () => {
        if (isClean() && cache.peek(key) === page) cache.changed(page, Math.max(1, page.applied));
        return Promise.resolve(true);
      });
      return true;
    } catch (error) {
      if (!isDssError(error, "Corrupt")) throw error;
      this.isWhole = false;
      await this.report("page-damaged", `page ${key}: ${error.message}`);
      return false;
    }
  }

  // ---- Names and links -------------------------------------------------------------------------

  /** All inodes, in numbers' order, page by page. */
  private async *inodes(first: Ino, end: Ino, check: boolean): AsyncGenerator<InodeRecord[]> {
    const last = Math.ceil(end / INODES_PER_PAGE);
    for (let at = Math.floor(first / INODES_PER_PAGE); at < last; at += PAGES_AT_ONCE) {
      const numbers = Array.from({ length: Math.min(PAGES_AT_ONCE, last - at) }, (_, i) => at + i);
      const pages = await Promise.all(
        numbers.map(async (number): Promise<InodeRecord[]> => {
          const key = inodePageKey(number * INODES_PER_PAGE);
          if (check && !(await this.checkPage(key))) return [];
          return this.readOr([], () => {
            const { body } = this.metadata.cache.get(key);
            return body.kind === "i" ? [...body.inodes.values()] : [];
          });
        }),
      );
      for (const page of pages) if (page.length > 0) yield page;
    }
  }
  /** A page that cannot be read was reported when it was checked. */
  private async readOr<T>(fallback: T, read: () => T): Promise<T> {
    try {
      return await this.look(read);
    } catch (error) {
      if (isDssError(error, "Corrupt")) return fallback;
      throw error;
    }
  }

  private async checkWindow(counts: LinkCounts): Promise<void> {
    this.touched = new Set();
    this.created = 0;
    const isFirst = counts.first === 0;
    this.phase = "names";
    for await (const page of this.inodes(0, this.nextIno(), isFirst)) {
      if (isFirst) this.counts.inodes += page.length;
      for (const inode of page) if (isDirectory(inode)) await this.walk(inode.ino, counts, isFirst);
      if (this.touched.size > TOUCHED_MAX) {
        throw new DssError(
          "Overloaded",
          "too many names change meanwhile: run it at a quieter time",
        );
      }
    }
    // Without all names nobody can tell what has none.
    if (!this.isWhole) return;
    this.phase = "links";
    const end = counts.first + counts.size;
    for await (const page of this.inodes(counts.first, end, false)) {
      for (const inode of page) {
        const { ino } = inode;
        if (!counts.has(ino)) continue;
        const names = counts.get(ino);
        const right = isDirectory(inode) ? 1 : inode.nlink;
        // Most are as they should be: these need no second look.
        if (names === 0 || names !== right) await this.checkLinks(ino, names);
      }
      for (const inode of page) if (isDirectory(inode)) await this.checkCycle(inode.ino);
    }
    for (const name of this.secondNames.splice(0)) await this.checkParent(name, counts);
    if (isFirst) await this.totals.checkPlaces();
    if (isFirst && this.nextIno() <= end) await this.checkTotal();
  }

  /** Counts and checks the names of one directory. */
  private async walk(directory: Ino, counts: LinkCounts, isFirst: boolean): Promise<void> {
    const sums = { entries: 0, directories: 0 };
    const visit = async (entries: Dentry[]): Promise<void> => {
      sums.entries += entries.length;
      for (const { ino, type } of entries) {
        counts.add(ino);
        if (type === S_IFDIR) sums.directories++;
      }
      if (isFirst) await this.checkNames(directory, entries);
    };
    const isWhole = await this.walkPage(directory, "", { visit, check: isFirst });
    if (!isFirst || !isWhole) return;
    const inode = await this.look(() => this.metadata.inode(directory));
    if (inode === undefined || this.touched.has(directory)) return;
    const nlink = 2 + sums.directories;
    if (inode.size === sums.entries && inode.nlink === nlink) return;
    const what =
      `directory ${hex(directory)} counts ${inode.size} entries and ${inode.nlink} links, ` +
      `it has ${sums.entries} and ${nlink}`;
    await this.report("directory-count", what, () =>
      this.change((access) => {
        if (this.touched.has(directory)) return [];
        return setInode(this.metadata, access, directory, { size: sums.entries, nlink });
      }),
    );
  }
  /** False: a page of it cannot be read. */
  private async walkPage(
    directory: Ino,
    prefix: string,
    how: { visit: (entries: Dentry[]) => Promise<void>; check: boolean },
  ): Promise<boolean> {
    const key = directoryPageKey(directory, prefix);
    if (how.check && !(await this.checkPage(key))) return false;
    const entries = await this.readOr<Dentry[] | "split">([], () => {
      const { body } = this.metadata.cache.get(key);
      if (body.kind !== "d") return [];
      return body.split ? "split" : [...body.entries.values()];
    });
    if (entries !== "split") {
      await how.visit(entries);
      return true;
    }
    let isWhole = true;
    for (const digit of HEX) {
      if (!(await this.walkPage(directory, prefix + digit, how))) isWhole = false;
    }
    return isWhole;
  }

  private async checkNames(directory: Ino, entries: readonly Dentry[]): Promise<void> {
    this.counts.names += entries.length;
    for (let at = 0; at < entries.length; at += NAMES_AT_ONCE) {
      const names = entries.slice(at, at + NAMES_AT_ONCE).map((entry) => ({ directory, entry }));
      await this.totals.noteNames(directory, entries.slice(at, at + NAMES_AT_ONCE));
      const bad = await this.readOr([], () => badNames(this.metadata, names));
      for (const { kind, name } of bad) await this.reportName(kind, name);
    }
  }
  private async reportName(kind: FsckKind, name: FoundName): Promise<void> {
    const what = describeName(name);
    if (kind === "directory-parent")
      this.secondNames.push(name); // When all names are counted.
    else if (kind === "wrong-type") {
      await this.report(kind, what, () =>
        this.change((access) => setType(this.metadata, access, name)),
      );
    } else {
      await this.report(kind, what, () =>
        this.change((access, timeNs) =>
          this.metadata.inode(name.entry.ino) === undefined
            ? removeName(this.metadata, access, name, timeNs)
            : [],
        ),
      );
    }
  }

  private async checkLinks(ino: Ino, names: number): Promise<void> {
    if (names === 65_535 || this.touched.has(ino)) return;
    const kind = await this.look(() =>
      this.touched.has(ino) ? undefined : badLinks(this.metadata, ino, names),
    );
    if (kind === undefined) return;
    const what = `inode ${hex(ino)} with ${names} names`;
    await this.report(kind, what, () =>
      this.change((access, timeNs) => {
        if (this.touched.has(ino)) return [];
        const { metadata } = this;
        if (kind === "unlinked-inode") return deleteInode(metadata, access, ino);
        if (kind === "link-count") return setInode(metadata, access, ino, { nlink: names });
        return rescue(metadata, access, { ino, timeNs });
      }),
    );
  }

  /** Two names of one directory, or one that says another parent than the directory itself. */
  private async checkParent(name: FoundName, counts: LinkCounts): Promise<void> {
    const { directory, entry } = name;
    if (!counts.has(entry.ino) || this.touched.has(entry.ino)) return;
    const isOnly = counts.get(entry.ino) === 1;
    await this.report("directory-parent", describeName(name), () =>
      this.change((access, timeNs) => {
        if (this.touched.has(entry.ino)) return [];
        if (!isOnly) return removeName(this.metadata, access, name, timeNs);
        return setInode(this.metadata, access, entry.ino, { parent: directory });
      }),
    );
  }

  private readonly inCycle = new Set<Ino>();
  private async checkCycle(directory: Ino): Promise<void> {
    if (this.inCycle.has(directory)) return;
    const cycle = await this.look(() => cycleAbove(this.metadata, directory));
    if (cycle.length === 0) return;
    for (const ino of cycle) this.inCycle.add(ino);
    const ino = Math.min(...cycle);
    const what = `directories ${cycle.map(hex).join(", ")} are below each other`;
    const parent = await this.look(() => this.metadata.inode(ino)?.parent ?? ROOT_INO);
    const name = await this.nameIn(parent, ino);
    await this.report("cycle", what, () =>
      this.change((access, timeNs) => {
        if (cycleAbove(this.metadata, ino).length === 0) return [];
        const oldName = name === undefined ? {} : { oldName: { directory: parent, entry: name } };
        return rescue(this.metadata, access, { ino, timeNs, ...oldName });
      }),
    );
  }
  private async nameIn(directory: Ino, ino: Ino): Promise<Dentry | undefined> {
    let found: Dentry | undefined;
    const visit = async (entries: Dentry[]): Promise<void> => {
      found ??= entries.find((entry) => entry.ino === ino);
    };
    await this.walkPage(directory, "", { visit, check: false });
    return found;
  }

  /** Only when none was made or removed since the count began. */
  private async checkTotal(): Promise<void> {
    const { inodes } = this.counts;
    const total = this.metadata.counter("inodes");
    if (this.created > 0 || this.touched.size > 0 || total === inodes) return;
    await this.report("inode-total", `${total} are counted, ${inodes} are there`, () =>
      this.change(() => (this.created > 0 ? [] : setInodeTotal(this.metadata, inodes))),
    );
  }

  private async checkPurges(): Promise<void> {
    for (const entry of [...this.metadata.purges()]) {
      const isInUse = (): boolean =>
        this.metadata.purge(entry.id) !== undefined && isPurgeInUse(this.metadata, entry);
      if (!(await this.look(isInUse))) continue;
      await this.report("purge-in-use", `deletion ${entry.id} of objects ${entry.prefix}.*`, () =>
        this.change(() => (isInUse() ? dropPurge(this.metadata, entry.id) : [])),
      );
    }
  }

  // ---- Objects ---------------------------------------------------------------------------------

  private async checkObjects(lister: ObjectLister): Promise<void> {
    const pools = lister.pools();
    this.counts.pgsTotal = pools.reduce((sum, { pgCount }) => sum + pgCount, 0);
    for (const { id, pgCount } of pools) {
      for (let index = 0; index < pgCount; index++) {
        await this.checkPg(lister, id, pgId(id, index));
        this.counts.pgs++;
      }
    }
  }
  private async checkPg(lister: ObjectLister, pool: number, pg: PgId): Promise<void> {
    for (let after = ""; ;) {
      const listed = await this.list(lister, pg, after);
      if (listed === undefined || listed.length === 0) return;
      after = listed.at(-1)!.object;
      this.counts.objects += listed.length;
      const all = listed.map((each) => ({ ...each, pool }));
      for (const bad of await this.judge(all)) await this.confirm(bad);
    }
  }
  private async list(
    lister: ObjectLister,
    pg: PgId,
    after: string,
  ): Promise<readonly Listed[] | undefined> {
    for (let tries = 1; ; tries++) {
      this.alive();
      try {
        return await lister.list(pg, after, OBJECTS_AT_ONCE);
      } catch (error) {
        if (!isDssError(error)) throw error;
        if (tries === LIST_TRIES) {
          const what = `pg ${formatPg(pg)} cannot be listed: ${describeError(error)}`;
          await this.report("not-checked", what);
          return undefined;
        }
        await new Promise<void>((done) => void this.inside.clock.setTimer(LIST_RETRY_MS, done));
      }
    }
  }
  private judge(listed: readonly ListedObject[]): Promise<BadObject[]> {
    return this.readOr([], () => badObjects(this.metadata, this.inside.capabilities, listed));
  }

  /** The object is still there, and still nothing is known that it could belong to. */
  private async confirm(bad: BadObject): Promise<void> {
    const { pool, object, kind, ino, index } = bad;
    if (this.settings.leftoversOnly === true && kind !== "object-without-owner") return;
    const address = { pool, object };
    const minEpoch = this.inside.minEpoch();
    const inode = ino === undefined ? undefined : await this.look(() => this.metadata.inode(ino));
    const { layout } = inode ?? {};
    const truncation =
      inode === undefined || layout === undefined || inode.truncateSeq === 0
        ? NO_TRUNCATION
        : {
            seq: inode.truncateSeq,
            size: objectSizeWithin(layout, index ?? 0, inode.truncateSize),
          };
    const stat = await this.inside.objects.stat(address, { truncation, minEpoch });
    if (!stat.exists) return;
    const again = (await this.judge([{ pool, object, size: stat.size }]))[0];
    if (again?.kind !== kind) return;
    if (kind === "object-beyond-end" && stat.size === 0) return; // Emptied by a truncation.
    const what = `object ${object} (${stat.size} bytes) of pool ${pool}`;
    await this.report(kind, what, this.objectRepair(bad, stat.size));
  }
  private objectRepair(bad: BadObject, size: number): (() => Promise<boolean>) | undefined {
    const { pool, object, kind, ino, index } = bad;
    if (kind === "object-without-owner") {
      return async () => {
        const minEpoch = this.inside.minEpoch();
        const whatever = { unconditional: true, snapshots: ANY_SNAPSHOTS };
        const options = { truncation: NO_TRUNCATION, minEpoch, ...whatever };
        await this.inside.objects.remove({ pool, object }, options);
        return true;
      };
    }
    if (kind !== "file-too-short" || ino === undefined) return undefined;
    return () =>
      this.change((access) => {
        const inode = this.metadata.inode(ino);
        if (inode?.layout === undefined) return [];
        const proved = fileSizeProvedBy(inode.layout, index ?? 0, size);
        if (proved <= inode.size) return [];
        const dataMax = Math.max(inode.dataMax, proved);
        // Nobody knows what else it wrote.
        return setInode(this.metadata, access, ino, { size: proved, dataMax, recount: true });
      });
  }
}

const hex = (ino: Ino): string => ino.toString(16);
function describeName({ directory, entry }: FoundName): string {
  const name = JSON.stringify(entry.name.toString("utf8"));
  return `name ${name} in directory ${hex(directory)}, of inode ${hex(entry.ino)}`;
}
