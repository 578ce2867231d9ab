/**
 * What opening a store reads: the index into PG states and the free map, and the check of blocks
 * that the WAL's last group wrote directly.
 */
import { BLOCK_SIZE, crc32 } from "../../cluster/base/checksum.js";
import { DssError } from "../../cluster/base/errors.js";
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
  openValue,
  pgOfKey,
  sealValue,
  STATE_KEY,
} from "./index-format.js";
import { ObjectState } from "./object-state.js";
import { PgState } from "./pg-state.js";
import { getRetryRecord, type Placement } from "./records.js";
import { WAL_START, type WalPoint } from "./wal.js";

const HINT = "format this OSD's folder anew and let recovery fill it from the other copies";
const STATE_FORMAT = 1;
const PG_FORMAT = 1;

export function encodeState(point: WalPoint): Buffer {
  const out = new ByteWriter(64);
  out.u8(STATE_FORMAT);
  out.u53(point.number);
  out.u53(point.position);
  return sealValue(out, STATE_KEY);
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

/**
 * Reads the whole index: PGs, retry memory, and every object once, to rebuild the free map and to
 * verify each PG's counts. Fails with Corrupt on any damage to the structure.
 */
export function loadIndex(
  index: OrderedStore,
  allocator: BlockAllocator,
): { pgs: PgState[]; point: WalPoint } {
  const pgs = new Map<PgId, PgState>();
  const counted = new Map<PgId, { objects: number; blocks: number }>();
  for (const { key, value } of index.range(allPgs())) {
    const pg = loadPg(index, key, value);
    pgs.set(pg.id, pg);
    counted.set(pg.id, { objects: 0, blocks: 0 });
  }
  for (const { key, value } of index.range(allObjects())) {
    const id = pgOfKey(key);
    const name = nameOfKey(key);
    const what = (): string => `object ${name} of PG ${formatPg(id)}`;
    const pg = pgs.get(id);
    const count = counted.get(id);
    if (!pg || !count)
      throw new DssError("Corrupt", `the index has ${what()}, but no such PG`, { hint: HINT });
    const object = new ObjectState(pg, name);
    object.decode(openValue(key, value, what));
    count.objects++;
    count.blocks += object.allocated;
    for (let i = 0; i < object.extent; i++) {
      const block = object.blocks[i]!;
      if (block !== 0 && !allocator.claim(block - 1)) {
        throw new DssError("Corrupt", `${what()} shares block ${block - 1} with another object`, {
          hint: HINT,
        });
      }
    }
  }
  for (const pg of pgs.values()) {
    const count = counted.get(pg.id)!;
    if (count.objects === pg.objectCount && count.blocks === pg.blocks) continue;
    throw new DssError(
      "Corrupt",
      `PG ${formatPg(pg.id)} has ${count.objects} objects with ${count.blocks} blocks in the index; ` +
        `${pg.objectCount} with ${pg.blocks} were recorded`,
      { hint: HINT },
    );
  }
  for (const { key, value } of index.range(allRetries())) {
    const id = pgOfKey(key);
    const pg = pgs.get(id);
    const from = openValue(key, value, () => `the retry memory of PG ${formatPg(id)}`);
    if (!pg)
      throw new DssError("Corrupt", `the index has retries of PG ${formatPg(id)}, but no such PG`, {
        hint: HINT,
      });
    pg.retries.merge([getRetryRecord(from)]);
    pg.retries.dirty.clear();
  }
  return { pgs: [...pgs.values()], point: loadPoint(index, pgs.size) };
}

function loadPoint(index: OrderedStore, pgs: number): WalPoint {
  const value = index.get(STATE_KEY);
  if (!value) {
    if (pgs === 0) return WAL_START; // Never checkpointed.
    throw new DssError("Corrupt", "the index does not say how far it goes", { hint: HINT });
  }
  const from = openValue(STATE_KEY, value, () => "the store's state");
  checkFormat(from, STATE_FORMAT, "the store's state");
  return { number: from.u53(), position: from.u53() };
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
