/**
 * Counts who still uses the memory of a request's data: the own store, and the calls that carry it
 * to other members. The last one gives it back. Who never releases it leaves it to the garbage
 * collector: that is always right.
 */
export class SharedMemory {
  private uses = 1;

  /** Used once, by whoever makes it. */
  constructor(private readonly giveBack: () => void) {}

  use(): void {
    this.uses++;
  }
  release(): void {
    if (--this.uses === 0) this.giveBack();
  }
}
