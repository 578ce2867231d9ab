/** Branded identifiers: numbers and strings that cannot be mixed up. */
declare const brand: unique symbol;
type Brand<T, Name extends string> = T & { readonly [brand]?: Name };

/** An OSD's number, 0 … 9,999. Also its messenger entity number. */
export type OsdId = Brand<number, "OsdId">;
/** An MDS's number, 0 … 999. Its messenger entity number is `MDS_ENTITY_BASE + id`. */
export type MdsId = Brand<number, "MdsId">;
/** Never-reused number of one incarnation of a client (u32, from `CLIENT_ID_FIRST` up). */
export type ClientId = Brand<number, "ClientId">;
/** PG number within the whole cluster: `pool id * 65,536 + index`. */
export type PgId = Brand<number, "PgId">;
export type PoolId = Brand<number, "PoolId">;
/** Version of the cluster map, counted from 1. */
export type Epoch = Brand<number, "Epoch">;
/** The epoch of a PG's last change of in-sync set, primary or member incarnation. */
export type Interval = Brand<number, "Interval">;
/** Inode number (u53). */
export type Ino = Brand<number, "Ino">;

export const OSD_ID_MAX = 9_999;
export const MDS_ENTITY_BASE = 20_000;
export const CLIENT_ID_FIRST = 65_536;
/**
 * Sender of a connection that has no identity yet (asks for a client id, or only reads figures).
 */
export const ANONYMOUS_ENTITY = 65_535;

export const PG_INDEX_BITS = 16;
const PG_INDEXES = 2 ** PG_INDEX_BITS;
export function pgId(pool: PoolId, index: number): PgId {
  return pool * PG_INDEXES + index;
}
export function poolOfPg(pg: PgId): PoolId {
  return Math.floor(pg / PG_INDEXES);
}
export function pgIndex(pg: PgId): number {
  return pg % PG_INDEXES;
}
/** `pool.index` in hexadecimal, as `dss pg ls` prints it. */
export function formatPg(pg: PgId): string {
  return `${poolOfPg(pg)}.${pgIndex(pg).toString(16)}`;
}
export function parsePg(text: string): PgId | undefined {
  const match = /^(\d{1,5})\.([0-9a-f]{1,4})$/.exec(text);
  if (!match) return undefined;
  return pgId(Number(match[1]), Number.parseInt(match[2]!, 16));
}

export function formatEntity(entity: number): string {
  if (entity === ANONYMOUS_ENTITY) return "anonymous";
  if (entity >= CLIENT_ID_FIRST) return `client.${entity}`;
  return entity >= MDS_ENTITY_BASE ? `mds.${entity - MDS_ENTITY_BASE}` : `osd.${entity}`;
}

/** Of 16 random bytes, which it changes: a UUID of version 4. */
export function formatUuid(bytes: Buffer): string {
  bytes[6] = (bytes[6]! & 0x0f) | 0x40;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const hex = bytes.toString("hex");
  return [
    hex.slice(0, 8),
    hex.slice(8, 12),
    hex.slice(12, 16),
    hex.slice(16, 20),
    hex.slice(20),
  ].join("-");
}
