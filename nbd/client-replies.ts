/**
 * Requests and replies of the transmission phase from the client's side, with extended headers.
 * Pure: bytes in, chunks of replies out. Data is handed out as it arrived, uncopied, in pieces of
 * what was pushed.
 *
 * Invariant: every length is checked before anything is kept for it; what breaks the protocol is
 * thrown as Malformed and the decoder is of no use afterwards.
 */
import { DssError } from "../cluster/base/errors.js";
import {
  ALLOCATION_ID,
  CHUNK,
  CHUNK_FLAG_DONE,
  COMMAND_FLAG,
  EXTENDED_REPLY_MAGIC,
  EXTENDED_REQUEST_MAGIC,
  EXTENDED_REQUEST_SIZE,
  STATE,
} from "./abi.js";
import type { ImageExtent } from "./block-image.js";
import { STATUS_EXTENTS_MAX, WRITE_BYTES_MAX } from "./transmission.js";

const HEADER_SIZE = 32;
/** Everything but data is this short at most. */
const SMALL_BYTES_MAX = 8 + 16 * STATUS_EXTENTS_MAX;
const U32 = 0x1_0000_0000;

export interface ClientRequest {
  readonly command: number;
  readonly flags: number;
  /** 53 bits. */
  readonly cookie: number;
  readonly offset: number;
  readonly length: number;
  /** The payload of a write. */
  readonly data?: Buffer;
}

export function encodeRequest(request: ClientRequest, out: Buffer[]): void {
  const { command, flags, cookie, offset, length, data } = request;
  const head = Buffer.allocUnsafe(EXTENDED_REQUEST_SIZE);
  head.writeUInt32BE(EXTENDED_REQUEST_MAGIC, 0);
  head.writeUInt16BE(data === undefined ? flags : flags | COMMAND_FLAG.PAYLOAD_LEN, 4);
  head.writeUInt16BE(command, 6);
  putU64(head, cookie, 8);
  putU64(head, offset, 16);
  putU64(head, length, 24);
  out.push(head);
  if (data !== undefined) out.push(data);
}

export type ReplyBody =
  | { readonly is: "done" }
  /** Bytes of a read; `offset` is the volume's. */
  | {
      readonly is: "data";
      readonly offset: number;
      readonly length: number;
      readonly pieces: readonly Buffer[];
    }
  | { readonly is: "hole"; readonly offset: number; readonly length: number }
  | { readonly is: "status"; readonly extents: readonly ImageExtent[] }
  /** Without `offset` the whole request failed. */
  | {
      readonly is: "error";
      readonly error: number;
      readonly message: string;
      readonly offset?: number;
    };

export interface ReplyChunk {
  readonly cookie: number;
  /** Nothing follows for this request. */
  readonly last: boolean;
  readonly body: ReplyBody;
}

export class ReplyDecoder {
  private chunks: Buffer[] = [];
  private at = 0;
  private available = 0;
  private type = 0;
  private last = false;
  private cookie = 0;
  /** Of the payload whose header was read; undefined: a header is next. */
  private payload: number | undefined;

  push(chunk: Buffer): void {
    if (chunk.length === 0) return;
    this.chunks.push(chunk);
    this.available += chunk.length;
  }

  /** The next chunk of a reply, or undefined when more bytes are needed. */
  next(): ReplyChunk | undefined {
    if (this.payload === undefined) {
      if (this.available < HEADER_SIZE) return undefined;
      this.readHeader(this.bytes(HEADER_SIZE));
    }
    const length = this.payload!;
    if (this.available < length) return undefined;
    this.payload = undefined;
    return { cookie: this.cookie, last: this.last, body: this.body(length) };
  }

  private readHeader(head: Buffer): void {
    if (head.readUInt32BE(0) !== EXTENDED_REPLY_MAGIC) throw malformed("bad reply magic");
    this.last = (head.readUInt16BE(4) & CHUNK_FLAG_DONE) !== 0;
    this.type = head.readUInt16BE(6);
    this.cookie = getU64(head, 8);
    const length = getU64(head, 24);
    const max = this.type === CHUNK.OFFSET_DATA ? 8 + WRITE_BYTES_MAX : SMALL_BYTES_MAX;
    if (length > max) throw malformed(`a reply of type ${this.type} with ${length} bytes`);
    this.payload = length;
  }

  private body(length: number): ReplyBody {
    switch (this.type) {
      case CHUNK.NONE:
        if (length !== 0) throw malformed("bytes in an empty chunk");
        return { is: "done" };
      case CHUNK.OFFSET_DATA: {
        if (length <= 8) throw malformed("a chunk of data without data");
        const offset = getU64(this.bytes(8), 0);
        return { is: "data", offset, length: length - 8, pieces: this.pieces(length - 8) };
      }
      case CHUNK.OFFSET_HOLE: {
        if (length !== 12) throw malformed("a hole of another form");
        const data = this.bytes(12);
        return { is: "hole", offset: getU64(data, 0), length: data.readUInt32BE(8) };
      }
      case CHUNK.BLOCK_STATUS_EXT:
        return { is: "status", extents: extentsIn(this.bytes(length)) };
      case CHUNK.ERROR:
      case CHUNK.ERROR_OFFSET:
        return this.error(this.bytes(length));
      default:
        throw malformed(`a reply of type ${this.type}`);
    }
  }

  private error(data: Buffer): ReplyBody {
    const textEnd = data.length < 6 ? Infinity : 6 + data.readUInt16BE(4);
    const withOffset = this.type === CHUNK.ERROR_OFFSET;
    if (data.length !== textEnd + (withOffset ? 8 : 0)) throw malformed("an error of another form");
    const error = data.readUInt32BE(0);
    const message = data.toString("utf8", 6, textEnd);
    if (!withOffset) return { is: "error", error, message };
    return { is: "error", error, message, offset: getU64(data, textEnd) };
  }

  /** So many bytes in one piece; copied only when they are split. */
  private bytes(length: number): Buffer {
    const pieces = this.pieces(length);
    return pieces.length === 1 ? pieces[0]! : Buffer.concat(pieces);
  }

  private pieces(length: number): Buffer[] {
    const pieces: Buffer[] = [];
    let left = length;
    while (left > 0) {
      const chunk = this.chunks[0]!;
      const end = Math.min(chunk.length, this.at + left);
      pieces.push(chunk.subarray(this.at, end));
      left -= end - this.at;
      this.at = end;
      if (end < chunk.length) continue;
      this.chunks.shift();
      this.at = 0;
    }
    this.available -= length;
    return pieces;
  }
}

function extentsIn(data: Buffer): ImageExtent[] {
  const count = data.length < 8 ? 0 : data.readUInt32BE(4);
  if (count === 0 || data.length !== 8 + 16 * count) throw malformed("a status of another form");
  if (data.readUInt32BE(0) !== ALLOCATION_ID) throw malformed("the status of another context");
  const extents: ImageExtent[] = [];
  for (let at = 8; at < data.length; at += 16) {
    const length = getU64(data, at);
    const flags = getU64(data, at + 8);
    if (length === 0) throw malformed("an empty extent");
    extents.push({ length, hole: (flags & STATE.HOLE) !== 0, zero: (flags & STATE.ZERO) !== 0 });
  }
  return extents;
}

function putU64(out: Buffer, value: number, at: number): void {
  out.writeUInt32BE(Math.floor(value / U32), at);
  out.writeUInt32BE(value % U32, at + 4);
}

/** Above 2^53 there are whole blocks only, which a number tells exactly. */
function getU64(data: Buffer, at: number): number {
  const low = data.readUInt32BE(at + 4);
  const value = data.readUInt32BE(at) * U32 + low;
  if (Number.isSafeInteger(value) || low % 4096 === 0) return value;
  throw malformed(`${value} is a number beyond 2^53`);
}

const malformed = (what: string): DssError => new DssError("Malformed", `NBD server: ${what}`);
