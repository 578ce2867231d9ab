/**
 * A simulated disk behind the Disk port. What was not synced when the power is cut is kept, lost or
 * torn at 512-byte sectors, each write by itself; names not made durable by `syncDirectory` are
 * kept up to some point and lost after it; index commits that had not resolved happened or not.
 * All choices come from the seed. With a clock, every asynchronous call takes a seeded time.
 *
 * `attach` gives the disk to one incarnation of a daemon; after `crash` its calls never answer.
 */
import { DssError } from "../../cluster/base/errors.js";
import type { Prng } from "../../cluster/base/prng.js";
import type {
  Disk,
  DirectFile,
  DiskFile,
  DiskUsage,
  OrderedStore,
  StoreBatch,
} from "../../cluster/platform/ports.js";

const PAGE = 4096;
const SECTOR = 512;

/** Bytes by page; pages never written are zeros. */
export class Pages {
  readonly map = new Map<number, Buffer>();
  size = 0;

  clone(): Pages {
    const copy = new Pages();
    for (const [page, bytes] of this.map) copy.map.set(page, Buffer.from(bytes));
    copy.size = this.size;
    return copy;
  }
  write(bytes: Buffer, position: number): void {
    for (let done = 0; done < bytes.length;) {
      const at = position + done;
      const offset = at % PAGE;
      const take = Math.min(PAGE - offset, bytes.length - done);
      let page = this.map.get(Math.floor(at / PAGE));
      if (!page) this.map.set(Math.floor(at / PAGE), (page = Buffer.alloc(PAGE)));
      bytes.copy(page, offset, done, done + take);
      done += take;
    }
    this.size = Math.max(this.size, position + bytes.length);
  }
  read(buffer: Buffer, position: number): number {
    const length = Math.max(0, Math.min(buffer.length, this.size - position));
    for (let done = 0; done < length;) {
      const at = position + done;
      const offset = at % PAGE;
      const take = Math.min(PAGE - offset, length - done);
      const page = this.map.get(Math.floor(at / PAGE));
      if (page) page.copy(buffer, done, offset, offset + take);
      else buffer.fill(0, done, done + take);
      done += take;
    }
    return length;
  }
  /** Zeros in [start, end); the size stays. */
  clear(start: number, end: number): void {
    for (let at = start; at < end;) {
      const page = Math.floor(at / PAGE);
      const stop = Math.min(end, (page + 1) * PAGE);
      if (stop - at === PAGE) this.map.delete(page);
      else this.map.get(page)?.fill(0, at - page * PAGE, stop - page * PAGE);
      at = stop;
    }
  }
  resize(size: number): void {
    for (const page of this.map.keys()) if (page * PAGE >= size) this.map.delete(page);
    if (size < this.size) this.map.get(Math.floor(size / PAGE))?.fill(0, size % PAGE);
    this.size = size;
  }
}

interface PendingWrite {
  bytes: Buffer;
  position: number;
  done: boolean;
}

class Inode {
  cache = new Pages();
  durable = new Pages();
  /** Not synced, in order of issue. */
  pending: PendingWrite[] = [];
}

interface NameChange {
  directory: string;
  run(names: Map<string, Inode>, directories: Set<string>): void;
}

class Index {
  entries = new Map<string, Buffer>();
  sorted: string[] | undefined;
  /** Commits under way, in order. */
  committing: StoreBatch[] = [];

  run(batch: StoreBatch): void {
    for (const { key, value } of batch.puts)
      this.entries.set(key.toString("latin1"), Buffer.from(value));
    for (const key of batch.deletes) this.entries.delete(key.toString("latin1"));
    this.sorted = undefined;
  }
  keys(): string[] {
    return (this.sorted ??= [...this.entries.keys()].sort());
  }
}

export interface SimDiskOptions {
  random: Prng;
  /** Runs the callback after `ms`; without it calls complete at once, in order. */
  schedule?: (ms: number, run: () => void) => void;
  /** The longest that one call takes. */
  delayMs?: number;
  /** The longest that a commit of an index takes; as any other call when left out. */
  commitMs?: number;
  capacityBytes?: number;
}

const parentOf = (path: string): string =>
  path.includes("/") ? path.slice(0, path.lastIndexOf("/")) : ".";
const normal = (path: string): string => (path === "" ? "." : path);

export class SimDisk {
  private names = new Map<string, Inode>();
  private directories = new Set<string>(["."]);
  private durableNames = new Map<string, Inode>();
  private durableDirectories = new Set<string>(["."]);
  private changes: NameChange[] = [];
  private readonly indexes = new Map<string, Index>();
  private generation = 0;
  private locked = new Set<string>();
  /** Called before an operation; an error it returns is the operation's outcome. */
  fault:
    | ((operation: "write" | "sync" | "commit" | "read", path: string) => Error | undefined)
    | undefined;
  readonly counts = { writes: 0, syncs: 0, commits: 0, crashes: 0 };

  constructor(private readonly options: SimDiskOptions) {}

  /** The disk as the present incarnation sees it. */
  attach(): Disk {
    const generation = this.generation;
    return new AttachedDisk(this, () => this.generation === generation);
  }

  /**
   * The process is killed, the machine goes on: what it had written is what the next one reads, and
   * no more durable than before. A call under way happened or did not.
   */
  kill(): void {
    const { random } = this.options;
    this.generation++;
    this.locked = new Set();
    for (const inode of new Set(this.names.values())) {
      inode.pending = inode.pending.filter((write) => {
        if (!write.done && random.chance(0.5)) return false;
        if (!write.done) inode.cache.write(write.bytes, write.position);
        return (write.done = true);
      });
    }
    for (const index of this.indexes.values()) {
      const happened = random.int(0, index.committing.length);
      for (const batch of index.committing.splice(0).slice(0, happened)) index.run(batch);
    }
  }

  /** The power is cut. The present incarnation's calls never answer. */
  crash(): void {
    const { random } = this.options;
    this.generation++;
    this.counts.crashes++;
    this.locked = new Set();
    const kept = random.int(0, this.changes.length);
    for (const change of this.changes.splice(0).slice(0, kept)) {
      change.run(this.durableNames, this.durableDirectories);
    }
    for (const path of [...this.durableNames.keys()]) {
      if (!this.durableDirectories.has(parentOf(path))) this.durableNames.delete(path);
    }
    this.names = new Map(this.durableNames);
    this.directories = new Set(this.durableDirectories);
    for (const inode of new Set(this.names.values())) this.crashFile(inode);
    for (const [path, index] of [...this.indexes]) {
      const happened = random.int(0, index.committing.length);
      for (const batch of index.committing.splice(0).slice(0, happened)) index.run(batch);
      if (!this.directories.has(path)) this.indexes.delete(path);
    }
  }

  private crashFile(inode: Inode): void {
    const { random } = this.options;
    for (const { bytes, position } of inode.pending) {
      const fate = random.int(0, 3);
      if (fate === 0) continue;
      if (fate === 1) {
        inode.durable.write(bytes, position);
        continue;
      }
      for (let at = 0; at < bytes.length; at += SECTOR) {
        if (random.chance(0.5)) inode.durable.write(bytes.subarray(at, at + SECTOR), position + at);
      }
    }
    if (random.chance(0.5)) inode.durable.size = Math.max(inode.durable.size, inode.cache.size);
    inode.pending = [];
    inode.cache = inode.durable.clone();
  }

  /** Rot: flips one bit of a file, whatever the state of its page. */
  flipBit(path: string, position: number, bit = 0): void {
    const inode = this.names.get(path);
    if (!inode) throw new DssError("NotFound", `no file ${path} on the simulated disk`);
    for (const pages of [inode.cache, inode.durable]) {
      const byte = Buffer.alloc(1);
      pages.read(byte, position);
      byte[0]! ^= 1 << bit;
      pages.write(byte, position);
    }
  }
  /** Rot: flips a bit somewhere in what is stored below a path; false when nothing is. */
  rot(prefix: string, random: Prng): boolean {
    const found: { path: string; page: number }[] = [];
    for (const [path, inode] of this.names) {
      if (!path.startsWith(prefix)) continue;
      for (const page of inode.cache.map.keys()) found.push({ path, page });
    }
    if (found.length === 0) return false;
    const { path, page } = random.pick(found);
    this.flipBit(path, page * PAGE + random.int(0, PAGE - 1), random.int(0, 7));
    return true;
  }
  /** Rot in the index: flips a bit of the value under the `nth` key that starts with `prefix`. */
  flipIndexBit(path: string, prefix: Buffer, nth = 0): void {
    const index = this.indexes.get(path)!;
    const keys = index.keys().filter((key) => key.startsWith(prefix.toString("latin1")));
    const value = index.entries.get(keys[nth]!)!;
    value[value.length >> 1]! ^= 4;
  }
  /** Rot in an index: flips a bit of some value; false when there is none. */
  rotIndex(random: Prng): boolean {
    const values = [...this.indexes.values()].flatMap(({ entries }) => [...entries.values()]);
    const value = values.length === 0 ? undefined : random.pick(values);
    if (value === undefined || value.length === 0) return false;
    value[random.int(0, value.length - 1)]! ^= 1 << random.int(0, 7);
    return true;
  }
  /** A store that is put aside, durable at once. */
  moveIndex(source: string, target: string): boolean {
    const index = this.indexes.get(source);
    if (!index) return false;
    this.indexes.delete(source);
    this.indexes.set(target, index);
    return true;
  }
  file(path: string): Buffer {
    const inode = this.names.get(path);
    if (!inode) throw new DssError("NotFound", `no file ${path} on the simulated disk`);
    const bytes = Buffer.alloc(inode.cache.size);
    inode.cache.read(bytes, 0);
    return bytes;
  }
  get paths(): string[] {
    return [...this.names.keys()].sort();
  }

  // ── For the attached disk ──────────────────────────────────────────────────────────────────

  get commitMs(): number | undefined {
    return this.options.commitMs;
  }
  /** Seeded: would a sync on the caller's thread be quick now? */
  isQuick(): boolean {
    const { schedule, random } = this.options;
    return schedule !== undefined && random.float() < 0.5;
  }
  /** Completes `run` after a seeded time, unless the power is cut before. */
  later<T>(alive: () => boolean, run: () => T, limitMs = this.options.delayMs): Promise<T> {
    const { schedule, random } = this.options;
    const delayMs = limitMs ?? 1;
    return new Promise((resolve, reject) => {
      const complete = (): void => {
        if (!alive()) return;
        try {
          resolve(run());
        } catch (error) {
          reject(error);
        }
      };
      if (schedule) schedule(random.float() * delayMs, complete);
      else queueMicrotask(complete);
    });
  }

  check(operation: "write" | "sync" | "commit" | "read", path: string): void {
    const error = this.fault?.(operation, path);
    if (error) throw error;
  }

  change(change: NameChange): void {
    change.run(this.names, this.directories);
    this.changes.push(change);
  }
  inode(path: string): Inode | undefined {
    return this.names.get(path);
  }
  isDirectory(path: string): boolean {
    return this.directories.has(path);
  }
  children(directory: string): string[] {
    const all = [...this.names.keys(), ...this.directories].filter((path) => path !== ".");
    return all
      .filter((path) => parentOf(path) === directory)
      .map((path) => path.slice(path.lastIndexOf("/") + 1))
      .sort();
  }
  syncDirectory(directory: string): void {
    const rest: NameChange[] = [];
    for (const change of this.changes) {
      if (change.directory === directory) change.run(this.durableNames, this.durableDirectories);
      else rest.push(change);
    }
    this.changes = rest;
  }
  usage(): DiskUsage {
    const total = this.options.capacityBytes ?? 2 ** 40;
    let used = 0;
    for (const inode of new Set(this.names.values())) used += inode.cache.map.size * PAGE;
    return { total, available: Math.max(0, total - used) };
  }
  takeLock(path: string): boolean {
    if (this.locked.has(path)) return false;
    this.locked.add(path);
    return true;
  }
  freeLock(path: string): void {
    this.locked.delete(path);
  }
  index(path: string): Index {
    let index = this.indexes.get(path);
    if (!index) this.indexes.set(path, (index = new Index()));
    return index;
  }
}

class AttachedFile implements DiskFile {
  constructor(
    private readonly disk: SimDisk,
    private readonly alive: () => boolean,
    private readonly path: string,
    private readonly inode: Inode,
  ) {}

  /** Does the disk have the pages that are not there yet? */
  private fits(position: number, length: number): boolean {
    let missing = 0;
    const end = Math.ceil((position + length) / PAGE);
    for (let page = Math.floor(position / PAGE); page < end; page++) {
      if (!this.inode.cache.map.has(page)) missing++;
    }
    return missing === 0 || missing * PAGE <= this.disk.usage().available;
  }

  read(buffer: Buffer, position: number): Promise<number> {
    return this.disk.later(this.alive, () => {
      this.disk.check("read", this.path);
      return this.inode.cache.read(buffer, position);
    });
  }
  readSync(buffer: Buffer, position: number): number {
    this.disk.check("read", this.path);
    return this.inode.cache.read(buffer, position);
  }
  writeSync(chunks: readonly Buffer[], position: number): void {
    if (!this.alive()) return;
    this.disk.check("write", this.path);
    this.disk.counts.writes++;
    const bytes = Buffer.concat(chunks);
    if (!this.fits(position, bytes.length)) {
      throw new DssError("NoSpace", `cannot write ${this.path}`);
    }
    this.inode.pending.push({ bytes, position, done: true });
    this.inode.cache.write(bytes, position);
  }
  write(chunks: readonly Buffer[], position: number): Promise<void> {
    if (!this.alive()) return new Promise(() => undefined);
    this.disk.counts.writes++;
    // Copied at the call, as the contract forbids to change the chunks: a violation shows as
    // damage.
    const write: PendingWrite = { bytes: Buffer.concat(chunks), position, done: false };
    if (!this.fits(position, write.bytes.length)) {
      return this.disk.later(this.alive, () => {
        throw new DssError("NoSpace", `cannot write ${this.path}`);
      });
    }
    this.inode.pending.push(write);
    return this.disk.later(this.alive, () => {
      this.disk.check("write", this.path);
      write.done = true;
      this.inode.cache.write(write.bytes, position);
    });
  }
  sync(): Promise<void> {
    this.disk.counts.syncs++;
    const covered = this.inode.pending.filter((write) => write.done);
    const size = this.inode.cache.size;
    return this.disk.later(this.alive, () => {
      this.disk.check("sync", this.path);
      this.makeDurable(covered, size);
    });
  }
  trySync(): boolean {
    if (!this.alive() || !this.disk.isQuick()) return false;
    this.disk.counts.syncs++;
    this.disk.check("sync", this.path);
    this.makeDurable(
      this.inode.pending.filter((write) => write.done),
      this.inode.cache.size,
    );
    return true;
  }
  private makeDurable(covered: readonly PendingWrite[], size: number): void {
    const { inode } = this;
    for (const { bytes, position } of covered) inode.durable.write(bytes, position);
    inode.durable.size = Math.max(inode.durable.size, size);
    inode.pending = inode.pending.filter((write) => !covered.includes(write));
  }
  truncate(size: number): Promise<void> {
    return this.disk.later(this.alive, () => {
      this.inode.cache.resize(size);
      // Shrinking is rare (a superblock's temporary file): it is durable at once.
      if (size < this.inode.durable.size) {
        this.inode.durable.resize(size);
        this.inode.pending = [];
      }
    });
  }
  size(): Promise<number> {
    return this.disk.later(this.alive, () => this.inode.cache.size);
  }
  allocated(): Promise<number> {
    return this.disk.later(this.alive, () => this.inode.cache.map.size * PAGE);
  }
  /** Gone at once: nobody may rely on what a hole held. */
  punch(position: number, length: number): Promise<void> {
    return this.disk.later(this.alive, () => {
      for (const pages of [this.inode.cache, this.inode.durable]) {
        for (let at = position; at < position + length; at += PAGE) pages.map.delete(at / PAGE);
      }
    });
  }
  close(): Promise<void> {
    return this.disk.later(this.alive, () => undefined);
  }
}

class AttachedStore implements OrderedStore {
  constructor(
    private readonly disk: SimDisk,
    private readonly alive: () => boolean,
    private readonly path: string,
  ) {}

  get(key: Buffer): Buffer | undefined {
    const value = this.disk.index(this.path).entries.get(key.toString("latin1"));
    return value && Buffer.from(value);
  }
  *range(options: {
    start: Buffer;
    end: Buffer;
    limit?: number;
    reverse?: boolean;
  }): Iterable<{ key: Buffer; value: Buffer }> {
    const index = this.disk.index(this.path);
    const entries = index.entries;
    const start = options.start.toString("latin1");
    const end = options.end.toString("latin1");
    const keys = index.keys().filter((key) => key >= start && key < end);
    if (options.reverse) keys.reverse();
    for (const key of keys.slice(0, options.limit ?? keys.length)) {
      yield { key: Buffer.from(key, "latin1"), value: Buffer.from(entries.get(key)!) };
    }
  }
  commit(batch: StoreBatch): Promise<void> {
    if (!this.alive()) return new Promise(() => undefined);
    this.disk.counts.commits++;
    const index = this.disk.index(this.path);
    index.committing.push(batch);
    const commit = (): void => {
      index.committing.splice(index.committing.indexOf(batch), 1);
      this.disk.check("commit", this.path);
      index.run(batch);
    };
    return this.disk.later(this.alive, commit, this.disk.commitMs);
  }
  close(): Promise<void> {
    return this.disk.later(this.alive, () => undefined);
  }
}

class AttachedDisk implements Disk {
  constructor(
    private readonly disk: SimDisk,
    private readonly alive: () => boolean,
  ) {}

  open(path: string, options: { create?: boolean; exclusive?: boolean } = {}): Promise<DiskFile> {
    return this.disk.later(this.alive, () => {
      let inode = this.disk.inode(path);
      if (inode && options.exclusive) throw new DssError("Exists", `${path} exists`);
      if (!inode) {
        if (!(options.create || options.exclusive) || !this.disk.isDirectory(parentOf(path))) {
          throw new DssError("NotFound", `cannot open ${path}`);
        }
        const created = (inode = new Inode());
        const run: NameChange["run"] = (names) => void names.set(path, created);
        this.disk.change({ directory: parentOf(path), run });
      }
      return new AttachedFile(this.disk, this.alive, path, inode);
    });
  }
  openDirect(path: string): Promise<DirectFile> {
    return this.open(path);
  }
  exists(path: string): Promise<boolean> {
    return this.disk.later(
      this.alive,
      () => this.disk.inode(path) !== undefined || this.disk.isDirectory(normal(path)),
    );
  }
  readFile(path: string): Promise<Buffer> {
    return this.disk.later(this.alive, () => this.disk.file(path));
  }
  list(directory: string): Promise<string[]> {
    return this.disk.later(this.alive, () => this.disk.children(normal(directory)));
  }
  makeDirectory(path: string): Promise<void> {
    return this.disk.later(this.alive, () => {
      const parts = path.split("/");
      for (let i = 1; i <= parts.length; i++) {
        const made = parts.slice(0, i).join("/");
        if (this.disk.isDirectory(made)) continue;
        const run: NameChange["run"] = (_, directories) => void directories.add(made);
        this.disk.change({ directory: parentOf(made), run });
      }
    });
  }
  rename(source: string, target: string): Promise<void> {
    return this.disk.later(this.alive, () => {
      if (this.disk.moveIndex(source, target)) return;
      const inode = this.disk.inode(source);
      if (!inode) throw new DssError("NotFound", `cannot rename ${source}`);
      const run: NameChange["run"] = (names) => {
        names.delete(source);
        names.set(target, inode);
      };
      this.disk.change({ directory: parentOf(target), run });
    });
  }
  remove(path: string): Promise<void> {
    return this.disk.later(this.alive, () => {
      if (!this.disk.inode(path)) throw new DssError("NotFound", `cannot remove ${path}`);
      this.disk.change({ directory: parentOf(path), run: (names) => void names.delete(path) });
    });
  }
  syncDirectory(path: string): Promise<void> {
    return this.disk.later(this.alive, () => this.disk.syncDirectory(normal(path)));
  }
  usage(): Promise<DiskUsage> {
    return this.disk.later(this.alive, () => this.disk.usage());
  }
  lock(path: string): Promise<{ release(): Promise<void> }> {
    return this.disk.later(this.alive, () => {
      if (!this.disk.takeLock(path)) throw new DssError("Busy", "the folder is in use");
      return {
        release: async () => {
          if (this.alive()) this.disk.freeLock(path);
        },
      };
    });
  }
  openStore(path: string): Promise<OrderedStore> {
    return this.disk.later(this.alive, () => {
      this.disk.index(path);
      return new AttachedStore(this.disk, this.alive, path);
    });
  }
}
