/**
 * Times of access (relatime, strictatime, noatime): a read changes what this mount shows at once,
 * and the leader is told lazily, many files at a time, so that no read costs a metadata write.
 * What was not told when the mount dies is lost, which no program may rely on.
 *
 * The kernel tells of the reads that reach this process. Whoever opened a file for reading only and
 * closed it without such a read may have had it from the kernel's pages: that counts as one.
 *
 * Owns: the times that the leader does not know yet.
 */
import { describeError, isDssError } from "../../cluster/base/errors.js";
import type { Ino } from "../../cluster/base/ids.js";
import type { Logger } from "../../cluster/base/log.js";
import type { Clock, Timer } from "../../cluster/platform/ports.js";
import type { MdsClient } from "../../mds/client/mds-client.js";
import { ACCESSED_MAX } from "../../mds/proto.js";
import type { FileHandle } from "./handle.js";
import type { Node } from "./node.js";

export type AccessTimeMode = "relatime" | "strictatime" | "noatime";

/** Reads are told this long after the first of them. */
const TELL_MS = 5_000;
/** With relatime, at least this often. */
const DAY_NS = 86_400_000_000_000n;
/** Files whose times are kept here at most; further ones are not noted before the next message. */
const KEPT_MAX = 65_536;

export class AccessTimes {
  private readonly times = new Map<Ino, bigint>();
  private timer: Timer | undefined;
  private telling: Promise<void> | undefined;

  constructor(
    private readonly mds: Pick<MdsClient, "callLater">,
    private readonly clock: Clock,
    private readonly logger: Logger,
    private readonly mode: AccessTimeMode,
    private readonly directories: boolean,
  ) {}

  /** A read by an open file; the usual one is over after two comparisons. */
  read(node: Node, handle: FileHandle): void {
    const { inode } = node;
    if (this.mode === "noatime" || inode === undefined) return;
    const { atimeNs } = inode;
    const isNoted = handle.readNoted && this.mode === "relatime";
    if (isNoted && atimeNs > inode.mtimeNs && atimeNs > inode.ctimeNs) return;
    handle.readNoted = true;
    this.note(node);
  }
  /** A handle that is closed. */
  closed(node: Node, handle: FileHandle): void {
    if (handle.keptCache && !handle.readNoted && !handle.writable && node.size > 0) this.note(node);
  }
  listed(node: Node): void {
    if (this.directories) this.note(node);
  }
  /** Whether a listing of the directory would change its time. */
  isListingDue(node: Node): boolean {
    return this.directories && this.isDue(node, this.clock.wallNs());
  }
  /** As Linux does it for a local file system. */
  private isDue({ inode }: Node, now: bigint): boolean {
    if (this.mode === "noatime" || inode === undefined || inode.nlink === 0) return false;
    const { atimeNs, mtimeNs, ctimeNs } = inode;
    if (now <= atimeNs) return false;
    if (this.mode === "strictatime") return true;
    return atimeNs <= mtimeNs || atimeNs <= ctimeNs || now - atimeNs >= DAY_NS;
  }
  note(node: Node): void {
    const { inode, ino } = node;
    const now = this.clock.wallNs();
    if (inode === undefined || !this.isDue(node, now)) return;
    if (this.times.size >= KEPT_MAX && !this.times.has(ino)) return;
    node.inode = { ...inode, atimeNs: now };
    this.times.set(ino, now);
    this.timer ??= this.clock.setTimer(TELL_MS, () => void this.tell());
  }
  /** An answer may be older than what was read here since. */
  keep(node: Node): void {
    if (this.times.size === 0 || node.inode === undefined) return;
    const known = this.times.get(node.ino);
    if (known !== undefined && known > node.inode.atimeNs) {
      node.inode = { ...node.inode, atimeNs: known };
    }
  }
  /** The time is being set, or the file is gone. */
  forget(ino: Ino): void {
    this.times.delete(ino);
  }
  clear(): void {
    this.times.clear();
  }

  /** Tells everything noted so far; never fails. */
  async tell(): Promise<void> {
    this.timer?.cancel();
    this.timer = undefined;
    while (this.telling !== undefined) await this.telling;
    this.telling = this.send().finally(() => (this.telling = undefined));
    await this.telling;
  }
  private async send(): Promise<void> {
    const all = [...this.times];
    for (let at = 0; at < all.length; at += ACCESSED_MAX) {
      const part = all.slice(at, at + ACCESSED_MAX).filter(([ino]) => this.times.has(ino));
      const reads = part.map(([ino, atimeNs]) => ({ ino, atimeNs }));
      try {
        await this.mds.callLater({ op: "accessed", reads });
      } catch (error) {
        if (!isDssError(error)) throw error;
        this.logger.warn({ error: describeError(error) }, "times of access were not told");
      }
      for (const [ino, time] of part) if (this.times.get(ino) === time) this.times.delete(ino);
    }
  }
  stop(): void {
    this.timer?.cancel();
    this.timer = undefined;
  }
}
