/**
 * Keeps an export going over the deaths of the process that serves it: clients (the kernel's nbd,
 * qemu, a loop device's file) are connected here, or use `image`, and a server process does the
 * work; when that dies or hangs another is started, which has its predecessor fenced, and what was
 * not answered is sent to it again. Decisions are in server-keeper.ts, requests in relay-image.ts.
 *
 * Invariant: events of a server count only while it is the present one. Owner of the server process
 * and of the connection to it.
 */
import { describeError, DssError, isDssError } from "../cluster/base/errors.js";
import type { Logger } from "../cluster/base/log.js";
import type { Address, Clock, Network, Timer } from "../cluster/platform/ports.js";
import type { ExportFacts } from "./abi.js";
import type { BlockImage, ExportDirectory, ExportEntry } from "./block-image.js";
import { RelayImage } from "./relay-image.js";
import { ServerKeeper, type KeeperEffect, type KeeperEvent } from "./server-keeper.js";
import { askFacts, Upstream } from "./upstream.js";

/** A server that is ending has so long before it is made to. */
const ENDING_MS = 5_000;
/** At the end it gives its lock back in good order, or is killed. */
const STOP_MS = 30_000;
/** How long a reader of the size waits for a server. */
const REFRESH_MS = 2_000;

/** A server process, as its starter sees it. */
export interface ServerProcess {
  readonly pid: number;
  /** Where it serves; never settles when it ends before. */
  readonly ready: Promise<Address>;
  /** Settles with its end; with what it said of the reason, if anything. */
  readonly exited: Promise<DssError | undefined>;
  /** Called when it has not been heard of for a while. */
  onSilent(callback: () => void): void;
  /** In good order. */
  askToEnd(): void;
  kill(): void;
}

export interface SupervisorOptions {
  readonly name: string;
  readonly network: Network;
  readonly clock: Clock;
  readonly log: Logger;
  /** `continues`: an earlier one has served clients that go on. */
  readonly spawn: (options: { continues: boolean }) => ServerProcess;
  /** The export is lost for good; every request fails already. */
  readonly onLost: (error: DssError) => void;
}

export class Supervisor implements ExportDirectory {
  readonly image: RelayImage;
  private readonly keeper = new ServerKeeper();
  private server: ServerProcess | undefined;
  private upstream: Upstream | undefined;
  private address: Address | undefined;
  private timer: Timer | undefined;
  private begun: { resolve(): void; reject(error: DssError): void } | undefined;
  private lost: DssError | undefined;
  private readonly over: Promise<void>;
  private onOver: () => void = () => undefined;
  private deaths = 0;

  constructor(private readonly options: SupervisorOptions) {
    this.image = new RelayImage({ name: options.name, onRefusing: () => this.onRefusing() });
    this.over = new Promise((resolve) => (this.onOver = resolve));
  }

  /** Process id of the present server, and how many have ended before it. */
  get figures(): { pid: number | undefined; restarts: number } {
    return { pid: this.server?.pid, restarts: this.deaths };
  }

  /** Resolves when the first server answers. Errors: why it does not. */
  async start(): Promise<void> {
    const begun = new Promise<void>((resolve, reject) => (this.begun = { resolve, reject }));
    this.step({ on: "start" });
    await begun;
  }

  /** After the last request. The server gives its lock back. */
  async stop(): Promise<void> {
    this.step({ on: "stop" });
    const timer = this.options.clock.setTimer(STOP_MS, () => {
      this.options.log.error({ pid: this.server?.pid }, "the server does not end: killing it");
      this.server?.kill();
    });
    await this.over;
    timer.cancel();
    this.image.end(new DssError("ShuttingDown", `${this.options.name} is detached`));
  }

  // ---- The one export ----

  async list(): Promise<ExportEntry[]> {
    const { name } = this.options;
    return [{ name, description: this.image.description }];
  }

  /** Looks at the size first, which may have changed. */
  async open(name: string): Promise<BlockImage> {
    if (name !== this.options.name) {
      throw new DssError("NotFound", `export ${name} is not offered here`);
    }
    if (this.lost !== undefined) throw this.lost;
    await this.refresh();
    return this.image;
  }

  /** Looks whether the volume has grown. */
  async refresh(): Promise<void> {
    const facts = await this.freshFacts();
    if (facts !== undefined) this.image.describe(facts);
  }

  async close(): Promise<void> {
    // Whoever is connected, the server keeps the volume.
  }

  private async freshFacts(): Promise<ExportFacts | undefined> {
    const { address } = this;
    const { network, clock, name, log } = this.options;
    if (address === undefined || !this.image.connected) return undefined;
    const late = new Promise<undefined>((resolve) => {
      clock.setTimer(REFRESH_MS, () => resolve(undefined));
    });
    try {
      return await Promise.race([askFacts(network, { address, name }), late]);
    } catch (error) {
      // The server has just gone; what was known holds until the next one is connected.
      log.debug({ error: describeError(error) }, "the size could not be asked for");
      return undefined;
    }
  }

  // ---- The server ----

  private step(event: KeeperEvent): void {
    for (const effect of this.keeper.step(event, this.options.clock.now())) this.run(effect);
  }

  private run(effect: KeeperEffect): void {
    const { log, clock } = this.options;
    switch (effect.do) {
      case "spawn":
        this.spawn(effect.continues);
        break;
      case "kill":
        log.warn({ pid: this.server?.pid, reason: effect.reason }, "killing the volume's server");
        this.server?.kill();
        break;
      case "askToEnd":
        this.server?.askToEnd();
        break;
      case "disconnect":
        this.disconnect();
        break;
      case "pause":
        this.timer = clock.setTimer(effect.ms, () => this.step({ on: "paused" }));
        break;
      case "giveUp":
        this.giveUp(effect.error);
        break;
      case "over":
        this.timer?.cancel();
        this.onOver();
        break;
    }
  }

  private spawn(continues: boolean): void {
    const server = this.options.spawn({ continues });
    this.server = server;
    const mine = (): boolean => this.server === server;
    server.onSilent(() => {
      if (mine()) this.step({ on: "broken", reason: "it does not answer" });
    });
    void server.ready.then((address) => {
      if (mine()) this.connect(server, address);
    });
    void server.exited.then((failure) => {
      if (!mine()) return;
      this.server = undefined;
      if (this.keeper.state !== "stopping") {
        this.deaths++;
        const reason = failure === undefined ? undefined : describeError(failure);
        this.options.log.warn(
          { pid: server.pid, reason, unanswered: this.image.waiting },
          "the volume's server has ended",
        );
      }
      this.step({ on: "exited", ...(failure !== undefined && { failure }) });
    });
  }

  private connect(server: ServerProcess, address: Address): void {
    const { network, name, log } = this.options;
    const mine = (): boolean => this.server === server;
    const broken = (error: DssError): void => {
      if (mine()) this.step({ on: "broken", reason: describeError(error) });
    };
    this.address = address;
    const handlers = {
      ready: (facts: ExportFacts) => {
        if (!mine() || this.keeper.state !== "starting") return;
        // Set when the connection is: `ready` comes later, with the first bytes.
        const upstream = this.upstream!;
        const resent = this.image.waiting;
        this.step({ on: "connected" });
        this.image.connect({ send: (chunks) => upstream.send(chunks) }, facts);
        log.info({ pid: server.pid, size: facts.size, resent }, "the volume's server answers");
        this.begun?.resolve();
        this.begun = undefined;
      },
      reply: (chunk: Parameters<RelayImage["onReply"]>[0]) => {
        if (mine() && this.image.connected) this.image.onReply(chunk);
      },
      broken,
    };
    Upstream.connect(network, { address, name }, handlers).then(
      (upstream) => {
        if (mine() && this.keeper.state === "starting") this.upstream = upstream;
        else upstream.close();
      },
      (error: unknown) => {
        if (!isDssError(error)) throw error;
        broken(error);
      },
    );
  }

  private disconnect(): void {
    this.image.disconnect();
    this.upstream?.close();
    this.upstream = undefined;
    this.address = undefined;
  }

  /** It ends of its own accord, or is made to: its requests go to the next one. */
  private onRefusing(): void {
    const { server } = this;
    this.options.clock.setTimer(ENDING_MS, () => {
      if (server !== undefined && this.server === server) {
        this.step({ on: "broken", reason: "it refuses requests" });
      }
    });
  }

  private giveUp(error: DssError): void {
    const { name, log } = this.options;
    if (this.begun !== undefined) {
      this.image.end(error);
      this.begun.reject(error);
      this.begun = undefined;
      return;
    }
    this.lost = new DssError("Fenced", `${name} is lost`, {
      cause: error,
      hint: `detach it, and attach it again when it is free: ${error.message}`,
    });
    log.error(
      { volume: name, error: describeError(error) },
      "the volume is lost: ending its export",
    );
    this.image.end(this.lost);
    this.options.onLost(this.lost);
  }
}
