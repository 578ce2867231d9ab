/**
 * Requests and bytes in flight over all connections of a server. Whoever does not get what it
 * needs queues up and is served first come, first served: as long as someone waits for bytes,
 * nobody else gets any, so a large write is not starved by a stream of small ones.
 */
import { assert } from "../cluster/base/assert.js";

export interface BudgetWaiter {
  /** Bytes wanted. */
  readonly bytes: number;
  /** The bytes are now the waiter's; called once, and must not use them before it returns. */
  readonly granted: () => void;
}

export class Budget {
  private requests = 0;
  private bytes = 0;
  private readonly waiters: BudgetWaiter[] = [];
  private readonly crowd = new Set<() => void>();

  constructor(
    private readonly max: { readonly requests: number; readonly bytes: number },
    private readonly onScarce: () => void,
  ) {}

  /** Bytes that one more request may take at once. */
  get room(): number {
    return this.waiters.length > 0 ? 0 : this.max.bytes - this.bytes;
  }
  get bytesInFlight(): number {
    return this.bytes;
  }
  get requestsInFlight(): number {
    return this.requests;
  }
  /** True while someone waits for bytes that others hold. */
  get scarce(): boolean {
    return this.waiters.length > 0;
  }

  /** No further request may be taken; `whenLessCrowded` tells when to ask again. */
  get crowded(): boolean {
    return this.requests >= this.max.requests;
  }
  takeRequest(): void {
    this.requests++;
  }
  giveRequest(): void {
    this.requests--;
    assert(this.requests >= 0, "budget: more requests given back than taken");
    if (this.crowd.size === 0) return;
    // All of them: the first may turn out to have nothing to do.
    const woken = [...this.crowd];
    this.crowd.clear();
    for (const wake of woken) wake();
  }
  /** `wake` is called once, when a request has been given back; it must not take one at once. */
  whenLessCrowded(wake: () => void): void {
    this.crowd.add(wake);
  }

  /** Takes bytes that `room` has offered. */
  take(bytes: number): void {
    this.bytes += bytes;
    assert(this.bytes <= this.max.bytes, `budget: ${this.bytes} bytes taken`);
  }
  give(bytes: number): void {
    this.bytes -= bytes;
    assert(this.bytes >= 0, "budget: more bytes given back than taken");
    if (this.waiters.length > 0) this.serve();
  }

  wait(waiter: BudgetWaiter): void {
    assert(waiter.bytes <= this.max.bytes, `budget: ${waiter.bytes} bytes can never be free`);
    this.waiters.push(waiter);
    this.onScarce();
    this.serve();
  }
  cancel(waiter: BudgetWaiter): void {
    const index = this.waiters.indexOf(waiter);
    if (index < 0) return;
    this.waiters.splice(index, 1);
    this.serve(); // The next one may want less.
  }

  private serve(): void {
    for (;;) {
      const first = this.waiters[0];
      if (!first || first.bytes > this.max.bytes - this.bytes) return;
      this.waiters.shift();
      this.bytes += first.bytes;
      first.granted();
    }
  }
}
