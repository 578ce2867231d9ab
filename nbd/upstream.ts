/**
 * A connection to the process that serves an export: negotiates, then passes requests on and hands
 * out the replies. Owner of the link; tells of its end exactly once, unless it was closed here.
 */
import { DssError, isDssError } from "../cluster/base/errors.js";
import type { Address, Connection as Link, Network } from "../cluster/platform/ports.js";
import type { ExportFacts } from "./abi.js";
import { ClientHandshake } from "./client-handshake.js";
import { ReplyDecoder, type ReplyChunk } from "./client-replies.js";

const CONNECT_MS = 10_000;

export interface UpstreamHandlers {
  ready(facts: ExportFacts): void;
  /** May throw Malformed, which breaks the connection. */
  reply(chunk: ReplyChunk): void;
  broken(error: DssError): void;
}

export class Upstream {
  private handshake: ClientHandshake | undefined;
  private readonly decoder = new ReplyDecoder();
  private over = false;

  private constructor(
    private readonly link: Link,
    name: string,
    private readonly handlers: UpstreamHandlers,
  ) {
    this.handshake = new ClientHandshake(name);
    link.onClose((error) => {
      this.fail(new DssError("ConnectionLost", "the volume's server is gone", { cause: error }));
    });
    link.onDrain(() => undefined);
    link.onData((chunk) => this.onData(link.lends ? Buffer.from(chunk) : chunk));
  }

  /** Errors: those of `Network.connect`. */
  static async connect(
    network: Network,
    target: { address: Address; name: string },
    handlers: UpstreamHandlers,
  ): Promise<Upstream> {
    const link = await network.connect(target.address, { timeoutMs: CONNECT_MS });
    return new Upstream(link, target.name, handlers);
  }

  send(chunks: readonly Buffer[]): void {
    if (!this.over) this.link.send(chunks);
  }

  close(): void {
    this.over = true;
    this.link.destroy();
  }

  private onData(chunk: Buffer): void {
    if (this.over) return;
    try {
      if (this.handshake === undefined) {
        this.decoder.push(chunk);
      } else {
        const { send, ready } = this.handshake.push(chunk);
        if (send.length > 0) this.link.send(send);
        if (ready === undefined) return;
        this.handshake = undefined;
        this.decoder.push(ready.rest);
        this.handlers.ready(ready.facts);
      }
      for (let next = this.decoder.next(); next !== undefined; next = this.decoder.next()) {
        this.handlers.reply(next);
      }
    } catch (error) {
      if (!isDssError(error)) throw error;
      this.fail(error);
    }
  }

  private fail(error: DssError): void {
    if (this.over) return;
    this.over = true;
    this.link.destroy();
    this.handlers.broken(error);
  }
}

/** The facts of an export, by a connection of their own. Errors: any of the path or the server. */
export function askFacts(
  network: Network,
  target: { address: Address; name: string },
): Promise<ExportFacts> {
  return new Promise((resolve, reject) => {
    let upstream: Upstream | undefined;
    let isDone = false;
    const done = (): void => {
      isDone = true;
      upstream?.close();
    };
    const handlers: UpstreamHandlers = {
      ready: (facts) => {
        done();
        resolve(facts);
      },
      reply: () => undefined,
      broken: reject,
    };
    Upstream.connect(network, target, handlers).then((opened) => {
      upstream = opened;
      if (isDone) opened.close();
    }, reject);
  });
}
