/** What `dss du` and `dss quota` ask, and what the leader answers (mds/totals-service.ts). */
import type { Ino } from "../cluster/base/ids.js";

/** 0: no limit of this kind. */
export interface QuotaLimits {
  /** Sizes of files and symbolic links below the directory. */
  maxBytes: number;
  /** Files and directories below it. */
  maxInodes: number;
}
/** Of everything below one directory. */
export interface DirectoryTotals extends QuotaLimits {
  ino: Ino;
  /** Everything that is no directory; a file with several names counts once. */
  files: number;
  directories: number;
  /** Sizes; at most 2^63 - 1 is told. */
  bytes: bigint;
  /** Bytes of the blocks that hold data. */
  allocated: bigint;
}

/** Which directory: by its number, or by names from the root of the file system. */
export interface DirectoryName {
  ino?: Ino;
  path?: Buffer[];
}
export interface DirectoryUsage {
  totals: DirectoryTotals;
  /** Directories in it, if they were asked for, by name. */
  children: { name: Buffer; totals: DirectoryTotals }[];
  /** There are more of them than are told. */
  isCut: boolean;
}
export interface QuotaReport {
  /** Names from the root, as far as they could be found; undefined: too many names to look at. */
  path: Buffer[] | undefined;
  totals: DirectoryTotals;
}
