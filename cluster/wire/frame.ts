/**
 * The frame (design §10): 40 bytes of header, a body (a declared message), raw data.
 * Pure: bytes in, frames out. Every length is checked against a limit before anything is allocated.
 *
 * The payload checksum is crc32 of the data followed by the body, so that it can be derived from
 * the data's block checksums, which both sides need anyway.
 */
import type { BufferPool } from "../base/buffer-pool.js";
import { blockChecksums, crc32, crc32OfBlocks } from "../base/checksum.js";
import { DssError } from "../base/errors.js";

export const FRAME_MAGIC = 0x44535321; // "DSS!"
export const FRAME_VERSION = 1;
export const HEADER_SIZE = 40;
/** Where the header's own checksum is; it covers what precedes it. */
const HEADER_CRC_AT = 32;

export interface FrameLimits {
  bodyBytesMax: number;
  dataBytesMax: number;
}
/** A body is a control message; data is at most one object and its slack. */
export const FRAME_LIMITS: FrameLimits = {
  bodyBytesMax: 4 * 1024 * 1024,
  dataBytesMax: 8 * 1024 * 1024,
};

export interface FrameHeader {
  type: number;
  sequence: number;
  sender: number;
  receiver: number;
  epoch: number;
}
/** What arrived. `sums` are computed when asked for, unless the parser needed them itself. */
export class Frame implements FrameHeader {
  constructor(
    readonly type: number,
    readonly sequence: number,
    readonly sender: number,
    readonly receiver: number,
    readonly epoch: number,
    readonly body: Buffer,
    readonly data: Buffer,
    private known: Uint32Array | undefined,
    /** The pool's buffer that holds body and data, if it is one. */
    private lent: Buffer | undefined,
  ) {}
  /** Body and data are not looked at any more. */
  recycle(pool: BufferPool): void {
    if (this.lent !== undefined) pool.give(this.lent);
    this.lent = undefined;
  }
  /** crc32 of each 4 KiB block of `data`. */
  get sums(): Uint32Array {
    this.known ??= blockChecksums(this.data);
    return this.known;
  }
}

const NO_DATA = Buffer.alloc(0);
const NO_SUMS = new Uint32Array(0);
/** Several times faster than block by block, where nobody asks for the blocks' checksums. */
const wantNoSums = (): boolean => false;

/** The chunks of a frame, ready to be sent. `sums` are the block checksums of all data together. */
export function encodeFrame(
  header: FrameHeader,
  body: Buffer,
  data: readonly Buffer[] = [],
  sums?: ArrayLike<number>,
): Buffer[] {
  let dataLength = 0;
  for (const piece of data) dataLength += piece.length;
  let crc = 0;
  if (dataLength > 0) {
    if (sums !== undefined) crc = crc32OfBlocks(sums, dataLength);
    else for (const piece of data) crc = crc32(piece, crc);
  }
  const head = Buffer.allocUnsafe(HEADER_SIZE + body.length);
  // Through a view: a program that has just begun is quicker with it than with Buffer's methods.
  const view = new DataView(head.buffer, head.byteOffset, HEADER_SIZE);
  view.setUint32(0, FRAME_MAGIC, true);
  view.setUint16(4, FRAME_VERSION, true);
  view.setUint16(6, header.type, true);
  view.setUint32(8, header.sequence, true);
  view.setUint32(12, header.sender, true);
  view.setUint32(16, header.receiver, true);
  view.setUint32(20, header.epoch, true);
  view.setUint32(24, body.length, true);
  view.setUint32(28, dataLength, true);
  view.setUint32(HEADER_CRC_AT, crc32(head.subarray(0, HEADER_CRC_AT)), true);
  view.setUint32(36, crc32(body, crc), true);
  head.set(body, HEADER_SIZE);
  return dataLength === 0 ? [head] : [head, ...data];
}

/**
 * Cuts a byte stream into frames. After it has thrown (Malformed, TooLarge, Corrupt) the stream is
 * unusable.
 */
export class FrameParser {
  private readonly header = Buffer.alloc(HEADER_SIZE);
  private readonly view = new DataView(this.header.buffer, this.header.byteOffset, HEADER_SIZE);
  private readonly headerSummed = this.header.subarray(0, HEADER_CRC_AT);
  private headerFilled = 0;
  /** Body and data of the frame under way, when it arrives in pieces. */
  private payload: Buffer | undefined;
  private payloadFilled = 0;
  private payloadLength = 0;
  private bodyLength = 0;
  private dataLength = 0;

  /**
   * `wantsSums(type)`: whoever handles such frames will ask for the checksums of the data's blocks.
   * `pool`: where memory for large frames comes from; who is done with one may give it back.
   */
  constructor(
    private readonly onFrame: (frame: Frame) => void,
    private readonly limits: FrameLimits = FRAME_LIMITS,
    private readonly wantsSums: (type: number) => boolean = wantNoSums,
    private readonly pool?: BufferPool,
  ) {}

  /** `isLent`: the chunk's memory is used again when this returns, so frames get copies. */
  push(chunk: Buffer, isLent = false): void {
    let at = 0;
    while (at < chunk.length) {
      if (this.payload !== undefined) {
        const take = Math.min(this.payloadLength - this.payloadFilled, chunk.length - at);
        chunk.copy(this.payload, this.payloadFilled, at, at + take);
        this.payloadFilled += take;
        at += take;
        if (this.payloadFilled === this.payloadLength) {
          const payload = this.payload;
          this.payload = undefined;
          this.finish(payload, this.pool === undefined ? undefined : payload);
        }
        continue;
      }
      if (this.headerFilled < HEADER_SIZE) {
        const take = Math.min(HEADER_SIZE - this.headerFilled, chunk.length - at);
        // So few bytes are quicker copied one by one than through a view of them.
        for (let i = 0; i < take; i++) this.header[this.headerFilled++] = chunk[at++]!;
        if (this.headerFilled < HEADER_SIZE) return;
        this.checkHeader();
      }
      const length = this.bodyLength + this.dataLength;
      if (chunk.length - at >= length) {
        const view = chunk.subarray(at, at + length);
        at += length;
        if (!isLent) this.finish(view);
        else if (this.pool === undefined) this.finish(Buffer.from(view));
        else {
          const copy = this.pool.copyOf(view);
          this.finish(copy, copy);
        }
      } else {
        this.payload = this.pool?.take(length) ?? Buffer.allocUnsafeSlow(length);
        this.payloadLength = length;
        this.payloadFilled = 0;
      }
    }
  }

  private checkHeader(): void {
    const h = this.view;
    if (h.getUint32(0, true) !== FRAME_MAGIC) {
      const { header } = this;
      throw new DssError(
        "Malformed",
        `not a dss frame: starts with 0x${header.toString("hex", 0, 4)}`,
      );
    }
    if (h.getUint32(HEADER_CRC_AT, true) !== crc32(this.headerSummed)) {
      throw new DssError("Corrupt", "frame header fails its checksum");
    }
    const version = h.getUint16(4, true);
    if (version !== FRAME_VERSION) {
      throw new DssError("IncompatibleVersion", `frame version ${version}, not ${FRAME_VERSION}`);
    }
    this.bodyLength = h.getUint32(24, true);
    this.dataLength = h.getUint32(28, true);
    if (this.bodyLength > this.limits.bodyBytesMax || this.dataLength > this.limits.dataBytesMax) {
      throw new DssError(
        "TooLarge",
        `frame of ${this.bodyLength} + ${this.dataLength} bytes is over the limit`,
      );
    }
  }

  private finish(payload: Buffer, lent?: Buffer): void {
    this.headerFilled = 0;
    const h = this.view;
    const type = h.getUint16(6, true);
    const body = payload.subarray(0, this.bodyLength);
    let data: Buffer = NO_DATA;
    let sums: Uint32Array | undefined = NO_SUMS;
    let dataCrc = 0;
    if (this.dataLength > 0) {
      data = payload.subarray(this.bodyLength, this.bodyLength + this.dataLength);
      sums = this.wantsSums(type) ? blockChecksums(data) : undefined;
      dataCrc = sums === undefined ? crc32(data) : crc32OfBlocks(sums, data.length);
    }
    if (crc32(body, dataCrc) !== h.getUint32(36, true)) {
      throw new DssError("Corrupt", "frame payload fails its checksum");
    }
    this.onFrame(
      new Frame(
        type,
        h.getUint32(8, true),
        h.getUint32(12, true),
        h.getUint32(16, true),
        h.getUint32(20, true),
        body,
        data,
        sums,
        lent,
      ),
    );
  }
}
