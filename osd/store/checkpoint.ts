/**
 * Carries the state in memory to its place on disk, in the background and one step at a time:
 * flushes of the overlay into the data files, and checkpoints, after which WAL segments are reused.
 *
 * A checkpoint: seal the WAL's gathering group, note what is dirty at that moment, wait until that
 * group is declared durable, flush the overlay entries of that moment and sync, commit the noted
 * infos to the index, release the WAL up to that group. `apply` goes on meanwhile: an object that
 * is about to change and was noted but not serialised yet is serialised first; an overlay entry
 * that is superseded or dropped is flushed all the same, because the infos noted refer to its
 * bytes.
 *
 * Owner of: what is dirty.
 */
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import { faults } from "../../cluster/base/faults.js";
import type { Logger } from "../../cluster/base/log.js";
import type { Clock, OrderedStore, Timer } from "../../cluster/platform/ports.js";
import { ByteWriter } from "./bytes.js";
import type { DataFiles } from "./data-files.js";
import type { Quarantine } from "./extent-map.js";
import {
  everythingOf,
  objectKey,
  pgKey,
  retryKey,
  sealValue,
  STATE_COPY_KEY,
  STATE_KEY,
} from "./index-format.js";
import type { ObjectState } from "./object-state.js";
import type { StoreOptions } from "./options.js";
import type { Overlay, OverlayEntry } from "./overlay.js";
import type { PgState } from "./pg-state.js";
import { encodePg, encodeState } from "./recovery.js";
import { putRetryRecord } from "./records.js";
import type { Reclaimer } from "./reclaim.js";
import type { SpaceGauge } from "./space.js";
import type { Wal } from "./wal.js";

/** Objects serialised before other events get their turn. */
const SLICE_OBJECTS = 64;
/** Blocks written on the event loop's thread before other events get their turn (some 50 µs). */
const FLUSH_SYNC_WRITES = 16;

export interface CheckpointParts {
  index: OrderedStore;
  files: DataFiles;
  overlay: Overlay;
  quarantine: Quarantine;
  space: SpaceGauge;
  reclaimer: Reclaimer;
  clock: Clock;
  options: Readonly<StoreOptions>;
  logger: Logger;
}

export interface CheckpointHost {
  onError(error: unknown): void;
  /** The overlay has shrunk. */
  onFlushed(): void;
  /** The index has this object as it is, unless it is dirty again. */
  onClean(object: ObjectState): void;
  /** Gives an overlay entry a fresh block to be flushed to. */
  relocate(entry: OverlayEntry): void;
}

interface Batch {
  puts: { key: Buffer; value: Buffer }[];
  deletes: Buffer[];
}

export class Checkpointer {
  private wal!: Wal;
  private objects: ObjectState[] = [];
  private pgs: PgState[] = [];
  private purges: PgState[] = [];
  private deletes: Buffer[] = [];
  /** Log entries since the last freeze. */
  entries = 0;
  private batch: Batch = { puts: [], deletes: [] };
  private readonly out = new ByteWriter(16 * 1024);
  private running: Promise<void> | undefined;
  private wanted = false;
  private stopped = false;
  /** Who waits for the commit of the checkpoint under way, and for that of the next. */
  private committing: (() => void)[] = [];
  private wantCommit: (() => void)[] = [];
  private timer: Timer | undefined;

  readonly counters = { checkpoints: 0, flushes: 0, flushedBlocks: 0, flushWrites: 0 };

  constructor(
    private readonly parts: CheckpointParts,
    private readonly host: CheckpointHost,
  ) {}

  start(wal: Wal): void {
    this.wal = wal;
  }

  addObject(object: ObjectState): void {
    this.objects.push(object);
  }
  addPg(pg: PgState): void {
    this.pgs.push(pg);
  }
  addPurge(pg: PgState): void {
    this.purges.push(pg);
  }
  /** A damaged entry of the index that stands for nothing. */
  addDelete(key: Buffer): void {
    this.deletes.push(key);
  }

  private get dirty(): boolean {
    const { objects, pgs, purges, deletes } = this;
    return objects.length > 0 || pgs.length > 0 || purges.length > 0 || deletes.length > 0;
  }

  private get due(): boolean {
    const { options } = this.parts;
    const { used, size } = this.wal.fill;
    return (
      this.wanted ||
      used > size / 2 ||
      this.objects.length >= options.checkpointObjects ||
      this.entries >= options.checkpointEntries
    );
  }

  private get crowded(): boolean {
    return this.parts.overlay.bytes > this.parts.options.overlayBytesMax / 2;
  }

  /** Called after every change: starts what is due, and the clock for the rest. */
  consider(): void {
    if (this.running || this.stopped) return;
    if (this.crowded || this.due) this.run();
    else this.arm();
  }

  private arm(): void {
    if (this.stopped) return;
    if (this.dirty && !this.timer) {
      this.timer = this.parts.clock.setTimer(this.parts.options.checkpointMs, () => {
        this.timer = undefined;
        this.request();
      });
    }
  }

  /** A checkpoint as soon as possible. */
  request(): void {
    this.wanted = true;
    this.consider();
  }

  stop(): void {
    this.stopped = true;
    this.timer?.cancel();
    this.timer = undefined;
    for (const resolve of [...this.committing, ...this.wantCommit]) resolve();
    this.committing = [];
    this.wantCommit = [];
  }

  /** Resolves when what has changed until now is in the index, or no checkpoint will come. */
  committed(): Promise<void> {
    if (this.stopped || (!this.dirty && !this.running)) return Promise.resolve();
    return new Promise((resolve) => {
      this.wantCommit.push(resolve);
      this.request();
    });
  }

  async idle(): Promise<void> {
    while (this.running) await this.running;
  }

  /** Runs one checkpoint now, after the work under way; errors go to the host. */
  async checkpoint(): Promise<void> {
    await this.idle();
    if (!this.dirty && this.parts.overlay.bytes === 0) return;
    this.running = this.guard(() => this.write());
    await this.running;
  }

  private run(): void {
    this.running = this.guard(async () => {
      while (!this.stopped) {
        if (this.due) await this.write();
        else if (!this.crowded || !(await this.trickle())) return;
      }
    });
  }

  private async guard(work: () => Promise<void>): Promise<void> {
    try {
      // The first step may be due inside `apply`: nothing of it runs before that has returned.
      await Promise.resolve();
      await work();
    } catch (error) {
      this.stop();
      this.host.onError(error);
    } finally {
      this.running = undefined;
    }
    // Not when only the overlay is crowded: the next group that becomes durable looks at that.
    if (this.due) this.consider();
    else this.arm();
  }

  /** Flushes what may be flushed without a checkpoint; false when there was nothing. */
  private async trickle(): Promise<boolean> {
    if (this.wal.declared < this.wal.durable) await this.wal.declare(this.wal.durable);
    const entries = this.parts.overlay.select(this.wal.declared);
    if (entries.length === 0) return false;
    await this.flush(entries);
    return true;
  }

  /** Writes the entries to their blocks in disk order, syncing after every `flushBytes`. */
  private async flush(entries: OverlayEntry[]): Promise<void> {
    const { overlay, options, quarantine } = this.parts;
    const user = quarantine.beginUse();
    this.counters.flushes++;
    entries.sort((a, b) => a.block - b.block);
    const step = Math.max(1, Math.floor(options.flushBytes / BLOCK_SIZE));
    try {
      for (let at = 0; at < entries.length; at += step) {
        await this.flushStep(entries.slice(at, at + step));
      }
    } finally {
      quarantine.endUse(user);
    }
    overlay.tidy();
    this.host.onFlushed();
  }

  private async flushStep(entries: OverlayEntry[]): Promise<void> {
    const { overlay, files, space } = this.parts;
    const runs: OverlayEntry[][] = [];
    for (const entry of entries) {
      const run = runs.at(-1);
      if (run && run[0]!.block + run.length === entry.block) run.push(entry);
      else runs.push([entry]);
    }
    const touched = new Set<number>();
    await space.whenSpace(async () => {
      const long: OverlayEntry[][] = [];
      let written = 0;
      for (const run of runs) {
        // Handing a single block to another thread costs several times the write itself.
        if (run.length > 1 || !files.writeBlockSync(run[0]!.block, run[0]!.bytes, touched)) {
          long.push(run);
        } else if (++written % FLUSH_SYNC_WRITES === 0) {
          await new Promise<void>((resolve) => this.parts.clock.defer(resolve));
        }
      }
      await Promise.all(
        long.map((run) => {
          const chunks: Buffer[] = [];
          overlay.gather(run, chunks);
          return files.write({ start: run[0]!.block, count: run.length }, chunks, touched);
        }),
      );
      await files.sync(touched);
    });
    this.counters.flushedBlocks += entries.length;
    this.counters.flushWrites += runs.length;
    for (const entry of entries) {
      if (entry.current) overlay.retire(entry);
      overlay.drop(entry);
    }
    this.host.onFlushed();
  }

  private async write(): Promise<void> {
    const { overlay, quarantine, index, space } = this.parts;
    this.timer?.cancel();
    this.timer = undefined;
    this.wanted = false;
    // From here to the next `await` is one moment: the state that this checkpoint stands for.
    this.committing = this.wantCommit;
    this.wantCommit = [];
    const { last, unlogged } = this.wal.sealAll();
    const user = quarantine.beginUse();
    const entries = overlay.select(Infinity);
    // Bytes that are not in the WAL must not overwrite what the index of now refers to.
    for (const entry of entries) if (entry.order > last.order) this.host.relocate(entry);
    const batch: Batch = (this.batch = { puts: [], deletes: [] });
    const { purges, deletes } = this;
    this.purges = [];
    this.deletes = [];
    const objects = this.freezeObjects();
    const pgs = this.freezePgs(batch);
    if (faults.recycleEarly) this.wal.release(this.wal.pointOf(last));
    try {
      if (!faults.overwriteEarly) await this.wal.declare(last.order);
      await this.flush(entries);
      for (const group of unlogged) {
        await Promise.all(group.directs);
        await this.parts.files.sync(group.touched);
      }
    } finally {
      quarantine.endUse(user);
    }
    for (let i = 0; i < objects.length; i++) {
      this.serialise(objects[i]!);
      if (i % SLICE_OBJECTS === SLICE_OBJECTS - 1) {
        await new Promise<void>((resolve) => this.parts.clock.defer(resolve));
      }
    }
    this.purge(purges, deletes, batch);
    const point = this.wal.pointOf(last);
    for (const key of [STATE_KEY, STATE_COPY_KEY]) {
      batch.puts.push({ key, value: encodeState(key, point) });
    }
    await space.whenSpace(() => index.commit(batch));
    for (const resolve of this.committing.splice(0)) resolve();
    for (const pg of pgs) {
      pg.fresh = false;
      pg.logCommitted();
    }
    for (const object of objects) {
      object.frozen = false;
      this.host.onClean(object);
    }
    this.wal.release(point);
    if (unlogged.length > 0) this.wal.settleUnlogged();
    this.counters.checkpoints++;
    await space.refresh();
    await this.parts.reclaimer.round();
    await space.refill();
    this.host.onFlushed();
  }

  private freezeObjects(): ObjectState[] {
    const objects = this.objects.filter((object) => !object.pg.removed);
    this.objects = [];
    for (const object of objects) {
      object.dirty = false;
      object.frozen = true;
      object.freezePending = true;
    }
    return objects;
  }

  private freezePgs(batch: Batch): PgState[] {
    const pgs = this.pgs.filter((pg) => !pg.removed);
    this.pgs = [];
    this.entries = 0;
    const out = this.out;
    for (const pg of pgs) {
      pg.dirty = false;
      const key = pgKey(pg.id);
      encodePg(out, pg);
      batch.puts.push({ key, value: sealValue(out, key) });
      pg.freezeLog(out, batch.puts, batch.deletes);
      for (const client of pg.retries.dirty) {
        const record = pg.retries.get(client);
        const retry = retryKey(pg.id, client);
        if (record) {
          out.at = 0;
          putRetryRecord(out, record);
          batch.puts.push({ key: retry, value: sealValue(out, retry) });
        } else {
          batch.deletes.push(retry);
        }
      }
      pg.retries.dirty.clear();
    }
    return pgs;
  }

  /** Puts the object into the checkpoint under way, as it is now. */
  serialise(object: ObjectState): void {
    if (!object.freezePending) return;
    object.freezePending = false;
    const key = objectKey(object.pg.id, object.name);
    if (!object.exists) {
      this.batch.deletes.push(key);
      return;
    }
    this.out.at = 0;
    object.encode(this.out);
    this.batch.puts.push({ key, value: sealValue(this.out, key) });
  }

  private purge(pgs: readonly PgState[], deletes: readonly Buffer[], batch: Batch): void {
    if (pgs.length === 0 && deletes.length === 0) return;
    const written = new Set(batch.puts.map(({ key }) => key.toString("latin1")));
    for (const key of deletes) if (!written.has(key.toString("latin1"))) batch.deletes.push(key);
    for (const id of new Set(pgs.map((pg) => pg.id))) {
      for (const range of everythingOf(id)) {
        for (const { key } of this.parts.index.range(range)) {
          if (!written.has(key.toString("latin1"))) batch.deletes.push(key);
        }
      }
    }
  }
}
