/**
 * The lossy test disk: a file system in memory that keeps what was made durable apart from what was
 * not. When the power is cut every change that no sync covered is kept, dropped or torn at 512-byte
 * sectors, as a seed decides; `survivors` is then all that comes back.
 *
 * What is durable: of a file, what was written before an fsync or fdatasync that was answered, or
 * with O_DSYNC; of a name, what was changed before an fsync of its directory. Strict where POSIX
 * is: an fsync of a new file says nothing about its name.
 *
 * Owns: per inode the durable bytes and the changes since, in order; the durable names and the
 * changes of names since. What readers see is the MemoryFileSystem's.
 */
import { DssError } from "../../cluster/base/errors.js";
import type { Prng } from "../../cluster/base/prng.js";
import type {
  Caller,
  Entry,
  OpenReply,
  RenameFlags,
  SetAttributes,
} from "../../client-fs/file-system.js";
import { MemoryFileSystem } from "../integration/memory-fs.js";
import { Pages } from "../sim/sim-disk.js";

const SECTOR = 512;
const ROOT = 1;
const O_TRUNC = 0o1000;
const O_DSYNC = 0o10000; // Part of O_SYNC too.
const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const ZERO_RANGE = 0x10;
/** Like a kernel, the disk writes back by itself what nobody syncs. */
const PENDING_BYTES_MAX = 64 * 2 ** 20;
const SYNC_MS_MAX = 2;
const ROOT_USER: Caller = { uid: 0, gid: 0, pid: 0, umask: 0 };

type Change =
  | { do: "write"; order: number; position: number; bytes: Buffer; durable: boolean }
  | { do: "clear"; order: number; start: number; end: number }
  | { do: "resize"; order: number; size: number };
/** A change as it is made: without its place in the order of all. */
type NewChange = Change extends infer C ? (C extends Change ? Omit<C, "order"> : never) : never;

/** Durable names by directory. */
type Names = Map<number, Map<string, number>>;

interface NameChange {
  order: number;
  directories: readonly number[];
  run(names: Names): void;
}

/** What is on the disk when the power is back. */
export type Survivor =
  | { mode: number; names: Map<string, Survivor> }
  | { mode: number; pages: Pages };

/** How changes that no sync covered fare. */
export const LUCK = ["all lost", "all kept", "each by itself", "in order up to a point"] as const;
export type Luck = (typeof LUCK)[number];

export interface CutReport {
  luck: Luck;
  kept: number;
  lost: number;
  torn: number;
  namesKept: number;
  namesLost: number;
}

/** The power of one disk. Answers that were not given before it fails are never given. */
export class Power {
  private state: "on" | "failing" | "off" = "on";
  /** Told when it fails. */
  onFailing: () => void = () => undefined;
  private readonly held: ((error: Error) => void)[] = [];

  get on(): boolean {
    return this.state === "on";
  }
  /** Nothing is answered from now on. */
  fail(): void {
    if (this.state !== "on") return;
    this.state = "failing";
    this.onFailing();
  }
  /** For what waits and what still comes: nobody is left who could act upon the error. */
  cut(): void {
    this.state = "off";
    for (const reject of this.held.splice(0)) reject(this.error());
  }
  hold(): Promise<never> {
    if (this.state === "off") return Promise.reject(this.error());
    return new Promise((_, reject) => this.held.push(reject));
  }
  private error(): Error {
    return new DssError("Disk", "the power is off");
  }
}

const nameOf = (name: Buffer): string => name.toString("latin1");

export class LossyFileSystem extends MemoryFileSystem {
  /** Syncs are answered and do nothing: what a test of this test must notice. */
  ignoreSyncs = false;
  /** The power fails after so many more changes and syncs. */
  failsAfter = Infinity;
  private readonly durable = new Map<number, Pages>();
  private readonly durableNames: Names = new Map([[ROOT, new Map<string, number>()]]);
  private readonly changes = new Map<number, Change[]>();
  private nameChanges: NameChange[] = [];
  private pendingBytes = 0;
  private order = 0;

  private constructor(
    private readonly power: Power,
    private readonly random: Prng,
  ) {
    super();
  }

  /** A disk that holds exactly the survivors of a cut, or nothing. */
  static async open(power: Power, random: Prng, root?: Survivor): Promise<LossyFileSystem> {
    const files = new LossyFileSystem(power, random);
    if (root !== undefined && "names" in root) await files.restore(ROOT, root.names, new Set());
    files.makeAllDurable();
    return files;
  }

  private async restore(
    parent: number,
    names: Map<string, Survivor>,
    seen: Set<Pages>,
  ): Promise<void> {
    for (const [text, survivor] of names) {
      const name = Buffer.from(text, "latin1");
      if ("names" in survivor) {
        const { attributes } = await this.mkdir(parent, name, survivor.mode & 0o7777, ROOT_USER);
        await this.restore(attributes.ino, survivor.names, seen);
        this.forget(attributes.ino, 1);
        continue;
      }
      const { attributes } = await super.create(parent, name, survivor.mode, 0, ROOT_USER);
      const { ino } = attributes;
      this.named([parent], (all) => all.get(parent)?.set(text, ino));
      for (const [page, bytes] of survivor.pages.map) {
        const options = { flags: 0, killPrivileges: false, fromPageCache: false };
        await super.write(ino, 0, page * bytes.length, bytes, options);
      }
      await super.setattr(ino, { size: survivor.pages.size });
      // Of two renames the second alone may have survived: the file has two names, now two files.
      this.durable.set(ino, seen.has(survivor.pages) ? survivor.pages.clone() : survivor.pages);
      seen.add(survivor.pages);
      await this.release(ino);
      this.forget(ino, 1);
    }
  }

  // ---- Changes of bytes -------------------------------------------------------------------------

  private changed(ino: number, change: NewChange): void {
    let list = this.changes.get(ino);
    if (list === undefined) this.changes.set(ino, (list = []));
    list.push({ ...change, order: ++this.order });
    this.step();
    if (change.do !== "write") return;
    this.pendingBytes += change.bytes.length;
    if (this.pendingBytes > PENDING_BYTES_MAX) this.makeDurable(ino, this.order);
  }

  private step(): void {
    if (--this.failsAfter <= 0) this.power.fail();
  }

  /** Everything that happened to the inode up to `order`. */
  private makeDurable(ino: number, order: number): void {
    const list = this.changes.get(ino) ?? [];
    const rest = list.findIndex((change) => change.order > order);
    const pages = this.pagesOf(ino);
    for (const change of list.splice(0, rest < 0 ? list.length : rest)) {
      apply(pages, change);
      if (change.do === "write") this.pendingBytes -= change.bytes.length;
    }
  }

  private pagesOf(ino: number): Pages {
    let pages = this.durable.get(ino);
    if (pages === undefined) this.durable.set(ino, (pages = new Pages()));
    return pages;
  }

  /** As if every file and directory had been synced; for the test that fills the disk. */
  makeAllDurable(): void {
    for (const ino of this.changes.keys()) this.makeDurable(ino, this.order);
    for (const change of this.nameChanges.splice(0)) change.run(this.durableNames);
  }

  override async write(
    ino: number,
    handle: number,
    position: number,
    data: Buffer,
    options: { flags: number; killPrivileges: boolean; fromPageCache: boolean },
  ): Promise<number> {
    // The driver's buffer is reused after the answer.
    const bytes = Buffer.from(data);
    const written = await super.write(ino, handle, position, data, options);
    const durable = (options.flags & O_DSYNC) !== 0 && !this.ignoreSyncs;
    this.changed(ino, { do: "write", position, bytes, durable });
    return written;
  }
  override async setattr(ino: number, changes: SetAttributes): Promise<Entry> {
    const entry = await super.setattr(ino, changes);
    if (changes.size !== undefined) this.changed(ino, { do: "resize", size: changes.size });
    return entry;
  }
  override async open(
    ino: number,
    flags: number,
    caller: Caller,
    options?: { killPrivileges: boolean },
  ): Promise<OpenReply> {
    const reply = await super.open(ino, flags, caller, options);
    if (flags & O_TRUNC) this.changed(ino, { do: "resize", size: 0 });
    return reply;
  }
  override async fallocate(
    ino: number,
    handle: number,
    offset: number,
    length: number,
    mode: number,
  ): Promise<void> {
    const { size } = (await this.getattr(ino)).attributes;
    await super.fallocate(ino, handle, offset, length, mode);
    const end = offset + length;
    if (mode & (PUNCH_HOLE | ZERO_RANGE)) {
      this.changed(ino, { do: "clear", start: offset, end: Math.min(end, size) });
    }
    if (!(mode & KEEP_SIZE) && end > size) this.changed(ino, { do: "resize", size: end });
  }

  private async syncDelay(): Promise<void> {
    this.step();
    const ms = this.random.float() * SYNC_MS_MAX;
    await new Promise((done) => setTimeout(done, ms));
    if (!this.power.on) await this.power.hold();
  }
  /** Covers what had been written when it came, not what comes meanwhile. */
  override async fsync(ino?: number): Promise<void> {
    const { order } = this;
    await this.syncDelay();
    if (ino !== undefined && !this.ignoreSyncs) this.makeDurable(ino, order);
  }

  // ---- Changes of names -------------------------------------------------------------------------

  private named(directories: readonly number[], run: (names: Names) => void): void {
    this.nameChanges.push({ order: ++this.order, directories, run });
    this.step();
  }

  override async create(
    parent: number,
    name: Buffer,
    mode: number,
    flags: number,
    caller: Caller,
  ): Promise<Entry & OpenReply> {
    const reply = await super.create(parent, name, mode, flags, caller);
    const { ino } = reply.attributes;
    this.named([parent], (all) => all.get(parent)?.set(nameOf(name), ino));
    return reply;
  }
  override async mkdir(
    parent: number,
    name: Buffer,
    mode: number,
    caller: Caller,
  ): Promise<Entry> {
    const entry = await super.mkdir(parent, name, mode, caller);
    const { ino } = entry.attributes;
    // The directory exists at once, without a name: it is reached when its name is durable.
    this.durableNames.set(ino, new Map());
    this.named([parent], (all) => all.get(parent)?.set(nameOf(name), ino));
    return entry;
  }
  override async unlink(parent: number, name: Buffer): Promise<void> {
    await super.unlink(parent, name);
    this.named([parent], (all) => all.get(parent)?.delete(nameOf(name)));
  }
  override async rmdir(parent: number, name: Buffer): Promise<void> {
    await super.rmdir(parent, name);
    this.named([parent], (all) => all.get(parent)?.delete(nameOf(name)));
  }
  override async rename(
    parent: number,
    name: Buffer,
    newParent: number,
    newName: Buffer,
    flags: RenameFlags,
  ): Promise<void> {
    if (flags.exchange) throw new DssError("NotSupported", "the lossy disk exchanges no names");
    const { ino } = (await this.lookup(parent, name)).attributes;
    this.forget(ino, 1);
    await super.rename(parent, name, newParent, newName, flags);
    this.named([parent, newParent], (all) => {
      all.get(parent)?.delete(nameOf(name));
      all.get(newParent)?.set(nameOf(newName), ino);
    });
  }
  override async symlink(): Promise<Entry> {
    throw new DssError("NotSupported", "the lossy disk has no symbolic links");
  }
  override async mknod(): Promise<Entry> {
    throw new DssError("NotSupported", "the lossy disk has no special files");
  }
  override async link(): Promise<Entry> {
    throw new DssError("NotSupported", "the lossy disk has no hard links");
  }
  override async fsyncdir(ino?: number): Promise<void> {
    const { order } = this;
    await this.syncDelay();
    if (ino === undefined || this.ignoreSyncs) return;
    const rest: NameChange[] = [];
    for (const change of this.nameChanges) {
      if (change.order <= order && change.directories.includes(ino)) change.run(this.durableNames);
      else rest.push(change);
    }
    this.nameChanges = rest;
  }

  // ---- The cut ----------------------------------------------------------------------------------

  /** What is found when the power is back. The file system must not be used any more. */
  survivors(random: Prng, luck: Luck): { root: Survivor; report: CutReport } {
    const report: CutReport = { luck, kept: 0, lost: 0, torn: 0, namesKept: 0, namesLost: 0 };
    const limit = random.int(0, this.order);
    const survives = (order: number): boolean => {
      if (luck === "each by itself") return random.chance(0.5);
      return luck === "all kept" || (luck === "in order up to a point" && order <= limit);
    };
    for (const change of this.nameChanges) {
      const kept = survives(change.order);
      if (kept) change.run(this.durableNames);
      report[kept ? "namesKept" : "namesLost"]++;
    }
    for (const [ino, list] of this.changes) {
      const pages = this.pagesOf(ino);
      for (const change of list) {
        const certain = change.do === "write" && change.durable;
        if (!certain && luck === "each by itself" && random.chance(0.4)) {
          if (tear(pages, change, random)) report.torn++;
        } else if (certain || survives(change.order)) {
          apply(pages, change);
          report.kept++;
        } else report.lost++;
      }
    }
    return { root: this.survivor(ROOT), report };
  }

  private survivor(ino: number): Survivor {
    // One that was removed since is no longer in the table of what readers see.
    const mode = this.inodes.get(ino)?.mode ?? 0o700;
    const children = this.durableNames.get(ino);
    if (children === undefined) return { mode, pages: this.pagesOf(ino) };
    const names = new Map<string, Survivor>();
    for (const [name, child] of children) {
      names.set(name, this.survivor(child));
    }
    return { mode, names };
  }
}

function apply(pages: Pages, change: Change): void {
  if (change.do === "write") pages.write(change.bytes, change.position);
  else if (change.do === "clear") pages.clear(change.start, change.end);
  else pages.resize(change.size);
}

/** Some sectors of a write: a beginning, an end, or any. False for what is not a write. */
function tear(pages: Pages, change: Change, random: Prng): boolean {
  if (change.do !== "write") return false;
  const { bytes, position } = change;
  const first = Math.floor(position / SECTOR);
  const sectors = Math.ceil((position + bytes.length) / SECTOR) - first;
  const border = random.int(0, sectors);
  const shape = random.pick(["beginning", "end", "any"] as const);
  for (let sector = 0; sector < sectors; sector++) {
    const before = sector < border;
    const keep = shape === "any" ? random.chance(0.5) : before === (shape === "beginning");
    if (!keep) continue;
    const start = Math.max((first + sector) * SECTOR, position);
    const end = Math.min((first + sector + 1) * SECTOR, position + bytes.length);
    pages.write(bytes.subarray(start - position, end - position), start);
  }
  return true;
}
