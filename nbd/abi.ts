/**
 * Numbers and layouts of the NBD protocol (the document doc/proto.md of the NetworkBlockDevice
 * project; extended headers: its branch extension-ext-header), all big-endian. Only encoding and
 * decoding of fixed layouts lives here: what they mean is in handshake.ts and transmission.ts.
 */

// Handshake phase.
export const INIT_MAGIC = 0x4e42444d41474943n; // "NBDMAGIC"
export const OPTION_MAGIC = 0x49484156454f5054n; // "IHAVEOPT"
export const OPTION_REPLY_MAGIC = 0x0003e889045565a9n;

export const HANDSHAKE_FLAG = { FIXED_NEWSTYLE: 1, NO_ZEROES: 2 } as const;
/** The same bits, as the client sends them back in 32 bits. */
export const CLIENT_FLAG = { FIXED_NEWSTYLE: 1, NO_ZEROES: 2 } as const;
export const CLIENT_FLAGS_KNOWN = CLIENT_FLAG.FIXED_NEWSTYLE | CLIENT_FLAG.NO_ZEROES;

export const OPTION = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const;

export const REPLY = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: 0x80000001,
  ERR_POLICY: 0x80000002,
  ERR_INVALID: 0x80000003,
  ERR_PLATFORM: 0x80000004,
  ERR_TLS_REQD: 0x80000005,
  ERR_UNKNOWN: 0x80000006,
  ERR_SHUTDOWN: 0x80000007,
  ERR_TOO_BIG: 0x80000009,
  ERR_EXT_HEADER_REQD: 0x8000000a,
} as const;
export type ReplyType = (typeof REPLY)[keyof typeof REPLY];

export const INFO = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const;

/** Longest string of the protocol (names, messages), bytes of UTF-8. */
export const STRING_BYTES_MAX = 4096;

export const TRANSMISSION_FLAG = {
  HAS_FLAGS: 1 << 0,
  READ_ONLY: 1 << 1,
  SEND_FLUSH: 1 << 2,
  SEND_FUA: 1 << 3,
  SEND_TRIM: 1 << 5,
  SEND_WRITE_ZEROES: 1 << 6,
  SEND_DF: 1 << 7,
  CAN_MULTI_CONN: 1 << 8,
  SEND_CACHE: 1 << 10,
  SEND_FAST_ZERO: 1 << 11,
  BLOCK_STATUS_PAYLOAD: 1 << 12,
} as const;

/** The one metadata context of this server, and the number by which replies mean it. */
export const ALLOCATION_CONTEXT = "base:allocation";
export const ALLOCATION_ID = 1;
/** Status flags of the allocation context. */
export const STATE = { HOLE: 1 << 0, ZERO: 1 << 1 } as const;

// Transmission phase.
export const REQUEST_MAGIC = 0x25609513;
export const EXTENDED_REQUEST_MAGIC = 0x21e41c71;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
export const EXTENDED_REPLY_MAGIC = 0x6e8a278c;

export const COMMAND = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
} as const;

export const COMMAND_FLAG = {
  FUA: 1 << 0,
  NO_HOLE: 1 << 1,
  DF: 1 << 2,
  REQ_ONE: 1 << 3,
  FAST_ZERO: 1 << 4,
  PAYLOAD_LEN: 1 << 5,
} as const;

export const CHUNK_FLAG_DONE = 1 << 0;
export const CHUNK = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  BLOCK_STATUS_EXT: 6,
  ERROR: 0x8001,
  ERROR_OFFSET: 0x8002,
} as const;

/**
 * The protocol's own numbers ("Error values"), whatever the errno of the platform; those of failed
 * operations come from `DssError.nbd`.
 */
export const NBD_ERROR = {
  NONE: 0,
  EPERM: 1,
  EIO: 5,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

/** What one connection has negotiated beyond the baseline. */
export interface Session {
  /** Reads are answered in chunks. */
  readonly structured: boolean;
  /** All headers have 64-bit lengths, all replies are chunks. Implies `structured`. */
  readonly extended: boolean;
  /** The allocation context was selected for the export in use. */
  readonly allocation: boolean;
}
export const BASELINE: Session = { structured: false, extended: false, allocation: false };

/** What the client is told about an export, and what its requests are checked against. */
export interface ExportFacts {
  readonly name: string;
  readonly description: string;
  /** Bytes (u53). */
  readonly size: number;
  readonly readOnly: boolean;
  readonly blockSize: {
    readonly minimum: number;
    readonly preferred: number;
    readonly maximum: number;
  };
}

export const CLIENT_FLAGS_SIZE = 4;
export const OPTION_HEADER_SIZE = 16; // magic u64, option u32, length u32
export const OPTION_REPLY_HEADER_SIZE = 20; // magic u64, option u32, type u32, length u32
/** magic u32, flags u16, type u16, cookie u64, offset u64, length u32 */
export const REQUEST_SIZE = 28;
/** The same with a u64 length. */
export const EXTENDED_REQUEST_SIZE = 32;
export const SIMPLE_REPLY_SIZE = 16; // magic u32, error u32, cookie u64
const EXPORT_NAME_PADDING = 124;

/** What the server says first. */
export function encodeGreeting(): Buffer {
  const out = Buffer.allocUnsafe(18);
  out.writeBigUInt64BE(INIT_MAGIC, 0);
  out.writeBigUInt64BE(OPTION_MAGIC, 8);
  out.writeUInt16BE(HANDSHAKE_FLAG.FIXED_NEWSTYLE | HANDSHAKE_FLAG.NO_ZEROES, 16);
  return out;
}

export function encodeOptionReply(option: number, type: ReplyType, data?: Buffer): Buffer {
  const length = data?.length ?? 0;
  const out = Buffer.allocUnsafe(OPTION_REPLY_HEADER_SIZE + length);
  out.writeBigUInt64BE(OPTION_REPLY_MAGIC, 0);
  out.writeUInt32BE(option, 8);
  out.writeUInt32BE(type, 12);
  out.writeUInt32BE(length, 16);
  data?.copy(out, OPTION_REPLY_HEADER_SIZE);
  return out;
}

/** Data of a REPLY.SERVER: the name with its length, then the description. */
export function encodeServerItem(name: string, description: string): Buffer {
  const nameBytes = Buffer.from(name);
  const length = Buffer.allocUnsafe(4);
  length.writeUInt32BE(nameBytes.length, 0);
  return Buffer.concat([length, nameBytes, Buffer.from(description)]);
}

export function transmissionFlags(facts: ExportFacts, session: Session): number {
  let flags: number =
    TRANSMISSION_FLAG.HAS_FLAGS |
    TRANSMISSION_FLAG.SEND_FLUSH |
    TRANSMISSION_FLAG.SEND_FUA |
    TRANSMISSION_FLAG.SEND_CACHE |
    TRANSMISSION_FLAG.CAN_MULTI_CONN;
  if (facts.readOnly) {
    flags |= TRANSMISSION_FLAG.READ_ONLY;
  } else {
    flags |=
      TRANSMISSION_FLAG.SEND_TRIM |
      TRANSMISSION_FLAG.SEND_WRITE_ZEROES |
      TRANSMISSION_FLAG.SEND_FAST_ZERO;
  }
  if (session.structured) flags |= TRANSMISSION_FLAG.SEND_DF;
  if (session.extended && session.allocation) flags |= TRANSMISSION_FLAG.BLOCK_STATUS_PAYLOAD;
  return flags;
}

/** The answer to OPTION.EXPORT_NAME, which has no reply header. */
export function encodeExportNameAnswer(
  facts: ExportFacts,
  { padded, session }: { padded: boolean; session: Session },
): Buffer {
  const out = Buffer.alloc(10 + (padded ? EXPORT_NAME_PADDING : 0));
  out.writeBigUInt64BE(BigInt(facts.size), 0);
  out.writeUInt16BE(transmissionFlags(facts, session), 8);
  return out;
}

/** Data of a REPLY.META_CONTEXT. */
export function encodeMetaContext(id: number, name: string): Buffer {
  const out = Buffer.alloc(4);
  out.writeUInt32BE(id, 0);
  return Buffer.concat([out, Buffer.from(name)]);
}

/** Data of a REPLY.INFO; undefined for an item that this server does not know. */
export function encodeInfo(
  item: number,
  facts: ExportFacts,
  session: Session,
): Buffer | undefined {
  switch (item) {
    case INFO.EXPORT: {
      const out = Buffer.allocUnsafe(12);
      out.writeUInt16BE(INFO.EXPORT, 0);
      out.writeBigUInt64BE(BigInt(facts.size), 2);
      out.writeUInt16BE(transmissionFlags(facts, session), 10);
      return out;
    }
    case INFO.NAME:
      return Buffer.concat([Buffer.from([0, INFO.NAME]), Buffer.from(facts.name)]);
    case INFO.DESCRIPTION:
      return Buffer.concat([Buffer.from([0, INFO.DESCRIPTION]), Buffer.from(facts.description)]);
    case INFO.BLOCK_SIZE: {
      const out = Buffer.allocUnsafe(14);
      out.writeUInt16BE(INFO.BLOCK_SIZE, 0);
      out.writeUInt32BE(facts.blockSize.minimum, 2);
      out.writeUInt32BE(facts.blockSize.preferred, 6);
      out.writeUInt32BE(facts.blockSize.maximum, 10);
      return out;
    }
    default:
      return undefined;
  }
}

/**
 * What a reply repeats of its request: the opaque cookie, and with extended headers the offset.
 * Both as two halves, to spare bigints and because a refused offset need not be a safe integer.
 */
export interface RequestKey {
  readonly cookieHigh: number;
  readonly cookieLow: number;
  readonly offsetHigh: number;
  readonly offsetLow: number;
}
