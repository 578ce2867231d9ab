/**
 * The Coordination port over the modelled ZooKeeper: what cluster/zk/session.ts is over a real one,
 * with the same time-outs. Owns: the connection, the requests in flight and those that wait for a
 * connection, the watches.
 */
import { DssError, isDssError } from "../../cluster/base/errors.js";
import type { Clock, Timer } from "../../cluster/platform/ports.js";
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
} from "../../cluster/zk/coordination.js";
import type { SimHost } from "./sim-network.js";
import { ZK, type Outcome, type ServerConnection, type SimZooKeeper } from "./sim-zookeeper.js";
import type { Touched } from "./zk-tree.js";

const PARKED_DEADLINE_MS = 12_000;
const BACKOFF_FIRST_MS = 50;
const BACKOFF_MAX_MS = 1_000;
const CLOSE_DEADLINE_MS = 1_000;

interface Request {
  sentMs: number;
  send(connection: ServerConnection): void;
  fail(error: DssError): void;
  timer?: Timer;
}
/** What a read found, and what a watch of it is left on. */
interface Seen<T> {
  value: T;
  watched?: { key: Touched; exists: boolean };
}
interface LocalWatch {
  /** An absent node is watched for its creation. */
  exists: boolean;
  callbacks: Set<() => void>;
}

export class SimZkClient implements Coordination {
  state: SessionState = "suspended";
  sessionId = 0n;
  contactMs = Number.NEGATIVE_INFINITY;
  readonly servers = "zk:2181";
  /** The session that the next connection goes on with; 0n: a new one. */
  private resumed = 0n;
  private connection: ServerConnection | undefined;
  private readonly inFlight = new Set<Request>();
  private parked: Request[] = [];
  private readonly listeners = new Set<(event: SessionEvent) => void>();
  private watches = new Map<Touched, LocalWatch>();
  /** The newest state that was seen: no server that is behind it will do. */
  private seen = 0;
  private heardMs = 0;
  private attempts = 0;
  private turn: number;
  private ping: Timer | undefined;

  constructor(
    private readonly zk: SimZooKeeper,
    private readonly host: SimHost,
    private readonly clock: Clock,
    private readonly timeoutMs: number,
  ) {
    this.turn = zk.random.int(0, zk.servers.length - 1);
    this.connect();
    this.keepAlive();
  }

  /** Resolves with the first session; Unreachable after the deadline. */
  opened(deadlineMs: number): Promise<this> {
    return new Promise((resolve, reject) => {
      const stop = this.onEvent((event) => {
        if (event !== "connected") return;
        stop();
        timer.cancel();
        resolve(this);
      });
      const timer = this.clock.setTimer(deadlineMs, () => {
        stop();
        void this.close();
        reject(new DssError("Unreachable", `no ZooKeeper answers at ${this.servers}`));
      });
    });
  }

  // ——— The life of the session ———

  private connect(): void {
    const round = Math.floor(this.attempts / this.zk.servers.length);
    const isNewRound = round > 0 && this.attempts % this.zk.servers.length === 0;
    const backoff = Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** (round - 1));
    this.attempts++;
    const server = this.turn++;
    this.clock.setTimer(isNewRound ? backoff : 0, () => this.attempt(server));
  }
  private attempt(server: number): void {
    if (this.state === "closed") return;
    const { zk, host } = this;
    const isCut = (): boolean => {
      return zk.network.isCut(host.name, ZK) || zk.network.isCut(ZK, host.name);
    };
    if (isCut()) {
      this.clock.setTimer(this.timeoutMs / 3, () => this.connect());
      return;
    }
    const arrive = (): void => {
      const request = { session: this.resumed, timeoutMs: this.timeoutMs, seen: this.seen };
      // A host that died in the meantime sends nothing, and no session is made for it.
      if (!host.alive) return;
      const isLost = isCut();
      const connection =
        isLost || !zk.accepts(server) ? "behind" : zk.attach(server, host, request);
      zk.clock.schedule(isLost ? this.timeoutMs / 3 : zk.network.delay(), () => {
        host.run(() => this.answered(connection));
      });
    };
    zk.clock.schedule(zk.network.delay() * 3, () => arrive());
  }
  private answered(connection: ServerConnection | "behind" | undefined): void {
    if (this.state === "closed") {
      if (connection instanceof Object) connection.break();
      return;
    }
    if (connection === "behind") this.connect();
    else if (connection === undefined) this.expired();
    else this.connected(connection);
  }
  private connected(connection: ServerConnection): void {
    if (connection.closed) return this.connect();
    this.connection = connection;
    this.attempts = 0;
    this.heardMs = this.clock.now();
    this.sessionId = connection.session.id;
    this.resumed = this.sessionId;
    connection.onBroken = () => this.lost(connection);
    connection.onFired = (touched) => this.host.run(() => this.fired(connection, touched));
    this.restoreWatches(connection);
    this.state = "connected";
    const parked = this.parked;
    this.parked = [];
    for (const request of parked) this.dispatch(request);
    this.emit("connected");
  }
  /** As a client's SetWatches: what changed while nobody watched fires at once. */
  private restoreWatches(connection: ServerConnection): void {
    const { seen } = this;
    const wanted = [...this.watches].map(([touched, { exists }]) => ({ touched, exists }));
    if (wanted.length === 0) return;
    connection.toServer.send(() => {
      connection.touch();
      connection.read(() => {
        const { tree } = connection.server;
        for (const { touched, exists } of wanted) {
          const path = touched.slice(2);
          const kind = touched[0] as "c" | "d";
          const isChanged = exists ? tree.changedSince(kind, path, seen) : tree.has(path);
          connection.watches.add(touched);
          if (isChanged) connection.fire([touched]);
        }
      });
    });
  }
  private lost(connection: ServerConnection): void {
    if (connection !== this.connection || this.state === "closed") return;
    this.connection = undefined;
    this.failInFlight(
      new DssError("ConnectionLost", `the connection to ZooKeeper at ${this.servers} was lost`),
    );
    this.connect();
    if (this.state !== "connected") return;
    this.state = "suspended";
    this.emit("suspended");
  }
  private expired(): void {
    const error = new DssError("NoSession", "the ZooKeeper session expired");
    this.resumed = 0n;
    this.watches = new Map();
    this.failInFlight(error);
    for (const request of this.parked.splice(0)) this.abandon(request, error);
    this.state = "suspended";
    this.emit("expired");
    if ((this.state as SessionState) !== "closed") this.connect();
  }
  /** Pings, and the watchdog: a silent server is left in time for another one. */
  private keepAlive(): void {
    this.ping = this.clock.setTimer(this.timeoutMs / 6, () => {
      const { connection } = this;
      if (connection !== undefined) {
        const silentMs = this.clock.now() - this.heardMs;
        if (silentMs > (this.timeoutMs * 2) / 3) {
          connection.break();
          this.lost(connection);
        } else if (silentMs > this.timeoutMs / 6) {
          connection.toServer.send(() => {
            connection.touch();
            connection.reply(() => void (this.heardMs = this.clock.now()));
          });
        }
      }
      this.keepAlive();
    });
  }

  async close(): Promise<void> {
    if (this.state === "closed") return;
    const { connection } = this;
    const wasConnected = this.state === "connected";
    this.state = "closed";
    this.ping?.cancel();
    const error = new DssError("ShuttingDown", "the ZooKeeper session was closed");
    for (const request of this.parked.splice(0)) this.abandon(request, error);
    if (wasConnected && connection !== undefined) {
      await new Promise<void>((resolve) => {
        const timer = this.clock.setTimer(CLOSE_DEADLINE_MS, resolve);
        connection.onBroken = () => {
          timer.cancel();
          resolve();
        };
        connection.toServer.send(() => {
          connection.write("close", () => connection.reply(() => connection.onBroken()));
        });
      });
    }
    connection?.break();
    this.connection = undefined;
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

  // ——— Watches ———

  private watch(kind: "d" | "c", path: string, exists: boolean, callback: () => void): void {
    const key: Touched = `${kind}:${path}`;
    const known = this.watches.get(key);
    if (known === undefined) this.watches.set(key, { exists, callbacks: new Set([callback]) });
    else {
      known.exists = exists;
      known.callbacks.add(callback);
    }
  }
  private fired(connection: ServerConnection, touched: Touched): void {
    if (connection !== this.connection) return;
    this.heardMs = this.clock.now();
    const watch = this.watches.get(touched);
    this.watches.delete(touched);
    for (const callback of watch?.callbacks ?? []) callback();
  }

  // ——— Requests ———

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
    request.sentMs = this.clock.now();
    this.inFlight.add(request);
    request.send(this.connection!);
  }
  private park(request: Request): void {
    this.parked.push(request);
    request.timer = this.clock.setTimer(PARKED_DEADLINE_MS, () => {
      this.parked = this.parked.filter((other) => other !== request);
      request.fail(new DssError("Unreachable", `ZooKeeper at ${this.servers} does not answer`));
    });
  }
  /** `run` executes on the server; what it gives is taken when the answer arrives. */
  private call<T>(
    run: (connection: ServerConnection, answer: (take: () => T) => void) => void,
  ): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      const request: Request = {
        sentMs: 0,
        send: (connection) => {
          const answer = (take: () => T): void => {
            const seen = connection.server.applied;
            connection.reply(() => {
              if (connection !== this.connection || !this.inFlight.delete(request)) return;
              this.heardMs = this.clock.now();
              this.seen = Math.max(this.seen, seen);
              this.contactMs = Math.max(this.contactMs, request.sentMs);
              try {
                resolve(take());
              } catch (error) {
                reject(error);
              }
            });
          };
          connection.toServer.send(() => {
            connection.touch();
            run(connection, answer);
          });
        },
        fail: reject,
      };
      if (this.state === "closed") {
        reject(new DssError("ShuttingDown", "the ZooKeeper session was closed"));
      } else if (this.state === "connected") this.dispatch(request);
      else this.park(request);
    });
  }
  private read<T>(
    read: (connection: ServerConnection) => Seen<T>,
    callback: (() => void) | undefined,
  ): Promise<T> {
    return this.call<T>((connection, answer) => {
      connection.read(() => {
        const { value, watched } = read(connection);
        if (callback !== undefined && watched !== undefined) connection.watches.add(watched.key);
        answer(() => {
          if (callback !== undefined && watched !== undefined) {
            const kind = watched.key[0] as "c" | "d";
            this.watch(kind, watched.key.slice(2), watched.exists, callback);
          }
          return value;
        });
      });
    });
  }

  get(path: string, watch?: () => void): Promise<Znode | undefined> {
    return this.read<Znode | undefined>(({ server }) => {
      const value = server.tree.znode(path);
      return { value, watched: { key: `d:${path}`, exists: value !== undefined } };
    }, watch);
  }
  children(path: string, watch?: () => void): Promise<Children | undefined> {
    return this.read<Children | undefined>(({ server }) => {
      const value = server.tree.children(path);
      if (value === undefined) return { value };
      return { value, watched: { key: `c:${path}`, exists: true } };
    }, watch);
  }

  private write(what: string, ops: readonly CoordinationOp[]): Promise<OpResult[]> {
    // Encoded at the call, as on a socket.
    const copies = ops.map((op) => ("data" in op ? { ...op, data: Buffer.from(op.data) } : op));
    return this.call((connection, answer) => {
      connection.write(copies, ({ results, refusal }: Outcome) => {
        answer(() => {
          if (results !== undefined) return results;
          const { code, index } = refusal!;
          throw what === "multi"
            ? new MultiError(code, `ZooKeeper: multi: ${ops[index]!.op} ${ops[index]!.path}`, index)
            : new DssError(code, `ZooKeeper: ${what}`);
        });
      });
    });
  }
  async create(path: string, data: Buffer, options: CreateOptions = {}): Promise<string> {
    checkSize(`create ${path}`, data.length);
    const [result] = await this.write(`create ${path}`, [{ op: "create", path, data, ...options }]);
    return result!.path!;
  }
  async set(path: string, data: Buffer, version: number): Promise<number> {
    checkSize(`set ${path}`, data.length);
    const [result] = await this.write(`set ${path}`, [{ op: "set", path, data, version }]);
    return result!.version!;
  }
  async remove(path: string, version: number): Promise<void> {
    await this.write(`remove ${path}`, [{ op: "remove", path, version }]);
  }
  async multi(ops: readonly CoordinationOp[]): Promise<OpResult[]> {
    let bytes = 0;
    for (const op of ops) bytes += op.path.length + 64 + ("data" in op ? op.data.length : 0);
    checkSize("multi", bytes);
    return this.write("multi", ops);
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
    await this.multi([{ op: "check", path: "/", version: ANY_VERSION }]);
  }
}

function checkSize(what: string, bytes: number): void {
  if (bytes <= REQUEST_BYTES_MAX) return;
  throw new DssError("TooLarge", `ZooKeeper: ${what}: ${bytes} bytes in one request`);
}
