/**
 * The transmission phase of one connection, pure: the caller pushes bytes, pulls effects one at a
 * time and reports finished requests; replies are encoded here so that the form of a reply stays
 * in one place.
 *
 * Pulling is what makes back-pressure exact: a single 64 KiB chunk can hold 2,340 read requests
 * of 32 MiB each, and a request is taken (and its write payload allocated) only when the caller
 * says that its bytes fit.
 *
 *   header ──► granting ──► payload ──► header     What needs memory waits in "granting" for its
 *     │  ▲         ▲                                 bytes. A refused request is answered after its
 *     ▼  │         │                                 payload has been skipped. DISC, a bad magic
 *     skip      contexts                             or an oversized payload: closed, for good.
 *
 * With extended headers the flag PAYLOAD_LEN says whether the length is a payload's, which only
 * writes have, and block status requests may have: it names contexts ("contexts").
 *
 * Invariants: a request is checked completely before it is handed out, so images see only valid
 * ranges; every request but DISC gets exactly one reply; a write payload is copied at most once,
 * and not at all when it arrived in one chunk that is this object's to keep.
 */
import { BufferPool } from "../cluster/base/buffer-pool.js";
import {
  ALLOCATION_ID,
  BASELINE,
  COMMAND,
  COMMAND_FLAG,
  EXTENDED_REQUEST_MAGIC,
  EXTENDED_REQUEST_SIZE,
  NBD_ERROR,
  REQUEST_MAGIC,
  REQUEST_SIZE,
  type ExportFacts,
  type RequestKey,
  type Session,
} from "./abi.js";
import {
  encodeDone,
  encodeError,
  encodeRead,
  encodeStatus,
  type ReadPart,
  type StatusExtent,
} from "./replies.js";

/**
 * Longest payload of a write, bytes: what the protocol asks every server to take. A longer one
 * closes the connection before anything is allocated.
 */
export const WRITE_BYTES_MAX = 32 * 1024 * 1024;

/** Extents in one answer to a block status request; the client asks again for what is beyond. */
export const STATUS_EXTENTS_MAX = 16_384;
/** Bytes that a cache request reads at a time, whatever its length. */
export const CACHE_PIECE_BYTES = 1024 * 1024;
/** Memory for one answer to a block status request, bytes. */
const STATUS_BYTES_MAX = 64 + 16 * STATUS_EXTENTS_MAX;
/** The payload that selects this server's one context: effect length u64, context id u32. */
const CONTEXTS_BYTES = 12;
/** Longest range in which zeros are written out, bytes: what compact headers can ask for. */
const PROVISION_BYTES_MAX = 2 ** 32;

export type CommandName = "read" | "write" | "flush" | "trim" | "zero" | "cache" | "status";

/** A valid request for the image. Offsets and lengths are bytes. */
export interface StartRequest extends RequestKey {
  readonly do: "start";
  readonly command: CommandName;
  readonly offset: number;
  readonly length: number;
  /** Memory that it holds until it is answered and its reply is sent, bytes. */
  readonly charge: number;
  /** Bits of COMMAND_FLAG, all of them legal for the command. */
  readonly flags: number;
  /** The payload of a write, empty otherwise. It may lie inside the chunk that was pushed. */
  readonly data: Buffer;
  /** What `data` lies in, if it is the pool's: for whoever used it last to give back. */
  readonly memory: Buffer | undefined;
  /** For whoever carries it out: when that began. */
  begunMs: number;
}

export type TransmissionEffect =
  | StartRequest
  /** A reply that needs no image. */
  | { readonly do: "send"; readonly bytes: Buffer }
  /** The next request needs more than the caller offered: pull again when `bytes` are free. */
  | { readonly do: "wait"; readonly bytes: number }
  /** The client said goodbye: finish what is in flight, then close. */
  | { readonly do: "disconnect" }
  /** The client broke the protocol: close without more replies. */
  | { readonly do: "close"; readonly fault: string };

/** Commands by wire number: their name and the flags they take. FUA is legal on all of them. */
const COMMANDS: readonly ({ name: CommandName; flags: number } | undefined)[] = (() => {
  const { FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO } = COMMAND_FLAG;
  const rows: ({ name: CommandName; flags: number } | undefined)[] = [];
  rows[COMMAND.READ] = { name: "read", flags: FUA | DF };
  rows[COMMAND.WRITE] = { name: "write", flags: FUA };
  rows[COMMAND.FLUSH] = { name: "flush", flags: FUA };
  rows[COMMAND.TRIM] = { name: "trim", flags: FUA };
  rows[COMMAND.CACHE] = { name: "cache", flags: FUA };
  rows[COMMAND.WRITE_ZEROES] = { name: "zero", flags: FUA | NO_HOLE | FAST_ZERO };
  rows[COMMAND.BLOCK_STATUS] = { name: "status", flags: FUA | REQ_ONE };
  return rows;
})();

const EMPTY = Buffer.alloc(0);
const U32 = 0x1_0000_0000;
const OK: Refusal = { error: NBD_ERROR.NONE, message: "" };

interface Refusal {
  readonly error: number;
  readonly message: string;
}
const invalid = (message: string): Refusal => ({ error: NBD_ERROR.EINVAL, message });

type Phase = "header" | "granting" | "payload" | "contexts" | "skip" | "closed";

export class Transmission {
  private phase: Phase = "header";
  /** Chunks pushed and not used up; `at` is the position in the first one. */
  private chunks: Buffer[] = [];
  private at = 0;
  /** The last chunk, if its memory is the caller's again once `keep` was called. */
  private lent: Buffer | undefined;
  private readonly headerSize: number;
  /** A header that is split over chunks. */
  private readonly header: Buffer;
  private headerFilled = 0;
  // The request under way, from its header to its payload's end.
  private flags = 0;
  private type = 0;
  private cookieHigh = 0;
  private cookieLow = 0;
  private offsetHigh = 0;
  private offsetLow = 0;
  private offset = 0;
  private length = 0;
  private lengthLow = 0;
  private payloadLength = 0;
  private charge = 0;
  private refusal: Refusal = OK;
  private payload: Buffer = EMPTY;
  private memory: Buffer | undefined;
  private payloadFilled = 0;
  private skipLeft = 0;
  /** What the client did wrong; not empty means that the header in hand ends the connection. */
  private fault = "";

  /** The server stops: requests are refused. */
  private stopping = false;

  /** `facts.size` is read for every request, so it may change. */
  constructor(
    private readonly facts: ExportFacts,
    private readonly session: Session = BASELINE,
    /** Where payloads are assembled. */
    private readonly pool = new BufferPool(0),
  ) {
    this.headerSize = session.extended ? EXTENDED_REQUEST_SIZE : REQUEST_SIZE;
    this.header = Buffer.alloc(this.headerSize);
  }

  /** True between requests: nothing of an unfinished one is held. */
  get idle(): boolean {
    return this.phase === "closed" || (this.phase === "header" && this.headerFilled === 0);
  }
  /** Bytes of the unfinished write payload, granted but not yet handed out. */
  get assembling(): number {
    return this.phase === "payload" ? this.payload.length : 0;
  }

  /** `lent`: until the next call of `keep`. */
  push(chunk: Buffer, lent = false): void {
    this.keep();
    if (this.phase === "closed" || chunk.length === 0) return;
    this.chunks.push(chunk);
    if (lent) this.lent = chunk;
  }
  /** Copies what has not been used up of a chunk that was lent. */
  keep(): void {
    const { lent, chunks } = this;
    this.lent = undefined;
    if (lent === undefined || chunks.at(-1) !== lent) return;
    chunks.pop();
    const rest = chunks.length === 0 ? lent.subarray(this.at) : lent;
    if (chunks.length === 0) this.at = 0;
    chunks.push(Buffer.from(rest));
  }

  /**
   * The next effect, or undefined when more bytes are needed. `budget`: how many bytes of data the
   * caller can take for one more request; the bytes of a granted write count from here on, even
   * while its payload is still arriving (`assembling`), those of a read from its "start".
   */
  next(budget: number): TransmissionEffect | undefined {
    for (;;) {
      switch (this.phase) {
        case "header": {
          if (!this.readHeader()) return undefined;
          if (this.fault !== "") return this.leave();
          const effect = this.onHeader();
          if (effect) return effect;
          break;
        }
        case "granting": {
          if (this.charge > budget) return { do: "wait", bytes: this.charge };
          if (this.type !== COMMAND.WRITE) return this.start(EMPTY);
          const whole = this.wholePayload();
          if (whole) return this.start(whole);
          this.memory = this.pool.take(this.length);
          this.payload = this.memory.subarray(0, this.length);
          this.payloadFilled = 0;
          this.phase = "payload";
          break;
        }
        case "payload": {
          if (!this.readPayload()) return undefined;
          const { payload, memory } = this;
          this.payload = EMPTY;
          this.memory = undefined;
          return this.start(payload, memory);
        }
        case "contexts": {
          if (!this.readPayload()) return undefined;
          const effect = this.onContexts();
          if (effect) return effect;
          break;
        }
        case "skip": {
          if (!this.skipPayload()) return undefined;
          return this.refuse();
        }
        case "closed":
          return undefined;
      }
    }
  }

  /** From now on every request is refused with ESHUTDOWN. */
  stop(): void {
    this.stopping = true;
  }

  /** The reply to anything but a read or a block status that has succeeded. */
  finish(request: StartRequest, out: Buffer[]): void {
    encodeDone(this.session, request, out);
  }
  /** The parts are the range that was asked for. */
  finishRead(request: StartRequest, parts: readonly ReadPart[], out: Buffer[]): void {
    const whole = (request.flags & COMMAND_FLAG.DF) !== 0;
    encodeRead(this.session, request, { offset: request.offset, parts, whole }, out);
  }
  finishStatus(request: StartRequest, extents: readonly StatusExtent[], out: Buffer[]): void {
    encodeStatus(this.session, request, extents, out);
  }
  /** `error` is one that operations fail with; the client is told one that suits the request. */
  fail(request: StartRequest, failure: Refusal, out: Buffer[]): void {
    const { message } = failure;
    encodeError(this.session, request, { error: suitable(request, failure.error), message }, out);
  }
  /** True when a read may be answered in part. */
  get partial(): boolean {
    return this.session.structured;
  }

  /** Drops everything held; later pushes are ignored. */
  close(): void {
    this.phase = "closed";
    this.chunks = [];
    this.lent = undefined;
    this.at = 0;
    this.payload = EMPTY;
    this.memory = undefined;
  }

  // ---- Header ----

  /** False: more bytes are needed. A header in one piece, which is the rule, is not copied. */
  private readHeader(): boolean {
    const first = this.chunks[0];
    if (!first) return false;
    const size = this.headerSize;
    if (this.headerFilled === 0 && first.length - this.at >= size) {
      this.decode(first, this.at);
      this.advance(first, size);
      return true;
    }
    while (this.headerFilled < size) {
      const chunk = this.chunks[0];
      if (!chunk) return false;
      const taken = chunk.copy(this.header, this.headerFilled, this.at);
      this.headerFilled += taken;
      this.advance(chunk, taken);
    }
    this.headerFilled = 0;
    this.decode(this.header, 0);
    return true;
  }

  private decode(bytes: Buffer, at: number): void {
    const { extended } = this.session;
    if (bytes.readUInt32BE(at) !== (extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC)) {
      this.fault = "bad request magic";
      return;
    }
    this.flags = bytes.readUInt16BE(at + 4);
    this.type = bytes.readUInt16BE(at + 6);
    this.cookieHigh = bytes.readUInt32BE(at + 8);
    this.cookieLow = bytes.readUInt32BE(at + 12);
    this.offsetHigh = bytes.readUInt32BE(at + 16);
    this.offsetLow = bytes.readUInt32BE(at + 20);
    // Inexact above 2^53 unless it is aligned to a block, which `checkRange` makes sure of.
    this.offset = this.offsetHigh * U32 + this.offsetLow;
    this.length = extended ? u64(bytes, at + 24) : bytes.readUInt32BE(at + 24);
    this.lengthLow = extended ? bytes.readUInt32BE(at + 28) : this.length;
    const carries = extended
      ? (this.flags & COMMAND_FLAG.PAYLOAD_LEN) !== 0
      : this.type === COMMAND.WRITE;
    this.payloadLength = carries ? this.length : 0;
    if (this.payloadLength > WRITE_BYTES_MAX) {
      this.fault = `payload of ${this.payloadLength} bytes`;
    }
  }

  private leave(): TransmissionEffect {
    this.close();
    return { do: "close", fault: this.fault };
  }

  private onHeader(): TransmissionEffect | undefined {
    if (this.type === COMMAND.DISC) {
      this.close();
      return { do: "disconnect" };
    }
    this.refusal = this.checkForm();
    if (this.refusal === OK && this.type === COMMAND.BLOCK_STATUS && this.payloadLength > 0) {
      this.payload = Buffer.alloc(CONTEXTS_BYTES);
      this.payloadFilled = 0;
      this.phase = "contexts";
      return undefined;
    }
    if (this.refusal === OK) this.refusal = this.checkRange();
    if (this.refusal !== OK) {
      if (this.payloadLength === 0) return this.refuse();
      this.skipLeft = this.payloadLength;
      this.phase = "skip";
      return undefined;
    }
    return this.grant();
  }

  /** A block status request that names contexts: it must name the one that there is. */
  private onContexts(): TransmissionEffect | undefined {
    const payload = this.payload;
    this.payload = EMPTY;
    this.length = u64(payload, 0);
    this.lengthLow = payload.readUInt32BE(4);
    const named = payload.readUInt32BE(8) === ALLOCATION_ID;
    this.refusal = named ? this.checkRange() : invalid("unknown metadata context");
    return this.refusal === OK ? this.grant() : this.refuse();
  }

  /** A valid request: it starts at once, or waits for memory. */
  private grant(): TransmissionEffect | undefined {
    if (this.length === 0 && this.type !== COMMAND.FLUSH) return this.refuse(); // Done: nothing.
    this.charge = this.memoryNeeded();
    if (this.charge === 0) return this.start(EMPTY);
    this.phase = "granting";
    return undefined;
  }

  private memoryNeeded(): number {
    switch (this.type) {
      case COMMAND.READ:
      case COMMAND.WRITE:
        return this.length;
      case COMMAND.CACHE:
        return Math.min(this.length, CACHE_PIECE_BYTES);
      case COMMAND.BLOCK_STATUS:
        return STATUS_BYTES_MAX;
      default:
        return 0;
    }
  }

  /** What is wrong with the request whatever its range; the order is the order of blame. */
  private checkForm(): Refusal {
    if (this.stopping) return { error: NBD_ERROR.ESHUTDOWN, message: "the server is stopping" };
    const command = COMMANDS[this.type];
    if (!command) return invalid(`unknown command ${this.type}`);
    const { extended, structured, allocation } = this.session;
    const status = command.name === "status";
    let legal = command.flags;
    if (!structured) legal &= ~COMMAND_FLAG.DF;
    if (extended && (status || command.name === "write")) legal |= COMMAND_FLAG.PAYLOAD_LEN;
    if ((this.flags & ~legal) !== 0) return invalid(`flags ${this.flags} of command ${this.type}`);
    if (extended && command.name === "write" && (this.flags & COMMAND_FLAG.PAYLOAD_LEN) === 0) {
      return invalid("a write without payload");
    }
    if (status) {
      if (!allocation) return invalid("no metadata context was selected");
      const selects = (this.flags & COMMAND_FLAG.PAYLOAD_LEN) !== 0;
      if (selects && this.payloadLength !== CONTEXTS_BYTES) {
        return invalid(`a selection of contexts of ${this.payloadLength} bytes`);
      }
    }
    return OK;
  }

  private checkRange(): Refusal {
    const { name } = COMMANDS[this.type]!;
    const { offset, length } = this;
    if (name === "flush") {
      return offset === 0 && length === 0 ? OK : invalid("a flush of a range");
    }
    const { size, readOnly, blockSize } = this.facts;
    const changes = name === "write" || name === "zero" || name === "trim";
    if (changes && readOnly) return { error: NBD_ERROR.EPERM, message: "the export is read-only" };
    if (offset + length > size) {
      const error = name === "write" || name === "zero" ? NBD_ERROR.ENOSPC : NBD_ERROR.EINVAL;
      return { error, message: `beyond the end of the export, ${size} bytes` };
    }
    const { minimum } = blockSize;
    if (this.offsetLow % minimum !== 0 || this.lengthLow % minimum !== 0) {
      return invalid(`not aligned to blocks of ${minimum} bytes`);
    }
    if (name === "status" && length === 0) return invalid("the status of nothing");
    const longest = Math.min(blockSize.maximum, WRITE_BYTES_MAX);
    if ((name === "read" || name === "write") && length > longest) {
      // EOVERFLOW is for clients that know chunks; others expect EINVAL.
      const overflow = name === "read" && this.session.structured;
      const error = overflow ? NBD_ERROR.EOVERFLOW : NBD_ERROR.EINVAL;
      return { error, message: `longer than ${longest} bytes` };
    }
    if (name === "zero" && (this.flags & COMMAND_FLAG.NO_HOLE) !== 0) {
      // Zeros to be written out: never fast.
      if ((this.flags & COMMAND_FLAG.FAST_ZERO) !== 0) {
        return { error: NBD_ERROR.ENOTSUP, message: "zeros that keep their space are not fast" };
      }
      if (length > PROVISION_BYTES_MAX) {
        return { error: NBD_ERROR.EOVERFLOW, message: `longer than ${PROVISION_BYTES_MAX} bytes` };
      }
    }
    return OK;
  }

  /** Answers the request in hand: `refusal` is OK when there is nothing to do. */
  private refuse(): TransmissionEffect {
    this.phase = "header";
    const out: Buffer[] = [];
    if (this.refusal !== OK) encodeError(this.session, this.key(), this.refusal, out);
    else if (this.type !== COMMAND.READ) encodeDone(this.session, this.key(), out);
    else encodeRead(this.session, this.key(), { offset: this.offset, parts: [], whole: true }, out);
    return { do: "send", bytes: out[0]! };
  }

  private key(): RequestKey {
    const { cookieHigh, cookieLow, offsetHigh, offsetLow } = this;
    return { cookieHigh, cookieLow, offsetHigh, offsetLow };
  }

  private start(data: Buffer, memory?: Buffer): StartRequest {
    this.phase = "header";
    return {
      do: "start",
      command: COMMANDS[this.type]!.name,
      cookieHigh: this.cookieHigh,
      cookieLow: this.cookieLow,
      offsetHigh: this.offsetHigh,
      offsetLow: this.offsetLow,
      offset: this.offset,
      length: this.length,
      charge: this.charge,
      flags: this.flags,
      data,
      memory,
      begunMs: 0,
    };
  }

  // ---- Payload ----

  /** The payload as part of the chunk that holds all of it, and is this object's to keep. */
  private wholePayload(): Buffer | undefined {
    const first = this.chunks[0];
    if (!first || first === this.lent || first.length - this.at < this.length) return undefined;
    const data = first.subarray(this.at, this.at + this.length);
    this.advance(first, this.length);
    return data;
  }

  private readPayload(): boolean {
    while (this.payloadFilled < this.payload.length) {
      const chunk = this.chunks[0];
      if (!chunk) return false;
      const taken = chunk.copy(this.payload, this.payloadFilled, this.at);
      this.payloadFilled += taken;
      this.advance(chunk, taken);
    }
    return true;
  }

  private skipPayload(): boolean {
    while (this.skipLeft > 0) {
      const chunk = this.chunks[0];
      if (!chunk) return false;
      const taken = Math.min(chunk.length - this.at, this.skipLeft);
      this.skipLeft -= taken;
      this.advance(chunk, taken);
    }
    return true;
  }

  private advance(chunk: Buffer, count: number): void {
    this.at += count;
    if (this.at < chunk.length) return;
    this.chunks.shift();
    this.at = 0;
  }
}

function u64(bytes: Buffer, at: number): number {
  return bytes.readUInt32BE(at) * U32 + bytes.readUInt32BE(at + 4);
}

/** Some errors are only for requests that the protocol names: elsewhere clients may not know. */
function suitable(request: StartRequest, error: number): number {
  switch (error) {
    case NBD_ERROR.ENOTSUP:
      return (request.flags & COMMAND_FLAG.FAST_ZERO) !== 0 ? error : NBD_ERROR.EINVAL;
    case NBD_ERROR.EOVERFLOW:
      return request.command === "write" || request.command === "flush" ? NBD_ERROR.EINVAL : error;
    case NBD_ERROR.EPERM:
    case NBD_ERROR.EINVAL:
    case NBD_ERROR.ENOSPC:
    case NBD_ERROR.ESHUTDOWN:
      return error;
    default:
      return NBD_ERROR.EIO;
  }
}
