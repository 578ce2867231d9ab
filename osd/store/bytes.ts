/**
 * Little-endian reading and writing of the store's own records. A u53 is a safe integer in eight
 * bytes, checked when read. Reading beyond the end fails with Malformed, never with garbage.
 */
import { endianness } from "node:os";
import { assert } from "../../cluster/base/assert.js";
import { DssError } from "../../cluster/base/errors.js";

// Checksum arrays are copied as memory; every platform that runs Node 20 is little-endian but
// s390x.
assert(endianness() === "LE", "the chunk store's formats need a little-endian machine");

const HIGH = 2 ** 32;
/** So few are quicker one by one: a view of a short array first gives it memory of its own. */
const FEW_U32S = 16;

export class ByteWriter {
  buffer: Buffer;
  at = 0;

  constructor(capacity: number) {
    this.buffer = Buffer.allocUnsafeSlow(capacity);
  }

  /** Makes room for `bytes` more; what follows up to that needs no check. */
  ensure(bytes: number): void {
    if (this.at + bytes <= this.buffer.length) return;
    const grown = Buffer.allocUnsafeSlow(Math.max(this.buffer.length * 2, this.at + bytes));
    this.buffer.copy(grown, 0, 0, this.at);
    this.buffer = grown;
  }
  u8(value: number): void {
    this.buffer[this.at++] = value;
  }
  u16(value: number): void {
    this.at = this.buffer.writeUInt16LE(value, this.at);
  }
  u32(value: number): void {
    this.at = this.buffer.writeUInt32LE(value, this.at);
  }
  u53(value: number): void {
    const high = Math.floor(value / HIGH);
    this.buffer.writeUInt32LE(value - high * HIGH, this.at);
    this.at = this.buffer.writeUInt32LE(high, this.at + 4);
  }
  i64(value: bigint): void {
    this.at = this.buffer.writeBigInt64LE(value, this.at);
  }
  /** Length as u16, then UTF-8. The caller has made room for three bytes a character. */
  text(value: string): void {
    const length = this.buffer.write(value, this.at + 2, "utf8");
    this.buffer.writeUInt16LE(length, this.at);
    this.at += 2 + length;
  }
  bytes(value: Uint8Array): void {
    this.buffer.set(value, this.at);
    this.at += value.length;
  }
  u32s(values: Uint32Array, start: number, count: number): void {
    if (count <= FEW_U32S) {
      for (let i = start; i < start + count; i++) this.u32(values[i]!);
      return;
    }
    this.bytes(new Uint8Array(values.buffer, values.byteOffset + start * 4, count * 4));
  }
  done(): Buffer {
    return this.buffer.subarray(0, this.at);
  }
}

export class ByteReader {
  constructor(
    readonly buffer: Buffer,
    public at = 0,
    readonly end = buffer.length,
  ) {}

  private need(bytes: number): number {
    const at = this.at;
    if (at + bytes > this.end) throw new DssError("Malformed", "a stored record ends too early");
    this.at = at + bytes;
    return at;
  }
  u8(): number {
    return this.buffer[this.need(1)]!;
  }
  u16(): number {
    return this.buffer.readUInt16LE(this.need(2));
  }
  u32(): number {
    return this.buffer.readUInt32LE(this.need(4));
  }
  u53(): number {
    const at = this.need(8);
    const value = this.buffer.readUInt32LE(at) + this.buffer.readUInt32LE(at + 4) * HIGH;
    if (!Number.isSafeInteger(value))
      throw new DssError("Malformed", "a stored number is too large");
    return value;
  }
  i64(): bigint {
    return this.buffer.readBigInt64LE(this.need(8));
  }
  text(): string {
    const length = this.u16();
    const at = this.need(length);
    return this.buffer.toString("utf8", at, at + length);
  }
  /** A copy. */
  bytes(length: number): Buffer {
    const at = this.need(length);
    return Buffer.from(this.buffer.subarray(at, at + length));
  }
  u32s(count: number): Uint32Array {
    const out = new Uint32Array(count);
    const at = this.need(count * 4);
    new Uint8Array(out.buffer).set(this.buffer.subarray(at, at + count * 4));
    return out;
  }
  get left(): number {
    return this.end - this.at;
  }
}
