/**
 * A simulated network of byte streams: seeded delay per message, order kept within a connection and
 * not across, loss (which a stream shows as a broken connection), partitions (what was sent arrives
 * after healing, as TCP would send it again), hosts that crash, and hosts that freeze (nothing runs
 * there, and everything that came runs when they wake).
 */
import { BufferPool } from "../../cluster/base/buffer-pool.js";
import { DssError } from "../../cluster/base/errors.js";
import type { Prng } from "../../cluster/base/prng.js";
import {
  formatAddress,
  type Address,
  type Connection,
  type Listener,
  type Network,
} from "../../cluster/platform/ports.js";
import type { SimClock } from "./sim-clock.js";

export interface NetworkFaults {
  delayMs: { min: number; max: number };
  /** Probability that a message is lost, which breaks its connection. */
  loss: number;
  /** Probability that a message is held up for long, up to `stallMs`. */
  stall?: number;
  stallMs?: number;
  /** Probability that a message comes twice, the second time after what was sent later. */
  duplicate?: number;
  /** Loss of messages from and to metadata servers, whose answers matter one by one. */
  mdsLoss?: number;
}

interface Bound {
  host: SimHost;
  onConnection: (connection: Connection) => void;
}

export class SimNetwork {
  faults: NetworkFaults = { delayMs: { min: 0.02, max: 0.2 }, loss: 0 };
  private readonly listeners = new Map<string, Bound>();
  private readonly cut = new Map<string, number>();
  /** One end of every connection. */
  readonly ends = new Set<SimEnd>();
  /** Ends with messages that wait for a partition to heal. */
  private readonly stalled = new Set<SimEnd>();
  private nextPort = 40_000;
  bytes = 0;
  messages = 0;
  broken = 0;
  duplicated = 0;

  constructor(
    readonly clock: SimClock,
    readonly random: Prng,
  ) {
    BufferPool.overwrites = true; // Whoever kept a view of what was given back will notice.
  }

  /** No bytes go from `source` to `target` until the returned function is called, or `heal`. */
  partition(source: string, target: string): () => void {
    const key = `${source}>${target}`;
    this.cut.set(key, (this.cut.get(key) ?? 0) + 1);
    let isOver = false;
    return () => {
      const count = this.cut.get(key);
      if (isOver || count === undefined) return;
      isOver = true;
      if (count > 1) this.cut.set(key, count - 1);
      else this.cut.delete(key);
      this.flush();
    };
  }
  heal(): void {
    this.cut.clear();
    this.flush();
  }
  isCut(source: string, target: string): boolean {
    return this.cut.has(`${source}>${target}`);
  }
  reachable(source: SimHost, target: SimHost): boolean {
    return source.alive && target.alive && !this.isCut(source.name, target.name);
  }
  hold(end: SimEnd): void {
    this.stalled.add(end);
  }
  /** Resets the connections of two hosts. */
  breakBetween(one: string, other: string): void {
    for (const end of [...this.ends]) if (end.joins(one, other)) end.break();
  }
  private flush(): void {
    for (const end of [...this.stalled]) if (end.release()) this.stalled.delete(end);
  }
  lossBetween(source: string, target: string): number {
    const { loss, mdsLoss = loss } = this.faults;
    return source.startsWith("mds.") || target.startsWith("mds.") ? mdsLoss : loss;
  }
  delay(): number {
    const { min, max } = this.faults.delayMs;
    // Mostly quick, now and then slow: a long tail finds more orders than a uniform delay.
    const tail = this.random.chance(0.05) ? 10 : 1;
    const { stall = 0, stallMs = 0 } = this.faults;
    const stalled = stall > 0 && this.random.chance(stall) ? this.random.float() * stallMs : 0;
    return min + this.random.float() * (max - min) * tail + stalled;
  }

  bind(address: Address, bound: Bound): Address {
    let actual = address;
    if ("port" in address && address.port === 0) actual = { ...address, port: this.nextPort++ };
    const key = formatAddress(actual);
    const old = this.listeners.get(key);
    if (old !== undefined && old.host.alive) throw new DssError("Busy", `${key} is in use`);
    this.listeners.set(key, bound);
    return actual;
  }
  unbind(address: Address): void {
    this.listeners.delete(formatAddress(address));
  }
  bound(address: Address): Bound | undefined {
    return this.listeners.get(formatAddress(address));
  }
}

/** One incarnation of one machine on the network; a restarted one is a new SimHost. */
export class SimHost implements Network {
  alive = true;
  frozen = false;
  private readonly ends = new Set<SimEnd>();
  private waiting: (() => void)[] = [];

  constructor(
    readonly name: string,
    readonly network: SimNetwork,
  ) {}

  listen(address: Address, onConnection: (connection: Connection) => void): Promise<Listener> {
    try {
      const actual = this.network.bind(address, { host: this, onConnection });
      const close = (): Promise<void> => {
        this.network.unbind(actual);
        return Promise.resolve();
      };
      return Promise.resolve({ address: actual, close });
    } catch (error) {
      return Promise.reject(error);
    }
  }

  connect(address: Address, { timeoutMs }: { timeoutMs: number }): Promise<Connection> {
    const { network } = this;
    const where = formatAddress(address);
    return new Promise((resolve, reject) => {
      const bound = network.bound(address);
      const isCut =
        bound !== undefined &&
        bound.host.alive &&
        !(network.reachable(this, bound.host) && network.reachable(bound.host, this));
      if (isCut) {
        network.clock.schedule(timeoutMs, () => {
          this.run(() => reject(new DssError("TimedOut", `no connection to ${where}`)));
        });
        return;
      }
      network.clock.schedule(network.delay() * 2, () => {
        if (!this.alive) return;
        const target = network.bound(address);
        if (target === undefined || !target.host.alive) {
          const cause = Object.assign(new Error("refused"), { code: "ECONNREFUSED" });
          const refusal = new DssError("Unreachable", `${where} refuses connections`, { cause });
          this.run(() => reject(refusal));
          return;
        }
        const near = new SimEnd(this, where);
        const far = new SimEnd(target.host, this.name);
        near.other = far;
        far.other = near;
        this.ends.add(near);
        network.ends.add(near);
        target.host.ends.add(far);
        target.host.run(() => target.onConnection(far));
        this.run(() => resolve(near));
      });
    });
  }

  /** Runs now, or when the host wakes up, or never. */
  run(work: () => void): void {
    if (!this.alive) return;
    if (this.frozen || this.waiting.length > 0) this.waiting.push(work);
    else work();
  }
  /** As SIGSTOP: nothing runs, the kernel keeps what comes. */
  freeze(): void {
    this.frozen = true;
  }
  /** As SIGCONT: all that has become due runs, in order. */
  thaw(): void {
    if (!this.frozen) return;
    this.frozen = false;
    const next = (): void => {
      if (!this.alive || this.frozen) return;
      const work = this.waiting[0];
      if (work === undefined) return;
      // One by one, each with the promises that it settles, as everywhere else.
      this.network.clock.schedule(0, () => {
        if (!this.alive || this.frozen) return;
        this.waiting.shift();
        work();
        next();
      });
    };
    next();
  }

  /** The host is gone: its peers see broken connections a little later. */
  crash(): void {
    this.alive = false;
    for (const end of [...this.ends]) end.break();
  }
  forget(end: SimEnd): void {
    this.ends.delete(end);
    this.network.ends.delete(end);
  }
}

class SimEnd implements Connection {
  other!: SimEnd;
  private dataCallback: ((chunk: Buffer) => void) | undefined;
  private closeCallback: ((error?: Error) => void) | undefined;
  private closed = false;
  private paused = false;
  private held: Buffer[] = [];
  /** Sent into a partition. */
  private unsent: Buffer[] = [];
  /** Delivery keeps order: never before what was sent earlier. */
  private lastArrival = 0;
  readonly bufferedBytes = 0;

  readonly lends = true;

  constructor(
    private readonly host: SimHost,
    readonly remote: string,
  ) {}

  onData(callback: (chunk: Buffer) => void): void {
    this.dataCallback = callback;
  }
  onClose(callback: (error?: Error) => void): void {
    this.closeCallback = callback;
  }
  onDrain(): void {
    // Nothing is ever queued here.
  }
  send(chunks: readonly Buffer[], sent?: () => void): void {
    if (this.closed) return;
    // A copy: the sender may reuse its buffers as soon as a real socket would have taken the bytes.
    const message = Buffer.concat(chunks);
    if (sent !== undefined) this.host.network.clock.schedule(0, () => this.host.run(sent));
    // A frozen host sends nothing: what a completed disk operation still did there goes out when it
    // wakes.
    this.host.run(() => this.transmit(message));
  }
  private transmit(message: Buffer): void {
    if (this.closed) return;
    const { network } = this.host;
    network.bytes += message.length;
    network.messages++;
    if (network.random.chance(network.lossBetween(this.host.name, this.other.host.name))) {
      network.broken++;
      this.break();
      return;
    }
    const target = this.other;
    if (!network.reachable(this.host, target.host) || this.unsent.length > 0) {
      this.unsent.push(message);
      network.hold(this);
      return;
    }
    if (target.closed) return this.break(); // It was closed behind a partition.
    const arrival = Math.max(network.clock.now + network.delay(), this.lastArrival);
    this.lastArrival = arrival;
    const arrive = (at: number, bytes: Buffer): void => {
      network.clock.schedule(at - network.clock.now, () => {
        target.host.run(() => target.receive(bytes));
      });
    };
    const { duplicate = 0 } = network.faults;
    if (duplicate > 0 && network.random.chance(duplicate)) {
      network.duplicated++;
      arrive(arrival + network.delay() * 10, Buffer.from(message));
    }
    arrive(arrival, message);
  }
  joins(one: string, other: string): boolean {
    const names = [this.host.name, this.other.host.name];
    return names.includes(one) && names.includes(other);
  }
  /** Sends what a partition held back, if it has healed; true when nothing is left. */
  release(): boolean {
    if (this.closed) return true;
    if (!this.host.network.reachable(this.host, this.other.host)) return false;
    const messages = this.unsent;
    this.unsent = [];
    for (const message of messages) this.transmit(message);
    return true;
  }
  pause(): void {
    this.paused = true;
  }
  resume(): void {
    if (!this.paused) return;
    this.paused = false;
    const { host } = this;
    host.network.clock.schedule(0, () => host.run(() => this.deliverHeld()));
  }
  private deliverHeld(): void {
    while (!this.paused && !this.closed && this.held.length > 0) {
      this.deliver(this.held.shift()!);
    }
  }
  /** What was sent arrives before the end is seen. */
  end(): void {
    const { clock } = this.host.network;
    clock.schedule(this.lastArrival - clock.now, () => this.break());
  }
  destroy(): void {
    this.break();
  }

  /**
   * Both ends learn it, each after a delay (not through a partition); what is under way is lost.
   */
  break(): void {
    const { network } = this.host;
    for (const end of [this, this.other]) {
      if (end.closed) continue;
      if (end !== this && network.isCut(this.host.name, end.host.name)) continue;
      end.closed = true;
      end.host.forget(end);
      network.clock.schedule(network.delay(), () => {
        end.host.run(() => end.closeCallback?.(new Error("connection reset")));
      });
    }
  }

  private deliver(message: Buffer): void {
    this.dataCallback?.(message);
    message.fill(0xdb); // Whoever kept a view of it will notice.
  }
  private receive(message: Buffer): void {
    if (this.closed || !this.host.alive) return;
    if (this.paused || this.held.length > 0) this.held.push(message);
    else this.deliver(message);
  }
}
