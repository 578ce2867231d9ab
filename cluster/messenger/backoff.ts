/** Exponential back-off with jitter, so that many clients do not come back in step. */
import type { RandomSource } from "../platform/ports.js";

export class Backoff {
  private attempts = 0;

  constructor(
    private readonly random: RandomSource,
    private readonly options: { firstMs: number; maxMs: number },
  ) {}
  /** Milliseconds to wait before the next attempt: 50–100 % of a doubling bound. */
  next(): number {
    const bound = Math.min(this.options.firstMs * 2 ** this.attempts, this.options.maxMs);
    this.attempts = Math.min(this.attempts + 1, 30);
    return bound * (0.5 + this.random.u32() / 2 ** 33);
  }
  reset(): void {
    this.attempts = 0;
  }
}
