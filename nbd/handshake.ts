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
 * STARTTLS is a question too ("busy"), answered when the link is encrypted. What was negotiated in
 * the clear is forgotten then, and what arrived in the clear behind it ends the connection:
 * somebody on the way could have put it there.
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
  ALLOCATION_CONTEXT,
  ALLOCATION_ID,
  CLIENT_FLAG,
  CLIENT_FLAGS_KNOWN,
  CLIENT_FLAGS_SIZE,
  encodeExportNameAnswer,
  encodeGreeting,
  encodeInfo,
  encodeMetaContext,
  encodeOptionReply,
  encodeServerItem,
  INFO,
  OPTION,
  OPTION_HEADER_SIZE,
  OPTION_MAGIC,
  REPLY,
  type ExportFacts,
  type ReplyType,
  type Session,
} from "./abi.js";
import { decodeContextQuery, decodeExportQuery, decodeName, QueryFault } from "./option-data.js";
import { truncated } from "./replies.js";

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
  /** Encrypt the link, from the end of what was sent before; answer with `onSecured`. */
  | { do: "secure" }
  /** Negotiation is over; the export last opened is served. `rest` belongs to transmission. */
  | { do: "enter"; rest: Buffer[]; session: Session }
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

/** What waits for an answer from outside. */
type Question =
  | { about: "list" }
  | { about: "export"; items: readonly number[] }
  | { about: "contexts"; queries: readonly string[] }
  | { about: "security" };

type OptionHandler = (handshake: Handshake, data: Buffer, option: number) => void;

/** off: there is no certificate. allow: clients may encrypt. require: nothing else in the clear. */
export type TlsPolicy = "off" | "allow" | "require";

export class Handshake {
  private phase: Phase = "flags";
  /** The field being assembled: client flags, an option header or option data. */
  private field: Buffer = Buffer.alloc(CLIENT_FLAGS_SIZE);
  private filled = 0;
  private skipLeft = 0;
  private option = 0;
  private optionCount = 0;
  private padded = true;
  private fixed = true;
  private secure = false;
  private structured = false;
  private extended = false;
  /** Name of the export for which the allocation context was selected last. */
  private contextOf: string | undefined;
  private question: Question | undefined;
  private backlog: Buffer[] = [];
  private backlogBytes = 0;
  private effects: HandshakeEffect[] = [];

  constructor(private readonly tls: TlsPolicy = "off") {}

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
    if (question.about === "contexts") {
      this.answerContexts(question.queries, facts.name);
      this.transition("header");
      this.parse();
      return this.take();
    }
    assert(question.about === "export", "handshake: an export answers no question");
    const session = this.sessionFor(facts);
    if (this.option === OPTION.EXPORT_NAME) {
      this.send(encodeExportNameAnswer(facts, { padded: this.padded, session }));
      this.enter(session);
      return this.take();
    }
    // The items in the order asked for, after the mandatory one.
    for (const item of new Set([INFO.EXPORT, ...question.items])) {
      const data = encodeInfo(item, facts, session);
      if (data) this.reply(REPLY.INFO, data);
    }
    this.reply(REPLY.ACK);
    if (this.option === OPTION.GO) {
      this.enter(session);
    } else {
      this.transition("header");
      this.parse();
    }
    return this.take();
  }

  /** The link is encrypted. If it cannot be, it is closed instead. */
  onSecured(): HandshakeEffect[] {
    const question = this.answered();
    if (!question) return [];
    assert(question.about === "security", "handshake: encryption answers no question");
    this.secure = true;
    this.structured = this.extended = false;
    this.contextOf = undefined;
    this.transition("header");
    this.parse();
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

  private sessionFor(facts: ExportFacts): Session {
    const structured = this.structured || this.extended;
    const allocation = structured && this.contextOf === facts.name;
    return { structured, extended: this.extended, allocation };
  }

  /** `name` is the export's canonical one, so that both spellings of the default mean it. */
  private answerContexts(queries: readonly string[], name: string): void {
    const setting = this.option === OPTION.SET_META_CONTEXT;
    const all = !setting && (queries.length === 0 || queries.includes("base:"));
    if (all || queries.includes(ALLOCATION_CONTEXT)) {
      // Numbers mean nothing in a list.
      const id = setting ? ALLOCATION_ID : 0;
      this.reply(REPLY.META_CONTEXT, encodeMetaContext(id, ALLOCATION_CONTEXT));
      if (setting) this.contextOf = name;
    }
    this.reply(REPLY.ACK);
  }

  // ---- For the rows of OPTIONS ----

  get secured(): boolean {
    return this.secure;
  }
  /** TLS needs a client that knows the fixed newstyle. */
  get policy(): TlsPolicy {
    return this.fixed ? this.tls : "off";
  }
  get chunked(): boolean {
    return this.structured || this.extended;
  }
  get wide(): boolean {
    return this.extended;
  }
  useChunks(): void {
    this.structured = true;
  }
  useExtendedHeaders(): void {
    this.extended = true;
  }
  forgetContexts(): void {
    this.contextOf = undefined;
  }
  /** Bytes have arrived behind the option in hand. */
  get more(): boolean {
    return this.backlogBytes > 0;
  }

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
        if (this.mustEncrypt) this.replyError(REPLY.ERR_TLS_REQD, ENCRYPT);
        else this.replyError(REPLY.ERR_TOO_BIG, `option data above ${OPTION_BYTES_MAX} bytes`);
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
    this.fixed = (flags & CLIENT_FLAG.FIXED_NEWSTYLE) !== 0;
    if (!this.fixed && this.tls === "require") {
      this.close("a client that cannot encrypt");
      return;
    }
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
    if (this.mustEncrypt) {
      if (this.option === OPTION.EXPORT_NAME) this.close("an export without encryption");
      else this.replyError(REPLY.ERR_TLS_REQD, ENCRYPT);
    } else if (handler) handler(this, data, this.option);
    else this.replyError(REPLY.ERR_UNSUP, `option ${this.option} is not supported`);
    if (this.phase === "header" || this.phase === "data") this.expectHeader();
  }

  /** The option in hand is not for the clear. */
  private get mustEncrypt(): boolean {
    return this.tls === "require" && !this.secure && !CLEAR_OPTIONS.has(this.option);
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

  private enter(session: Session): void {
    const rest = this.backlog;
    this.transition("done");
    this.effects.push({ do: "enter", rest, session });
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
const ENCRYPT = "this server requires encryption: send STARTTLS first";

const OPTIONS = new Map<number, OptionHandler>([
  [OPTION.EXPORT_NAME, onExportName],
  [OPTION.ABORT, onAbort],
  [OPTION.LIST, onList],
  [OPTION.STARTTLS, onStartTls],
  [OPTION.INFO, onInfoOrGo],
  [OPTION.GO, onInfoOrGo],
  [OPTION.STRUCTURED_REPLY, onStructuredReply],
  [OPTION.LIST_META_CONTEXT, onMetaContext],
  [OPTION.SET_META_CONTEXT, onMetaContext],
  [OPTION.EXTENDED_HEADERS, onExtendedHeaders],
]);
/** What a server that requires encryption takes before it. */
const CLEAR_OPTIONS: ReadonlySet<number> = new Set([OPTION.STARTTLS, OPTION.ABORT]);

function onExportName(handshake: Handshake, data: Buffer): void {
  const name = decodeName(data);
  if (name instanceof QueryFault) {
    handshake.close(`export name: ${name.message}`);
    return;
  }
  if (handshake.wide) {
    handshake.close("EXPORT_NAME after extended headers");
    return;
  }
  handshake.ask({ about: "export", items: [] }, { do: "open", name });
}

/** Data is ignored on purpose: the protocol asks servers to. */
function onAbort(handshake: Handshake): void {
  handshake.reply(REPLY.ACK);
  handshake.close();
}

/** Refuses data where there must be none; true if it did. */
function refuseData(handshake: Handshake, data: Buffer, option: string): boolean {
  if (data.length === 0) return false;
  handshake.replyError(REPLY.ERR_INVALID, `${option} takes no data`);
  return true;
}

function onList(handshake: Handshake, data: Buffer): void {
  if (!refuseData(handshake, data, "LIST")) handshake.ask({ about: "list" }, { do: "list" });
}

function onStartTls(handshake: Handshake, data: Buffer): void {
  if (refuseData(handshake, data, "STARTTLS")) return;
  if (handshake.policy === "off") {
    handshake.replyError(REPLY.ERR_POLICY, "this server has no certificate");
  } else if (handshake.secured) {
    handshake.replyError(REPLY.ERR_INVALID, "the connection is already encrypted");
  } else if (handshake.more) {
    handshake.close("sent options behind STARTTLS in the clear");
  } else {
    handshake.reply(REPLY.ACK);
    handshake.ask({ about: "security" }, { do: "secure" });
  }
}

function onStructuredReply(handshake: Handshake, data: Buffer): void {
  if (refuseData(handshake, data, "STRUCTURED_REPLY")) return;
  if (handshake.wide) {
    handshake.replyError(REPLY.ERR_EXT_HEADER_REQD, "extended headers are in use");
    return;
  }
  handshake.useChunks();
  handshake.reply(REPLY.ACK);
}

function onExtendedHeaders(handshake: Handshake, data: Buffer): void {
  if (refuseData(handshake, data, "EXTENDED_HEADERS")) return;
  handshake.useExtendedHeaders();
  handshake.reply(REPLY.ACK);
}

function onInfoOrGo(handshake: Handshake, data: Buffer): void {
  const query = decodeExportQuery(data);
  if (query instanceof QueryFault) {
    handshake.replyError(query.type, query.message);
    return;
  }
  handshake.ask({ about: "export", items: query.items }, { do: "open", name: query.name });
}

/** LIST and SET: to set is to forget what was set before, even when it fails. */
function onMetaContext(handshake: Handshake, data: Buffer, option: number): void {
  if (option === OPTION.SET_META_CONTEXT) handshake.forgetContexts();
  if (!handshake.chunked) {
    handshake.replyError(REPLY.ERR_INVALID, "metadata contexts need structured replies");
    return;
  }
  const query = decodeContextQuery(data);
  if (query instanceof QueryFault) {
    handshake.replyError(query.type, query.message);
    return;
  }
  const { name, queries } = query;
  handshake.ask({ about: "contexts", queries }, { do: "open", name });
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
