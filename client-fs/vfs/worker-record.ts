/**
 * What a mount's worker leaves to the next one if it dies (design §7 Supervisor and worker): its
 * session, the handles that the kernel has, changes that may not be in the journal or not be
 * answered, locks, files whose written data or sizes are not the cluster's yet, and the bytes of
 * small files that were closed and are not written back.
 *
 * A log of notes in a file in memory (tmpfs), which outlives the process but not the machine, as
 * the mount does. Notes are collected and appended together before anything leaves the process
 * that rests on them (`commit`): an answer to the kernel, a message to the leader. So the record
 * is never behind what anybody else has been told. A note that was not appended is about something
 * that nobody has heard of. When the log has grown long it is written anew.
 *
 * Owns: the log, and in memory what a new log would say.
 */
import { crc32 } from "../../cluster/base/checksum.js";
import { DssError } from "../../cluster/base/errors.js";
import type { ClientId, Ino } from "../../cluster/base/ids.js";
import type { LockedRange } from "../../cluster/base/lock-ranges.js";
import { msgpack } from "../../cluster/wire/registry.js";
import type { LoggedRequest, RequestLog } from "../../mds/client/request-log.js";
import type { LockKind, Request } from "../../mds/proto.js";

/** Where the log is. Synchronous: nothing is answered before it is there. */
export interface RecordStore {
  /** Bytes that may still be stored, here and by others. */
  room(): number;
  /** Empty for the first worker of a mount. */
  read(): Buffer;
  /** One after the other, without a gap. */
  append(parts: readonly Buffer[]): void;
  /** Instead of everything so far, at once. */
  replace(parts: readonly Buffer[]): void;
}

/** A format that another version cannot read has another number. */
export const RECORD_FORMAT = 3;
const HEADER_BYTES = 8;
/**
 * The log is written anew after so many bytes of notes; and when those of files that are written
 * back are so many more than those that are not, so that a byte is copied less than half a time.
 */
const REWRITE_BYTES = 8 * 2 ** 20;
const REWRITE_KEPT_BYTES = 32 * 2 ** 20;
/** Frames up to this size are put together in memory that is used again. */
const SCRATCH_BYTES = 64 * 2 ** 10;
/** Of all files that are kept at a time; those beyond are not. */
const KEPT_BYTES_MAX = 24 * 2 ** 20;
/**
 * Part of the room that each of the two may have at most: the log is three times that, and a new
 * one that again, beside it.
 */
const ROOM_PART = 1 / 6;
const DONE_MAX = 1_024;

/** State of a file's data, as bits. */
export const UNTOLD = 1; // Its size or time may not be the leader's.
export const UNWRITTEN = 2; // Written data are only in the worker's memory.
export const FAILED = 4; // A write-back failed, or data were lost, and nobody has been told yet.
export const KEPT = 8; // The record has what is UNWRITTEN.

export interface RecordedHandle {
  id: number;
  ino: Ino;
  flags: number;
  /** The kernel's request that opened it. */
  cause: number;
  isDirectory: boolean;
}
export interface RecordedLock {
  kind: LockKind;
  ino: Ino;
  name: string;
  ranges: LockedRange[];
  handles: number[];
}
/** A synchronous append: its place was chosen before its data was written. */
export interface RecordedAppend {
  cause: number;
  ino: Ino;
  position: number;
  length: number;
}
/** What of a file is not written back. */
export interface KeptFile {
  ino: Ino;
  mtimeNs: bigint;
  pieces: readonly { start: number; data: Buffer }[];
}
export interface Recorded {
  client: ClientId;
  /** Of the worker that wrote it. */
  generation: number;
  requests: LoggedRequest[];
  handles: RecordedHandle[];
  data: { ino: Ino; bits: number }[];
  kept: KeptFile[];
  locks: RecordedLock[];
  appends: RecordedAppend[];
}

type Note =
  | ["format", number, number]
  | ["session", ClientId]
  | ["request", LoggedRequest]
  | ["amended", number, Partial<Request>]
  | ["answered", number, Ino]
  | ["settled", number, boolean]
  | ["open", RecordedHandle]
  | ["close", number]
  | ["data", Ino, number]
  | ["keep", KeptFile]
  | ["lock", string, RecordedLock]
  | ["unlock", string]
  | ["append", RecordedAppend];
/** In the log: where its bytes are is said by all notes before it, what they are by `sum`. */
type KeptNote = ["keep", { ino: Ino; mtimeNs: bigint; pieces: KeptPiece[] }];
interface KeptPiece {
  start: number;
  length: number;
  sum: number;
}
type LoggedNote = Exclude<Note, ["keep", KeptFile]> | KeptNote;
const notesCodec = msgpack<LoggedNote[]>();

/** What all notes together say. */
class State {
  client: ClientId = 0;
  generation = 0;
  readonly requests = new Map<number, LoggedRequest>();
  readonly handles = new Map<number, RecordedHandle>();
  readonly data = new Map<Ino, number>();
  readonly kept = new Map<Ino, KeptFile>();
  keptBytes = 0;
  readonly locks = new Map<string, RecordedLock>();
  readonly appends = new Map<number, RecordedAppend>();

  apply(note: Note): void {
    switch (note[0]) {
      case "format":
        this.generation = note[2];
        return;
      case "session":
        this.client = note[1];
        return;
      case "request":
        this.requests.set(note[1].id, note[1]);
        return;
      case "amended": {
        const logged = this.requests.get(note[1]);
        if (logged !== undefined) Object.assign(logged.request, note[2]);
        return;
      }
      case "answered": {
        const request = this.requests.get(note[1]);
        if (request === undefined || request.state === "done") return;
        request.state = "answered";
        request.ino = note[2];
        return;
      }
      case "settled": {
        const request = this.requests.get(note[1]);
        if (request === undefined) return;
        if (note[2]) request.state = "done";
        else this.requests.delete(note[1]);
        return;
      }
      case "open":
        this.handles.set(note[1].id, note[1]);
        return;
      case "close":
        this.handles.delete(note[1]);
        return;
      case "data":
        if (note[2] === 0) this.data.delete(note[1]);
        else this.data.set(note[1], note[2]);
        if ((note[2] & KEPT) === 0) this.forget(note[1]);
        return;
      case "keep":
        this.forget(note[1].ino);
        this.kept.set(note[1].ino, note[1]);
        this.keptBytes += bytesOf(note[1]);
        return;
      case "lock":
        this.locks.set(note[1], note[2]);
        return;
      case "unlock":
        this.locks.delete(note[1]);
        return;
      case "append":
        this.appends.set(note[1].cause, note[1]);
        return;
    }
  }
  private forget(ino: Ino): void {
    const file = this.kept.get(ino);
    if (file === undefined) return;
    this.kept.delete(ino);
    this.keptBytes -= bytesOf(file);
  }
  /** The files' bytes are nowhere else any more. */
  forgetKept(): void {
    for (const ino of [...this.kept.keys()]) {
      this.apply(["data", ino, (this.data.get(ino) ?? 0) & ~KEPT]);
    }
  }
  /**
   * The kernel gets its answer in the moment in which a request is noted as done: only of the last
   * ones can that be open at the end of a worker.
   */
  dropAnswered(): void {
    const done = [...this.requests.values()].filter(({ state }) => state === "done");
    for (const { id } of done.slice(0, -DONE_MAX)) this.requests.delete(id);
  }
  recorded(): Recorded {
    return {
      client: this.client,
      generation: this.generation,
      requests: [...this.requests.values()]
        .sort((a, b) => a.id - b.id)
        .map((request) => ({ ...request })),
      handles: [...this.handles.values()],
      data: [...this.data].map(([ino, bits]) => ({ ino, bits })),
      kept: [...this.kept.values()],
      locks: [...this.locks.values()],
      appends: [...this.appends.values()],
    };
  }
  *notes(): Iterable<Note> {
    yield ["session", this.client];
    for (const request of this.requests.values()) yield ["request", request];
    for (const handle of this.handles.values()) yield ["open", handle];
    for (const [ino, bits] of this.data) yield ["data", ino, bits];
    for (const file of this.kept.values()) yield ["keep", file];
    for (const [key, lock] of this.locks) yield ["lock", key, lock];
    for (const append of this.appends.values()) yield ["append", append];
  }
}

export class WorkerRecord implements RequestLog {
  private readonly state = new State();
  /** Requests by what they were made for, until that is answered. */
  private readonly byCause = new Map<number, number[]>();
  private notes: Note[] = [];
  private bytes = 0;
  private keptAppended = 0;
  /** What the worker before left; undefined for the first. */
  readonly inherited: Recorded | undefined;
  /** Which worker of its mount this is. */
  readonly generation: number;

  private readonly keptMax: number;
  private readonly rewriteKept: number;
  private isBroken = false;
  private isCommitting = false;

  /**
   * `onBroken`: the record cannot be kept any more (no memory): nobody can go on after this worker.
   * Errors: IncompatibleVersion (another version's record), Corrupt.
   */
  constructor(
    private readonly store: RecordStore,
    private readonly onBroken: (error: unknown) => void = () => undefined,
  ) {
    const part = Math.floor(store.room() * ROOM_PART);
    this.keptMax = Math.min(KEPT_BYTES_MAX, part);
    this.rewriteKept = Math.min(REWRITE_KEPT_BYTES, part);
    const found = store.read();
    if (found.length > 0) {
      this.readNotes(found);
      this.state.dropAnswered();
      this.inherited = this.state.recorded();
      for (const { id, cause } of this.state.requests.values()) this.noteCause(cause, id);
    }
    this.generation = this.inherited === undefined ? 0 : this.inherited.generation + 1;
    this.state.generation = this.generation;
    this.rewrite();
  }

  private readNotes(found: Buffer): void {
    let at = 0;
    let first = true;
    while (at + HEADER_BYTES <= found.length) {
      const length = found.readUInt32LE(at);
      const sum = found.readUInt32LE(at + 4);
      const body = found.subarray(at + HEADER_BYTES, at + HEADER_BYTES + length);
      at += HEADER_BYTES + length;
      // The end of a write that its process did not survive: nobody has heard of what it says.
      if (body.length < length || crc32(body) !== sum) break;
      const logged = notesCodec.decode(body);
      const [head] = logged;
      if (first && (head?.[0] !== "format" || head[1] !== RECORD_FORMAT)) {
        throw new DssError("IncompatibleVersion", "the mount's record is another version's");
      }
      const notes = withBytes(logged, found, at);
      if (notes === undefined) break;
      first = false;
      for (const note of notes) {
        this.state.apply(note);
        if (note[0] === "keep") at += bytesOf(note[1]);
      }
    }
    if (first) throw new DssError("Corrupt", "the mount's record cannot be read");
  }

  private note(note: Note): void {
    this.state.apply(note);
    this.notes.push(note);
  }
  commit(): void {
    if (this.notes.length === 0) return;
    const notes = this.notes;
    this.notes = [];
    if (this.isBroken) return;
    try {
      this.write(notes);
    } catch (error) {
      if (this.rewriteSmaller()) return;
      this.isBroken = true;
      this.onBroken(error);
    }
  }
  /** There is no room: true when there is for what counts, or for all but the bytes of files. */
  private rewriteSmaller(): boolean {
    if (this.rewritten()) return true;
    if (this.state.kept.size === 0) return false;
    this.state.forgetKept();
    return this.rewritten();
  }
  private rewritten(): boolean {
    try {
      this.rewrite();
      return true;
    } catch {
      return false; // The first failure is told.
    }
  }
  /** For what nobody is told of: in this turn. */
  commitSoon(): void {
    if (this.isCommitting || this.notes.length === 0) return;
    this.isCommitting = true;
    queueMicrotask(() => {
      this.isCommitting = false;
      this.commit();
    });
  }
  private write(notes: Note[]): void {
    const appendedMax = this.rewriteKept + 2 * this.state.keptBytes;
    if (this.bytes > REWRITE_BYTES || this.keptAppended > appendedMax) {
      this.rewrite();
      return;
    }
    const frame = frameOf(notes);
    this.keptAppended += keptBytesOf(notes);
    this.bytes += frame[0].length;
    this.store.append(frame);
  }
  private rewrite(): void {
    const notes = [...this.state.notes()];
    const frame = frameOf([["format", RECORD_FORMAT, this.generation], ...notes]);
    // Rare, however much there is that stays.
    this.bytes = Math.min(frame[0].length, REWRITE_BYTES / 2);
    this.keptAppended = keptBytesOf(notes);
    this.store.replace(frame);
  }

  // ---- Requests --------------------------------------------------------------------------------

  session(client: ClientId): void {
    if (client !== this.state.client) this.note(["session", client]);
  }
  entered(request: LoggedRequest): void {
    this.note(["request", request]);
    this.noteCause(request.cause, request.id);
  }
  amended(id: number, more: Partial<Request>): void {
    this.note(["amended", id, more]);
  }
  private noteCause(cause: number, id: number): void {
    if (cause === 0) return;
    const ids = this.byCause.get(cause);
    if (ids === undefined) this.byCause.set(cause, [id]);
    else ids.push(id);
  }
  answered(id: number, ino: Ino): void {
    if (this.state.requests.has(id)) this.note(["answered", id, ino]);
  }
  settled(id: number, executed: boolean): void {
    const request = this.state.requests.get(id);
    if (request === undefined || request.state === "done") return;
    this.note(["settled", id, executed]);
    if (executed && !this.byCause.has(request.cause)) this.state.requests.delete(id);
  }
  /** The kernel has the answer: nobody asks for its outcome again. */
  replied(cause: number): void {
    if (this.state.appends.size > 0) this.state.appends.delete(cause);
    const ids = this.byCause.get(cause);
    if (ids === undefined) return;
    this.byCause.delete(cause);
    for (const id of ids) {
      if (this.state.requests.get(id)?.state === "done") this.state.requests.delete(id);
    }
  }

  // ---- Files -----------------------------------------------------------------------------------

  opened(handle: RecordedHandle): void {
    this.note(["open", handle]);
  }
  closed(id: number): void {
    if (this.state.handles.has(id)) this.note(["close", id]);
  }
  /** KEPT counts after `keep` only, and not when the bytes had to be left out since. */
  data(ino: Ino, bits: number): void {
    this.note(["data", ino, this.state.kept.has(ino) ? bits : bits & ~KEPT]);
  }
  /** There is room for its bytes. */
  mayKeep(file: KeptFile): boolean {
    return !this.isBroken && this.state.keptBytes + bytesOf(file) <= this.keptMax;
  }
  /** Its buffers do not change before `data` says that the file is not KEPT any more. */
  keep(file: KeptFile): void {
    this.note(["keep", file]);
  }
  append(append: RecordedAppend): void {
    this.note(["append", append]);
    this.commit();
  }
  lock(key: string, lock: RecordedLock): void {
    if (lock.ranges.length > 0 || lock.handles.length > 0) this.note(["lock", key, lock]);
    else this.unlocked(key);
  }
  unlocked(key: string): void {
    if (this.state.locks.has(key)) this.note(["unlock", key]);
  }
}

function keptBytesOf(notes: readonly Note[]): number {
  let bytes = 0;
  for (const note of notes) {
    if (note[0] === "keep") bytes += bytesOf(note[1]);
  }
  return bytes;
}
function bytesOf({ pieces }: KeptFile): number {
  return pieces.reduce((bytes, { data }) => bytes + data.length, 0);
}
const scratch = Buffer.allocUnsafeSlow(SCRATCH_BYTES);
/**
 * The notes, and after them the bytes of files of which they speak. It is to be written before the
 * next one is made.
 *
 *     0   u32  length of the notes
 *     4   u32  their crc32
 *     8   …    the notes, as msgpack
 *         …    the pieces of kept files, in the order of the notes
 */
function frameOf(notes: readonly Note[]): [Buffer, ...Buffer[]] {
  const pieces: Buffer[] = [];
  const logged = notes.map((note): LoggedNote => {
    if (note[0] !== "keep") return note;
    const { ino, mtimeNs, pieces: kept } = note[1];
    const said = kept.map(({ start, data }) => {
      pieces.push(data);
      return { start, length: data.length, sum: crc32(data) };
    });
    return ["keep", { ino, mtimeNs, pieces: said }];
  });
  const body = notesCodec.encode(logged);
  const length = HEADER_BYTES + body.length;
  const head = length <= SCRATCH_BYTES ? scratch.subarray(0, length) : Buffer.allocUnsafe(length);
  head.writeUInt32LE(body.length, 0);
  head.writeUInt32LE(crc32(body), 4);
  head.set(body, HEADER_BYTES);
  return [head, ...pieces];
}
/** The notes with the files' bytes, which begin `at`; undefined: they are not all there. */
function withBytes(logged: readonly LoggedNote[], found: Buffer, at: number): Note[] | undefined {
  const notes: Note[] = [];
  for (const note of logged) {
    if (note[0] !== "keep") {
      notes.push(note);
      continue;
    }
    const { ino, mtimeNs, pieces } = note[1];
    const whole = pieces.map(({ start, length, sum }) => {
      const data = found.subarray(at, at + length);
      at += length;
      return data.length === length && crc32(data) === sum ? { start, data } : undefined;
    });
    if (!whole.every((piece) => piece !== undefined)) return undefined;
    notes.push(["keep", { ino, mtimeNs, pieces: whole }]);
  }
  return notes;
}
