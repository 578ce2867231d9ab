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
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import { DssError, describeError, isDssError } from "../../cluster/base/errors.js";
import { formatPg, type OsdId, type PgId } from "../../cluster/base/ids.js";
import type { Logger } from "../../cluster/base/log.js";
import type { Clock, Disk, OrderedStore, RandomSource } from "../../cluster/platform/ports.js";
import { runsThatFit } from "./block-runs.js";
import type { ByteReader } from "./bytes.js";
import { Checkpointer } from "./checkpoint.js";
import {
  compareVersions,
  OpKind,
  StructureDamage,
  type BlockRun,
  type ChunkStore,
  type CopyCheck,
  type Durable,
  type IndexCheck,
  type LogEntry,
  type ObjectImage,
  type ObjectInfo,
  type ObjectRead,
  type PgInfo,
  type RetryRecord,
  type SnapClone,
  type StoreUsage,
  type Transaction,
  type Version,
} from "./chunk-store.js";
import { DataFiles } from "./data-files.js";
import { layOut, startOver } from "./folder.js";
import { BlockAllocator, Quarantine } from "./extent-map.js";
import { NAME_BYTES_MAX, objectKey, openValue } from "./index-format.js";
import { IndexGuard } from "./index-guard.js";
import { ObjectReader } from "./object-reader.js";
import { ObjectState } from "./object-state.js";
import { storeOptions, type StoreOptions } from "./options.js";
import { ObjectViews } from "./object-views.js";
import { Overlay } from "./overlay.js";
import { PgState } from "./pg-state.js";
import { BlockPlacer } from "./placement.js";
import {
  damagedNames,
  IndexDestroyed,
  loadIndex,
  verifyPlacement,
  type IndexDamage,
} from "./recovery.js";
import { Replayer, type ReplayTarget, type Settled } from "./replay.js";
import { applyRecord, putRecord, RecordType, type Placement, type WalRecord } from "./records.js";
import { Reclaimer } from "./reclaim.js";
import { SharedBlocks } from "./sharing.js";
import { SpaceGauge } from "./space.js";
import { checkOwner, readSuperblock, writeSuperblock, type Superblock } from "./superblock.js";
import { checkTransaction } from "./transaction-check.js";
import { recoverWal } from "./wal-recovery.js";
import { WatchedIndex } from "./watched-index.js";
import { Wal, type WalGroup } from "./wal.js";

export interface FileStoreConfig {
  osdId: OsdId;
  /** Checked against the superblock, and written into it when that has none yet. */
  clusterId?: string;
  options?: Partial<StoreOptions>;
  logger: Logger;
  clock: Clock;
  random: RandomSource;
  /**
   * What a PG's meta becomes when part of the PG is lost: that all its objects must be compared
   * with the other copies. Without it damage of the structure keeps the store shut.
   */
  damagedMeta?: Buffer;
  /** The store has failed: the process that has it is to end. */
  onFail?: (error: Error) => void;
}

type LoadedIndex = ReturnType<typeof loadIndex> & {
  allocator: BlockAllocator;
  shared: SharedBlocks;
};
interface StoreParts {
  index: OrderedStore;
  allocator: BlockAllocator;
  shared: SharedBlocks;
  files: DataFiles;
  space: SpaceGauge;
  lock: { release(): Promise<void> };
}

const META_BYTES_MAX = 2 * 1024 * 1024;
const NO_SUMS = new Uint32Array(0);
const noop = (): void => undefined;

export class FileStore implements ChunkStore {
  readonly uuid: string;
  private readonly pgs = new Map<PgId, PgState>();
  private readonly overlay = new Overlay();
  private readonly index: OrderedStore;
  private readonly allocator: BlockAllocator;
  private readonly quarantine: Quarantine;
  private readonly files: DataFiles;
  private readonly space: SpaceGauge;
  private readonly lock: { release(): Promise<void> };
  private readonly guard: IndexGuard;
  private readonly views: ObjectViews;
  private readonly replayer: Replayer;
  private readonly damage: StructureDamage[] = [];
  private damageListener: ((damage: StructureDamage) => void) | undefined;
  private readonly placer: BlockPlacer;
  private readonly reader: ObjectReader;
  private readonly checkpointer: Checkpointer;
  private readonly reclaimer: Reclaimer;
  private readonly cache: LRUCache<ObjectState, true>;
  private wal!: Wal;
  private objectTotal = 0;
  private dead: Error | undefined;
  private closing = false;
  private applies = 0;
  private indexErrors = 0;
  /** Opening has succeeded: until then its caller hears of a failure by itself. */
  private isOpen = false;

  private constructor(
    private readonly disk: Disk,
    private superblock: Superblock,
    private readonly options: Readonly<StoreOptions>,
    private readonly config: FileStoreConfig,
    parts: StoreParts,
  ) {
    const { index, allocator, shared, files, space, lock } = parts;
    this.index = index;
    this.allocator = allocator;
    this.quarantine = new Quarantine(allocator);
    this.files = files;
    this.space = space;
    this.lock = lock;
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
    const { overlay, quarantine } = this;
    this.placer = new BlockPlacer(overlay, allocator, quarantine, files, space, shared);
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
    const load = (pg: PgState, name: string): ObjectState | undefined => this.load(pg, name);
    const host = {
      pgs: this.pgs,
      load,
      find: (id: PgId, name: string) => this.find(id, name),
      assertAlive: () => this.assertAlive(),
    };
    this.views = new ObjectViews(host, this.reader, index);
    this.replayer = new Replayer(this.replayTarget(), this.placer, this.quarantine);
    this.guard = new IndexGuard(index, this.checkpointer, {
      pin: (pg, name) => void this.change(pg, name),
      touchPg: (pg) => this.touchPg(pg),
      recount: (pg, objects, blocks) => {
        this.objectTotal += objects - pg.objectCount;
        this.placer.recount(blocks - pg.blocks);
        pg.objectCount = objects;
        pg.blocks = blocks;
      },
    });
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
      await layOut(disk, config);
    } finally {
      await lock.release();
    }
  }

  /**
   * Opens the folder's store, formatting an empty folder, and recovers what a crash left. Fails
   * with Busy (in use), Conflict (another OSD's or cluster's, or no store), IncompatibleVersion,
   * Disk, or Corrupt: damage that would lose acknowledged writes, unless `damagedMeta` says how to
   * mark the PGs that are to be compared with their other copies.
   */
  static async open(disk: Disk, config: FileStoreConfig, mayStartOver = true): Promise<FileStore> {
    const lock = await disk.lock("lock");
    let index: WatchedIndex | undefined;
    try {
      let superblock = (await readSuperblock(disk)) ?? (await layOut(disk, config));
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
      if (superblock.mayLackPgs && !config.damagedMeta) {
        throw new DssError("Corrupt", "the store has lost part of its index");
      }
      let loaded: LoadedIndex | undefined;
      for (let attempt = 1; loaded === undefined; attempt++) {
        try {
          index = new WatchedIndex(await disk.openStore("index"));
          const allocator = new BlockAllocator();
          const shared = new SharedBlocks();
          const tolerated = config.damagedMeta !== undefined;
          loaded = { allocator, shared, ...loadIndex(index, allocator, shared, tolerated) };
        } catch (error) {
          if (!isDssError(error, "Corrupt") || !config.damagedMeta || attempt > 1) throw error;
          config.logger.error({ error: describeError(error) }, "the index cannot be read");
          await index?.close();
          index = undefined;
          superblock = await startOver(disk, superblock, config);
        }
      }
      const files = new DataFiles(disk, dataFileBytes, options.largeWrites === "direct");
      await files.open();
      const { clock, logger } = config;
      const dataBytes = (): Promise<number> => files.allocated();
      const space = await SpaceGauge.open({ disk, clock, logger, options, dataBytes });
      const watched = index!;
      const { allocator, shared } = loaded;
      const parts = { index: watched, allocator, shared, files, space, lock };
      const store = new FileStore(disk, superblock, options, config, parts);
      watched.onBroken = (error) => store.fail(error);
      await store.recover(loaded);
      store.isOpen = true;
      return store;
    } catch (error) {
      await index?.close();
      const isUseless = error instanceof IndexDestroyed && mayStartOver && config.damagedMeta;
      const superblock = isUseless ? await readSuperblock(disk) : undefined;
      if (superblock) await startOver(disk, superblock, config);
      await lock.release();
      if (!superblock) throw error;
      return FileStore.open(disk, config, false);
    }
  }

  private async recover(loaded: LoadedIndex): Promise<void> {
    const { superblock, config } = this;
    const { damage } = loaded;
    const lostObjects = new Set(damage.pgs.keys());
    for (const key of damage.keys) this.checkpointer.addDelete(key);
    for (const pg of loaded.pgs) {
      for (const name of damagedNames(damage, pg.id)) pg.voided.add(name);
    }
    let isSuspect = superblock.mayLackPgs === true || damage.keys.length > 0;
    for (const pg of loaded.pgs) {
      this.pgs.set(pg.id, pg);
      this.watchLog(pg);
      this.placer.recount(pg.blocks);
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
      apply: (group) => {
        try {
          this.replayer.replay(group, isSuspect || damage.pgs.size > 0);
        } catch (error) {
          if (!isDssError(error, "Corrupt") || !config.damagedMeta) throw error;
          isSuspect = true;
          for (const id of this.pgs.keys()) {
            damage.pgs.set(id, error.message);
            lostObjects.add(id);
          }
          return false;
        }
        return true;
      },
      ...(config.damagedMeta && {
        onDamage: (what: string) => {
          isSuspect = true;
          for (const id of this.pgs.keys()) if (!damage.pgs.has(id)) damage.pgs.set(id, what);
        },
      }),
      logger: config.logger,
    });
    if (superblock.mayLackPgs) {
      for (const id of this.pgs.keys()) damage.pgs.set(id, "the store has lost an index before");
    }
    const isDamaged = isSuspect || damage.pgs.size > 0;
    if (isDamaged) await this.declareDamage(damage, lostObjects);
    this.wal = new Wal(
      files,
      geometry,
      { tail: loaded.point, end: found.end, isDeclared: found.isDeclared },
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
    if (found.groups > 0 || found.cut || isDamaged) {
      config.logger.info(
        { groups: found.groups, tornTail: found.cut },
        "replayed the write-ahead log",
      );
      // From here on the last group need not be verified again: it is declared before anything
      // that it refers to is overwritten, so a crash during this recovery is harmless.
      await this.wal.declare(0);
      // Without a free byte on the disk it goes on in the background: reads are served meanwhile.
      await Promise.race([this.checkpointer.checkpoint(), this.space.starved()]);
      if (isDssError(this.dead, "Corrupt")) {
        throw new IndexDestroyed("the index cannot be written", this.dead);
      }
      if (this.dead) throw this.dead;
    }
    await this.space.refill();
  }

  /** What opening has found of damage becomes durable with the checkpoint that follows. */
  private async declareDamage(damage: IndexDamage, lostObjects: ReadonlySet<PgId>): Promise<void> {
    // Before anything else: which PGs are gone without a trace is for the cluster to find out.
    this.superblock = { ...this.superblock, mayLackPgs: true };
    await writeSuperblock(this.disk, this.superblock);
    for (const [id, what] of damage.pgs) {
      const pg = this.pgs.get(id);
      if (!pg) continue;
      // What the log has made of objects that the index had lost is not what they should be.
      if (lostObjects.has(id)) {
        for (const object of [...pg.objects.values()]) if (object.dirty) this.erase(object, 0);
      }
      pg.meta = Buffer.from(this.config.damagedMeta!);
      this.touchPg(pg);
      this.damage.push(new StructureDamage(id, what));
    }
    this.quarantine.release(Infinity);
    const fields = { pgs: damage.pgs.size, entries: damage.keys.length };
    this.config.logger.error(fields, "the store's index or log is damaged; objects are compared");
  }

  get mayLackPgs(): boolean {
    return this.superblock.mayLackPgs === true;
  }
  async lackNoted(): Promise<void> {
    const { mayLackPgs: _, ...superblock } = this.superblock;
    await writeSuperblock(this.disk, superblock);
    this.superblock = superblock;
  }

  onDamage(listener: (damage: StructureDamage) => void): void {
    this.damageListener = listener;
    for (const damage of this.damage.splice(0)) listener(damage);
  }

  async verifyIndex(id: PgId): Promise<IndexCheck> {
    this.assertUsable();
    const found = this.guard.verify(this.pg(id));
    if (found.damaged > 0) this.indexErrors += found.damaged;
    if (found.lost) this.lose(this.pg(id), "entries do not match what was written", false);
    if (found.damaged > 0) await this.checkpointer.committed();
    return found;
  }

  /**
   * Something of the PG is gone from the index. It is looked through at once, so that whatever is
   * gone with it is gone for good, and the PG is marked in the same turn. Returns what to throw.
   */
  private lose(pg: PgState, what: string, mustVerify = true): StructureDamage {
    const damage = new StructureDamage(pg.id, what);
    const { damagedMeta, logger } = this.config;
    const isOpen = this.wal !== undefined && !this.dead && !this.closing;
    if (!damagedMeta || !isOpen) return damage;
    if (mustVerify) this.indexErrors += this.guard.verify(pg).damaged;
    logger.error({ pg: formatPg(pg.id), what }, "the index is damaged; objects are compared");
    this.setPgMeta(pg.id, damagedMeta, noop);
    this.checkpointer.request(); // A crash before it would find the same again.
    if (this.damageListener) this.damageListener(damage);
    else this.damage.push(damage);
    return damage;
  }

  private watchLog(pg: PgState): void {
    pg.onLogDamage = (what) => {
      this.indexErrors++;
      this.config.logger.error({ pg: formatPg(pg.id), what }, "part of a PG's log is given up");
      this.touchPg(pg);
    };
  }

  private replayTarget(): ReplayTarget {
    return {
      pgs: this.pgs,
      pg: (id) => this.pg(id),
      load: (pg, name) => this.load(pg, name),
      change: (pg, name) => this.change(pg, name),
      create: (object) => this.create(object),
      erase: (object, order) => this.erase(object, order),
      settle: (object, t, dataEnd, order) => this.settle(object, t, dataEnd, order),
      logEntry: (pg, entry, floor) => this.logEntry(pg, entry, floor),
      rewrite: (pg, common, entries) => this.rewrite(pg, common, entries),
      addPg: (id, meta) => this.addPg(id, meta),
      dropPg: (id, order) => this.dropPg(id, order),
      touchPg: (pg) => this.touchPg(pg),
      forget: (client) => this.forget(client),
    };
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
    for (const done of this.wal?.kill() ?? []) done(this.dead);
    if (this.isOpen) this.config.onFail?.(this.dead);
  }

  private assertAlive(): void {
    if (this.dead) throw new DssError("Disk", "the chunk store has failed", { cause: this.dead });
  }
  private assertUsable(): void {
    assert(!this.dead, () => `the chunk store has failed: ${this.dead?.message}`);
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
    assert(pg, () => `the store does not hold PG ${formatPg(id)}`);
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
    const value = pg.voided.has(name) ? undefined : this.index.get(key);
    if (!value) {
      // A miss is believed only if nothing else knows of the object.
      if (!pg.names.has(PgState.hashOf(name))) return undefined;
      throw this.lose(pg, `object ${name} is gone`);
    }
    const object = new ObjectState(pg, name);
    let from: ByteReader;
    try {
      from = openValue(key, value, () => `object ${name} of PG ${formatPg(pg.id)}`);
    } catch (error) {
      if (!isDssError(error, "Corrupt")) throw error;
      throw this.lose(pg, error.message);
    }
    object.decode(from);
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
    let object = this.loadIfSound(pg, name);
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

  /** What is damaged counts as gone: the caller puts something whole in its place. */
  private loadIfSound(pg: PgState, name: string): ObjectState | undefined {
    try {
      return this.load(pg, name);
    } catch (error) {
      if (error instanceof StructureDamage && this.config.damagedMeta) return undefined;
      throw error;
    }
  }

  private create(object: ObjectState): void {
    if (object.exists) return;
    object.exists = true;
    object.pg.names.add(PgState.hashOf(object.name));
    object.pg.clones.add(object.name);
    object.size = 0;
    object.pg.objectCount++;
    this.objectTotal++;
  }

  /** A checkpoint has carried the state into the index. */
  private clean(object: ObjectState): void {
    if (object.dirty || object.pg.objects.get(object.name) !== object) return;
    object.pg.voided.delete(object.name);
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
    const known = this.load(pg, object); // Damage is met before anything has changed.
    const { source = "" } = t;
    const copied = kind === OpKind.copy ? this.load(pg, source) : undefined;
    assert(kind !== OpKind.copy || copied?.exists, () => `${object}: a copy of no ${source}`);
    // The name that is there already is kept, and not one more of it for every entry of the log.
    const name = known?.name ?? object;
    const entry: LogEntry = { version, kind, object: name, client, sequence, size };
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
      if (copied) this.placer.copy(copied, state, group.order);
      this.settle(state, t, t.offset / BLOCK_SIZE + t.sums.length, group.order);
    }
    this.append(group, applyRecord(t, entry, placement), done);
  }

  private logEntry(pg: PgState, entry: LogEntry, floor: number): void {
    pg.append(entry);
    pg.retries.record(entry, floor);
    this.touchPg(pg);
    this.checkpointer.entries++;
  }

  /** What an operation does besides its data, which ends at block `dataEnd`. */
  private settle(object: ObjectState, t: Settled, dataEnd: number, order: number): void {
    const first = t.offset / BLOCK_SIZE;
    if (t.kind === OpKind.zero)
      this.placer.drop(object, first, first + t.length / BLOCK_SIZE, order);
    else if (t.kind === OpKind.truncate) this.placer.drop(object, dataEnd, Infinity, order);
    else if (t.kind === OpKind.remove) return this.erase(object, order);
    object.size = t.size;
    object.version = t.version;
    object.mtimeNs = t.mtimeNs;
    object.truncateSeq = t.truncateSeq;
    object.snapSeq = t.snapSeq;
    assert(
      object.extent <= Math.ceil(t.size / BLOCK_SIZE),
      () => `object ${object.name} would have ${object.extent} blocks in ${t.size} bytes`,
    );
  }

  private erase(object: ObjectState, order: number): void {
    if (!object.exists) return;
    this.placer.drop(object, 0, Infinity, order);
    object.exists = false;
    object.size = 0;
    object.pg.names.delete(PgState.hashOf(object.name));
    object.pg.clones.delete(object.name);
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
    const { size, version, mtimeNs, truncateSeq, snapSeq } = image.info;
    const fields = { size, version, mtimeNs, truncateSeq, snapSeq };
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
    if (this.loadIfSound(pg, name)?.exists) this.erase(this.change(pg, name), group.order);
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
    this.watchLog(pg);
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
    for (const name of this.views.names(pg)) {
      const object = this.loadIfSound(pg, name);
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

  read(id: PgId, name: string, offset: number, length: number): Promise<ObjectRead | undefined> {
    return this.views.read(id, name, offset, length);
  }
  image(id: PgId, name: string, tolerated = false): Promise<ObjectImage | undefined> {
    return this.views.image(id, name, tolerated);
  }
  check(id: PgId, name: string, offset: number, length: number): Promise<CopyCheck | undefined> {
    return this.views.check(id, name, offset, length);
  }
  digest(id: PgId, name: string): number | undefined {
    return this.views.digest(id, name);
  }
  extents(
    id: PgId,
    name: string,
    offset: number,
    length: number,
  ): { offset: number; length: number }[] {
    return this.views.extents(id, name, offset, length);
  }
  clones(id: PgId, name: string): SnapClone[] {
    return this.views.clones(id, name);
  }
  list(id: PgId, after: string, limit: number): { object: string; info: ObjectInfo }[] {
    return this.views.list(id, after, limit);
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
      damagedIndexEntries: this.indexErrors,
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
