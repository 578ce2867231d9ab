/**
 * Locks on block ranges of one object, first come first served. A write holds its range exclusively
 * from before it reads what it merges until every member has it synced; a read shares its range. So
 * nobody reads a byte that could still be lost (design §4), and overlapping writes keep one order
 * on every member. Pure.
 */
export interface RangeLock {
  readonly start: number;
  readonly end: number;
  readonly shared: boolean;
  granted: boolean;
  run: () => void;
}

/** The whole object. */
export const WHOLE = Number.MAX_SAFE_INTEGER;

export class RangeLocks {
  /** In order of arrival; few at a time. */
  private readonly locks: RangeLock[] = [];

  get idle(): boolean {
    return this.locks.length === 0;
  }

  /** `run` is called once the lock is held: before this returns, or in a later `release`. */
  acquire(start: number, end: number, shared: boolean, run: () => void): RangeLock {
    const lock = { start, end, shared, granted: false, run };
    const free = !this.conflicts(lock, this.locks.length);
    this.locks.push(lock);
    if (free) {
      lock.granted = true;
      run();
    }
    return lock;
  }

  release(lock: RangeLock): void {
    const at = this.locks.indexOf(lock);
    if (at < 0) return;
    this.locks.splice(at, 1);
    for (let i = at; i < this.locks.length; i++) {
      const waiting = this.locks[i]!;
      if (waiting.granted || this.conflicts(waiting, i)) continue;
      waiting.granted = true;
      waiting.run();
    }
  }

  /** Does one of the first `count` locks stand in the way? */
  private conflicts(lock: RangeLock, count: number): boolean {
    for (let i = 0; i < count; i++) {
      const other = this.locks[i]!;
      if (other.shared && lock.shared) continue;
      if (other.start < lock.end && lock.start < other.end) return true;
    }
    return false;
  }
}
