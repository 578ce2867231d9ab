/**
 * Deliberate faults: every one is off, for ever, in every program. The simulator switches them on
 * one at a time to prove that its checkers find them (docs/simulator.md).
 */
export interface Faults {
  /** Acknowledge a write before it is synced anywhere. */
  readonly acknowledgeBeforeSync: boolean;
  /** Execute messages of older intervals. */
  readonly skipIntervalCheck: boolean;
  /** Become active although an earlier primary may still serve reads. */
  readonly promoteWithoutWaiting: boolean;
  /** Serve reads without the members' grants. */
  readonly readWithoutGrants: boolean;
  /** Do not look a repeated request up. */
  readonly forgetRetries: boolean;
  /** A learner acknowledges what it gets while it catches up without keeping it. */
  readonly dropLearnerWrites: boolean;
  /** Acknowledge writes without the learner whose addition was asked for. */
  readonly joinWithoutSync: boolean;
  /** Take operations that are older than the object's truncation. */
  readonly ignoreTruncation: boolean;
  /** Flush small writes to their blocks although their WAL group is not durable. */
  readonly overwriteEarly: boolean;
  /** Give WAL segments back before the checkpoint that replaces them is in the index. */
  readonly recycleEarly: boolean;
  /** Believe blocks that fail their checksum. */
  readonly skipChecksum: boolean;
  /** Write journal and pages as a leader whose term may be over. */
  readonly skipTermCheck: boolean;
  /** Let other sessions see what is not in the journal yet. */
  readonly showUnsafe: boolean;
  /** Free the capabilities of an evicted session without its fence. */
  readonly grantBeforeFence: boolean;
}

export const NO_FAULTS: Faults = Object.freeze({
  acknowledgeBeforeSync: false,
  skipIntervalCheck: false,
  promoteWithoutWaiting: false,
  readWithoutGrants: false,
  forgetRetries: false,
  dropLearnerWrites: false,
  joinWithoutSync: false,
  ignoreTruncation: false,
  overwriteEarly: false,
  recycleEarly: false,
  skipChecksum: false,
  skipTermCheck: false,
  showUnsafe: false,
  grantBeforeFence: false,
});

export let faults: Faults = NO_FAULTS;

/** For the simulator alone. */
export function injectFault(name: keyof Faults | undefined): void {
  faults = name === undefined ? NO_FAULTS : Object.freeze({ ...NO_FAULTS, [name]: true });
}
