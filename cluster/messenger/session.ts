/**
 * One connection with its handshake, calls in flight from this side, and requests of the other side
 * that wait for their answer. Owns nothing beyond the connection; peers and the listener are in
 * rpc.ts.
 *
 * Back-pressure: reading stops while the other side has more than `inFlightBytesMax` of unanswered
 * requests here, or while answers pile up because it does not read.
 */
import { assert } from "../base/assert.js";
import type { BufferPool } from "../base/buffer-pool.js";
import { DssError, describeError } from "../base/errors.js";
import type { Logger } from "../base/log.js";
import type { Clock, Connection, Timer } from "../platform/ports.js";
import { errorCodec } from "../wire/error-body.js";
import { FrameParser, encodeFrame, type Frame, type FrameLimits } from "../wire/frame.js";
import {
  defineCall,
  messageName,
  msgpack,
  type Call,
  type Post,
  wantsSums,
} from "../wire/registry.js";
import type { Codec } from "../wire/struct.js";
import type { Answered, CallOptions, Incoming, Link } from "./messenger.js";

/** Reply type of a failed request. */
const ERROR_REPLY = 1;

/** First message of the connecting side; both sides then know who the other is. */
interface HelloMessage {
  /** Empty: not known yet, accept any. */
  clusterId: string;
  entity: number;
  role: string;
}
export const Hello = defineCall(2, "Hello", {
  request: msgpack<HelloMessage>(),
  reply: msgpack<HelloMessage>(),
});

export interface LinkLimits extends FrameLimits {
  /** Unanswered requests of the other side, in number and in bytes, before reading stops. */
  inFlightMax: number;
  inFlightBytesMax: number;
  /** Bytes queued for sending before reading stops. */
  sendBufferBytesMax: number;
}

/** What links share: identity, handlers, clock, limits. */
export interface LinkHost {
  readonly clock: Clock;
  readonly logger: Logger;
  readonly limits: LinkLimits;
  /** Memory for large answers. */
  readonly pool: BufferPool;
  readonly role: string;
  entity: number;
  epoch: number;
  clusterId(): string;
  handler(type: number): Handler | undefined;
}
export type Handler =
  | { kind: "call"; call: Call<any, any>; run: (incoming: Incoming<any, any>) => void }
  | { kind: "post"; post: Post<any>; run: (message: any, link: Link) => void };

/** `frame`: of the answer, for who wants more of it than its message. */
interface FrameReceiver<Reply> {
  answered(message: Reply, frame: Frame): void;
  failed(error: DssError): void;
}
interface Pending {
  readonly call: Call<any, any>;
  deadline: number;
  readonly receiver: FrameReceiver<any>;
}

/** How often deadlines are looked at. */
const DEADLINE_TICK_MS = 50;
/** A tick that comes later than this shows that the whole process stood still. */
const STALL_MS = 500;
/** A call timed out and nothing at all came for this long: the path is dead. */
const SILENCE_MS = 3_000;

export class LinkSession implements Link {
  entity = -1;
  closed = false;
  readonly remote: string;
  private readonly parser: FrameParser;
  private readonly pending = new Map<number, Pending>();
  private nextSequence = 1;
  /** Of the other side's requests and posts, which come in ascending order. */
  private lastSequence = 0;
  private ticker: Timer | undefined;
  private lastReceived: number;
  private inFlight = 0;
  private inFlightBytes = 0;
  private paused = false;
  private readonly closeListeners: (() => void)[] = [];

  constructor(
    private readonly host: LinkHost,
    private readonly connection: Connection,
    private readonly accepted: boolean,
  ) {
    this.remote = connection.remote;
    this.lastReceived = host.clock.now();
    this.parser = new FrameParser(
      (frame) => this.onFrame(frame),
      host.limits,
      wantsSums,
      // Only what is copied out of a lent buffer needs memory of its own anyway.
      connection.lends ? host.pool : undefined,
    );
    connection.onData((chunk) => this.onData(chunk));
    connection.onDrain(() => this.adjustFlow());
    connection.onClose((error) => this.onClosed(error));
  }

  /** The connecting side's first call. */
  async hello(deadlineMs: number): Promise<void> {
    const { host } = this;
    const { message } = await this.call(
      Hello,
      { clusterId: host.clusterId(), entity: host.entity, role: host.role },
      { deadlineMs },
    );
    const expected = host.clusterId();
    if (expected !== "" && message.clusterId !== "" && message.clusterId !== expected) {
      this.destroy();
      throw new DssError("Conflict", `${this.remote} belongs to another cluster`, {
        hint: "check the addresses: two clusters share this machine or network",
      });
    }
    this.entity = message.entity;
  }

  call<Request, Reply>(
    call: Call<Request, Reply>,
    message: Request,
    options: CallOptions,
  ): Promise<Answered<Reply>> {
    return new Promise((resolve, reject) => {
      const { pool } = this.host;
      // Before anything is noted: what cannot be encoded is the caller's error alone.
      this.send(call, call.request.encode(message), options, {
        answered: (reply: Reply, frame) => resolve(new AnswerFrame(reply, frame, pool)),
        failed: reject,
      });
    });
  }

  /** As `Peer.send`. */
  send<Request, Reply>(
    call: Call<Request, Reply>,
    body: Buffer,
    options: CallOptions,
    receiver: FrameReceiver<Reply>,
  ): void {
    if (this.closed) {
      receiver.failed(new DssError("ConnectionLost", `connection to ${this.remote} is closed`));
      return;
    }
    const sequence = this.takeSequence();
    const deadline = this.host.clock.now() + options.deadlineMs;
    this.pending.set(sequence, { call, deadline, receiver });
    this.tickSoon();
    this.sendFrame(call.number, sequence, body, options.data, options.sums);
  }

  post<Message>(post: Post<Message>, message: Message): void {
    if (this.closed) return;
    const body = post.message.encode(message);
    this.sendFrame(post.number, this.takeSequence(), body);
  }
  private takeSequence(): number {
    const sequence = this.nextSequence;
    this.nextSequence = (sequence + 1) >>> 0;
    return sequence;
  }

  onClose(callback: () => void): void {
    if (this.closed) this.host.clock.defer(callback);
    else this.closeListeners.push(callback);
  }

  destroy(): void {
    this.connection.destroy();
  }

  private sendFrame(
    type: number,
    sequence: number,
    body: Buffer,
    data?: readonly Buffer[],
    sums?: ArrayLike<number>,
    sent?: () => void,
  ): void {
    const { entity: sender, epoch } = this.host;
    const header = { type, sequence, sender, receiver: Math.max(this.entity, 0), epoch };
    this.connection.send(encodeFrame(header, body, data, sums), sent);
  }

  private onData(chunk: Buffer): void {
    if (this.closed) return;
    this.lastReceived = this.host.clock.now();
    try {
      this.parser.push(chunk, this.connection.lends);
    } catch (error) {
      if (!(error instanceof DssError)) throw error;
      this.host.logger.warn(
        { remote: this.remote, entity: this.entity, error: describeError(error) },
        "closing a connection that sent a bad frame",
      );
      this.destroy();
    }
  }

  private onFrame(frame: Frame): void {
    if (this.closed) return;
    if (frame.type % 2 === 1) this.onReply(frame);
    else if (this.isRepeated(frame.sequence)) return;
    else if (this.accepted && this.entity < 0) this.onHello(frame);
    else this.onRequest(frame);
  }

  /** Nothing is executed twice, whatever lies between the two sides. */
  private isRepeated(sequence: number): boolean {
    // Numbers wrap: what is less than half the circle ahead is newer.
    const ahead = (sequence - this.lastSequence) >>> 0;
    if (ahead === 0 || ahead >= 2 ** 31) return true;
    this.lastSequence = sequence;
    return false;
  }

  private onHello(frame: Frame): void {
    if (frame.type !== Hello.number) {
      throw new DssError("Malformed", `${messageName(frame.type)} before Hello`);
    }
    const { host } = this;
    const theirs = Hello.request.decode(frame.body);
    const ours = host.clusterId();
    if (ours !== "" && theirs.clusterId !== "" && theirs.clusterId !== ours) {
      this.fail(frame.sequence, new DssError("Conflict", `this is cluster ${ours}`));
      this.connection.end();
      return;
    }
    if (!Number.isInteger(theirs.entity) || theirs.entity < 0) {
      throw new DssError("Malformed", "Hello without an entity");
    }
    this.entity = theirs.entity;
    const reply = { clusterId: ours, entity: host.entity, role: host.role };
    this.sendFrame(Hello.number + 1, frame.sequence, Hello.reply.encode(reply));
  }

  private onReply(frame: Frame): void {
    const pending = this.pending.get(frame.sequence);
    if (pending === undefined) return; // Timed out here; the outcome is the caller's to find out.
    this.pending.delete(frame.sequence);
    const { call, receiver } = pending;
    let message: unknown;
    let failure: DssError | undefined;
    try {
      if (frame.type === ERROR_REPLY) failure = errorCodec.decode(frame.body);
      else if (frame.type === call.number + 1) message = call.reply.decode(frame.body);
      else throw new DssError("Malformed", `${messageName(frame.type)} answers ${call.name}`);
    } catch (error) {
      // It fails its call, and the connection with it.
      receiver.failed(error as DssError);
      throw error;
    }
    deliver(receiver, message, frame, failure);
  }

  private onRequest(frame: Frame): void {
    const handler = this.host.handler(frame.type);
    if (handler === undefined) {
      const text = `${messageName(frame.type)} is not served here`;
      this.fail(frame.sequence, new DssError("NotSupported", text));
      return;
    }
    if (handler.kind === "post") {
      handler.run(handler.post.message.decode(frame.body), this);
      return;
    }
    const request = new IncomingRequest(this, frame, handler.call);
    this.inFlight++;
    this.inFlightBytes += frame.data.length;
    this.adjustFlow();
    try {
      handler.run(request);
    } catch (error) {
      request.fail(error);
    }
  }

  /** An incoming request got its answer. */
  answer<Reply>(
    frame: Frame,
    codec: Codec<Reply>,
    message: Reply,
    data?: readonly Buffer[],
    sums?: ArrayLike<number>,
    sent?: () => void,
  ): void {
    this.settle(frame);
    if (!this.closed) {
      this.sendFrame(frame.type + 1, frame.sequence, codec.encode(message), data, sums, sent);
    }
  }
  answerError(frame: Frame, error: unknown): void {
    // A bug in a handler must not look like an operating error to the other side: it stops the
    // process.
    if (!(error instanceof DssError)) throw error;
    this.settle(frame);
    if (!this.closed) this.fail(frame.sequence, error);
  }
  recycle(frame: Frame): void {
    frame.recycle(this.host.pool);
  }
  private settle(frame: Frame): void {
    this.inFlight--;
    this.inFlightBytes -= frame.data.length;
    this.adjustFlow();
  }
  private fail(sequence: number, error: DssError): void {
    this.sendFrame(ERROR_REPLY, sequence, errorCodec.encode(error));
  }

  private adjustFlow(): void {
    const { inFlightMax, inFlightBytesMax, sendBufferBytesMax } = this.host.limits;
    const full =
      this.inFlight >= inFlightMax ||
      this.inFlightBytes >= inFlightBytesMax ||
      this.connection.bufferedBytes >= sendBufferBytesMax;
    if (full === this.paused) return;
    this.paused = full;
    if (full) this.connection.pause();
    else this.connection.resume();
  }

  private tickSoon(): void {
    if (this.ticker !== undefined) return;
    const due = this.host.clock.now() + DEADLINE_TICK_MS;
    this.ticker = this.host.clock.setTimer(DEADLINE_TICK_MS, () => this.onTick(due));
  }

  private onTick(due: number): void {
    this.ticker = undefined;
    const now = this.host.clock.now();
    const late = now - due;
    if (late > STALL_MS) {
      // This process was stopped: answers may be waiting in the socket, unread.
      for (const pending of this.pending.values()) pending.deadline += late;
      this.lastReceived += late;
    }
    let timedOut = false;
    for (const [sequence, pending] of this.pending) {
      if (pending.deadline > now) continue;
      this.pending.delete(sequence);
      timedOut = true;
      pending.receiver.failed(
        new DssError("TimedOut", `${this.remote} did not answer ${pending.call.name} in time`),
      );
    }
    if (timedOut && now - this.lastReceived > SILENCE_MS) {
      this.destroy();
      return;
    }
    if (this.pending.size > 0) this.tickSoon();
  }

  private onClosed(error: Error | undefined): void {
    assert(!this.closed, "a connection closes once");
    this.closed = true;
    this.ticker?.cancel();
    const lost = new DssError("ConnectionLost", `connection to ${this.remote} was lost`, {
      cause: error,
    });
    const pending = [...this.pending.values()];
    this.pending.clear();
    for (const { receiver } of pending) receiver.failed(lost);
    for (const callback of this.closeListeners) callback();
  }
}

/** A receiver's error is its own, and none of the connection's. */
function deliver(
  receiver: FrameReceiver<unknown>,
  message: unknown,
  frame: Frame,
  failure: DssError | undefined,
): void {
  try {
    if (failure === undefined) receiver.answered(message, frame);
    else receiver.failed(failure);
  } catch (cause) {
    if (!(cause instanceof DssError)) throw cause;
    throw new Error(`an answer was not handled: ${describeError(cause)}`, { cause });
  }
}

class AnswerFrame<Reply> implements Answered<Reply> {
  constructor(
    readonly message: Reply,
    private readonly frame: Frame,
    private readonly pool: BufferPool,
  ) {}
  recycle(): void {
    this.frame.recycle(this.pool);
  }
  get data(): Buffer {
    return this.frame.data;
  }
  get sums(): Uint32Array {
    return this.frame.sums;
  }
  get epoch(): number {
    return this.frame.epoch;
  }
}

class IncomingRequest<Request, Reply> implements Incoming<Request, Reply> {
  readonly message: Request;
  private settled = false;

  constructor(
    readonly link: LinkSession,
    private readonly frame: Frame,
    private readonly callRow: Call<Request, Reply>,
  ) {
    this.message = callRow.request.decode(frame.body);
  }
  get data(): Buffer {
    return this.frame.data;
  }
  get sums(): Uint32Array {
    return this.frame.sums;
  }
  get sender(): number {
    return this.frame.sender;
  }
  get epoch(): number {
    return this.frame.epoch;
  }
  reply(
    message: Reply,
    data?: readonly Buffer[],
    sums?: ArrayLike<number>,
    sent?: () => void,
  ): void {
    assert(!this.settled, () => `${this.callRow.name} answered twice`);
    this.settled = true;
    this.link.answer(this.frame, this.callRow.reply, message, data, sums, sent);
  }
  fail(error: unknown): void {
    assert(!this.settled, () => `${this.callRow.name} answered twice: ${describeError(error)}`);
    this.settled = true;
    this.link.answerError(this.frame, error);
  }
  recycle(): void {
    this.link.recycle(this.frame);
  }
}
