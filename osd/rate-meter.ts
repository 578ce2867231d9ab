/** How much of something happened lately: the mean per second over the last seconds. */
const BUCKETS = 10;
const BUCKET_MS = 1_000;

export class RateMeter {
  private readonly amounts = new Float64Array(BUCKETS);
  /** Number of the newest bucket since the clock's beginning. */
  private newest = -Infinity;
  private first = -Infinity;

  add(amount: number, nowMs: number): void {
    this.turn(nowMs);
    const index = this.newest % BUCKETS;
    this.amounts[index] = this.amounts[index]! + amount;
  }
  perSecond(nowMs: number): number {
    if (this.newest === -Infinity) return 0;
    this.turn(nowMs);
    const begin = Math.max(this.first, (this.newest - BUCKETS + 1) * BUCKET_MS);
    const seconds = Math.max(1, (nowMs - begin) / 1000);
    return this.amounts.reduce((sum, amount) => sum + amount, 0) / seconds;
  }

  private turn(nowMs: number): void {
    const bucket = Math.floor(nowMs / BUCKET_MS);
    if (bucket - this.newest >= BUCKETS) {
      this.amounts.fill(0);
      this.first = nowMs;
    } else {
      for (let old = this.newest + 1; old <= bucket; old++) this.amounts[old % BUCKETS] = 0;
    }
    this.newest = bucket;
  }
}
