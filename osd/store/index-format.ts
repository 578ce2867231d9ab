/**
 * Keys and values of the index (docs/on-disk.md, "Index"). Every value ends with a crc32 over its
 * key and itself, so that a value under the wrong key is as visible as a flipped bit. Pure.
 *
 * Keys are big-endian so that byte order is the order we walk in.
 */
import { crc32 } from "../../cluster/base/checksum.js";
import { DssError } from "../../cluster/base/errors.js";
import type { PgId } from "../../cluster/base/ids.js";
import { ByteReader, type ByteWriter } from "./bytes.js";
import type { LogEntry, Version } from "./chunk-store.js";
import { getLogEntry, putLogEntry } from "./records.js";

const Prefix = { state: 1, pg: 2, object: 3, log: 4, retry: 5 } as const;

/** An object's name is at most this many bytes of UTF-8. */
export const NAME_BYTES_MAX = 1024;
const PG_BYTES = 6;
const HEAD = 1 + PG_BYTES;

function key(prefix: number, pg: PgId, extra: number): Buffer {
  const out = Buffer.allocUnsafe(HEAD + extra);
  out[0] = prefix;
  out.writeUIntBE(pg, 1, PG_BYTES);
  return out;
}
function putU64(out: Buffer, value: number, at: number): void {
  out.writeUInt32BE(Math.floor(value / 2 ** 32), at);
  out.writeUInt32BE(value % 2 ** 32, at + 4);
}

export const STATE_KEY = Buffer.from([Prefix.state]);
/** The same once more: without it nothing in the store could be believed. */
export const STATE_COPY_KEY = Buffer.from([Prefix.state, 1]);
export const pgKey = (pg: PgId): Buffer => key(Prefix.pg, pg, 0);
export function objectKey(pg: PgId, object: string): Buffer {
  const name = Buffer.from(object, "utf8");
  const out = key(Prefix.object, pg, name.length);
  name.copy(out, HEAD);
  return out;
}
/** A log chunk is kept under the version of its first entry. */
export function logKey(pg: PgId, first: Version): Buffer {
  const out = key(Prefix.log, pg, 16);
  putU64(out, first.interval, HEAD);
  putU64(out, first.seq, HEAD + 8);
  return out;
}
export function retryKey(pg: PgId, client: number): Buffer {
  const out = key(Prefix.retry, pg, 8);
  putU64(out, client, HEAD);
  return out;
}

export const nameOfKey = (objectKeyBytes: Buffer): string => objectKeyBytes.toString("utf8", HEAD);
export const pgOfKey = (bytes: Buffer): PgId => bytes.readUIntBE(1, PG_BYTES);

interface KeyRange {
  start: Buffer;
  end: Buffer;
}
const all = (prefix: number): KeyRange => ({
  start: Buffer.from([prefix]),
  end: Buffer.from([prefix + 1]),
});
const ofPg = (prefix: number, pg: PgId): KeyRange => ({
  start: key(prefix, pg, 0),
  end: key(prefix, pg + 1, 0),
});
export const allPgs = (): KeyRange => all(Prefix.pg);
export const allObjects = (): KeyRange => all(Prefix.object);
export const allRetries = (): KeyRange => all(Prefix.retry);
export const objectsOf = (pg: PgId): KeyRange => ofPg(Prefix.object, pg);
export const logOf = (pg: PgId): KeyRange => ofPg(Prefix.log, pg);
export const retriesOf = (pg: PgId): KeyRange => ofPg(Prefix.retry, pg);
/** Everything that goes when a PG goes. */
export const everythingOf = (pg: PgId): KeyRange[] => [
  ofPg(Prefix.pg, pg),
  ofPg(Prefix.object, pg),
  ofPg(Prefix.log, pg),
  ofPg(Prefix.retry, pg),
];

/** The written bytes from `start`, with their checksum appended, as a value of `forKey`. */
export function sealValue(out: ByteWriter, forKey: Buffer): Buffer {
  out.ensure(4);
  out.u32(crc32(out.done(), crc32(forKey)));
  return Buffer.from(out.done());
}

/** A reader of the value's payload; Corrupt when the checksum does not match. */
export function openValue(forKey: Buffer, value: Buffer, what: () => string): ByteReader {
  const end = value.length - 4;
  if (end < 0 || crc32(value.subarray(0, end), crc32(forKey)) !== value.readUInt32LE(end)) {
    throw new DssError("Corrupt", `the index entry of ${what()} fails its checksum`, {
      hint: "the disk has changed what was written; replace this OSD's disk or format it anew",
    });
  }
  return new ByteReader(value, 0, end);
}

export const LOG_CHUNK_ENTRIES = 128;

export function putLogChunk(out: ByteWriter, entries: readonly LogEntry[]): void {
  out.ensure(4);
  out.u32(entries.length);
  for (const entry of entries) putLogEntry(out, entry);
}
export function getLogChunk(from: ByteReader): LogEntry[] {
  return Array.from({ length: from.u32() }, () => getLogEntry(from));
}
