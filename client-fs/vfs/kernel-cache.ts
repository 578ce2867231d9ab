/**
 * What the kernel must be told to drop, and when it has: pages and attributes of inodes, names of
 * directories. Failures mark the inode; a driver whose kernel can be told nothing says so first.
 *
 * Locked pages. The kernel waits for pages that a READ or WRITE has locked until that is answered,
 * while a WRITE that needs more than what is being given back waits for the end of the recall. The
 * page in which it ends is passed by then: it holds nothing, or it would not be locked.
 *
 * Names. The kernel keeps those of a listing from when it takes the answer on, and programs may be
 * slow to be woken: names are dropped when nobody can be taking any.
 *
 * Ends of files. A read ends where the kernel takes the end of the file to be. What is asked of the
 * attributes, and a short answer to a READ, are thrown away there when they meet a drop (Linux,
 * fs/fuse/inode.c: `attr_version`), and a read that depended on them goes by an older size. So
 * before anything is dropped of a file that is open, and unless the kernel has its size for
 * certain, the mount looks at it: the kernel asks, and has taken the answer when the look ends.
 */
import { describeError, DssError, isDssError } from "../../cluster/base/errors.js";
import type { Ino } from "../../cluster/base/ids.js";
import type { Logger } from "../../cluster/base/log.js";
import { Slots } from "../../cluster/base/slots.js";
import type { Clock, RandomSource, Timer } from "../../cluster/platform/ports.js";
import { covers } from "../../mds/proto.js";
import { OWN_FOLDER, type KernelNotifier } from "../file-system.js";
import { newLook, type Node } from "./node.js";

/** How long a read or write waits in the gate while the kernel may be waiting for it. */
export const HOLD_MS = 20;
/** A reader of a directory who has not asked again may still be taking an answer for so long. */
const TAKING_MS = 20;
/** A recall does not wait longer for a look. */
const LOOK_MS = 1_000;
/** Of one file: somebody may be changing its size all the time. */
const LOOKS = 3;
/** When there was none of a file, or none at all, others do without for so long. */
const BLIND_MS = 10_000;
/**
 * Inodes whose pages are dropped at a time: thousands of capabilities may be asked for at once. One
 * that takes longer than HOLD_MS makes room.
 */
const DROPS = 64;

export interface KernelCacheParts {
  clock: Clock;
  logger: Logger;
  random: RandomSource;
  /** The kernel had this connection with an earlier worker: it may know of any inode. */
  isHeir: boolean;
  peek(ino: Ino): Node | undefined;
  /** Its attributes may be believed. */
  valid(node: Node): boolean;
}

export class KernelCache {
  private notifier: KernelNotifier | undefined;
  private readonly drops = new Slots(DROPS);
  /**
   * Looks under way by name. Nobody else finds out the names: they lead past the permissions of
   * directories.
   */
  private readonly looks = new Map<string, Node>();
  private blindUntilMs = 0;
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

  /** Whether the mount can look at what its kernel knows. */
  get canLook(): boolean {
    return this.notifier?.lookForOwn !== undefined;
  }
  mayKnow(node: Node): boolean {
    return node.lookups > 0 || this.parts.isHeir;
  }
  /** Pages of [offset, offset + length), to the end for 0, and the attributes. */
  async tell(ino: Ino, offset: number, length: number): Promise<void> {
    const { notifier } = this;
    if (notifier === undefined || !this.canInvalidate) return;
    const node = this.parts.peek(ino);
    const isBlind = node?.opens === 0;
    if (isBlind) node.blindDrops++;
    try {
      await this.makeSure(node);
      await notifier.invalidateInode(ino, offset, length);
    } catch (error) {
      if (!isDssError(error)) throw error;
      if (error.code === "NotSupported") {
        this.canInvalidate = false;
        return;
      }
      if (node !== undefined) node.kernelMayBeStale = true;
      const { logger } = this.parts;
      logger.warn({ ino, error: describeError(error) }, "the kernel kept pages of an inode");
    } finally {
      if (isBlind) node.blindDrops--;
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
      await this.dropPages(node, isDirectory);
    } finally {
      timer.cancel();
      endTurn();
    }
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
    if (isDirectory && this.canInvalidateNames) {
      await this.taken(node);
      await this.notifier!.invalidateAllEntries();
    }
    if (this.mayKnow(node)) await this.tell(node.ino, 0, 0);
  }

  /** What was listed with attributes has come to the kernel. */
  private async taken({ given }: Node): Promise<void> {
    if (given === undefined) return;
    const left = Math.max(...given.values()) + TAKING_MS - this.parts.clock.now();
    if (left > 0) await new Promise<void>((resolve) => this.parts.clock.setTimer(left, resolve));
  }

  // ---- Sizes -----------------------------------------------------------------------------------

  /** Attributes of the inode go out. They may be thrown away. */
  answering(node: Node): void {
    if (node.kernelSize !== node.size) node.kernelSize = undefined;
  }
  /** What a look is about, when a process asks for that name. */
  lookedFor(name: string, pid: number | undefined): Node | undefined {
    const node = this.looks.get(name);
    if (node?.look === undefined) return undefined;
    node.look.wasAsked = true;
    if (!this.parts.valid(node)) {
      node.look.wasRefused = true;
      return undefined;
    }
    node.look.pid = pid;
    node.look.size = node.size;
    return node;
  }
  /** The kernel has the size of the file under this capability, if anybody can depend on it. */
  async makeSure(node: Node | undefined): Promise<void> {
    if (node === undefined || !node.isRegular) return;
    if (node.opens === 0) {
      node.kernelSize = undefined;
      return;
    }
    for (let i = 0; i < LOOKS && node.kernelSize !== node.size && this.parts.valid(node); i++) {
      node.looking ??= this.lookAt(node).finally(() => (node.looking = undefined));
      if (!(await node.looking)) return;
    }
  }
  /** False when there can be no look. */
  private async lookAt(node: Node): Promise<boolean> {
    const { clock, logger } = this.parts;
    const blindUntilMs = Math.max(this.blindUntilMs, node.blindUntilMs);
    if (this.notifier?.lookForOwn === undefined || clock.now() < blindUntilMs) {
      node.kernelSize = undefined;
      return false;
    }
    const name = this.parts.random.bytes(16).toString("hex");
    const look = newLook();
    node.look = look;
    this.looks.set(name, node);
    try {
      const seen = this.notifier.lookForOwn(name);
      if (!(await this.within(LOOK_MS, seen))) throw new DssError("TimedOut", "no look");
      if (look.size === node.size && !look.wasLost) node.kernelSize = node.size;
      return true;
    } catch (error) {
      if (!isDssError(error)) throw error;
      node.kernelSize = undefined;
      if (error.code === "ShuttingDown" || look.wasRefused) return false;
      // Whoever came as far as the name can see the mount; one that is late waits for this file.
      const isOfFile = look.wasAsked || error.code === "TimedOut";
      if (isOfFile) node.blindUntilMs = clock.now() + BLIND_MS;
      else this.blindUntilMs = clock.now() + BLIND_MS;
      logger.warn({ ino: node.ino, error: describeError(error) }, "the mount cannot see itself");
      return false;
    } finally {
      this.looks.delete(name);
      node.look = undefined;
      void this.forgetName(OWN_FOLDER, Buffer.from(name)); // It keeps the inode in the kernel.
    }
  }

  /** False when the work is still not done after that time. */
  private within(ms: number, work: Promise<void>): Promise<boolean> {
    return new Promise((resolve, reject) => {
      const timer = this.parts.clock.setTimer(ms, () => resolve(false));
      work.then(() => resolve(true), reject).finally(() => timer.cancel());
    });
  }
}
