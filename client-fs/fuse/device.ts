/**
 * The shell around connection.ts: /dev/fuse, mount(8) and umount(8).
 *
 * Reading. Requests are read on the event loop when epoll says that there is one ("poll"). Node
 * has no public way to poll a character device, but its pipe handle takes any descriptor that
 * epoll takes; `process.binding("pipe_wrap")` gives it. Compared with reads that block in libuv's
 * thread pool ("threads") this saves two futex calls and a thread switch for every request: twice
 * as many 4 KiB requests a second, and large ones are no slower. A Node without the handle,
 * and a read that fails in a way that polling cannot go on from, gets threads.
 *
 * Threads. In "threads" mode every reader holds one thread of the pool all the time. Notifications
 * can block on kernel locks until requests have been answered, so in both modes they go through
 * the pool, at most NOTIFIERS at once, and never run on the event loop. What is left of the pool
 * serves large replies and the rest of the process (files, DNS, lmdb). Its size is fixed when the
 * process starts: run with UV_THREADPOOL_SIZE >= `threadPoolSize(reading)`. With fewer threads
 * there are fewer readers; the default of 4 leaves room for one.
 *
 * Buffers. A request is read into a buffer of max_write + 4 KiB. All requests but WRITE are done
 * with it when `receive` returns. A small WRITE moves to a small buffer, a large one keeps the
 * buffer until it has settled. The number of buffers is not limited here: the kernel limits it
 * (max_background plus one per blocked process), and refusing to read while writes are pending
 * could deadlock, because those may wait for a write-back that is still to be read.
 *
 * Replies are written synchronously: to wake the waiting process costs less than a trip through
 * the pool. Only large data goes through the pool, so that its copy does not hold up the loop.
 *
 * Owns: the file descriptor, the request buffers, the read-ahead setting of the mount.
 */
import { spawn } from "node:child_process";
import * as fs from "node:fs";
import * as net from "node:net";
import * as os from "node:os";
import * as path from "node:path";
import { assert } from "../../cluster/base/assert.js";
import { DssError, describeError, isDssError } from "../../cluster/base/errors.js";
import { Fifo } from "../../cluster/base/fifo.js";
import type { Logger } from "../../cluster/base/log.js";
import { noteWork } from "../../cluster/platform/node-wakeups.js";
import { OWN_FOLDER_NAME, type FileSystem, type KernelNotifier } from "../file-system.js";
import * as abi from "./abi.js";
import {
  Connection,
  MAX_WRITE_BYTES,
  type Negotiated,
  type ReplyRecord,
  type ReplySink,
  type RequestLease,
  type RequestObserver,
} from "./connection.js";
import type { Mounted, MountOptions } from "./driver.js";
import { Looker } from "./looker.js";
import { OPCODE } from "./opcodes.js";

const DEVICE_PATH = "/dev/fuse";
const SUBTYPE = "dss";
const DEFAULT_SOURCE_NAME = "dss";
const DEFAULT_READERS = 4;
const DEFAULT_READ_AHEAD_KB = 2048;
/**
 * Notifications in progress at once: some wait until locked pages are let go, for which others must
 * be told. Fewer where there are fewer threads.
 */
const NOTIFIERS = 6;
const NOTIFIERS_MIN = 2;
/** Threads for everything else: large replies, files, name resolution. */
const OTHER_THREADS = 6;
/** libuv's own default. */
const DEFAULT_POOL_SIZE = 4;
/** The descriptor that mount(8) inherits. */
const MOUNT_FD = 3;
/** Requests that are under way at a pause; some wait for locks of others. */
const PAUSE_MS = 1_000;
/** A mount whose daemon does not answer a stat for this long counts as hung. */
const PROBE_MS = 2_000;
const COMMAND_TIMEOUT_MS = 30_000;

const REQUEST_BYTES = MAX_WRITE_BYTES + abi.PAGE_SIZE;
/** A WRITE of at most this size, header included, does not keep a large buffer. */
const SMALL_REQUEST_BYTES = 20 * 1024;
/** Unused buffers kept: 16 MiB of large ones, 2.5 MiB of small ones. */
const SPARE_LARGE = 16;
const SPARE_SMALL = 128;
/** Data replies above this go through the thread pool. */
const SYNC_REPLY_BYTES = 128 * 1024;
/** Stay far below IOV_MAX (1,024): libuv would split a longer list into several writes. */
const PIECES_MAX = 256;

/** What UV_THREADPOOL_SIZE should be. */
export function threadPoolSize(
  reading: "poll" | "threads" = "poll",
  readers: number = DEFAULT_READERS,
): number {
  return (reading === "poll" ? 0 : readers) + NOTIFIERS + OTHER_THREADS;
}

function poolSize(): number {
  const configured = Number(process.env["UV_THREADPOOL_SIZE"]);
  return configured > 0 ? configured : DEFAULT_POOL_SIZE;
}

class RequestBuffer implements RequestLease {
  readonly bytes: Buffer;
  private readonly pool: BufferPool;

  constructor(pool: BufferPool, size: number) {
    this.pool = pool;
    this.bytes = Buffer.allocUnsafeSlow(size);
  }
  release(): void {
    this.pool.put(this);
  }
}

class BufferPool {
  private readonly spare: RequestBuffer[] = [];
  constructor(
    private readonly size: number,
    private readonly spareMax: number,
  ) {}

  take(): RequestBuffer {
    return this.spare.pop() ?? new RequestBuffer(this, this.size);
  }
  put(buffer: RequestBuffer): void {
    if (this.spare.length < this.spareMax) this.spare.push(buffer);
  }
}

export interface DeviceOptions {
  logger: Logger;
  /** Where the connection is mounted, or will be. */
  mountpoint: string;
  reading?: "poll" | "threads";
  readers?: number;
  observer?: RequestObserver;
  record?: ReplyRecord;
  /** Carry on with a connection that an earlier process negotiated on the same descriptor. */
  resume?: Negotiated;
}

/** Errors of reading that say: there is no request this time, ask again. */
const TRANSIENT = new Set(["ENOENT", "EINTR", "EAGAIN"]);
/** Errors of replying that say: the kernel no longer wants this answer. */
const UNWANTED = new Set(["ENOENT", "ENODEV", "ECONNABORTED", "EPERM"]);

function codeOf(error: unknown): string {
  const code = (error as NodeJS.ErrnoException | null)?.code;
  return typeof code === "string" ? code : "";
}

/** What is used of Node's handle for pipes. */
interface PipeHandle {
  open(fd: number): number | undefined;
  setBlocking(on: boolean): number;
}
interface PipeBinding {
  Pipe: new (type: number) => PipeHandle;
  constants: { SOCKET: number };
}

/** Takes the descriptor over, non-blocking; `undefined` where Node has no such handle. */
function openPipeHandle(fd: number, logger: Logger): PipeHandle | undefined {
  try {
    const host = process as unknown as { binding(name: string): unknown };
    const binding = host.binding("pipe_wrap") as PipeBinding;
    const handle = new binding.Pipe(binding.constants.SOCKET);
    const error = handle.open(fd);
    if (!error) return handle;
    logger.warn({ error }, "FUSE: cannot poll the device; reading with threads");
  } catch (error) {
    logger.warn(
      { error: describeError(error) },
      "FUSE: this Node cannot poll the device; reading with threads",
    );
  }
  return undefined;
}

/**
 * Reads whole requests whenever epoll reports one. Node destroys a socket whose read failed and
 * closes its descriptor with it; here the device decides, because closing it ends the mount.
 */
class PollingReader extends net.Socket {
  private readonly onFailure: (error: unknown) => void;

  constructor(
    handle: PipeHandle,
    nextBuffer: () => Buffer,
    onRequest: (length: number) => void,
    onFailure: (error: unknown) => void,
  ) {
    const onread = {
      buffer: nextBuffer,
      callback: (length: number) => {
        onRequest(length);
        return true;
      },
    };
    super({ handle, onread, readable: true, writable: false } as net.SocketConstructorOpts);
    this.onFailure = onFailure;
  }

  override destroy(error?: Error): this {
    const failure = error ?? new Error("end of file on /dev/fuse");
    setImmediate(() => this.onFailure(failure)); // Node may call this from the constructor.
    return this;
  }

  /** Closes the descriptor. */
  async close(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.once("close", () => resolve());
      super.destroy();
    });
  }
}

/** One open connection to the kernel. */
export class FuseDevice implements ReplySink, KernelNotifier {
  readonly connection: Connection;
  /** INIT is done; rejects when the kernel's version is too old. */
  readonly ready: Promise<Negotiated>;
  /** The kernel has closed the connection and the file system is destroyed. */
  readonly done: Promise<void>;
  private readonly fd: number;
  private readonly logger: Logger;
  private readonly large = new BufferPool(REQUEST_BYTES, SPARE_LARGE);
  private readonly small = new BufferPool(SMALL_REQUEST_BYTES, SPARE_SMALL);
  private readonly options: DeviceOptions;
  private poller: PollingReader | undefined;
  private activeReaders = 0;
  private ended = false;
  private endError: Error | undefined;
  private pendingWrites = 0;
  private notifying = 0;
  private notifiersMax = NOTIFIERS_MIN;
  private readonly notifyQueue = new Fifo<() => void>();
  private readonly looker: Looker;
  private writesDone: (() => void) | undefined;
  private settleReady!: (outcome: Negotiated | DssError) => void;
  private settleDone!: (error?: Error) => void;

  constructor(fd: number, fileSystem: FileSystem, options: DeviceOptions) {
    assert(os.endianness() === "LE", "the FUSE driver needs a little-endian machine");
    this.fd = fd;
    this.options = options;
    this.logger = options.logger;
    this.looker = new Looker(path.join(options.mountpoint, OWN_FOLDER_NAME));
    this.ready = new Promise((resolve, reject) => {
      this.settleReady = (outcome) => (isDssError(outcome) ? reject(outcome) : resolve(outcome));
    });
    this.done = new Promise((resolve, reject) => {
      this.settleDone = (error) => (error === undefined ? resolve() : reject(error));
    });
    this.ready.catch(() => undefined); // Whoever awaits them sees the errors.
    this.done.catch(() => undefined);
    this.connection = new Connection({
      fileSystem,
      notifier: this,
      sink: this,
      logger: options.logger,
      crash,
      now: () => performance.now(),
      onReady: (outcome) => this.settleReady(outcome),
      ...(options.observer ? { observer: options.observer } : {}),
      ...(options.record ? { record: options.record } : {}),
      ...(options.resume ? { resume: options.resume } : {}),
    });
    if (options.resume) this.settleReady(options.resume);
  }

  /** Begins to read requests. The descriptor must belong to a mount. */
  start(): void {
    assert(this.activeReaders === 0 && !this.ended, "FuseDevice.start is called once");
    const handle =
      this.options.reading === "threads" ? undefined : openPipeHandle(this.fd, this.logger);
    this.notifiersMax = Math.max(NOTIFIERS_MIN, Math.min(NOTIFIERS, poolSize() - OTHER_THREADS));
    if (handle) this.startPolling(handle);
    else this.startReaders();
  }

  private startPolling(handle: PipeHandle): void {
    this.activeReaders++;
    let buffer = this.large.take();
    this.poller = new PollingReader(
      handle,
      () => buffer.bytes,
      (length) => {
        const full = buffer;
        buffer = this.large.take();
        this.dispatch(full, length);
      },
      (error) => {
        if (this.activeReaders === 0) return;
        if (!TRANSIENT.has(codeOf(error))) {
          this.onReaderEnd(error);
          return;
        }
        // libuv's stream is of no use after an error, the descriptor is.
        this.logger.warn({ error: describeError(error) }, "FUSE: reading with threads from now on");
        handle.setBlocking(true);
        this.startReaders();
        this.activeReaders--;
      },
    );
  }

  private startReaders(): void {
    const readers = this.chooseReaders(this.options.readers ?? DEFAULT_READERS);
    for (let i = 0; i < readers; i++) this.startReader();
  }

  private chooseReaders(wanted: number): number {
    const size = poolSize();
    const readers = Math.max(1, Math.min(wanted, size - NOTIFIERS_MIN - 1));
    const needed = threadPoolSize("threads", wanted);
    if (size < needed) {
      this.logger.warn(
        { threads: size, wanted: needed, readers },
        "UV_THREADPOOL_SIZE is small: FUSE runs with fewer readers",
      );
    }
    return readers;
  }

  private startReader(): void {
    this.activeReaders++;
    let buffer = this.large.take();
    const onRead = (error: NodeJS.ErrnoException | null, length: number): void => {
      if (error === null) {
        const full = buffer;
        buffer = this.large.take();
        this.dispatch(full, length);
      } else if (!TRANSIENT.has(codeOf(error))) {
        buffer.release();
        this.onReaderEnd(error);
        return;
      }
      fs.read(this.fd, buffer.bytes, 0, REQUEST_BYTES, null, onRead);
    };
    fs.read(this.fd, buffer.bytes, 0, REQUEST_BYTES, null, onRead);
  }

  /** Whoever takes the descriptor over asks for what is not answered by then. */
  async pause(): Promise<() => void> {
    this.poller?.pause();
    await Promise.race([
      this.connection.idle(),
      new Promise<void>((resolve) => void setTimeout(resolve, PAUSE_MS)),
    ]);
    return () => void this.poller?.resume();
  }

  private dispatch(full: RequestBuffer, length: number): void {
    noteWork();
    const isWrite = length >= abi.IN_HEADER_SIZE && abi.u32(full.bytes, 4) === OPCODE.WRITE;
    if (!isWrite || length > SMALL_REQUEST_BYTES) {
      this.connection.receive(full, length);
      return;
    }
    const small = this.small.take();
    full.bytes.copy(small.bytes, 0, 0, length);
    full.release();
    this.connection.receive(small, length);
  }

  private onReaderEnd(error: unknown): void {
    const code = codeOf(error);
    if (!this.ended) {
      this.ended = true;
      if (code === "ENODEV") this.logger.info({}, "FUSE: unmounted");
      else {
        this.endError = new DssError("ConnectionLost", "FUSE connection broke", { cause: error });
        this.logger.error({ error: describeError(error) }, "FUSE: connection broke");
      }
      this.settleReady(new DssError("ConnectionLost", "FUSE connection ended before INIT"));
    }
    this.activeReaders--;
    if (this.activeReaders === 0) void this.finish();
  }

  private async finish(): Promise<void> {
    let failure = this.endError;
    this.looker.stop();
    this.connection.interruptAll();
    try {
      await this.connection.idle();
      await this.connection.destroy();
    } catch (error) {
      failure ??= asError(error);
    }
    if (this.pendingWrites > 0) {
      await new Promise<void>((resolve) => {
        this.writesDone = resolve;
      });
    }
    try {
      if (this.poller) await this.poller.close();
      else fs.closeSync(this.fd);
    } catch (error) {
      failure ??= asError(error);
    }
    this.settleDone(failure);
  }

  // ReplySink

  send(message: Buffer, length: number): boolean {
    try {
      fs.writeSync(this.fd, message, 0, length);
      return true;
    } catch (error) {
      return this.onReplyError(error, message);
    }
  }

  sendPieces(
    header: Buffer,
    pieces: readonly Buffer[],
    length: number,
    written: () => void,
  ): boolean {
    const all = pieces.length <= PIECES_MAX ? [header, ...pieces] : [header, Buffer.concat(pieces)];
    if (length <= SYNC_REPLY_BYTES) {
      try {
        fs.writevSync(this.fd, all);
        return true;
      } catch (error) {
        return this.onReplyError(error, header);
      } finally {
        written();
      }
    }
    this.pendingWrites++;
    fs.writev(this.fd, all, (error) => {
      written();
      if (error) this.onReplyError(error, header);
      this.onWriteDone();
    });
    return true;
  }

  private onWriteDone(): void {
    this.pendingWrites--;
    if (this.pendingWrites === 0) this.writesDone?.();
  }

  private onReplyError(error: unknown, message: Buffer): boolean {
    const code = codeOf(error);
    if (UNWANTED.has(code)) return false;
    this.logger.error({ error: describeError(error) }, "FUSE: the kernel refused a reply");
    // A refused answer leaves its caller waiting for ever: answer with an error instead.
    if (message.readInt32LE(4) === 0) {
      const failed = Buffer.from(message.subarray(0, abi.OUT_HEADER_SIZE));
      failed.writeUInt32LE(abi.OUT_HEADER_SIZE, 0);
      failed.writeInt32LE(-os.constants.errno.EIO, 4);
      try {
        fs.writeSync(this.fd, failed);
      } catch (again) {
        if (!UNWANTED.has(codeOf(again))) crash(again);
      }
    }
    return false;
  }

  // KernelNotifier

  async invalidateInode(ino: number, offset: number, length: number): Promise<void> {
    await this.notify(abi.invalidateInodeMessage(ino, offset, length));
  }

  async lookForOwn(name: string): Promise<void> {
    if (this.activeReaders === 0) throw new DssError("ShuttingDown", "no request is read now");
    await this.looker.look(name);
  }

  async invalidateEntry(parent: number, name: Buffer): Promise<void> {
    await this.notify(abi.invalidateEntryMessage(parent, name));
  }

  async invalidateAllEntries(): Promise<boolean> {
    return (await this.notify(abi.incrementEpochMessage())) !== "unsupported";
  }

  /**
   * Asks for every unanswered request again; for a process that took over the descriptor. Not
   * behind other notifications: dropping pages waits for reads that nobody answers before this.
   */
  async resend(): Promise<boolean> {
    return (await this.writeNotification(abi.resendMessage())) !== "unsupported";
  }

  /** ENOENT (the kernel does not know the inode or name) and ENOTDIR are as good as done. */
  private async notify(message: Buffer): Promise<"done" | "unsupported"> {
    if (this.notifying >= this.notifiersMax) {
      await new Promise<void>((resolve) => this.notifyQueue.push(resolve));
    } else this.notifying++;
    try {
      if (this.ended) return "done";
      return await this.writeNotification(message);
    } finally {
      const next = this.notifyQueue.shift();
      if (next) next();
      else this.notifying--;
    }
  }

  private writeNotification(message: Buffer): Promise<"done" | "unsupported"> {
    this.pendingWrites++;
    return new Promise((resolve, reject) => {
      fs.write(this.fd, message, 0, message.length, null, (error) => {
        this.onWriteDone();
        const code = codeOf(error);
        if (!error || UNWANTED.has(code) || code === "ENOTDIR") resolve("done");
        else if (code === "EINVAL" || code === "ENOSYS") resolve("unsupported");
        else reject(new DssError("Disk", "FUSE notification failed", { cause: error }));
      });
    });
  }
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new DssError("Disk", String(error));
}

/** Ends the process from outside any promise chain, as an uncaught exception. */
function crash(error: unknown): void {
  setImmediate(() => {
    throw error;
  });
}

// Mounting

export interface MountInfo {
  device: string;
  mountpoint: string;
  type: string;
  source: string;
}

/** The topmost mount at `target`, from /proc/self/mountinfo (proc(5)). */
export function findMount(target: string): MountInfo | undefined {
  let text: string;
  try {
    text = fs.readFileSync("/proc/self/mountinfo", "utf8");
  } catch {
    return undefined; // Not Linux: only the other driver gets here.
  }
  let found: MountInfo | undefined;
  for (const line of text.split("\n")) {
    const [left, right] = line.split(" - ");
    const fields = left?.split(" ") ?? [];
    const [type = "", source = ""] = right?.split(" ") ?? [];
    const mountpoint = unescapeOctal(fields[4] ?? "");
    if (mountpoint === target) found = { device: fields[2] ?? "", mountpoint, type, source };
  }
  return found;
}

function unescapeOctal(text: string): string {
  if (!text.includes("\\")) return text;
  const bytes = Buffer.from(text).toString("latin1");
  const plain = bytes.replace(/\\([0-7]{3})/g, (_, octal: string) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  );
  return Buffer.from(plain, "latin1").toString();
}

export function isFuseMount(mount: MountInfo): boolean {
  return mount.type === "fuse" || mount.type.startsWith("fuse.");
}

/** "dead" when the daemon is gone, "hung" when it does not answer. */
async function probeMount(target: string): Promise<"alive" | "dead" | "hung"> {
  let timer: NodeJS.Timeout | undefined;
  const timeout = new Promise<"hung">((resolve) => {
    timer = setTimeout(resolve, PROBE_MS, "hung");
  });
  // Never answered from the kernel's cache, and failed when it lets go of a killed daemon's mount.
  const answer = fs.promises.statfs(target).then(
    () => "alive" as const,
    (error: unknown) => {
      const code = codeOf(error);
      return code === "ENOTCONN" || code === "ECONNABORTED" ? ("dead" as const) : "alive";
    },
  );
  try {
    return await Promise.race([answer, timeout]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * The absolute, canonical path of a directory that can be mounted on. A dead FUSE mount that an
 * earlier daemon left there is taken away.
 */
export async function prepareMountpoint(options: MountOptions): Promise<string> {
  let target = path.resolve(options.mountpoint);
  const existing = findMount(target);
  if (existing && isFuseMount(existing)) {
    const state = await probeMount(target);
    if (state !== "dead") {
      const what = state === "hung" ? "a FUSE mount that does not answer" : "already mounted";
      throw new DssError("Busy", `${target} is ${what} (${existing.type} ${existing.source})`, {
        hint: `run: dss umount ${target}`,
      });
    }
    options.logger.warn({ mountpoint: target }, "unmounting what a dead daemon left behind");
    await unmountPath(target, { lazy: true });
  }
  let stat: fs.Stats;
  try {
    target = await fs.promises.realpath(target);
    stat = await fs.promises.stat(target);
  } catch (error) {
    if (codeOf(error) === "ENOENT") {
      throw new DssError("NotFound", `mount point ${target} does not exist`, {
        cause: error,
        hint: `create it: mkdir -p ${target}`,
      });
    }
    throw new DssError("AccessDenied", `cannot use mount point ${target}`, { cause: error });
  }
  if (!stat.isDirectory()) {
    throw new DssError("NotDirectory", `mount point ${target} is not a directory`);
  }
  const again = findMount(target);
  if (again && isFuseMount(again)) {
    throw new DssError("Busy", `${target} is already mounted (${again.type} ${again.source})`, {
      hint: `run: dss umount ${target}`,
    });
  }
  if (options.allowNonEmpty !== true) {
    const entries = await fs.promises.readdir(target);
    if (entries.length > 0) {
      throw new DssError("NotEmpty", `mount point ${target} is not empty`, {
        hint: "its files would be hidden: choose an empty directory, or pass -o nonempty",
      });
    }
  }
  return target;
}

function openDevice(): number {
  try {
    return fs.openSync(DEVICE_PATH, "r+");
  } catch (error) {
    const code = codeOf(error);
    if (code === "EACCES" || code === "EPERM") {
      throw new DssError("NotPermitted", `no permission to open ${DEVICE_PATH}`, {
        cause: error,
        hint: "run as root, or use the fuse-native driver",
      });
    }
    throw new DssError("Configuration", `cannot open ${DEVICE_PATH}`, {
      cause: error,
      hint: "load the kernel module: modprobe fuse (in a container, pass the device in)",
    });
  }
}

interface CommandResult {
  status: number;
  stderr: string;
}

function runCommand(command: string, args: string[], fd?: number): Promise<CommandResult> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      stdio: ["ignore", "ignore", "pipe", ...(fd === undefined ? [] : [fd])],
      env: { ...process.env, LC_ALL: "C" },
      timeout: COMMAND_TIMEOUT_MS,
    });
    let stderr = "";
    child.stderr?.setEncoding("utf8");
    child.stderr?.on("data", (text: string) => {
      if (stderr.length < 4096) stderr += text;
    });
    child.on("error", (error) => {
      reject(
        new DssError("Configuration", `cannot run ${command}`, {
          cause: error,
          hint: "install util-linux",
        }),
      );
    });
    child.on("close", (status, signal) => {
      const note = signal === null ? "" : `${command} was ended by ${signal}`;
      resolve({ status: status ?? 1, stderr: (stderr + note).trim() });
    });
  });
}

function mountOptionList(options: MountOptions): string {
  const list = [
    `fd=${MOUNT_FD}`,
    "rootmode=40000",
    `user_id=${process.getuid?.() ?? 0}`,
    `group_id=${process.getgid?.() ?? 0}`,
    "default_permissions",
    `subtype=${SUBTYPE}`,
    options.readOnly === true ? "ro" : "rw",
  ];
  if (options.allowOther !== false) list.push("allow_other");
  for (const extra of options.extraOptions ?? []) {
    if (extra.includes(",") || /^(fd|rootmode|user_id|group_id|subtype)=/.test(extra)) {
      throw new DssError("InvalidArgument", `mount option "${extra}" cannot be given`);
    }
    list.push(extra);
  }
  return list.join(",");
}

async function mount(fd: number, target: string, options: MountOptions): Promise<void> {
  const source = options.sourceName ?? DEFAULT_SOURCE_NAME;
  const args = ["-i", "-t", "fuse", "-o", mountOptionList(options), "--", source, target];
  const { status, stderr } = await runCommand("mount", args, fd);
  if (status === 0) return;
  const detail = stderr === "" ? `exit status ${status}` : stderr;
  if (process.getuid?.() !== 0) {
    throw new DssError("NotPermitted", `mount ${target}: ${detail}`, {
      hint: "run as root, or use the fuse-native driver",
    });
  }
  throw new DssError("Configuration", `mount ${target}: ${detail}`);
}

/**
 * Runs umount(8). Rejects with `Busy` when files are open, `NotFound` when nothing is mounted
 * there. `lazy` also takes away a mount whose daemon is dead.
 */
export async function unmountPath(
  target: string,
  { lazy = false, abort = false }: { lazy?: boolean; abort?: boolean } = {},
): Promise<void> {
  const args = ["-i", ...(lazy ? ["-l"] : []), ...(abort ? ["-f"] : [])];
  const { status, stderr } = await runCommand("umount", [...args, "--", target]);
  if (status === 0) return;
  const message = `umount ${target}: ${stderr === "" ? `exit status ${status}` : stderr}`;
  if (stderr.includes("busy")) {
    throw new DssError("Busy", message, {
      hint: `close what uses it (fuser -vm ${target}), or unmount lazily`,
    });
  }
  if (stderr.includes("not mounted") || stderr.includes("no mount point")) {
    throw new DssError("NotFound", message);
  }
  throw new DssError(process.getuid?.() === 0 ? "Configuration" : "NotPermitted", message);
}

/** The kernel starts with 128 KiB and lets INIT only lower that; sysfs can raise it. */
async function tuneReadAhead(target: string, kb: number, logger: Logger): Promise<void> {
  const device = findMount(target)?.device;
  if (device === undefined) return;
  const setting = `/sys/class/bdi/${device}/read_ahead_kb`;
  try {
    await fs.promises.writeFile(setting, String(kb));
  } catch (error) {
    logger.debug({ setting, error: describeError(error) }, "read-ahead keeps its default");
  }
}

/**
 * Mounts `fileSystem` through the kernel's protocol; resolves when the mount is usable. Rejects
 * with `NotFound`, `NotDirectory`, `NotEmpty` or `Busy` (the mount point), `Configuration` (no
 * /dev/fuse), `NotPermitted`, `IncompatibleVersion` (the kernel).
 */
export async function mountFileSystem(
  fileSystem: FileSystem,
  options: MountOptions,
): Promise<Mounted> {
  const { held } = options;
  if (held?.negotiated !== undefined) {
    return resumeMount(fileSystem, options, { fd: held.fd, resume: held.negotiated });
  }
  const target = await prepareMountpoint(options);
  const fd = held?.fd ?? openDevice();
  let device: FuseDevice;
  try {
    device = new FuseDevice(fd, fileSystem, { ...options, mountpoint: target });
    await mount(fd, target, options);
  } catch (error) {
    fs.closeSync(fd);
    throw error;
  }
  device.start();
  try {
    held?.onNegotiated?.(await device.ready);
    await device.ready;
  } catch (error) {
    // The kernel keeps a refused mount: it must not stay behind.
    await unmountPath(target, { lazy: true }).catch((failure: unknown) => {
      options.logger.error({ error: describeError(failure) }, "cannot take the mount away");
    });
    throw error;
  }
  const readAheadKb = options.readAheadKb ?? DEFAULT_READ_AHEAD_KB;
  await tuneReadAhead(target, readAheadKb, options.logger);
  return mountedOf(device, target);
}

/**
 * Serves the requests of a mount in the place of a process that has died. The file system knows
 * what that one had open; it begins to be asked when this returns.
 */
async function resumeMount(
  fileSystem: FileSystem,
  options: MountOptions,
  { fd, resume }: { fd: number; resume: Negotiated },
): Promise<Mounted> {
  const mountpoint = path.resolve(options.mountpoint);
  const device = new FuseDevice(fd, fileSystem, { ...options, mountpoint, resume });
  await options.beforeResume?.();
  // Before any request is read: it would come twice, and the answer to the first be thrown away.
  if (!(await device.resend())) {
    throw new DssError("IncompatibleVersion", "this kernel cannot send requests again", {
      hint: "a mount outlives its worker from Linux 6.9 on",
    });
  }
  device.start();
  return mountedOf(device, mountpoint);
}

function mountedOf(device: FuseDevice, target: string): Mounted {
  return {
    mountpoint: target,
    done: device.done,
    pause: () => device.pause(),
    unmount: async ({ lazy = false } = {}) => {
      try {
        await unmountPath(target, { lazy });
      } catch (error) {
        if (!isDssError(error, "NotFound")) throw error;
      }
      if (!lazy) await device.done;
    },
  };
}
