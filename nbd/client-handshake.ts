/**
 * Negotiation from the client's side, pure: the caller pushes bytes and gets what to send, then the
 * facts of the export. Asks for extended headers and the allocation context and takes nothing less,
 * because its only servers are those of this program (see relay-image.ts).
 *
 *   greeting ──► extended ──► context ──► go ──► ready       (any ──► failed, by a thrown DssError)
 */
import { DssError } from "../cluster/base/errors.js";
import {
  ALLOCATION_CONTEXT,
  ALLOCATION_ID,
  CLIENT_FLAG,
  INFO,
  INIT_MAGIC,
  OPTION,
  OPTION_MAGIC,
  OPTION_REPLY_HEADER_SIZE,
  OPTION_REPLY_MAGIC,
  REPLY,
  TRANSMISSION_FLAG,
  type ExportFacts,
} from "./abi.js";

const GREETING_SIZE = 18;
/** An option's answer is a name or a message of at most 4,096 bytes and a few numbers. */
const REPLY_BYTES_MAX = 8_192;
const U32 = 0x1_0000_0000;

type Step = "greeting" | "extended" | "context" | "go" | "ready";

export class ClientHandshake {
  private step: Step = "greeting";
  private held: Buffer = Buffer.alloc(0);
  private size: number | undefined;
  private readOnly = false;
  private description = "";
  private blockSize = { minimum: 1, preferred: 4096, maximum: 32 * 1024 * 1024 };
  private contextId: number | undefined;

  constructor(private readonly name: string) {}

  /**
   * What to send, and the facts when the export is ready, with the bytes that came after.
   * Errors: Malformed (not our server), IncompatibleVersion, or the server's refusal.
   */
  push(chunk: Buffer): { send: Buffer[]; ready?: { facts: ExportFacts; rest: Buffer } } {
    this.held = this.held.length === 0 ? Buffer.from(chunk) : Buffer.concat([this.held, chunk]);
    const send: Buffer[] = [];
    for (;;) {
      const progressed = this.step === "greeting" ? this.onGreeting(send) : this.onReply(send);
      if (this.step === "ready") return { send, ready: { facts: this.facts(), rest: this.held } };
      if (!progressed) return { send };
    }
  }

  private take(length: number): Buffer | undefined {
    if (this.held.length < length) return undefined;
    const taken = this.held.subarray(0, length);
    this.held = this.held.subarray(length);
    return taken;
  }

  private onGreeting(send: Buffer[]): boolean {
    const greeting = this.take(GREETING_SIZE);
    if (greeting === undefined) return false;
    const isOurs =
      greeting.readBigUInt64BE(0) === INIT_MAGIC && greeting.readBigUInt64BE(8) === OPTION_MAGIC;
    if (!isOurs) throw new DssError("Malformed", "this is no NBD server");
    const flags = Buffer.alloc(4);
    flags.writeUInt32BE(CLIENT_FLAG.FIXED_NEWSTYLE | CLIENT_FLAG.NO_ZEROES, 0);
    send.push(flags, encodeOption(OPTION.EXTENDED_HEADERS));
    this.step = "extended";
    return true;
  }

  private onReply(send: Buffer[]): boolean {
    if (this.held.length < OPTION_REPLY_HEADER_SIZE) return false;
    if (this.held.readBigUInt64BE(0) !== OPTION_REPLY_MAGIC) {
      throw new DssError("Malformed", "the NBD server sends no option reply");
    }
    const length = this.held.readUInt32BE(16);
    if (length > REPLY_BYTES_MAX) {
      throw new DssError("Malformed", `an option reply of ${length} bytes`);
    }
    const reply = this.take(OPTION_REPLY_HEADER_SIZE + length);
    if (reply === undefined) return false;
    const type = reply.readUInt32BE(12);
    const data = reply.subarray(OPTION_REPLY_HEADER_SIZE);
    if (type >= 0x80000000) throw refusal(type, data.toString("utf8"));
    if (this.step === "extended") this.onExtended(type, send);
    else if (this.step === "context") this.onContext(type, data, send);
    else this.onGo(type, data);
    return true;
  }

  private onExtended(type: number, send: Buffer[]): void {
    if (type !== REPLY.ACK) throw new DssError("Malformed", `reply ${type} to extended headers`);
    const name = withLength(this.name);
    const query = withLength(ALLOCATION_CONTEXT);
    send.push(encodeOption(OPTION.SET_META_CONTEXT, Buffer.concat([name, u32(1), query])));
    this.step = "context";
  }

  private onContext(type: number, data: Buffer, send: Buffer[]): void {
    if (type === REPLY.META_CONTEXT && data.length >= 4) {
      if (data.toString("utf8", 4) === ALLOCATION_CONTEXT) this.contextId = data.readUInt32BE(0);
      return;
    }
    if (type !== REPLY.ACK)
      throw new DssError("Malformed", `reply ${type} to a choice of contexts`);
    if (this.contextId !== ALLOCATION_ID) {
      throw new DssError("IncompatibleVersion", "the NBD server has no allocation context");
    }
    const wanted = [INFO.EXPORT, INFO.DESCRIPTION, INFO.BLOCK_SIZE];
    const items = Buffer.alloc(2 + 2 * wanted.length);
    items.writeUInt16BE(wanted.length, 0);
    for (const [i, item] of wanted.entries()) items.writeUInt16BE(item, 2 + 2 * i);
    send.push(encodeOption(OPTION.GO, Buffer.concat([withLength(this.name), items])));
    this.step = "go";
  }

  private onGo(type: number, data: Buffer): void {
    if (type === REPLY.ACK) {
      if (this.size === undefined) throw new DssError("Malformed", "an export without a size");
      this.step = "ready";
      return;
    }
    if (type !== REPLY.INFO || data.length < 2) {
      throw new DssError("Malformed", `reply ${type} to the choice of an export`);
    }
    const item = data.readUInt16BE(0);
    if (item === INFO.EXPORT && data.length === 12) {
      this.size = data.readUInt32BE(2) * U32 + data.readUInt32BE(6);
      // Above 2^53 sizes are whole blocks, which a number tells exactly.
      if (!Number.isSafeInteger(this.size) && data.readUInt32BE(6) % 4096 !== 0) {
        throw new DssError("Malformed", `a size of ${this.size} bytes`);
      }
      this.readOnly = (data.readUInt16BE(10) & TRANSMISSION_FLAG.READ_ONLY) !== 0;
    } else if (item === INFO.DESCRIPTION) {
      this.description = data.toString("utf8", 2);
    } else if (item === INFO.BLOCK_SIZE && data.length === 14) {
      const [minimum, preferred, maximum] = [2, 6, 10].map((at) => data.readUInt32BE(at));
      this.blockSize = { minimum: minimum!, preferred: preferred!, maximum: maximum! };
    }
  }

  private facts(): ExportFacts {
    const { name, description, readOnly, blockSize } = this;
    return { name, description, size: this.size!, readOnly, blockSize };
  }
}

function encodeOption(option: number, data: Buffer = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(16);
  head.writeBigUInt64BE(OPTION_MAGIC, 0);
  head.writeUInt32BE(option, 8);
  head.writeUInt32BE(data.length, 12);
  return Buffer.concat([head, data]);
}

function u32(value: number): Buffer {
  const out = Buffer.alloc(4);
  out.writeUInt32BE(value, 0);
  return out;
}

function withLength(text: string): Buffer {
  const bytes = Buffer.from(text, "utf8");
  return Buffer.concat([u32(bytes.length), bytes]);
}

function refusal(type: number, message: string): DssError {
  const said = message === "" ? `reply ${type.toString(16)}` : message;
  switch (type) {
    case REPLY.ERR_UNKNOWN:
      return new DssError("NotFound", `the NBD server refuses the export: ${said}`);
    case REPLY.ERR_SHUTDOWN:
      return new DssError("ShuttingDown", `the NBD server is ending: ${said}`);
    case REPLY.ERR_UNSUP:
      return new DssError("IncompatibleVersion", `the NBD server is too old: ${said}`);
    default:
      return new DssError("Malformed", `the NBD server refuses: ${said}`);
  }
}
