/**
 * The NBD server: accepts connections on any number of addresses and serves the exports of one
 * directory. Owner of: the listeners, the set of connections, the budget they share and the
 * table of open exports.
 *
 * Invariants: whatever one client sends, only its own connection suffers; memory for data in
 * flight never exceeds `inFlightBytesMax`; after `stop` no socket is open, every image has been
 * flushed and closed, or `stop` has said which not.
 */
import { assert } from "../cluster/base/assert.js";
import { BufferPool } from "../cluster/base/buffer-pool.js";
import { DssError } from "../cluster/base/errors.js";
import type { Logger } from "../cluster/base/log.js";
import { OPTIONS } from "../cluster/config/options.js";
import {
  formatAddress,
  type Address,
  type Clock,
  type Connection as Link,
  type Listener,
  type Network,
  type Timer,
} from "../cluster/platform/ports.js";
import type { ExportDirectory } from "./block-image.js";
import { Budget } from "./budget.js";
import {
  NbdConnection,
  type ConnectionHost,
  type ConnectionLimits,
  type ServerTls,
} from "./connection.js";
import { ExportTable } from "./export-table.js";
import { WRITE_BYTES_MAX } from "./transmission.js";

/** The settings of the section `nbd`. */
export interface NbdLimits extends ConnectionLimits {
  readonly connectionsMax: number;
  /** Requests in flight on all connections. */
  readonly requestsMax: number;
  /** Bytes of reads and writes in flight on all connections, unsent replies included. */
  readonly inFlightBytesMax: number;
  /** A client that holds memory others wait for is dropped after so long without progress. */
  readonly stallMs: number;
  /** How long `stop` waits for requests in flight, and then for flushes. */
  readonly stopMs: number;
}

/** The defaults of the option table. */
const NBD_LIMITS = Object.fromEntries(
  Object.entries(OPTIONS.nbd).map(([name, option]) => [name, option.default]),
) as unknown as NbdLimits;
const STALL_CHECK_MS = 1_000;
/** Memory of answered writes that is kept for the next ones. */
const PAYLOAD_POOL_BYTES = 16 * 1024 * 1024;

export interface NbdServerOptions {
  readonly network: Network;
  readonly clock: Clock;
  readonly log: Logger;
  readonly directory: ExportDirectory;
  /** What a client gets that names no export; without it such a client is refused. */
  readonly defaultExport?: string;
  readonly limits?: Partial<NbdLimits>;
  /** Without it nothing is encrypted. */
  readonly tls?: ServerTls;
}

export class NbdServer {
  readonly limits: NbdLimits;
  private readonly clock: Clock;
  private readonly log: Logger;
  private readonly exports: ExportTable;
  private readonly budget: Budget;
  private readonly host: ConnectionHost;
  private readonly listeners: Listener[] = [];
  private readonly connections = new Set<NbdConnection>();
  private readonly idleWaiters: (() => void)[] = [];
  private stallTimer: Timer | undefined;
  private refusing = false;
  private stopped: Promise<void> | undefined;

  constructor(private readonly options: NbdServerOptions) {
    this.limits = { ...NBD_LIMITS, ...options.limits };
    for (const [name, value] of Object.entries(this.limits)) {
      assert(Number.isSafeInteger(value) && value > 0, `NBD limit ${name}: ${value}`);
    }
    // Otherwise a request that the protocol allows could never start.
    assert(this.limits.connectionBytesMax >= WRITE_BYTES_MAX, "NBD limit connectionBytesMax");
    assert(this.limits.inFlightBytesMax >= WRITE_BYTES_MAX, "NBD limit inFlightBytesMax");
    this.clock = options.clock;
    this.log = options.log;
    this.exports = new ExportTable(options.directory, options.log, options.clock);
    const { requestsMax: requests, inFlightBytesMax: bytes } = this.limits;
    this.budget = new Budget({ requests, bytes }, () => this.watchStalls());
    this.host = {
      clock: options.clock,
      budget: this.budget,
      limits: this.limits,
      payloads: new BufferPool(PAYLOAD_POOL_BYTES),
      tls: options.tls,
      list: () => options.directory.list(),
      acquire: async (name) => this.exports.acquire(this.resolve(name)),
      onGone: (connection) => this.onGone(connection),
    };
  }

  /** Errors: those of `Network.listen`; ShuttingDown after `stop`. */
  async listen(address: Address): Promise<Address> {
    if (this.stopped) throw new DssError("ShuttingDown", "the NBD server has been stopped");
    const { network, tls } = this.options;
    // What is encrypted later must not be lent before.
    const lends = tls === undefined;
    const listener = await network.listen(address, (link) => this.onConnection(link), { lends });
    this.listeners.push(listener);
    this.log.info({ address: formatAddress(listener.address) }, "serving NBD");
    return listener.address;
  }

  /** What the exports in use did since the last call. */
  activity(): ReturnType<ExportTable["activity"]> {
    return this.exports.activity();
  }

  /** For status displays and tests. */
  get figures(): { connections: number; requests: number; bytes: number; exports: number } {
    return {
      connections: this.connections.size,
      requests: this.budget.requestsInFlight,
      bytes: this.budget.bytesInFlight,
      exports: this.exports.openCount,
    };
  }

  /**
   * Accepts nothing more, lets requests in flight finish, flushes and closes every image.
   * Errors: TimedOut when that takes longer than `stopMs` twice over; else the first failed flush
   * or close since the start, because what it should have made durable may be lost.
   */
  stop(): Promise<void> {
    this.stopped ??= this.shutDown();
    return this.stopped;
  }

  private async shutDown(): Promise<void> {
    const { stopMs } = this.limits;
    const closed = this.listeners.map((listener) => listener.close());
    for (const connection of [...this.connections]) connection.stop();
    if (!(await this.within(stopMs, this.whenIdle()))) {
      this.log.warn(this.figures, "clients did not finish in time");
      for (const connection of this.connections) connection.destroy();
    }
    const drained = this.whenIdle().then(() => this.exports.drained());
    if (!(await this.within(stopMs, drained))) {
      throw new DssError("TimedOut", "some exports could not be flushed and closed in time", {
        hint: "writes that no flush had confirmed may be lost",
      });
    }
    await Promise.all(closed);
    this.log.info({}, "NBD server stopped");
  }

  /** False after `ms`; a failure of `work` is the caller's. */
  private within(ms: number, work: Promise<void>): Promise<boolean> {
    return new Promise((resolve, reject) => {
      const timer = this.clock.setTimer(ms, () => resolve(false));
      work.then(
        () => {
          timer.cancel();
          resolve(true);
        },
        (error: unknown) => {
          timer.cancel();
          reject(error);
        },
      );
    });
  }

  private whenIdle(): Promise<void> {
    if (this.connections.size === 0) return Promise.resolve();
    return new Promise((resolve) => this.idleWaiters.push(resolve));
  }

  private onConnection(link: Link): void {
    if (this.stopped) {
      link.destroy();
      return;
    }
    if (this.connections.size >= this.limits.connectionsMax) {
      // One line for a flood of them.
      if (!this.refusing) this.log.warn(this.figures, "too many connections: refusing more");
      this.refusing = true;
      link.destroy();
      return;
    }
    this.refusing = false;
    const log = this.log.child({ client: link.remote });
    this.connections.add(new NbdConnection(link, this.host, log));
  }

  private onGone(connection: NbdConnection): void {
    this.connections.delete(connection);
    if (this.connections.size > 0) return;
    for (const resolve of this.idleWaiters.splice(0)) resolve();
  }

  private resolve(name: string): string {
    if (name !== "") return name;
    if (this.options.defaultExport !== undefined) return this.options.defaultExport;
    throw new DssError("NotFound", "there is no default export", {
      hint: "name one of the exports that LIST shows",
    });
  }

  /** Runs only while someone waits for memory. */
  private watchStalls(): void {
    if (this.stallTimer) return;
    this.stallTimer = this.clock.setTimer(STALL_CHECK_MS, () => {
      this.stallTimer = undefined;
      if (!this.budget.scarce) return;
      // One at a time: its memory may be enough.
      for (const connection of this.connections) {
        if (connection.dropIfStalled(this.limits.stallMs)) break;
      }
      if (this.budget.scarce) this.watchStalls();
    });
  }
}
