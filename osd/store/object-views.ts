/**
 * What a file store tells of its objects: bytes, images, damage, digests, extents, listings. It
 * changes nothing.
 */
import { BufferPool } from "../../cluster/base/buffer-pool.js";
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import { cloneName } from "../../cluster/base/object-name.js";
import type { PgId } from "../../cluster/base/ids.js";
import type { OrderedStore } from "../../cluster/platform/ports.js";
import { digestOf, spoil } from "./block-runs.js";
import type {
  CopyCheck,
  ObjectImage,
  ObjectInfo,
  ObjectRead,
  SnapClone,
  SpoiledBlock,
} from "./chunk-store.js";
import { nameOfKey, objectKey, objectsOf } from "./index-format.js";
import type { BlockRead, ObjectReader } from "./object-reader.js";
import type { ObjectState } from "./object-state.js";
import type { PgState } from "./pg-state.js";

/** Buffers of answered reads that are kept for the next ones. */
const READ_POOL_BYTES = 16 * 1024 * 1024;

export interface ViewHost {
  readonly pgs: ReadonlyMap<PgId, PgState>;
  /** Undefined when it does not exist. Fails with StructureDamage. */
  find(id: PgId, name: string): ObjectState | undefined;
  /** Also what has ceased to exist. */
  load(pg: PgState, name: string): ObjectState | undefined;
  /** Fails with Disk once the store has failed. */
  assertAlive(): void;
}

export class ObjectViews {
  private readonly readPool = new BufferPool(READ_POOL_BYTES);

  constructor(
    private readonly host: ViewHost,
    private readonly reader: ObjectReader,
    private readonly index: OrderedStore,
  ) {}

  async read(
    id: PgId,
    name: string,
    offset: number,
    length: number,
  ): Promise<ObjectRead | undefined> {
    this.host.assertAlive();
    const { readPool: pool } = this;
    const read: (BlockRead & ObjectRead) | undefined = await this.reader.read(
      () => this.host.find(id, name),
      (object) => {
        const first = Math.floor(offset / BLOCK_SIZE);
        const end = Math.min(
          Math.ceil((offset + length) / BLOCK_SIZE),
          Math.ceil(object.size / BLOCK_SIZE),
        );
        return { first, count: Math.max(0, end - first) };
      },
      { pool },
    );
    if (read !== undefined && read.lent.length > 0) read.recycle = this.recycler(read);
    return read;
  }

  async image(id: PgId, name: string, tolerated = false): Promise<ObjectImage | undefined> {
    this.host.assertAlive();
    const found = await this.reader.read(
      () => this.host.find(id, name),
      (object) => ({ first: 0, count: object.extent }),
      { tolerant: tolerated, pool: this.readPool },
    );
    if (!found) return undefined;
    const spoiled: SpoiledBlock[] = [];
    const extents = found.pieces.map(({ first, count, buffer }) => {
      const sums = found.sums.slice(first, first + count);
      const run = { offset: first * BLOCK_SIZE, data: buffer, sums };
      if (found.bad.length > 0) spoiled.push(...spoil(run, found.bad));
      return run;
    });
    const image = { info: found.info, extents, recycle: this.recycler(found) };
    return spoiled.length > 0 ? { ...image, spoiled } : image;
  }

  private recycler({ lent }: BlockRead): () => void {
    return () => {
      for (const buffer of lent) this.readPool.give(buffer);
    };
  }

  async check(
    id: PgId,
    name: string,
    offset: number,
    length: number,
  ): Promise<CopyCheck | undefined> {
    this.host.assertAlive();
    const from = Math.floor(offset / BLOCK_SIZE);
    const found = await this.reader.read(
      () => this.host.find(id, name),
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
    const object = this.host.find(id, name);
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
    const object = this.host.find(id, name);
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

  clones(id: PgId, head: string): SnapClone[] {
    const out: SnapClone[] = [];
    for (const each of this.host.pgs.get(id)?.clones.of(head) ?? []) {
      const clone = this.host.find(id, cloneName(head, each));
      if (clone) out.push({ id: each, from: clone.snapSeq });
    }
    return out;
  }

  /** Names after `after` in byte order: the index's, with what is pinned in memory over it. */
  *names(pg: PgState, after = ""): Generator<string> {
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
    const pg = this.host.pgs.get(id);
    const out: { object: string; info: ObjectInfo }[] = [];
    if (!pg) return out;
    for (const name of this.names(pg, after)) {
      if (out.length >= limit) break;
      const object = this.host.load(pg, name);
      if (object?.exists) out.push({ object: name, info: object.info() });
    }
    return out;
  }
}
