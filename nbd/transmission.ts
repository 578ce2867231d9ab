/**
 * The transmission phase of one connection, pure: the caller pushes bytes, pulls effects one at a
 * time and reports finished requests; replies are encoded here so that the form of a reply stays
 * in one place.
 *
 * Pulling is what makes back-pressure exact: a single 64 KiB chunk can hold 2,340 read requests
 * of 32 MiB each, and a request is taken (and its write payload allocated) only when the caller
 * says that its bytes fit.
 *
 *   header ──► granting ──► payload ──► header     A read or write waits in "granting" for its
 *     │  ▲                                           bytes. A refused write is answered after its
 *     ▼  │                                           payload has been skipped. DISC, a bad magic
 *     skip                                           or an oversized write: closed, for good.
 *
 * Invariants: a request is checked completely before it is handed out, so images see only valid
 * ranges; every request but DISC gets exactly one reply; a write payload is copied at most once,
 * and not at all when it arrived in one chunk.
 */
import {
  COMMAND,
  COMMAND_FLAG,
  encodeSimpleReply,
  NBD_ERROR,
  REQUEST_MAGIC,
  REQUEST_SIZE,
  type Cookie,
  type ExportFacts,
} from "./abi.js";

/**
 * Longest payload of a write, bytes: what the protocol asks every server to take. A longer one
 * closes the connection before anything is allocated.
 */
export const WRITE_BYTES_MAX = 32 * 1024 * 1024;

export type CommandName = "read" | "write" | "flush" | "trim" | "zero";

/** A valid request for the image. Offsets and lengths are bytes. */
export interface StartRequest extends Cookie {
  readonly do: "start";
  readonly command: CommandName;
  readonly offset: number;
  readonly length: number;
  /** The answer waits until what was written is durable. */
  readonly fua: boolean;
  /** Zeroing must not give space back. */
  readonly noHole: boolean;
  /** The payload of a write, empty otherwise. It may lie inside the chunk that was pushed. */
  readonly data: Buffer;
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
  const rows: ({ name: CommandName; flags: number } | undefined)[] = [];
  rows[COMMAND.READ] = { name: "read", flags: COMMAND_FLAG.FUA };
  rows[COMMAND.WRITE] = { name: "write", flags: COMMAND_FLAG.FUA };
  rows[COMMAND.FLUSH] = { name: "flush", flags: COMMAND_FLAG.FUA };
  rows[COMMAND.TRIM] = { name: "trim", flags: COMMAND_FLAG.FUA };
  rows[COMMAND.WRITE_ZEROES] = {
    name: "zero",
    flags: COMMAND_FLAG.FUA | COMMAND_FLAG.NO_HOLE,
  };
  return rows;
})();

const EMPTY = Buffer.alloc(0);
const U32 = 0x1_0000_0000;

type Phase = "header" | "granting" | "payload" | "skip" | "closed";

export class Transmission {
  private phase: Phase = "header";
  /** Chunks pushed and not used up; `at` is the position in the first one. */
  private chunks: Buffer[] = [];
  private at = 0;
  /** A header that is split over chunks. */
  private readonly header = Buffer.alloc(REQUEST_SIZE);
  private headerFilled = 0;
  // The request under way, from its header to its payload's end.
  private flags = 0;
  private type = 0;
  private cookieHigh = 0;
  private cookieLow = 0;
  private offset = 0;
  private length = 0;
  private error: number = NBD_ERROR.NONE;
  private payload: Buffer = EMPTY;
  private payloadFilled = 0;
  private skipLeft = 0;
  /** What the client did wrong; not empty means that the header in hand ends the connection. */
  private fault = "";

  /** `facts.size` is read for every request, so it may change. */
  constructor(private readonly facts: ExportFacts) {}

  /** True between requests: nothing of an unfinished one is held. */
  get idle(): boolean {
    return this.phase === "closed" || (this.phase === "header" && this.headerFilled === 0);
  }
  /** Bytes of the unfinished write payload, granted but not yet handed out. */
  get assembling(): number {
    return this.phase === "payload" ? this.payload.length : 0;
  }

  push(chunk: Buffer): void {
    if (this.phase !== "closed" && chunk.length > 0) this.chunks.push(chunk);
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
          if (this.length > budget) return { do: "wait", bytes: this.length };
          if (this.type === COMMAND.READ) return this.start(EMPTY);
          const whole = this.wholePayload();
          if (whole) return this.start(whole);
          this.payload = Buffer.allocUnsafeSlow(this.length);
          this.payloadFilled = 0;
          this.phase = "payload";
          break;
        }
        case "payload": {
          if (!this.readPayload()) return undefined;
          const data = this.payload;
          this.payload = EMPTY;
          return this.start(data);
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

  /** Appends the reply to a finished request: `error` is an NBD error value, 0 for success. */
  finish(request: Cookie, error: number, pieces: readonly Buffer[], out: Buffer[]): void {
    out.push(encodeSimpleReply(request, error));
    if (error !== NBD_ERROR.NONE) return;
    for (const piece of pieces) out.push(piece);
  }

  /** Drops everything held; later pushes are ignored. */
  close(): void {
    this.phase = "closed";
    this.chunks = [];
    this.at = 0;
    this.payload = EMPTY;
  }

  // ---- Header ----

  /** False: more bytes are needed. A header in one piece, which is the rule, is not copied. */
  private readHeader(): boolean {
    const first = this.chunks[0];
    if (!first) return false;
    if (this.headerFilled === 0 && first.length - this.at >= REQUEST_SIZE) {
      this.decode(first, this.at);
      this.advance(first, REQUEST_SIZE);
      return true;
    }
    while (this.headerFilled < REQUEST_SIZE) {
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
    if (bytes.readUInt32BE(at) !== REQUEST_MAGIC) {
      this.fault = "bad request magic";
      return;
    }
    this.flags = bytes.readUInt16BE(at + 4);
    this.type = bytes.readUInt16BE(at + 6);
    this.cookieHigh = bytes.readUInt32BE(at + 8);
    this.cookieLow = bytes.readUInt32BE(at + 12);
    // Inexact above 2^53, where every range is outside the export anyway.
    this.offset = bytes.readUInt32BE(at + 16) * U32 + bytes.readUInt32BE(at + 20);
    this.length = bytes.readUInt32BE(at + 24);
    if (this.type === COMMAND.WRITE && this.length > WRITE_BYTES_MAX) {
      this.fault = `write of ${this.length} bytes`;
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
    this.error = this.check();
    if (this.error !== NBD_ERROR.NONE) {
      if (this.type !== COMMAND.WRITE) return this.refuse();
      this.skipLeft = this.length;
      this.phase = "skip";
      return undefined;
    }
    if (this.type === COMMAND.FLUSH) return this.start(EMPTY);
    if (this.length === 0) return this.refuse(); // Nothing to do is done: error 0.
    if (this.type === COMMAND.READ || this.type === COMMAND.WRITE) {
      this.phase = "granting";
      return undefined;
    }
    return this.start(EMPTY);
  }

  /** The error value of the request in hand; the order is the order of blame. */
  private check(): number {
    const command = COMMANDS[this.type];
    if (!command || (this.flags & ~command.flags) !== 0) return NBD_ERROR.EINVAL;
    if (command.name === "flush") {
      return this.offset === 0 && this.length === 0 ? NBD_ERROR.NONE : NBD_ERROR.EINVAL;
    }
    const reading = command.name === "read";
    const { size, readOnly, blockSize } = this.facts;
    if (!reading && readOnly) return NBD_ERROR.EPERM;
    if (this.offset + this.length > size) {
      return reading || command.name === "trim" ? NBD_ERROR.EINVAL : NBD_ERROR.ENOSPC;
    }
    const { minimum } = blockSize;
    if (this.offset % minimum !== 0 || this.length % minimum !== 0) return NBD_ERROR.EINVAL;
    const carriesData = reading || command.name === "write";
    if (carriesData && this.length > Math.min(blockSize.maximum, WRITE_BYTES_MAX)) {
      return NBD_ERROR.EINVAL;
    }
    return NBD_ERROR.NONE;
  }

  private refuse(): TransmissionEffect {
    this.phase = "header";
    const { cookieHigh, cookieLow } = this;
    return { do: "send", bytes: encodeSimpleReply({ cookieHigh, cookieLow }, this.error) };
  }

  private start(data: Buffer): StartRequest {
    this.phase = "header";
    return {
      do: "start",
      command: COMMANDS[this.type]!.name,
      cookieHigh: this.cookieHigh,
      cookieLow: this.cookieLow,
      offset: this.offset,
      length: this.length,
      fua: (this.flags & COMMAND_FLAG.FUA) !== 0,
      noHole: (this.flags & COMMAND_FLAG.NO_HOLE) !== 0,
      data,
    };
  }

  // ---- Payload ----

  /** The payload as part of the chunk that holds all of it. */
  private wholePayload(): Buffer | undefined {
    const first = this.chunks[0];
    if (!first || first.length - this.at < this.length) return undefined;
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
