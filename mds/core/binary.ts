/**
 * Compact binary writing and reading for pages and journal records, whose fields are mostly small
 * numbers: variable-length integers (7 bits a byte, low first) where the declared structs of
 * cluster/wire have fixed widths. Reading checks every length against what is there; a violation is
 * Corrupt, since only our own bytes come here.
 */
import { crc32 } from "../../cluster/base/checksum.js";
import { DssError } from "../../cluster/base/errors.js";

const SIZE_UNIT = 4096;
/** Below this a number is as exact as a bigint, and quicker. */
const BIG_STEP = 2n ** 48n;
/** Longest bigint, in groups of 7 bits. */
const BIG_GROUPS = 20;

export class Writer {
  private buffer: Buffer;
  length = 0;

  constructor(capacity = 512) {
    this.buffer = Buffer.allocUnsafe(capacity);
  }
  private room(bytes: number): void {
    if (this.length + bytes <= this.buffer.length) return;
    const grown = Buffer.allocUnsafe(Math.max(this.buffer.length * 2, this.length + bytes));
    this.buffer.copy(grown, 0, 0, this.length);
    this.buffer = grown;
  }
  u8(value: number): void {
    this.room(1);
    this.buffer[this.length++] = value;
  }
  u32(value: number): void {
    this.room(4);
    this.length = this.buffer.writeUInt32LE(value >>> 0, this.length);
  }
  /** A safe integer >= 0. */
  uint(value: number): void {
    this.room(8);
    let rest = value;
    while (rest >= 0x80) {
      this.buffer[this.length++] = (rest % 128) | 0x80;
      rest = Math.floor(rest / 128);
    }
    this.buffer[this.length++] = rest;
  }
  /** A whole number below 2^52 in size, of either sign. */
  int(value: number): void {
    this.uint(value >= 0 ? value * 2 : -value * 2 - 1);
  }
  /** A whole number of any size and sign. */
  big(value: bigint): void {
    let rest = value >= 0n ? value * 2n : -value * 2n - 1n;
    while (rest > BIG_STEP) {
      this.room(8);
      this.buffer[this.length++] = Number(rest & 0x7fn) | 0x80;
      rest >>= 7n;
    }
    this.uint(Number(rest));
  }
  /** A whole number below 2^64, a multiple of 4,096 where it is above 2^53. */
  size(value: number): void {
    this.uint(Math.floor(value / SIZE_UNIT));
    this.uint(value % SIZE_UNIT);
  }
  bool(value: boolean): void {
    this.u8(value ? 1 : 0);
  }
  time(ns: bigint): void {
    this.room(8);
    this.length = this.buffer.writeBigInt64LE(ns, this.length);
  }
  bytes(value: Buffer): void {
    this.uint(value.length);
    this.raw(value);
  }
  text(value: string): void {
    this.bytes(Buffer.from(value, "utf8"));
  }
  raw(value: Buffer): void {
    this.room(value.length);
    value.copy(this.buffer, this.length);
    this.length += value.length;
  }
  /** A view of what was written; the writer must not be used afterwards. */
  finish(): Buffer {
    return this.buffer.subarray(0, this.length);
  }
  /** Appends the crc32 of everything written so far. */
  seal(): Buffer {
    this.u32(crc32(this.buffer.subarray(0, this.length)));
    return this.finish();
  }
}

export class Reader {
  private at = 0;

  constructor(private readonly buffer: Buffer) {}
  private take(length: number): number {
    const at = this.at;
    if (at + length > this.buffer.length) {
      throw new DssError("Corrupt", `record ends early: ${length} bytes wanted at ${at}`);
    }
    this.at = at + length;
    return at;
  }
  get end(): boolean {
    return this.at === this.buffer.length;
  }
  u8(): number {
    return this.buffer[this.take(1)]!;
  }
  u32(): number {
    return this.buffer.readUInt32LE(this.take(4));
  }
  uint(): number {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = this.u8();
      value += (byte & 0x7f) * factor;
      if (byte < 0x80) break;
      if (factor > 2 ** 49) throw new DssError("Corrupt", "number of more than 8 bytes");
    }
    if (!Number.isSafeInteger(value)) throw new DssError("Corrupt", "number above 2^53");
    return value;
  }
  int(): number {
    const value = this.uint();
    return value % 2 === 0 ? value / 2 : -(value + 1) / 2;
  }
  big(): bigint {
    let value = 0n;
    for (let group = 0; ; group++) {
      if (group > BIG_GROUPS) throw new DssError("Corrupt", "number of more than 140 bits");
      const byte = this.u8();
      value |= BigInt(byte & 0x7f) << BigInt(7 * group);
      if (byte < 0x80) break;
    }
    return (value & 1n) === 0n ? value >> 1n : -((value + 1n) >> 1n);
  }
  size(): number {
    const units = this.uint();
    return units * SIZE_UNIT + this.uint();
  }
  bool(): boolean {
    return this.u8() !== 0;
  }
  time(): bigint {
    return this.buffer.readBigInt64LE(this.take(8));
  }
  /** A copy: pages and records outlive the buffer they came in. */
  bytes(): Buffer {
    const length = this.uint();
    const at = this.take(length);
    return Buffer.from(this.buffer.subarray(at, at + length));
  }
  text(): string {
    const length = this.uint();
    const at = this.take(length);
    return this.buffer.toString("utf8", at, at + length);
  }
}

/** Checks and removes the crc32 at the end; `what` names the record in the error. */
export function unseal(buffer: Buffer, what: string): Buffer {
  const body = buffer.subarray(0, Math.max(buffer.length - 4, 0));
  if (buffer.length < 5 || crc32(body) !== buffer.readUInt32LE(body.length)) {
    throw new DssError("Corrupt", `${what}: checksum mismatch (${buffer.length} bytes)`);
  }
  return body;
}
