/**
 * Order among overlapping changes: each begins when all earlier ones that overlap it have ended.
 * Changes that do not overlap never wait for each other. Owner of the ranges being changed.
 *
 * NBD leaves the order of requests in flight open, but a volume is cut into objects: without this,
 * two overlapping writes could each win in another object, which no disk would show.
 */
interface Range {
  readonly start: number;
  readonly end: number;
  readonly over: Promise<unknown>;
}

export class RangeOrder {
  private readonly ranges = new Set<Range>();

  /** Ranges being changed or waiting for it. */
  get size(): number {
    return this.ranges.size;
  }

  /** Runs `change` in its turn; resolves or fails as it does. Offsets are bytes. */
  run<T>(start: number, length: number, change: () => Promise<T>): Promise<T> {
    const end = start + length;
    let before: Promise<unknown>[] | undefined;
    for (const range of this.ranges) {
      if (range.start < end && start < range.end) (before ??= []).push(range.over);
    }
    // Earlier changes count only by their end; their failures are their callers'.
    const result = before ? Promise.all(before).then(change) : change();
    const range: Range = { start, end, over: result.then(ended, ended) };
    this.ranges.add(range);
    const leave = (): void => void this.ranges.delete(range);
    void range.over.then(leave);
    return result;
  }
}

const ended = (): undefined => undefined;
