/**
 * A limit on work under way: whoever comes when there is no room waits for its turn, the urgent
 * before the others, else in order.
 */
interface Waiting {
  amount: number;
  isUrgent: boolean;
  resolve: (free: () => void) => void;
}

export class Slots {
  private taken = 0;
  private readonly waiting: Waiting[] = [];

  constructor(private readonly count: number) {}

  /**
   * Resolves with what gives the room back. More than there is counts as all there is.
   */
  take(amount = 1, isUrgent = false): Promise<() => void> {
    return new Promise((resolve) => {
      const entry = { amount: Math.min(amount, this.count), isUrgent, resolve };
      const behind = isUrgent ? this.waiting.findIndex((each) => !each.isUrgent) : -1;
      if (behind < 0) this.waiting.push(entry);
      else this.waiting.splice(behind, 0, entry);
      this.next();
    });
  }
  private next(): void {
    for (;;) {
      const first = this.waiting[0];
      if (first === undefined || this.taken + first.amount > this.count) return;
      this.waiting.shift();
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
