/**
 * The OrderedStore port over LMDB (npm `lmdb`), binary keys and values, one database in the root.
 *
 * Durability: LMDB's classic commit is used (data pages, fdatasync, meta page, fdatasync; no
 * noSync, noMetaSync, useWritemap, and not the package's overlapping sync, under which a resolved
 * `put` is not yet on disk). `commit` waits for the transaction and for `flushed` all the same, so
 * that its promise stays true under any setting. The prebuilt module of the package is loaded; no
 * install script needs to have run.
 */
import { readFileSync } from "node:fs";
import { stat, statfs } from "node:fs/promises";
import { join } from "node:path";
import { open as openDatabase } from "lmdb";
import { assert } from "../base/assert.js";
import { DssError } from "../base/errors.js";
import type { OrderedStore, StoreBatch } from "./ports.js";

const KEY_BYTES_MAX = 1900;
const PAGE_BYTES = 4096;
/**
 * Address space, not memory: beyond it the package maps the file once more and keeps the mapping
 * that was there, so that its pages are resident twice.
 */
const MAP_BYTES = 16 * 2 ** 30;
/** The package does not survive a mapping that is refused, so a process with less begins small. */
const ADDRESS_SPACE_MIN = 2 * MAP_BYTES;

function mapSize(): { mapSize?: number } {
  const limits = readFileSync("/proc/self/limits", "latin1");
  const found = /^Max address space\s+(\d+)/m.exec(limits);
  return found !== null && Number(found[1]) < ADDRESS_SPACE_MIN ? {} : { mapSize: MAP_BYTES };
}
/** For the upper pages of the tree, the list of free pages, and the file system's own. */
const SPARE_BYTES = 128 * 1024;

const asBuffer = (bytes: Uint8Array): Buffer =>
  Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);

function openEnvironment(path: string) {
  return openDatabase<Buffer, Uint8Array>({
    path,
    keyEncoding: "binary",
    encoding: "binary",
    overlappingSync: false,
    noSubdir: false,
    cache: false,
    ...mapSize(),
  });
}

/** What LMDB says of a database whose structure is damaged (lmdb.h). */
const DAMAGE =
  /MDB_(PAGE_NOTFOUND|CORRUPTED|PANIC|VERSION_MISMATCH|INVALID|BAD_TXN|CURSOR_FULL|PAGE_FULL)/;

function readError(path: string, cause: unknown): DssError {
  const text = String((cause as Error)?.message);
  const code = DAMAGE.test(text) || cause instanceof RangeError ? "Corrupt" : "Disk";
  return new DssError(code, `cannot read the index ${path}: ${text}`, { cause });
}

function writeError(path: string, cause: unknown): DssError {
  const known = storeError(path, "write to", cause);
  const text = String((cause as Error)?.message);
  if (known.code === "NoSpace" || !/MDB_/.test(text)) return known;
  return new DssError("Corrupt", `cannot write to the index ${path}: ${text}`, { cause });
}

function storeError(path: string, doing: string, cause: unknown): DssError {
  const full = /No space left|ENOSPC|MDB_MAP_FULL/.test(String((cause as Error)?.message));
  return new DssError(full ? "NoSpace" : "Disk", `cannot ${doing} the index ${path}`, { cause });
}

const ignore = (): void => undefined;

class LmdbStore implements OrderedStore {
  constructor(
    private readonly path: string,
    private readonly database: ReturnType<typeof openEnvironment>,
  ) {}

  get(key: Buffer): Buffer | undefined {
    try {
      return this.database.getBinary(key);
    } catch (error) {
      throw readError(this.path, error);
    }
  }

  *range(options: {
    start: Buffer;
    end: Buffer;
    limit?: number;
    reverse?: boolean;
  }): Iterable<{ key: Buffer; value: Buffer }> {
    try {
      yield* this.entries(options);
    } catch (error) {
      throw readError(this.path, error);
    }
  }
  private *entries(options: {
    start: Buffer;
    end: Buffer;
    limit?: number;
    reverse?: boolean;
  }): Iterable<{ key: Buffer; value: Buffer }> {
    const limit = options.limit === undefined ? {} : { limit: options.limit };
    const entries = this.database.getRange(
      options.reverse
        ? {
            start: options.end,
            exclusiveStart: true,
            end: options.start,
            inclusiveEnd: true,
            reverse: true,
            ...limit,
          }
        : { start: options.start, end: options.end, ...limit },
    );
    for (const { key, value } of entries) yield { key: asBuffer(key), value };
  }

  /**
   * Refuses what the file system may have no room for, before the package sees it: after a failed
   * write it can reject a promise out of anybody's reach, which would end the process. Pages are
   * copied when they change; free pages inside the file make the real need smaller than this.
   */
  private async checkSpace(batch: StoreBatch): Promise<void> {
    const changes = batch.puts.length + batch.deletes.length;
    let bytes = 0;
    for (const { key, value } of batch.puts) bytes += key.length + value.length;
    try {
      const [{ bavail, bsize }, { size }] = await Promise.all([
        statfs(this.path),
        stat(join(this.path, "data.mdb")),
      ]);
      const copied = Math.min(changes * PAGE_BYTES, size);
      const needed = Math.ceil(bytes * 1.25) + copied + SPARE_BYTES;
      if (bavail * bsize >= needed) return;
      const text = `the index ${this.path} may need ${needed} bytes, ${bavail * bsize} are there`;
      throw new DssError("NoSpace", text);
    } catch (error) {
      throw error instanceof DssError ? error : storeError(this.path, "examine", error);
    }
  }

  async commit(batch: StoreBatch): Promise<void> {
    for (const { key } of batch.puts) {
      assert(key.length > 0 && key.length <= KEY_BYTES_MAX, `index key of ${key.length} bytes`);
    }
    await this.checkSpace(batch);
    try {
      const written = this.database.batch(() => {
        for (const { key, value } of batch.puts) this.database.put(key, value).catch(ignore);
        for (const key of batch.deletes) this.database.remove(key).catch(ignore);
        void this.database.committed.then(ignore, ignore);
      });
      // A commit that fails rejects promises inside the package as well, which nobody else holds.
      void this.database.committed.then(ignore, ignore);
      await written;
      await this.database.flushed;
      this.database.resetReadTxn();
    } catch (error) {
      const reason = (error as { commitError?: Promise<unknown> }).commitError;
      // The package reports the reason of a failed commit through a second, rejected promise.
      const cause = reason ? await reason.catch((inner: unknown) => inner) : error;
      throw writeError(this.path, cause);
    }
  }

  async close(): Promise<void> {
    await this.database.close();
  }
}

/** Opens or creates the database in the directory `path`. Errors: Disk, NoSpace. */
export function openLmdb(path: string): OrderedStore {
  try {
    return new LmdbStore(path, openEnvironment(path));
  } catch (error) {
    const known = storeError(path, "open", error);
    throw known.code === "NoSpace" ? known : readError(path, error);
  }
}
