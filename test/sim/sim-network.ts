/**
 * A simulated network of byte streams: seeded delay per message, order kept within a connection and not across, loss
 * (which a stream shows as a broken connection), partitions, and hosts that crash.
 */
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
}

interface Bound {
  host: SimHost;
  onConnection: (connection: Connection) => void;
}

export class SimNetwork {
  faults: NetworkFaults = { delayMs: { min: 0.02, max: 0.2 }, loss: 0 };
  private readonly listeners = new Map<string, Bound>();
  private readonly cut = new Set<string>();
  private nextPort = 40_000;
  bytes = 0;
  messages = 0;
  broken = 0;

  constructor(
    readonly clock: SimClock,
    readonly random: Prng,
  ) {}

  /** No bytes go from `source` to `target` until `heal`. */
  partition(source: string, target: string): void {
    this.cut.add(`${source}>${target}`);
  }
  heal(): void {
    this.cut.clear();
  }
  reachable(source: SimHost, target: SimHost): boolean {
    return source.alive && target.alive && !this.cut.has(`${source.name}>${target.name}`);
  }
  delay(): number {
    const { min, max } = this.faults.delayMs;
    // Mostly quick, now and then slow: a long tail finds more orders than a uniform delay.
    const tail = this.random.chance(0.05) ? 10 : 1;
    return min + this.random.float() * (max - min) * tail;
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
  private readonly ends = new Set<SimEnd>();

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
      return Promise.reject(error as Error);
    }
  }

  connect(address: Address, { timeoutMs }: { timeoutMs: number }): Promise<Connection> {
    const { network } = this;
    const where = formatAddress(address);
    return new Promise((resolve, reject) => {
      const bound = network.bound(address);
      if (bound !== undefined && bound.host.alive && !network.reachable(this, bound.host)) {
        network.clock.schedule(timeoutMs, () => {
          if (this.alive) reject(new DssError("TimedOut", `no connection to ${where}`));
        });
        return;
      }
      network.clock.schedule(network.delay() * 2, () => {
        if (!this.alive) return;
        const target = network.bound(address);
        if (target === undefined || !target.host.alive) {
          reject(new DssError("Unreachable", `${where} refuses connections`));
          return;
        }
        const near = new SimEnd(this, where);
        const far = new SimEnd(target.host, this.name);
        near.other = far;
        far.other = near;
        this.ends.add(near);
        target.host.ends.add(far);
        target.onConnection(far);
        resolve(near);
      });
    });
  }

  /** The host is gone: its peers see broken connections a little later. */
  crash(): void {
    this.alive = false;
    for (const end of [...this.ends]) end.break();
  }
  forget(end: SimEnd): void {
    this.ends.delete(end);
  }
}

class SimEnd implements Connection {
  other!: SimEnd;
  private dataCallback: ((chunk: Buffer) => void) | undefined;
  private closeCallback: ((error?: Error) => void) | undefined;
  private closed = false;
  private paused = false;
  private held: Buffer[] = [];
  /** Delivery keeps order: never before what was sent earlier. */
  private lastArrival = 0;
  readonly bufferedBytes = 0;

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
  send(chunks: readonly Buffer[]): void {
    if (this.closed) return;
    const { network } = this.host;
    // A copy: the sender may reuse its buffers as soon as a real socket would have taken the bytes.
    const message = Buffer.concat(chunks);
    network.bytes += message.length;
    network.messages++;
    if (network.random.chance(network.faults.loss)) {
      network.broken++;
      this.break();
      return;
    }
    const target = this.other;
    if (!network.reachable(this.host, target.host)) return; // Lost; deadlines will tell.
    const arrival = Math.max(network.clock.now + network.delay(), this.lastArrival);
    this.lastArrival = arrival;
    network.clock.schedule(arrival - network.clock.now, () => target.receive(message));
  }
  pause(): void {
    this.paused = true;
  }
  resume(): void {
    if (!this.paused) return;
    this.paused = false;
    this.host.network.clock.schedule(0, () => {
      while (!this.paused && !this.closed && this.held.length > 0) {
        this.dataCallback?.(this.held.shift()!);
      }
    });
  }
  /** What was sent arrives before the end is seen. */
  end(): void {
    const { clock } = this.host.network;
    clock.schedule(this.lastArrival - clock.now, () => this.break());
  }
  destroy(): void {
    this.break();
  }

  /** Both ends learn it, each after a delay; what is under way is lost. */
  break(): void {
    for (const end of [this, this.other]) {
      if (end.closed) continue;
      end.closed = true;
      end.host.forget(end);
      end.host.network.clock.schedule(end.host.network.delay(), () => {
        if (end.host.alive) end.closeCallback?.(new Error("connection reset"));
      });
    }
  }

  private receive(message: Buffer): void {
    if (this.closed || !this.host.alive) return;
    if (this.paused || this.held.length > 0) this.held.push(message);
    else this.dataCallback?.(message);
  }
}
