/**
 * Gives disk space that no object needs any more back to the file system, by punching holes into
 * the data files. Free blocks are used again in any case; this is for the others on the disk: the
 * index, the reserve, other programs.
 *
 * A block is in nobody's hands while its hole is punched: it is taken from the allocator first,
 * which has it only after the quarantine, so no crash can bring a former owner back.
 */
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import type { DataFiles } from "./data-files.js";
import type { BlockAllocator, Run } from "./extent-map.js";
import type { SpaceGauge } from "./space.js";

/** Shorter free runs stay: each costs a system call and tears the file apart. */
const RUN_BLOCKS_MIN = 64;
/** One round: the next checkpoint goes on. */
const ROUND_RUNS = 32;
const ROUND_BLOCKS = 65_536;
/** Free space in the data files that is worth a round on a roomy disk, and on a crowded one. */
const SLACK_BYTES = 64 * 1024 * 1024;
const SLACK_BYTES_SCARCE = 1024 * 1024;

export class Reclaimer {
  private cursor = 0;
  /** Blocks in the hands of the round under way: taken, but as good as free. */
  holding = 0;
  readonly counters = { punchedBlocks: 0 };

  constructor(
    private readonly files: DataFiles,
    private readonly allocator: BlockAllocator,
    private readonly space: SpaceGauge,
  ) {}

  private get isDue(): boolean {
    const { used, highWater } = this.allocator;
    const slack = this.space.slack(used);
    if (this.space.scarce) return slack >= SLACK_BYTES_SCARCE;
    return slack >= Math.max(SLACK_BYTES, (highWater * BLOCK_SIZE) / 4);
  }

  /** One round, if it is worth it; then the file system is asked again. */
  async round(): Promise<void> {
    if (!this.isDue) return;
    const limits = { minBlocks: RUN_BLOCKS_MIN, maxRuns: ROUND_RUNS, maxBlocks: ROUND_BLOCKS };
    const { runs, next } = this.allocator.takeFreeRuns(this.cursor, limits);
    this.cursor = next;
    if (runs.length === 0) return;
    this.holding = runs.reduce((sum, run) => sum + run.count, 0);
    try {
      for (const run of runs) await this.files.punch(run);
    } finally {
      this.counters.punchedBlocks += this.holding;
      this.holding = 0;
      for (const run of runs) this.giveBack(run);
    }
    await this.space.refresh();
  }

  private giveBack(run: Run): void {
    for (let i = 0; i < run.count; i++) this.allocator.release(run.start + i);
  }

  /**
   * What the data files hold beyond the last block in use: left from an earlier life. Only before
   * anything is written.
   */
  async trimTail(): Promise<void> {
    if (this.space.slack(this.allocator.used) < SLACK_BYTES_SCARCE) return;
    await this.files.punchFrom(this.allocator.highWater);
    await this.space.refresh();
  }
}
