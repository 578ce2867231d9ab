/**
 * What programs use to talk to each other: the interface of the messenger (rpc.ts implements it).
 */
import type { DssError } from "../base/errors.js";
import type { Address } from "../platform/ports.js";
import type { Call, Post } from "../wire/registry.js";

/** A request that arrived. Exactly one of `reply` and `fail` is called, once, now or later. */
export interface Incoming<Request, Reply> {
  readonly message: Request;
  /** The frame's data, verified; a view that stays valid as long as it is referenced. */
  readonly data: Buffer;
  /** crc32 of each 4 KiB block of `data`. */
  readonly sums: Uint32Array;
  /** The sender's entity number (cluster/base/ids.ts). */
  readonly sender: number;
  /** The sender's map epoch. */
  readonly epoch: number;
  readonly link: Link;
  /**
   * `sums`, when known, are the crc32 of each 4 KiB block of the concatenated data. `sent` is
   * called when the memory of the data may be used again, or never.
   */
  reply(
    message: Reply,
    data?: readonly Buffer[],
    sums?: ArrayLike<number>,
    sent?: () => void,
  ): void;
  fail(error: unknown): void;
  /** Nobody looks at `data` any more: its memory may be used again. Allowed, not required. */
  recycle(): void;
}

export interface CallOptions {
  /** Milliseconds from now until the call fails with TimedOut. */
  deadlineMs: number;
  data?: readonly Buffer[];
  sums?: ArrayLike<number>;
}
export interface Answered<Reply> {
  message: Reply;
  data: Buffer;
  sums: Uint32Array;
  epoch: number;
  /** `data` is not needed any more: its memory is used again. At most once; not necessary. */
  recycle(): void;
}

/**
 * Who gets the answer to a request that was sent without a promise: one of the two is called, once,
 * from the event that brings it. What they throw is a bug.
 */
export interface Receiver<Reply> {
  answered(message: Reply): void;
  failed(error: DssError): void;
}

/** One connection, usable from both ends. */
export interface Link {
  /** The other side's entity number. */
  readonly entity: number;
  readonly remote: string;
  readonly closed: boolean;
  call<Request, Reply>(
    call: Call<Request, Reply>,
    message: Request,
    options: CallOptions,
  ): Promise<Answered<Reply>>;
  /** One-way; lost with the connection. */
  post<Message>(post: Post<Message>, message: Message): void;
  onClose(callback: () => void): void;
  destroy(): void;
}

/**
 * The other end of a persistent connection that is opened on first use and again, with back-off,
 * after a loss.
 * Calls in flight when a connection is lost fail with ConnectionLost: their outcome is unknown.
 * Calls made while none is up wait for it until their deadline, or fail with Unreachable when
 * refused.
 */
export interface Peer {
  readonly address: Address;
  call<Request, Reply>(
    call: Call<Request, Reply>,
    message: Request,
    options: CallOptions,
  ): Promise<Answered<Reply>>;
  /**
   * The same for who sends often, and perhaps the same to several: `body` is the encoded request.
   */
  send<Request, Reply>(
    call: Call<Request, Reply>,
    body: Buffer,
    options: CallOptions,
    receiver: Receiver<Reply>,
  ): void;
  /** Dropped when not connected. */
  post<Message>(post: Post<Message>, message: Message): void;
  /** After every established connection, before any waiting call is sent. */
  onUp(callback: (link: Link) => void): void;
  /** Fails what is in flight and never connects again. */
  close(): void;
}

export interface Messenger {
  /** Starts listening; returns the address with the real port. */
  listen(address: Address): Promise<Address>;
  /** The peer at this address; the same object for the same address. */
  peer(address: Address): Peer;
  /** One handler per call. A handler that throws fails the request with that error. */
  handle<Request, Reply>(
    call: Call<Request, Reply>,
    handler: (incoming: Incoming<Request, Reply>) => void,
  ): void;
  handlePost<Message>(post: Post<Message>, handler: (message: Message, link: Link) => void): void;
  /** Put into every frame this side sends; see `Incoming.epoch`. */
  setEpoch(epoch: number): void;
  /** This side's entity number from now on (a client learns its own from the MDS). */
  setEntity(entity: number): void;
  /** Stops listening, closes every connection. */
  close(): Promise<void>;
}
