/** A clock and a network under the test's control, for the NBD server. */
import type {
  Address,
  Clock,
  Connection,
  Listener,
  Network,
  Timer,
  TlsIdentity,
} from "../../../cluster/platform/ports.js";

export class FakeClock implements Clock {
  private time = 0;
  private deferred: (() => void)[] = [];
  private timers: { at: number; callback: () => void }[] = [];

  now(): number {
    return this.time;
  }
  wallNs(): bigint {
    return BigInt(this.time) * 1_000_000n;
  }
  setTimer(ms: number, callback: () => void): Timer {
    const timer = { at: this.time + ms, callback };
    this.timers.push(timer);
    return { cancel: () => (this.timers = this.timers.filter((other) => other !== timer)) };
  }
  defer(callback: () => void): void {
    this.deferred.push(callback);
  }
  get timerCount(): number {
    return this.timers.length;
  }

  /** Runs what is deferred and every promise reaction, until nothing is left. */
  async settle(): Promise<void> {
    let quiet = 0;
    while (quiet < 2) {
      await new Promise<void>((resolve) => setImmediate(resolve));
      const due = this.deferred;
      this.deferred = [];
      quiet = due.length === 0 ? quiet + 1 : 0;
      for (const callback of due) callback();
    }
  }
  async advance(ms: number): Promise<void> {
    const end = this.time + ms;
    for (;;) {
      await this.settle();
      const next = this.timers.sort((a, b) => a.at - b.at)[0];
      if (!next || next.at > end) break;
      this.time = Math.max(this.time, next.at);
      this.timers = this.timers.filter((timer) => timer !== next);
      next.callback();
    }
    this.time = end;
  }
}

/** Whoever keeps what was lent finds other bytes there. */
export function lend(bytes: Buffer, receive: (chunk: Buffer) => void): void {
  const lent = Buffer.from(bytes);
  receive(lent);
  lent.fill(0xdd);
}

/** The server's end of a connection; the test is the client. What it lends changes afterwards. */
export class FakeLink implements Connection {
  readonly remote = "client";
  readonly lends = true;
  sends: number[] = [];
  received: Buffer[] = [];
  paused = false;
  ended = false;
  destroyed = false;
  /** When false the client does not read: what is sent counts as buffered. */
  reading = true;
  bufferedBytes = 0;
  private data: (chunk: Buffer) => void = () => undefined;
  private closed: (error?: Error) => void = () => undefined;
  private drained: () => void = () => undefined;
  private queue: Buffer[] = [];
  private gone = false;

  onData(callback: (chunk: Buffer) => void): void {
    this.data = callback;
  }
  onClose(callback: (error?: Error) => void): void {
    this.closed = callback;
  }
  onDrain(callback: () => void): void {
    this.drained = callback;
  }
  /** Copies at the last moment: what was recycled before `sent` shows. */
  send(chunks: readonly Buffer[], sent?: () => void): void {
    if (this.ended || this.destroyed) return;
    this.sends.push(chunks.length);
    const at = this.received.length;
    this.received.push(...chunks);
    if (!this.reading) for (const chunk of chunks) this.bufferedBytes += chunk.length;
    setImmediate(() => {
      for (let i = 0; i < chunks.length; i++) {
        if (this.received[at + i] === chunks[i]) this.received[at + i] = Buffer.from(chunks[i]!);
      }
      sent?.();
    });
  }
  pause(): void {
    this.paused = true;
  }
  resume(): void {
    this.paused = false;
    while (!this.paused && this.queue.length > 0) lend(this.queue.shift()!, this.data);
  }
  /** Settled by the test; undefined until the server encrypts. */
  tls: { identity: TlsIdentity; agree: () => void; refuse: (error: Error) => void } | undefined;
  startTls(identity: TlsIdentity): Promise<void> {
    return new Promise((agree, refuse) => (this.tls = { identity, agree, refuse }));
  }
  end(): void {
    this.ended = true;
  }
  destroy(): void {
    this.destroyed = true;
    setImmediate(() => this.hangUp());
  }

  /** The client sends; a paused link keeps it. */
  push(...chunks: Buffer[]): void {
    this.queue.push(...chunks);
    if (!this.paused) this.resume();
  }
  /** The client takes everything that was sent. */
  take(): Buffer {
    const all = Buffer.concat(this.received);
    this.received = [];
    return all;
  }
  drain(): void {
    this.reading = true;
    this.bufferedBytes = 0;
    this.drained();
  }
  hangUp(error?: Error): void {
    if (this.gone) return;
    this.gone = true;
    this.closed(error);
  }
}

export class FakeNetwork implements Network {
  private accept: ((connection: Connection) => void) | undefined;
  closed = 0;

  async listen(address: Address, onConnection: (c: Connection) => void): Promise<Listener> {
    this.accept = onConnection;
    return { address, close: async () => void this.closed++ };
  }
  connect(): Promise<Connection> {
    return Promise.reject(new Error("the server never connects"));
  }
  client(): FakeLink {
    const link = new FakeLink();
    this.accept!(link);
    return link;
  }
}
