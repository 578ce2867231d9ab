/**
 * Listings that the kernel keeps (FOPEN_CACHE_DIR), so that who lists a directory again asks
 * nobody: neither for its names nor, as the kernel keeps what it knows of them too, for their
 * attributes and access lists, which a listing with attributes brings anew.
 *
 * Changes by programs of this kernel it sees itself, when a listing begins (Linux,
 * fs/fuse/readdir.c: it compares the directory's i_version). For those of others it is told to drop
 * the pages with the capability. What is left are entries that were listed before a change and
 * come to the kernel after it: it adds them to pages that somebody has begun since. So
 *
 * - nobody is given a page that was listed before the last change (`Vfs.readdir`);
 * - pages of before count as good only when nothing has changed, and the directory's capability has
 *   lasted, since they were begun;
 * - while somebody is still reading who began before that, nobody else's listing is kept;
 * - and what that reader gets is dropped again with each further request of his, which comes
 *   after the kernel has taken the answer to the one before.
 *
 * Names that come with attributes are the kernel's for some seconds, counted from when it takes the
 * answer, and what it takes after it was told to drop all names, it keeps. So with a directory's
 * capability it is told when it can be taken to have the answers given before (`KernelCache`).
 *
 * A listing without attributes is not kept for the next one, which may want them: one by one they
 * cost more than the whole listing. Owns: nothing; see `Node.kernelListing`.
 */
import type { Clock } from "../../cluster/platform/ports.js";
import type { OpenDirReply } from "../file-system.js";
import type { DirectoryHandle } from "./handle.js";
import type { Node } from "./node.js";
import type { NodeTable } from "./node-table.js";

/** Of listings that a worker began before this one. */
const NO_EPOCH = -1;

/** What the kernel may have of a directory's listing. */
export interface KernelListing {
  /** `Node.listingEpoch` when it began. */
  epoch: number;
  beganMs: number;
  /** Open directories whose listings the kernel keeps. */
  readers: number;
  /** Somebody has read it to its end and was given attributes. */
  hasAttributes: boolean;
}

export class KernelListings {
  /** `validMs`: the kernel looks names up again after that. */
  constructor(
    private readonly table: Pick<NodeTable, "lasting" | "accessTimes" | "kernel">,
    private readonly clock: Pick<Clock, "now">,
    private readonly validMs: number,
  ) {}

  opened(node: Node, handle: DirectoryHandle): Omit<OpenDirReply, "handle"> {
    const nothing = { cacheListing: false, keepListing: false };
    const { listingEpoch: epoch, kernelListing: known } = node;
    if (!this.table.kernel.canInvalidate || !this.table.lasting(node)) return nothing;
    const readers = known?.readers ?? 0;
    if (known?.epoch !== epoch && readers > 0) return nothing;
    handle.epoch = epoch;
    if (known?.epoch === epoch && this.isGood(node, known)) {
      known.readers++;
      return { cacheListing: true, keepListing: true };
    }
    const beganMs = this.clock.now();
    node.kernelListing = { epoch, beganMs, readers: readers + 1, hasAttributes: false };
    return { cacheListing: true, keepListing: false };
  }
  private isGood(node: Node, { hasAttributes, beganMs }: KernelListing): boolean {
    const isDue = this.table.accessTimes.isListingDue(node);
    return hasAttributes && !isDue && this.clock.now() < beganMs + this.validMs;
  }
  /** Open since an earlier worker: the kernel may add to any pages. */
  restored(node: Node, handle: DirectoryHandle): void {
    handle.epoch = NO_EPOCH;
    const readers = (node.kernelListing?.readers ?? 0) + 1;
    node.kernelListing = { epoch: NO_EPOCH, beganMs: 0, readers, hasAttributes: false };
  }
  closed(node: Node, handle: DirectoryHandle): void {
    const known = node.kernelListing;
    if (handle.epoch !== undefined && known !== undefined) known.readers--;
    this.asked(node, handle);
  }

  /** The kernel has taken the answer before. */
  asked(node: Node, handle: DirectoryHandle): void {
    if (node.given?.delete(handle) === true && node.given.size === 0) node.given = undefined;
  }
  /** Names go out with attributes. */
  given(node: Node, handle: DirectoryHandle): void {
    node.given ??= new Map();
    node.given.set(handle, this.clock.now());
  }
  /** Before a request for entries is answered. */
  before(node: Node, handle: DirectoryHandle): Promise<void> | undefined {
    const { epoch } = handle;
    const isGood = epoch === node.listingEpoch && this.table.lasting(node);
    return epoch === undefined || isGood ? undefined : this.table.kernel.tell(node.ino, 0, 0);
  }
  /** The kernel has had every entry. */
  ended(node: Node, handle: DirectoryHandle): void {
    const known = node.kernelListing;
    if (known === undefined || handle.epoch !== known.epoch || !handle.hadAttributes) return;
    known.hasAttributes = true;
  }
}
