/**
 * The OrderedStore port over LMDB (npm `lmdb`), binary keys and values, one database in the root.
 *
 * Durability: LMDB's classic commit is used (data pages, fdatasync, meta page, fdatasync; no
 * noSync, noMetaSync, useWritemap, and not the package's overlapping sync, under which a resolved
 * `put` is not yet on disk). `commit` waits for the transaction and for `flushed` all the same, so
 * that its promise stays true under any setting. The prebuilt module of the package is loaded; no
 * install script needs to have run.
 */
import { open as openDatabase } from "lmdb";
import { assert } from "../base/assert.js";
import { DssError } from "../base/errors.js";
import type { OrderedStore, StoreBatch } from "./ports.js";

const KEY_BYTES_MAX = 1900;

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

function storeError(path: string, doing: string, cause: unknown): DssError {
  const full = /No space left|ENOSPC|MDB_MAP_FULL/.test(String((cause as Error)?.message));
  return new DssError(full ? "NoSpace" : "Disk", `cannot ${doing} the index ${path}`, { cause });
}

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

  async commit(batch: StoreBatch): Promise<void> {
    for (const { key } of batch.puts) {
      assert(key.length > 0 && key.length <= KEY_BYTES_MAX, `index key of ${key.length} bytes`);
    }
    try {
      const written = this.database.batch(() => {
        for (const { key, value } of batch.puts) void this.database.put(key, value);
        for (const key of batch.deletes) void this.database.remove(key);
      });
      await written;
      await this.database.flushed;
      this.database.resetReadTxn();
    } catch (error) {
      const reason = (error as { commitError?: Promise<unknown> }).commitError;
      // The package reports the reason of a failed commit through a second, rejected promise.
      const cause = reason ? await reason.catch((inner: unknown) => inner) : error;
      throw storeError(this.path, "write to", cause);
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
