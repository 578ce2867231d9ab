/**
 * One FUSE connection: requests as bytes in, replies as bytes out, the file system behind. It
 * negotiates INIT, turns errors into errnos, remembers which requests are unanswered (so that an
 * INTERRUPT finds its request) and undoes what the kernel will never hear of.
 *
 * Owns: the negotiated parameters and the set of unanswered requests. Does no I/O and reads no
 * clock of its own: the device gives it a `ReplySink` and `now`. `receive` never throws.
 */
import { constants } from "node:os";
import { AssertionFailure } from "../../cluster/base/assert.js";
import { DssError, describeError, isDssError } from "../../cluster/base/errors.js";
import type { Logger } from "../../cluster/base/log.js";
import type { FileSystem, KernelNotifier } from "../file-system.js";
import * as abi from "./abi.js";
import {
  MethodMissing,
  OPCODE,
  type Reply,
  Request,
  requestKey,
  type Row,
  rowOf,
} from "./opcodes.js";

const { EIO, ENOSYS, EPROTO, EAGAIN } = constants.errno;

/** Where whole replies go. Both return false when the kernel no longer wants the answer. */
export interface ReplySink {
  /** `message` is the connection's scratch and may be overwritten as soon as this returns. */
  send(message: Buffer, length: number): boolean;
  /** `header` and `pieces` belong to the sink until it calls `written`, which it does once. */
  sendPieces(
    header: Buffer,
    pieces: readonly Buffer[],
    length: number,
    written: () => void,
  ): boolean;
}

/** The buffer of one request: `release` is called exactly once, when it may be reused. */
export interface RequestLease {
  readonly bytes: Buffer;
  release(): void;
}

/** Called once per answered request that reached the file system. Must not throw. */
export type RequestObserver = (
  operation: string,
  /** Milliseconds from arrival to reply. */
  elapsedMs: number,
  /** Bytes of data read or written; 0 for other operations. */
  bytes: number,
  /** 0 for success. */
  errno: number,
) => void;

export interface Negotiated {
  /** Minor version of the kernel's protocol. */
  kernelMinor: number;
  flags: number;
  flags2: number;
  maxWriteBytes: number;
  maxPages: number;
}

/** What must be kept before an answer leaves, and may be forgotten once the kernel has it. */
export interface ReplyRecord {
  commit(): void;
  /** `cause`: as in `Caller`. */
  replied(cause: number): void;
}

export interface ConnectionOptions {
  fileSystem: FileSystem;
  notifier: KernelNotifier;
  sink: ReplySink;
  logger: Logger;
  /** A bug was found: must end the process. */
  crash: (error: unknown) => void;
  /** Monotonic milliseconds; read only when there is an observer. */
  now: () => number;
  observer?: RequestObserver;
  record?: ReplyRecord;
  /** INIT has been answered, or refused with an error. */
  onReady: (outcome: Negotiated | DssError) => void;
  /** Carry on with a connection that another process has negotiated. */
  resume?: Negotiated;
}

export const MAX_WRITE_BYTES = 1024 * 1024;
export const MAX_PAGES = MAX_WRITE_BYTES / abi.PAGE_SIZE;
const MAX_READAHEAD_BYTES = 4 * 1024 * 1024;
/** Background requests (read-ahead, asynchronous direct I/O) that the kernel may have in flight. */
const MAX_BACKGROUND = 128;
const CONGESTION_THRESHOLD = 96;
/** Pages in a request when the kernel does not let us choose. */
const DEFAULT_MAX_PAGES = 32;

const I = abi.INIT_FLAG;
const WANTED_FLAGS =
  I.ASYNC_READ |
  I.BIG_WRITES |
  I.ATOMIC_O_TRUNC |
  I.PARALLEL_DIROPS |
  // Always: the file system decides which entries come with attributes.
  I.DO_READDIRPLUS |
  I.ASYNC_DIO |
  I.MAX_PAGES |
  I.CACHE_SYMLINKS |
  I.EXPORT_SUPPORT |
  I.HANDLE_KILLPRIV_V2 |
  // The file system masks modes itself: a default access control list counts instead of the umask.
  I.DONT_MASK |
  I.SETXATTR_EXT |
  I.ABORT_ERROR |
  I.INIT_EXT;
const WANTED_FLAGS2 = abi.INIT_FLAG2.DIRECT_IO_ALLOW_MMAP | abi.INIT_FLAG2.HAS_RESEND;

const nothing = (): void => undefined;
/** Room for the header and every answer of fixed size. */
const SCRATCH_SIZE = 512;

export class Connection {
  private readonly fs: FileSystem;
  private readonly sink: ReplySink;
  private readonly logger: Logger;
  private readonly options: ConnectionOptions;
  private readonly observer: RequestObserver | undefined;
  private readonly record: ReplyRecord | undefined;
  private readonly reply: Reply = newReply();
  private readonly unanswered = new Map<number, Request>();
  private negotiated: Negotiated | undefined;
  private idleWaiters: (() => void)[] = [];
  private destroying: Promise<void> | undefined;

  constructor(options: ConnectionOptions) {
    this.options = options;
    this.fs = options.fileSystem;
    this.sink = options.sink;
    this.logger = options.logger;
    this.observer = options.observer;
    this.record = options.record;
    if (options.resume) this.start(options.resume);
  }

  /** Requests that have no answer yet. */
  get inFlight(): number {
    return this.unanswered.size;
  }

  /** Serves the request in the first `length` bytes of the lease's buffer. */
  receive(lease: RequestLease, length: number): void {
    const message = lease.bytes;
    if (length < abi.IN_HEADER_SIZE || abi.u32(message, abi.IN_LENGTH) !== length) {
      this.logger.error({ length }, "FUSE request with a wrong length: ignored");
      lease.release();
      return;
    }
    const request = new Request(message, length);
    const row = rowOf(request.opcode);
    const bodyLength = length - abi.IN_HEADER_SIZE;
    if (row === undefined || bodyLength < row.bodySize) {
      const problem = row === undefined ? "unknown opcode" : "request is too short";
      this.logger.warn({ opcode: request.opcode, length }, `FUSE: ${problem}`);
      if (!hasNoReply(request.opcode)) this.sendErrno(request, row === undefined ? ENOSYS : EIO);
      lease.release();
    } else if (row.method === undefined) {
      try {
        this.receiveOwn(row, request);
      } catch (error) {
        if (!hasNoReply(request.opcode)) this.sendErrno(request, this.errnoOf(error, row.name));
      }
      lease.release();
    } else if (this.negotiated === undefined) {
      this.sendErrno(request, EIO); // The kernel sends nothing before INIT.
      lease.release();
    } else {
      this.serve(row, request, lease);
    }
  }

  /** Resolves when every request has been answered. */
  async idle(): Promise<void> {
    if (this.unanswered.size === 0) return;
    await new Promise<void>((resolve) => this.idleWaiters.push(resolve));
  }

  /** Nobody waits for answers any more: what waits for others (locks) need not go on. */
  interruptAll(): void {
    for (const request of this.unanswered.values()) interrupt(request);
  }

  /** Tells the file system, once, that the mount is gone. */
  destroy(): Promise<void> {
    this.destroying ??= this.negotiated === undefined ? Promise.resolve() : this.fs.destroy();
    return this.destroying;
  }

  private serve(row: Row, request: Request, lease: RequestLease): void {
    if (this.observer) request.startedMs = this.options.now();
    const key = request.key;
    this.unanswered.set(key, request);
    let answer: Promise<unknown>;
    try {
      request.ino = request.nodeId();
      request.extendedXattrs = (this.negotiated!.flags & I.SETXATTR_EXT) !== 0;
      answer = row.call(request, this.fs);
    } catch (error) {
      lease.release();
      this.fail(row, request, key, error);
      return;
    }
    request.forgetMessage();
    if (row.keepsMessage) {
      answer.then(
        (value) => {
          lease.release();
          this.succeed(row, request, key, value);
        },
        (error: unknown) => {
          lease.release();
          this.fail(row, request, key, error);
        },
      );
    } else {
      lease.release();
      answer.then(
        (value) => this.succeed(row, request, key, value),
        (error: unknown) => this.fail(row, request, key, error),
      );
    }
  }

  private succeed(row: Row, request: Request, key: number, value: unknown): void {
    const reply = this.reply;
    let length: number;
    let delivered: boolean;
    try {
      reply.pieces = undefined;
      length = abi.OUT_HEADER_SIZE + row.encode(reply, value, request, this.fs);
      const pieces = reply.pieces as readonly Buffer[] | undefined;
      this.record?.commit();
      this.unanswered.delete(key);
      if (pieces === undefined) {
        this.putHeader(reply.view, length, 0, request);
        delivered = this.sink.send(reply.scratch, length);
        row.sent?.(this.fs, value);
      } else {
        const header = Buffer.allocUnsafe(abi.OUT_HEADER_SIZE);
        this.putHeader(abi.viewOf(header), length, 0, request);
        const written = row.sent === undefined ? nothing : () => row.sent!(this.fs, value);
        delivered = this.sink.sendPieces(header, pieces, length, written);
      }
    } catch (error) {
      this.fail(row, request, key, error);
      return;
    }
    this.record?.replied(key);
    if (!delivered && row.undo !== undefined) {
      try {
        row.undo(request, this.fs, value);
      } catch (error) {
        this.options.crash(error);
      }
    }
    if (this.observer) {
      const data = row.opcode === OPCODE.WRITE ? request.limit : length - abi.OUT_HEADER_SIZE;
      this.observe(row, request, row.method === "read" || row.keepsMessage ? data : 0, 0);
    }
    this.settled();
  }

  private fail(row: Row, request: Request, key: number, error: unknown): void {
    request.forgetMessage();
    this.unanswered.delete(key);
    const errno = this.errnoOf(error, row.name);
    this.record?.commit();
    this.sendErrno(request, errno);
    this.record?.replied(key);
    if (this.observer) this.observe(row, request, 0, errno);
    this.settled();
  }

  private observe(row: Row, request: Request, bytes: number, errno: number): void {
    this.observer?.(row.name, this.options.now() - request.startedMs, bytes, errno);
  }

  private settled(): void {
    if (this.unanswered.size > 0 || this.idleWaiters.length === 0) return;
    const waiters = this.idleWaiters;
    this.idleWaiters = [];
    for (const wake of waiters) wake();
  }

  /** The only place that turns an error into an errno. */
  private errnoOf(error: unknown, operation: string): number {
    if (isDssError(error)) {
      if (error.errno === EIO) {
        this.logger.warn({ operation, error: describeError(error) }, "FUSE request failed");
      }
      return error.errno > 0 && error.errno <= abi.ERRNO_MAX ? error.errno : EIO;
    }
    if (error instanceof MethodMissing) return ENOSYS;
    if (error instanceof AssertionFailure) {
      this.options.crash(error);
      return EIO;
    }
    const stack = error instanceof Error ? error.stack : undefined;
    this.logger.error(
      { operation, error: describeError(error), stack },
      "FUSE request failed with an unexpected error",
    );
    return EIO;
  }

  private putHeader(message: DataView, length: number, errno: number, request: Request): void {
    message.setUint32(0, length, true);
    message.setInt32(4, -errno, true);
    message.setUint32(8, request.uniqueLow, true);
    message.setUint32(12, request.uniqueHigh, true);
  }

  private sendErrno(request: Request, errno: number): void {
    this.putHeader(this.reply.view, abi.OUT_HEADER_SIZE, errno, request);
    this.sink.send(this.reply.scratch, abi.OUT_HEADER_SIZE);
  }

  /** Requests that the connection answers itself, or that have a fixed errno. */
  private receiveOwn(row: Row, request: Request): void {
    switch (request.opcode) {
      case OPCODE.FORGET: {
        const ino = abi.u53(request.message, abi.IN_NODE_ID);
        this.fs.forget(ino, request.u53(0));
        return;
      }
      case OPCODE.BATCH_FORGET:
        this.onBatchForget(request);
        return;
      case OPCODE.INIT:
        this.onInit(request);
        return;
      case OPCODE.INTERRUPT:
        this.onInterrupt(request);
        return;
      case OPCODE.DESTROY:
        this.destroy().then(
          () => this.sendErrno(request, 0),
          (error: unknown) => this.sendErrno(request, this.errnoOf(error, row.name)),
        );
        return;
      case OPCODE.NOTIFY_REPLY:
        this.logger.warn({}, "FUSE: answer to a RETRIEVE that was never sent");
        return;
      default:
        this.sendErrno(request, row.errno);
    }
  }

  private onBatchForget(request: Request): void {
    const count = request.u32(0);
    const room = request.length - abi.IN_HEADER_SIZE - abi.SIZE.batchForget;
    if (count * abi.SIZE.forgetOne > room) {
      this.logger.error({ count, room }, "FUSE: BATCH_FORGET is shorter than its count");
      return;
    }
    for (let i = 0, at: number = abi.SIZE.batchForget; i < count; i++) {
      this.fs.forget(request.u53(at), request.u53(at + 8));
      at += abi.SIZE.forgetOne;
    }
  }

  /**
   * Marks the request's caller. A request that is not here either has been answered, and the kernel
   * ignores this reply, or has not come out of its reader yet: EAGAIN makes the kernel ask again.
   */
  private onInterrupt(request: Request): void {
    const low = request.u32(0);
    const high = request.u32(4);
    const target = this.unanswered.get(requestKey(low, high));
    if (target) interrupt(target);
    else this.sendErrno(request, EAGAIN);
  }

  private onInit(request: Request): void {
    const major = request.u32(0);
    const minor = request.u32(4);
    const scratch = this.reply.scratch;
    if (this.negotiated !== undefined) {
      this.sendErrno(request, EIO);
      return;
    }
    if (major > abi.FUSE_MAJOR) {
      // The kernel tries again with our major version.
      const length = abi.OUT_HEADER_SIZE + abi.INIT_OUT_SIZE;
      scratch.fill(0, 0, length);
      scratch.writeUInt32LE(abi.FUSE_MAJOR, BODY);
      scratch.writeUInt32LE(abi.FUSE_MINOR, BODY + 4);
      this.putHeader(this.reply.view, length, 0, request);
      this.sink.send(scratch, length);
      return;
    }
    if (major < abi.FUSE_MAJOR || minor < abi.FUSE_MINOR_MIN) {
      this.sendErrno(request, EPROTO);
      const needed = `${abi.FUSE_MAJOR}.${abi.FUSE_MINOR_MIN}`;
      this.options.onReady(
        new DssError(
          "IncompatibleVersion",
          `the kernel speaks FUSE ${major}.${minor}; dss needs ${needed} (Linux 5.4) or later`,
        ),
      );
      return;
    }
    const offered = request.u32(12);
    const extended =
      (offered & I.INIT_EXT) !== 0 && request.length >= abi.IN_HEADER_SIZE + abi.SIZE.initExtended;
    // Without them the kernel keeps locks itself, for this machine.
    const locks = this.fs.setlk === undefined ? 0 : I.POSIX_LOCKS | I.FLOCK_LOCKS;
    const lists = this.fs.getxattr === undefined ? 0 : I.POSIX_ACL;
    const flags = offered & (WANTED_FLAGS | locks | lists);
    const flags2 = extended ? request.u32(16) & WANTED_FLAGS2 : 0;
    const maxPages = flags & I.MAX_PAGES ? MAX_PAGES : DEFAULT_MAX_PAGES;
    const negotiated: Negotiated = {
      kernelMinor: minor,
      flags,
      flags2,
      maxPages,
      maxWriteBytes: Math.min(MAX_WRITE_BYTES, maxPages * abi.PAGE_SIZE),
    };
    this.start(negotiated);
    const length = abi.OUT_HEADER_SIZE + abi.INIT_OUT_SIZE;
    scratch.fill(0, 0, length);
    scratch.writeUInt32LE(abi.FUSE_MAJOR, BODY);
    scratch.writeUInt32LE(abi.FUSE_MINOR, BODY + 4);
    scratch.writeUInt32LE(MAX_READAHEAD_BYTES, BODY + 8);
    scratch.writeUInt32LE(flags >>> 0, BODY + 12);
    scratch.writeUInt16LE(MAX_BACKGROUND, BODY + 16);
    scratch.writeUInt16LE(CONGESTION_THRESHOLD, BODY + 18);
    scratch.writeUInt32LE(negotiated.maxWriteBytes, BODY + 20);
    scratch.writeUInt32LE(1, BODY + 24); // Time granularity: nanoseconds.
    scratch.writeUInt16LE(maxPages, BODY + 28);
    scratch.writeUInt32LE(flags2 >>> 0, BODY + 32);
    this.putHeader(this.reply.view, length, 0, request);
    this.sink.send(scratch, length);
    this.options.onReady(negotiated);
  }

  private start(negotiated: Negotiated): void {
    this.negotiated = negotiated;
    this.fs.init(this.options.notifier, {
      canInvalidateAllEntries: negotiated.kernelMinor >= abi.MINOR_INC_EPOCH,
    });
  }
}

const BODY = abi.OUT_HEADER_SIZE;
function newReply(): Reply {
  const scratch = Buffer.alloc(SCRATCH_SIZE);
  return { scratch, view: abi.viewOf(scratch), pieces: undefined };
}

function interrupt({ caller }: Request): void {
  if (caller.interrupted === true) return;
  caller.interrupted = true;
  caller.onInterrupt?.();
}

function hasNoReply(opcode: number): boolean {
  return (
    opcode === OPCODE.FORGET || opcode === OPCODE.BATCH_FORGET || opcode === OPCODE.NOTIFY_REPLY
  );
}
