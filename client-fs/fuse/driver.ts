/**
 * What both FUSE drivers have in common: the shape of a mount. device.ts speaks the kernel's
 * protocol; fuse-native.ts goes through libfuse 2. Types only.
 */
import type { Logger } from "../../cluster/base/log.js";
import type { FileSystem } from "../file-system.js";
import type { RequestObserver } from "./connection.js";

export interface MountOptions {
  /** An existing, empty directory. */
  mountpoint: string;
  logger: Logger;
  /** Other users may use the mount (default true); permissions are checked in any case. */
  allowOther?: boolean;
  readOnly?: boolean;
  /** First column of `mount` (default "dss"). */
  sourceName?: string;
  /** Further options for mount(8): "nosuid", "noatime"… */
  extraOptions?: readonly string[];
  /** Mount over a directory that has entries. */
  allowNonEmpty?: boolean;
  /** Told about every answered request: the place for counters and latencies. */
  observer?: RequestObserver;
  /** How requests are read from the device: see device.ts (default "poll"; kernel driver only). */
  reading?: "poll" | "threads";
  /** With "threads": pending reads, each of which holds one thread of libuv's pool (default 4). */
  readers?: number;
  /** How far the kernel reads ahead, in KiB (default 2,048); best effort. */
  readAheadKb?: number;
}

export interface Mounted {
  readonly mountpoint: string;
  /**
   * Unmounts and waits until the file system has flushed everything (`destroy`). Rejects with
   * `Busy` while files are open. `lazy` takes the mount out of sight at once and lets its users
   * finish; `done` then tells when they have.
   */
  unmount(options?: { lazy?: boolean }): Promise<void>;
  /**
   * Resolves when the mount is gone, whoever unmounted it, and the file system is destroyed.
   * Rejects when the connection broke or the file system could not flush.
   */
  readonly done: Promise<void>;
}

export type MountFileSystem = (fs: FileSystem, options: MountOptions) => Promise<Mounted>;
