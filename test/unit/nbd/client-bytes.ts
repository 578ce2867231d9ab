/** What an NBD client sends and how it reads the answers, written apart from nbd/abi.ts. */

export function u16(value: number): Buffer {
  return Buffer.from([value >>> 8, value & 0xff]);
}
export function u32(value: number): Buffer {
  const out = Buffer.alloc(4);
  out.writeUInt32BE(value >>> 0);
  return out;
}
export function u64(value: bigint): Buffer {
  const out = Buffer.alloc(8);
  out.writeBigUInt64BE(value);
  return out;
}

/** Client flags 3: fixed newstyle, no zeroes. */
export const FLAGS = u32(3);

export function option(number: number, data: Buffer = Buffer.alloc(0)): Buffer {
  return Buffer.concat([Buffer.from("IHAVEOPT"), u32(number), u32(data.length), data]);
}
/** The data of INFO (6) and GO (7). */
export function infoData(name: string, items: readonly number[] = []): Buffer {
  const bytes = Buffer.from(name);
  return Buffer.concat([u32(bytes.length), bytes, u16(items.length), ...items.map(u16)]);
}

/** The data of LIST_META_CONTEXT (9) and SET_META_CONTEXT (10). */
export function contextData(name: string, queries: readonly string[] = []): Buffer {
  const sized = (text: string): Buffer => {
    const bytes = Buffer.from(text);
    return Buffer.concat([u32(bytes.length), bytes]);
  };
  return Buffer.concat([sized(name), u32(queries.length), ...queries.map(sized)]);
}

export interface OptionReply {
  option: number;
  type: number;
  data: Buffer;
}
export function parseOptionReplies(bytes: Buffer): OptionReply[] {
  const replies: OptionReply[] = [];
  let at = 0;
  while (at < bytes.length) {
    if (bytes.readBigUInt64BE(at) !== 0x3e889045565a9n) throw new Error(`no reply at ${at}`);
    const length = bytes.readUInt32BE(at + 16);
    const data = bytes.subarray(at + 20, at + 20 + length);
    if (data.length !== length) throw new Error(`reply at ${at} is cut off`);
    replies.push({ option: bytes.readUInt32BE(at + 8), type: bytes.readUInt32BE(at + 12), data });
    at += 20 + length;
  }
  return replies;
}

export interface RequestFields {
  type: number;
  flags?: number;
  cookie?: bigint;
  offset?: bigint;
  length?: number;
  data?: Buffer;
}
export function request(fields: RequestFields): Buffer {
  const { type, flags = 0, cookie = 1n, offset = 0n, data } = fields;
  return Buffer.concat([
    u32(0x25609513),
    u16(flags),
    u16(type),
    u64(cookie),
    u64(offset),
    u32(fields.length ?? data?.length ?? 0),
    data ?? Buffer.alloc(0),
  ]);
}
/** With extended headers; PAYLOAD_LEN is not set unless asked for in `flags`. */
export function wideRequest(fields: Omit<RequestFields, "length"> & { length?: bigint }): Buffer {
  const { type, flags = 0, cookie = 1n, offset = 0n, data } = fields;
  return Buffer.concat([
    u32(0x21e41c71),
    u16(flags),
    u16(type),
    u64(cookie),
    u64(offset),
    u64(fields.length ?? BigInt(data?.length ?? 0)),
    data ?? Buffer.alloc(0),
  ]);
}

export interface Chunk {
  last: boolean;
  type: number;
  cookie: bigint;
  /** Of an extended header only. */
  offset: bigint | undefined;
  payload: Buffer;
}
/** Chunks and nothing else, of either header. */
export function parseChunks(bytes: Buffer): Chunk[] {
  const chunks: Chunk[] = [];
  for (let at = 0; at < bytes.length;) {
    const magic = bytes.readUInt32BE(at);
    if (magic !== 0x668e33ef && magic !== 0x6e8a278c) throw new Error(`no chunk at ${at}`);
    const wide = magic === 0x6e8a278c;
    const head = wide ? 32 : 20;
    const length = wide ? Number(bytes.readBigUInt64BE(at + 24)) : bytes.readUInt32BE(at + 16);
    const payload = bytes.subarray(at + head, at + head + length);
    if (payload.length !== length) throw new Error(`chunk at ${at} is cut off`);
    chunks.push({
      last: bytes.readUInt16BE(at + 4) === 1,
      type: bytes.readUInt16BE(at + 6),
      cookie: bytes.readBigUInt64BE(at + 8),
      offset: wide ? bytes.readBigUInt64BE(at + 16) : undefined,
      payload,
    });
    at += head + length;
  }
  return chunks;
}
/** A simple reply's head: 16 bytes. */
export function parseReply(bytes: Buffer): { error: number; cookie: bigint } {
  if (bytes.readUInt32BE(0) !== 0x67446698) throw new Error("no simple reply");
  return { error: bytes.readUInt32BE(4), cookie: bytes.readBigUInt64BE(8) };
}
