/**
 * What the WAL's records say (docs/on-disk.md, "WAL records"). A record names the disk blocks that
 * its data belongs to, so that replay repeats the very same placement. Pure.
 *
 * Record: length u32, type u8, then the fields of its type. Data that rides in the WAL follows in
 * the group's data area, in the order of the records.
 */
import { DssError } from "../../cluster/base/errors.js";
import type { PgId } from "../../cluster/base/ids.js";
import type { ByteReader } from "./bytes.js";
import { type ByteWriter } from "./bytes.js";
import type {
  LogEntry,
  OpKind,
  RetryRecord,
  SpoiledBlock,
  Transaction,
  Version,
} from "./chunk-store.js";
import type { Run } from "./extent-map.js";

export const RecordType = {
  apply: 1,
  install: 2,
  discard: 3,
  createPg: 4,
  removePg: 5,
  setPgMeta: 6,
  rewriteLog: 7,
  mergeRetries: 8,
  forgetClient: 9,
  repair: 10,
} as const;

/** Blocks of one object that a record writes. */
export interface Placement {
  /** Block number in the object. */
  first: number;
  sums: Uint32Array;
  runs: Run[];
  /** The bytes are in the data files already, not in the WAL. */
  direct: boolean;
}

export interface ObjectFields {
  size: number;
  version: Version;
  mtimeNs: bigint;
  truncateSeq: number;
  snapSeq: number;
}

export type WalRecord =
  | {
      type: typeof RecordType.apply;
      pg: PgId;
      entry: LogEntry;
      floor: number;
      offset: number;
      length: number;
      mtimeNs: bigint;
      truncateSeq: number;
      snapSeq: number;
      /** Of a copy; "" otherwise. */
      source: string;
      placement: Placement;
    }
  | {
      type: typeof RecordType.install;
      pg: PgId;
      object: string;
      fields: ObjectFields;
      placements: Placement[];
      spoiled: readonly SpoiledBlock[];
    }
  | { type: typeof RecordType.discard; pg: PgId; object: string }
  /** Blocks of the object as they were, on fresh or on their old places. */
  | { type: typeof RecordType.repair; pg: PgId; object: string; placements: Placement[] }
  | { type: typeof RecordType.createPg; pg: PgId; meta: Buffer }
  | { type: typeof RecordType.removePg; pg: PgId }
  | { type: typeof RecordType.setPgMeta; pg: PgId; meta: Buffer }
  | { type: typeof RecordType.rewriteLog; pg: PgId; common: Version; entries: LogEntry[] }
  | { type: typeof RecordType.mergeRetries; pg: PgId; records: RetryRecord[] }
  | { type: typeof RecordType.forgetClient; client: number };

/** Written out: spread together it costs more than all it becomes on disk. */
export function applyRecord(t: Transaction, entry: LogEntry, placement: Placement): WalRecord {
  return {
    type: RecordType.apply,
    pg: t.pg,
    entry,
    floor: t.floor,
    offset: t.offset,
    length: t.length,
    mtimeNs: t.mtimeNs,
    truncateSeq: t.truncateSeq,
    snapSeq: t.snapSeq,
    source: t.source ?? "",
    placement,
  };
}

function putVersion(out: ByteWriter, version: Version): void {
  out.u53(version.interval);
  out.u53(version.seq);
}
function getVersion(from: ByteReader): Version {
  return { interval: from.u53(), seq: from.u53() };
}

/** Bytes an entry takes at most, besides three times its name's length. */
const ENTRY_BYTES = 64;

export function putLogEntry(out: ByteWriter, entry: LogEntry): void {
  out.ensure(ENTRY_BYTES + entry.object.length * 3);
  out.u8(entry.kind);
  putVersion(out, entry.version);
  out.u53(entry.client);
  out.u53(entry.sequence);
  out.u53(entry.size);
  out.text(entry.object);
}
export function getLogEntry(from: ByteReader): LogEntry {
  const kind = from.u8() as OpKind;
  const version = getVersion(from);
  const client = from.u53();
  const sequence = from.u53();
  const size = from.u53();
  return { version, kind, object: from.text(), client, sequence, size };
}

export function putRetryRecord(out: ByteWriter, record: RetryRecord): void {
  out.ensure(24 + record.answers.length * 32);
  out.u53(record.client);
  out.u53(record.floor);
  out.u32(record.answers.length);
  for (const answer of record.answers) {
    out.u53(answer.sequence);
    putVersion(out, answer.version);
    out.u53(answer.size);
  }
}
export function getRetryRecord(from: ByteReader): RetryRecord {
  const client = from.u53();
  const floor = from.u53();
  const answers = Array.from({ length: from.u32() }, () => ({
    sequence: from.u53(),
    version: getVersion(from),
    size: from.u53(),
  }));
  return { client, floor, answers };
}

function putPlacement(out: ByteWriter, placement: Placement): void {
  out.ensure(16 + placement.runs.length * 8 + placement.sums.length * 4);
  out.u8(placement.direct ? 1 : 0);
  out.u32(placement.first);
  out.u32(placement.sums.length);
  out.u32(placement.runs.length);
  for (const run of placement.runs) {
    out.u32(run.start);
    out.u32(run.count);
  }
  out.u32s(placement.sums, 0, placement.sums.length);
}
function getPlacement(from: ByteReader): Placement {
  const direct = from.u8() === 1;
  const first = from.u32();
  const blocks = from.u32();
  const runCount = from.u32();
  const runs: Run[] = [];
  let total = 0;
  for (let i = 0; i < runCount; i++) {
    const run = { start: from.u32(), count: from.u32() };
    total += run.count;
    runs.push(run);
  }
  if (total !== blocks)
    throw new DssError("Malformed", "a WAL record's runs do not fit its blocks");
  return { direct, first, runs, sums: from.u32s(blocks) };
}

export function putRecord(out: ByteWriter, record: WalRecord): void {
  out.ensure(128);
  const start = out.at;
  out.u32(0);
  out.u8(record.type);
  if (record.type !== RecordType.forgetClient) out.u53(record.pg);
  switch (record.type) {
    case RecordType.apply:
      putLogEntry(out, record.entry);
      out.ensure(64);
      out.u53(record.floor);
      out.u53(record.offset);
      out.u53(record.length);
      out.i64(record.mtimeNs);
      out.u53(record.truncateSeq);
      out.u53(record.snapSeq);
      out.ensure(2 + record.source.length * 3);
      out.text(record.source);
      putPlacement(out, record.placement);
      break;
    case RecordType.install:
      out.ensure(64 + record.object.length * 3);
      out.text(record.object);
      out.u53(record.fields.size);
      putVersion(out, record.fields.version);
      out.i64(record.fields.mtimeNs);
      out.u53(record.fields.truncateSeq);
      out.u53(record.fields.snapSeq);
      out.u32(record.placements.length);
      for (const placement of record.placements) putPlacement(out, placement);
      out.ensure(4 + record.spoiled.length * 8);
      out.u32(record.spoiled.length);
      for (const { offset, sum } of record.spoiled) {
        out.u32(offset);
        out.u32(sum);
      }
      break;
    case RecordType.repair:
      out.ensure(8 + record.object.length * 3);
      out.text(record.object);
      out.u32(record.placements.length);
      for (const placement of record.placements) putPlacement(out, placement);
      break;
    case RecordType.discard:
      out.ensure(2 + record.object.length * 3);
      out.text(record.object);
      break;
    case RecordType.createPg:
    case RecordType.setPgMeta:
      out.ensure(4 + record.meta.length);
      out.u32(record.meta.length);
      out.bytes(record.meta);
      break;
    case RecordType.removePg:
      break;
    case RecordType.rewriteLog:
      out.ensure(32);
      putVersion(out, record.common);
      out.u32(record.entries.length);
      for (const entry of record.entries) putLogEntry(out, entry);
      break;
    case RecordType.mergeRetries:
      out.u32(record.records.length);
      for (const retry of record.records) putRetryRecord(out, retry);
      break;
    case RecordType.forgetClient:
      out.u53(record.client);
      break;
  }
  out.buffer.writeUInt32LE(out.at - start, start);
}

/** Fails with Malformed when the bytes are no record (the caller has verified their checksum). */
export function getRecord(from: ByteReader): WalRecord {
  const start = from.at;
  const end = start + from.u32();
  const type = from.u8();
  const record = getBody(from, type);
  if (from.at !== end)
    throw new DssError("Malformed", `a WAL record of type ${type} has a wrong length`);
  return record;
}

function getBody(from: ByteReader, type: number): WalRecord {
  if (type === RecordType.forgetClient) return { type, client: from.u53() };
  const pg = from.u53();
  switch (type) {
    case RecordType.apply:
      return {
        type,
        pg,
        entry: getLogEntry(from),
        floor: from.u53(),
        offset: from.u53(),
        length: from.u53(),
        mtimeNs: from.i64(),
        truncateSeq: from.u53(),
        snapSeq: from.u53(),
        source: from.text(),
        placement: getPlacement(from),
      };
    case RecordType.install: {
      const object = from.text();
      const fields = {
        size: from.u53(),
        version: getVersion(from),
        mtimeNs: from.i64(),
        truncateSeq: from.u53(),
        snapSeq: from.u53(),
      };
      const placements = Array.from({ length: from.u32() }, () => getPlacement(from));
      const spoiled = Array.from({ length: from.u32() }, () => ({
        offset: from.u32(),
        sum: from.u32(),
      }));
      return { type, pg, object, fields, placements, spoiled };
    }
    case RecordType.discard:
      return { type, pg, object: from.text() };
    case RecordType.repair: {
      const object = from.text();
      const placements = Array.from({ length: from.u32() }, () => getPlacement(from));
      return { type, pg, object, placements };
    }
    case RecordType.createPg:
    case RecordType.setPgMeta:
      return { type, pg, meta: from.bytes(from.u32()) };
    case RecordType.removePg:
      return { type, pg };
    case RecordType.rewriteLog: {
      const common = getVersion(from);
      const entries = Array.from({ length: from.u32() }, () => getLogEntry(from));
      return { type, pg, common, entries };
    }
    case RecordType.mergeRetries:
      return {
        type,
        pg,
        records: Array.from({ length: from.u32() }, () => getRetryRecord(from)),
      };
    default:
      throw new DssError("Malformed", `unknown WAL record type ${type}`, {
        hint: "this store was written by a newer dss",
      });
  }
}
