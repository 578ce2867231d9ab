/**
 * The chunk store's twin in memory, for tests of what stands above it: the same answers as
 * `FileStore` (both pass test/unit/osd/store/suite.ts), nothing survives. Callbacks run in call
 * order after the events at hand, as group commit would run them.
 */
import { assert } from "../../cluster/base/assert.js";
import { BLOCK_SIZE, crc32, ZERO_BLOCK_CRC } from "../../cluster/base/checksum.js";
import { DssError } from "../../cluster/base/errors.js";
import { cloneIdOf, headOf } from "../../cluster/base/object-name.js";
import { formatPg, type PgId } from "../../cluster/base/ids.js";
import type { Clock } from "../../cluster/platform/ports.js";
import {
  compareVersions,
  OpKind,
  VERSION_ZERO,
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
  type SpoiledBlock,
  type StoreUsage,
  type Transaction,
  type Version,
} from "./chunk-store.js";
import { digestOf, runsThatFit, spoil } from "./block-runs.js";
import { checkTransaction } from "./transaction-check.js";
import { firstAbove } from "./pg-state.js";
import { RetryMemory } from "./retry-memory.js";

interface Block {
  bytes: Buffer;
  sum: number;
}
interface MemoryObject {
  size: number;
  version: Version;
  mtimeNs: bigint;
  truncateSeq: number;
  snapSeq: number;
  blocks: Map<number, Block>;
}
interface MemoryPg {
  last: Version;
  logTail: Version;
  meta: Buffer;
  log: LogEntry[];
  objects: Map<string, MemoryObject>;
  retries: RetryMemory;
}

const ZERO = Buffer.alloc(BLOCK_SIZE);
const isRight = ({ bytes, sum }: Block): boolean => crc32(bytes) === sum;
const byName = (a: string, b: string): number => Buffer.compare(Buffer.from(a), Buffer.from(b));

export class MemoryStore implements ChunkStore {
  private readonly pgs = new Map<PgId, MemoryPg>();
  private waiting: Durable[] = [];
  private closed = false;

  constructor(
    private readonly clock: Clock,
    readonly uuid = "00000000-0000-4000-8000-000000000000",
    private readonly capacityBytes = 2 ** 40,
  ) {}

  private pg(id: PgId): MemoryPg {
    const pg = this.pgs.get(id);
    assert(pg, `the store does not hold PG ${formatPg(id)}`);
    return pg;
  }

  private durable(done: Durable): void {
    assert(!this.closed, "the chunk store is closed");
    this.waiting.push(done);
    if (this.waiting.length > 1) return;
    this.clock.defer(() => this.settle());
  }
  private settle(): void {
    const done = this.waiting;
    this.waiting = [];
    for (const callback of done) callback();
  }

  listPgs(): PgId[] {
    return [...this.pgs.keys()].sort((a, b) => a - b);
  }
  hasPg(id: PgId): boolean {
    return this.pgs.has(id);
  }
  createPg(id: PgId, meta: Buffer, done: Durable): void {
    if (!this.pgs.has(id)) {
      this.pgs.set(id, {
        last: VERSION_ZERO,
        logTail: VERSION_ZERO,
        meta: Buffer.from(meta),
        log: [],
        objects: new Map(),
        retries: new RetryMemory(),
      });
    }
    this.durable(done);
  }
  removePg(id: PgId, done: Durable): void {
    this.pgs.delete(id);
    this.durable(done);
  }
  pgInfo(id: PgId): PgInfo | undefined {
    const pg = this.pgs.get(id);
    if (!pg) return undefined;
    let blocks = 0;
    for (const object of pg.objects.values()) blocks += object.blocks.size;
    const { last, logTail, meta } = pg;
    return { pg: id, last, logTail, objects: pg.objects.size, bytes: blocks * BLOCK_SIZE, meta };
  }
  setPgMeta(id: PgId, meta: Buffer, done: Durable): void {
    this.pg(id).meta = Buffer.from(meta);
    this.durable(done);
  }

  apply(t: Transaction, done: Durable): void {
    checkTransaction(t);
    const pg = this.pg(t.pg);
    const { version, kind, object, client, sequence, size } = t;
    const entry: LogEntry = { version, kind, object, client, sequence, size };
    this.append(pg, entry);
    pg.retries.record(entry, t.floor);
    if (kind === OpKind.remove) pg.objects.delete(object);
    else this.change(pg, t);
    this.durable(done);
  }

  private append(pg: MemoryPg, entry: LogEntry): void {
    assert(
      compareVersions(entry.version, pg.last) > 0,
      `version ${entry.version.interval}.${entry.version.seq} after ${pg.last.interval}.${pg.last.seq}`,
    );
    pg.log.push(entry);
    pg.last = entry.version;
  }

  private change(pg: MemoryPg, t: Transaction): void {
    let object = pg.objects.get(t.object);
    if (!object) {
      const fresh = { size: 0, version: VERSION_ZERO, mtimeNs: 0n, truncateSeq: 0, snapSeq: 0 };
      object = { ...fresh, blocks: new Map() };
      pg.objects.set(t.object, object);
    }
    if (t.kind === OpKind.copy) {
      const source = pg.objects.get(t.source ?? "");
      assert(source, `${t.object} would be a copy of no ${t.source}`);
      object.blocks = new Map([...source.blocks].map(([at, block]) => [at, { ...block }]));
    }
    const first = t.offset / BLOCK_SIZE;
    const bytes = Buffer.concat(t.data);
    t.sums.forEach((sum, i) => {
      const block = Buffer.from(bytes.subarray(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE));
      object.blocks.set(first + i, { bytes: block, sum });
    });
    const dropFrom = t.kind === OpKind.truncate ? first + t.sums.length : first;
    const dropEnd = t.kind === OpKind.truncate ? Infinity : first + t.length / BLOCK_SIZE;
    if (t.kind === OpKind.truncate || t.kind === OpKind.zero) {
      for (const at of object.blocks.keys()) {
        if (at >= dropFrom && at < dropEnd) object.blocks.delete(at);
      }
    }
    object.size = t.size;
    object.version = t.version;
    object.mtimeNs = t.mtimeNs;
    object.truncateSeq = t.truncateSeq;
    object.snapSeq = t.snapSeq;
    for (const at of object.blocks.keys()) {
      assert(
        at * BLOCK_SIZE < t.size,
        `object ${t.object} would have block ${at} in ${t.size} bytes`,
      );
    }
  }

  private info(object: MemoryObject): ObjectInfo {
    const { size, version, mtimeNs, truncateSeq, snapSeq, blocks } = object;
    const allocated = blocks.size * BLOCK_SIZE;
    return { size, version, mtimeNs, truncateSeq, snapSeq, allocated };
  }
  stat(id: PgId, name: string): ObjectInfo | undefined {
    const object = this.pgs.get(id)?.objects.get(name);
    return object && this.info(object);
  }

  private verified(id: PgId, name: string, at: number, block: Block): Block {
    if (isRight(block)) return block;
    throw new DssError(
      "Corrupt",
      `PG ${formatPg(id)} object ${name} block ${at} fails its checksum`,
    );
  }

  async read(
    id: PgId,
    name: string,
    offset: number,
    length: number,
  ): Promise<ObjectRead | undefined> {
    const object = this.pgs.get(id)?.objects.get(name);
    if (!object) return undefined;
    const first = Math.floor(offset / BLOCK_SIZE);
    const wanted = Math.ceil((offset + length) / BLOCK_SIZE);
    const end = Math.min(wanted, Math.ceil(object.size / BLOCK_SIZE));
    const count = Math.max(0, end - first);
    const sums = new Uint32Array(count);
    const data: Buffer[] = [];
    for (let i = 0; i < count; i++) {
      const block = object.blocks.get(first + i);
      data.push(block ? this.verified(id, name, first + i, block).bytes : ZERO);
      sums[i] = block ? block.sum : ZERO_BLOCK_CRC;
    }
    return { data, sums, info: this.info(object) };
  }

  extents(
    id: PgId,
    name: string,
    offset: number,
    length: number,
  ): { offset: number; length: number }[] {
    const object = this.pgs.get(id)?.objects.get(name);
    const first = Math.floor(offset / BLOCK_SIZE);
    const end = Math.ceil((offset + length) / BLOCK_SIZE);
    const out: { offset: number; length: number }[] = [];
    for (const at of [...(object?.blocks.keys() ?? [])].sort((a, b) => a - b)) {
      if (at < first || at >= end) continue;
      const last = out.at(-1);
      if (last && last.offset + last.length === at * BLOCK_SIZE) last.length += BLOCK_SIZE;
      else out.push({ offset: at * BLOCK_SIZE, length: BLOCK_SIZE });
    }
    return out;
  }

  clones(id: PgId, head: string): SnapClone[] {
    const out: SnapClone[] = [];
    for (const [name, { snapSeq }] of this.pgs.get(id)?.objects ?? []) {
      const clone = headOf(name) === head ? cloneIdOf(name) : undefined;
      if (clone !== undefined) out.push({ id: clone, from: snapSeq });
    }
    return out.sort((a, b) => a.id - b.id);
  }
  list(id: PgId, after: string, limit: number): { object: string; info: ObjectInfo }[] {
    const pg = this.pgs.get(id);
    if (!pg) return [];
    return [...pg.objects.keys()]
      .filter((name) => after === "" || byName(name, after) > 0)
      .sort(byName)
      .slice(0, Math.max(0, limit))
      .map((name) => ({ object: name, info: this.info(pg.objects.get(name)!) }));
  }

  log(id: PgId, after: Version, limit: number): LogEntry[] | undefined {
    const pg = this.pgs.get(id);
    if (!pg || compareVersions(after, pg.logTail) < 0) return undefined;
    const start = firstAbove(pg.log, after);
    return pg.log.slice(start, start + Math.max(0, limit));
  }
  newestAtOrBelow(id: PgId, version: Version): Version | undefined {
    const pg = this.pgs.get(id);
    if (!pg) return undefined;
    if (compareVersions(version, pg.last) >= 0) return pg.last;
    if (compareVersions(version, pg.logTail) < 0) return undefined;
    return pg.log[firstAbove(pg.log, version) - 1]?.version ?? pg.logTail;
  }
  trimLog(id: PgId, tail: Version): void {
    const exact = this.newestAtOrBelow(id, tail);
    const pg = this.pg(id);
    if (!exact || compareVersions(exact, pg.logTail) <= 0) return;
    pg.logTail = exact;
    pg.log.splice(0, firstAbove(pg.log, exact));
  }
  rewriteLog(id: PgId, common: Version, entries: readonly LogEntry[], done: Durable): void {
    const pg = this.pg(id);
    if (compareVersions(common, pg.last) < 0) pg.retries.forgetAfter(common);
    if (compareVersions(common, pg.logTail) < 0 || compareVersions(common, pg.last) > 0) {
      pg.log = [];
      pg.logTail = common;
    } else {
      pg.log.length = firstAbove(pg.log, common);
    }
    pg.last = common;
    for (const { version, kind, object, client, sequence, size } of entries) {
      const entry = { version, kind, object, client, sequence, size };
      this.append(pg, entry);
      pg.retries.record(entry, 0);
    }
    this.durable(done);
  }

  async image(id: PgId, name: string, tolerated = false): Promise<ObjectImage | undefined> {
    const object = this.pgs.get(id)?.objects.get(name);
    if (!object) return undefined;
    const spoiled: SpoiledBlock[] = [];
    const extents = this.extents(id, name, 0, 2 ** 40).map(({ offset, length }) => {
      const first = offset / BLOCK_SIZE;
      const blocks = Array.from({ length: length / BLOCK_SIZE }, (_, i) => {
        const block = object.blocks.get(first + i)!;
        return tolerated ? block : this.verified(id, name, first + i, block);
      });
      const run = {
        offset,
        data: Buffer.concat(blocks.map((block) => block.bytes)),
        sums: Uint32Array.from(blocks, (block) => block.sum),
      };
      const bad = blocks.flatMap((block, i) => (isRight(block) ? [] : [first + i]));
      spoiled.push(...spoil(run, bad));
      return run;
    });
    return { info: this.info(object), extents, ...(spoiled.length > 0 && { spoiled }) };
  }
  async check(
    id: PgId,
    name: string,
    offset: number,
    length: number,
  ): Promise<CopyCheck | undefined> {
    const object = this.pgs.get(id)?.objects.get(name);
    if (!object) return undefined;
    const bad: CopyCheck["bad"] = [];
    let bytes = 0;
    for (const [at, block] of [...object.blocks].sort(([a], [b]) => a - b)) {
      const start = at * BLOCK_SIZE;
      if (start + BLOCK_SIZE <= offset || start >= offset + length) continue;
      bytes += BLOCK_SIZE;
      if (!isRight(block)) bad.push({ offset: start, sum: block.sum });
    }
    return { info: this.info(object), bytes, bad };
  }
  repair(id: PgId, name: string, runs: readonly BlockRun[], done: Durable): boolean {
    const object = this.pgs.get(id)?.objects.get(name);
    const fitting = runsThatFit(runs, (at) => object?.blocks.get(at)?.sum);
    for (const { offset, data, sums } of fitting) {
      sums.forEach((sum, i) => {
        const bytes = Buffer.from(data.subarray(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE));
        object!.blocks.set(offset / BLOCK_SIZE + i, { bytes, sum });
      });
    }
    this.durable(done);
    return fitting.length > 0;
  }
  digest(id: PgId, name: string): number | undefined {
    const object = this.pgs.get(id)?.objects.get(name);
    if (!object) return undefined;
    const blocks = [...object.blocks].sort(([a], [b]) => a - b);
    return digestOf(blocks.map(([at, { sum }]) => ({ at, sum })));
  }
  /** For tests: a bit of the block changes on the "disk". */
  damage(id: PgId, name: string, offset: number): void {
    const block = this.pg(id).objects.get(name)?.blocks.get(offset / BLOCK_SIZE);
    assert(block, `object ${name} has no block at ${offset}`);
    block.bytes[7]! ^= 4;
  }
  install(id: PgId, name: string, image: ObjectImage, done: Durable): void {
    const { size, version, mtimeNs, truncateSeq, snapSeq } = image.info;
    const blocks = new Map<number, Block>();
    for (const { offset, data, sums } of image.extents) {
      assert(
        offset % BLOCK_SIZE === 0 && data.length === sums.length * BLOCK_SIZE,
        "bad image extent",
      );
      sums.forEach((sum, i) => {
        const bytes = Buffer.from(data.subarray(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE));
        blocks.set(offset / BLOCK_SIZE + i, { bytes, sum });
      });
    }
    for (const { offset, sum } of image.spoiled ?? []) blocks.get(offset / BLOCK_SIZE)!.sum = sum;
    this.pg(id).objects.set(name, { size, version, mtimeNs, truncateSeq, snapSeq, blocks });
    this.durable(done);
  }
  discard(id: PgId, name: string, done: Durable): void {
    this.pg(id).objects.delete(name);
    this.durable(done);
  }

  answered(id: PgId, client: number, sequence: number): ReturnType<ChunkStore["answered"]> {
    return this.pgs.get(id)?.retries.answered(client, sequence);
  }
  exportRetries(id: PgId): RetryRecord[] {
    return this.pgs.get(id)?.retries.export() ?? [];
  }
  mergeRetries(id: PgId, records: readonly RetryRecord[]): void {
    this.pg(id).retries.merge(records);
  }
  forgetClient(client: number): void {
    for (const pg of this.pgs.values()) pg.retries.forget(client);
  }

  readonly mayLackPgs = false;
  async lackNoted(): Promise<void> {}
  onDamage(): void {}
  async verifyIndex(id: PgId): Promise<IndexCheck> {
    return { entries: this.pgs.get(id)?.objects.size ?? 0, damaged: 0, lost: false };
  }

  usage(): StoreUsage {
    let used = 0;
    let objects = 0;
    for (const id of this.pgs.keys()) {
      const info = this.pgInfo(id)!;
      used += info.bytes;
      objects += info.objects;
    }
    return { used, total: this.capacityBytes, objects };
  }
  counters(): Record<string, number> {
    return { waiting: this.waiting.length };
  }
  async close(): Promise<void> {
    this.settle();
    this.closed = true;
  }
}
