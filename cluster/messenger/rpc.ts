/**
 * The messenger: listener, peers with reconnection, and the table of handlers.
 */
import { BufferPool } from "../base/buffer-pool.js";
import { DssError, describeError } from "../base/errors.js";
import type { Logger } from "../base/log.js";
import {
  formatAddress,
  type Address,
  type Clock,
  type Connection,
  type Listener,
  type Network,
  type RandomSource,
  type Timer,
} from "../platform/ports.js";
import { FRAME_LIMITS } from "../wire/frame.js";
import type { Call, Post } from "../wire/registry.js";
import { Backoff } from "./backoff.js";
import type {
  Answered,
  CallOptions,
  Incoming,
  Link,
  Messenger,
  Peer,
  Receiver,
} from "./messenger.js";
import { LinkSession, type Handler, type LinkHost, type LinkLimits } from "./session.js";

export const LINK_LIMITS: LinkLimits = {
  ...FRAME_LIMITS,
  inFlightMax: 4_096,
  inFlightBytesMax: 64 * 1024 * 1024,
  sendBufferBytesMax: 64 * 1024 * 1024,
};
const CONNECT_TIMEOUT_MS = 2_000;
const HELLO_TIMEOUT_MS = 2_000;
/** A connection that has not said Hello by then is dropped. */
const SILENT_CONNECTION_MS = 5_000;
const CONNECTIONS_MAX = 10_000;

export interface MessengerOptions {
  clock: Clock;
  network: Network;
  random: RandomSource;
  logger: Logger;
  entity: number;
  /** "osd", "mds", "client": for log lines. */
  role: string;
  /** Empty while unknown. Connections between two clusters are refused. */
  clusterId: () => string;
  limits?: Partial<LinkLimits>;
}

/**
 * Memory of large requests and answers that is kept for the next ones: as much as is in use at a
 * time, or V8 collects everything for the rest of it; for as long as it is used.
 */
const POOL_BYTES = 64 * 1024 * 1024;
const POOL_TRIM_MS = 5_000;

export class RpcMessenger implements Messenger, LinkHost {
  readonly clock: Clock;
  readonly logger: Logger;
  readonly limits: LinkLimits;
  readonly pool = new BufferPool(POOL_BYTES, () => this.trimLater());
  private trimTimer: Timer | undefined;
  readonly role: string;
  readonly clusterId: () => string;
  entity: number;
  epoch = 0;
  private readonly handlers = new Map<number, Handler>();
  private readonly peers = new Map<string, RpcPeer>();
  private readonly links = new Set<LinkSession>();
  private readonly listeners: Listener[] = [];
  private closed = false;

  constructor(private readonly options: MessengerOptions) {
    this.clock = options.clock;
    this.logger = options.logger;
    this.limits = { ...LINK_LIMITS, ...options.limits };
    this.role = options.role;
    this.entity = options.entity;
    this.clusterId = options.clusterId;
  }

  async listen(address: Address): Promise<Address> {
    const accept = (connection: Connection): void => {
      if (this.closed || this.links.size >= CONNECTIONS_MAX) {
        connection.destroy();
        return;
      }
      const link = this.track(new LinkSession(this, connection, true));
      const timer = this.clock.setTimer(SILENT_CONNECTION_MS, () => {
        if (link.entity >= 0 || link.closed) return;
        this.logger.warn({ remote: link.remote }, "closing a connection that did not say Hello");
        link.destroy();
      });
      link.onClose(() => timer.cancel());
    };
    const listener = await this.options.network.listen(address, accept, { lends: true });
    this.listeners.push(listener);
    return listener.address;
  }

  peer(address: Address): Peer {
    const key = formatAddress(address);
    let peer = this.peers.get(key);
    if (peer === undefined) {
      peer = new RpcPeer(this, address, () => this.peers.delete(key));
      this.peers.set(key, peer);
    }
    return peer;
  }

  handle<Request, Reply>(
    call: Call<Request, Reply>,
    handler: (incoming: Incoming<Request, Reply>) => void,
  ): void {
    this.handlers.set(call.number, { kind: "call", call, run: handler });
  }
  handlePost<Message>(post: Post<Message>, handler: (message: Message, link: Link) => void): void {
    this.handlers.set(post.number, { kind: "post", post, run: handler });
  }
  handler(type: number): Handler | undefined {
    return this.handlers.get(type);
  }
  setEpoch(epoch: number): void {
    this.epoch = epoch;
  }
  setEntity(entity: number): void {
    this.entity = entity;
  }

  /** Connects and shakes hands. */
  async connect(address: Address): Promise<LinkSession> {
    if (this.closed) throw new DssError("ShuttingDown", "the messenger is closed");
    const connection = await this.options.network.connect(address, {
      timeoutMs: CONNECT_TIMEOUT_MS,
    });
    const link = this.track(new LinkSession(this, connection, false));
    try {
      await link.hello(HELLO_TIMEOUT_MS);
    } catch (error) {
      link.destroy();
      throw error;
    }
    return link;
  }
  newBackoff(): Backoff {
    return new Backoff(this.options.random, { firstMs: 20, maxMs: 1_000 });
  }

  private trimLater(): void {
    if (this.closed || this.trimTimer !== undefined) return;
    this.trimTimer = this.clock.setTimer(POOL_TRIM_MS, () => {
      this.trimTimer = undefined;
      this.pool.trim();
      if (this.pool.kept > 0) this.trimLater();
    });
  }

  async close(): Promise<void> {
    this.closed = true;
    this.trimTimer?.cancel();
    for (const peer of [...this.peers.values()]) peer.close();
    const closing = this.listeners.map((listener) => listener.close());
    for (const link of this.links) link.destroy();
    await Promise.all(closing);
  }

  private track(link: LinkSession): LinkSession {
    this.links.add(link);
    link.onClose(() => this.links.delete(link));
    return link;
  }
}

interface Waiting {
  send: (link: LinkSession) => void;
  fail: (error: DssError) => void;
}

class RpcPeer implements Peer {
  private link: LinkSession | undefined;
  private connecting = false;
  private retryTimer: Timer | undefined;
  private readonly backoff: Backoff;
  private waiting: Waiting[] = [];
  private readonly upListeners: ((link: Link) => void)[] = [];
  private closed = false;

  constructor(
    private readonly messenger: RpcMessenger,
    readonly address: Address,
    private readonly onClosed: () => void,
  ) {
    this.backoff = messenger.newBackoff();
  }

  call<Request, Reply>(
    call: Call<Request, Reply>,
    message: Request,
    options: CallOptions,
  ): Promise<Answered<Reply>> {
    if (this.link !== undefined && !this.link.closed) return this.link.call(call, message, options);
    return new Promise((resolve, reject) => {
      this.whenUp(call.name, options.deadlineMs, {
        send: (link, deadlineMs) => {
          link.call(call, message, { ...options, deadlineMs }).then(resolve, reject);
        },
        fail: reject,
      });
    });
  }

  send<Request, Reply>(
    call: Call<Request, Reply>,
    body: Buffer,
    options: CallOptions,
    receiver: Receiver<Reply>,
  ): void {
    if (this.link !== undefined && !this.link.closed) {
      this.link.send(call, body, options, receiver);
      return;
    }
    this.whenUp(call.name, options.deadlineMs, {
      send: (link, deadlineMs) => link.send(call, body, { ...options, deadlineMs }, receiver),
      fail: (error) => receiver.failed(error),
    });
  }

  /** `request` is called back once there is a connection, or none in time. */
  private whenUp(
    name: string,
    deadlineMs: number,
    request: {
      send: (link: LinkSession, deadlineMs: number) => void;
      fail: (error: DssError) => void;
    },
  ): void {
    if (this.closed) {
      request.fail(new DssError("ShuttingDown", "the connection was closed here"));
      return;
    }
    const { clock } = this.messenger;
    const deadline = clock.now() + deadlineMs;
    const waiting: Waiting = {
      send: (link) => {
        timer.cancel();
        request.send(link, Math.max(deadline - clock.now(), 1));
      },
      fail: (error) => {
        timer.cancel();
        request.fail(error);
      },
    };
    // A connection attempt may take longer than this call can wait.
    const timer = clock.setTimer(deadlineMs, () => {
      this.waiting.splice(this.waiting.indexOf(waiting), 1);
      const where = formatAddress(this.address);
      request.fail(new DssError("TimedOut", `no connection to ${where} for ${name} in time`));
    });
    this.waiting.push(waiting);
    this.connectSoon();
  }

  post<Message>(post: Post<Message>, message: Message): void {
    this.link?.post(post, message);
  }
  onUp(callback: (link: Link) => void): void {
    this.upListeners.push(callback);
    if (this.link !== undefined && !this.link.closed) callback(this.link);
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.retryTimer?.cancel();
    this.link?.destroy();
    this.failWaiting(new DssError("ShuttingDown", "the connection was closed here"));
    this.onClosed();
  }

  private connectSoon(): void {
    if (this.connecting || this.retryTimer !== undefined || this.closed) return;
    this.connecting = true;
    this.messenger.connect(this.address).then(
      (link) => {
        this.connecting = false;
        this.onConnected(link);
      },
      (error: unknown) => {
        this.connecting = false;
        if (!(error instanceof DssError)) throw error;
        this.onRefused(error);
      },
    );
  }

  private onConnected(link: LinkSession): void {
    if (this.closed) {
      link.destroy();
      return;
    }
    this.backoff.reset();
    this.link = link;
    link.onClose(() => {
      if (this.link === link) this.link = undefined;
    });
    for (const callback of this.upListeners) callback(link);
    const waiting = this.waiting;
    this.waiting = [];
    for (const call of waiting) call.send(link);
  }

  private onRefused(error: DssError): void {
    this.messenger.logger.debug(
      { peer: formatAddress(this.address), error: describeError(error) },
      "no connection",
    );
    this.failWaiting(error);
    this.retryTimer = this.messenger.clock.setTimer(this.backoff.next(), () => {
      this.retryTimer = undefined;
      if (this.waiting.length > 0) this.connectSoon();
    });
  }
  private failWaiting(error: DssError): void {
    const waiting = this.waiting;
    this.waiting = [];
    for (const call of waiting) call.fail(error);
  }
}
