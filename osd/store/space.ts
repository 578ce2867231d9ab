/**
 * How much room the store has, and the reserve file that is given up when the disk is full anyway,
 * so that checkpoints and what frees space still run. Owner of the reserve.
 */
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import { isDssError } from "../../cluster/base/errors.js";
import type { Disk } from "../../cluster/platform/ports.js";
import type { StoreUsage } from "./chunk-store.js";
import type { StoreOptions } from "./options.js";

const RESERVE = "reserve";
/** The reserve is set aside again when this many times its size is free. */
const REFILL_FACTOR = 4;

async function fill(disk: Disk, bytes: number): Promise<void> {
  const file = await disk.open(RESERVE, { create: true });
  const zeros = Buffer.alloc(Math.min(1024 * 1024, bytes));
  for (let at = 0; at < bytes; at += zeros.length) {
    await file.write([zeros.subarray(0, Math.min(zeros.length, bytes - at))], at);
  }
  await file.sync();
  await file.close();
}

export class SpaceGauge {
  private available = 0;
  private highWater = 0;
  /** Less than an eighth of the disk is free. */
  scarce = false;
  /** Times that the disk was full and the reserve was given up. */
  reserveUses = 0;

  private constructor(
    private readonly disk: Disk,
    private readonly options: Readonly<StoreOptions>,
    private hasReserve: boolean,
  ) {}

  static async format(disk: Disk, bytes: number): Promise<void> {
    if (bytes > 0) await fill(disk, bytes);
  }

  static async open(disk: Disk, options: Readonly<StoreOptions>): Promise<SpaceGauge> {
    return new SpaceGauge(disk, options, await disk.exists(RESERVE));
  }

  /** Asks the file system; sets the reserve aside again when there is room. */
  async refresh(highWater: number): Promise<void> {
    const { total, available } = await this.disk.usage();
    this.available = available;
    this.scarce = available < total / 8;
    this.highWater = highWater;
    const { reserveBytes } = this.options;
    if (this.hasReserve || reserveBytes === 0 || this.available < reserveBytes * REFILL_FACTOR)
      return;
    try {
      await fill(this.disk, reserveBytes);
      this.hasReserve = true;
    } catch (error) {
      // Others were faster; the next refresh tries again.
      if (!isDssError(error, "NoSpace")) throw error;
    }
  }

  /** `free`: blocks below the high-water mark, which the disk has given to us already. */
  usage(used: number, free: number, highWater: number, objects: number): StoreUsage {
    const grown = Math.max(0, highWater - this.highWater) * BLOCK_SIZE;
    const room = free * BLOCK_SIZE + Math.max(0, this.available - grown);
    const usedBytes = used * BLOCK_SIZE;
    const { capacityBytes } = this.options;
    const total = usedBytes + room;
    return {
      used: usedBytes,
      total: capacityBytes > 0 ? Math.min(total, capacityBytes) : total,
      objects,
    };
  }

  /** Runs `work`; when the disk is full, gives the reserve up and runs it once more. */
  async retryWithReserve(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (!isDssError(error, "NoSpace") || !this.hasReserve) throw error;
      this.hasReserve = false;
      this.reserveUses++;
      await this.disk.remove(RESERVE);
      await work();
    }
  }
}
