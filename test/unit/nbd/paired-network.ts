/** Connections within a process: what one end sends the other receives, until a test cuts them. */
import { DssError } from "../../../cluster/base/errors.js";
import type { Address, Connection, Listener, Network } from "../../../cluster/platform/ports.js";
import { lend } from "./fake-platform.js";

class End implements Connection {
  readonly remote = "peer";
  readonly lends = true;
  readonly bufferedBytes = 0;
  other: End | undefined;
  private queue: Buffer[] = [];
  private paused = false;
  private over = false;
  private closing = false;
  private data: ((chunk: Buffer) => void) | undefined;
  private closed: ((error?: Error) => void) | undefined;

  onData(callback: (chunk: Buffer) => void): void {
    this.data = callback;
    this.deliverSoon();
  }
  onClose(callback: (error?: Error) => void): void {
    this.closed = callback;
  }
  onDrain(): void {
    // Nothing is ever buffered.
  }
  send(chunks: readonly Buffer[]): void {
    if (this.over || this.other === undefined || this.other.over) return;
    // Copies, as a real network makes: a server may use its buffers again.
    this.other.queue.push(Buffer.from(Buffer.concat(chunks)));
    this.other.deliverSoon();
  }
  pause(): void {
    this.paused = true;
  }
  resume(): void {
    this.paused = false;
    this.deliverSoon();
  }
  end(): void {
    this.other?.close();
    this.close();
  }
  destroy(): void {
    this.other?.close();
    this.queue = [];
    this.close();
  }
  /** The peer is gone; what it had sent still arrives. */
  private close(): void {
    this.closing = true;
    this.deliverSoon();
  }
  private deliverSoon(): void {
    setImmediate(() => this.deliver());
  }
  private deliver(): void {
    while (!this.paused && !this.over && this.data !== undefined && this.queue.length > 0) {
      lend(this.queue.shift()!, this.data);
    }
    if (!this.closing || this.over || (this.queue.length > 0 && !this.paused)) return;
    this.over = true;
    this.closed?.();
  }
}

/** One listener at a time. */
export class PairedNetwork implements Network {
  private accept: ((connection: Connection) => void) | undefined;
  private readonly ends = new Set<End>();

  async listen(address: Address, onConnection: (c: Connection) => void): Promise<Listener> {
    this.accept = onConnection;
    return { address, close: async () => (this.accept = undefined) && undefined };
  }
  async connect(): Promise<Connection> {
    if (this.accept === undefined) throw new DssError("Unreachable", "nobody listens");
    const [near, far] = [new End(), new End()];
    near.other = far;
    far.other = near;
    this.ends.add(near);
    this.accept(far);
    return near;
  }
  /** The listener and all connections die at once. */
  cut(): void {
    this.accept = undefined;
    for (const end of this.ends) end.destroy();
    this.ends.clear();
  }
}
