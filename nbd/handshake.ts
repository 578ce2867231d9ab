/**
 * Fixed-newstyle negotiation of one connection, pure: bytes and the answers of the export
 * directory go in, ordered effects come out. The caller runs the effects; this file owns the
 * state.
 *
 *   flags ──► header ──► data ──► busy ──► (header | done)
 *               │  ▲                ▲
 *               │  └── skip         │ an empty option has no data
 *               └───────────────────┘
 *
 * Invariants: one option is under way at a time; while the directory is asked ("busy") nothing is
 * parsed, and what arrives is kept up to BACKLOG_BYTES_MAX; nothing is allocated for an option
 * before its length is known to be within OPTION_BYTES_MAX; "done" is final.
 *
 * An option is a row of OPTIONS. Every other option is answered ERR_UNSUP, as the protocol wants.
 */
import { assert } from "../cluster/base/assert.js";
import { describeError, type DssError } from "../cluster/base/errors.js";
import {
  CLIENT_FLAG,
  CLIENT_FLAGS_KNOWN,
  CLIENT_FLAGS_SIZE,
  encodeExportNameAnswer,
  encodeGreeting,
  encodeInfo,
  encodeOptionReply,
  encodeServerItem,
  INFO,
  OPTION,
  OPTION_HEADER_SIZE,
  OPTION_MAGIC,
  REPLY,
  STRING_BYTES_MAX,
  type ExportFacts,
  type ReplyType,
} from "./abi.js";

/** Longest option data that is looked at, bytes. */
export const OPTION_BYTES_MAX = 64 * 1024;
/** Longest option data that is skipped and answered with ERR_TOO_BIG; a longer one ends it. */
export const OPTION_SKIP_BYTES_MAX = 1024 * 1024;
/** Bytes a client may send ahead while it ought to wait for an answer. */
export const BACKLOG_BYTES_MAX = 256 * 1024;
/** Options of one connection: nobody needs as many, and each may make the server work. */
export const OPTIONS_MAX = 1024;

export type HandshakeEffect =
  | { do: "send"; bytes: Buffer }
  /** Answer with `onListed` or `onRefused`. */
  | { do: "list" }
  /** Answer with `onOpened` or `onRefused`. `name` is "" for the default export. */
  | { do: "open"; name: string }
  /** Negotiation is over; the export last opened is served. `rest` belongs to transmission. */
  | { do: "enter"; rest: Buffer[] }
  /** Send what is queued, then close; `fault` says what the client did wrong, if anything. */
  | { do: "close"; fault?: string };

type Phase = "flags" | "header" | "data" | "skip" | "busy" | "done";
const LEGAL: Record<Phase, readonly Phase[]> = {
  flags: ["header", "done"],
  header: ["data", "skip", "busy", "done", "header"], // To itself: an option without data.
  data: ["header", "busy", "done"],
  skip: ["header", "done"],
  busy: ["header", "done"],
  done: [],
};

/** What waits for the directory's answer. */
type Question = { about: "list" } | { about: "export"; items: readonly number[] };

type OptionHandler = (handshake: Handshake, data: Buffer) => void;

/** Fatal, because a name that is not UTF-8 cannot be compared or logged. */
const UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

export class Handshake {
  private phase: Phase = "flags";
  /** The field being assembled: client flags, an option header or option data. */
  private field: Buffer = Buffer.alloc(CLIENT_FLAGS_SIZE);
  private filled = 0;
  private skipLeft = 0;
  private option = 0;
  private optionCount = 0;
  private padded = true;
  private question: Question | undefined;
  private backlog: Buffer[] = [];
  private backlogBytes = 0;
  private effects: HandshakeEffect[] = [];

  /** True while the next move is the server's: the client cannot be blamed for the delay. */
  get busy(): boolean {
    return this.phase === "busy";
  }

  start(): HandshakeEffect[] {
    this.effects.push({ do: "send", bytes: encodeGreeting() });
    return this.take();
  }

  /** Takes any split of the client's bytes; `chunk` may be kept until it is used up. */
  onBytes(chunk: Buffer): HandshakeEffect[] {
    if (this.phase === "done") return [];
    this.backlog.push(chunk);
    this.backlogBytes += chunk.length;
    this.parse();
    if (this.phase === "busy" && this.backlogBytes > BACKLOG_BYTES_MAX) {
      this.close("sent options without waiting for the answer");
    }
    return this.take();
  }

  onListed(exports: readonly { name: string; description: string }[]): HandshakeEffect[] {
    const question = this.answered();
    if (!question) return [];
    assert(question.about === "list", "handshake: a list answers no question");
    for (const { name, description } of exports) {
      this.reply(REPLY.SERVER, encodeServerItem(name, description));
    }
    this.reply(REPLY.ACK);
    this.transition("header");
    this.parse();
    return this.take();
  }

  onOpened(facts: ExportFacts): HandshakeEffect[] {
    const question = this.answered();
    if (!question) return [];
    assert(question.about === "export", "handshake: an export answers no question");
    if (this.option === OPTION.EXPORT_NAME) {
      this.send(encodeExportNameAnswer(facts, { padded: this.padded }));
      this.enter();
      return this.take();
    }
    // The items in the order asked for, after the mandatory one.
    for (const item of new Set([INFO.EXPORT, ...question.items])) {
      const data = encodeInfo(item, facts);
      if (data) this.reply(REPLY.INFO, data);
    }
    this.reply(REPLY.ACK);
    if (this.option === OPTION.GO) {
      this.enter();
    } else {
      this.transition("header");
      this.parse();
    }
    return this.take();
  }

  /** The directory failed: the client is told and may go on, except after EXPORT_NAME. */
  onRefused(error: DssError): HandshakeEffect[] {
    if (!this.answered()) return [];
    if (this.option === OPTION.EXPORT_NAME) {
      this.close(); // This option has no error reply.
      return this.take();
    }
    this.replyError(refusalType(error), describeError(error));
    this.transition("header");
    this.parse();
    return this.take();
  }

  /** The client is gone or the server stops: answers that are still to come find nothing to do. */
  abandon(): void {
    if (this.phase !== "done") this.transition("done");
  }

  // ---- For the rows of OPTIONS ----

  ask(question: Question, effect: HandshakeEffect): void {
    this.question = question;
    this.transition("busy");
    this.effects.push(effect);
  }
  reply(type: ReplyType, data?: Buffer): void {
    this.send(encodeOptionReply(this.option, type, data));
  }
  replyError(type: ReplyType, message: string): void {
    this.reply(type, truncated(message));
  }
  close(fault?: string): void {
    this.transition("done");
    this.effects.push(fault === undefined ? { do: "close" } : { do: "close", fault });
  }

  // ---- Parsing ----

  private parse(): void {
    while (this.phase !== "busy" && this.phase !== "done") {
      if (this.phase === "skip") {
        if (!this.skip()) return;
        this.replyError(REPLY.ERR_TOO_BIG, `option data above ${OPTION_BYTES_MAX} bytes`);
        this.expectHeader();
        continue;
      }
      if (!this.fill()) return;
      if (this.phase === "flags") this.onFlags();
      else if (this.phase === "header") this.onHeader();
      else this.onData();
    }
  }

  /** Moves bytes from the backlog into the field; true when it is complete. */
  private fill(): boolean {
    while (this.filled < this.field.length) {
      const chunk = this.backlog[0];
      if (!chunk) return false;
      const taken = chunk.copy(this.field, this.filled);
      this.filled += taken;
      this.consume(chunk, taken);
    }
    return true;
  }
  private skip(): boolean {
    while (this.skipLeft > 0) {
      const chunk = this.backlog[0];
      if (!chunk) return false;
      const taken = Math.min(chunk.length, this.skipLeft);
      this.skipLeft -= taken;
      this.consume(chunk, taken);
    }
    return true;
  }
  private consume(chunk: Buffer, taken: number): void {
    this.backlogBytes -= taken;
    if (taken === chunk.length) this.backlog.shift();
    else this.backlog[0] = chunk.subarray(taken);
  }

  private onFlags(): void {
    const flags = this.field.readUInt32BE(0);
    if ((flags & ~CLIENT_FLAGS_KNOWN) !== 0) {
      this.close(`unknown client flags 0x${flags.toString(16)}`);
      return;
    }
    this.padded = (flags & CLIENT_FLAG.NO_ZEROES) === 0;
    this.expectHeader();
  }

  private onHeader(): void {
    if (this.field.readBigUInt64BE(0) !== OPTION_MAGIC) {
      this.close("bad option magic");
      return;
    }
    this.option = this.field.readUInt32BE(8);
    const length = this.field.readUInt32BE(12);
    if (++this.optionCount > OPTIONS_MAX) {
      this.close(`more than ${OPTIONS_MAX} options`);
      return;
    }
    if (length > OPTION_BYTES_MAX) {
      // EXPORT_NAME cannot be answered with an error.
      if (length > OPTION_SKIP_BYTES_MAX || this.option === OPTION.EXPORT_NAME) {
        this.close(`option ${this.option} with ${length} bytes of data`);
        return;
      }
      this.skipLeft = length;
      this.transition("skip");
      return;
    }
    if (length > 0) {
      this.field = Buffer.allocUnsafe(length);
      this.filled = 0;
      this.transition("data");
      return;
    }
    this.dispatch(EMPTY);
  }

  private onData(): void {
    this.dispatch(this.field);
  }

  private dispatch(data: Buffer): void {
    const handler = OPTIONS.get(this.option);
    if (handler) handler(this, data);
    else this.replyError(REPLY.ERR_UNSUP, `option ${this.option} is not supported`);
    if (this.phase === "header" || this.phase === "data") this.expectHeader();
  }

  private expectHeader(): void {
    this.transition("header");
  }

  private answered(): Question | undefined {
    if (this.phase === "done") return undefined;
    assert(this.phase === "busy" && this.question, "handshake: an answer without a question");
    const question = this.question;
    this.question = undefined;
    return question;
  }

  private enter(): void {
    const rest = this.backlog;
    this.transition("done");
    this.effects.push({ do: "enter", rest });
  }

  private transition(next: Phase): void {
    assert(LEGAL[this.phase].includes(next), `handshake: ${this.phase} -> ${next}`);
    this.phase = next;
    if (next === "header") {
      this.field = Buffer.allocUnsafe(OPTION_HEADER_SIZE);
      this.filled = 0;
    } else if (next === "done") {
      this.backlog = [];
      this.backlogBytes = 0;
    }
  }
  private send(bytes: Buffer): void {
    this.effects.push({ do: "send", bytes });
  }
  private take(): HandshakeEffect[] {
    const effects = this.effects;
    this.effects = [];
    return effects;
  }
}

const EMPTY = Buffer.alloc(0);

const OPTIONS = new Map<number, OptionHandler>([
  [OPTION.EXPORT_NAME, onExportName],
  [OPTION.ABORT, onAbort],
  [OPTION.LIST, onList],
  [OPTION.INFO, onInfoOrGo],
  [OPTION.GO, onInfoOrGo],
]);

function onExportName(handshake: Handshake, data: Buffer): void {
  const name = decodeName(data);
  if (typeof name !== "string") {
    handshake.close(`export name: ${name.message}`);
    return;
  }
  handshake.ask({ about: "export", items: [] }, { do: "open", name });
}

/** Data is ignored on purpose: the protocol asks servers to. */
function onAbort(handshake: Handshake): void {
  handshake.reply(REPLY.ACK);
  handshake.close();
}

function onList(handshake: Handshake, data: Buffer): void {
  if (data.length > 0) {
    handshake.replyError(REPLY.ERR_INVALID, "LIST takes no data");
    return;
  }
  handshake.ask({ about: "list" }, { do: "list" });
}

/** Data: name length u32, name, number of items u16, items u16 each, and nothing more. */
function onInfoOrGo(handshake: Handshake, data: Buffer): void {
  if (data.length < 6) {
    handshake.replyError(REPLY.ERR_INVALID, "option data too short");
    return;
  }
  const nameLength = data.readUInt32BE(0);
  if (nameLength > data.length - 6) {
    handshake.replyError(REPLY.ERR_INVALID, "export name longer than the option data");
    return;
  }
  const itemsAt = 4 + nameLength + 2;
  const itemCount = data.readUInt16BE(itemsAt - 2);
  if (data.length !== itemsAt + 2 * itemCount) {
    handshake.replyError(REPLY.ERR_INVALID, "number of information items does not fit the data");
    return;
  }
  const name = decodeName(data.subarray(4, 4 + nameLength));
  if (typeof name !== "string") {
    handshake.replyError(name.type, `export name: ${name.message}`);
    return;
  }
  const items: number[] = [];
  for (let i = 0; i < itemCount; i++) items.push(data.readUInt16BE(itemsAt + 2 * i));
  handshake.ask({ about: "export", items }, { do: "open", name });
}

function decodeName(bytes: Buffer): string | { type: ReplyType; message: string } {
  if (bytes.length > STRING_BYTES_MAX) {
    return { type: REPLY.ERR_TOO_BIG, message: `longer than ${STRING_BYTES_MAX} bytes` };
  }
  if (bytes.includes(0)) return { type: REPLY.ERR_INVALID, message: "contains NUL" };
  try {
    return UTF8.decode(bytes);
  } catch {
    return { type: REPLY.ERR_INVALID, message: "not UTF-8" };
  }
}

function refusalType(error: DssError): ReplyType {
  switch (error.code) {
    case "ShuttingDown":
      return REPLY.ERR_SHUTDOWN;
    case "NotSupported":
      return REPLY.ERR_PLATFORM;
    case "Busy":
    case "NotPermitted":
    case "AccessDenied":
    case "ReadOnly":
    case "Fenced":
      return REPLY.ERR_POLICY;
    default:
      return REPLY.ERR_UNKNOWN; // "The requested export is not available": now or at all.
  }
}

/** Cuts at a character, because a string of the protocol is UTF-8 of at most 4,096 bytes. */
function truncated(message: string): Buffer {
  const bytes = Buffer.from(message);
  if (bytes.length <= STRING_BYTES_MAX) return bytes;
  let end = STRING_BYTES_MAX;
  while ((bytes[end]! & 0xc0) === 0x80) end--;
  return bytes.subarray(0, end);
}
