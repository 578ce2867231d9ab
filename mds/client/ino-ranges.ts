/**
 * Inode numbers that the leader has given to this session, and the layout that new files get. The
 * next range is asked for before the last is used up, so that creations need not wait.
 */
import { DssError } from "../../cluster/base/errors.js";
import type { Ino } from "../../cluster/base/ids.js";
import type { Layout, MdsReply } from "../proto.js";

/** Fetch the next range when this part of the current one is left. */
const LOW_PART = 2;

export class InoRanges {
  private ranges: { next: Ino; left: number; count: number }[] = [];
  private fetching: Promise<void> | undefined;
  private layout: Layout | undefined;
  /** The lowest number that was given to the present session; those of earlier ones are lower. */
  first = Infinity;

  constructor(private readonly ask: () => Promise<MdsReply>) {}

  /** Never used before. */
  async next(): Promise<Ino> {
    for (;;) {
      const ino = this.take();
      if (ino !== undefined) return ino;
      await this.fetch();
    }
  }
  /** The same, if there is one at hand. */
  take(): Ino | undefined {
    const range = this.ranges[0];
    if (range === undefined) return undefined;
    const ino = range.next++;
    if (--range.left === 0) this.ranges.shift();
    const left = this.ranges.reduce((sum, each) => sum + each.left, 0);
    // Whoever finds none asks again and reports it.
    if (left < range.count / LOW_PART) this.fetch().catch(() => undefined);
    return ino;
  }
  /** Of new files; undefined while it is not known. */
  get fileLayout(): Layout | undefined {
    return this.layout;
  }
  /** They were another session's. */
  clear(): void {
    this.ranges = [];
    this.first = Infinity;
  }

  private fetch(): Promise<void> {
    this.fetching ??= this.ask()
      .then(({ answer: { inoRange: range } }) => {
        if (range === undefined || range.count < 1) {
          throw new DssError("Malformed", "the metadata server gave no inode numbers");
        }
        this.ranges.push({ next: range.first, left: range.count, count: range.count });
        this.first = Math.min(this.first, range.first);
        this.layout = range.layout;
      })
      .finally(() => {
        this.fetching = undefined;
      });
    return this.fetching;
  }
}
