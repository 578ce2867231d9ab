/**
 * One client's connection: runs the effects of the two state machines on a network connection and
 * an image. Owner of: the requests in flight, the replies not yet sent, the bytes charged to the
 * server's budget and the share of the export.
 *
 *   negotiating ──► serving ──► finishing ──► closed     (any ──► closed when the link ends)
 *
 * Invariants: the share is released exactly once, after the last request in flight has settled,
 * whatever became of the link; every byte charged is given back; a request is taken only when
 * its bytes fit into the connection's and the server's limits, and otherwise the link is paused.
 */
import { assert, AssertionFailure } from "../cluster/base/assert.js";
import type { BufferPool } from "../cluster/base/buffer-pool.js";
import { describeError, DssError } from "../cluster/base/errors.js";
import type { Logger } from "../cluster/base/log.js";
import type { Clock, Connection as Link, Timer, TlsIdentity } from "../cluster/platform/ports.js";
import { COMMAND_FLAG, NBD_ERROR, STATE, type Session } from "./abi.js";
import type { ExportEntry, ImageExtent, ImagePart } from "./block-image.js";
import type { Budget, BudgetWaiter } from "./budget.js";
import type { ExportShare } from "./export-table.js";
import { Handshake, type HandshakeEffect, type TlsPolicy } from "./handshake.js";
import type { ReadPart } from "./replies.js";
import { STATUS_EXTENTS_MAX, Transmission, type StartRequest } from "./transmission.js";

/** Replies without data that may wait for a client that does not read, bytes. */
const REPLY_BACKLOG_MAX = 1024 * 1024;
/** Unsent output below this is not charged: the link need not tell when so little is gone. */
const OUTPUT_FREE_BYTES = 64 * 1024;
/** An attempt that is given up has waited for longer. */
const RECYCLE_MS = 3_000;
/** How long a client may take to close its side after we closed ours. */
const LINGER_MS = 5_000;

export interface ConnectionLimits {
  /** Requests in flight on one connection. */
  readonly connectionRequestsMax: number;
  /** Bytes of reads and writes in flight on one connection, unsent replies included. */
  readonly connectionBytesMax: number;
  /** From connecting to the end of negotiation, the server's own work excepted. */
  readonly handshakeMs: number;
}

/** How a server encrypts. */
export interface ServerTls {
  readonly identity: TlsIdentity;
  readonly policy: Exclude<TlsPolicy, "off">;
}

/** What a connection needs of its server. */
export interface ConnectionHost {
  readonly clock: Clock;
  readonly budget: Budget;
  readonly limits: ConnectionLimits;
  /** For the payloads of writes. */
  readonly payloads: BufferPool;
  /** Without it connections stay in the clear. */
  readonly tls: ServerTls | undefined;
  list(): Promise<readonly ExportEntry[]>;
  /** "" is the default export. Errors: those of `ExportDirectory.open`. */
  acquire(name: string): Promise<ExportShare>;
  /** The link is closed, nothing is in flight and the share is released. */
  onGone(connection: NbdConnection): void;
}

type Phase = "negotiating" | "serving" | "finishing" | "closed";
const LEGAL: Record<Phase, readonly Phase[]> = {
  negotiating: ["serving", "finishing", "closed"],
  serving: ["finishing", "closed"],
  finishing: ["closed"],
  closed: [],
};

const DURABLE = { fua: true } as const;
const BUFFERED = { fua: false } as const;

export class NbdConnection {
  private phase: Phase = "negotiating";
  private readonly handshake: Handshake;
  private transmission: Transmission | undefined;
  private share: ExportShare | undefined;
  /** The directory is being asked; its answer must be awaited before the share is given up. */
  private asking = false;
  /** The link is being encrypted, which takes the client's part. */
  private securing = false;
  private gone = false;

  private inFlight = 0;
  /** Bytes charged to the budget: in flight, being assembled, and unsent. */
  private charged = 0;
  /** Charged for the request in hand, which has not started. */
  private prepaid = 0;
  /** Charged for finished reads whose replies are in `out`. */
  private corkedCharge = 0;
  /** Charged for replies that the link has not sent. */
  private outputCharge = 0;
  private waiter: BudgetWaiter | undefined;
  /** Runs while the volume's limits hold this connection back. */
  private limitTimer: Timer | undefined;

  private out: Buffer[] = [];
  /** What gives back the pieces of reads in `out`. */
  private toRecycle: (() => void)[] = [];
  private turnDue = false;
  private ended = false;
  private stopping = false;
  private paused = false;
  private timer: Timer | undefined;
  private progressAt: number;
  private bufferedSeen = 0;
  private readonly failuresLogged = new Set<string>();
  private failureCount = 0;

  constructor(
    private readonly link: Link,
    private readonly host: ConnectionHost,
    private readonly log: Logger,
  ) {
    this.progressAt = host.clock.now();
    this.handshake = new Handshake(host.tls?.policy);
    link.onClose((error) => this.onLinkClosed(error));
    link.onDrain(() => this.onDrain());
    link.onData((chunk) => this.onData(chunk));
    this.armHandshakeTimer();
    this.runHandshake(this.handshake.start());
  }

  get requestsInFlight(): number {
    return this.inFlight;
  }

  /** The server stops: requests in flight are finished, later ones refused until then. */
  stop(): void {
    if (this.phase === "serving") {
      const { transmission } = this;
      transmission!.stop();
      this.stopping = true;
      this.pump();
      if (this.phase !== "serving") return;
      if (this.inFlight > 0) return;
    }
    this.finish();
  }

  /** Takes no more requests, finishes those in flight, then closes. */
  private finish(): void {
    if (this.phase === "finishing" || this.phase === "closed") return;
    this.transition("finishing");
    this.timer?.cancel();
    this.handshake.abandon();
    this.forgetRequestInHand();
    this.pause();
    this.endWhenIdle();
  }

  /** Closes at once; requests in flight run to their end unanswered. */
  destroy(): void {
    if (this.phase !== "closed") this.link.destroy();
  }

  /** Ends a client that holds memory and moves nothing, so that others get it; true if it did. */
  dropIfStalled(stallMs: number): boolean {
    const holds = this.outputCharge > 0 || (this.prepaid > 0 && !this.paused);
    const buffered = this.link.bufferedBytes;
    const moved = buffered !== this.bufferedSeen;
    this.bufferedSeen = buffered;
    if (moved) this.progressAt = this.host.clock.now();
    if (!holds || this.phase === "closed") return false;
    if (this.host.clock.now() - this.progressAt < stallMs) return false;
    this.fail(`no progress for ${stallMs} ms while others wait for memory`);
    return true;
  }

  // ---- The link ----

  /**
   * A chunk of a link that does not lend is the receiver's: a write payload inside it is handed to
   * the image uncopied.
   */
  private onData(chunk: Buffer): void {
    const { lends } = this.link;
    this.progressAt = this.host.clock.now();
    if (this.phase === "serving") {
      const transmission = this.transmission!;
      transmission.push(chunk, lends);
      this.pump();
      transmission.keep();
    } else if (this.phase === "negotiating") {
      this.runHandshake(this.handshake.onBytes(lends ? Buffer.from(chunk) : chunk));
    }
  }

  private onDrain(): void {
    this.progressAt = this.host.clock.now();
    this.settleOutput();
    if (!this.paused) return;
    if (this.phase === "serving") this.pump();
    else if (this.phase === "negotiating") this.throttleHandshake();
  }

  private onLinkClosed(error: Error | undefined): void {
    if (this.phase === "closed") return;
    this.transition("closed");
    this.timer?.cancel();
    this.handshake.abandon();
    this.forgetRequestInHand();
    this.out = [];
    this.toRecycle = [];
    this.discharge(this.corkedCharge + this.outputCharge);
    this.corkedCharge = this.outputCharge = 0;
    this.log.debug(
      { failures: this.failureCount, ...(error ? { reason: describeError(error) } : {}) },
      "client disconnected",
    );
    this.leaveWhenIdle();
  }

  private leaveWhenIdle(): void {
    if (this.phase !== "closed" || this.inFlight > 0 || this.gone) return;
    if (this.asking || this.securing) return;
    this.gone = true;
    this.share?.release();
    this.share = undefined;
    assert(this.charged === 0, `connection leaves with ${this.charged} bytes charged`);
    this.host.onGone(this);
  }

  private fail(fault: string): void {
    this.log.warn({ fault }, "connection dropped");
    if (this.phase !== "finishing") this.transition("finishing");
    this.timer?.cancel();
    this.handshake.abandon();
    this.forgetRequestInHand();
    this.link.destroy();
  }

  private endWhenIdle(): void {
    if (this.inFlight > 0 || this.ended) return;
    this.ended = true;
    this.flush();
    this.link.end();
    this.resume(); // A paused link would not see the client's side close.
    this.timer = this.host.clock.setTimer(LINGER_MS, () => this.link.destroy());
  }

  private transition(next: Phase): void {
    assert(LEGAL[this.phase].includes(next), `connection: ${this.phase} -> ${next}`);
    this.phase = next;
  }

  private pause(): void {
    if (this.paused) return;
    this.paused = true;
    this.link.pause();
  }
  private resume(): void {
    if (!this.paused) return;
    this.paused = false;
    this.link.resume();
  }

  // ---- Negotiation ----

  private armHandshakeTimer(): void {
    const { clock, limits } = this.host;
    this.timer = clock.setTimer(limits.handshakeMs, () => {
      if (this.phase !== "negotiating") return;
      // Opening an export may wait for its lock; that is not the client's fault.
      if (this.asking) this.armHandshakeTimer();
      else this.fail(`no export chosen within ${limits.handshakeMs} ms`);
    });
  }

  private runHandshake(effects: HandshakeEffect[]): void {
    for (const effect of effects) {
      switch (effect.do) {
        case "send":
          this.send(effect.bytes);
          break;
        case "list":
          this.ask(this.host.list(), (exports) => this.handshake.onListed(exports));
          break;
        case "open":
          this.ask(this.acquire(effect.name), (share) => this.handshake.onOpened(share.image));
          break;
        case "secure":
          this.secureLink();
          break;
        case "enter":
          this.enter(effect.rest, effect.session);
          break;
        case "close":
          if (effect.fault !== undefined) this.fail(effect.fault);
          else this.finish();
          break;
      }
    }
    if (this.phase === "negotiating") this.throttleHandshake();
  }

  /** Nothing is read while the server works or the client does not read its answers. */
  private throttleHandshake(): void {
    if (this.securing) return; // Until TLS is agreed the platform reads from the link.
    if (this.asking || this.link.bufferedBytes > REPLY_BACKLOG_MAX) this.pause();
    else this.resume();
  }

  /** What has been sent goes out in the clear; whatever follows is encrypted. */
  private secureLink(): void {
    const { tls } = this.host;
    assert(tls && this.link.startTls, "encryption without a certificate");
    this.flush();
    this.securing = true;
    this.link.startTls(tls.identity).then(
      () => {
        this.securing = false;
        if (this.phase === "negotiating") this.runHandshake(this.handshake.onSecured());
        this.leaveWhenIdle();
      },
      (error: unknown) => {
        this.securing = false;
        if (this.phase !== "closed") this.fail(`no encryption: ${describeError(error)}`);
        this.leaveWhenIdle();
      },
    );
  }

  private ask<T>(answer: Promise<T>, onAnswer: (value: T) => HandshakeEffect[]): void {
    this.asking = true;
    answer.then(
      (value) => {
        this.asking = false;
        if (this.phase === "negotiating") this.runHandshake(onAnswer(value));
        this.leaveWhenIdle();
      },
      (error: unknown) => {
        this.asking = false;
        if (error instanceof AssertionFailure) throw error;
        const refusal =
          error instanceof DssError
            ? error
            : new DssError("Disk", "the export directory failed", { cause: error });
        this.log.warn({ reason: describeError(refusal) }, "export refused");
        if (this.phase === "negotiating") this.runHandshake(this.handshake.onRefused(refusal));
        this.leaveWhenIdle();
      },
    );
  }

  /**
   * The share of INFO stays with the connection until the next one is there, so that INFO and then
   * GO of one export open it once.
   */
  private async acquire(name: string): Promise<ExportShare> {
    const share = await this.host.acquire(name);
    this.share?.release();
    this.share = share;
    return share;
  }

  private enter(rest: Buffer[], session: Session): void {
    assert(this.share, "transmission without an export");
    this.timer?.cancel();
    this.transition("serving");
    this.transmission = new Transmission(this.share.image, session, this.host.payloads);
    this.log.info({ export: this.share.image.name, ...session }, "client attached");
    for (const chunk of rest) this.transmission.push(chunk);
    this.pump();
  }

  // ---- Transmission ----

  /** Takes requests until there are no more bytes or a limit is reached. */
  private pump(): void {
    const { limits, budget } = this.host;
    const transmission = this.transmission!;
    while (this.phase === "serving") {
      if (this.waiter || this.full()) {
        this.pause();
        return;
      }
      const heldMs = this.limitDelayMs();
      if (heldMs > 0) {
        this.holdBack(heldMs);
        return;
      }
      if (budget.crowded) {
        budget.whenLessCrowded(this.schedule);
        this.pause();
        return;
      }
      const own = limits.connectionBytesMax - this.charged;
      const room = this.prepaid > 0 ? this.prepaid : Math.min(own, budget.room);
      const effect = transmission.next(room);
      if (!effect) {
        // A payload has begun to arrive: its buffer exists, so it counts.
        if (this.prepaid === 0 && transmission.assembling > 0) {
          this.prepaid = transmission.assembling;
          this.charge(this.prepaid);
        }
        this.resume();
        return;
      }
      switch (effect.do) {
        case "start":
          this.start(effect);
          break;
        case "send":
          this.send(effect.bytes);
          break;
        case "wait":
          if (effect.bytes > own) {
            this.pause(); // Until replies of this connection are sent.
            return;
          }
          this.waitFor(effect.bytes);
          break;
        case "disconnect":
          this.finish();
          break;
        case "close":
          this.fail(effect.fault);
          break;
      }
    }
  }

  /** What the volume's limits say to wait. What has begun to arrive holds memory: it goes on. */
  private limitDelayMs(): number {
    const { image, meter } = this.share!;
    if (image.limits === undefined || this.stopping || this.prepaid > 0) return 0;
    return meter.throttle.delayMs(image.limits);
  }
  private holdBack(ms: number): void {
    this.pause();
    if (this.limitTimer !== undefined) return;
    this.share!.meter.held(ms);
    this.limitTimer = this.host.clock.setTimer(ms, () => {
      this.limitTimer = undefined;
      if (this.phase === "serving") this.pump();
    });
  }

  private full(): boolean {
    return (
      this.inFlight >= this.host.limits.connectionRequestsMax ||
      this.link.bufferedBytes - this.outputCharge > REPLY_BACKLOG_MAX
    );
  }

  private waitFor(bytes: number): void {
    this.waiter = {
      bytes,
      granted: () => {
        this.waiter = undefined;
        this.prepaid = bytes;
        this.charged += bytes;
        this.schedule();
      },
    };
    this.host.budget.wait(this.waiter);
  }

  private start(request: StartRequest): void {
    this.inFlight++;
    this.host.budget.takeRequest();
    if (request.charge > 0) {
      if (this.prepaid === 0) this.charge(request.charge);
      this.prepaid = 0;
    }
    const { image, meter } = this.share!;
    const { offset, length, flags } = request;
    request.begunMs = this.host.clock.now();
    meter.throttle.take(moves(request) ? length : 0);
    const durability = (flags & COMMAND_FLAG.FUA) !== 0 ? DURABLE : BUFFERED;
    const onDone = (): void => this.onDone(request);
    const onFailed = (error: unknown): void => this.onFailed(request, error);
    switch (request.command) {
      case "read":
        image.readParts(offset, length).then((parts) => this.onRead(request, parts), onFailed);
        break;
      case "write":
        image.write(offset, request.data, durability).then(onDone, onFailed);
        break;
      case "zero": {
        const mayTrim = (flags & COMMAND_FLAG.NO_HOLE) === 0;
        const fast = (flags & COMMAND_FLAG.FAST_ZERO) !== 0;
        image.zero(offset, length, { ...durability, mayTrim, fast }).then(onDone, onFailed);
        break;
      }
      case "trim":
        image.trim(offset, length, durability).then(onDone, onFailed);
        break;
      case "cache":
        image.cache(offset, length).then(onDone, onFailed);
        break;
      case "flush":
        image.flush().then(onDone, onFailed);
        break;
      case "status": {
        const one = (flags & COMMAND_FLAG.REQ_ONE) !== 0;
        image
          .status(offset, length, one ? 1 : STATUS_EXTENTS_MAX)
          .then((extents) => this.onStatus(request, extents), onFailed);
        break;
      }
    }
  }

  private onDone(request: StartRequest): void {
    this.recycle(request);
    if (this.phase !== "closed") this.transmission!.finish(request, this.out);
    this.settle(request, false);
  }

  /**
   * Not after a long time: the bytes may have been sent again while the first attempt still waits
   * in a socket.
   */
  private recycle({ memory, begunMs }: StartRequest): void {
    if (memory === undefined || this.host.clock.now() - begunMs > RECYCLE_MS) return;
    this.host.payloads.give(memory);
  }

  private onRead(request: StartRequest, found: readonly ImagePart[]): void {
    if (!this.transmission!.partial) {
      for (const part of found) if ("failure" in part) return this.onFailed(request, part.failure);
    }
    const parts = checkedParts(found, request.length);
    for (const part of parts) {
      if ("error" in part) this.logFailure(request, "partial", part.message);
    }
    if (this.phase !== "closed") {
      this.transmission!.finishRead(request, parts, this.out);
      for (const part of found) {
        if ("recycle" in part && part.recycle !== undefined) this.toRecycle.push(part.recycle);
      }
    }
    this.settle(request, true); // Its bytes stay charged until the link has sent them.
  }

  private onStatus(request: StartRequest, found: readonly ImageExtent[]): void {
    const extents = found.map(stateOf);
    if (this.phase !== "closed") this.transmission!.finishStatus(request, extents, this.out);
    this.settle(request, true);
  }

  private onFailed(request: StartRequest, error: unknown): void {
    if (error instanceof AssertionFailure) throw error;
    const known = error instanceof DssError ? error : undefined;
    const code = known?.code ?? "unexpected";
    // A zero that is not fast is an answer, not a failure.
    if (code !== "NotSupported") {
      this.share!.meter.failed();
      this.logFailure(request, code, error);
    }
    if (this.phase !== "closed") {
      const failure = { error: known?.nbd ?? NBD_ERROR.EIO, message: known?.message ?? "" };
      this.transmission!.fail(request, failure, this.out);
    }
    this.settle(request, false);
  }

  /** The request is over, its reply is in `out`. */
  private settle(request: StartRequest, carriesData: boolean): void {
    this.inFlight--;
    const bytes = moves(request) ? request.length : 0;
    this.share!.meter.done(request.command, bytes, this.host.clock.now() - request.begunMs);
    if (this.phase === "closed" || !carriesData) this.discharge(request.charge);
    else this.corkedCharge += request.charge;
    if (this.phase !== "closed") this.schedule();
    this.host.budget.giveRequest();
    this.leaveWhenIdle();
  }

  /** Once per kind: a cluster in trouble fails every request of a busy device. */
  private logFailure(request: StartRequest, code: string, error: unknown): void {
    this.failureCount++;
    if (this.failuresLogged.has(code)) return;
    this.failuresLogged.add(code);
    const { command, offset, length } = request;
    this.log.error({ command, offset, length, reason: describeError(error) }, "request failed");
  }

  /** The request being assembled or waiting for memory will never start. */
  private forgetRequestInHand(): void {
    if (this.waiter) {
      this.host.budget.cancel(this.waiter);
      this.waiter = undefined;
    }
    this.transmission?.close();
    const prepaid = this.prepaid;
    this.prepaid = 0;
    this.discharge(prepaid);
  }

  private charge(bytes: number): void {
    this.charged += bytes;
    this.host.budget.take(bytes);
  }
  private discharge(bytes: number): void {
    if (bytes === 0) return;
    this.charged -= bytes;
    this.host.budget.give(bytes);
  }

  // ---- Output: corked until the events already pending have run ----

  private send(bytes: Buffer): void {
    this.out.push(bytes);
    this.schedule();
  }

  private readonly schedule = (): void => {
    if (this.turnDue) return;
    this.turnDue = true;
    this.host.clock.defer(this.turn);
  };
  private readonly turn = (): void => {
    this.turnDue = false;
    if (this.phase === "closed") return;
    this.flush();
    if (this.phase === "serving" && this.stopping && this.inFlight === 0) this.finish();
    else if (this.phase === "serving" && this.paused) this.pump();
    else if (this.phase === "finishing") this.endWhenIdle();
  };

  private flush(): void {
    if (this.out.length === 0) return;
    const { out: chunks, toRecycle } = this;
    this.out = [];
    if (toRecycle.length === 0) this.link.send(chunks);
    else {
      this.toRecycle = [];
      this.link.send(chunks, () => {
        for (const recycle of toRecycle) recycle();
      });
    }
    this.outputCharge += this.corkedCharge;
    this.corkedCharge = 0;
    this.settleOutput();
  }

  private settleOutput(): void {
    if (this.outputCharge === 0) return;
    const buffered = this.link.bufferedBytes;
    const held = buffered > OUTPUT_FREE_BYTES ? Math.min(buffered, this.outputCharge) : 0;
    const sent = this.outputCharge - held;
    this.outputCharge = held;
    this.discharge(sent);
  }
}

/** Its bytes go over the network and count for the limits. */
function moves({ command }: StartRequest): boolean {
  return command === "read" || command === "write";
}

function stateOf({ length, hole, zero }: ImageExtent): { length: number; flags: number } {
  return { length, flags: (hole ? STATE.HOLE : 0) | (zero ? STATE.ZERO : 0) };
}

/** A reply of another length than promised would shift everything behind it. */
function checkedParts(found: readonly ImagePart[], length: number): ReadPart[] {
  let total = 0;
  const parts: ReadPart[] = [];
  for (const part of found) {
    total += part.length;
    if ("failure" in part) {
      const { nbd, message } = part.failure;
      parts.push({ length: part.length, error: nbd, message });
      continue;
    }
    let bytes = 0;
    for (const piece of part.pieces) bytes += piece.length;
    assert(bytes === part.length, `part of ${part.length} bytes has ${bytes}`);
    parts.push(part);
  }
  assert(total === length, `read of ${length} bytes gave ${total}`);
  return parts;
}
