/**
 * The second FUSE driver: the npm package `fuse-native`, that is libfuse 2 behind N-API. For
 * macOS and for machines where nobody may open /dev/fuse. The package is loaded when a mount
 * asks for it; its native part needs libfuse.so.2 (Debian: libfuse2).
 *
 * libfuse 2 speaks in paths, the file system in inodes: a path is resolved by lookups from the root
 * and remembered for as long as the file system said that its names are valid.
 *
 * What it cannot do:
 * - The caller is unknown: new files belong to the user of this process. (Permissions are still
 *   checked by the kernel, through default_permissions.)
 * - utimensat: libfuse's binding passes the access time twice, so both times become the access
 *   time. Times have a resolution of a millisecond.
 * - No rename flags (EXCHANGE, NOREPLACE), no fallocate, no SEEK_DATA, no open flags at create, no
 *   O_DIRECT, no locks beyond this mount, no set-uid clearing by unprivileged writes.
 * - No cache invalidation: other mounts' changes are seen after the entry and attribute times.
 * - Inode numbers are cut to 32 bits.
 * - Names must be UTF-8; a listing is read whole into memory.
 * - A file unlinked while open becomes .fuse_hidden… until it is closed.
 * - Requests of 128 KiB at most, and every one costs several thread switches.
 *
 * Owns: the mapping of paths to inodes and the lookups it holds, the open handles of the mount.
 */
import { constants, platform } from "node:os";
import { LRUCache } from "lru-cache";
import { AssertionFailure } from "../../cluster/base/assert.js";
import { DssError, describeError, isDssError } from "../../cluster/base/errors.js";
import type { Attributes, Caller, FileSystem, KernelNotifier } from "../file-system.js";
import { NAME_MAX } from "./abi.js";
import { findMount, prepareMountpoint, unmountPath } from "./device.js";
import type { Mounted, MountOptions } from "./driver.js";

const PACKAGE = "fuse-native";
const { EIO, ENODATA, ERANGE } = constants.errno;
const ROOT = 1;
const O_RDWR = 2;
/** chown(2) with this id leaves it as it is. */
const UNCHANGED_ID = 0xffff_ffff;
/** Paths whose inode is remembered. */
const PATHS_MAX = 4_096;
/** How often to look whether somebody else has unmounted, which libfuse 2 does not tell. */
const WATCH_MS = 500;
const LISTING_PAGE_ENTRIES = 1_024;
const MAX_WRITE_BYTES = 128 * 1024;

type Callback = (result: number, value?: unknown) => void;

/** The part of the package's class that is used here. */
interface NativeFuse {
  mount(callback: (error?: Error | null) => void): void;
  close(callback: (error?: Error | null) => void): void;
}
type Signal = (result: number, buffer: ArrayBufferLike) => void;
interface NativeFuseClass {
  new (mountpoint: string, operations: object, options: object): NativeFuse;
  unmount: (mountpoint: string, callback: (error?: Error | null) => void) => void;
}

async function load(): Promise<NativeFuseClass> {
  try {
    const module = (await import(PACKAGE)) as { default: NativeFuseClass };
    return module.default;
  } catch (error) {
    throw new DssError("Configuration", "the fuse-native driver cannot be loaded", {
      cause: error,
      hint: "it needs libfuse 2 (Debian: apt-get install libfuse2; macOS: macFUSE)",
    });
  }
}

/** Paths to inodes. Holds lookups while an operation runs, a file is open or a path is cached. */
export class PathTable {
  private readonly held = new Map<number, { lookups: number; pins: number }>();
  private readonly cache = new LRUCache<string, { ino: number }>({
    max: PATHS_MAX,
    dispose: (node) => this.unpin(node.ino),
  });
  /** Counts removals and renames: what was looked up before one may not be remembered after it. */
  private changes = 0;

  constructor(
    private readonly fs: FileSystem,
    private readonly caller: Caller,
  ) {}

  /** The inode at an absolute path, pinned: the caller unpins it. */
  async resolve(path: string): Promise<number> {
    if (path === "/" || path === "") return ROOT;
    const cached = this.cache.get(path);
    if (cached) return this.pin(cached.ino);
    const { parent, name } = splitPath(path);
    const directory = await this.resolve(parent);
    try {
      const { changes } = this;
      const entry = await this.fs.lookup(directory, name, this.caller);
      const validMs = changes === this.changes ? entry.entryValidMs : 0;
      this.adopt(path, entry.attributes.ino, validMs);
      return entry.attributes.ino;
    } finally {
      this.unpin(directory);
    }
  }

  /** Takes over one lookup that the file system has just granted, as a pin. */
  adopt(path: string, ino: number, validMs: number): void {
    const held = this.held.get(ino);
    if (held) {
      held.lookups++;
      held.pins++;
    } else this.held.set(ino, { lookups: 1, pins: 1 });
    if (validMs > 0) {
      this.pin(ino); // The cache's own.
      this.cache.set(path, { ino }, { ttl: validMs });
    }
  }

  pin(ino: number): number {
    const held = this.held.get(ino);
    if (held) held.pins++;
    return ino;
  }

  unpin(ino: number): void {
    const held = this.held.get(ino);
    if (!held || --held.pins > 0) return;
    this.held.delete(ino);
    this.fs.forget(ino, held.lookups);
  }

  /** Forgets a path after it was removed or replaced. */
  drop(path: string): void {
    this.changes++;
    this.cache.delete(path);
  }

  /** Forgets a path and what lies below it, after a rename. */
  dropTree(path: string): void {
    this.drop(path);
    this.purge(); // `keys` passes over what has expired.
    for (const known of [...this.cache.keys()]) {
      if (known.startsWith(`${path}/`)) this.cache.delete(known);
    }
  }

  /** Gives back the lookups of paths that are no longer valid. */
  purge(): void {
    this.cache.purgeStale();
  }

  clear(): void {
    this.cache.clear();
  }
}

/** Throws `NameTooLong`. */
export function splitPath(path: string): { parent: string; name: Buffer } {
  const slash = path.lastIndexOf("/");
  const name = Buffer.from(path.slice(slash + 1));
  if (name.length > NAME_MAX) throw new DssError("NameTooLong", "name exceeds 255 bytes");
  return { parent: path.slice(0, slash) || "/", name };
}

/** No invalidation in libfuse 2's high-level interface: short validity times must do. */
/** Says so instead of doing nothing: the file system then gives the kernel nothing to keep. */
const UNTOLD = new DssError("NotSupported", "this driver cannot tell the kernel anything");
const noNotifier: KernelNotifier = {
  invalidateInode: () => Promise.reject(UNTOLD),
  invalidateEntry: () => Promise.reject(UNTOLD),
  invalidateAllEntries: () => Promise.resolve(false),
};

const NO_XATTRS = new DssError("NotSupported", "this mount has no extended attributes");
const noXattrs = (): Promise<never> => Promise.reject(NO_XATTRS);

function milliseconds(ns: bigint): number {
  return Number(ns / 1_000_000n);
}

function statOf(a: Attributes): object {
  return {
    mode: a.mode,
    uid: a.uid,
    gid: a.gid,
    size: a.size,
    dev: 0,
    nlink: a.nlink,
    ino: a.ino,
    rdev: a.rdev,
    blksize: a.blksize,
    blocks: a.blocks,
    atime: milliseconds(a.atimeNs),
    mtime: milliseconds(a.mtimeNs),
    ctime: milliseconds(a.ctimeNs),
  };
}

/** One mount: the operations of libfuse on top of the file system. */
class NativeMount {
  readonly paths: PathTable;
  private readonly handles = new Map<number, { ino: number; handle: number }>();
  private nextHandle = 1;
  private readonly caller: Caller;
  inFlight = 0;

  constructor(
    private readonly fs: FileSystem,
    private readonly options: MountOptions,
  ) {
    this.caller = {
      uid: process.getuid?.() ?? 0,
      gid: process.getgid?.() ?? 0,
      pid: 0,
      umask: 0,
    };
    this.paths = new PathTable(fs, this.caller);
  }

  private keep(ino: number, handle: number): number {
    const number = this.nextHandle;
    this.nextHandle = (this.nextHandle % 0x7fff_ffff) + 1;
    this.handles.set(number, { ino, handle });
    return number;
  }
  private handle(number: number): { ino: number; handle: number } {
    const open = this.handles.get(number);
    if (!open) throw new DssError("BadHandle", `handle ${number}`);
    return open;
  }

  /** Runs one operation and answers it: `work` gives [result, value] or nothing for success. */
  private run(
    operation: string,
    callback: Callback,
    work: () => Promise<readonly [number, unknown?] | void>,
  ): void {
    const { observer } = this.options;
    const started = observer ? performance.now() : 0;
    const answer = (result: number, value?: unknown): void => {
      this.inFlight--;
      callback(result, value);
      const isData = operation === "read" || operation === "write";
      const bytes = isData && result > 0 ? result : 0;
      const errno = result < 0 ? -result : 0;
      observer?.(operation.toUpperCase(), performance.now() - started, bytes, errno);
    };
    this.inFlight++;
    work().then(
      (result) => answer(...(result ?? [0])),
      (error: unknown) => answer(-this.errnoOf(error, operation)),
    );
  }

  private errnoOf(error: unknown, operation: string): number {
    if (isDssError(error)) {
      if (error.errno === EIO) this.logFailure(operation, error);
      return error.errno;
    }
    if (error instanceof AssertionFailure) {
      setImmediate(() => {
        throw error;
      });
      return EIO;
    }
    this.logFailure(operation, error);
    return EIO;
  }
  private logFailure(operation: string, error: unknown): void {
    this.options.logger.error({ operation, error: describeError(error) }, "FUSE request failed");
  }

  /** Runs `work` on the inode of a path. */
  private async at<T>(path: string, work: (ino: number) => Promise<T>): Promise<T> {
    const ino = await this.paths.resolve(path);
    try {
      return await work(ino);
    } finally {
      this.paths.unpin(ino);
    }
  }
  /** Runs `work` on the parent directory of a path and the last name. */
  private async inParent<T>(
    path: string,
    work: (parent: number, name: Buffer) => Promise<T>,
  ): Promise<T> {
    const { parent, name } = splitPath(path);
    return await this.at(parent, (ino) => work(ino, name));
  }
  /** As `inParent`, for operations that make an entry: its lookup is remembered. */
  private async make(
    path: string,
    work: (
      parent: number,
      name: Buffer,
    ) => Promise<{ attributes: Attributes; entryValidMs: number }>,
  ): Promise<void> {
    const entry = await this.inParent(path, work);
    this.paths.drop(path);
    this.paths.adopt(path, entry.attributes.ino, entry.entryValidMs);
    this.paths.unpin(entry.attributes.ino);
  }

  private async list(path: string): Promise<string[]> {
    return await this.at(path, async (ino) => {
      const { handle } = await this.fs.opendir(ino, 0, this.caller);
      const names: string[] = [];
      try {
        for (let cookie = 0, more = true; more;) {
          more = false;
          const limits = { maxEntries: LISTING_PAGE_ENTRIES, plus: false };
          for (const entry of await this.fs.readdir(ino, handle, cookie, limits)) {
            names.push(entry.name.toString());
            cookie = entry.cookie;
            more = true;
          }
        }
      } finally {
        await this.fs.releasedir(ino, handle);
      }
      return names;
    });
  }

  private async statfs(): Promise<object> {
    const s = await this.fs.statfs(ROOT);
    // The binding has 32 bits a field: count in larger blocks until the numbers fit.
    let scale = 1;
    while (s.blocks / scale >= 2 ** 32) scale *= 2;
    const bits32 = (n: number): number => Math.min(Math.floor(n), 2 ** 32 - 1);
    return {
      bsize: s.blockSize * scale,
      frsize: s.blockSize * scale,
      blocks: bits32(s.blocks / scale),
      bfree: bits32(s.blocksFree / scale),
      bavail: bits32(s.blocksAvailable / scale),
      files: bits32(s.files),
      ffree: bits32(s.filesFree),
      favail: bits32(s.filesFree),
      namemax: s.nameMax,
    };
  }

  private async read(number: number, target: Buffer, length: number, offset: number) {
    const { ino, handle } = this.handle(number);
    let read = 0;
    const pieces = await this.fs.read(ino, handle, offset, length);
    for (const piece of pieces) read += piece.copy(target, read);
    this.fs.readDone?.(pieces);
    return [read] as const;
  }

  private async rename(source: string, target: string): Promise<void> {
    const flags = { noReplace: false, exchange: false };
    await this.inParent(source, (parent, name) =>
      this.inParent(target, (newParent, newName) =>
        this.fs.rename(parent, name, newParent, newName, flags, this.caller),
      ),
    );
    this.paths.dropTree(source);
    this.paths.dropTree(target);
  }

  /** The operations table, with the argument lists of the package. */
  operations(): object {
    const { fs, caller } = this;
    const set = (path: string, changes: Parameters<FileSystem["setattr"]>[1]) => async () => {
      await this.at(path, (ino) => fs.setattr(ino, changes, caller));
    };
    return {
      getattr: (path: string, cb: Callback) =>
        this.run("getattr", cb, async () => {
          const entry = await this.at(path, (ino) => fs.getattr(ino, undefined, caller));
          return [0, statOf(entry.attributes)];
        }),
      readdir: (path: string, cb: Callback) =>
        this.run("readdir", cb, async () => [0, await this.list(path)]),
      truncate: (path: string, size: number, cb: Callback) =>
        this.run("truncate", cb, set(path, { size })),
      ftruncate: (_path: string, fd: number, size: number, cb: Callback) =>
        this.run("ftruncate", cb, async () => {
          const { ino, handle } = this.handle(fd);
          await fs.setattr(ino, { size, handle }, caller);
        }),
      chmod: (path: string, mode: number, cb: Callback) =>
        this.run("chmod", cb, set(path, { mode })),
      chown: (path: string, uid: number, gid: number, cb: Callback) => {
        const changes = {
          ...(uid >>> 0 === UNCHANGED_ID ? {} : { uid }),
          ...(gid >>> 0 === UNCHANGED_ID ? {} : { gid }),
        };
        this.run("chown", cb, set(path, changes));
      },
      utimens: (path: string, atimeMs: number, mtimeMs: number, cb: Callback) => {
        const atimeNs = BigInt(Math.floor(atimeMs)) * 1_000_000n;
        const mtimeNs = BigInt(Math.floor(mtimeMs)) * 1_000_000n;
        this.run("utimens", cb, set(path, { atimeNs, mtimeNs }));
      },
      readlink: (path: string, cb: Callback) =>
        this.run("readlink", cb, async () => [
          0,
          (await this.at(path, (ino) => fs.readlink(ino))).toString(),
        ]),
      mknod: (path: string, mode: number, rdev: number, cb: Callback) =>
        this.run("mknod", cb, () =>
          this.make(path, (dir, name) => fs.mknod(dir, name, mode, rdev, caller)),
        ),
      mkdir: (path: string, mode: number, cb: Callback) =>
        this.run("mkdir", cb, () =>
          this.make(path, (dir, name) => fs.mkdir(dir, name, mode, caller)),
        ),
      symlink: (target: string, path: string, cb: Callback) =>
        this.run("symlink", cb, () =>
          this.make(path, (dir, name) => fs.symlink(dir, name, Buffer.from(target), caller)),
        ),
      link: (source: string, path: string, cb: Callback) =>
        this.run("link", cb, () =>
          this.at(source, (ino) => this.make(path, (dir, name) => fs.link(ino, dir, name, caller))),
        ),
      unlink: (path: string, cb: Callback) =>
        this.run("unlink", cb, async () => {
          await this.inParent(path, (dir, name) => fs.unlink(dir, name, caller));
          this.paths.drop(path);
        }),
      rmdir: (path: string, cb: Callback) =>
        this.run("rmdir", cb, async () => {
          await this.inParent(path, (dir, name) => fs.rmdir(dir, name, caller));
          this.paths.drop(path);
        }),
      rename: (source: string, target: string, cb: Callback) =>
        this.run("rename", cb, () => this.rename(source, target)),
      open: (path: string, flags: number, cb: Callback) =>
        this.run("open", cb, async () => {
          const ino = await this.paths.resolve(path); // Stays pinned until release.
          try {
            const { handle } = await fs.open(ino, flags, caller);
            return [0, this.keep(ino, handle)];
          } catch (error) {
            this.paths.unpin(ino);
            throw error;
          }
        }),
      create: (path: string, mode: number, cb: Callback) =>
        this.run("create", cb, async () => {
          const created = await this.inParent(path, (dir, name) =>
            fs.create(dir, name, mode, O_RDWR, caller),
          );
          const { ino } = created.attributes;
          this.paths.drop(path);
          this.paths.adopt(path, ino, created.entryValidMs);
          return [0, this.keep(ino, created.handle)];
        }),
      read: (_p: string, fd: number, data: Buffer, size: number, at: number, cb: Callback) =>
        this.run("read", cb, () => this.read(fd, data, size, at)),
      write: (_p: string, fd: number, data: Buffer, size: number, at: number, cb: Callback) =>
        this.run("write", cb, async () => {
          const { ino, handle } = this.handle(fd);
          const options = { flags: O_RDWR, killPrivileges: false, fromPageCache: false };
          return [await fs.write(ino, handle, at, data.subarray(0, size), options)];
        }),
      flush: (_path: string, fd: number, cb: Callback) =>
        this.run("flush", cb, async () => {
          const { ino, handle } = this.handle(fd);
          await fs.flush(ino, handle, 0n);
        }),
      fsync: (_path: string, dataOnly: number | boolean, fd: number, cb: Callback) =>
        this.run("fsync", cb, async () => {
          const { ino, handle } = this.handle(fd);
          await fs.fsync(ino, handle, Boolean(dataOnly));
        }),
      fsyncdir: (path: string, dataOnly: number | boolean, _fd: number, cb: Callback) =>
        this.run("fsyncdir", cb, async () => {
          await this.at(path, async (ino) => {
            const { handle } = await fs.opendir(ino, 0, caller);
            try {
              await fs.fsyncdir(ino, handle, Boolean(dataOnly));
            } finally {
              await fs.releasedir(ino, handle);
            }
          });
        }),
      release: (_path: string, fd: number, cb: Callback) =>
        this.run("release", cb, async () => {
          const { ino, handle } = this.handle(fd);
          this.handles.delete(fd);
          try {
            await fs.release(ino, handle, O_RDWR);
          } finally {
            this.paths.unpin(ino);
          }
        }),
      statfs: (_path: string, cb: Callback) =>
        this.run("statfs", cb, async () => [0, await this.statfs()]),
      setxattr: (
        path: string,
        name: string,
        value: Buffer,
        _position: number,
        flags: number,
        cb: Callback,
      ) =>
        this.run("setxattr", cb, async () => {
          const mode = { create: (flags & 1) !== 0, replace: (flags & 2) !== 0 };
          const copy = Buffer.from(value);
          await this.at(path, (ino) => {
            return fs.setxattr?.(ino, Buffer.from(name), copy, mode, caller) ?? noXattrs();
          });
        }),
      getxattr: () => undefined, // Declares them; `bind` below has the real ones.
      listxattr: () => undefined,
      removexattr: (path: string, name: string, cb: Callback) =>
        this.run("removexattr", cb, () =>
          this.at(path, (ino) => fs.removexattr?.(ino, Buffer.from(name), caller) ?? noXattrs()),
        ),
    };
  }

  /**
   * The package's own getxattr and listxattr never say ERANGE and copy past the caller's buffer;
   * these take their places. `signal` wants the buffer back in every case.
   */
  bind(fuse: NativeFuse): void {
    const value = (
      operation: string,
      signal: Signal,
      target: Buffer,
      get: () => Promise<Buffer>,
    ): void =>
      this.run(
        operation,
        (result) => signal(result, target.buffer),
        async () => {
          const bytes = await get();
          if (target.length === 0) return [bytes.length];
          if (bytes.length > target.length) return [-ERANGE];
          bytes.copy(target);
          return [bytes.length];
        },
      );
    Object.assign(fuse, {
      _op_getxattr: (signal: Signal, path: string, name: string, target: Buffer) => {
        if (name.startsWith("com.apple.")) return signal(-ENODATA, target.buffer);
        return value("getxattr", signal, target, () =>
          this.at(path, (ino) => {
            return this.fs.getxattr?.(ino, Buffer.from(name), this.caller) ?? noXattrs();
          }),
        );
      },
      _op_listxattr: (signal: Signal, path: string, target: Buffer) =>
        value("listxattr", signal, target, () =>
          this.at(path, (ino) => this.fs.listxattr?.(ino, this.caller) ?? noXattrs()),
        ),
    });
  }
}

/** Further options go in through the name, because the package joins all of them with commas. */
function nativeOptions(options: MountOptions): object {
  const extras = [options.sourceName ?? "dss", ...(options.extraOptions ?? [])];
  if (options.readOnly === true) extras.push("ro");
  if (options.allowNonEmpty === true) extras.push("nonempty");
  if (platform() === "linux") {
    extras.push("subtype=dss", "use_ino", "big_writes", `max_write=${MAX_WRITE_BYTES}`);
  }
  return {
    allowOther: options.allowOther !== false,
    defaultPermissions: true,
    fsname: extras.join(","),
    timeout: false, // The package would answer for a slow file system after 15 s.
  };
}

async function unmountNative(Fuse: NativeFuseClass, target: string, lazy: boolean): Promise<void> {
  if (platform() === "linux" && process.getuid?.() === 0) {
    await unmountPath(target, { lazy });
    return;
  }
  await new Promise<void>((resolve, reject) => {
    Fuse.unmount(target, (error) => (error ? reject(error) : resolve()));
  });
}

/** As device.ts's `mountFileSystem`. Rejects with `Configuration` when libfuse 2 is missing. */
export async function mountFileSystem(
  fileSystem: FileSystem,
  options: MountOptions,
): Promise<Mounted> {
  const Fuse = await load();
  const target = await prepareMountpoint(options);
  const mount = new NativeMount(fileSystem, options);
  const fuse = new Fuse(target, mount.operations(), nativeOptions(options));
  mount.bind(fuse);
  fileSystem.init(noNotifier, { canInvalidateAllEntries: false });
  await new Promise<void>((resolve, reject) => {
    fuse.mount((error) => {
      if (error) {
        reject(
          new DssError("Configuration", `mount ${target}: ${error.message}`, {
            cause: error,
            hint: "is the fuse module loaded, and user_allow_other set in /etc/fuse.conf?",
          }),
        );
      } else resolve();
    });
  });
  let unmounted: () => void = () => undefined;
  const byUs = new Promise<void>((resolve) => {
    unmounted = resolve;
  });
  const purging = setInterval(() => mount.paths.purge(), WATCH_MS);
  const done = Promise.race([byUs, watchUnmount(target)]).then(async () => {
    clearInterval(purging);
    options.logger.info({}, "FUSE: unmounted");
    await finish(Fuse, fuse, mount, fileSystem);
  });
  done.catch(() => undefined); // Whoever awaits it sees the error.
  return {
    mountpoint: target,
    done,
    unmount: async ({ lazy = false } = {}) => {
      try {
        await unmountNative(Fuse, target, lazy);
      } catch (error) {
        if (!isDssError(error, "NotFound")) throw error;
      }
      if (lazy) return; // Its users go on; the watch cannot tell when they end.
      unmounted();
      await done;
    },
  };
}

/** Resolves when the mount has disappeared from the mount table. */
function watchUnmount(target: string): Promise<void> {
  // Elsewhere there is no table to read: only `unmount` ends the mount there.
  if (platform() !== "linux") return new Promise(() => undefined);
  return new Promise((resolve) => {
    const timer = setInterval(() => {
      if (findMount(target) !== undefined) return;
      clearInterval(timer);
      resolve();
    }, WATCH_MS);
  });
}

async function finish(
  Fuse: NativeFuseClass,
  fuse: NativeFuse,
  mount: NativeMount,
  fileSystem: FileSystem,
): Promise<void> {
  // Late releases arrive after the mount has gone: let them through first.
  do await new Promise((resolve) => setTimeout(resolve, WATCH_MS / 5));
  while (mount.inFlight > 0);
  mount.paths.clear();
  // `close` gives the native handle back, but wants to unmount first, which has happened.
  const unmount = Fuse.unmount;
  Fuse.unmount = (_mountpoint, callback) => callback(null);
  try {
    await new Promise<void>((resolve, reject) => {
      fuse.close((error) => (error ? reject(error) : resolve()));
    });
  } finally {
    Fuse.unmount = unmount;
  }
  await fileSystem.destroy();
}
