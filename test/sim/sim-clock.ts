/**
 * Simulated time: one queue of events for the whole world, run in order of time, then of arrival.
 * Between two events all promises settle, so code under test may use `await` freely and a run is a
 * pure function of its seed.
 */
import type { Clock, Timer } from "../../cluster/platform/ports.js";

interface SimEvent {
  at: number;
  order: number;
  run: (() => void) | undefined;
}

/** How a host's clocks differ from the world's. */
export interface Skew {
  /** Milliseconds that its monotonic clock shows for one of the world's. */
  rate: number;
  wallMs: number;
}
const NO_SKEW: Skew = { rate: 1, wallMs: 0 };

export class SimClock {
  now = 0;
  private readonly heap: SimEvent[] = [];
  private order = 0;
  /** Wall time at the start: some fixed day. */
  readonly epochNs = 1_700_000_000_000_000_000n;
  events = 0;

  schedule(delayMs: number, run: () => void): Timer {
    const event: SimEvent = { at: this.now + Math.max(delayMs, 0), order: this.order++, run };
    this.push(event);
    return {
      cancel: () => {
        event.run = undefined;
      },
    };
  }

  /** Runs events until `done` or until `withinMs` have passed; false in the latter case. */
  async runUntil(done: () => boolean, withinMs: number): Promise<boolean> {
    const end = this.now + withinMs;
    await settle();
    while (!done()) {
      const event = this.pop();
      if (event === undefined) return false;
      if (event.at > end) {
        this.push(event);
        this.now = end;
        return false;
      }
      if (event.run === undefined) continue;
      this.now = event.at;
      this.events++;
      event.run();
      await settle();
    }
    return true;
  }

  async advance(ms: number): Promise<void> {
    await this.runUntil(() => false, ms);
  }

  /** A node's view: its timers die with it, and wait while it is frozen. */
  forNode(
    alive: () => boolean,
    run: (work: () => void) => void = (work) => work(),
    { rate, wallMs }: Skew = NO_SKEW,
  ): Clock {
    const guarded = (work: () => void) => (): void => {
      if (alive()) run(work);
    };
    return {
      now: () => this.now * rate,
      wallNs: () => this.epochNs + BigInt(Math.floor((this.now + wallMs) * 1e6)),
      setTimer: (ms, work) => {
        // Cancelling must also stop a timer that has fired while the node was frozen.
        let isCancelled = false;
        const timer = this.schedule(
          ms / rate,
          guarded(() => void (isCancelled || work())),
        );
        return {
          cancel: () => {
            isCancelled = true;
            timer.cancel();
          },
        };
      },
      defer: (work) => void this.schedule(0, guarded(work)),
    };
  }

  private push(event: SimEvent): void {
    const { heap } = this;
    let i = heap.push(event) - 1;
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (!before(event, heap[parent]!)) break;
      heap[i] = heap[parent]!;
      i = parent;
    }
    heap[i] = event;
  }
  private pop(): SimEvent | undefined {
    const { heap } = this;
    const top = heap[0];
    const last = heap.pop();
    if (top === undefined || last === undefined || heap.length === 0) return top;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child++;
      if (!before(heap[child]!, last)) break;
      heap[i] = heap[child]!;
      i = child;
    }
    heap[i] = last;
    return top;
  }
}

function before(a: SimEvent, b: SimEvent): boolean {
  return a.at < b.at || (a.at === b.at && a.order < b.order);
}

/** Every promise that can settle without a new event has settled. */
function settle(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
