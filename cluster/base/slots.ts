/**
 * A limit on work under way: whoever comes when there is no room waits for its turn, the urgent
 * before the others, else in order.
 */
import { Fifo } from "./fifo.js";

interface Waiting {
  amount: number;
  resolve: (free: () => void) => void;
}

export class Slots {
  private taken = 0;
  private readonly urgent = new Fifo<Waiting>();
  private readonly others = new Fifo<Waiting>();

  constructor(private readonly count: number) {}

  /**
   * Resolves with what gives the room back. More than there is counts as all there is.
   */
  take(amount = 1, isUrgent = false): Promise<() => void> {
    return new Promise((resolve) => {
      const queue = isUrgent ? this.urgent : this.others;
      queue.push({ amount: Math.min(amount, this.count), resolve });
      this.next();
    });
  }
  private next(): void {
    for (;;) {
      const queue = this.urgent.length > 0 ? this.urgent : this.others;
      const first = queue.first();
      if (first === undefined || this.taken + first.amount > this.count) return;
      queue.shift();
      this.taken += first.amount;
      let isFree = false;
      first.resolve(() => {
        if (isFree) return;
        isFree = true;
        this.taken -= first.amount;
        this.next();
      });
    }
  }
}
