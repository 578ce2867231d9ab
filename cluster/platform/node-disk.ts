/**
 * The Disk port over node:fs. Purpose: one directory of one daemon, with errors translated to
 * `DssError`, short writes completed, `sync` = fdatasync, and a lock that the kernel releases when
 * the process ends. Owner of no state but open descriptors.
 */
import { spawn } from "node:child_process";
import * as fs from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { assert } from "../base/assert.js";
import { DssError, type ErrorCode } from "../base/errors.js";
import { NodeDirectFile } from "./node-direct-file.js";
import type { DirectFile, Disk, DiskFile, DiskUsage, OrderedStore } from "./ports.js";

/** Linux takes at most 1,024 buffers in one writev (IOV_MAX). */
const WRITEV_BUFFERS_MAX = 1024;
/** The unit of `st_blocks`. */
const STAT_BLOCK_BYTES = 512;
/** Syncs that take longer on average keep the event loop from its work for too long. */
const QUICK_SYNC_MS = 2;
/** The last so many syncs make most of the average. */
const SYNCS_AVERAGED = 16;

const CODES: Record<string, ErrorCode> = {
  ENOENT: "NotFound",
  EEXIST: "Exists",
  ENOSPC: "NoSpace",
  EDQUOT: "NoSpace",
};

const PID_WIDTH = 12;

function ignoreNoSpace(error: NodeJS.ErrnoException): void {
  if (CODES[error.code ?? ""] !== "NoSpace") throw error;
}

/** A DssError (Disk, NotFound, Exists, NoSpace) that says what was tried on which path. */
function diskError(doing: string, path: string, cause: unknown): DssError {
  const code = (cause as NodeJS.ErrnoException).code ?? "";
  return new DssError(CODES[code] ?? "Disk", `cannot ${doing} ${path}`, { cause });
}

/** The chunks without their first `written` bytes. */
function remaining(chunks: readonly Buffer[], written: number): readonly Buffer[] {
  let index = 0;
  let skip = written;
  while (index < chunks.length && skip >= chunks[index]!.length) skip -= chunks[index++]!.length;
  if (index === 0 && skip === 0) return chunks;
  const rest = chunks.slice(index);
  if (skip > 0) rest[0] = rest[0]!.subarray(skip);
  return rest;
}

/**
 * Whether syncs of a file are made on the event loop's thread: another one costs two wake-ups,
 * which is as much processor time as a quick disk needs for the sync itself.
 */
export class SyncPace {
  /** Unknown before the first. */
  private averageMs: number | undefined;

  get isQuick(): boolean {
    return (this.averageMs ?? 0) < QUICK_SYNC_MS;
  }
  took(ms: number): void {
    this.averageMs ??= ms;
    this.averageMs += (ms - this.averageMs) / SYNCS_AVERAGED;
  }
}

class NodeDiskFile implements DiskFile {
  private readonly pace = new SyncPace();

  constructor(
    private readonly fd: number,
    private readonly path: string,
  ) {}

  read(buffer: Buffer, position: number): Promise<number> {
    return new Promise((resolve, reject) => {
      let done = 0;
      const step = (): void => {
        fs.read(this.fd, buffer, done, buffer.length - done, position + done, (error, count) => {
          if (error) return reject(diskError("read", this.path, error));
          done += count;
          // A short read in the middle of a file is legal (a signal, a network file system).
          if (count === 0 || done === buffer.length) resolve(done);
          else step();
        });
      };
      if (buffer.length === 0) resolve(0);
      else step();
    });
  }

  readSync(buffer: Buffer, position: number): number {
    let done = 0;
    try {
      while (done < buffer.length) {
        const count = fs.readSync(this.fd, buffer, done, buffer.length - done, position + done);
        if (count === 0) break;
        done += count;
      }
    } catch (error) {
      throw diskError("read", this.path, error);
    }
    return done;
  }

  write(chunks: readonly Buffer[], position: number): Promise<void> {
    return new Promise((resolve, reject) => {
      // `skip` bytes of chunks[index] are already written.
      let index = 0;
      let skip = 0;
      let at = position;
      const done = (error: NodeJS.ErrnoException | null, count: number): void => {
        if (error) return reject(diskError("write", this.path, error));
        at += count;
        skip += count;
        while (index < chunks.length && skip >= chunks[index]!.length)
          skip -= chunks[index++]!.length;
        step();
      };
      const step = (): void => {
        while (index < chunks.length && chunks[index]!.length === 0) index++;
        if (index >= chunks.length) return resolve();
        if (index === chunks.length - 1) {
          const last = chunks[index]!;
          fs.write(this.fd, last, skip, last.length - skip, at, done);
          return;
        }
        let batch = chunks.slice(index, index + WRITEV_BUFFERS_MAX);
        if (skip > 0) batch = [batch[0]!.subarray(skip), ...batch.slice(1)];
        fs.writev(this.fd, batch, at, done);
      };
      step();
    });
  }

  writeSync(chunks: readonly Buffer[], position: number): void {
    let at = position;
    try {
      for (let left = remaining(chunks, 0); left.length > 0;) {
        const count =
          left.length === 1
            ? fs.writeSync(this.fd, left[0]!, 0, left[0]!.length, at)
            : fs.writevSync(this.fd, left.slice(0, WRITEV_BUFFERS_MAX), at);
        at += count;
        left = remaining(left, count);
      }
    } catch (error) {
      throw diskError("write", this.path, error);
    }
  }

  sync(): Promise<void> {
    const start = performance.now();
    return new Promise((resolve, reject) => {
      fs.fdatasync(this.fd, (error) => {
        this.pace.took(performance.now() - start);
        if (error) reject(diskError("sync", this.path, error));
        else resolve();
      });
    });
  }

  trySync(): boolean {
    if (!this.pace.isQuick) return false;
    const start = performance.now();
    try {
      fs.fdatasyncSync(this.fd);
    } catch (error) {
      throw diskError("sync", this.path, error);
    }
    this.pace.took(performance.now() - start);
    return true;
  }

  truncate(size: number): Promise<void> {
    return new Promise((resolve, reject) => {
      fs.ftruncate(this.fd, size, (error) =>
        error ? reject(diskError("resize", this.path, error)) : resolve(),
      );
    });
  }

  private stat(): Promise<fs.Stats> {
    return new Promise((resolve, reject) => {
      fs.fstat(this.fd, (error, stat) =>
        error ? reject(diskError("examine", this.path, error)) : resolve(stat),
      );
    });
  }
  async size(): Promise<number> {
    return (await this.stat()).size;
  }
  async allocated(): Promise<number> {
    return (await this.stat()).blocks * STAT_BLOCK_BYTES;
  }

  /** Node has no call for it either; util-linux's `fallocate` opens the inherited descriptor. */
  async punch(position: number, length: number): Promise<void> {
    const range = ["--offset", String(position), "--length", String(length)];
    const args = ["--punch-hole", ...range, "/proc/self/fd/3"];
    const { code, message } = await runHelper("fallocate", args, this.fd, this.path);
    if (code === 0) return;
    throw new DssError("Disk", `cannot punch a hole into ${this.path}: ${message || code}`);
  }

  close(): Promise<void> {
    return new Promise((resolve, reject) => {
      fs.close(this.fd, (error) =>
        error ? reject(diskError("close", this.path, error)) : resolve(),
      );
    });
  }
}

/**
 * Takes the kernel's flock on `fd`. Node has no call for it, so util-linux's `flock` takes it on
 * an inherited descriptor: the lock belongs to the open file description, which this process
 * keeps after the child has gone. Resolves to false when another description holds the lock.
 */
async function flock(fd: number, path: string): Promise<boolean> {
  const { code, message } = await runHelper("flock", ["-n", "-x", "3"], fd, path);
  if (code === 0) return true;
  if (code === 1 && message === "") return false;
  throw new DssError("Disk", `cannot lock ${path}: flock: ${message || code}`);
}

/** Runs a program of util-linux, which finds `fd` as its descriptor 3. */
function runHelper(
  program: string,
  args: readonly string[],
  fd: number,
  path: string,
): Promise<{ code: number | null; message: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ["ignore", "ignore", "pipe", fd] });
    let message = "";
    child.stderr!.on("data", (chunk: Buffer) => (message += chunk.toString()));
    child.once("error", (cause) =>
      reject(
        new DssError("Disk", `${path}: the command "${program}" does not start`, {
          cause,
          hint: "install util-linux",
        }),
      ),
    );
    child.once("close", (code) => resolve({ code, message: message.trim() }));
  });
}

/** fsync of a file or directory, whoever wrote to it. */
async function syncPath(full: string, doing: string): Promise<void> {
  try {
    const handle = await fs.promises.open(full, fs.constants.O_RDONLY);
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw diskError(doing, full, error);
  }
}

class NodeDisk implements Disk {
  constructor(private readonly directory: string) {}

  private resolve(path: string): string {
    assert(
      !path.startsWith("/") && !path.split("/").includes(".."),
      `path "${path}" leaves its disk`,
    );
    return join(this.directory, path);
  }

  async open(
    path: string,
    options: { create?: boolean; exclusive?: boolean } = {},
  ): Promise<DiskFile> {
    const full = this.resolve(path);
    const { O_RDWR, O_CREAT, O_EXCL } = fs.constants;
    const flags =
      O_RDWR | (options.create ? O_CREAT : 0) | (options.exclusive ? O_CREAT | O_EXCL : 0);
    return new Promise((resolve, reject) => {
      fs.open(full, flags, 0o600, (error, fd) =>
        error ? reject(diskError("open", full, error)) : resolve(new NodeDiskFile(fd, full)),
      );
    });
  }

  async openDirect(path: string): Promise<DirectFile | undefined> {
    const full = this.resolve(path);
    const flags = fs.constants.O_RDWR | fs.constants.O_DIRECT;
    return new Promise((resolve, reject) => {
      fs.open(full, flags, (error, fd) => {
        if (!error) resolve(new NodeDirectFile(new NodeDiskFile(fd, full)));
        else if (error.code === "EINVAL") resolve(undefined);
        else reject(diskError("open", full, error));
      });
    });
  }

  async exists(path: string): Promise<boolean> {
    const full = this.resolve(path);
    try {
      await fs.promises.stat(full);
      return true;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return false;
      throw diskError("examine", full, error);
    }
  }

  async readFile(path: string): Promise<Buffer> {
    const full = this.resolve(path);
    return fs.promises.readFile(full).catch((error: unknown) => {
      throw diskError("read", full, error);
    });
  }

  async list(directory: string): Promise<string[]> {
    const full = this.resolve(directory);
    return fs.promises.readdir(full).catch((error: unknown) => {
      throw diskError("list", full, error);
    });
  }

  async makeDirectory(path: string): Promise<void> {
    const full = this.resolve(path);
    await fs.promises.mkdir(full, { recursive: true, mode: 0o700 }).catch((error: unknown) => {
      throw diskError("create directory", full, error);
    });
  }

  async rename(source: string, target: string): Promise<void> {
    const full = this.resolve(source);
    await fs.promises.rename(full, this.resolve(target)).catch((error: unknown) => {
      throw diskError("rename", full, error);
    });
  }

  async remove(path: string): Promise<void> {
    const full = this.resolve(path);
    await fs.promises.unlink(full).catch((error: unknown) => {
      throw diskError("remove", full, error);
    });
  }

  async syncDirectory(path: string): Promise<void> {
    await syncPath(this.resolve(path), "sync directory");
  }

  async usage(): Promise<DiskUsage> {
    try {
      const stat = await fs.promises.statfs(this.directory);
      return { total: stat.blocks * stat.bsize, available: stat.bavail * stat.bsize };
    } catch (error) {
      throw diskError("examine", this.directory, error);
    }
  }

  async lock(path: string): Promise<{ release(): Promise<void> }> {
    const full = this.resolve(path);
    const handle = await fs.promises
      .open(full, fs.constants.O_RDWR | fs.constants.O_CREAT, 0o600)
      .catch((error: unknown) => {
        throw diskError("open", full, error);
      });
    try {
      if (!(await flock(handle.fd, full))) {
        const holder = (await handle.readFile("utf8")).trim();
        throw new DssError(
          "Busy",
          `${this.directory} is in use by ${holder === "" ? "another process" : `process ${holder}`}`,
          { hint: "stop that process, or choose another folder" },
        );
      }
      // For people only, in one block that the file has: a disk without a free byte must not keep
      // the daemon from starting.
      await handle.write(`${process.pid}\n`.padStart(PID_WIDTH), 0).catch(ignoreNoSpace);
    } catch (error) {
      await handle.close();
      throw error instanceof DssError ? error : diskError("lock", full, error);
    }
    return { release: () => handle.close() };
  }

  async openStore(path: string): Promise<OrderedStore> {
    const full = this.resolve(path);
    // There while it is open: whoever finds it was not closed in good order, perhaps because the
    // native library crashed on what it read.
    const marker = `${full}.open`;
    if (fs.existsSync(marker) && fs.existsSync(full) && !(await isReadable(full))) {
      throw new DssError("Corrupt", `the index ${full} cannot be read through`);
    }
    await fs.promises.writeFile(marker, `${process.pid}\n`).catch((error: unknown) => {
      throw diskError("write", marker, error);
    });
    // Loaded on demand: clients and command line never need the native module.
    const { openLmdb } = await import("./lmdb.js");
    const store = openLmdb(full);
    try {
      // Its last commit may be that of a process which was killed before the sync.
      await syncPath(join(full, "data.mdb"), "sync");
      await this.syncDirectory(path);
      const close = store.close.bind(store);
      store.close = async () => {
        await close();
        await fs.promises.rm(marker, { force: true });
      };
      return store;
    } catch (error) {
      await store.close();
      throw error;
    }
  }
}

/** Has another process read all of it; false when that fails or dies. */
async function isReadable(path: string): Promise<boolean> {
  const probe = fileURLToPath(new URL("./node-index-probe.js", import.meta.url));
  const child = spawn(process.execPath, [probe, path], { stdio: "ignore" });
  return await new Promise<boolean>((resolve, reject) => {
    child.once("error", (cause) => {
      reject(new DssError("Disk", `cannot examine ${path}`, { cause }));
    });
    child.once("close", (code) => resolve(code === 0));
  });
}

/** The files below `directory`, which is created when missing. Errors: Disk, NoSpace. */
export async function openNodeDisk(directory: string): Promise<Disk> {
  await fs.promises.mkdir(directory, { recursive: true, mode: 0o700 }).catch((error: unknown) => {
    throw diskError("create directory", directory, error);
  });
  return new NodeDisk(directory);
}
