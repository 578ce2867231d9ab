/**
 * The replies of the transmission phase, encoded as the session negotiated them: simple ones,
 * chunks, or chunks with extended headers. Pure.
 *
 * Invariants: every reply ends with exactly one message that says it is the last; a session without
 * structured replies gets simple ones only, one with extended headers chunks only; what reads as
 * zeros is told as a hole where chunks are allowed, found by looking at the bytes, so that it does
 * not matter why they are zero.
 */
import { assert } from "../cluster/base/assert.js";
import {
  ALLOCATION_ID,
  CHUNK,
  CHUNK_FLAG_DONE,
  EXTENDED_REPLY_MAGIC,
  NBD_ERROR,
  SIMPLE_REPLY_MAGIC,
  SIMPLE_REPLY_SIZE,
  STRING_BYTES_MAX,
  STRUCTURED_REPLY_MAGIC,
  type RequestKey,
  type Session,
} from "./abi.js";

/** Holes are looked for in aligned blocks of so many bytes: what volumes can have as holes. */
const HOLE_BLOCK = 4096;
const ZEROS = Buffer.alloc(HOLE_BLOCK);
const U32 = 0x1_0000_0000;
/** The longest extent that a compact block status can tell; a multiple of every block size. */
const COMPACT_EXTENT_MAX = U32 - 65_536;

/** A stretch of a read: its bytes, or why they cannot be had. Lengths are bytes. */
export type ReadPart =
  | { readonly length: number; readonly pieces: readonly Buffer[] }
  | { readonly length: number; readonly error: number; readonly message: string };

export interface StatusExtent {
  /** Bytes, more than 0. */
  readonly length: number;
  /** Bits of STATE. */
  readonly flags: number;
}

/** Success of anything but a read or a block status. */
export function encodeDone(session: Session, key: RequestKey, out: Buffer[]): void {
  if (session.extended) out.push(chunk(session, key, CHUNK.NONE, { last: true, payload: 0 }));
  else out.push(simple(key, NBD_ERROR.NONE));
}

/** Failure of any request as a whole; `message` is for people and told where there is room. */
export function encodeError(
  session: Session,
  key: RequestKey,
  failure: { error: number; message: string },
  out: Buffer[],
): void {
  if (!session.structured) {
    out.push(simple(key, failure.error));
    return;
  }
  const text = truncated(failure.message);
  const payload = 6 + text.length;
  const head = chunk(session, key, CHUNK.ERROR, { last: true, payload, inline: payload });
  let at = head.length - payload;
  at = head.writeUInt32BE(failure.error, at);
  at = head.writeUInt16BE(text.length, at);
  text.copy(head, at);
  out.push(head);
}

/**
 * A read of `parts` from `offset` on. Without structured replies there must be no failed part.
 * `whole` (the flag DF): at most one chunk of content; with a failed part none.
 */
export function encodeRead(
  session: Session,
  key: RequestKey,
  read: { offset: number; parts: readonly ReadPart[]; whole: boolean },
  out: Buffer[],
): void {
  if (!session.structured) {
    out.push(simple(key, NBD_ERROR.NONE));
    for (const part of read.parts) {
      assert("pieces" in part, "a simple reply cannot fail halfway");
      for (const piece of part.pieces) out.push(piece);
    }
    return;
  }
  const runs = runsOf(read);
  if (runs.length === 0) {
    out.push(chunk(session, key, CHUNK.NONE, { last: true, payload: 0 }));
    return;
  }
  const end = runs.length - 1;
  for (let i = 0; i <= end; i++) pushRun(session, key, runs[i]!, i === end, out);
}

/** One chunk about the allocation context. */
export function encodeStatus(
  session: Session,
  key: RequestKey,
  extents: readonly StatusExtent[],
  out: Buffer[],
): void {
  assert(session.structured && extents.length > 0, "a block status needs a chunk and an extent");
  if (session.extended) {
    const payload = 8 + 16 * extents.length;
    const type = CHUNK.BLOCK_STATUS_EXT;
    const head = chunk(session, key, type, { last: true, payload, inline: payload });
    let at = head.writeUInt32BE(ALLOCATION_ID, head.length - payload);
    at = head.writeUInt32BE(extents.length, at);
    for (const { length, flags } of extents) {
      at = putU64(head, length, at);
      at = putU64(head, flags, at);
    }
    out.push(head);
    return;
  }
  const fitting = compactExtents(extents);
  const payload = 4 + 8 * fitting.length;
  const head = chunk(session, key, CHUNK.BLOCK_STATUS, { last: true, payload, inline: payload });
  let at = head.writeUInt32BE(ALLOCATION_ID, head.length - payload);
  for (const { length, flags } of fitting) {
    at = head.writeUInt32BE(length, at);
    at = head.writeUInt32BE(flags, at);
  }
  out.push(head);
}

// ---- Headers ----------------------------------------------------------------------------------

function simple(key: RequestKey, error: number): Buffer {
  const out = Buffer.allocUnsafe(SIMPLE_REPLY_SIZE);
  out.writeUInt32BE(SIMPLE_REPLY_MAGIC, 0);
  out.writeUInt32BE(error, 4);
  out.writeUInt32BE(key.cookieHigh, 8);
  out.writeUInt32BE(key.cookieLow, 12);
  return out;
}

/**
 * A chunk's header for `payload` bytes, of which the first `inline` follow in the same buffer, for
 * the caller to fill in.
 */
function chunk(
  session: Session,
  key: RequestKey,
  type: number,
  { last, payload, inline = 0 }: { last: boolean; payload: number; inline?: number },
): Buffer {
  const { extended } = session;
  const out = Buffer.allocUnsafe((extended ? 32 : 20) + inline);
  out.writeUInt32BE(extended ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC, 0);
  out.writeUInt16BE(last ? CHUNK_FLAG_DONE : 0, 4);
  out.writeUInt16BE(type, 6);
  out.writeUInt32BE(key.cookieHigh, 8);
  out.writeUInt32BE(key.cookieLow, 12);
  if (extended) {
    out.writeUInt32BE(key.offsetHigh, 16);
    out.writeUInt32BE(key.offsetLow, 20);
    putU64(out, payload, 24);
  } else {
    out.writeUInt32BE(payload, 16);
  }
  return out;
}

function putU64(out: Buffer, value: number, at: number): number {
  out.writeUInt32BE(Math.floor(value / U32), at);
  return out.writeUInt32BE(value % U32, at + 4);
}

/** Cuts at a character, because a string of the protocol is UTF-8 of at most 4,096 bytes. */
export function truncated(message: string): Buffer {
  const bytes = Buffer.from(message);
  if (bytes.length <= STRING_BYTES_MAX) return bytes;
  let end = STRING_BYTES_MAX;
  while ((bytes[end]! & 0xc0) === 0x80) end--;
  return bytes.subarray(0, end);
}

/** What compact descriptors can tell: the rest is for the client to ask again. */
function compactExtents(extents: readonly StatusExtent[]): StatusExtent[] {
  const fitting: StatusExtent[] = [];
  for (const { length, flags } of extents) {
    fitting.push({ length: Math.min(length, COMPACT_EXTENT_MAX), flags });
    if (length > COMPACT_EXTENT_MAX) break;
  }
  return fitting;
}

// ---- Reads ------------------------------------------------------------------------------------

interface Slice {
  readonly piece: Buffer;
  readonly from: number;
  to: number;
}
type Run =
  | { readonly is: "data"; readonly offset: number; length: number; readonly slices: Slice[] }
  | { readonly is: "hole"; readonly offset: number; length: number }
  | {
      readonly is: "error";
      readonly offset: number;
      readonly error: number;
      readonly message: string;
    };

function pushRun(
  session: Session,
  key: RequestKey,
  run: Run,
  last: boolean,
  out: Buffer[],
): void {
  switch (run.is) {
    case "data": {
      const payload = 8 + run.length;
      const head = chunk(session, key, CHUNK.OFFSET_DATA, { last, payload, inline: 8 });
      putU64(head, run.offset, head.length - 8);
      out.push(head);
      for (const { piece, from, to } of run.slices) {
        out.push(from === 0 && to === piece.length ? piece : piece.subarray(from, to));
      }
      break;
    }
    case "hole": {
      const head = chunk(session, key, CHUNK.OFFSET_HOLE, { last, payload: 12, inline: 12 });
      const at = putU64(head, run.offset, head.length - 12);
      head.writeUInt32BE(run.length, at);
      out.push(head);
      break;
    }
    case "error": {
      const text = truncated(run.message);
      const payload = 14 + text.length;
      const type = CHUNK.ERROR_OFFSET;
      const head = chunk(session, key, type, { last, payload, inline: payload });
      let at = head.writeUInt32BE(run.error, head.length - payload);
      at = head.writeUInt16BE(text.length, at);
      at += text.copy(head, at);
      putU64(head, run.offset, at);
      out.push(head);
      break;
    }
  }
}

/** Data, holes and errors in ascending order. */
function runsOf(read: { offset: number; parts: readonly ReadPart[]; whole: boolean }): Run[] {
  const runs: Run[] = [];
  const failed = read.parts.some((part) => "error" in part);
  let offset = read.offset;
  for (const part of read.parts) {
    if ("error" in part) runs.push({ is: "error", offset, ...part });
    else if (!read.whole) addRuns(runs, offset, part.pieces);
    else if (!failed) addWhole(runs, offset, part);
    offset += part.length;
  }
  return runs;
}

function addWhole(
  runs: Run[],
  offset: number,
  part: { length: number; pieces: readonly Buffer[] },
): void {
  const slices = part.pieces.map((piece) => ({ piece, from: 0, to: piece.length }));
  const before = runs.at(-1);
  if (before?.is === "data") {
    before.length += part.length;
    before.slices.push(...slices);
  } else {
    runs.push({ is: "data", offset, length: part.length, slices });
  }
}

/** A block is a hole when every piece of it is zeros. */
function addRuns(runs: Run[], offset: number, pieces: readonly Buffer[]): void {
  let at = offset;
  let block: Slice[] = [];
  let zero = true;
  const finish = (): void => {
    if (block.length > 0) addBlock(runs, { at, block, zero });
    for (const { from, to } of block) at += to - from;
    block = [];
    zero = true;
  };
  let left = HOLE_BLOCK - (offset % HOLE_BLOCK);
  for (const piece of pieces) {
    for (let from = 0; from < piece.length; ) {
      const to = Math.min(piece.length, from + left);
      zero &&= isZero(piece, from, to);
      block.push({ piece, from, to });
      left -= to - from;
      from = to;
      if (left > 0) continue;
      finish();
      left = HOLE_BLOCK;
    }
  }
  finish();
}

function addBlock(
  runs: Run[],
  { at, block, zero }: { at: number; block: Slice[]; zero: boolean },
): void {
  let length = 0;
  for (const { from, to } of block) length += to - from;
  const before = runs.at(-1);
  if (zero) {
    if (before?.is === "hole") before.length += length;
    else runs.push({ is: "hole", offset: at, length });
    return;
  }
  if (before?.is !== "data") {
    runs.push({ is: "data", offset: at, length, slices: block });
    return;
  }
  before.length += length;
  for (const slice of block) {
    const last = before.slices.at(-1)!;
    if (last.piece === slice.piece && last.to === slice.from) last.to = slice.to;
    else before.slices.push(slice);
  }
}

/** Looks at three bytes first: data are rarely zero at all of them. */
function isZero(piece: Buffer, from: number, to: number): boolean {
  if (piece[from] !== 0 || piece[to - 1] !== 0 || piece[(from + to) >> 1] !== 0) return false;
  return piece.compare(ZEROS, 0, to - from, from, to) === 0;
}
