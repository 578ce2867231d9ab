/**
 * Declared binary structs: one row per message gives type, size and codec. Little-endian.
 *
 * A field codec reads and writes at an offset and tells its size for a value; a struct whose fields
 * all have a fixed size has `size` set, and a test may freeze it. Decoding checks every length
 * against what is there: outside input is validated here, once. A struct's row is compiled when it
 * is first used (struct-code.ts).
 */
import { DssError } from "../base/errors.js";
import { compileStruct, type StructCode } from "./struct-code.js";

export interface Field<T> {
  /** Bytes, or -1 when it depends on the value. */
  readonly fixed: number;
  sizeOf(value: T): number;
  /** Returns the offset after the field. */
  put(buffer: Buffer, offset: number, value: T): number;
  get(cursor: Cursor): T;
  /** Of a fixed one: the same where the caller has seen to it that the bytes are there. */
  read?(buffer: Buffer, offset: number): T;
}

/** A position in a buffer being decoded; running over the end is Malformed. */
export class Cursor {
  constructor(
    readonly buffer: Buffer,
    public offset = 0,
  ) {}
  take(length: number): number {
    const at = this.offset;
    if (at + length > this.buffer.length) {
      throw new DssError("Malformed", `message ends early: ${length} bytes missing at ${at}`);
    }
    this.offset = at + length;
    return at;
  }
}

function fixedField<T>(
  size: number,
  put: (buffer: Buffer, offset: number, value: T) => void,
  get: (buffer: Buffer, offset: number) => T,
): Field<T> {
  return {
    fixed: size,
    sizeOf: () => size,
    put(buffer, offset, value) {
      put(buffer, offset, value);
      return offset + size;
    },
    get: (cursor) => get(cursor.buffer, cursor.take(size)),
    read: get,
  };
}

export const u8: Field<number> = fixedField(
  1,
  (b, o, v) => void b.writeUInt8(v, o),
  (b, o) => b.readUInt8(o),
);
export const u16: Field<number> = fixedField(
  2,
  (b, o, v) => void b.writeUInt16LE(v, o),
  (b, o) => b.readUInt16LE(o),
);
export const u32: Field<number> = fixedField(
  4,
  (b, o, v) => void b.writeUInt32LE(v, o),
  (b, o) => b.readUInt32LE(o),
);
const HIGH = 2 ** 32;
/** 64 bits that count or address: a safe integer, checked when decoded. */
export const u53: Field<number> = fixedField(
  8,
  (b, o, v) => {
    const high = Math.floor(v / HIGH);
    b.writeUInt32LE(v - high * HIGH, o);
    b.writeUInt32LE(high, o + 4);
  },
  (b, o) => {
    const high = b.readUInt32LE(o + 4);
    if (high > 0x1f_ffff) throw new DssError("Malformed", `number above 2^53 at ${o}`);
    return high * HIGH + b.readUInt32LE(o);
  },
);
/** Opaque 64 bits. */
export const u64: Field<bigint> = fixedField(
  8,
  (b, o, v) => void b.writeBigUInt64LE(v, o),
  (b, o) => b.readBigUInt64LE(o),
);
export const i64: Field<bigint> = fixedField(
  8,
  (b, o, v) => void b.writeBigInt64LE(v, o),
  (b, o) => b.readBigInt64LE(o),
);
export const bool: Field<boolean> = fixedField(
  1,
  (b, o, v) => void b.writeUInt8(v ? 1 : 0, o),
  (b, o) => b.readUInt8(o) !== 0,
);

/**
 * Text of at most 255 bytes in latin1: object names and the like, which are ASCII by construction.
 */
export const ascii: Field<string> = {
  fixed: -1,
  sizeOf: (value) => 1 + value.length,
  put(buffer, offset, value) {
    if (value.length > 255) throw new DssError("TooLarge", `text of ${value.length} bytes`);
    buffer.writeUInt8(value.length, offset);
    buffer.write(value, offset + 1, "latin1");
    return offset + 1 + value.length;
  },
  get(cursor) {
    const length = cursor.buffer.readUInt8(cursor.take(1));
    const at = cursor.take(length);
    return cursor.buffer.toString("latin1", at, at + length);
  },
};

/** Bytes with a u32 length of at most `max`. The decoded value is a view of the message. */
export function bytes(max: number): Field<Buffer> {
  return {
    fixed: -1,
    sizeOf: (value) => 4 + value.length,
    put(buffer, offset, value) {
      if (value.length > max) {
        throw new DssError("TooLarge", `${value.length} bytes where ${max} are the most`);
      }
      buffer.writeUInt32LE(value.length, offset);
      value.copy(buffer, offset + 4);
      return offset + 4 + value.length;
    },
    get(cursor) {
      const length = cursor.buffer.readUInt32LE(cursor.take(4));
      if (length > max)
        throw new DssError("Malformed", `${length} bytes where ${max} are the most`);
      const at = cursor.take(length);
      return cursor.buffer.subarray(at, at + length);
    },
  };
}

/** A list with a u32 count of at most `max`. */
export function list<T>(item: Field<T>, max: number): Field<readonly T[]> {
  return {
    fixed: -1,
    sizeOf: (values) => values.reduce((sum, value) => sum + item.sizeOf(value), 4),
    put(buffer, offset, values) {
      if (values.length > max) {
        throw new DssError("TooLarge", `${values.length} items where ${max} are the most`);
      }
      let at = buffer.writeUInt32LE(values.length, offset);
      for (const value of values) at = item.put(buffer, at, value);
      return at;
    },
    get(cursor) {
      const count = cursor.buffer.readUInt32LE(cursor.take(4));
      if (count > max) throw new DssError("Malformed", `${count} items where ${max} are the most`);
      const values: T[] = [];
      for (let i = 0; i < count; i++) values.push(item.get(cursor));
      return values;
    },
  };
}

/** What a message's body is made of. */
export interface Codec<T> {
  encode(value: T): Buffer;
  /** Throws Malformed. */
  decode(buffer: Buffer): T;
}

export interface Struct<T> extends Codec<T>, Field<T> {
  readonly name: string;
  /** Bytes when every field is fixed, else -1. */
  readonly size: number;
}

type Fields = Record<string, Field<any>>;
type ValueOf<F extends Fields> = { [K in keyof F]: F[K] extends Field<infer T> ? T : never };
/** The value type of a struct: `type RepOp = Infer<typeof RepOp>`. */
export type Infer<S> = S extends Struct<infer T> ? T : never;

export function struct<F extends Fields>(name: string, fields: F): Struct<ValueOf<F>> {
  type T = ValueOf<F>;
  const rows = Object.entries(fields) as [keyof F & string, Field<unknown>][];
  const fixedSize = rows.reduce((sum, [, field]) => sum + Math.max(field.fixed, 0), 0);
  const size = rows.some(([, field]) => field.fixed < 0) ? -1 : fixedSize;
  let compiled: StructCode<T> | undefined;
  const code = (): StructCode<T> => (compiled ??= compileStruct<T>(name, rows));
  const sizeOf = (value: T): number => (size < 0 ? code().sizeOf(value) : size);
  const put = (buffer: Buffer, at: number, value: T): number => code().put(buffer, at, value);
  const get = (cursor: Cursor): T => code().get(cursor);
  return {
    name,
    size,
    fixed: size,
    sizeOf,
    put,
    get,
    encode(value) {
      const buffer = Buffer.allocUnsafe(sizeOf(value));
      put(buffer, 0, value);
      return buffer;
    },
    decode(buffer) {
      const cursor = new Cursor(buffer);
      const value = get(cursor);
      if (cursor.offset !== buffer.length) {
        throw new DssError("Malformed", `${name}: ${buffer.length - cursor.offset} bytes too many`);
      }
      return value;
    },
  };
}
