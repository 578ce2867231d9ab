/**
 * The chunk store on a disk (docs/on-disk.md). `apply` changes the state in memory, puts a record
 * into the WAL's gathering group and returns; the group's sync makes it durable. Small writes sit
 * in the overlay until they are flushed to the data files, large ones go there at once, to blocks
 * that nobody uses. Checkpoints (checkpoint.ts) carry the state into the index.
 *
 * Invariants:
 * - A live block is overwritten in place only with bytes whose WAL group is declared durable.
 * - A freed block is used again only when the quarantine says so.
 * - State in memory = index + WAL records after the index's point, in order.
 *
 * Owner of: all PG and object states of the store.
 */
import { LRUCache } from "lru-cache";
import { assert } from "../../cluster/base/assert.js";
import { BufferPool } from "../../cluster/base/buffer-pool.js";
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import { DssError } from "../../cluster/base/errors.js";
import { formatPg, formatUuid, type OsdId, type PgId } from "../../cluster/base/ids.js";
import type { Logger } from "../../cluster/base/log.js";
import type { Clock, Disk, OrderedStore, RandomSource } from "../../cluster/platform/ports.js";
import { digestOf, runsThatFit, spoil } from "./block-runs.js";
import { Checkpointer } from "./checkpoint.js";
import {
  compareVersions,
  OpKind,
  type BlockRun,
  type ChunkStore,
  type CopyCheck,
  type Durable,
  type LogEntry,
  type ObjectImage,
  type ObjectInfo,
  type ObjectRead,
  type PgInfo,
  type RetryRecord,
  type SpoiledBlock,
  type StoreUsage,
  type Transaction,
  type Version,
} from "./chunk-store.js";
import { DataFiles } from "./data-files.js";
import { BlockAllocator, Quarantine } from "./extent-map.js";
import { NAME_BYTES_MAX, nameOfKey, objectKey, objectsOf, openValue } from "./index-format.js";
import { ObjectReader, type BlockRead } from "./object-reader.js";
import { ObjectState } from "./object-state.js";
import { storeOptions, type StoreOptions } from "./options.js";
import { Overlay } from "./overlay.js";
import { PgState } from "./pg-state.js";
import { BlockPlacer } from "./placement.js";
import { loadIndex, verifyPlacement } from "./recovery.js";
import { putRecord, RecordType, type Placement, type WalRecord } from "./records.js";
import { Reclaimer } from "./reclaim.js";
import { SpaceGauge } from "./space.js";
import {
  checkOwner,
  newSuperblock,
  readSuperblock,
  writeSuperblock,
  type Superblock,
} from "./superblock.js";
import { checkTransaction } from "./transaction-check.js";
import { recoverWal, type ReplayGroup } from "./wal-recovery.js";
import { SALT_BYTES, Wal, type WalGroup } from "./wal.js";

export interface FileStoreConfig {
  osdId: OsdId;
  /** Checked against the superblock, and written into it when that has none yet. */
  clusterId?: string;
  options?: Partial<StoreOptions>;
  logger: Logger;
  clock: Clock;
  random: RandomSource;
}

/** Buffers of answered reads that are kept for the next ones. */
const READ_POOL_BYTES = 16 * 1024 * 1024;
const META_BYTES_MAX = 2 * 1024 * 1024;
const NO_SUMS = new Uint32Array(0);
const noop = (): void => undefined;

export class FileStore implements ChunkStore {
  readonly uuid: string;
  private readonly pgs = new Map<PgId, PgState>();
  private readonly overlay = new Overlay();
  private readonly allocator = new BlockAllocator();
  private readonly quarantine = new Quarantine(this.allocator);
  private readonly placer: BlockPlacer;
  private readonly reader: ObjectReader;
  private readonly readPool = new BufferPool(READ_POOL_BYTES);
  private readonly checkpointer: Checkpointer;
  private readonly reclaimer: Reclaimer;
  private readonly cache: LRUCache<ObjectState, true>;
  private wal!: Wal;
  private objectTotal = 0;
  private dead: Error | undefined;
  private closing = false;
  private applies = 0;

  private constructor(
    private readonly disk: Disk,
    private readonly superblock: Superblock,
    private readonly options: Readonly<StoreOptions>,
    private readonly config: FileStoreConfig,
    private readonly index: OrderedStore,
    private readonly files: DataFiles,
    private readonly space: SpaceGauge,
    private readonly lock: { release(): Promise<void> },
  ) {
    this.uuid = superblock.uuid;
    this.cache = new LRUCache<ObjectState, true>({
      // What does not fit is not kept (see `remember`), so any size is right; 0 would mean no
      // limit.
      maxSize: Math.max(options.cacheBytes, 1),
      sizeCalculation: (_, object) => object.weight,
      dispose: (_, object, reason) => {
        if (reason === "evict") object.pg.objects.delete(object.name);
      },
    });
    this.placer = new BlockPlacer(this.overlay, this.allocator, this.quarantine, files, space);
    this.reader = new ObjectReader(files, this.quarantine, options.syncReadBytes, () =>
      this.releaseBlocks(),
    );
    this.reclaimer = new Reclaimer(files, this.allocator, space);
    this.checkpointer = new Checkpointer(
      {
        index,
        files,
        overlay: this.overlay,
        quarantine: this.quarantine,
        space,
        reclaimer: this.reclaimer,
        clock: config.clock,
        options,
        logger: config.logger,
      },
      {
        onError: (error) => this.fail(error),
        onFlushed: () => {
          this.allocator.preferHoles = this.space.scarce;
          this.releaseBlocks();
          this.wal.kick();
        },
        onClean: (object) => this.clean(object),
        relocate: (entry) => this.placer.relocate(entry),
      },
    );
  }

  /** Makes an empty folder a store. Fails with Conflict when it is not empty, Busy when in use. */
  static async format(disk: Disk, config: FileStoreConfig): Promise<void> {
    const lock = await disk.lock("lock");
    try {
      if (await readSuperblock(disk)) {
        throw new DssError("Conflict", "the folder already holds a chunk store", {
          hint: "choose an empty folder",
        });
      }
      await FileStore.lay(disk, config);
    } finally {
      await lock.release();
    }
  }

  private static async lay(disk: Disk, config: FileStoreConfig): Promise<Superblock> {
    const options = storeOptions(config.options);
    const salt = config.random.bytes(SALT_BYTES);
    await DataFiles.format(disk);
    await Wal.format(disk, {
      segments: options.walSegments,
      segmentBytes: options.walSegmentBytes,
      salt,
    });
    await disk.makeDirectory("index");
    await SpaceGauge.format(disk, options.reserveBytes);
    await disk.syncDirectory(".");
    const superblock = newSuperblock({
      osd: config.osdId,
      uuid: formatUuid(config.random.bytes(16)),
      cluster: config.clusterId ?? "",
      walSalt: salt.toString("hex"),
      walSegments: options.walSegments,
      walSegmentBytes: options.walSegmentBytes,
      dataFileBytes: options.dataFileBytes,
    });
    await writeSuperblock(disk, superblock);
    config.logger.info({ osd: config.osdId, uuid: superblock.uuid }, "formatted a chunk store");
    return superblock;
  }

  /**
   * Opens the folder's store, formatting an empty folder, and recovers what a crash left. Fails
   * with Busy (in use), Conflict (another OSD's or cluster's, or no store), IncompatibleVersion,
   * Corrupt (damage that would lose acknowledged writes) or Disk.
   */
  static async open(disk: Disk, config: FileStoreConfig): Promise<FileStore> {
    const lock = await disk.lock("lock");
    let index: OrderedStore | undefined;
    try {
      let superblock = (await readSuperblock(disk)) ?? (await FileStore.lay(disk, config));
      // A process that was killed may have left names that only the page cache knows.
      await disk.syncDirectory(".");
      checkOwner(superblock, config.osdId, config.clusterId);
      if (config.clusterId && superblock.cluster === "") {
        superblock = { ...superblock, cluster: config.clusterId };
        await writeSuperblock(disk, superblock);
      }
      const { walSegments, walSegmentBytes, dataFileBytes } = superblock;
      const options = storeOptions({
        ...config.options,
        walSegments,
        walSegmentBytes,
        dataFileBytes,
      });
      index = await disk.openStore("index");
      const files = new DataFiles(disk, dataFileBytes);
      await files.open();
      const { clock, logger } = config;
      const dataBytes = (): Promise<number> => files.allocated();
      const space = await SpaceGauge.open({ disk, clock, logger, options, dataBytes });
      const store = new FileStore(disk, superblock, options, config, index, files, space, lock);
      await store.recover();
      return store;
    } catch (error) {
      await index?.close();
      await lock.release();
      throw error;
    }
  }

  private async recover(): Promise<void> {
    const { superblock, config } = this;
    const loaded = loadIndex(this.index, this.allocator);
    for (const pg of loaded.pgs) {
      this.pgs.set(pg.id, pg);
      this.placer.used += pg.blocks;
      this.objectTotal += pg.objectCount;
    }
    const geometry = {
      segments: superblock.walSegments,
      segmentBytes: superblock.walSegmentBytes,
      salt: Buffer.from(superblock.walSalt, "hex"),
    };
    const files = await Wal.openFiles(this.disk, geometry);
    // What was found is taken as durable from here on, while a process that was killed may have
    // written it without a sync: a power cut must not take back what was shown.
    await this.files.syncAll();
    for (const file of files) await file.sync();
    const found = await recoverWal(files, geometry, loaded.point, {
      verifyDirect: (placement) => verifyPlacement(this.files, placement),
      apply: (group) => this.replay(group),
      logger: config.logger,
    });
    this.wal = new Wal(
      files,
      geometry,
      { tail: loaded.point, end: found.end },
      this.overlay,
      config.clock,
      {
        syncData: (touched) => this.files.sync(touched),
        mayWrite: () => this.overlay.bytes - this.wal.waitingBytes <= this.options.overlayBytesMax,
        onDurable: () => this.onDurable(),
        onFull: () => this.checkpointer.request(),
        onError: (error) => this.fail(error),
      },
    );
    this.checkpointer.start(this.wal);
    await this.space.refresh();
    await this.reclaimer.trimTail();
    if (found.groups > 0 || found.cut) {
      config.logger.info(
        { groups: found.groups, tornTail: found.cut },
        "replayed the write-ahead log",
      );
      // From here on the last group need not be verified again: it is declared before anything
      // that it refers to is overwritten, so a crash during this recovery is harmless.
      await this.wal.declare(0);
      // Without a free byte on the disk it goes on in the background: reads are served meanwhile.
      await Promise.race([this.checkpointer.checkpoint(), this.space.starved()]);
      if (this.dead) throw this.dead;
    }
    await this.space.refill();
  }

  // ── Life and death ─────────────────────────────────────────────────────────────────────────

  private fail(error: unknown): void {
    if (this.dead) return;
    this.dead =
      error instanceof Error
        ? error
        : new DssError("Disk", "the chunk store failed", { cause: error });
    this.config.logger.error({ error: String(this.dead) }, "the chunk store has failed");
    this.checkpointer.stop();
    void this.space.stop();
    for (const done of this.wal.kill()) done(this.dead);
  }

  private assertUsable(): void {
    assert(!this.dead, `the chunk store has failed: ${this.dead?.message}`);
    assert(!this.closing, "the chunk store is closed");
  }

  async close(): Promise<void> {
    if (this.closing) return;
    this.closing = true;
    await this.space.stop();
    await this.wal.drain();
    this.checkpointer.stop();
    await this.checkpointer.idle();
    if (!this.dead) await this.checkpointer.checkpoint();
    await this.wal.close();
    await this.files.close();
    await this.index.close();
    await this.lock.release();
  }

  private onDurable(): void {
    this.releaseBlocks();
    this.checkpointer.consider();
  }

  private releaseBlocks(): void {
    this.quarantine.release(this.wal.declared);
  }

  // ── Objects in memory ──────────────────────────────────────────────────────────────────────

  private pg(id: PgId): PgState {
    const pg = this.pgs.get(id);
    assert(pg, `the store does not hold PG ${formatPg(id)}`);
    return pg;
  }

  /** The state in memory or from the index; a state that does not exist is never cached. */
  private load(pg: PgState, name: string): ObjectState | undefined {
    const known = pg.objects.get(name);
    if (known) {
      if (!known.dirty && !known.frozen) this.cache.get(known);
      return known;
    }
    if (pg.fresh) return undefined;
    const key = objectKey(pg.id, name);
    const value = this.index.get(key);
    if (!value) return undefined;
    const object = new ObjectState(pg, name);
    object.decode(openValue(key, value, () => `object ${name} of PG ${formatPg(pg.id)}`));
    this.remember(object);
    return object;
  }

  private remember(object: ObjectState): void {
    object.pg.objects.set(object.name, object);
    this.cache.set(object, true);
    // One that is larger than the whole cache is not kept at all.
    if (!this.cache.has(object)) object.pg.objects.delete(object.name);
  }

  private find(id: PgId, name: string): ObjectState | undefined {
    const pg = this.pgs.get(id);
    if (!pg) return undefined;
    const object = this.load(pg, name);
    return object?.exists ? object : undefined;
  }

  /**
   * The state to be changed now: pinned, and already serialised if a checkpoint wants it as it was.
   */
  private change(pg: PgState, name: string): ObjectState {
    let object = this.load(pg, name);
    if (!object) {
      assert(Buffer.byteLength(name) <= NAME_BYTES_MAX, "an object's name is too long");
      object = new ObjectState(pg, name);
    }
    if (object.freezePending) this.checkpointer.serialise(object);
    if (!object.dirty) {
      object.dirty = true;
      pg.objects.set(name, object);
      if (!object.frozen) this.cache.delete(object);
      this.checkpointer.addObject(object);
    }
    return object;
  }

  private create(object: ObjectState): void {
    if (object.exists) return;
    object.exists = true;
    object.size = 0;
    object.pg.objectCount++;
    this.objectTotal++;
  }

  /** A checkpoint has carried the state into the index. */
  private clean(object: ObjectState): void {
    if (object.dirty || object.pg.objects.get(object.name) !== object) return;
    if (object.exists) this.remember(object);
    else object.pg.objects.delete(object.name);
  }

  private touchPg(pg: PgState): void {
    if (pg.dirty) return;
    pg.dirty = true;
    this.checkpointer.addPg(pg);
  }

  // ── Writing ────────────────────────────────────────────────────────────────────────────────

  private append(group: WalGroup, record: WalRecord, done: Durable): void {
    putRecord(group.head, record);
    this.wal.added(done);
    this.checkpointer.consider();
  }

  apply(t: Transaction, done: Durable): void {
    this.assertUsable();
    checkTransaction(t);
    const pg = this.pg(t.pg);
    const { version, kind, object, client, sequence, size } = t;
    const entry: LogEntry = { version, kind, object, client, sequence, size };
    const group = this.wal.gather();
    this.applies++;
    this.logEntry(pg, entry, t.floor);
    let placement: Placement = { first: 0, sums: NO_SUMS, runs: [], direct: false };
    if (kind !== OpKind.remove || this.load(pg, object)?.exists) {
      const state = this.change(pg, object);
      if (kind !== OpKind.remove) this.create(state);
      if (t.sums.length > 0) {
        const direct = t.sums.length * BLOCK_SIZE >= this.options.directWriteBytes;
        placement = this.placer.place(state, t.offset, t.data, t.sums, group, direct);
      }
      this.settle(state, t, t.offset / BLOCK_SIZE + t.sums.length, group.order);
    }
    const { floor, offset, length, mtimeNs, truncateSeq } = t;
    const type = RecordType.apply;
    this.append(
      group,
      { type, pg: t.pg, entry, floor, offset, length, mtimeNs, truncateSeq, placement },
      done,
    );
  }

  private logEntry(pg: PgState, entry: LogEntry, floor: number): void {
    pg.append(entry);
    pg.retries.record(entry, floor);
    this.touchPg(pg);
    this.checkpointer.entries++;
  }

  /** What an operation does besides its data, which ends at block `dataEnd`. */
  private settle(
    object: ObjectState,
    t: Pick<
      Transaction,
      "kind" | "offset" | "length" | "size" | "version" | "mtimeNs" | "truncateSeq"
    >,
    dataEnd: number,
    order: number,
  ): void {
    const first = t.offset / BLOCK_SIZE;
    if (t.kind === OpKind.zero)
      this.placer.drop(object, first, first + t.length / BLOCK_SIZE, order);
    else if (t.kind === OpKind.truncate) this.placer.drop(object, dataEnd, Infinity, order);
    else if (t.kind === OpKind.remove) return this.erase(object, order);
    object.size = t.size;
    object.version = t.version;
    object.mtimeNs = t.mtimeNs;
    object.truncateSeq = t.truncateSeq;
    assert(
      object.extent <= Math.ceil(t.size / BLOCK_SIZE),
      `object ${object.name} would have ${object.extent} blocks in ${t.size} bytes`,
    );
  }

  private erase(object: ObjectState, order: number): void {
    if (!object.exists) return;
    this.placer.drop(object, 0, Infinity, order);
    object.exists = false;
    object.size = 0;
    object.pg.objectCount--;
    this.objectTotal--;
  }

  install(id: PgId, name: string, image: ObjectImage, done: Durable): void {
    this.assertUsable();
    const pg = this.pg(id);
    const group = this.wal.gather();
    const object = this.change(pg, name);
    this.placer.drop(object, 0, Infinity, group.order);
    this.create(object);
    const blocks = image.extents.reduce((sum, extent) => sum + extent.sums.length, 0);
    const direct = blocks * BLOCK_SIZE >= this.options.directWriteBytes;
    const placements = image.extents.map(({ offset, data, sums }) => {
      assert(
        offset % BLOCK_SIZE === 0 && data.length === sums.length * BLOCK_SIZE,
        "bad image extent",
      );
      return this.placer.place(object, offset, [data], sums, group, direct);
    });
    const { size, version, mtimeNs, truncateSeq } = image.info;
    const fields = { size, version, mtimeNs, truncateSeq };
    Object.assign(object, fields);
    const spoiled = image.spoiled ?? [];
    object.setSpoiled(spoiled);
    this.touchPg(pg);
    const type = RecordType.install;
    this.append(group, { type, pg: id, object: name, fields, placements, spoiled }, done);
  }

  repair(id: PgId, name: string, runs: readonly BlockRun[], done: Durable): boolean {
    this.assertUsable();
    const found = this.find(id, name);
    const fitting = runsThatFit(runs, (at) =>
      found && at < found.extent && found.blocks[at] !== 0 ? found.sums[at] : undefined,
    );
    if (!found || fitting.length === 0) {
      this.config.clock.defer(() => done(this.dead));
      return false;
    }
    const group = this.wal.gather();
    const object = this.change(found.pg, name);
    const placements = fitting.map(({ offset, data, sums }) => {
      const direct = data.length >= this.options.directWriteBytes;
      return this.placer.place(object, offset, [data], sums, group, direct);
    });
    this.touchPg(found.pg);
    this.append(group, { type: RecordType.repair, pg: id, object: name, placements }, done);
    return true;
  }

  discard(id: PgId, name: string, done: Durable): void {
    this.assertUsable();
    const pg = this.pg(id);
    const group = this.wal.gather();
    if (this.load(pg, name)?.exists) this.erase(this.change(pg, name), group.order);
    this.touchPg(pg);
    this.append(group, { type: RecordType.discard, pg: id, object: name }, done);
  }

  createPg(id: PgId, meta: Buffer, done: Durable): void {
    this.assertUsable();
    const group = this.wal.gather();
    const created = !this.pgs.has(id);
    if (created) this.addPg(id, meta);
    // A no-op still waits for the record that created the PG, which is before it in the log.
    this.append(
      group,
      { type: RecordType.createPg, pg: id, meta: created ? Buffer.from(meta) : Buffer.alloc(0) },
      done,
    );
  }

  private addPg(id: PgId, meta: Buffer): void {
    const pg = new PgState(id, this.index);
    pg.meta = Buffer.from(meta);
    this.pgs.set(id, pg);
    this.touchPg(pg);
  }

  removePg(id: PgId, done: Durable): void {
    this.assertUsable();
    const group = this.wal.gather();
    this.dropPg(id, group.order);
    this.append(group, { type: RecordType.removePg, pg: id }, done);
  }

  private dropPg(id: PgId, order: number): void {
    const pg = this.pgs.get(id);
    if (!pg) return;
    for (const name of this.names(pg)) {
      const object = this.load(pg, name);
      if (object?.exists) this.erase(this.change(pg, name), order);
    }
    for (const object of pg.objects.values()) this.cache.delete(object);
    pg.objects.clear();
    pg.removed = true;
    this.pgs.delete(id);
    this.checkpointer.addPurge(pg);
  }

  setPgMeta(id: PgId, meta: Buffer, done: Durable): void {
    this.assertUsable();
    assert(meta.length <= META_BYTES_MAX, `PG meta of ${meta.length} bytes`);
    const pg = this.pg(id);
    const group = this.wal.gather();
    pg.meta = Buffer.from(meta);
    this.touchPg(pg);
    this.append(group, { type: RecordType.setPgMeta, pg: id, meta: pg.meta }, done);
  }

  trimLog(id: PgId, tail: Version): void {
    const pg = this.pg(id);
    if (pg.trim(tail)) this.touchPg(pg);
  }

  rewriteLog(id: PgId, common: Version, entries: readonly LogEntry[], done: Durable): void {
    this.assertUsable();
    const pg = this.pg(id);
    const group = this.wal.gather();
    const kept = entries.map(({ version, kind, object, client, sequence, size }) => ({
      version,
      kind,
      object,
      client,
      sequence,
      size,
    }));
    this.rewrite(pg, common, kept);
    this.append(group, { type: RecordType.rewriteLog, pg: id, common, entries: kept }, done);
  }

  private rewrite(pg: PgState, common: Version, entries: readonly LogEntry[]): void {
    if (compareVersions(common, pg.last) < 0) pg.retries.forgetAfter(common);
    pg.rewrite(common, entries);
    for (const entry of entries) pg.retries.record(entry, 0);
    this.checkpointer.entries += entries.length;
    this.touchPg(pg);
  }

  mergeRetries(id: PgId, records: readonly RetryRecord[]): void {
    this.assertUsable();
    const pg = this.pg(id);
    const group = this.wal.gather();
    pg.retries.merge(records);
    this.touchPg(pg);
    // Before whatever makes it durable, because the log keeps the order.
    this.append(group, { type: RecordType.mergeRetries, pg: id, records: [...records] }, noop);
  }

  forgetClient(client: number): void {
    this.assertUsable();
    const group = this.wal.gather();
    this.forget(client);
    this.append(group, { type: RecordType.forgetClient, client }, noop);
  }

  private forget(client: number): void {
    for (const pg of this.pgs.values()) if (pg.retries.forget(client)) this.touchPg(pg);
  }

  // ── Replay ─────────────────────────────────────────────────────────────────────────────────

  private replay(group: ReplayGroup): void {
    for (const { record, data } of group.records) this.replayRecord(record, data);
    // Nothing is in flight during recovery: what a record freed, a later one may have taken.
    this.quarantine.release(Infinity);
  }

  private replayRecord(record: WalRecord, data: Buffer): void {
    if (record.type === RecordType.forgetClient) return this.forget(record.client);
    if (record.type === RecordType.createPg) {
      if (!this.pgs.has(record.pg)) this.addPg(record.pg, record.meta);
      return;
    }
    if (record.type === RecordType.removePg) return this.dropPg(record.pg, 0);
    const pg = this.pg(record.pg);
    this.touchPg(pg);
    switch (record.type) {
      case RecordType.apply: {
        const { entry, placement } = record;
        this.logEntry(pg, entry, record.floor);
        if (entry.kind === OpKind.remove && !this.load(pg, entry.object)?.exists) return;
        const object = this.change(pg, entry.object);
        if (entry.kind !== OpKind.remove) this.create(object);
        this.placer.replay(object, placement, data);
        this.settle(
          object,
          { ...record, ...entry },
          record.offset / BLOCK_SIZE + placement.sums.length,
          0,
        );
        return;
      }
      case RecordType.install: {
        const object = this.change(pg, record.object);
        this.placer.drop(object, 0, Infinity, 0);
        this.create(object);
        this.replayPlacements(object, record.placements, data);
        Object.assign(object, record.fields);
        object.setSpoiled(record.spoiled);
        return;
      }
      case RecordType.repair:
        // Without the object there is nothing to repair: damage has taken it meanwhile.
        if (!this.load(pg, record.object)?.exists) return;
        this.replayPlacements(this.change(pg, record.object), record.placements, data);
        return;
      case RecordType.discard:
        if (this.load(pg, record.object)?.exists) this.erase(this.change(pg, record.object), 0);
        return;
      case RecordType.setPgMeta:
        pg.meta = record.meta;
        return;
      case RecordType.rewriteLog:
        return this.rewrite(pg, record.common, record.entries);
      case RecordType.mergeRetries:
        return pg.retries.merge(record.records);
    }
  }

  private replayPlacements(
    object: ObjectState,
    placements: readonly Placement[],
    data: Buffer,
  ): void {
    let at = 0;
    for (const placement of placements) {
      const bytes = placement.direct ? 0 : placement.sums.length * BLOCK_SIZE;
      this.placer.replay(object, placement, data.subarray(at, at + bytes));
      at += bytes;
    }
  }

  // ── Reading ────────────────────────────────────────────────────────────────────────────────

  listPgs(): PgId[] {
    return [...this.pgs.keys()].sort((a, b) => a - b);
  }
  hasPg(id: PgId): boolean {
    return this.pgs.has(id);
  }
  pgInfo(id: PgId): PgInfo | undefined {
    const pg = this.pgs.get(id);
    if (!pg) return undefined;
    const { last, logTail, objectCount, blocks, meta } = pg;
    return { pg: id, last, logTail, objects: objectCount, bytes: blocks * BLOCK_SIZE, meta };
  }

  stat(id: PgId, name: string): ObjectInfo | undefined {
    return this.find(id, name)?.info();
  }

  async read(
    id: PgId,
    name: string,
    offset: number,
    length: number,
  ): Promise<ObjectRead | undefined> {
    if (this.dead) throw new DssError("Disk", "the chunk store has failed", { cause: this.dead });
    const { readPool } = this;
    const read: (BlockRead & ObjectRead) | undefined = await this.reader.read(
      () => this.find(id, name),
      (object) => {
        const first = Math.floor(offset / BLOCK_SIZE);
        const end = Math.min(
          Math.ceil((offset + length) / BLOCK_SIZE),
          Math.ceil(object.size / BLOCK_SIZE),
        );
        return { first, count: Math.max(0, end - first) };
      },
      { pool: readPool },
    );
    if (read !== undefined && read.lent.length > 0) {
      read.recycle = () => {
        for (const buffer of read.lent) readPool.give(buffer);
      };
    }
    return read;
  }

  async image(id: PgId, name: string, tolerated = false): Promise<ObjectImage | undefined> {
    if (this.dead) throw new DssError("Disk", "the chunk store has failed", { cause: this.dead });
    const found = await this.reader.read(
      () => this.find(id, name),
      (object) => ({ first: 0, count: object.extent }),
      { tolerant: tolerated },
    );
    if (!found) return undefined;
    const spoiled: SpoiledBlock[] = [];
    const extents = found.pieces.map(({ first, count, buffer }) => {
      const sums = found.sums.slice(first, first + count);
      const run = { offset: first * BLOCK_SIZE, data: buffer, sums };
      if (found.bad.length > 0) spoiled.push(...spoil(run, found.bad));
      return run;
    });
    return { info: found.info, extents, ...(spoiled.length > 0 && { spoiled }) };
  }

  async check(
    id: PgId,
    name: string,
    offset: number,
    length: number,
  ): Promise<CopyCheck | undefined> {
    if (this.dead) throw new DssError("Disk", "the chunk store has failed", { cause: this.dead });
    const from = Math.floor(offset / BLOCK_SIZE);
    const found = await this.reader.read(
      () => this.find(id, name),
      (object) => {
        const end = Math.min(Math.ceil((offset + length) / BLOCK_SIZE), object.extent);
        return { first: from, count: Math.max(0, end - from) };
      },
      { tolerant: true },
    );
    if (!found) return undefined;
    const bytes = found.pieces.reduce((sum, piece) => sum + piece.count * BLOCK_SIZE, 0);
    const bad = found.bad.map((at) => ({
      offset: at * BLOCK_SIZE,
      sum: found.sums[at - found.first]!,
    }));
    return { info: found.info, bytes, bad };
  }

  digest(id: PgId, name: string): number | undefined {
    const object = this.find(id, name);
    if (!object) return undefined;
    const blocks: { at: number; sum: number }[] = [];
    for (let at = 0; at < object.extent; at++) {
      if (object.blocks[at] !== 0) blocks.push({ at, sum: object.sums[at]! });
    }
    return digestOf(blocks);
  }

  extents(
    id: PgId,
    name: string,
    offset: number,
    length: number,
  ): { offset: number; length: number }[] {
    const object = this.find(id, name);
    const out: { offset: number; length: number }[] = [];
    if (!object) return out;
    const end = Math.min(Math.ceil((offset + length) / BLOCK_SIZE), object.extent);
    for (let at = Math.floor(offset / BLOCK_SIZE); at < end; at++) {
      if (object.blocks[at] === 0) continue;
      const last = out.at(-1);
      if (last && last.offset + last.length === at * BLOCK_SIZE) last.length += BLOCK_SIZE;
      else out.push({ offset: at * BLOCK_SIZE, length: BLOCK_SIZE });
    }
    return out;
  }

  /** Names after `after` in byte order: the index's, with what is pinned in memory over it. */
  private *names(pg: PgState, after = ""): Generator<string> {
    const pinned: { key: Buffer; name: string }[] = [];
    for (const object of pg.objects.values()) {
      if (!object.dirty && !object.frozen) continue;
      pinned.push({ key: objectKey(pg.id, object.name), name: object.name });
    }
    pinned.sort((a, b) => a.key.compare(b.key));
    const floor = objectKey(pg.id, after);
    const range = objectsOf(pg.id);
    const stored = pg.fresh
      ? []
      : this.index.range({ start: after === "" ? range.start : floor, end: range.end });
    let next = 0;
    const skip = (key: Buffer): boolean => after !== "" && key.compare(floor) <= 0;
    for (const { key } of stored) {
      if (skip(key)) continue;
      for (; next < pinned.length && pinned[next]!.key.compare(key) < 0; next++) {
        if (!skip(pinned[next]!.key)) yield pinned[next]!.name;
      }
      if (next < pinned.length && pinned[next]!.key.equals(key)) next++;
      yield nameOfKey(key);
    }
    for (; next < pinned.length; next++) if (!skip(pinned[next]!.key)) yield pinned[next]!.name;
  }

  list(id: PgId, after: string, limit: number): { object: string; info: ObjectInfo }[] {
    const pg = this.pgs.get(id);
    const out: { object: string; info: ObjectInfo }[] = [];
    if (!pg) return out;
    for (const name of this.names(pg, after)) {
      if (out.length >= limit) break;
      const object = this.load(pg, name);
      if (object?.exists) out.push({ object: name, info: object.info() });
    }
    return out;
  }

  log(id: PgId, after: Version, limit: number): LogEntry[] | undefined {
    return this.pgs.get(id)?.log(after, limit);
  }
  newestAtOrBelow(id: PgId, version: Version): Version | undefined {
    return this.pgs.get(id)?.newestAtOrBelow(version);
  }
  answered(id: PgId, client: number, sequence: number): ReturnType<ChunkStore["answered"]> {
    return this.pgs.get(id)?.retries.answered(client, sequence);
  }
  exportRetries(id: PgId): RetryRecord[] {
    return this.pgs.get(id)?.retries.export() ?? [];
  }

  usage(): StoreUsage {
    const taken = this.allocator.used - this.reclaimer.holding;
    return this.space.usage({ used: this.placer.used, taken }, this.objectTotal);
  }

  counters(): Record<string, number> {
    const { used, size } = this.wal.fill;
    return {
      applies: this.applies,
      ...this.placer.counters,
      ...this.wal.counters,
      ...this.reader.counters,
      ...this.checkpointer.counters,
      ...this.space.counters,
      ...this.reclaimer.counters,
      walFillBytes: used,
      walSizeBytes: size,
      overlayBytes: this.overlay.bytes,
      quarantineBytes: this.quarantine.blocks * BLOCK_SIZE,
      cacheBytes: this.cache.calculatedSize,
    };
  }
}
