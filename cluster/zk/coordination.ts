/**
 * The coordination port: what dss asks of ZooKeeper, and nothing more. session.ts is the real
 * implementation; a simulated one models the same promises.
 *
 * Promises: writes are atomic and totally ordered; a session's requests are executed in the order
 * of their calls; a reader never goes back in time within a session, but may lag behind (`sync`).
 * The outcome of a write that fails with ConnectionLost is unknown: read back before anything else.
 */
import { DssError, type ErrorCode } from "../base/errors.js";

export interface Znode {
  data: Buffer;
  /** Counts the changes of the data, from 0; compared by `set`, `remove` and `check`. */
  version: number;
  /** Transaction that created the node: differs when it was removed and created again. */
  created: bigint;
  /** Transaction of the last change of the data. */
  modified: bigint;
  /** Session of an ephemeral node; 0n for a persistent one. */
  ephemeralOwner: bigint;
}

export interface Children {
  /** In no order. */
  names: string[];
  /** Counts creations and removals of children: the names alone do not show a replaced child. */
  version: number;
}

/** Matches any version in `set`, `remove` and `check`. */
export const ANY_VERSION = -1;

/** Most bytes of one request (all data of a `multi`): ZooKeeper's jute.maxbuffer less the names. */
export const REQUEST_BYTES_MAX = 1_000_000;

export interface CreateOptions {
  /** Vanishes with the session. */
  ephemeral?: boolean;
  /** A rising 10-digit number is appended to the path. */
  sequential?: boolean;
}

export type CoordinationOp =
  | ({ op: "create"; path: string; data: Buffer } & CreateOptions)
  | { op: "set"; path: string; data: Buffer; version: number }
  | { op: "remove"; path: string; version: number }
  | { op: "check"; path: string; version: number };

export interface OpResult {
  /** create: the path, with its number if sequential. */
  path?: string;
  /** set: the new version. */
  version?: number;
}

/** A `multi` that changed nothing, because the operation at `index` failed with `code`. */
export class MultiError extends DssError {
  constructor(
    code: ErrorCode,
    message: string,
    readonly index: number,
  ) {
    super(code, message);
  }
}

/**
 * connected: requests are executed. suspended: the connection is lost (or not yet made) and being
 * made again; the session may live on. closed: by `close`.
 */
export type SessionState = "connected" | "suspended" | "closed";

/**
 * expired: the session is gone with its ephemeral nodes; a new one is opened on its own and says
 * `connected`. Whoever relied on the session decides here what that means.
 */
export type SessionEvent = "connected" | "suspended" | "expired" | "closed";

/**
 * Every method may fail with ConnectionLost (outcome unknown), Unreachable (not executed: no
 * connection within the deadline), NoSession (not executed: the session expired while the request
 * waited), ShuttingDown (after `close`), TooLarge.
 */
export interface Coordination {
  readonly state: SessionState;
  /** 0n before the first connection. */
  readonly sessionId: bigint;
  /** Clock time at which the newest answered request was *sent*: the server was with us then. */
  readonly contactMs: number;
  /** For messages: the servers' addresses. */
  readonly servers: string;

  /**
   * undefined when absent. `watch` fires at most once: on creation, change or removal; not on
   * expiry.
   */
  get(path: string, watch?: () => void): Promise<Znode | undefined>;
  /** undefined when absent (then no watch is left). `watch` fires at most once, not on expiry. */
  children(path: string, watch?: () => void): Promise<Children | undefined>;
  /** Resolves to the path. Errors: Exists, NotFound (no parent). */
  create(path: string, data: Buffer, options?: CreateOptions): Promise<string>;
  /** Resolves to the new version. Errors: NotFound, Conflict (another version). */
  set(path: string, data: Buffer, version: number): Promise<number>;
  /** Errors: NotFound, Conflict, NotEmpty. */
  remove(path: string, version: number): Promise<void>;
  /** All or nothing. Errors: MultiError with the first failing operation. */
  multi(ops: readonly CoordinationOp[]): Promise<OpResult[]>;
  /** Creates the persistent node and its parents where missing, with empty data. */
  ensurePath(path: string): Promise<void>;
  /**
   * A round trip through the quorum: later reads of this session see everything committed before.
   */
  sync(): Promise<void>;
  /** Returns a function that ends the subscription. */
  onEvent(listener: (event: SessionEvent) => void): () => void;
  /** Ends the session: its ephemeral nodes vanish at once. */
  close(): Promise<void>;
}
