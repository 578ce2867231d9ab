/**
 * The ports through which daemons touch the world. `node.ts` is the one real implementation;
 * the simulator (test/sim) is the other. Nothing outside them uses sockets, files or timers.
 */

/** Milliseconds of a monotonic clock; only differences mean something. */
export interface Clock {
  now(): number;
  /** Wall-clock time in nanoseconds since 1970, for time stamps only, never for decisions. */
  wallNs(): bigint;
  /** Runs `callback` once after at least `ms`. */
  setTimer(ms: number, callback: () => void): Timer;
  /** Runs `callback` after the events already pending (setImmediate): used to batch and to cork. */
  defer(callback: () => void): void;
}
export interface Timer {
  cancel(): void;
}

export interface RandomSource {
  u32(): number;
  /** Random bytes, unpredictable on the real platform. */
  bytes(length: number): Buffer;
}

/** A TCP endpoint, or a unix socket's path. */
export type Address = { host: string; port: number } | { path: string };

export function formatAddress(address: Address): string {
  if ("path" in address) return `unix:${address.path}`;
  return address.host.includes(":")
    ? `[${address.host}]:${address.port}`
    : `${address.host}:${address.port}`;
}

/** What the accepting side of an encrypted connection shows and asks for; all in PEM. */
export interface TlsIdentity {
  readonly certificate: string;
  readonly key: string;
  /** Peers must show a certificate that one of these has signed; without it they need none. */
  readonly clientAuthority?: string;
}

/**
 * A reliable, ordered byte stream. Callbacks are set once, right after the connection is handed
 * out.
 */
export interface Connection {
  /** For log lines. */
  readonly remote: string;
  /**
   * Chunks are lent: their memory is used again when the callback returns. Else they belong to the
   * receiver.
   */
  readonly lends: boolean;
  onData(callback: (chunk: Buffer) => void): void;
  /** Exactly once, after the last data; with the error that ended it, if any. */
  onClose(callback: (error?: Error) => void): void;
  /** The send buffer fell below its low-water mark. */
  onDrain(callback: () => void): void;
  /**
   * Queues the chunks in order; they must not change until sent. Ignored after the end. `sent` is
   * called when they may change again, or never.
   */
  send(chunks: readonly Buffer[], sent?: () => void): void;
  /** Bytes queued and not yet taken by the system. */
  readonly bufferedBytes: number;
  /** Stop and restart `onData` (back-pressure towards the sender). */
  pause(): void;
  resume(): void;
  /**
   * Encrypts everything after what was sent so far, as the accepting side of TLS 1.2 or later, and
   * resolves when the peer has agreed; until then nothing may be sent and nothing arrives, then it
   * goes on as before. Fails with NotPermitted; the connection is closed then. Only of connections
   * that were accepted, where the platform can.
   */
  startTls?(identity: TlsIdentity): Promise<void>;
  /** Sends what is queued, then closes. */
  end(): void;
  /** Closes at once. */
  destroy(): void;
}

export interface Listener {
  readonly address: Address;
  /** Stops accepting; existing connections stay. */
  close(): Promise<void>;
}

export interface Network {
  /** Port 0 picks a free one. Fails with Busy (address in use) or InvalidArgument. */
  listen(
    address: Address,
    onConnection: (connection: Connection) => void,
    /** `lends`: connections lend their memory where that is possible. */
    options?: { lends?: boolean },
  ): Promise<Listener>;
  /** Fails with Unreachable (refused, no route) or TimedOut. */
  connect(address: Address, options: { timeoutMs: number }): Promise<Connection>;
}

/**
 * Writes are durable with the next `sync` of the file, as others are. Reads show what was written
 * in either way.
 */
export type DirectFile = Pick<DiskFile, "read" | "write" | "close">;

export interface DiskFile {
  /**
   * Reads at most buffer.length bytes at `position`; the count is short only at the end of the
   * file.
   */
  read(buffer: Buffer, position: number): Promise<number>;
  /** The same on the caller's thread: for small reads that the page cache is likely to hold. */
  readSync(buffer: Buffer, position: number): number;
  /** Writes all chunks, one after the other, from `position`. */
  write(chunks: readonly Buffer[], position: number): Promise<void>;
  /**
   * The same on the caller's thread, for little: a write into the page cache costs less than a
   * hand-over.
   */
  writeSync(chunks: readonly Buffer[], position: number): void;
  /** fdatasync: when it resolves, everything written before the call is durable. */
  sync(): Promise<void>;
  /**
   * The same on the caller's thread, where that has lately taken less than a hand-over is worth.
   * False: nothing has been done, and `sync` is the way.
   */
  trySync(): boolean;
  /** Sets the size; growing makes a hole. */
  truncate(size: number): Promise<void>;
  size(): Promise<number>;
  /** Bytes that the file takes on the disk: holes take none. */
  allocated(): Promise<number>;
  /** Gives the space of the range back to the file system: it reads as zeros. */
  punch(position: number, length: number): Promise<void>;
  close(): Promise<void>;
}

export interface DiskUsage {
  /** Bytes of the file system that holds the directory. */
  total: number;
  available: number;
}

/**
 * Files below one directory; paths are relative to it and use `/`. Errors are `Disk`, `NotFound`,
 * `Exists`, `NoSpace`.
 */
export interface Disk {
  /** `create`: make it when missing; `exclusive`: fail with Exists when present. */
  open(path: string, options?: { create?: boolean; exclusive?: boolean }): Promise<DiskFile>;
  /**
   * An existing file for reads and writes of whole 4 KiB blocks that pass by the page cache
   * (O_DIRECT); undefined where its file system has none. Nothing may be written to the file in
   * another way while such a write is under way.
   */
  openDirect(path: string): Promise<DirectFile | undefined>;
  exists(path: string): Promise<boolean>;
  readFile(path: string): Promise<Buffer>;
  list(directory: string): Promise<string[]>;
  /** Creates missing parents too. */
  makeDirectory(path: string): Promise<void>;
  rename(source: string, target: string): Promise<void>;
  remove(path: string): Promise<void>;
  /** fsync of a directory: names created, renamed or removed in it before the call are durable. */
  syncDirectory(path: string): Promise<void>;
  usage(): Promise<DiskUsage>;
  /** Takes an exclusive lock that ends with the process; Busy when another process has it. */
  lock(path: string): Promise<{ release(): Promise<void> }>;
  /**
   * An ordered key-value store kept in the directory `path` (LMDB on the real platform). What it
   * shows when it is open is durable, also if it was written by a process that was killed.
   */
  openStore(path: string): Promise<OrderedStore>;
}

export interface StoreBatch {
  puts: readonly { key: Buffer; value: Buffer }[];
  deletes: readonly Buffer[];
}

/** Keys are at most 1,900 bytes, ordered bytewise; values are opaque. One process, one writer. */
export interface OrderedStore {
  get(key: Buffer): Buffer | undefined;
  /**
   * Entries with start <= key < end, ascending (`reverse`: descending); lazily read from one
   * snapshot.
   */
  range(options: {
    start: Buffer;
    end: Buffer;
    limit?: number;
    reverse?: boolean;
  }): Iterable<{ key: Buffer; value: Buffer }>;
  /** All or nothing; when it resolves the batch is on disk, not merely in the page cache. */
  commit(batch: StoreBatch): Promise<void>;
  close(): Promise<void>;
}

export interface Platform {
  clock: Clock;
  random: RandomSource;
  network: Network;
  /** The directory of a daemon; created when missing. */
  disk(directory: string): Promise<Disk>;
}
