/**
 * What both FUSE drivers have in common: the shape of a mount. device.ts speaks the kernel's
 * protocol; fuse-native.ts goes through libfuse 2. Types only.
 */
import type { Logger } from "../../cluster/base/log.js";
import type { FileSystem } from "../file-system.js";
import type { Negotiated, ReplyRecord, RequestObserver } from "./connection.js";

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
  /** Kept in step with the answers: what a worker leaves to the next one. Kernel driver only. */
  record?: ReplyRecord;
  /**
   * A descriptor of /dev/fuse that somebody keeps over the death of this process (kernel driver
   * only); `negotiated` when it is mounted already: then an earlier process's requests are served.
   */
  held?: { fd: number; negotiated?: Negotiated; onNegotiated?: (outcome: Negotiated) => void };
  /** When the kernel can be told things, and before its requests are read (`negotiated`). */
  beforeResume?: () => Promise<void>;
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
  /**
   * No further request is taken, and those under way have been answered, but for some that wait for
   * others: a worker that will follow gets them again. Kernel driver only. The function that it
   * resolves with ends the pause.
   */
  pause?(): Promise<() => void>;
}

export type MountFileSystem = (fs: FileSystem, options: MountOptions) => Promise<Mounted>;
