/**
 * A file system in memory, for the tests and benchmarks of the FUSE drivers. Complete enough for
 * cp, tar, git and fio; nothing is stored. As a program (`memory-fs.js DRIVER MOUNTPOINT`) it
 * mounts itself and serves until it is unmounted: a process must not use its own mount.
 *
 * Owns: the inode table. An inode lives while it has names, lookups or open handles.
 */
import * as os from "node:os";
import { fileURLToPath } from "node:url";
import { DssError } from "../../cluster/base/errors.js";
import type {
  Attributes,
  Caller,
  DirEntry,
  Entry,
  FileSystem,
  KernelNotifier,
  OpenDirReply,
  OpenReply,
  RenameFlags,
  SetAttributes,
  StatFs,
} from "../../client-fs/file-system.js";
import type { Logger } from "../../cluster/base/log.js";
import type { MountFileSystem } from "../../client-fs/fuse/driver.js";

const CHUNK = 64 * 1024;
const CAPACITY = 8 * 2 ** 30;
const VALID_MS = 1_000;
const S_IFMT = 0o170000;
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;
const S_ISUID = 0o4000;
const S_ISGID = 0o2000;
const O_TRUNC = 0o1000;
const O_DIRECT = 0o40000;
const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const ZERO_RANGE = 0x10;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const ZEROS = Buffer.alloc(CHUNK);

class Inode {
  nlink = 1;
  uid = 0;
  gid = 0;
  rdev = 0;
  size = 0;
  atimeNs: bigint;
  mtimeNs: bigint;
  ctimeNs: bigint;
  lookups = 0;
  opens = 0;
  readonly chunks = new Map<number, Buffer>();
  readonly names = new Map<string, Name>();
  readonly attributes = new Map<string, Buffer>();
  target: Buffer = Buffer.alloc(0);
  parent = 1;
  constructor(
    readonly ino: number,
    public mode: number,
  ) {
    this.atimeNs = this.mtimeNs = this.ctimeNs = nowNs();
  }
  get isDirectory(): boolean {
    return (this.mode & S_IFMT) === S_IFDIR;
  }
}
interface Name {
  ino: number;
  cookie: number;
}

function nowNs(): bigint {
  return BigInt(Math.round((performance.timeOrigin + performance.now()) * 1000)) * 1000n;
}
const key = (name: Buffer): string => name.toString("latin1");

export class MemoryFileSystem implements FileSystem {
  readonly inodes = new Map<number, Inode>();
  notifier: KernelNotifier | undefined;
  canInvalidateAllEntries = false;
  destroyed = false;
  private nextIno = 2;
  private nextHandle = 1;
  private nextCookie = 3;
  private used = 0;

  constructor() {
    const root = new Inode(1, S_IFDIR | 0o755);
    root.nlink = 2;
    root.lookups = 1;
    this.inodes.set(1, root);
  }

  init(notifier: KernelNotifier, kernel: { canInvalidateAllEntries: boolean }): void {
    this.notifier = notifier;
    this.canInvalidateAllEntries = kernel.canInvalidateAllEntries;
  }
  async destroy(): Promise<void> {
    this.destroyed = true;
  }

  private get(ino: number): Inode {
    const inode = this.inodes.get(ino);
    if (!inode) throw new DssError("StaleHandle", `inode ${ino}`);
    return inode;
  }
  private directory(ino: number): Inode {
    const inode = this.get(ino);
    if (!inode.isDirectory) throw new DssError("NotDirectory", `inode ${ino}`);
    return inode;
  }
  private find(parent: number, name: Buffer): Inode {
    const entry = this.directory(parent).names.get(key(name));
    if (!entry) throw new DssError("NotFound", name.toString());
    return this.get(entry.ino);
  }
  private view(inode: Inode): Attributes {
    const { ino, mode, nlink, uid, gid, rdev, size, atimeNs, mtimeNs, ctimeNs } = inode;
    const blocks = (inode.chunks.size * CHUNK) / 512;
    return {
      ino, mode, nlink, uid, gid, rdev, size, blocks, blksize: 4096, atimeNs, mtimeNs, ctimeNs,
      btimeNs: 0n,
    }; // prettier-ignore
  }
  private entry(inode: Inode): Entry {
    const attributes = this.view(inode);
    return { attributes, generation: 0, entryValidMs: VALID_MS, attributesValidMs: VALID_MS };
  }
  private lookedUp(inode: Inode): Entry {
    inode.lookups++;
    return this.entry(inode);
  }
  private reap(inode: Inode): void {
    if (inode.nlink > 0 || inode.lookups > 0 || inode.opens > 0) return;
    this.used -= inode.chunks.size * CHUNK;
    this.inodes.delete(inode.ino);
  }
  private touch(inode: Inode): void {
    inode.mtimeNs = inode.ctimeNs = nowNs();
  }
  private add(parent: number, name: Buffer, mode: number, caller: Caller): Inode {
    const dir = this.directory(parent);
    if (dir.names.has(key(name))) throw new DssError("Exists", name.toString());
    const masked = (mode & S_IFMT) === S_IFLNK ? mode : mode & ~caller.umask;
    const inode = new Inode(this.nextIno++, masked);
    inode.uid = caller.uid;
    inode.gid = caller.gid;
    if (dir.mode & S_ISGID) {
      inode.gid = dir.gid;
      if (inode.isDirectory) inode.mode |= S_ISGID;
    }
    if (inode.isDirectory) {
      inode.nlink = 2;
      inode.parent = parent;
      dir.nlink++;
    }
    this.inodes.set(inode.ino, inode);
    dir.names.set(key(name), { ino: inode.ino, cookie: this.nextCookie++ });
    this.touch(dir);
    return inode;
  }
  private drop(parent: number, name: Buffer): void {
    const dir = this.directory(parent);
    const inode = this.find(parent, name);
    dir.names.delete(key(name));
    if (inode.isDirectory) {
      inode.nlink = 0;
      dir.nlink--;
    } else inode.nlink--;
    inode.ctimeNs = nowNs();
    this.touch(dir);
    this.reap(inode);
  }

  async lookup(parent: number, name: Buffer): Promise<Entry> {
    if (key(name) === ".") return this.lookedUp(this.get(parent));
    if (key(name) === "..") return this.lookedUp(this.get(this.directory(parent).parent));
    return this.lookedUp(this.find(parent, name));
  }
  forget(ino: number, count: number): void {
    const inode = this.inodes.get(ino);
    if (!inode || ino === 1) return;
    inode.lookups -= count;
    if (inode.lookups < 0) throw new Error(`inode ${ino} was forgotten too often`);
    this.reap(inode);
  }
  async getattr(ino: number): Promise<Entry> {
    return this.entry(this.get(ino));
  }
  async setattr(ino: number, changes: SetAttributes): Promise<Entry> {
    const inode = this.get(ino);
    const now = nowNs();
    if (changes.uid !== undefined || changes.gid !== undefined || changes.killPrivileges) {
      this.killPrivileges(inode);
    }
    if (changes.mode !== undefined) inode.mode = (inode.mode & S_IFMT) | (changes.mode & 0o7777);
    if (changes.uid !== undefined) inode.uid = changes.uid;
    if (changes.gid !== undefined) inode.gid = changes.gid;
    if (changes.size !== undefined) {
      this.truncate(inode, changes.size);
      inode.mtimeNs = now;
    }
    const { atimeNs, mtimeNs } = changes;
    if (atimeNs !== undefined) inode.atimeNs = atimeNs === "now" ? now : atimeNs;
    if (mtimeNs !== undefined) inode.mtimeNs = mtimeNs === "now" ? now : mtimeNs;
    inode.ctimeNs = now;
    return this.entry(inode);
  }
  private killPrivileges(inode: Inode): void {
    if (inode.isDirectory) return;
    inode.mode &= ~S_ISUID;
    if (inode.mode & 0o010) inode.mode &= ~S_ISGID;
  }
  async readlink(ino: number): Promise<Buffer> {
    return this.get(ino).target;
  }
  async symlink(parent: number, name: Buffer, target: Buffer, caller: Caller): Promise<Entry> {
    const inode = this.add(parent, name, S_IFLNK | 0o777, caller);
    inode.target = target;
    inode.size = target.length;
    return this.lookedUp(inode);
  }
  async mknod(
    parent: number,
    name: Buffer,
    mode: number,
    rdev: number,
    caller: Caller,
  ): Promise<Entry> {
    const inode = this.add(parent, name, mode, caller);
    inode.rdev = rdev;
    return this.lookedUp(inode);
  }
  async mkdir(parent: number, name: Buffer, mode: number, caller: Caller): Promise<Entry> {
    return this.lookedUp(this.add(parent, name, S_IFDIR | mode, caller));
  }
  async unlink(parent: number, name: Buffer): Promise<void> {
    if (this.find(parent, name).isDirectory) throw new DssError("IsDirectory", name.toString());
    this.drop(parent, name);
  }
  async rmdir(parent: number, name: Buffer): Promise<void> {
    const inode = this.find(parent, name);
    if (!inode.isDirectory) throw new DssError("NotDirectory", name.toString());
    if (inode.names.size > 0) throw new DssError("NotEmpty", name.toString());
    this.drop(parent, name);
  }
  async rename(
    parent: number,
    name: Buffer,
    newParent: number,
    newName: Buffer,
    flags: RenameFlags,
  ): Promise<void> {
    const source = this.directory(parent);
    const target = this.directory(newParent);
    const moved = this.find(parent, name);
    const existing = target.names.get(key(newName));
    if (flags.exchange) {
      if (!existing) throw new DssError("NotFound", newName.toString());
      const other = this.get(existing.ino);
      source.names.set(key(name), { ino: other.ino, cookie: this.nextCookie++ });
      target.names.set(key(newName), { ino: moved.ino, cookie: this.nextCookie++ });
      this.reparent(other, target, source);
      this.reparent(moved, source, target);
    } else {
      if (existing?.ino === moved.ino) return;
      if (existing) {
        if (flags.noReplace) throw new DssError("Exists", newName.toString());
        const other = this.get(existing.ino);
        if (other.isDirectory && !moved.isDirectory) throw new DssError("IsDirectory", "rename");
        if (!other.isDirectory && moved.isDirectory) throw new DssError("NotDirectory", "rename");
        if (other.names.size > 0) throw new DssError("NotEmpty", "rename");
        this.drop(newParent, newName);
      }
      source.names.delete(key(name));
      target.names.set(key(newName), { ino: moved.ino, cookie: this.nextCookie++ });
      this.reparent(moved, source, target);
    }
    moved.ctimeNs = nowNs();
    this.touch(source);
    this.touch(target);
  }
  private reparent(inode: Inode, from: Inode, to: Inode): void {
    if (!inode.isDirectory) return;
    from.nlink--;
    to.nlink++;
    inode.parent = to.ino;
  }
  async link(ino: number, newParent: number, newName: Buffer): Promise<Entry> {
    const inode = this.get(ino);
    const dir = this.directory(newParent);
    if (dir.names.has(key(newName))) throw new DssError("Exists", newName.toString());
    dir.names.set(key(newName), { ino, cookie: this.nextCookie++ });
    inode.nlink++;
    inode.ctimeNs = nowNs();
    this.touch(dir);
    return this.lookedUp(inode);
  }

  private opened(inode: Inode, flags: number): OpenReply {
    inode.opens++;
    const directIo = (flags & O_DIRECT) !== 0;
    return { handle: this.nextHandle++, directIo, keepCache: !directIo };
  }
  async open(
    ino: number,
    flags: number,
    _caller: Caller,
    options?: { killPrivileges: boolean },
  ): Promise<OpenReply> {
    const inode = this.get(ino);
    if (flags & O_TRUNC) {
      this.truncate(inode, 0);
      this.touch(inode);
      if (options?.killPrivileges) this.killPrivileges(inode);
    }
    return this.opened(inode, flags);
  }
  async create(
    parent: number,
    name: Buffer,
    mode: number,
    flags: number,
    caller: Caller,
  ): Promise<Entry & OpenReply> {
    const inode = this.add(parent, name, S_IFREG | (mode & 0o7777), caller);
    return { ...this.lookedUp(inode), ...this.opened(inode, flags) };
  }
  async read(ino: number, _handle: number, offset: number, length: number): Promise<Buffer[]> {
    const inode = this.get(ino);
    const end = Math.min(offset + length, inode.size);
    const pieces: Buffer[] = [];
    for (let at = offset; at < end;) {
      const within = at % CHUNK;
      const size = Math.min(CHUNK - within, end - at);
      const chunk = inode.chunks.get((at - within) / CHUNK) ?? ZEROS;
      pieces.push(chunk.subarray(within, within + size));
      at += size;
    }
    return pieces;
  }
  private chunk(inode: Inode, index: number, whole: boolean): Buffer {
    let chunk = inode.chunks.get(index);
    if (!chunk) {
      if (this.used + CHUNK > CAPACITY) throw new DssError("NoSpace", "memory file system");
      chunk = whole ? Buffer.allocUnsafeSlow(CHUNK) : Buffer.alloc(CHUNK);
      inode.chunks.set(index, chunk);
      this.used += CHUNK;
    }
    return chunk;
  }
  async write(
    ino: number,
    _handle: number,
    offset: number,
    data: Buffer,
    options: { flags: number; killPrivileges: boolean; fromPageCache: boolean },
  ): Promise<number> {
    const inode = this.get(ino);
    for (let done = 0; done < data.length;) {
      const at = offset + done;
      const within = at % CHUNK;
      const size = Math.min(CHUNK - within, data.length - done);
      const chunk = this.chunk(inode, (at - within) / CHUNK, size === CHUNK);
      data.copy(chunk, within, done, done + size);
      done += size;
    }
    inode.size = Math.max(inode.size, offset + data.length);
    if (options.killPrivileges) this.killPrivileges(inode);
    this.touch(inode);
    return data.length;
  }
  private truncate(inode: Inode, size: number): void {
    if (size < inode.size) this.zero(inode, size, inode.size);
    inode.size = size;
  }
  /** Frees whole chunks of [start, end) and clears the rest. */
  private zero(inode: Inode, start: number, end: number): void {
    for (const [index, chunk] of inode.chunks) {
      const from = Math.max(start - index * CHUNK, 0);
      const to = Math.min(end - index * CHUNK, CHUNK);
      const past = index * CHUNK + to >= inode.size;
      if (from >= CHUNK || to <= 0 || from >= to) continue;
      if (from === 0 && (to === CHUNK || past)) {
        inode.chunks.delete(index);
        this.used -= CHUNK;
      } else chunk.fill(0, from, to);
    }
  }
  async flush(): Promise<void> {}
  async release(ino: number): Promise<void> {
    const inode = this.get(ino);
    inode.opens--;
    this.reap(inode);
  }
  async fsync(): Promise<void> {}

  async opendir(ino: number): Promise<OpenDirReply> {
    this.directory(ino).opens++;
    return { handle: this.nextHandle++, cacheListing: false, keepListing: false };
  }
  async readdir(
    ino: number,
    _handle: number,
    cookie: number,
    options: { maxEntries: number; plus: boolean },
  ): Promise<Iterable<DirEntry>> {
    return this.list(this.directory(ino), cookie, options.plus);
  }
  private *list(dir: Inode, after: number, plus: boolean): Iterable<DirEntry> {
    if (after < 1) yield { name: Buffer.from("."), ino: dir.ino, type: S_IFDIR, cookie: 1 };
    if (after < 2) yield { name: Buffer.from(".."), ino: dir.parent, type: S_IFDIR, cookie: 2 };
    const names = [...dir.names].filter(([, n]) => n.cookie > after);
    names.sort((a, b) => a[1].cookie - b[1].cookie);
    for (const [name, { ino, cookie }] of names) {
      const inode = this.get(ino);
      const entry: DirEntry = {
        name: Buffer.from(name, "latin1"),
        ino,
        type: inode.mode & S_IFMT,
        cookie,
      };
      if (plus) entry.entry = this.entry(inode);
      yield entry;
    }
  }
  entriesTaken(inos: readonly number[]): void {
    for (const ino of inos) this.get(ino).lookups++;
  }
  async releasedir(ino: number): Promise<void> {
    await this.release(ino);
  }
  async fsyncdir(): Promise<void> {}

  async statfs(): Promise<StatFs> {
    const free = Math.floor((CAPACITY - this.used) / 4096);
    return {
      blockSize: 4096,
      blocks: CAPACITY / 4096,
      blocksFree: free,
      blocksAvailable: free,
      files: 1_000_000,
      filesFree: 1_000_000 - this.inodes.size,
      nameMax: 255,
    };
  }
  async getxattr(ino: number, name: Buffer): Promise<Buffer> {
    const value = this.get(ino).attributes.get(key(name));
    if (!value) throw new DssError("NoAttribute", name.toString());
    return value;
  }
  async setxattr(
    ino: number,
    name: Buffer,
    value: Buffer,
    flags: { create: boolean; replace: boolean },
  ): Promise<void> {
    const { attributes } = this.get(ino);
    const exists = attributes.has(key(name));
    if (flags.create && exists) throw new DssError("Exists", name.toString());
    if (flags.replace && !exists) throw new DssError("NoAttribute", name.toString());
    attributes.set(key(name), value);
  }
  async listxattr(ino: number): Promise<Buffer> {
    const names = [...this.get(ino).attributes.keys()].map((name) => `${name}\0`);
    return Buffer.from(names.join(""), "latin1");
  }
  async removexattr(ino: number, name: Buffer): Promise<void> {
    if (!this.get(ino).attributes.delete(key(name))) {
      throw new DssError("NoAttribute", name.toString());
    }
  }

  async fallocate(
    ino: number,
    _handle: number,
    offset: number,
    length: number,
    mode: number,
  ): Promise<void> {
    const inode = this.get(ino);
    if (mode & ~(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE)) {
      throw new DssError("NotSupported", `fallocate mode ${mode}`);
    }
    const end = offset + length;
    if (mode & (PUNCH_HOLE | ZERO_RANGE)) this.zero(inode, offset, Math.min(end, inode.size));
    if (!(mode & KEEP_SIZE)) inode.size = Math.max(inode.size, end);
    this.touch(inode);
  }
  async lseek(ino: number, _handle: number, offset: number, whence: number): Promise<number> {
    const inode = this.get(ino);
    if (whence !== SEEK_DATA && whence !== SEEK_HOLE) {
      throw new DssError("InvalidArgument", `whence ${whence}`);
    }
    if (offset >= inode.size) throw new NoDataError();
    for (let at = offset; at < inode.size; at = (Math.floor(at / CHUNK) + 1) * CHUNK) {
      const isData = inode.chunks.has(Math.floor(at / CHUNK));
      if (isData === (whence === SEEK_DATA)) return at;
    }
    if (whence === SEEK_DATA) throw new NoDataError();
    return inode.size;
  }
}

/** ENXIO has no row in the table of dss errors. */
class NoDataError extends DssError {
  constructor() {
    super("InvalidArgument", "no data after this offset");
  }
  override get errno(): number {
    return os.constants.errno.ENXIO;
  }
}

const stderrLogger: Logger = {
  debug: () => undefined,
  info: (fields, message) => log("info", fields, message),
  warn: (fields, message) => log("warn", fields, message),
  error: (fields, message) => log("error", fields, message),
  child: () => stderrLogger,
};
function log(level: string, fields: object, message: string): void {
  process.stderr.write(`${level} ${message} ${JSON.stringify(fields)}\n`);
}

/** Mounts with the driver (kernel, kernel-threads, fuse-native), prints "ready" and serves. */
export async function serve(
  files: MemoryFileSystem,
  driver: string,
  mountpoint: string,
): Promise<void> {
  const module = (await import(
    driver === "fuse-native"
      ? "../../client-fs/fuse/fuse-native.js"
      : "../../client-fs/fuse/device.js"
  )) as { mountFileSystem: MountFileSystem };
  const mounted = await module.mountFileSystem(files, {
    mountpoint,
    logger: stderrLogger,
    reading: driver === "kernel-threads" ? "threads" : "poll",
  });
  process.stdout.write("ready\n");
  // "inodes" on stdin prints how many inodes are known; "invalidate" exercises the notifier.
  process.stdin.setEncoding("utf8").on("data", (text: string) => {
    void answer(files, text.trim());
  });
  process.on("SIGTERM", () => {
    void mounted.unmount().catch(() => mounted.unmount({ lazy: true }));
  });
  await mounted.done;
  process.stdout.write(files.destroyed ? "destroyed\n" : "gone\n");
  process.exit(0);
}

async function answer(files: MemoryFileSystem, command: string): Promise<void> {
  if (command === "inodes") process.stdout.write(`inodes ${files.inodes.size}\n`);
  if (command === "invalidate") {
    await files.notifier?.invalidateInode(1, 0, 0);
    for (const [name, { ino }] of files.inodes.get(1)?.names ?? []) {
      await files.notifier?.invalidateInode(ino, 0, 0);
      await files.notifier?.invalidateEntry(1, Buffer.from(name, "latin1"));
    }
    const epoch = await files.notifier?.invalidateAllEntries();
    process.stdout.write(`invalidated ${epoch} ${files.canInvalidateAllEntries}\n`);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [driver = "", mountpoint = ""] = process.argv.slice(2);
  await serve(new MemoryFileSystem(), driver, mountpoint);
}
