/**
 * A log in memory (tmpfs) that outlives the process which writes it: two files without a name,
 * whose descriptors a supervisor holds and each writer inherits. Nothing is synced: it need not
 * outlive the machine. What was appended is there for the next process, whatever happens to this
 * one, because the kernel has it when the call returns; and nothing is left when nobody holds it.
 *
 * One of the files is the present log. `replace` writes the other one and then its head, which
 * makes it the present one:
 *
 *     0   u32  MAGIC
 *     4   u32  crc32 of the count
 *     8   u48  count: how often the log was replaced; the higher one is the present
 *     16  …    the log
 */
import { closeSync, fstatSync, ftruncateSync, mkdtempSync } from "node:fs";
import { openSync, readSync, rmSync, statfsSync, writeSync, writevSync } from "node:fs";
import { join } from "node:path";
import { crc32 } from "../base/checksum.js";

const MAGIC = 0x52737364;
const HEAD_BYTES = 16;
/** IOV_MAX of writev(2). */
const PARTS_MAX = 1_024;

/** Descriptors of the two files. */
export type RecordFiles = readonly [number, number];

/** Below `folder`, which should be in memory. */
export function openRecordFiles(folder: string): RecordFiles {
  const place = mkdtempSync(join(folder, "dss-record-"));
  try {
    const open = (name: string): number => openSync(join(place, name), "wx+", 0o600);
    return [open("0"), open("1")];
  } finally {
    rmSync(place, { recursive: true });
  }
}
export function closeRecordFiles(files: RecordFiles): void {
  for (const fd of files) closeSync(fd);
}

export class FileRecord {
  private count: number;
  private end: number;

  constructor(private readonly files: RecordFiles) {
    const counts = files.map(countOf) as [number, number];
    this.count = Math.max(...counts);
    this.end = Math.max(HEAD_BYTES, fstatSync(this.present).size);
  }
  /** Counts are even in the first file and odd in the second. */
  private get present(): number {
    return this.files[this.count % 2 === 0 ? 0 : 1];
  }

  /** Empty when there was no writer before. */
  read(): Buffer {
    const log = Buffer.alloc(this.end - HEAD_BYTES);
    readAll(this.present, log, HEAD_BYTES);
    return log;
  }
  /** Bytes that its file system has left; a tmpfs without a limit says 0 of 0. */
  room(): number {
    const { blocks, bavail, bsize } = statfsSync(`/proc/self/fd/${this.present}`);
    return blocks === 0 ? Infinity : bavail * bsize;
  }
  append(parts: readonly Buffer[]): void {
    try {
      this.end = writeAll(this.present, parts, this.end);
    } catch (error) {
      ftruncateSync(this.present, this.end); // A shorter log may need the room.
      throw error;
    }
  }
  /** All or nothing: whoever reads finds the old log or the new one. */
  replace(parts: readonly Buffer[]): void {
    const old = this.present;
    const count = this.count + 1;
    const next = this.files[count % 2 === 0 ? 0 : 1];
    ftruncateSync(next, 0);
    const end = writeAll(next, parts, HEAD_BYTES);
    writeAll(next, [headOf(count)], 0);
    this.count = count;
    this.end = end;
    ftruncateSync(old, 0);
  }
}

function headOf(count: number): Buffer {
  const head = Buffer.alloc(HEAD_BYTES);
  head.writeUIntLE(count, 8, 6);
  head.writeUInt32LE(MAGIC, 0);
  head.writeUInt32LE(crc32(head.subarray(8)), 4);
  return head;
}
/** 0: it is not a log. */
function countOf(fd: number): number {
  if (fstatSync(fd).size < HEAD_BYTES) return 0;
  const head = Buffer.alloc(HEAD_BYTES);
  readAll(fd, head, 0);
  const count = head.readUIntLE(8, 6);
  return head.equals(headOf(count)) ? count : 0;
}
function readAll(fd: number, into: Buffer, position: number): void {
  for (let at = 0; at < into.length;) {
    const read = readSync(fd, into, at, into.length - at, position + at);
    if (read === 0) throw new Error("the record ends early");
    at += read;
  }
}
/** Returns the position behind it. */
function writeAll(fd: number, parts: readonly Buffer[], position: number): number {
  for (let rest = parts; rest.length > 0;) {
    const some = rest.slice(0, PARTS_MAX);
    const [first] = some as [Buffer];
    const written =
      some.length === 1
        ? writeSync(fd, first, 0, first.length, position)
        : writevSync(fd, some, position);
    position += written;
    rest = withoutFirst(rest, written);
  }
  return position;
}
function withoutFirst(parts: readonly Buffer[], bytes: number): readonly Buffer[] {
  let at = 0;
  for (; at < parts.length && bytes >= parts[at]!.length; at++) bytes -= parts[at]!.length;
  const rest = parts.slice(at);
  if (bytes > 0) rest[0] = rest[0]!.subarray(bytes);
  return rest;
}
