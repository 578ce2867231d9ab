/**
 * One PG in memory: its info, its retry memory, the objects that are pinned or cached, and the
 * newest part of its log. The rest of the log is in the index, in chunks.
 *
 * Invariant: the log is what the index holds in (logTail, diskEnd] followed by `tail`.
 */
import { assert } from "../../cluster/base/assert.js";
import { crc32 } from "../../cluster/base/checksum.js";
import { isDssError } from "../../cluster/base/errors.js";
import { formatPg, type PgId } from "../../cluster/base/ids.js";
import type { OrderedStore } from "../../cluster/platform/ports.js";
import type { ByteWriter } from "./bytes.js";
import { compareVersions, VERSION_ZERO, type LogEntry, type Version } from "./chunk-store.js";
import {
  getLogChunk,
  LOG_CHUNK_ENTRIES,
  logKey,
  logOf,
  openValue,
  putLogChunk,
  sealValue,
} from "./index-format.js";
import type { ObjectState } from "./object-state.js";
import { RetryMemory } from "./retry-memory.js";
import { CloneTable } from "./sharing.js";

const after = (version: Version): Version => ({ interval: version.interval, seq: version.seq + 1 });

/** The first index whose entry is above `version`, in ascending entries. */
export function firstAbove(entries: readonly LogEntry[], version: Version): number {
  let low = 0;
  let high = entries.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (compareVersions(entries[middle]!.version, version) > 0) high = middle;
    else low = middle + 1;
  }
  return low;
}

export class PgState {
  last: Version = VERSION_ZERO;
  logTail: Version = VERSION_ZERO;
  objectCount = 0;
  /** Allocated blocks. */
  blocks = 0;
  meta: Buffer = Buffer.alloc(0);
  readonly retries = new RetryMemory();
  /** Pinned and cached objects by name. */
  readonly objects = new Map<string, ObjectState>();

  /**
   * Hashes of the names of all objects. What the index does not find but is in here was lost; a
   * name that hashes like another one is taken for lost, too, and found out by comparing copies.
   */
  readonly names = new Set<number>();
  readonly clones = new CloneTable();
  /** Names whose entries in the index are damaged, do not count, and go with a checkpoint. */
  readonly voided = new Set<string>();
  /** Part of the log in the index could not be read and was given up. */
  onLogDamage: (what: string) => void = () => undefined;

  /** The index holds nothing of this PG that counts (it was just created). */
  fresh = true;
  /** The PG was removed: whoever still refers to this state must not touch the index for it. */
  removed = false;
  dirty = false;

  tail: LogEntry[] = [];
  diskEnd: Version = VERSION_ZERO;
  /**
   * The index holds chunks beyond diskEnd (or, `voidIndex`, only chunks) that are to be deleted.
   */
  private cut = false;
  private voidIndex = false;
  /** It may hold whole chunks at or below logTail. */
  private trimmed = false;
  /** The newest entry that the checkpoint being written puts into the index. */
  private freezing: Version | undefined;

  constructor(
    readonly id: PgId,
    private readonly index: OrderedStore,
  ) {}

  static hashOf(name: string): number {
    return crc32(Buffer.from(name, "utf8")) | 0;
  }

  private chunk(key: Buffer, value: Buffer): LogEntry[] {
    return getLogChunk(openValue(key, value, () => `the log of PG ${formatPg(this.id)}`));
  }

  append(entry: LogEntry): void {
    assert(
      compareVersions(entry.version, this.last) > 0,
      () =>
        `PG ${formatPg(this.id)}: version ${entry.version.interval}.${entry.version.seq} after ` +
        `${this.last.interval}.${this.last.seq}`,
    );
    this.tail.push(entry);
    this.last = entry.version;
  }

  /** Entries of the index in (from, upTo], ascending. */
  private *diskEntries(from: Version, upTo: Version): Generator<LogEntry> {
    if (this.fresh || compareVersions(from, upTo) >= 0) return;
    const range = logOf(this.id);
    let start = range.start;
    const before = {
      start: range.start,
      end: logKey(this.id, after(from)),
      reverse: true,
      limit: 1,
    };
    for (const { key } of this.index.range(before)) start = key;
    for (const { key, value } of this.index.range({ start, end: logKey(this.id, after(upTo)) })) {
      for (const entry of this.chunk(key, value)) {
        if (compareVersions(entry.version, from) <= 0) continue;
        if (compareVersions(entry.version, upTo) > 0) return;
        yield entry;
      }
    }
  }

  /**
   * The entries in the index are given up: the log begins behind them, and their chunks go with the
   * next checkpoint. Nothing but the length of the log is lost.
   */
  private giveUp(error: unknown): void {
    if (!isDssError(error, "Corrupt")) throw error;
    this.logTail = this.diskEnd;
    this.voidIndex = true;
    this.freezing = undefined;
    this.onLogDamage(error.message);
  }

  log(from: Version, limit: number): LogEntry[] | undefined {
    try {
      return this.readLog(from, limit);
    } catch (error) {
      this.giveUp(error);
      return this.readLog(from, limit);
    }
  }
  private readLog(from: Version, limit: number): LogEntry[] | undefined {
    if (compareVersions(from, this.logTail) < 0) return undefined;
    const out: LogEntry[] = [];
    if (limit <= 0) return out;
    for (const entry of this.diskEntries(from, this.diskEnd)) {
      out.push(entry);
      if (out.length >= limit) return out;
    }
    for (let i = firstAbove(this.tail, from); i < this.tail.length && out.length < limit; i++) {
      out.push(this.tail[i]!);
    }
    return out;
  }

  newestAtOrBelow(version: Version): Version | undefined {
    try {
      return this.findAtOrBelow(version);
    } catch (error) {
      this.giveUp(error);
      return this.findAtOrBelow(version);
    }
  }
  private findAtOrBelow(version: Version): Version | undefined {
    if (compareVersions(version, this.last) >= 0) return this.last;
    if (compareVersions(version, this.logTail) < 0) return undefined;
    const above = firstAbove(this.tail, version);
    if (above > 0) {
      const found = this.tail[above - 1]!.version;
      return compareVersions(found, this.logTail) > 0 ? found : this.logTail;
    }
    const upTo = compareVersions(version, this.diskEnd) < 0 ? version : this.diskEnd;
    if (!this.fresh && compareVersions(upTo, this.logTail) > 0) {
      const before = {
        start: logOf(this.id).start,
        end: logKey(this.id, after(upTo)),
        reverse: true,
      };
      for (const { key, value } of this.index.range({ ...before, limit: 1 })) {
        const entries = this.chunk(key, value);
        const count = firstAbove(entries, upTo);
        const found = entries[count - 1]?.version;
        if (found && compareVersions(found, this.logTail) > 0) return found;
      }
    }
    return this.logTail;
  }

  /** True when something changed. */
  trim(tail: Version): boolean {
    const exact = this.newestAtOrBelow(tail);
    if (!exact || compareVersions(exact, this.logTail) <= 0) return false;
    this.logTail = exact;
    this.trimmed = true;
    const keep = firstAbove(this.tail, exact);
    // Moving the array at every call would cost more than the memory until the next checkpoint.
    if (keep > 1024) this.tail.splice(0, keep);
    return true;
  }

  rewrite(common: Version, entries: readonly LogEntry[]): void {
    try {
      this.cutTo(common);
    } catch (error) {
      this.giveUp(error);
      this.cutTo(common);
    }
    this.last = common;
    for (const entry of entries) this.append(entry);
  }
  private cutTo(common: Version): void {
    if (compareVersions(common, this.logTail) < 0 || compareVersions(common, this.last) > 0) {
      // Nothing of the present log is kept: the new one begins at `common`.
      this.tail = [];
      this.logTail = common;
      this.diskEnd = common;
      this.voidIndex = true;
      this.freezing = undefined;
    } else if (compareVersions(common, this.diskEnd) < 0) {
      this.tail = this.pullStraddling(common);
      this.cutIndex();
    } else {
      this.tail.length = firstAbove(this.tail, common);
      if (this.freezing && compareVersions(common, this.freezing) < 0) this.cutIndex();
    }
  }

  /** Reads every chunk of the index that counts; how many there are, and how many are damaged. */
  verifyLog(): { entries: number; damaged: number } {
    let entries = 0;
    if (this.fresh || this.voidIndex || this.cut) return { entries, damaged: 0 };
    for (const { key, value } of this.index.range(logOf(this.id))) {
      entries++;
      try {
        this.chunk(key, value);
      } catch (error) {
        this.giveUp(error);
        return { entries, damaged: 1 };
      }
    }
    return { entries, damaged: 0 };
  }

  /**
   * Moves diskEnd back to the end of the last chunk that lies wholly at or below `common`, and
   * returns the entries between that and `common`: their chunk will be written anew.
   */
  private pullStraddling(common: Version): LogEntry[] {
    const range = { start: logOf(this.id).start, end: logKey(this.id, after(common)) };
    const chunks: LogEntry[][] = [];
    if (!this.fresh) {
      for (const { key, value } of this.index.range({ ...range, reverse: true, limit: 2 })) {
        chunks.push(this.chunk(key, value));
      }
    }
    const [straddling = [], previous = []] = chunks;
    const kept = firstAbove(straddling, common);
    if (kept === straddling.length) {
      this.diskEnd = straddling.at(-1)?.version ?? VERSION_ZERO;
      return [];
    }
    this.diskEnd = previous.at(-1)?.version ?? VERSION_ZERO;
    return straddling.slice(0, kept);
  }

  private cutIndex(): void {
    this.cut = true;
    this.freezing = undefined;
  }

  /** What the checkpoint has to change in the log's chunks. */
  freezeLog(out: ByteWriter, puts: { key: Buffer; value: Buffer }[], deletes: Buffer[]): void {
    const first = firstAbove(this.tail, this.logTail);
    const written = new Set<string>();
    for (let i = first; i < this.tail.length; i += LOG_CHUNK_ENTRIES) {
      const entries = this.tail.slice(i, i + LOG_CHUNK_ENTRIES);
      const key = logKey(this.id, entries[0]!.version);
      out.at = 0;
      putLogChunk(out, entries);
      puts.push({ key, value: sealValue(out, key) });
      written.add(key.toString("latin1"));
    }
    if (!this.fresh) this.dropChunks(written, deletes);
    this.freezing = this.tail.at(-1)?.version;
    this.cut = false;
    this.voidIndex = false;
    this.trimmed = false;
  }

  private dropChunks(written: ReadonlySet<string>, deletes: Buffer[]): void {
    const range = logOf(this.id);
    if (this.voidIndex || this.cut) {
      const start = this.voidIndex ? range.start : logKey(this.id, after(this.diskEnd));
      for (const { key } of this.index.range({ start, end: range.end })) {
        if (!written.has(key.toString("latin1"))) deletes.push(key);
      }
    }
    if (this.trimmed && !this.voidIndex) {
      // A chunk can go when the next one still begins at or below the tail: all of it is older.
      let candidate: Buffer | undefined;
      const end = logKey(this.id, after(this.logTail));
      for (const { key } of this.index.range({ start: range.start, end })) {
        if (candidate) deletes.push(candidate);
        candidate = key;
      }
    }
  }

  /** The checkpoint is in the index. */
  logCommitted(): void {
    if (!this.freezing) return;
    this.tail.splice(0, firstAbove(this.tail, this.freezing));
    this.diskEnd = this.freezing;
    this.freezing = undefined;
  }
}
