/**
 * What a metadata session asks of the owner of its capabilities: the mount's table of inodes, or
 * nobody.
 */
import type { DssError } from "../../cluster/base/errors.js";
import type { Ino } from "../../cluster/base/ids.js";
import type {
  CapabilityMode,
  LockClaim,
  LockOutcomeMessage,
  MdsReply,
  Recall,
  Request,
  Volume,
} from "../proto.js";

/**
 * What the owner of the capabilities does for the session. All methods are synchronous and do not
 * throw.
 */
export interface SessionCache {
  /** What is held, for a leader that must learn it again. */
  held(): { ino: Ino; mode: CapabilityMode; seq: number }[];
  /** Unlinked files that are open here. */
  orphans(): Ino[];
  /** Files that are open here without a capability. */
  opened(): Ino[];
  /**
   * An answer arrived; `repeated`: the caller had its answer before (a replay), only the grants
   * are news.
   */
  apply(request: Request, reply: MdsReply, repeated: boolean): void;
  recall(recall: Recall): void;
  /** A volume that is open has another size or other limits. Lost with a connection. */
  volumeChanged?(volume: Volume): void;
  /** A promised change has been executed: what it changed here is the leader's word too. */
  confirmed(request: Request): void;
  /** A change that was promised was refused, and so never happened. */
  refused(request: Request, error: DssError): void;
  /**
   * The session is over: nothing that was held counts, data not yet written is lost, and so are
   * the changes in `lost`, which had been answered.
   */
  evicted(reason: DssError, lost: readonly Request[]): void;
  /** The lease ran out: what is cached must not be believed until `resumed`. */
  lapsed(): void;
  resumed(): void;
  /** A session is open again: says what was given back after `held` was asked. */
  releaseUnsaid?(): void;
}
/** For programs that hold no capabilities. */
export const NO_CACHE: SessionCache = {
  held: () => [],
  orphans: () => [],
  opened: () => [],
  apply: () => undefined,
  recall: () => undefined,
  confirmed: () => undefined,
  refused: () => undefined,
  evicted: () => undefined,
  lapsed: () => undefined,
  resumed: () => undefined,
};

/**
 * What the owner of file locks does for the session; synchronous, and does not throw. Locks are
 * the leader's only as long as it lasts: the next one learns of them from here.
 */
export interface SessionLocks {
  /** What is held for certain: granted, and not on its way back. */
  claims(): LockClaim[];
  /** The end of a wait. */
  outcome(message: LockOutcomeMessage): void;
  /** There is a link again: the leader may know nothing of those who wait. */
  reconnected(): void;
  /** The session is over, and with it every lock. */
  evicted(): void;
}
/** For programs that lock nothing. */
export const NO_LOCKS: SessionLocks = {
  claims: () => [],
  outcome: () => undefined,
  reconnected: () => undefined,
  evicted: () => undefined,
};
