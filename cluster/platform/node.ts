/**
 * The real platform: Node's timers, sockets and random numbers. Disks are in node-disk.ts.
 */
import { randomBytes, randomFillSync } from "node:crypto";
import { rmSync, statSync } from "node:fs";
import { createConnection, createServer, Socket, type Server } from "node:net";
import { assert } from "../base/assert.js";
import { DssError } from "../base/errors.js";
import { openNodeDisk } from "./node-disk.js";
import { acceptTls } from "./node-tls.js";
import { noteWork } from "./node-wakeups.js";
import {
  formatAddress,
  type Address,
  type Clock,
  type Connection,
  type Listener,
  type Network,
  type Platform,
  type RandomSource,
  type TlsIdentity,
} from "./ports.js";

export const nodeClock: Clock = {
  now: () => performance.now(),
  wallNs: () => BigInt(Date.now()) * 1_000_000n,
  setTimer(ms, callback) {
    const timer = setTimeout(callback, ms);
    return { cancel: () => clearTimeout(timer) };
  },
  defer: (callback) => void setImmediate(callback),
};

const randomWord = Buffer.alloc(4);
export const nodeRandom: RandomSource = {
  u32: () => randomFillSync(randomWord).readUInt32LE(0),
  bytes: (length) => randomBytes(length),
};

/** Silence after which the system asks whether the peer is still there. */
const KEEP_ALIVE_MS = 10_000;

/** Read at a time on a connection that lends its buffer. */
const LENT_BYTES = 256 * 1024;

/** One buffer for everything that is read: no allocation, and fewer system calls, for bulk data. */
class Lender {
  readonly buffer = Buffer.allocUnsafeSlow(LENT_BYTES);
  private receive: ((chunk: Buffer) => void) | undefined;

  readonly callback = (length: number, buffer: Uint8Array): boolean => {
    assert(this.receive !== undefined, "bytes before anybody listens");
    this.receive((buffer as Buffer).subarray(0, length));
    return true;
  };
  onData(callback: (chunk: Buffer) => void): void {
    this.receive = callback;
  }
}

/** What goes out together is copied together up to here, if its pieces are small. */
const GATHER_BYTES = 64 * 1024;
const GATHER_PIECE_BYTES = 4 * 1024;
/** Nobody looks at it after the turn in which the system took all of it. */
let gathered: Buffer | undefined;

class SocketConnection implements Connection {
  private error: Error | undefined;
  /** To be sent at the end of this turn of the event loop, in one system call. */
  private queue: Buffer[] = [];
  private queuedBytes = 0;
  /** `sent` of the chunk in the same place. */
  private queueSent: ((() => void) | undefined)[] = [];
  private paused = false;
  private received: ((chunk: Buffer) => void) | undefined;
  private drained: (() => void) | undefined;
  private closed: ((error?: Error) => void) | undefined;

  /** `lender`: of a socket that was made with it (only those opened here can be). */
  constructor(
    private socket: Socket,
    readonly remote: string,
    private readonly lender?: Lender,
  ) {
    socket.setNoDelay(true);
    // Finds peers that vanished without a word while nothing is sent; ignored by unix sockets.
    socket.setKeepAlive(true, KEEP_ALIVE_MS);
    socket.on("error", this.onError);
  }
  private readonly onError = (error: Error): void => void (this.error = error);
  private readonly onClosed = (): void => this.closed?.(this.error);

  get lends(): boolean {
    return this.lender !== undefined;
  }
  onData(callback: (chunk: Buffer) => void): void {
    this.received = callback;
    if (this.lender !== undefined) this.lender.onData(callback);
    else this.socket.on("data", callback);
  }
  onClose(callback: (error?: Error) => void): void {
    this.closed = callback;
    this.socket.on("close", this.onClosed);
  }
  onDrain(callback: () => void): void {
    this.drained = callback;
    this.socket.on("drain", callback);
  }
  send(chunks: readonly Buffer[], sent?: () => void): void {
    if (!this.socket.writable || chunks.length === 0) return;
    if (this.queue.length === 0) process.nextTick(this.flush);
    for (const chunk of chunks) {
      this.queue.push(chunk);
      this.queueSent.push(undefined);
      this.queuedBytes += chunk.length;
    }
    this.queueSent[this.queueSent.length - 1] = sent;
  }
  private readonly flush = (): void => {
    const { socket, queue, queueSent, queuedBytes } = this;
    if (queue.length === 0) return;
    noteWork();
    this.queue = [];
    this.queueSent = [];
    this.queuedBytes = 0;
    if (!socket.writable) return;
    const isSmall = queuedBytes <= Math.min(GATHER_BYTES, queue.length * GATHER_PIECE_BYTES);
    if (isSmall && queue.length > 1) {
      writeGathered(socket, queue, queuedBytes);
      for (const sent of queueSent) sent?.();
      return;
    }
    socket.cork();
    // Also called when the connection is lost: by then the system does not look at them any more.
    for (let i = 0; i < queue.length; i++) socket.write(queue[i]!, queueSent[i]);
    socket.uncork();
  };
  get bufferedBytes(): number {
    return this.socket.writableLength + this.queuedBytes;
  }
  pause(): void {
    this.paused = true;
    this.socket.pause();
  }
  resume(): void {
    this.paused = false;
    this.socket.resume();
  }
  async startTls(identity: TlsIdentity): Promise<void> {
    assert(this.lender === undefined, "TLS on a connection that lends");
    const plain = this.socket;
    // The peer's first encrypted bytes may follow at once: they must not be taken for plain ones.
    plain.pause();
    if (this.received) plain.off("data", this.received);
    if (this.drained) plain.off("drain", this.drained);
    this.flush();
    await new Promise<void>((sent) => plain.write(Buffer.alloc(0), () => sent()));
    const secure = await acceptTls(plain, identity);
    this.socket = secure;
    // The plain socket's end is the encrypted one's.
    plain.off("close", this.onClosed);
    secure.on("error", this.onError);
    if (this.closed) secure.on("close", this.onClosed);
    if (this.drained) secure.on("drain", this.drained);
    if (this.paused) secure.pause();
    if (this.received) secure.on("data", this.received);
  }
  end(): void {
    this.flush();
    this.socket.end();
  }
  destroy(): void {
    this.socket.destroy();
  }
}

/**
 * The chunks, `bytes` in all, as one: Node spends more on each piece of a vector than it costs to
 * copy a small one.
 */
function writeGathered(socket: Socket, chunks: readonly Buffer[], bytes: number): void {
  const memory = (gathered ??= Buffer.allocUnsafeSlow(GATHER_BYTES));
  let at = 0;
  for (const chunk of chunks) {
    memory.set(chunk, at);
    at += chunk.length;
  }
  socket.write(memory.subarray(0, bytes));
  // What the system has not taken yet waits there.
  if (socket.writableLength > 0) gathered = undefined;
}

/** Removes a unix socket file that no process listens on any more; refuses one that is in use. */
async function clearStaleSocket(path: string): Promise<void> {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (!stat) return;
  if (!stat.isSocket()) {
    throw new DssError("Exists", `${path} exists and is not a socket`, {
      hint: "choose another path for the socket",
    });
  }
  const alive = await new Promise<boolean>((resolve) => {
    const probe = createConnection({ path });
    probe.once("connect", () => {
      probe.destroy();
      resolve(true);
    });
    probe.once("error", () => resolve(false));
  });
  if (alive) throw new DssError("Busy", `${path} is in use by another server`);
  rmSync(path, { force: true });
}

function listenError(address: Address, error: NodeJS.ErrnoException): DssError {
  const where = formatAddress(address);
  if (error.code === "EADDRINUSE") {
    return new DssError("Busy", `address ${where} is already in use`, {
      cause: error,
      hint: "stop the program that listens there, or choose another port",
    });
  }
  return new DssError("InvalidArgument", `cannot listen on ${where}`, { cause: error });
}

/** What a socket has beside its documented properties. */
interface SocketParts {
  _handle: object | null;
  _server: Server | null;
  server: Server | null;
}

/**
 * An accepted socket anew, with a buffer that it lends. Node offers that (`onread`) to those who
 * connect only; the socket that it made for an accepted connection is emptied, and another one is
 * made of the same handle, as Node's cluster module does. Undefined when a Node has no such parts.
 */
function lending(accepted: Socket): { socket: Socket; lender: Lender } | undefined {
  const from = accepted as unknown as SocketParts;
  const { _handle: handle, _server: server } = from;
  if (typeof handle !== "object" || handle === null || server === undefined) return undefined;
  const lender = new Lender();
  // Not read before somebody listens.
  const options = { handle, onread: lender, manualStart: true };
  const socket = new Socket(options as unknown as ConstructorParameters<typeof Socket>[0]);
  const to = socket as unknown as SocketParts;
  to._server = server; // It counts its connections until they end.
  to.server = server;
  from._handle = null;
  from._server = null;
  return { socket, lender };
}

const nodeNetwork: Network = {
  async listen(address, onConnection, { lends = false } = {}): Promise<Listener> {
    if ("path" in address) await clearStaleSocket(address.path);
    const options = { noDelay: true, pauseOnConnect: lends };
    const server: Server = createServer(options, (accepted) => {
      const remote =
        "path" in address
          ? `unix:${address.path}`
          : `${accepted.remoteAddress}:${accepted.remotePort}`;
      const lent = lends ? lending(accepted) : undefined;
      onConnection(new SocketConnection(lent?.socket ?? accepted, remote, lent?.lender));
      if (lends) (lent?.socket ?? accepted).resume();
    });
    await new Promise<void>((resolve, reject) => {
      server.once("error", (error) => reject(listenError(address, error)));
      server.listen("path" in address ? { path: address.path } : { ...address }, () => resolve());
    });
    const bound = server.address();
    return {
      address:
        bound !== null && typeof bound === "object" && "host" in address
          ? { host: address.host, port: bound.port }
          : address,
      close: () => new Promise((resolve) => server.close(() => resolve())),
    };
  },

  connect(address, { timeoutMs }): Promise<Connection> {
    const where = formatAddress(address);
    return new Promise((resolve, reject) => {
      const lender = new Lender();
      const socket = createConnection({ ...address, onread: lender });
      const timer = setTimeout(() => {
        socket.destroy();
        reject(new DssError("TimedOut", `no connection to ${where} within ${timeoutMs} ms`));
      }, timeoutMs);
      const fail = (cause: Error): void => {
        clearTimeout(timer);
        reject(new DssError("Unreachable", `cannot connect to ${where}`, { cause }));
      };
      socket.once("error", fail);
      socket.once("connect", () => {
        clearTimeout(timer);
        socket.off("error", fail);
        resolve(new SocketConnection(socket, where, lender));
      });
    });
  },
};

export const nodePlatform: Platform = {
  clock: nodeClock,
  random: nodeRandom,
  network: nodeNetwork,
  disk: openNodeDisk,
};
