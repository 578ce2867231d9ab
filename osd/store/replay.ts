/**
 * Repeats what the records of the write-ahead log say, when a store is opened. Every record names
 * the blocks that it has written, so that replay places everything where it was.
 */
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import { DssError } from "../../cluster/base/errors.js";
import type { PgId } from "../../cluster/base/ids.js";
import { OpKind, type LogEntry, type Transaction, type Version } from "./chunk-store.js";
import type { Quarantine } from "./extent-map.js";
import type { ObjectState } from "./object-state.js";
import type { PgState } from "./pg-state.js";
import type { BlockPlacer } from "./placement.js";
import { RecordType, type Placement, type WalRecord } from "./records.js";
import type { ReplayGroup } from "./wal-recovery.js";

/** What of a change remains to be done once its data have their place. */
export type Settled = Pick<
  Transaction,
  "kind" | "offset" | "length" | "size" | "version" | "mtimeNs" | "truncateSeq" | "snapSeq"
>;
/** What the store does with a change besides logging it; orders are those of WAL groups. */
export interface ReplayTarget {
  readonly pgs: ReadonlyMap<PgId, PgState>;
  pg(id: PgId): PgState;
  load(pg: PgState, name: string): ObjectState | undefined;
  change(pg: PgState, name: string): ObjectState;
  create(object: ObjectState): void;
  erase(object: ObjectState, order: number): void;
  settle(
    object: ObjectState,
    t: Settled,
    dataEnd: number,
    order: number,
  ): void;
  logEntry(pg: PgState, entry: LogEntry, floor: number): void;
  rewrite(pg: PgState, common: Version, entries: readonly LogEntry[]): void;
  addPg(id: PgId, meta: Buffer): void;
  dropPg(id: PgId, order: number): void;
  touchPg(pg: PgState): void;
  forget(client: number): void;
}

export class Replayer {
  private isSuspect = false;

  constructor(
    private readonly store: ReplayTarget,
    private readonly placer: BlockPlacer,
    private readonly quarantine: Quarantine,
  ) {}

  /** `isSuspect`: the index has lost something, perhaps PGs that the log is about. */
  replay(group: ReplayGroup, isSuspect: boolean): void {
    this.isSuspect = isSuspect;
    for (const { record, data } of group.records) {
      const isKnown =
        record.type === RecordType.forgetClient ||
        record.type === RecordType.createPg ||
        this.store.pgs.has(record.pg);
      if (isKnown || !isSuspect) this.replayRecord(record, data);
    }
    // Nothing is in flight during recovery: what a record freed, a later one may have taken.
    this.quarantine.release(Infinity);
  }

  private replayRecord(record: WalRecord, data: Buffer): void {
    if (record.type === RecordType.forgetClient) return this.store.forget(record.client);
    if (record.type === RecordType.createPg) {
      if (!this.store.pgs.has(record.pg)) this.store.addPg(record.pg, record.meta);
      return;
    }
    if (record.type === RecordType.removePg) return this.store.dropPg(record.pg, 0);
    const pg = this.store.pg(record.pg);
    this.store.touchPg(pg);
    switch (record.type) {
      case RecordType.apply: {
        const { entry, placement } = record;
        this.store.logEntry(pg, entry, record.floor);
        if (entry.kind === OpKind.remove && !this.store.load(pg, entry.object)?.exists) return;
        const object = this.store.change(pg, entry.object);
        if (entry.kind !== OpKind.remove) this.store.create(object);
        this.placer.replay(object, placement, data);
        if (entry.kind === OpKind.copy) this.copy(pg, record.source, object);
        this.store.settle(
          object,
          { ...record, ...entry },
          record.offset / BLOCK_SIZE + placement.sums.length,
          0,
        );
        return;
      }
      case RecordType.install: {
        const object = this.store.change(pg, record.object);
        this.placer.drop(object, 0, Infinity, 0);
        this.store.create(object);
        this.replayPlacements(object, record.placements, data);
        Object.assign(object, record.fields);
        object.setSpoiled(record.spoiled);
        return;
      }
      case RecordType.repair:
        // Without the object there is nothing to repair: damage has taken it meanwhile.
        if (!this.store.load(pg, record.object)?.exists) return;
        this.replayPlacements(this.store.change(pg, record.object), record.placements, data);
        return;
      case RecordType.discard:
        if (this.store.load(pg, record.object)?.exists) {
          this.store.erase(this.store.change(pg, record.object), 0);
        }
        return;
      case RecordType.setPgMeta:
        pg.meta = record.meta;
        return;
      case RecordType.rewriteLog:
        return this.store.rewrite(pg, record.common, record.entries);
      case RecordType.mergeRetries:
        return pg.retries.merge(record.records);
    }
  }

  private copy(pg: PgState, name: string, object: ObjectState): void {
    const source = this.store.load(pg, name);
    if (source?.exists) return this.placer.copy(source, object, 0);
    // In a PG that has lost objects all of them are compared with the other copies.
    if (this.isSuspect) return this.placer.drop(object, 0, Infinity, 0);
    throw new DssError("Corrupt", `the write-ahead log copies object ${name}, which is not there`);
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
}
