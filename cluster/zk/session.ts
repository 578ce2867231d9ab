/**
 * The Coordination port over ZooKeeper (npm `node-zookeeper-client`, used nowhere else).
 *
 * The package speaks the protocol; this file owns the life of the session and mends what the
 * package gets wrong (each marked "package:"). State: one client object per session, the requests
 * in flight on the present connection, and the requests parked until there is one. A lost
 * connection fails everything in flight with ConnectionLost and lets nothing be sent late.
 */
import {
  ACL,
  Exception,
  createClient,
  type Client,
  type ConnectionManager,
  type Server,
  type Stat,
  type TransactionResult,
} from "node-zookeeper-client";
import { assert } from "../base/assert.js";
import { DssError, describeError, isDssError, type ErrorCode } from "../base/errors.js";
import type { Logger } from "../base/log.js";
import type { Clock, Timer } from "../platform/ports.js";
import {
  ANY_VERSION,
  MultiError,
  REQUEST_BYTES_MAX,
  type Children,
  type Coordination,
  type CoordinationOp,
  type CreateOptions,
  type OpResult,
  type SessionEvent,
  type SessionState,
  type Znode,
} from "./coordination.js";

export const SESSION_TIMEOUT_MS = 6000;
/** Until `connectZooKeeper` gives up. */
export const CONNECT_DEADLINE_MS = 4000;
/** How long a request waits for a connection before it fails with Unreachable. */
const PARKED_DEADLINE_MS = 12_000;
const PARKED_MAX = 10_000;
/** Pauses after each full round over the servers. */
const BACKOFF_FIRST_MS = 50;
const BACKOFF_MAX_MS = 1000;
/** A closing session waits this long for the server's answer. */
const CLOSE_DEADLINE_MS = 1000;

/** ZooKeeper's operation codes and error codes (zookeeper.h, KeeperException.Code). */
const OP = { create: 1, remove: 2, set: 5, check: 13 } as const;
const ZK_OK = 0;
const ZK_SYSTEM_ERROR = -1;
const CODES: Record<number, ErrorCode> = {
  [-4]: "ConnectionLost",
  [-7]: "ConnectionLost",
  [-8]: "InvalidArgument",
  [-101]: "NotFound",
  [-102]: "AccessDenied",
  [-103]: "Conflict",
  [-108]: "InvalidArgument",
  [-110]: "Exists",
  [-111]: "NotEmpty",
  [-112]: "NoSession",
  [-115]: "AccessDenied",
  [-118]: "ConnectionLost",
};
/** The package's connection states. */
const CM_CONNECTING = 1;
const CM_CONNECTED = 2;
const CM_CLOSING = -1;
const XID_LIMIT = 2 ** 31 - 100_000;

// package: an error code that it does not know (session moved, throttled, …) is an assertion in
// the middle of its parser. Keep the code instead.
const createException = Exception.create;
Exception.create = (code, path) => {
  try {
    return createException(code, path);
  } catch {
    return Object.assign(createException(ZK_SYSTEM_ERROR, path), { code });
  }
};

export interface ZooKeeperOptions {
  /** `host:port,host:port`, optionally followed by a root `/path` that exists. */
  servers: string;
  clock: Clock;
  log: Logger;
  sessionTimeoutMs?: number;
  connectDeadlineMs?: number;
}

export type ConnectZooKeeper = (options: ZooKeeperOptions) => Promise<Coordination>;

/** Errors: Unreachable when no server opens a session within the deadline; InvalidArgument. */
export async function connectZooKeeper(options: ZooKeeperOptions): Promise<Coordination> {
  const session = new ZooKeeperSession(options);
  await session.opened(options.connectDeadlineMs ?? CONNECT_DEADLINE_MS);
  return session;
}

interface Request {
  sentMs: number;
  send(client: Client): void;
  fail(error: DssError): void;
  timer?: Timer;
}

const long = (bytes: Buffer): bigint => bytes.readBigInt64BE(0);

function znode(data: Buffer | undefined, stat: Stat): Znode {
  return {
    data: data ?? Buffer.alloc(0),
    version: stat.version,
    created: long(stat.czxid),
    modified: long(stat.mzxid),
    ephemeralOwner: long(stat.ephemeralOwner),
  };
}

function createMode(options: CreateOptions): number {
  return (options.ephemeral ? 1 : 0) + (options.sequential ? 2 : 0);
}

function translate(error: unknown, what: string): DssError {
  const zkCode = (error as { code?: unknown }).code;
  const code = typeof zkCode === "number" ? CODES[zkCode] : undefined;
  return new DssError(code ?? "ConnectionLost", `ZooKeeper: ${what}`, { cause: error });
}

function checkServers(servers: string): void {
  const [hosts = ""] = servers.split("/", 1);
  const wrong = hosts.split(",").find((server) => !/^[^\s:,]+:\d{1,5}$/.test(server.trim()));
  if (wrong === undefined) return;
  throw new DssError("InvalidArgument", `"${servers}" does not name ZooKeeper servers`, {
    hint: "write host:port, or host:port,host:port,host:port",
  });
}

class ZooKeeperSession implements Coordination {
  state: SessionState = "suspended";
  sessionId = 0n;
  contactMs = Number.NEGATIVE_INFINITY;
  readonly servers: string;
  private readonly clock: Clock;
  private readonly log: Logger;
  private readonly timeoutMs: number;
  private client!: Client;
  private readonly inFlight = new Set<Request>();
  private parked: Request[] = [];
  private readonly listeners = new Set<(event: SessionEvent) => void>();
  private lastError: unknown;
  /** Clock time of the last byte from the server, or of the start of the present attempt. */
  private heardMs = 0;
  /** Since the last connection. */
  private attempts = 0;
  private turn = 0;
  private retryTimer: Timer | undefined;
  private watchdog: Timer | undefined;

  constructor(options: ZooKeeperOptions) {
    checkServers(options.servers);
    this.servers = options.servers;
    this.clock = options.clock;
    this.log = options.log;
    this.timeoutMs = options.sessionTimeoutMs ?? SESSION_TIMEOUT_MS;
    this.open();
  }

  /** Waits for the first session. */
  opened(deadlineMs: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const stop = this.onEvent((event) => {
        if (event !== "connected") return;
        stop();
        timer.cancel();
        resolve();
      });
      const timer = this.clock.setTimer(deadlineMs, () => {
        stop();
        const cause = this.lastError;
        void this.close();
        reject(
          new DssError("Unreachable", `no ZooKeeper answers at ${this.servers}`, {
            ...(cause === undefined ? {} : { cause }),
            hint: "start it, or name it with --zookeeper / DSS_ZOOKEEPER",
          }),
        );
      });
    });
  }

  // ---- the life of the session

  private open(): void {
    const client = createClient(this.servers, {
      sessionTimeout: this.timeoutMs,
      spinDelay: 0,
      retries: 0,
    });
    this.client = client;
    this.attempts = 0;
    client.connectionManager.findNextServer = (connect) => this.nextServer(client, connect);
    client.on("connected", () => this.onConnected(client));
    client.on("disconnected", () => this.onDisconnected(client));
    client.on("expired", () => this.onExpired(client));
    client.connect();
    this.armWatchdog();
  }

  /**
   * package: its own version starts a socket even after `close`, keeps half a packet of the last
   * connection, hides the reason of a failure and never gives up on a server that accepts
   * connections but does not answer (the watchdog does).
   */
  private nextServer(client: Client, connect: (server: Server) => void): void {
    const manager = client.connectionManager;
    const servers = manager.servers;
    const round = Math.floor(this.attempts / servers.length);
    const isNewRound = this.attempts % servers.length === 0 && round > 0;
    const backoff = Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** (round - 1));
    // Never the server that was just lost: if it is frozen, trying it costs the session.
    const server = servers[this.turn++ % servers.length]!;
    this.attempts++;
    // Never at once: the package's caller still has to set its state.
    this.retryTimer = this.clock.setTimer(isNewRound ? backoff : 0, () => {
      this.retryTimer = undefined;
      if (this.state === "closed" || client !== this.client) return;
      manager.pendingBuffer = null;
      manager.xid = 0;
      this.heardMs = this.clock.now();
      connect(server);
      const socket = manager.socket!;
      socket.on("error", (error) => (this.lastError = error));
      socket.on("data", () => (this.heardMs = this.clock.now()));
    });
  }

  private onConnected(client: Client): void {
    if (client !== this.client || this.state === "closed") return;
    this.attempts = 0;
    const sessionId = long(client.getSessionId());
    const isNew = sessionId !== this.sessionId;
    this.sessionId = sessionId;
    this.state = "connected";
    this.log.info({ session: sessionId.toString(16), isNew }, "connected to ZooKeeper");
    const parked = this.parked;
    this.parked = [];
    for (const request of parked) this.dispatch(request);
    this.emit("connected");
  }

  private onDisconnected(client: Client): void {
    if (client !== this.client) return;
    // package: what it had not yet written would be sent on the next connection, after the caller
    // was told otherwise.
    client.connectionManager.packetQueue.queue.length = 0;
    this.failInFlight(
      new DssError("ConnectionLost", `the connection to ZooKeeper at ${this.servers} was lost`),
    );
    if (this.state !== "connected") return;
    this.state = "suspended";
    this.log.warn({ reason: this.reason() }, "lost the connection to ZooKeeper");
    this.emit("suspended");
  }

  private onExpired(client: Client): void {
    if (client !== this.client || this.state === "closed") return;
    const expired = this.sessionId.toString(16);
    this.log.warn({ session: expired }, "the ZooKeeper session expired; opening a new one");
    this.discard(client);
    const error = new DssError("NoSession", "the ZooKeeper session expired");
    this.failInFlight(error);
    const parked = this.parked;
    this.parked = [];
    for (const request of parked) this.abandon(request, error);
    this.state = "suspended";
    this.emit("expired");
    // A listener may have closed us.
    if ((this.state as SessionState) !== "closed") this.open();
  }

  /**
   * package: it has no read time-out at all. A server that is stopped or cut off is left after two
   * thirds of the session time-out (it is pinged every third), one that does not open the session
   * after one third, so that another server can be reached before the session expires.
   */
  private armWatchdog(): void {
    this.watchdog?.cancel();
    this.watchdog = this.clock.setTimer(this.timeoutMs / 6, () => {
      if (this.state === "closed") return;
      const manager = this.client.connectionManager;
      const silentMs = this.clock.now() - this.heardMs;
      const limitMs = (this.timeoutMs * (manager.state === CM_CONNECTED ? 2 : 1)) / 3;
      const isAttempting = manager.state === CM_CONNECTED || manager.state === CM_CONNECTING;
      if (isAttempting && this.retryTimer === undefined && silentMs > limitMs) {
        this.lastError = new DssError("TimedOut", `no answer for ${Math.round(silentMs)} ms`);
        this.heardMs = this.clock.now();
        destroySocket(manager);
      }
      this.armWatchdog();
    });
  }

  private reason(): string {
    return this.lastError === undefined ? "closed by the server" : describeError(this.lastError);
  }

  /** Ends a client object for good, whatever it is doing. */
  private discard(client: Client): void {
    client.removeAllListeners();
    client.connectionManager.setState(CM_CLOSING); // No reconnection after the socket's end.
    destroySocket(client.connectionManager);
  }

  async close(): Promise<void> {
    if (this.state === "closed") return;
    const wasConnected = this.state === "connected";
    this.state = "closed";
    this.retryTimer?.cancel();
    this.watchdog?.cancel();
    const error = new DssError("ShuttingDown", "the ZooKeeper session was closed");
    for (const request of this.parked) this.abandon(request, error);
    this.parked = [];
    const client = this.client;
    if (wasConnected) {
      await new Promise<void>((resolve) => {
        const timer = this.clock.setTimer(CLOSE_DEADLINE_MS, resolve);
        client.connectionManager.socket!.once("close", () => {
          timer.cancel();
          resolve();
        });
        client.close();
      });
    }
    this.discard(client);
    this.failInFlight(error);
    this.emit("closed");
  }

  onEvent(listener: (event: SessionEvent) => void): () => void {
    this.listeners.add(listener);
    return () => void this.listeners.delete(listener);
  }

  private emit(event: SessionEvent): void {
    for (const listener of [...this.listeners]) listener(event);
  }

  // ---- requests

  private failInFlight(error: DssError): void {
    const requests = [...this.inFlight];
    this.inFlight.clear();
    for (const request of requests) request.fail(error);
  }

  private abandon(request: Request, error: DssError): void {
    request.timer?.cancel();
    request.fail(error);
  }

  private dispatch(request: Request): void {
    request.timer?.cancel();
    // package: request numbers are int32 and never wrap. They only have to differ in flight.
    const manager = this.client.connectionManager;
    if (manager.xid > XID_LIMIT) manager.xid = 0;
    request.sentMs = this.clock.now();
    this.inFlight.add(request);
    request.send(this.client);
  }

  private park(request: Request): void {
    if (this.parked.length >= PARKED_MAX) {
      request.fail(new DssError("Overloaded", "too many requests wait for ZooKeeper"));
      return;
    }
    this.parked.push(request);
    request.timer = this.clock.setTimer(PARKED_DEADLINE_MS, () => {
      this.parked = this.parked.filter((other) => other !== request);
      const message = `ZooKeeper at ${this.servers} does not answer (${this.reason()})`;
      request.fail(new DssError("Unreachable", message));
    });
  }

  private call<T>(
    what: string,
    run: (client: Client, done: (error: unknown, value?: T) => void) => void,
  ): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      const request: Request = {
        sentMs: 0,
        send: (client) =>
          run(client, (error, value) => {
            // False when the loss of the connection has failed it already.
            if (!this.inFlight.delete(request)) return;
            const failure =
              error === undefined || error === null
                ? undefined
                : error instanceof DssError
                  ? error
                  : translate(error, what);
            if (!isDssError(failure, "ConnectionLost") && request.sentMs > this.contactMs) {
              this.contactMs = request.sentMs;
            }
            if (failure) reject(failure);
            else resolve(value as T);
          }),
        fail: reject,
      };
      if (this.state === "closed") {
        reject(new DssError("ShuttingDown", "the ZooKeeper session was closed"));
      } else if (this.state === "connected") this.dispatch(request);
      else this.park(request);
    });
  }

  async get(path: string, watch?: () => void): Promise<Znode | undefined> {
    for (;;) {
      const found = await this.call<Znode | undefined>(`get ${path}`, (client, done) =>
        client.getData(path, watch, (error, data, stat) => {
          if (isNoNode(error)) done(undefined, undefined);
          else done(error, stat && znode(data, stat));
        }),
      );
      if (found || !watch) return found;
      // A failed read leaves no watch: leave one for the creation.
      const exists = await this.call<boolean>(`watch ${path}`, (client, done) =>
        client.exists(path, watch, (error, stat) => done(error, Boolean(stat))),
      );
      if (!exists) return undefined;
    }
  }

  children(path: string, watch?: () => void): Promise<Children | undefined> {
    return this.call(`list ${path}`, (client, done) =>
      client.getChildren(path, watch, (error, names, stat) => {
        if (isNoNode(error)) done(undefined, undefined);
        else done(error, names && stat && { names, version: stat.cversion });
      }),
    );
  }

  async create(path: string, data: Buffer, options: CreateOptions = {}): Promise<string> {
    checkSize(`create ${path}`, data.length);
    return this.call(`create ${path}`, (client, done) =>
      client.create(path, data, createMode(options), done),
    );
  }

  async set(path: string, data: Buffer, version: number): Promise<number> {
    checkSize(`set ${path}`, data.length);
    return this.call(`set ${path}`, (client, done) =>
      client.setData(path, data, version, (error, stat) => done(error, stat?.version)),
    );
  }

  remove(path: string, version: number): Promise<void> {
    return this.call(`remove ${path}`, (client, done) => client.remove(path, version, done));
  }

  async multi(ops: readonly CoordinationOp[]): Promise<OpResult[]> {
    assert(ops.length > 0, "an empty multi");
    let bytes = 0;
    for (const op of ops) bytes += op.path.length + 64 + ("data" in op ? op.data.length : 0);
    checkSize("multi", bytes);
    return this.call("multi", (client, done) => {
      const transaction = client.transaction();
      // package: its builder turns version 0 into "any version", which would void a fence.
      transaction.ops.push(...ops.map(nativeOp));
      transaction.commit((error, results) => {
        const failed = results?.findIndex((r) => r.err !== undefined && r.err !== ZK_OK) ?? -1;
        if (failed >= 0) done(multiError(ops, results!, failed));
        else done(error, results?.map(opResult));
      });
    });
  }

  async ensurePath(path: string): Promise<void> {
    const parts = path.split("/").slice(1);
    for (let depth = 1; depth <= parts.length; depth++) {
      const prefix = `/${parts.slice(0, depth).join("/")}`;
      if (await this.get(prefix)) continue;
      await this.create(prefix, Buffer.alloc(0)).catch((error: unknown) => {
        if (!isDssError(error, "Exists")) throw error;
      });
    }
  }

  async sync(): Promise<void> {
    // package: it cannot parse the answer to ZooKeeper's own "sync". A transaction that only checks
    // goes through the quorum just the same.
    await this.multi([{ op: "check", path: "/", version: ANY_VERSION }]);
  }
}

function isNoNode(error: unknown): boolean {
  return (error as { code?: number } | undefined | null)?.code === -101;
}

function checkSize(what: string, bytes: number): void {
  if (bytes <= REQUEST_BYTES_MAX) return;
  throw new DssError("TooLarge", `ZooKeeper: ${what}: ${bytes} bytes in one request`);
}

function destroySocket(manager: ConnectionManager): void {
  // package: this timer would hit the next socket.
  if (manager.connectTimeoutHandler) clearTimeout(manager.connectTimeoutHandler);
  manager.socket?.destroy();
}

function nativeOp(op: CoordinationOp): object {
  switch (op.op) {
    case "create":
      return {
        type: OP.create,
        path: op.path,
        data: op.data,
        acls: ACL.OPEN_ACL_UNSAFE,
        mode: createMode(op),
      };
    case "set":
      return { type: OP.set, path: op.path, data: op.data, version: op.version };
    case "remove":
      return { type: OP.remove, path: op.path, version: op.version };
    case "check":
      return { type: OP.check, path: op.path, version: op.version };
  }
}

function opResult(result: TransactionResult): OpResult {
  return {
    ...(result.path === undefined ? {} : { path: result.path }),
    ...(result.stat === undefined ? {} : { version: result.stat.version }),
  };
}

function multiError(
  ops: readonly CoordinationOp[],
  results: readonly TransactionResult[],
  index: number,
): MultiError {
  const zkCode = results[index]!.err!;
  const { op, path } = ops[index]!;
  const code = CODES[zkCode] ?? "InvalidArgument";
  return new MultiError(code, `ZooKeeper: multi: ${op} ${path} (error ${zkCode})`, index);
}
