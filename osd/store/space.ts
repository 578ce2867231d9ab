/**
 * How much room the store has, and what it does when the disk has none left.
 *
 * Everything but object bytes is set aside from the beginning: the log is preallocated, and the
 * reserve file is given up when the disk is full, so that checkpoints and what frees space still
 * run. Where even that does not help (others have filled the disk), work that needs space waits
 * until there is some: nothing fails, nothing is lost, and what is there can be read.
 *
 * Owner of the reserve.
 */
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import { describeError, isDssError } from "../../cluster/base/errors.js";
import type { Logger } from "../../cluster/base/log.js";
import type { Clock, Disk, Timer } from "../../cluster/platform/ports.js";
import type { StoreUsage } from "./chunk-store.js";
import type { StoreOptions } from "./options.js";

const RESERVE = "reserve";
/** Work that found no space is tried again after this. */
const RETRY_MS = 1_000;
/** The file system is asked at least this often while somebody wants to know. */
const STALE_MS = 1_000;

export interface SpaceParts {
  disk: Disk;
  clock: Clock;
  logger: Logger;
  options: Readonly<StoreOptions>;
  /** Bytes that the data files take on the disk. */
  dataBytes(): Promise<number>;
}

async function fill(disk: Disk, bytes: number): Promise<void> {
  const file = await disk.open(RESERVE, { create: true });
  try {
    const zeros = Buffer.alloc(Math.min(1024 * 1024, bytes));
    for (let at = 0; at < bytes; at += zeros.length) {
      await file.write([zeros.subarray(0, Math.min(zeros.length, bytes - at))], at);
    }
    await file.sync();
  } finally {
    await file.close();
  }
}

export class SpaceGauge {
  /** Bytes of the data files on the disk, used or not, and what the file system still has. */
  private dataBytes = 0;
  private available = 0;
  private measuredAt = -Infinity;
  private measuring: Promise<void> | undefined;
  private giving: Promise<void> | undefined;
  private isStopped = false;
  private waiting = new Set<() => void>();
  private starvedListeners: (() => void)[] = [];
  /** Less than an eighth of the disk is free, or the reserve is gone. */
  scarce = false;
  /** Work waits for space. */
  isStarved = false;
  readonly counters = { reserveUses: 0, spaceWaits: 0 };

  private constructor(
    private readonly parts: SpaceParts,
    private hasReserve: boolean,
  ) {}

  static async format(disk: Disk, bytes: number): Promise<void> {
    if (bytes > 0) await fill(disk, bytes);
  }

  static async open(parts: SpaceParts): Promise<SpaceGauge> {
    const { disk, options } = parts;
    if (!(await disk.exists(RESERVE))) return new SpaceGauge(parts, false);
    const isWhole = (await sizeOnDisk(disk)) >= options.reserveBytes;
    // One that was not finished, or is not enough any more, only takes space away.
    if (!isWhole) await disk.remove(RESERVE);
    return new SpaceGauge(parts, isWhole);
  }

  /** Bytes of blocks in the data files beyond `usedBlocks`: they could be given back. */
  slack(usedBlocks: number): number {
    return this.dataBytes - usedBlocks * BLOCK_SIZE;
  }

  /** Asks the file system. */
  async refresh(): Promise<void> {
    const { disk } = this.parts;
    // In this order a block that is written meanwhile is counted as gone, not as there twice.
    const dataBytes = await this.parts.dataBytes();
    const { total, available } = await disk.usage();
    this.dataBytes = dataBytes;
    this.available = available;
    this.measuredAt = this.parts.clock.now();
    this.scarce = available < total / 8 || this.lack > 0;
  }

  /** Sets the reserve aside again when there is room for it. */
  async refill(): Promise<void> {
    const { disk, options, logger } = this.parts;
    // Room for what comes meanwhile: a disk filled to the brim by this would be as bad as before.
    if (this.lack === 0 || this.available < options.reserveBytes * 1.25) return;
    try {
      await fill(disk, options.reserveBytes);
      this.hasReserve = true;
      logger.info({}, "the reserve is set aside again");
    } catch (error) {
      // Others were faster: what they left is not enough.
      if (!isDssError(error, "NoSpace")) throw error;
      await disk.remove(RESERVE);
    }
    await this.refresh();
  }

  private get lack(): number {
    return this.hasReserve ? 0 : this.parts.options.reserveBytes;
  }

  /**
   * `used`: blocks of objects; `taken`: all that are not free. Measures again in the background
   * when the figures are old.
   */
  usage(blocks: { used: number; taken: number }, objects: number): StoreUsage {
    this.measureSoon();
    const { capacityBytes } = this.parts.options;
    const used = blocks.used * BLOCK_SIZE;
    const room = this.dataBytes + this.available - this.lack - blocks.taken * BLOCK_SIZE;
    const total = used + (this.isStarved ? 0 : Math.max(0, room));
    return { used, total: capacityBytes > 0 ? Math.min(total, capacityBytes) : total, objects };
  }

  private measureSoon(): void {
    const { clock, logger } = this.parts;
    if (this.measuring || this.isStopped || clock.now() - this.measuredAt < STALE_MS) return;
    this.measuring = this.refresh()
      .catch((error: unknown) => {
        // A disk that really fails says so at the next write.
        this.measuredAt = clock.now();
        logger.warn({ error: describeError(error) }, "cannot tell how full the disk is");
      })
      .finally(() => (this.measuring = undefined));
  }

  /**
   * Runs `work`; when the disk is full, gives the reserve up and runs it once more; when that does
   * not help, again and again until there is space. `work` may be repeated.
   */
  async whenSpace(work: () => Promise<void>): Promise<void> {
    for (;;) {
      try {
        await work();
        this.isStarved = this.waiting.size > 0;
        return;
      } catch (error) {
        if (!isDssError(error, "NoSpace")) throw error;
        if (await this.giveUpReserve()) continue;
        if (this.isStopped) throw error;
        await this.pause(error);
      }
    }
  }

  /** True when there was one. */
  private async giveUpReserve(): Promise<boolean> {
    if (this.giving !== undefined) {
      await this.giving;
      return true;
    }
    if (!this.hasReserve) return false;
    this.hasReserve = false;
    this.counters.reserveUses++;
    this.parts.logger.warn({}, "the disk is full: the reserve is given up");
    this.giving = this.parts.disk.remove(RESERVE).finally(() => (this.giving = undefined));
    await this.giving;
    return true;
  }

  private async pause(error: unknown): Promise<void> {
    const { clock, logger } = this.parts;
    if (!this.isStarved) {
      const hint = "free space on its file system";
      logger.error({ error: describeError(error), hint }, "the disk is full: work waits for space");
    }
    this.isStarved = true;
    this.counters.spaceWaits++;
    for (const tell of this.starvedListeners.splice(0)) tell();
    await new Promise<void>((resolve) => {
      const timer: Timer = clock.setTimer(RETRY_MS, () => wake());
      const wake = (): void => {
        timer.cancel();
        this.waiting.delete(wake);
        resolve();
      };
      this.waiting.add(wake);
    });
  }

  /** Resolves when work waits for space. */
  starved(): Promise<void> {
    if (this.isStarved) return Promise.resolve();
    return new Promise((resolve) => this.starvedListeners.push(resolve));
  }

  /** Nothing waits any more: what has no space fails. Resolves when nothing is being measured. */
  async stop(): Promise<void> {
    this.isStopped = true;
    for (const wake of [...this.waiting]) wake();
    await this.measuring;
  }
}

async function sizeOnDisk(disk: Disk): Promise<number> {
  const file = await disk.open(RESERVE);
  try {
    return await file.allocated();
  } finally {
    await file.close();
  }
}
