/**
 * The cluster map as bytes: "DSSM", format version u16, reserved u16, crc32 of the body u32, body.
 * The body is msgpack; PG tables and fences, which grow, are packed binary (little-endian):
 *   PG: member count u8, members u16 each, primary i16, interval u32
 *   fence: client u32, epoch u32
 * A map that was decoded is valid (`mapFault`), so nothing below checks it again.
 */
import { crc32 } from "../base/checksum.js";
import { DssError } from "../base/errors.js";
import { CLIENT_ID_FIRST, OSD_ID_MAX } from "../base/ids.js";
import { msgpack } from "../wire/registry.js";
import type { ClusterMap, Fence, PgEntry, PoolEntry } from "./cluster-map.js";
import { VIRTUAL_NODES_MAX, WEIGHT_MAX } from "./ring.js";

export const MAP_FORMAT = 1;
const MAGIC = 0x4d535344; // "DSSM"
const HEADER_BYTES = 12;
/** The `replicas` of a pool, and so the size of an in-sync set, stay well below the u8 count. */
export const REPLICAS_MAX = 16;
const POOL_ID_MAX = 65_535;
const PG_COUNT_MAX = 65_536;
const U32_MAX = 2 ** 32 - 1;

type Body = Omit<ClusterMap, "pgs" | "fences"> & {
  pgs: { pool: number; table: Buffer }[];
  fences: Buffer;
};
const body = msgpack<Body>();

export function encodeMap(map: ClusterMap): Buffer {
  const packed = body.encode({
    ...map,
    pgs: map.pools.map((pool) => ({ pool: pool.id, table: packPgs(map.pgs[pool.id] ?? []) })),
    fences: packFences(map.fences),
  });
  const out = Buffer.allocUnsafe(HEADER_BYTES + packed.length);
  out.writeUInt32LE(MAGIC, 0);
  out.writeUInt16LE(MAP_FORMAT, 4);
  out.writeUInt16LE(0, 6);
  out.writeUInt32LE(crc32(packed), 8);
  out.set(packed, HEADER_BYTES);
  return out;
}

/** Errors: Corrupt; IncompatibleVersion when a newer dss wrote it. */
export function decodeMap(data: Buffer): ClusterMap {
  if (data.length < HEADER_BYTES || data.readUInt32LE(0) !== MAGIC) {
    throw new DssError("Corrupt", `the cluster map has no header (${data.length} bytes)`);
  }
  const format = data.readUInt16LE(4);
  if (format > MAP_FORMAT || format === 0) {
    const message = `the cluster map has format ${format}; this dss reads up to ${MAP_FORMAT}`;
    throw new DssError("IncompatibleVersion", message, { hint: "upgrade this program" });
  }
  const packed = data.subarray(HEADER_BYTES);
  if (crc32(packed) !== data.readUInt32LE(8)) {
    throw new DssError("Corrupt", "the cluster map does not match its checksum");
  }
  let map: ClusterMap;
  let fault: string | undefined;
  try {
    map = unpackMap(body.decode(packed));
    fault = mapFault(map);
  } catch (cause) {
    throw new DssError("Corrupt", "the cluster map cannot be read", { cause });
  }
  if (fault !== undefined) throw new DssError("Corrupt", `the cluster map is invalid: ${fault}`);
  return map;
}

function unpackMap(value: Body): ClusterMap {
  const pgs: Record<number, PgEntry[]> = {};
  for (const { pool, table } of value.pgs) pgs[pool] = unpackPgs(table);
  return { ...value, pgs, fences: unpackFences(value.fences) };
}

function packPgs(entries: readonly PgEntry[]): Buffer {
  const out = Buffer.allocUnsafe(entries.reduce((sum, pg) => sum + 7 + 2 * pg.inSync.length, 0));
  let at = 0;
  for (const { inSync, primary, interval } of entries) {
    at = out.writeUInt8(inSync.length, at);
    for (const osd of inSync) at = out.writeUInt16LE(osd, at);
    at = out.writeInt16LE(primary, at);
    at = out.writeUInt32LE(interval, at);
  }
  return out;
}

function unpackPgs(table: Buffer): PgEntry[] {
  const entries: PgEntry[] = [];
  let at = 0;
  while (at < table.length) {
    const count = table.readUInt8(at++);
    const inSync: number[] = [];
    for (let i = 0; i < count; i++, at += 2) inSync.push(table.readUInt16LE(at));
    entries.push({ inSync, primary: table.readInt16LE(at), interval: table.readUInt32LE(at + 2) });
    at += 6;
  }
  return entries;
}

function packFences(fences: readonly Fence[]): Buffer {
  const out = Buffer.allocUnsafe(fences.length * 8);
  fences.forEach(({ client, epoch }, i) => {
    out.writeUInt32LE(client, i * 8);
    out.writeUInt32LE(epoch, i * 8 + 4);
  });
  return out;
}

function unpackFences(table: Buffer): Fence[] {
  return Array.from({ length: table.length / 8 }, (_, i) => ({
    client: table.readUInt32LE(i * 8),
    epoch: table.readUInt32LE(i * 8 + 4),
  }));
}

const isInteger = (value: unknown, low: number, high: number): boolean =>
  Number.isInteger(value) && (value as number) >= low && (value as number) <= high;
const isText = (value: unknown): boolean => typeof value === "string" && value.length <= 255;

/** What is wrong with a pool's settings, for `pool create` too; undefined when all is well. */
export function poolFault(pool: PoolEntry): string | undefined {
  const { id, name, replicas, minimum, pgCount, objectSize, stripeUnit, stripeCount } = pool;
  if (!isInteger(id, 1, POOL_ID_MAX)) return `pool id ${id}`;
  if (!isText(name) || !/^[A-Za-z0-9_.-]+$/.test(name)) return `pool name "${name}"`;
  if (!isInteger(replicas, 1, REPLICAS_MAX)) return `pool ${name}: replicas ${replicas}`;
  if (!isInteger(minimum, 1, replicas)) return `pool ${name}: minimum ${minimum} of ${replicas}`;
  const isPower = isInteger(pgCount, 1, PG_COUNT_MAX) && (pgCount & (pgCount - 1)) === 0;
  if (!isPower) return `pool ${name}: PG count ${pgCount} is not a power of two up to 65,536`;
  if (!isInteger(objectSize, 4096, 2 ** 26)) return `pool ${name}: object size ${objectSize}`;
  const fits = isInteger(stripeUnit, 4096, objectSize) && objectSize % stripeUnit === 0;
  if (!fits) return `pool ${name}: stripe unit ${stripeUnit} of ${objectSize}`;
  if (!isInteger(stripeCount, 1, 1024)) return `pool ${name}: stripe count ${stripeCount}`;
  return undefined;
}

/** The first broken rule of the map, in words; undefined when it is valid. */
export function mapFault(map: ClusterMap): string | undefined {
  if (!isText(map.clusterId) || map.clusterId === "") return "cluster id";
  if (!isInteger(map.epoch, 1, U32_MAX)) return `epoch ${map.epoch}`;
  const { nearFullRatio, fullRatio, backfillFullRatio, virtualNodes } = map;
  if (!isInteger(virtualNodes, 1, VIRTUAL_NODES_MAX)) return `${virtualNodes} virtual nodes`;
  const rises = nearFullRatio > 0 && nearFullRatio <= fullRatio && fullRatio <= backfillFullRatio;
  if (!rises || backfillFullRatio > 1) return "full ratios";
  if (!Array.isArray(map.flags) || !map.flags.every(isText)) return "flags";
  const osds = new Set<number>();
  for (const osd of map.osds) {
    if (!isInteger(osd.id, 0, OSD_ID_MAX) || osds.has(osd.id)) return `OSD id ${osd.id}`;
    osds.add(osd.id);
    const texts = [osd.uuid, osd.host, osd.incarnation, osd.address.host];
    if (!texts.every(isText) || !isInteger(osd.address.port, 0, 65_535)) return `osd.${osd.id}`;
    const { weight } = osd;
    if (!(weight >= 0 && weight <= WEIGHT_MAX)) return `osd.${osd.id}: weight ${weight}`;
    if (!isInteger(osd.upFrom, 0, map.epoch)) return `osd.${osd.id}: up from ${osd.upFrom}`;
  }
  const names = new Set<string>();
  const pools = new Set<number>();
  for (const pool of map.pools) {
    const fault = poolFault(pool) ?? pgsFault(map, pool, osds);
    if (fault !== undefined) return fault;
    if (names.has(pool.name) || pools.has(pool.id)) return `two pools "${pool.name}"/${pool.id}`;
    names.add(pool.name);
    pools.add(pool.id);
  }
  for (const { client, epoch } of map.fences) {
    if (!isInteger(client, CLIENT_ID_FIRST, U32_MAX)) return `fence of ${client}`;
    if (!isInteger(epoch, 1, map.epoch)) return `fence of ${client} in epoch ${epoch}`;
  }
  return undefined;
}

function pgsFault(map: ClusterMap, pool: PoolEntry, osds: Set<number>): string | undefined {
  const entries = map.pgs[pool.id];
  if (entries?.length !== pool.pgCount) return `pool ${pool.name}: ${entries?.length} PGs`;
  for (let index = 0; index < entries.length; index++) {
    const { inSync, primary, interval } = entries[index]!;
    const where = `PG ${pool.id}.${index.toString(16)}`;
    if (inSync.length > 2 * REPLICAS_MAX) return `${where}: ${inSync.length} members`;
    if (new Set(inSync).size !== inSync.length) return `${where}: a member twice`;
    if (!inSync.every((osd) => osds.has(osd))) return `${where}: an unknown member`;
    if (primary !== -1 && !inSync.includes(primary)) return `${where}: primary ${primary}`;
    if (!isInteger(interval, 1, map.epoch)) return `${where}: interval ${interval}`;
  }
  return undefined;
}
