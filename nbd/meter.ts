/**
 * What an export does: operations, bytes and latencies since the figures were taken last. Latency
 * is the time from the whole request being here to its answer; what limits cost is counted apart.
 */
import { createHistogram, type RecordableHistogram } from "node:perf_hooks";
import type { Clock } from "../cluster/platform/ports.js";
import { Throttle } from "./throttle.js";

/** Latencies are kept in microseconds, up to a quarter of an hour, with three digits. */
const LATENCY = { lowest: 1, highest: 1_000_000_000, figures: 3 };

export interface Latencies {
  readonly p50Us: number;
  readonly p99Us: number;
  readonly maxUs: number;
}
export interface Activity {
  /** What the figures are about, milliseconds. */
  readonly spanMs: number;
  readonly reads: number;
  readonly writes: number;
  /** Trims, zeroes, flushes, questions. */
  readonly others: number;
  readonly readBytes: number;
  readonly writeBytes: number;
  readonly read: Latencies;
  /** Of writes, and of everything else. */
  readonly write: Latencies;
  readonly other: Latencies;
  readonly failures: number;
  /** Milliseconds that connections were held back by the volume's limits, all together. */
  readonly heldMs: number;
}

class Tally {
  operations = 0;
  bytes = 0;
  private readonly histogram: RecordableHistogram = createHistogram(LATENCY);

  count(bytes: number, us: number): void {
    this.operations++;
    this.bytes += bytes;
    this.histogram.record(Math.min(Math.max(1, Math.round(us)), LATENCY.highest));
  }
  latencies(): Latencies {
    if (this.operations === 0) return { p50Us: 0, p99Us: 0, maxUs: 0 };
    const { histogram } = this;
    return {
      p50Us: histogram.percentile(50),
      p99Us: histogram.percentile(99),
      maxUs: histogram.max,
    };
  }
  reset(): void {
    this.operations = 0;
    this.bytes = 0;
    this.histogram.reset();
  }
}

export class Meter {
  readonly throttle: Throttle;
  private readonly read = new Tally();
  private readonly write = new Tally();
  private readonly other = new Tally();
  private failures = 0;
  private heldMs = 0;
  private since: number;

  constructor(private readonly clock: Pick<Clock, "now">) {
    this.throttle = new Throttle(clock);
    this.since = clock.now();
  }

  done(command: string, bytes: number, ms: number): void {
    if (command === "read") this.read.count(bytes, ms * 1_000);
    else if (command === "write") this.write.count(bytes, ms * 1_000);
    else this.other.count(0, ms * 1_000);
  }
  failed(): void {
    this.failures++;
  }
  held(ms: number): void {
    this.heldMs += ms;
  }

  /** The figures since the last call. */
  take(): Activity {
    const now = this.clock.now();
    const { read, write, other, failures, heldMs } = this;
    const activity: Activity = {
      ...{ spanMs: now - this.since, failures, heldMs },
      ...{ reads: read.operations, writes: write.operations, others: other.operations },
      ...{ readBytes: read.bytes, writeBytes: write.bytes },
      ...{ read: read.latencies(), write: write.latencies(), other: other.latencies() },
    };
    for (const tally of [read, write, other]) if (tally.operations > 0) tally.reset();
    this.failures = 0;
    this.heldMs = 0;
    this.since = now;
    return activity;
  }
}
