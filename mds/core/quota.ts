/**
 * Quotas of directories: limits of what may be below one, held against its totals. Pure.
 *
 * A directory with a quota and everything below it is its realm; realms may lie in each other, and
 * every one of them counts. Numbers of inodes are exact: whatever makes one more or moves some in
 * is planned by the leader, and refused there. Bytes that a mount has buffered are seen when they
 * are told; until then the leader knows how far it let the writer go. Where there is much room, a
 * grant that came with opening counts nothing; where there is little, there is none, and what is
 * asked for is reserved until the writer tells. What gets less, or was promised before, is never
 * refused.
 */
import { DssError } from "../../cluster/base/errors.js";
import type { Ino } from "../../cluster/base/ids.js";
import type { Access, CapabilityTable } from "./capability.js";
import type { Reader, Writer } from "./binary.js";
import { isDirectory, type InodeRecord } from "./inode.js";
import type { Metadata } from "./metadata.js";
import { PageFault } from "./page-cache.js";
import { addTotals, type Totals } from "./totals.js";
import type { TotalsAdd } from "./totals-changes.js";

/** 0: no limit of this kind. */
export interface Quota {
  /** Sizes of files and symbolic links. */
  maxBytes: number;
  /** Files and directories, the one with the quota not counted. */
  maxInodes: number;
}
export const NO_QUOTA: Readonly<Quota> = Object.freeze({ maxBytes: 0, maxInodes: 0 });
/** All are in one page. */
export const QUOTAS_MAX = 10_000;
/** How far a writer in a realm may go without asking. */
export const QUOTA_AHEAD = 16 * 2 ** 20;
/** With less room than this nobody writes anything more without having asked for it. */
export const QUOTA_NEAR = 16 * QUOTA_AHEAD;
/** Then what is given beyond what was asked for is a sixteenth of what is left, at most this. */
export const QUOTA_STEP = 2 ** 20;

export function writeQuota(out: Writer, { maxBytes, maxInodes }: Quota): void {
  out.uint(maxBytes);
  out.uint(maxInodes);
}
export function readQuota(from: Reader): Quota {
  return { maxBytes: from.uint(), maxInodes: from.uint() };
}

/** Directories with a quota from this one up. */
function realmsOf(metadata: Metadata, directory: Ino): Ino[] {
  const { quotas } = metadata;
  if (quotas.size === 0) return [];
  return metadata.chain(directory).inos.filter((ino) => quotas.has(ino));
}

/** QuotaExceeded when these changes make more of anything than a realm has left. */
export function checkQuotas(metadata: Metadata, changes: readonly TotalsAdd[]): void {
  const { quotas } = metadata;
  if (quotas.size === 0) return;
  const sums = new Map<Ino, Totals>();
  for (const { chain, by } of changes) {
    for (const ino of chain.inos) {
      if (!quotas.has(ino)) continue;
      const sum = sums.get(ino);
      if (sum === undefined) sums.set(ino, { ...by });
      else addTotals(sum, by);
    }
  }
  for (const [ino, { files, directories, bytes, reserved }] of sums) {
    const { maxBytes, maxInodes } = quotas.get(ino)!;
    const now = metadata.totals(ino);
    const inodes = files + directories;
    if (maxInodes > 0 && inodes > 0 && now.files + now.directories + inodes > maxInodes) {
      throw exceeded(ino, `${maxInodes} inodes`);
    }
    const then = now.bytes + now.reserved + bytes + reserved;
    if (maxBytes > 0 && bytes > 0n && then > BigInt(maxBytes)) {
      throw exceeded(ino, `${maxBytes} bytes`);
    }
  }
}
function exceeded(ino: Ino, what: string): DssError {
  return new DssError("QuotaExceeded", `the quota of directory ${ino} is ${what}`);
}

/**
 * Bytes that may come to this directory before a quota is reached, and `own` that are reserved
 * already; Infinity without one.
 */
function roomIn(metadata: Metadata, directory: Ino, own: number): number {
  let room = Infinity;
  for (const ino of realmsOf(metadata, directory)) {
    const { maxBytes } = metadata.quotas.get(ino)!;
    if (maxBytes === 0) continue;
    const { bytes, reserved } = metadata.totals(ino);
    const left = BigInt(maxBytes) - bytes - reserved + BigInt(own);
    room = Math.min(room, left > 0n ? Number(left) : 0);
  }
  return room;
}
/**
 * Up to where a writer may go who has not asked for more, by the quotas above the file's directory;
 * Infinity: there is none. `size`: as the totals have it.
 */
export function firstGrant(
  metadata: Metadata,
  { directory, size }: { directory: Ino; size: number },
): number {
  const room = directory === 0 ? Infinity : roomIn(metadata, directory, 0);
  if (room === Infinity) return Infinity;
  return room < QUOTA_NEAR ? size : size + QUOTA_AHEAD;
}
/**
 * How far a grant of `wanted` bytes may reach, to take a write that ends at `size`; `reserves`:
 * what is beyond the known size is counted until the writer says how far it came.
 */
export function extendedGrant(
  metadata: Metadata,
  access: Access,
  inode: InodeRecord,
  { size, wanted }: { size: number; wanted: number },
): { maxSize: number; reserves: boolean } {
  const reserved = Math.max(0, inode.reservedTo - inode.size);
  const room = inode.parent === 0 ? Infinity : roomIn(metadata, inode.parent, reserved);
  if (room === Infinity) return { maxSize: wanted, reserves: false };
  const most = inode.size + room;
  if (size > most && !access.answered) {
    throw new DssError("QuotaExceeded", `a quota lets inode ${inode.ino} have ${most} bytes`);
  }
  const left = Math.max(0, most - size);
  const ahead = left < QUOTA_NEAR ? Math.floor(Math.min(left / 16, QUOTA_STEP)) : QUOTA_AHEAD;
  return { maxSize: Math.max(size, Math.min(wanted, size + ahead)), reserves: true };
}

/**
 * Is this a directory of a realm? What changes there is the leader's alone to decide, so no mount
 * may have it for itself. Never faults: what is not in memory may be one.
 */
export function isLedOnly(metadata: Metadata, ino: Ino): boolean {
  if (metadata.quotas.size === 0) return false;
  return orTrue(() => {
    const inode = metadata.inode(ino);
    return inode === undefined || (isDirectory(inode) && realmsOf(metadata, ino).length > 0);
  });
}

/**
 * What sessions hold below a directory that comes into a realm, and must not have there:
 * directories for themselves, files with a grant to write of before. Others' is called back first;
 * returned is what `access.session` holds, which gets its answer and is asked afterwards.
 */
export function lowerBelow(metadata: Metadata, access: Access, top: Ino): Ino[] {
  const own: Ino[] = [];
  const wanted: Ino[] = [];
  for (const [ino, session] of access.capabilities.atLeastSole()) {
    const isBelow = orTrue(() => {
      const inode = metadata.inode(ino);
      if (inode === undefined) return true;
      if (!isDirectory(inode) && !isExclusive(access.capabilities, ino)) return false;
      const above = isDirectory(inode) ? ino : inode.parent;
      return above !== 0 && metadata.chain(above).inos.includes(top);
    });
    if (!isBelow) continue;
    if (session === access.session) own.push(ino);
    else wanted.push(ino);
  }
  for (const ino of wanted) access.lower(ino, "shared");
  return own;
}
function isExclusive(capabilities: CapabilityTable, ino: Ino): boolean {
  return capabilities.exclusiveHolder(ino) !== undefined;
}

/** Does this move bring something into a realm that it was not in? */
export function entersRealm(
  metadata: Metadata,
  moved: InodeRecord,
  { from, to }: { from: Ino; to: Ino },
): boolean {
  if (metadata.quotas.size === 0 || from === to || moved.nlink === 0) return false;
  const before = new Set(realmsOf(metadata, from));
  return realmsOf(metadata, to).some((ino) => !before.has(ino));
}

function orTrue(look: () => boolean): boolean {
  try {
    return look();
  } catch (error) {
    if (error instanceof PageFault) return true;
    throw error;
  }
}
