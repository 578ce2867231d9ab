/**
 * What `dss fsck` holds to be true of objects: they belong to a file or volume that exists, and are
 * within it. One moment of the metadata; may raise PageFault.
 */
import type { Ino } from "../cluster/base/ids.js";
import { fileSizeProvedBy, objectCount } from "../osd/client/striper.js";
import type { CapabilityTable } from "./core/capability.js";
import { dataBound } from "./core/draft.js";
import { readInodes } from "./core/fsck.js";
import type { InodeRecord } from "./core/inode.js";
import type { Metadata } from "./core/metadata.js";
import type { VolumeRecord } from "./core/page.js";
import type { FsckKind } from "./proto-fsck.js";

export interface ListedObject {
  pool: number;
  object: string;
  size: number;
}
export interface BadObject extends ListedObject {
  kind: FsckKind;
  /** file-too-short: the file, and the size that the object proves. */
  ino?: Ino;
  index?: number;
}

/** Of a volume that was cloned with its id; with the snapshot that it was at. */
const OBJECT_NAME = /^(v?)([0-9a-f]{1,13})\.([0-9a-f]{1,13})(\$[0-9a-f]{8,13})?(#[0-9a-f]{8})?$/;

/** Objects that belong to nothing, or that are not where their owner's data ends. */
export function badObjects(
  metadata: Metadata,
  capabilities: CapabilityTable,
  listed: readonly ListedObject[],
): BadObject[] {
  const purgedInos = new Set<Ino>();
  const purgedPrefixes = new Set<string>();
  for (const { what, ino, prefix } of metadata.purges()) {
    if (what === "directory" || what === "rollback" || what === "flatten") continue;
    purgedPrefixes.add(prefix);
    purgedInos.add(ino);
  }
  const parsed = listed.map((each) => ({ each, parts: OBJECT_NAME.exec(each.object) }));
  const inos = parsed.flatMap(({ parts }) =>
    parts?.[1] === "" ? [Number.parseInt(parts[2]!, 16)] : [],
  );
  const inodes = readInodes(metadata, inos);
  const volumes = new Map([...metadata.volumes()].map((each) => [each.objectPrefix, each]));
  const found: BadObject[] = [];
  for (const { each, parts } of parsed) {
    if (parts === null) {
      found.push({ ...each, kind: "object-unknown" });
      continue;
    }
    const index = Number.parseInt(parts[3]!, 16);
    if (parts[1] === "v") {
      const prefix = `v${parts[2]!}${parts[4] ?? ""}`;
      const volume = volumes.get(prefix);
      if (purgedPrefixes.has(prefix)) continue; // The rest of it goes soon.
      if (volume === undefined) found.push({ ...each, kind: "object-without-owner" });
      else if (parts[5] !== undefined) {
        const isNeeded = isCloneNeeded(volume, Number.parseInt(parts[5].slice(1), 16));
        if (!isNeeded) found.push({ ...each, kind: "object-without-owner" });
      } else if (each.size > 0 && index >= objectCount(volume.layout, volume.size)) {
        // An empty one says that there is nothing, to snapshots or instead of a parent's.
        found.push({ ...each, kind: "object-beyond-end" });
      }
      continue;
    }
    const ino = Number.parseInt(parts[2]!, 16);
    if (purgedInos.has(ino)) continue;
    if (inodes.get(ino) === undefined && mayBeMade(metadata, ino)) continue;
    const kind = badFileObject(metadata, capabilities, inodes.get(ino), { index, ...each });
    if (kind !== undefined) found.push({ ...each, kind, ino, index });
  }
  return found;
}

/**
 * A mount makes files before it tells the leader, and may have written to one whose creation is
 * still on its way. What its session leaves behind is found when that has ended.
 */
function mayBeMade(metadata: Metadata, ino: Ino): boolean {
  for (const { ranges } of metadata.sessions()) {
    for (const { first, count } of ranges) if (ino >= first && ino < first + count) return true;
  }
  return false;
}
/** A clone is for snapshots up to its id, of which one at least exists. */
function isCloneNeeded({ snapshots }: VolumeRecord, clone: number): boolean {
  return snapshots.some(({ id }) => id <= clone);
}

function badFileObject(
  metadata: Metadata,
  capabilities: CapabilityTable,
  inode: InodeRecord | undefined,
  { index, pool, size }: { index: number; pool: number; size: number },
): FsckKind | undefined {
  if (inode === undefined) return "object-without-owner";
  const { layout, ino } = inode;
  if (layout?.pool !== pool) return "object-beyond-end";
  // Whoever writes it knows better how long it is.
  if (capabilities.exclusiveHolder(ino) !== undefined) return undefined;
  const bound = Math.max(dataBound(metadata, capabilities, inode), inode.size);
  if (index >= objectCount(layout, bound)) return "object-beyond-end";
  return fileSizeProvedBy(layout, index, size) > inode.size ? "file-too-short" : undefined;
}
