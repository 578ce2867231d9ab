/**
 * What opening a store reads: the index into PG states and the free map, and the check of blocks
 * that the WAL's last group wrote directly.
 */
import { BLOCK_SIZE, crc32 } from "../../cluster/base/checksum.js";
import { DssError, isDssError } from "../../cluster/base/errors.js";
import { formatPg, type PgId } from "../../cluster/base/ids.js";
import type { OrderedStore } from "../../cluster/platform/ports.js";
import { ByteWriter, type ByteReader } from "./bytes.js";
import type { DataFiles } from "./data-files.js";
import type { BlockAllocator } from "./extent-map.js";
import {
  allObjects,
  allPgs,
  allRetries,
  nameOfKey,
  objectsOf,
  openValue,
  pgOfKey,
  sealValue,
  STATE_COPY_KEY,
  STATE_KEY,
} from "./index-format.js";
import { ObjectState } from "./object-state.js";
import { PgState } from "./pg-state.js";
import { BlockClaims, type SharedBlocks } from "./sharing.js";
import { getRetryRecord, type Placement } from "./records.js";
import { WAL_START, type WalPoint } from "./wal.js";

const HINT = "format this OSD's folder anew and let recovery fill it from the other copies";
const STATE_FORMAT = 1;
const PG_FORMAT = 1;

export function encodeState(key: Buffer, point: WalPoint): Buffer {
  const out = new ByteWriter(64);
  out.u8(STATE_FORMAT);
  out.u53(point.number);
  out.u53(point.position);
  return sealValue(out, key);
}

export function encodePg(out: ByteWriter, pg: PgState): void {
  out.at = 0;
  out.ensure(80 + pg.meta.length);
  out.u8(PG_FORMAT);
  out.u53(pg.last.interval);
  out.u53(pg.last.seq);
  out.u53(pg.logTail.interval);
  out.u53(pg.logTail.seq);
  out.u53(pg.objectCount);
  out.u53(pg.blocks);
  out.u32(pg.meta.length);
  out.bytes(pg.meta);
}

function checkFormat(from: ByteReader, known: number, what: string): void {
  const format = from.u8();
  if (format === known) return;
  throw new DssError("IncompatibleVersion", `${what} has format ${format}`, {
    hint: "run a newer dss",
  });
}

function loadPg(index: OrderedStore, key: Buffer, value: Buffer): PgState {
  const id = pgOfKey(key);
  const from = openValue(key, value, () => `PG ${formatPg(id)}`);
  checkFormat(from, PG_FORMAT, `PG ${formatPg(id)}`);
  const pg = new PgState(id, index);
  pg.fresh = false;
  pg.last = { interval: from.u53(), seq: from.u53() };
  pg.logTail = { interval: from.u53(), seq: from.u53() };
  pg.diskEnd = pg.last;
  pg.objectCount = from.u53();
  pg.blocks = from.u53();
  pg.meta = from.bytes(from.u32());
  return pg;
}

/** What of the index could not be believed. */
export interface IndexDamage {
  /** PGs of which something is gone, and what was seen of it first. */
  pgs: Map<PgId, string>;
  /** Entries that stand for nothing. */
  keys: Buffer[];
}
/** Names in the entries of the PG's objects that stand for nothing. */
export function damagedNames(damage: IndexDamage, pg: PgId): string[] {
  const { start, end } = objectsOf(pg);
  return damage.keys
    .filter((key) => key.compare(start) >= 0 && key.compare(end) < 0)
    .map((key) => nameOfKey(key));
}

/** The index as a whole is useless. */
export class IndexDestroyed extends DssError {
  constructor(message: string, cause?: unknown) {
    super("Corrupt", message, { hint: HINT, cause });
  }
}

interface Loading {
  index: OrderedStore;
  claims: BlockClaims;
  pgs: Map<PgId, PgState>;
  counted: Map<PgId, { objects: number; blocks: number }>;
  damage: IndexDamage;
  /** Notes damage, or throws it. */
  note: (pg: PgId, key: Buffer | undefined, what: string) => void;
}

/**
 * Reads the whole index: PGs, retry memory, and every object once, to rebuild the free map and to
 * verify each PG's counts. Damage to the structure fails with Corrupt, or, when it is `tolerated`,
 * costs what it has hit: the PGs named in `damage` lack objects, or more. Fails with IndexDestroyed
 * when nothing can be believed.
 */
export function loadIndex(
  index: OrderedStore,
  allocator: BlockAllocator,
  shared: SharedBlocks,
  tolerated = false,
): { pgs: PgState[]; point: WalPoint; damage: IndexDamage } {
  const damage: IndexDamage = { pgs: new Map(), keys: [] };
  const note = (pg: PgId, key: Buffer | undefined, what: string): void => {
    if (!tolerated) throw new DssError("Corrupt", what, { hint: HINT });
    if (!damage.pgs.has(pg)) damage.pgs.set(pg, what);
    if (key !== undefined) damage.keys.push(Buffer.from(key));
  };
  const loading: Loading = {
    ...{ index, damage, note, claims: new BlockClaims(allocator, shared) },
    pgs: new Map(),
    counted: new Map(),
  };
  const spoiled: { id: PgId; what: string }[] = [];
  for (const { key, value } of index.range(allPgs())) {
    const id = pgOfKey(key);
    try {
      addPg(loading, loadPg(index, key, value));
    } catch (error) {
      if (!isDssError(error, "Corrupt")) throw error;
      note(id, key, error.message);
      spoiled.push({ id, what: error.message });
    }
  }
  for (const { key, value } of index.range(allObjects())) loadObject(loading, key, value);
  checkCounts(loading);
  for (const { key, value } of index.range(allRetries())) {
    const id = pgOfKey(key);
    const pg = loading.pgs.get(id);
    try {
      const from = openValue(key, value, () => `the retry memory of PG ${formatPg(id)}`);
      if (!pg) note(id, key, `the index has retries of PG ${formatPg(id)}, but no such PG`);
      else pg.retries.merge([getRetryRecord(from)]);
    } catch (error) {
      if (!isDssError(error, "Corrupt")) throw error;
      note(id, key, error.message);
    }
    pg?.retries.dirty.clear();
  }
  // The key of a PG that is not known may be the damaged part: there may be no such PG.
  for (const { id } of spoiled) if (!loading.pgs.has(id)) damage.pgs.delete(id);
  for (const id of [...damage.pgs.keys()]) if (!loading.pgs.has(id)) damage.pgs.delete(id);
  const pgs = [...loading.pgs.values()];
  return { pgs, point: loadPoint(index, pgs.length), damage };
}

function addPg(loading: Loading, pg: PgState): PgState {
  loading.pgs.set(pg.id, pg);
  loading.counted.set(pg.id, { objects: 0, blocks: 0 });
  return pg;
}

function loadObject(loading: Loading, key: Buffer, value: Buffer): void {
  const { index, claims, note } = loading;
  const id = pgOfKey(key);
  const name = nameOfKey(key);
  const what = (): string => `object ${name} of PG ${formatPg(id)}`;
  let from: ByteReader;
  try {
    from = openValue(key, value, what);
  } catch (error) {
    if (!isDssError(error, "Corrupt")) throw error;
    return note(id, key, error.message);
  }
  let pg = loading.pgs.get(id);
  if (!pg) {
    note(id, undefined, `the index has ${what()}, but no such PG`);
    pg = addPg(loading, new PgState(id, index));
    pg.fresh = false;
  }
  const object = new ObjectState(pg, name);
  object.decode(from);
  const taken = claims.claim(object);
  if (taken !== undefined) {
    return note(id, key, `${what()} shares block ${taken} with another object`);
  }
  const count = loading.counted.get(id)!;
  count.objects++;
  count.blocks += object.allocated;
  pg.names.add(PgState.hashOf(name));
  pg.clones.add(name);
}

function checkCounts({ pgs, counted, note }: Loading): void {
  for (const pg of pgs.values()) {
    const count = counted.get(pg.id)!;
    if (count.objects === pg.objectCount && count.blocks === pg.blocks) continue;
    const found = `${count.objects} objects with ${count.blocks} blocks`;
    const recorded = `${pg.objectCount} with ${pg.blocks} were recorded`;
    note(pg.id, undefined, `PG ${formatPg(pg.id)} has ${found} in the index; ${recorded}`);
    pg.objectCount = count.objects;
    pg.blocks = count.blocks;
  }
}

function loadPoint(index: OrderedStore, pgs: number): WalPoint {
  let isThere = false;
  for (const key of [STATE_KEY, STATE_COPY_KEY]) {
    const value = index.get(key);
    if (!value) continue;
    isThere = true;
    try {
      const from = openValue(key, value, () => "the store's state");
      checkFormat(from, STATE_FORMAT, "the store's state");
      return { number: from.u53(), position: from.u53() };
    } catch (error) {
      if (!isDssError(error, "Corrupt")) throw error;
    }
  }
  if (pgs === 0 && !isThere) return WAL_START; // Never checkpointed.
  throw new IndexDestroyed("the index does not say how far it goes");
}

/** True when the data files hold what the placement's checksums say. */
export async function verifyPlacement(files: DataFiles, placement: Placement): Promise<boolean> {
  let at = 0;
  for (const run of placement.runs) {
    const buffer = Buffer.allocUnsafeSlow(run.count * BLOCK_SIZE);
    await files.read(run, buffer);
    for (let i = 0; i < run.count; i++, at++) {
      const bytes = buffer.subarray(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE);
      if (crc32(bytes) !== placement.sums[at]) return false;
    }
  }
  return true;
}
