/**
 * The data of options that name exports: INFO, GO and those about metadata contexts. Pure; every
 * length is checked against what is there before it is used.
 */
import { REPLY, STRING_BYTES_MAX, type ReplyType } from "./abi.js";

/** Queries of one option: there is one context to ask for. */
export const QUERIES_MAX = 64;

/** What is wrong with an option's data, as the client is told. */
export class QueryFault {
  constructor(
    readonly type: ReplyType,
    readonly message: string,
  ) {}
}
const invalid = (message: string): QueryFault => new QueryFault(REPLY.ERR_INVALID, message);

/** Fatal, because a name that is not UTF-8 cannot be compared or logged. */
const UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

export function decodeName(bytes: Buffer): string | QueryFault {
  if (bytes.length > STRING_BYTES_MAX) {
    return new QueryFault(REPLY.ERR_TOO_BIG, `longer than ${STRING_BYTES_MAX} bytes`);
  }
  if (bytes.includes(0)) return invalid("contains NUL");
  try {
    return UTF8.decode(bytes);
  } catch {
    return invalid("not UTF-8");
  }
}

/** Data: name length u32, name, number of items u16, items u16 each, and nothing more. */
export function decodeExportQuery(
  data: Buffer,
): { name: string; items: readonly number[] } | QueryFault {
  if (data.length < 6) return invalid("option data too short");
  const nameLength = data.readUInt32BE(0);
  if (nameLength > data.length - 6) return invalid("export name longer than the option data");
  const itemsAt = 4 + nameLength + 2;
  const itemCount = data.readUInt16BE(itemsAt - 2);
  if (data.length !== itemsAt + 2 * itemCount) {
    return invalid("number of information items does not fit the data");
  }
  const name = exportName(data, nameLength);
  if (name instanceof QueryFault) return name;
  const items: number[] = [];
  for (let i = 0; i < itemCount; i++) items.push(data.readUInt16BE(itemsAt + 2 * i));
  return { name, items };
}

/** Data: name length u32, name, number of queries u32, queries with their lengths u32 each. */
export function decodeContextQuery(
  data: Buffer,
): { name: string; queries: readonly string[] } | QueryFault {
  if (data.length < 8) return invalid("option data too short");
  const nameLength = data.readUInt32BE(0);
  if (nameLength > data.length - 8) return invalid("export name longer than the option data");
  const name = exportName(data, nameLength);
  if (name instanceof QueryFault) return name;
  const count = data.readUInt32BE(4 + nameLength);
  if (count > QUERIES_MAX) return new QueryFault(REPLY.ERR_TOO_BIG, `above ${QUERIES_MAX} queries`);
  const queries: string[] = [];
  let at = 8 + nameLength;
  for (let i = 0; i < count; i++) {
    if (data.length - at < 4) return invalid("number of queries does not fit the data");
    const length = data.readUInt32BE(at);
    at += 4;
    if (length > data.length - at) return invalid("query longer than the option data");
    const query = decodeName(data.subarray(at, at + length));
    if (query instanceof QueryFault) return new QueryFault(query.type, `query: ${query.message}`);
    if (!query.includes(":")) return invalid("query without a namespace");
    queries.push(query);
    at += length;
  }
  return at === data.length ? { name, queries } : invalid("bytes behind the queries");
}

function exportName(data: Buffer, length: number): string | QueryFault {
  const name = decodeName(data.subarray(4, 4 + length));
  if (!(name instanceof QueryFault)) return name;
  return new QueryFault(name.type, `export name: ${name.message}`);
}
