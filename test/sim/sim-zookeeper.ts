/**
 * A modelled ZooKeeper on simulated time: an ensemble whose leader orders all writes, servers that
 * apply them a little later, sessions with expiry, ephemeral and sequential nodes, transactions,
 * one-shot watches in ZooKeeper's order (a client learns of a change before it reads anything newer
 * on the same server), clients that change servers without going back in time, lost connections
 * with unknown outcomes, and outages of one server or of all. One suite holds it and a real
 * ZooKeeper to the same behaviour (test/support/coordination-suite.ts).
 *
 * Owns: the log, the servers' trees, the sessions. The clients' side is sim-zk-client.ts.
 */
import type { ErrorCode } from "../../cluster/base/errors.js";
import type { Prng } from "../../cluster/base/prng.js";
import type { CoordinationOp, OpResult } from "../../cluster/zk/coordination.js";
import type { SimClock } from "./sim-clock.js";
import type { SimHost, SimNetwork } from "./sim-network.js";
import { ZkTree, type Touched, type Transaction } from "./zk-tree.js";

/** The name of the whole ensemble in partitions. */
export const ZK = "zk";
const SERVERS = 3;
const TICK_MS = 500;
/** How often a message that a partition holds back is tried again. */
const RETRANSMIT_MS = 25;

/** One direction of a connection: in order, held back by partitions. */
export class Channel {
  private readonly queue: { at: number; work: () => void }[] = [];
  private last = 0;
  private isBusy = false;
  closed = false;

  constructor(
    private readonly clock: SimClock,
    private readonly delay: () => number,
    private readonly isCut: () => boolean,
  ) {}

  send(work: () => void): void {
    if (this.closed) return;
    this.last = Math.max(this.last, this.clock.now + this.delay());
    this.queue.push({ at: this.last, work });
    this.pump();
  }
  /** Nothing arrives any more but, perhaps, the first few messages that are on their way. */
  close(arriving = 0): void {
    if (this.closed) return;
    this.closed = true;
    for (const { at, work } of this.queue.splice(0).slice(0, arriving)) {
      this.clock.schedule(at - this.clock.now, work);
    }
  }
  get underWay(): number {
    return this.queue.length;
  }
  private pump(): void {
    const head = this.queue[0];
    if (this.isBusy || head === undefined) return;
    this.isBusy = true;
    this.wait(head.at - this.clock.now);
  }
  private wait(ms: number): void {
    this.clock.schedule(ms, () => {
      if (this.closed) return;
      if (this.isCut()) return this.wait(RETRANSMIT_MS);
      const { work } = this.queue.shift()!;
      this.isBusy = false;
      work();
      this.pump();
    });
  }
}

interface Session {
  id: bigint;
  timeoutMs: number;
  heardAt: number;
  /** The connection whose writes count. */
  owner: ServerConnection | undefined;
}

/** What a write came to: the transaction's number, so that its answer follows its application. */
export interface Outcome {
  zxid: number;
  results?: OpResult[];
  refusal?: { index: number; code: ErrorCode };
}
export interface Watched {
  kind: "d" | "e" | "c";
  path: string;
}

/** A server's end of a client's connection. */
export class ServerConnection {
  readonly toClient: Channel;
  readonly toServer: Channel;
  readonly watches = new Set<Touched>();
  /** Requests in order: answers leave in the same one. */
  private readonly pending: { ready: () => boolean; answer: () => void }[] = [];
  closed = false;
  /** The client's side. */
  onBroken: () => void = () => undefined;
  onFired: (touched: Touched) => void = () => undefined;

  constructor(
    private readonly zk: SimZooKeeper,
    readonly server: Server,
    readonly session: Session,
    readonly host: SimHost,
  ) {
    const { clock, network } = zk;
    const delay = (): number => network.delay();
    this.toServer = new Channel(clock, delay, () => network.isCut(host.name, ZK));
    this.toClient = new Channel(clock, delay, () => network.isCut(ZK, host.name));
  }

  /** A message arrives: the session lives. */
  touch(): void {
    if (this.session.owner === this) this.session.heardAt = this.zk.clock.now;
  }
  read(answer: () => void): void {
    this.enqueue(() => true, answer);
  }
  write(ops: readonly CoordinationOp[] | "close", answer: (outcome: Outcome) => void): void {
    const entry = { ready: () => false, answer: () => undefined as void };
    this.enqueue(() => entry.ready(), () => entry.answer());
    this.zk.propose(this, ops, (outcome) => {
      entry.answer = () => answer(outcome);
      entry.ready = () => this.server.applied >= outcome.zxid;
      this.drain();
    });
  }
  private enqueue(ready: () => boolean, answer: () => void): void {
    this.pending.push({ ready, answer });
    this.drain();
  }
  drain(): void {
    while (!this.closed && this.pending[0]?.ready() === true) this.pending.shift()!.answer();
  }
  fire(touched: readonly Touched[]): void {
    for (const one of touched) {
      if (!this.watches.delete(one)) continue;
      this.toClient.send(() => this.onFired(one));
    }
  }
  reply(work: () => void): void {
    this.toClient.send(() => this.host.run(work));
  }

  /** The connection is gone. Of what the client has sent, some of the first may still arrive. */
  break(isServerDead = false): void {
    if (this.closed) return;
    const arriving = isServerDead ? 0 : this.zk.random.int(0, this.toServer.underWay);
    this.toServer.close(arriving);
    this.toClient.close();
    this.closed = true;
    this.server.connections.delete(this);
    // Requests that were passed on to the leader take effect; nobody hears of it.
    const { clock, network } = this.zk;
    const tell = (): void => {
      if (network.isCut(ZK, this.host.name)) return; // Silence: its watchdog notices.
      this.host.run(() => this.onBroken());
    };
    clock.schedule(network.delay(), tell);
  }
}

class Server {
  readonly tree = new ZkTree();
  readonly connections = new Set<ServerConnection>();
  applied = 0;
  down = false;
}

export class SimZooKeeper {
  /** As the leader has it: everything committed. */
  readonly tree = new ZkTree();
  readonly servers: Server[] = [];
  readonly random: Prng;
  /** Called after every commit. */
  readonly listeners: ((transaction: Transaction) => void)[] = [];
  /** The longest that a server lags behind. */
  lagMs = 3;
  private readonly log: Transaction[] = [];
  private readonly sessions = new Map<bigint, Session>();
  private nextSession = 0x1000n;
  private isDown = false;

  constructor(
    readonly clock: SimClock,
    readonly network: SimNetwork,
    random: Prng,
  ) {
    this.random = random;
    for (let i = 0; i < SERVERS; i++) this.servers.push(new Server());
  }
  get zxid(): number {
    return this.log.length;
  }

  // ——— Faults ———

  /** One server dies; its clients go to others. */
  crashServer(index: number, ms: number): void {
    const server = this.servers[index]!;
    if (server.down || this.isDown) return;
    server.down = true;
    for (const connection of [...server.connections]) connection.break(true);
    this.clock.schedule(ms, () => (server.down = false));
  }
  /** Nobody is served; no session expires meanwhile, and all have their full time afterwards. */
  outage(ms: number): void {
    if (this.isDown) return;
    this.isDown = true;
    for (const server of this.servers) {
      for (const connection of [...server.connections]) connection.break(true);
    }
    this.clock.schedule(ms, () => this.recover());
  }
  recover(): void {
    if (!this.isDown) return;
    this.isDown = false;
    for (const session of this.sessions.values()) session.heardAt = this.clock.now;
  }
  /** Resets the connections of a host. */
  breakConnections(host: string): void {
    for (const { connections } of this.servers) {
      for (const connection of [...connections]) {
        if (connection.host.name === host) connection.break();
      }
    }
  }
  /** The kernel of a process that died resets its connections; its session lives on. */
  hostDied(host: SimHost): void {
    for (const { connections } of this.servers) {
      for (const connection of [...connections]) if (connection.host === host) connection.break();
    }
  }
  /** As its time-out does. */
  expire(id: bigint): void {
    const session = this.sessions.get(id);
    if (session !== undefined) this.end(session);
  }

  // ——— Connections ———

  accepts(index: number): boolean {
    return !this.isDown && !this.servers[index % SERVERS]!.down;
  }
  /**
   * Attaches a client to the server: undefined when the session is over, "behind" when the server
   * has not yet seen what the client has.
   */
  attach(
    index: number,
    host: SimHost,
    request: { session: bigint; timeoutMs: number; seen: number },
  ): ServerConnection | "behind" | undefined {
    const server = this.servers[index % SERVERS]!;
    if (server.applied < request.seen) return "behind";
    let session: Session | undefined;
    if (request.session === 0n) {
      const id = this.nextSession++;
      session = { id, timeoutMs: request.timeoutMs, heardAt: this.clock.now, owner: undefined };
      this.sessions.set(id, session);
      this.watchExpiry(session);
    } else session = this.sessions.get(request.session);
    if (session === undefined) return undefined;
    session.owner?.break();
    const connection = new ServerConnection(this, server, session, host);
    session.owner = connection;
    session.heardAt = this.clock.now;
    server.connections.add(connection);
    return connection;
  }

  private watchExpiry(session: Session): void {
    const due = session.heardAt + session.timeoutMs;
    const ms = due - this.clock.now + this.random.float() * TICK_MS;
    this.clock.schedule(ms, () => {
      if (!this.sessions.has(session.id)) return;
      const isSilent = this.clock.now - session.heardAt >= session.timeoutMs;
      if (isSilent && !this.isDown) this.end(session);
      else if (this.isDown) {
        session.heardAt = this.clock.now;
        this.watchExpiry(session);
      } else this.watchExpiry(session);
    });
  }
  private end(session: Session): number {
    this.sessions.delete(session.id);
    const paths = this.tree.ephemerals(session.id);
    const zxid = this.commit(paths.map((path) => ({ change: "remove", path })));
    const { owner } = session;
    if (owner !== undefined) this.clock.schedule(this.network.delay(), () => owner.break());
    return zxid;
  }

  // ——— Writes ———

  /** In the order of the calls of one connection; `done` runs when it is committed or refused. */
  propose(
    connection: ServerConnection,
    ops: readonly CoordinationOp[] | "close",
    done: (outcome: Outcome) => void,
  ): void {
    // The order is decided here; a session that has moved to another server, or that is over, has
    // no say on this one any more.
    const { session } = connection;
    if (this.isDown || session.owner !== connection) return;
    if (!this.sessions.has(session.id)) return;
    if (ops === "close") {
      done({ zxid: this.end(session) });
      return;
    }
    const prepared = this.tree.prepare(ops, session.id);
    if ("code" in prepared) done({ zxid: this.zxid, refusal: prepared });
    else done({ zxid: this.commit(prepared.changes), results: prepared.results });
  }
  private commit(changes: Transaction["changes"]): number {
    const transaction: Transaction = { zxid: this.log.length + 1, changes };
    this.log.push(transaction);
    this.tree.apply(transaction);
    for (const server of this.servers) {
      this.clock.schedule(this.random.float() * this.lagMs, () => {
        this.applyUpTo(server, transaction.zxid);
      });
    }
    for (const listener of this.listeners) listener(transaction);
    return transaction.zxid;
  }
  private applyUpTo(server: Server, zxid: number): void {
    while (server.applied < zxid) {
      const touched = server.tree.apply(this.log[server.applied]!);
      server.applied++;
      for (const connection of [...server.connections]) connection.fire(touched);
      // What a session reads between two of its writes sees the first and not the second.
      for (const connection of [...server.connections]) connection.drain();
    }
  }
}
