/**
 * What the kernel must be told to drop, and when it has: pages and attributes of inodes, names of
 * directories. Failures mark the inode; a driver whose kernel can be told nothing says so first.
 *
 * Locked pages. The kernel waits for pages that a READ or WRITE has locked until that is answered,
 * while a WRITE that needs more than what is being given back waits for the end of the recall. The
 * page in which it ends is passed by then: it holds nothing, or it would not be locked.
 *
 * Ends of files. A look at attributes that meets such a drop in the kernel is thrown away there,
 * and a read that depended on it goes by the size that the kernel had known before. So before
 * anything is dropped the kernel gets the last byte of a file that has grown, and with it the size.
 * Not of a file that is open for writing here: it may be mapped, and a byte given to the kernel
 * takes the place of one that was stored there and has not been written back. Then the answers that
 * are on their way get the time to arrive.
 */
import { describeError, isDssError } from "../../cluster/base/errors.js";
import type { Ino } from "../../cluster/base/ids.js";
import type { Logger } from "../../cluster/base/log.js";
import { Slots } from "../../cluster/base/slots.js";
import type { Clock, Timer } from "../../cluster/platform/ports.js";
import { covers } from "../../mds/proto.js";
import type { KernelNotifier } from "../file-system.js";
import type { ExtentCache } from "./extent-cache.js";
import type { FileData } from "./file-data.js";
import type { Node } from "./node.js";

/** How long a read or write waits in the gate while the kernel may be waiting for it. */
export const HOLD_MS = 20;
/** A recall does not wait longer for a byte that the OSDs do not give. */
const LAST_BYTE_MS = 1_000;
/**
 * Inodes whose pages are dropped at a time: thousands of capabilities may be asked for at once. One
 * that takes longer than HOLD_MS makes room.
 */
const DROPS = 64;
/** In that time whoever waits for an answer that was given has seen it. */
const ARRIVAL_MS = 50;

export interface KernelCacheParts {
  clock: Clock;
  logger: Logger;
  cache: ExtentCache;
  /** The kernel had this connection with an earlier worker: it may know of any inode. */
  isHeir: boolean;
  peek(ino: Ino): Node | undefined;
  dataOf(node: Node): FileData;
}

export class KernelCache {
  private notifier: KernelNotifier | undefined;
  private readonly drops = new Slots(DROPS);
  /** The kernel cannot be told to drop things: nothing may be given to it to keep. */
  canInvalidate = false;
  canInvalidateNames = false;

  constructor(private readonly parts: KernelCacheParts) {}

  set(notifier: KernelNotifier, canInvalidateNames: boolean): void {
    this.notifier = notifier;
    this.canInvalidate = true;
    this.canInvalidateNames = canInvalidateNames;
    // A driver that cannot tell its kernel anything says so now, before the kernel was given
    // anything. `tell` logs what fails otherwise.
    void this.tell(1, 0, 0);
  }

  mayKnow(node: Node): boolean {
    return node.lookups > 0 || this.parts.isHeir;
  }
  /** Pages of [offset, offset + length), to the end for 0, and the attributes. */
  async tell(ino: Ino, offset: number, length: number): Promise<void> {
    const { notifier } = this;
    if (notifier === undefined || !this.canInvalidate) return;
    try {
      await notifier.invalidateInode(ino, offset, length);
    } catch (error) {
      if (!isDssError(error)) throw error;
      if (error.code === "NotSupported") {
        this.canInvalidate = false;
        return;
      }
      const node = this.parts.peek(ino);
      if (node !== undefined) node.kernelMayBeStale = true;
      const { logger } = this.parts;
      logger.warn({ ino, error: describeError(error) }, "the kernel kept pages of an inode");
    }
  }
  /** One name, in its own time: see `KernelNotifier.invalidateEntry`. */
  async forgetName(parent: Ino, name: Buffer): Promise<void> {
    const { notifier } = this;
    if (notifier === undefined || !this.canInvalidate) return;
    try {
      await notifier.invalidateEntry(parent, name);
    } catch (error) {
      if (!isDssError(error)) throw error;
      this.parts.logger.debug({ parent, error: describeError(error) }, "the kernel kept a name");
    }
  }
  forgetNames(): void {
    if (!this.canInvalidateNames) return;
    this.notifier?.invalidateAllEntries().catch((error: unknown) => {
      this.parts.logger.warn({ error: describeError(error) }, "the kernel kept its names");
    });
  }

  /** Resolves when something may be dropped, with what ends its turn. */
  turn(isUrgent: boolean): Promise<() => void> {
    return this.drops.take(1, isUrgent);
  }
  /** Everything of the inode, before its capability is given back. */
  async drop(node: Node, isDirectory: boolean, endTurn: () => void): Promise<void> {
    const timer = this.parts.clock.setTimer(HOLD_MS, endTurn);
    try {
      if (!isDirectory) await this.tellSize(node);
      await this.dropPages(node, isDirectory);
    } finally {
      timer.cancel();
      endTurn();
    }
    node.sizeAnswered = undefined; // What was answered until now may have been thrown away.
  }
  private async dropPages(node: Node, isDirectory: boolean): Promise<void> {
    const dropped = this.dropAll(node, isDirectory);
    let timer: Timer | undefined;
    try {
      await new Promise<void>((resolve, reject) => {
        const look = (): void => {
          // A write that is let through unlocks its pages; one that needs more than there is does
          // not.
          if (node.locked.size > 0 && !covers(node.mode, "exclusive")) {
            this.dropUnlocked(node).then(resolve, reject);
          } else {
            timer = this.parts.clock.setTimer(HOLD_MS, look);
          }
        };
        timer = this.parts.clock.setTimer(HOLD_MS, look);
        dropped.then(resolve, reject);
      });
    } finally {
      timer?.cancel();
    }
  }
  /** What is locked is dropped when its write has been answered. */
  private async dropUnlocked(node: Node): Promise<void> {
    const ranges = [...node.locked].sort((a, b) => a.start - b.start);
    let start = 0;
    const rest = ranges.map((pages) => {
      const from = start;
      start = Math.max(start, pages.end);
      return pages.start > from ? this.tell(node.ino, from, pages.start - from) : undefined;
    });
    await Promise.all([...rest, this.tell(node.ino, start, 0)]);
  }
  private async dropAll(node: Node, isDirectory: boolean): Promise<void> {
    if (!this.canInvalidate) return;
    if (isDirectory && this.canInvalidateNames) await this.notifier!.invalidateAllEntries();
    if (this.mayKnow(node)) await this.tell(node.ino, 0, 0);
  }

  /** Attributes of the inode go out. */
  answering(node: Node): void {
    const { size } = node;
    if (size <= node.kernelSize || node.sizeAnswered?.size === size) return;
    node.sizeAnswered = { size, atMs: this.parts.clock.now() };
  }
  /**
   * Before pages are dropped of a file that is open for writing. What was answered then has been
   * seen; later answers of the same size may be thrown away.
   */
  async answersArrived(node: Node): Promise<void> {
    if (node.writers > 0 && this.canInvalidate) await this.arrived(node);
  }
  /** The kernel knows a size at least as large as the one under this capability. */
  private async tellSize(node: Node): Promise<void> {
    const { size, ino } = node;
    const { notifier } = this;
    const isKnown = size <= node.kernelSize || node.opens === 0 || !node.isRegular;
    if (isKnown || node.writers > 0) return;
    if (notifier?.store === undefined || !this.canInvalidate) return;
    const told = this.storeLast(node, size, notifier).catch((error: unknown) => {
      if (!isDssError(error)) throw error;
      const { logger } = this.parts;
      logger.debug({ ino, error: describeError(error) }, "the kernel was not told a size");
    });
    await this.within(LAST_BYTE_MS, told);
  }
  private async arrived(node: Node): Promise<void> {
    const { sizeAnswered } = node;
    if (sizeAnswered === undefined || node.opens === 0) return;
    const { clock } = this.parts;
    const restMs = sizeAnswered.atMs + ARRIVAL_MS - clock.now();
    if (restMs > 0) await new Promise<void>((resolve) => clock.setTimer(restMs, resolve));
    // Unless it has become shorter meanwhile.
    if (node.sizeAnswered === undefined) return;
    node.kernelSize = Math.max(node.kernelSize, sizeAnswered.size);
    if (node.sizeAnswered === sizeAnswered) node.sizeAnswered = undefined;
  }
  private async storeLast(node: Node, size: number, notifier: KernelNotifier): Promise<void> {
    const { recall } = node;
    const pieces = await this.parts.dataOf(node).read(size - 1, 1, undefined);
    const last = Buffer.concat(pieces);
    this.parts.cache.done(pieces);
    // It took too long, the file became shorter, or somebody opens it for writing; a page that is
    // locked is not waited for.
    const isOver = node.recall !== recall || node.size !== size || node.locked.size > 0;
    if (node.writers > 0) return this.arrived(node);
    if (isOver || last.length !== 1) return;
    const stored = notifier.store!(node.ino, size - 1, last);
    const ended = stored.catch(() => undefined); // Who stores it sees the error below.
    node.storing = ended;
    await stored.finally(() => {
      if (node.storing === ended) node.storing = undefined;
    });
    if (node.recall === recall) node.kernelSize = size;
  }

  /** False when the work is still not done after that time. */
  private within(ms: number, work: Promise<void>): Promise<boolean> {
    return new Promise((resolve, reject) => {
      const timer = this.parts.clock.setTimer(ms, () => resolve(false));
      work.then(() => resolve(true), reject).finally(() => timer.cancel());
    });
  }
}
