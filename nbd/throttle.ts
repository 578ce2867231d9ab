/**
 * Limits of one export: a token bucket for operations and one for bytes, each of a second's worth.
 * A request begins when neither is overdrawn and may overdraw them, so that one that is larger than
 * a bucket is only late, and later ones pay for it. Pure but for the clock that it is given.
 */
import type { Clock } from "../cluster/platform/ports.js";

/** A second; 0 is no limit. */
export interface Limits {
  readonly operations: number;
  readonly bytes: number;
}
export const NO_LIMITS: Limits = Object.freeze({ operations: 0, bytes: 0 });

/** What may be used at once after a pause. */
const BURST_SECONDS = 1;
/** Who waits looks again this soon, because limits change meanwhile. */
const LOOK_MS = 50;

export class Throttle {
  private limits = NO_LIMITS;
  private operations = 0;
  private bytes = 0;
  private filledAt = 0;

  constructor(private readonly clock: Pick<Clock, "now">) {}

  /** How long the next request should wait before it is looked at again; 0: it may begin. */
  delayMs(limits: Limits): number {
    if (limits.operations === 0 && limits.bytes === 0) {
      this.limits = NO_LIMITS;
      return 0;
    }
    this.fill(limits);
    const due = Math.max(
      lateMs(this.operations, limits.operations),
      lateMs(this.bytes, limits.bytes),
    );
    return Math.min(due, LOOK_MS);
  }

  /** A request begins. */
  take(bytes: number): void {
    this.operations -= 1;
    this.bytes -= bytes;
  }

  private fill(limits: Limits): void {
    const now = this.clock.now();
    const seconds = (now - this.filledAt) / 1_000;
    this.filledAt = now;
    const { operations, bytes } = this.limits;
    this.limits = limits;
    this.operations = filled(this.operations, limits.operations, operations === 0, seconds);
    this.bytes = filled(this.bytes, limits.bytes, bytes === 0, seconds);
  }
}

function filled(level: number, rate: number, isNew: boolean, seconds: number): number {
  const full = rate * BURST_SECONDS;
  return isNew ? full : Math.min(full, level + rate * seconds);
}
/** Until the bucket is not overdrawn any more. */
function lateMs(level: number, rate: number): number {
  return rate === 0 || level > 0 ? 0 : Math.max(1, Math.ceil((-level / rate) * 1_000));
}
