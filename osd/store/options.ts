/**
 * What can be tuned in a chunk store. The user-visible table is cluster/config/options.ts; the
 * daemon hands the store a plain object, and everything left out has the default below.
 */
import { assert } from "../../cluster/base/assert.js";
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";

export interface StoreOptions {
  /** Bytes of one WAL segment and how many there are. Fixed when the store is formatted. */
  walSegmentBytes: number;
  walSegments: number;
  /** Bytes of one data file, sparse until written. Fixed when the store is formatted. */
  dataFileBytes: number;
  /**
   * A write of at least this many bytes goes straight to the data file, a smaller one through the
   * WAL.
   */
  directWriteBytes: number;
  /** Whether those, and large reads, pass by the page cache. */
  largeWrites: "direct" | "cached";
  /** Bytes of small writes kept in memory until they are applied; above it commits wait. */
  overlayBytesMax: number;
  /**
   * Bytes applied between two syncs of the data files, so that a flood of dirty pages never forms.
   */
  flushBytes: number;
  /** Bytes of memory for object infos that are not dirty. */
  cacheBytes: number;
  /**
   * A checkpoint starts at the latest after this many changed objects, log entries or milliseconds.
   */
  checkpointObjects: number;
  checkpointEntries: number;
  checkpointMs: number;
  /** A read of at most this many bytes is done on the event loop's thread. */
  syncReadBytes: number;
  /** Bytes set aside, to be given up when the disk is full, so that what frees space still runs. */
  reserveBytes: number;
  /** Limit on what objects may use, in bytes; 0 is all that the disk has. */
  capacityBytes: number;
}

const MiB = 1024 * 1024;

export const STORE_DEFAULTS: Readonly<StoreOptions> = Object.freeze({
  walSegmentBytes: 16 * MiB,
  walSegments: 8,
  dataFileBytes: 1024 * MiB,
  directWriteBytes: 64 * 1024,
  largeWrites: "direct",
  overlayBytesMax: 32 * MiB,
  flushBytes: 1 * MiB,
  cacheBytes: 24 * MiB,
  checkpointObjects: 4096,
  checkpointEntries: 32_768,
  checkpointMs: 5_000,
  syncReadBytes: 16 * 1024,
  reserveBytes: 32 * MiB,
  capacityBytes: 0,
});

/** The defaults with `partial` over them; asserts the relations that the formats rely on. */
export function storeOptions(partial: Partial<StoreOptions> = {}): Readonly<StoreOptions> {
  const options = { ...STORE_DEFAULTS, ...partial };
  assert(options.walSegments >= 2, "walSegments must be at least 2");
  assert(
    options.walSegmentBytes % BLOCK_SIZE === 0 && options.walSegmentBytes >= 256 * 1024,
    "walSegmentBytes must be a multiple of 4,096, at least 256 KiB",
  );
  assert(
    options.dataFileBytes % (32 * BLOCK_SIZE) === 0 && options.dataFileBytes > 0,
    "dataFileBytes must be a multiple of 128 KiB",
  );
  assert(
    options.directWriteBytes >= BLOCK_SIZE &&
      options.directWriteBytes <= options.walSegmentBytes / 4,
    "directWriteBytes must be between 4,096 and a quarter of walSegmentBytes",
  );
  return Object.freeze(options);
}
