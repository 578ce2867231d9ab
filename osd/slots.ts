/** A limit on work under way: whoever comes when all slots are taken waits for its turn. */
export class Slots {
  private taken = 0;
  private readonly waiting: ((free: () => void) => void)[] = [];

  constructor(private readonly count: number) {}

  /** Resolves with what gives the slot back. */
  take(): Promise<() => void> {
    return new Promise((resolve) => {
      this.waiting.push(resolve);
      this.next();
    });
  }
  private next(): void {
    if (this.taken >= this.count) return;
    const first = this.waiting.shift();
    if (first === undefined) return;
    this.taken++;
    first(() => {
      this.taken--;
      this.next();
    });
  }
}
