/**
 * The form of a difference between two states of a volume (`dss volume export-diff`): a mark, then
 * records of a type, a length, a checksum and a body. The first says what the difference is
 * between, the last how much there was and the SHA-256 of everything before it. Numbers are
 * little-endian.
 *
 * Nothing that is cut short or changed is taken for whole: every record has its checksum, and
 * without the last one the stream is incomplete.
 */
import { createHash } from "node:crypto";
import { z } from "zod";
import { crc32 } from "../../cluster/base/checksum.js";
import { DssError } from "../../cluster/base/errors.js";

const MARK = Buffer.from("dss volume diff\n");
/** type u8, length of the body u32, crc32 of both and the body u32. */
const HEAD_BYTES = 9;
const TYPE = { header: 1, data: 2, zeros: 3, end: 4 } as const;
export const DATA_BYTES_MAX = 4 * 2 ** 20;
const BODY_BYTES_MAX = 8 + DATA_BYTES_MAX;
const SHA_BYTES = 32;

const State = z.object({
  /** Of the snapshot; null: the volume as it was when the difference was made. */
  name: z.string().nullable(),
  /** Where and as what the snapshot was taken first; "" of no snapshot. */
  origin: z.string(),
  /** Bytes. */
  size: z.number().int().positive(),
});
const Header = z.object({
  version: z.literal(1),
  volume: z.string(),
  /** Null: from nothing, a volume of zeros. */
  from: State.nullable(),
  to: State,
  layout: z.object({
    objectSize: z.number().int(),
    stripeUnit: z.number().int(),
    stripeCount: z.number().int(),
  }),
});
export type DiffState = z.infer<typeof State>;
export type DiffHeader = z.infer<typeof Header>;

export type DiffRecord =
  | { readonly is: "header"; readonly header: DiffHeader }
  | { readonly is: "data"; readonly offset: number; readonly data: Buffer }
  | { readonly is: "zeros"; readonly offset: number; readonly length: number }
  /** Nothing follows. */
  | { readonly is: "end"; readonly records: number; readonly bytes: number };

// ---- Out ---------------------------------------------------------------------------------------

export class DiffWriter {
  private readonly hash = createHash("sha256");
  records = 0;
  /** Of data. */
  bytes = 0;

  constructor(private readonly put: (bytes: Buffer) => Promise<void>) {}

  async begin(header: DiffHeader): Promise<void> {
    await this.out(MARK);
    await this.record(TYPE.header, [Buffer.from(JSON.stringify(header))]);
  }
  async data(offset: number, data: Buffer): Promise<void> {
    for (let at = 0; at < data.length; at += DATA_BYTES_MAX) {
      const part = data.subarray(at, at + DATA_BYTES_MAX);
      this.records++;
      this.bytes += part.length;
      await this.record(TYPE.data, [u64(offset + at), part]);
    }
  }
  async zeros(offset: number, length: number): Promise<void> {
    this.records++;
    await this.record(TYPE.zeros, [u64(offset), u64(length)]);
  }
  async end(): Promise<void> {
    const sum = this.hash.copy().digest();
    await this.record(TYPE.end, [u64(this.records), u64(this.bytes), sum]);
  }

  private async record(type: number, body: readonly Buffer[]): Promise<void> {
    const head = Buffer.alloc(HEAD_BYTES);
    head.writeUInt8(type, 0);
    head.writeUInt32LE(
      body.reduce((sum, piece) => sum + piece.length, 0),
      1,
    );
    head.writeUInt32LE(sumOf(head, body), 5);
    for (const piece of [head, ...body]) await this.out(piece);
  }
  private async out(bytes: Buffer): Promise<void> {
    this.hash.update(bytes);
    await this.put(bytes);
  }
}

function sumOf(head: Buffer, body: readonly Buffer[]): number {
  let sum = crc32(head.subarray(0, 5));
  for (const piece of body) sum = crc32(piece, sum);
  return sum;
}
/** Sizes above 2^53 are multiples of 4,096, which a number holds exactly. */
function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

// ---- In ----------------------------------------------------------------------------------------

/** The records in order, the header first and the end last. Errors: Corrupt. */
export async function* readDiff(
  stream: AsyncIterable<Buffer> | Iterable<Buffer>,
): AsyncGenerator<DiffRecord> {
  const source = new Bytes(stream);
  const hash = createHash("sha256");
  const mark = await source.take(MARK.length);
  if (mark === undefined || !mark.equals(MARK)) {
    throw new DssError("Corrupt", "this is no difference of a volume", {
      hint: "give what dss volume export-diff has written",
    });
  }
  hash.update(mark);
  let header: DiffHeader | undefined;
  let [records, bytes] = [0, 0];
  for (;;) {
    const at = source.taken;
    const head = await source.take(HEAD_BYTES);
    if (head === undefined) throw incomplete(at);
    const [type, length] = [head.readUInt8(0), head.readUInt32LE(1)];
    if (length > BODY_BYTES_MAX) throw damaged(at, `a record of ${length} bytes`);
    const body = await source.take(length);
    if (body === undefined) throw incomplete(at);
    if (sumOf(head, [body]) !== head.readUInt32LE(5)) throw damaged(at, "a wrong checksum");
    if (type === TYPE.end) {
      const known = header !== undefined && length === 16 + SHA_BYTES;
      if (!known || !body.subarray(16).equals(hash.digest())) throw damaged(at, "a wrong SHA-256");
      if (numberAt(body, 0) !== records || numberAt(body, 8) !== bytes) {
        throw damaged(at, "another number of records");
      }
      if ((await source.take(1)) !== undefined) throw damaged(source.taken, "more than its end");
      yield { is: "end", records, bytes };
      return;
    }
    hash.update(head);
    hash.update(body);
    if (header === undefined) {
      if (type !== TYPE.header) throw damaged(at, "no header");
      header = parseHeader(body, at);
      yield { is: "header", header };
      continue;
    }
    const record = recordOf(type, body, header.to.size);
    if (record === undefined) throw damaged(at, `a bad record of type ${type}`);
    records++;
    if (record.is === "data") bytes += record.data.length;
    yield record;
  }
}

function parseHeader(body: Buffer, at: number): DiffHeader {
  try {
    return Header.parse(JSON.parse(body.toString("utf8")));
  } catch (cause) {
    throw new DssError("Corrupt", `the header at byte ${at} is not of this version`, { cause });
  }
}
function recordOf(type: number, body: Buffer, size: number): DiffRecord | undefined {
  if (body.length < 8) return undefined;
  const offset = numberAt(body, 0);
  if (type === TYPE.data) {
    const data = body.subarray(8);
    return data.length > 0 && offset + data.length <= size
      ? { is: "data", offset, data }
      : undefined;
  }
  if (type !== TYPE.zeros || body.length !== 16) return undefined;
  const length = numberAt(body, 8);
  return length > 0 && offset + length <= size ? { is: "zeros", offset, length } : undefined;
}
function numberAt(body: Buffer, at: number): number {
  return Number(body.readBigUInt64LE(at));
}
function damaged(at: number, what: string): DssError {
  return new DssError("Corrupt", `the difference is damaged at byte ${at}: ${what}`);
}
function incomplete(at: number): DssError {
  return new DssError("Corrupt", `the difference is incomplete: it ends after ${at} bytes`);
}

/** A stream, taken in pieces of any size. */
class Bytes {
  taken = 0;
  private readonly stream: AsyncIterator<Buffer> | Iterator<Buffer>;
  private kept: Buffer[] = [];
  private length = 0;

  constructor(stream: AsyncIterable<Buffer> | Iterable<Buffer>) {
    this.stream =
      Symbol.asyncIterator in stream ? stream[Symbol.asyncIterator]() : stream[Symbol.iterator]();
  }

  /** Undefined when there are fewer. */
  async take(length: number): Promise<Buffer | undefined> {
    while (this.length < length) {
      const next = await this.stream.next();
      if (next.done === true) return undefined;
      this.kept.push(next.value);
      this.length += next.value.length;
    }
    const all = this.kept.length === 1 ? this.kept[0]! : Buffer.concat(this.kept);
    this.kept = all.length > length ? [all.subarray(length)] : [];
    this.length = all.length - length;
    this.taken += length;
    return all.subarray(0, length);
  }
}
