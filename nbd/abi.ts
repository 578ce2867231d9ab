/**
 * Numbers and layouts of the NBD protocol (the document doc/proto.md of the NetworkBlockDevice
 * project), all big-endian. Only encoding and decoding of fixed layouts lives here: what they
 * mean is in handshake.ts and transmission.ts.
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
} as const;

export const REPLY = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  ERR_UNSUP: 0x80000001,
  ERR_POLICY: 0x80000002,
  ERR_INVALID: 0x80000003,
  ERR_PLATFORM: 0x80000004,
  ERR_UNKNOWN: 0x80000006,
  ERR_SHUTDOWN: 0x80000007,
  ERR_TOO_BIG: 0x80000009,
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
  CAN_MULTI_CONN: 1 << 8,
} as const;

// Transmission phase.
export const REQUEST_MAGIC = 0x25609513;
export const SIMPLE_REPLY_MAGIC = 0x67446698;

export const COMMAND = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  WRITE_ZEROES: 6,
} as const;

export const COMMAND_FLAG = { FUA: 1 << 0, NO_HOLE: 1 << 1 } as const;

/**
 * The error values that this server chooses itself; the others come from `DssError.nbd`. They are
 * the protocol's own numbers ("Error values"), whatever the errno of the platform.
 */
export const NBD_ERROR = {
  NONE: 0,
  EPERM: 1,
  EIO: 5,
  EINVAL: 22,
  ENOSPC: 28,
} as const;

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

export function transmissionFlags(facts: ExportFacts): number {
  const common =
    TRANSMISSION_FLAG.HAS_FLAGS |
    TRANSMISSION_FLAG.SEND_FLUSH |
    TRANSMISSION_FLAG.SEND_FUA |
    TRANSMISSION_FLAG.CAN_MULTI_CONN;
  return facts.readOnly
    ? common | TRANSMISSION_FLAG.READ_ONLY
    : common | TRANSMISSION_FLAG.SEND_TRIM | TRANSMISSION_FLAG.SEND_WRITE_ZEROES;
}

/** The answer to OPTION.EXPORT_NAME, which has no reply header. */
export function encodeExportNameAnswer(facts: ExportFacts, options: { padded: boolean }): Buffer {
  const out = Buffer.alloc(10 + (options.padded ? EXPORT_NAME_PADDING : 0));
  out.writeBigUInt64BE(BigInt(facts.size), 0);
  out.writeUInt16BE(transmissionFlags(facts), 8);
  return out;
}

/** Data of a REPLY.INFO; undefined for an item that this server does not know. */
export function encodeInfo(item: number, facts: ExportFacts): Buffer | undefined {
  switch (item) {
    case INFO.EXPORT: {
      const out = Buffer.allocUnsafe(12);
      out.writeUInt16BE(INFO.EXPORT, 0);
      out.writeBigUInt64BE(BigInt(facts.size), 2);
      out.writeUInt16BE(transmissionFlags(facts), 10);
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

/** An opaque 64-bit number that the client chose, kept as two halves to spare a bigint. */
export interface Cookie {
  readonly cookieHigh: number;
  readonly cookieLow: number;
}

export function encodeSimpleReply(cookie: Cookie, error: number): Buffer {
  const out = Buffer.allocUnsafe(SIMPLE_REPLY_SIZE);
  out.writeUInt32BE(SIMPLE_REPLY_MAGIC, 0);
  out.writeUInt32BE(error, 4);
  out.writeUInt32BE(cookie.cookieHigh, 8);
  out.writeUInt32BE(cookie.cookieLow, 12);
  return out;
}
