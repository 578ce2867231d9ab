/**
 * What `dss fsck` holds to be true of metadata, and how what is wrong is put right.
 * Pure: every function looks at one moment of the metadata, and may raise PageFault.
 */
import { assert } from "../../cluster/base/assert.js";
import type { Ino } from "../../cluster/base/ids.js";
import { ROOT_INO } from "../proto.js";
import { type FsckKind } from "../proto-fsck.js";
import type { Access } from "./capability.js";
import type { Delta } from "./delta.js";
import type { Dentry } from "./dentry.js";
import { Draft } from "./draft.js";
import { S_IFDIR, S_IFMT, isDirectory, type InodeRecord } from "./inode.js";
import { faultTogether, type Metadata } from "./metadata.js";
import { INODES_PER_PAGE, inodePageKey, purgePageNumber, type PurgeEntry } from "./page.js";

export const LOST_AND_FOUND = Buffer.from("lost+found");

/** Names that lead to each inode of a window of numbers; 65,535 stands for "or more". */
export class LinkCounts {
  private readonly counts: Uint16Array;

  constructor(
    readonly first: Ino,
    readonly size: number,
  ) {
    this.counts = new Uint16Array(size);
  }
  has(ino: Ino): boolean {
    return ino >= this.first && ino < this.first + this.size;
  }
  add(ino: Ino): void {
    if (this.has(ino) && this.counts[ino - this.first]! < 65_535) this.counts[ino - this.first]!++;
  }
  get(ino: Ino): number {
    return this.counts[ino - this.first]!;
  }
}

export interface FoundName {
  directory: Ino;
  entry: Dentry;
}

/** The inodes of these numbers at one moment; all their pages are asked for at once. */
export function readInodes(
  metadata: Metadata,
  inos: Iterable<Ino>,
): Map<Ino, InodeRecord | undefined> {
  const wanted = new Set(inos);
  faultTogether(metadata.cache, new Set([...wanted].map(inodePageKey)));
  return new Map([...wanted].map((ino) => [ino, metadata.inode(ino)]));
}

/** Names, of those just read, that are still there and lead nowhere or elsewhere than they say. */
export function badNames(
  metadata: Metadata,
  names: readonly FoundName[],
): { kind: FsckKind; name: FoundName }[] {
  const inodes = readInodes(
    metadata,
    names.map(({ entry }) => entry.ino),
  );
  const found: { kind: FsckKind; name: FoundName }[] = [];
  for (const name of names) {
    const { directory, entry } = name;
    const inode = inodes.get(entry.ino);
    let kind: FsckKind;
    if (inode === undefined) kind = "name-without-inode";
    else if ((inode.mode & S_IFMT) !== entry.type) kind = "wrong-type";
    else if (isDirectory(inode) && inode.parent !== directory) kind = "directory-parent";
    else continue;
    // It may have gone since it was read.
    if (metadata.dentry(directory, entry.name)?.ino === entry.ino) found.push({ kind, name });
  }
  return found;
}

/** What is wrong with an inode to which `names` names lead; undefined: nothing. */
export function badLinks(metadata: Metadata, ino: Ino, names: number): FsckKind | undefined {
  const inode = metadata.inode(ino);
  if (inode === undefined || ino === ROOT_INO) return undefined;
  if (names === 0 && inode.nlink === 0) {
    for (const session of metadata.sessions()) if (session.orphans.has(ino)) return undefined;
    return "unlinked-inode";
  }
  if (names === 0) return "inode-without-name";
  // A directory's count is that of its subdirectories; its names are judged one by one.
  return isDirectory(inode) || inode.nlink === names ? undefined : "link-count";
}

/** Directories that lead from this one back to it, or from which nothing leads to the root. */
export function cycleAbove(metadata: Metadata, directory: Ino): Ino[] {
  const seen: Ino[] = [];
  for (let at = directory; at !== ROOT_INO;) {
    const before = seen.indexOf(at);
    if (before >= 0) return seen.slice(before);
    seen.push(at);
    const inode = metadata.inode(at);
    // That is for others to tell: its name or its parent is wrong.
    if (inode === undefined || !isDirectory(inode)) return [];
    at = inode.parent;
  }
  return [];
}

/** Deletion of what is in use: it would destroy data. */
export function isPurgeInUse(metadata: Metadata, entry: PurgeEntry): boolean {
  if (entry.what !== "objects") return false;
  if (entry.ino === 0) {
    return [...metadata.volumes()].some(({ objectPrefix, shrinkTo }) => {
      const isShrinking = entry.shrinks && shrinkTo === entry.from;
      return objectPrefix === entry.prefix && !isShrinking;
    });
  }
  const inode = metadata.inode(entry.ino);
  return inode !== undefined && entry.truncateSeq > inode.truncateSeq;
}

// ---- Repairs: the record for the journal; empty: there is nothing to be done any more -----------

function changedDirectory(
  inode: InodeRecord,
  by: { size: number; nlink: number; timeNs: bigint },
): InodeRecord {
  const { timeNs } = by;
  const size = Math.max(0, inode.size + by.size);
  const nlink = Math.max(2, inode.nlink + by.nlink);
  return { ...inode, size, nlink, mtimeNs: timeNs, ctimeNs: timeNs };
}

/** Takes the name away, whatever it leads to. */
export function removeName(
  metadata: Metadata,
  access: Access,
  { directory, entry }: FoundName,
  timeNs: bigint,
): Delta[] {
  const parent = metadata.inode(directory);
  if (metadata.dentry(directory, entry.name)?.ino !== entry.ino || parent === undefined) return [];
  access.change(directory);
  const draft = new Draft(metadata);
  draft.unlink(directory, entry.name);
  const nlink = entry.type === S_IFDIR ? -1 : 0;
  draft.put(changedDirectory(parent, { size: -1, nlink, timeNs }));
  return draft.finish();
}

export function setType(metadata: Metadata, access: Access, name: FoundName): Delta[] {
  const { directory, entry } = name;
  const inode = metadata.inode(entry.ino);
  const present = metadata.dentry(directory, entry.name);
  if (inode === undefined || present?.ino !== entry.ino) return [];
  access.change(directory);
  const draft = new Draft(metadata);
  draft.add({ d: "dentryPut", directory, entry: { ...present, type: inode.mode & S_IFMT } });
  return draft.finish();
}

/** Sets single fields of an inode. */
export function setInode(
  metadata: Metadata,
  access: Access,
  ino: Ino,
  fields: Partial<Pick<InodeRecord, "nlink" | "size" | "parent" | "dataMax" | "recount">>,
): Delta[] {
  const inode = metadata.inode(ino);
  if (inode === undefined) return [];
  access.change(ino);
  const draft = new Draft(metadata);
  draft.put({ ...inode, ...fields });
  return draft.finish();
}

/** Sets where the names of a file with several are; one of these directories is its home. */
export function setPlaces(
  metadata: Metadata,
  access: Access,
  ino: Ino,
  places: ReadonlyMap<Ino, number>,
): Delta[] {
  const inode = metadata.inode(ino);
  const [first] = places.keys();
  if (inode === undefined || first === undefined) return [];
  access.change(ino);
  const draft = new Draft(metadata);
  draft.add({ d: "linkDrop", ino });
  for (const [directory, count] of places) draft.add({ d: "linkPut", ino, directory, count });
  draft.put({ ...inode, parent: places.has(inode.parent) ? inode.parent : first });
  return draft.finish();
}

/** Nobody has it any more: the inode goes, and its data to the purge queue. */
export function deleteInode(metadata: Metadata, access: Access, ino: Ino): Delta[] {
  const inode = metadata.inode(ino);
  if (inode === undefined) return [];
  access.change(ino);
  const draft = new Draft(metadata);
  draft.removeInode(inode, access.capabilities);
  return draft.finish();
}

/**
 * Gives the inode a name in /lost+found, which is made when it is missing. A directory of a cycle
 * loses the name that it has: `oldName`.
 */
export function rescue(
  metadata: Metadata,
  access: Access,
  { ino, oldName, timeNs }: { ino: Ino; oldName?: FoundName; timeNs: bigint },
): Delta[] {
  const inode = metadata.inode(ino);
  const root = metadata.inode(ROOT_INO);
  assert(root, "the root is there");
  if (inode === undefined) return [];
  const draft = new Draft(metadata);
  const folder = lostAndFound(metadata, draft, root, timeNs);
  const name = Buffer.from(`inode-${ino.toString(16)}`);
  if (folder === undefined || metadata.dentry(folder.ino, name) !== undefined) return [];
  for (const changed of [ROOT_INO, folder.ino, ino]) access.change(changed);
  const isFolder = isDirectory(inode);
  if (oldName !== undefined) {
    const { directory, entry } = oldName;
    const parent = metadata.inode(directory);
    if (metadata.dentry(directory, entry.name)?.ino !== ino || parent === undefined) return [];
    access.change(directory);
    draft.unlink(directory, entry.name);
    draft.put(changedDirectory(parent, { size: -1, nlink: isFolder ? -1 : 0, timeNs }));
  }
  draft.link(folder.ino, name, inode);
  draft.put(changedDirectory(folder, { size: 1, nlink: isFolder ? 1 : 0, timeNs }));
  const moved = draft.inode(ino)!;
  draft.put({
    ...moved,
    ctimeNs: timeNs,
    nlink: isFolder ? moved.nlink : 1,
    parent: folder.ino,
  });
  if (!isFolder && moved.nlink > 1) draft.add({ d: "linkDrop", ino });
  return draft.finish();
}

/** Undefined: something that is no directory has the name. */
function lostAndFound(
  metadata: Metadata,
  draft: Draft,
  root: InodeRecord,
  timeNs: bigint,
): InodeRecord | undefined {
  const known = metadata.dentry(ROOT_INO, LOST_AND_FOUND);
  if (known !== undefined) {
    const inode = metadata.inode(known.ino);
    return inode !== undefined && isDirectory(inode) ? inode : undefined;
  }
  // A page of its own, as sessions get whole pages.
  const ino = Math.ceil(draft.counter("nextIno") / INODES_PER_PAGE) * INODES_PER_PAGE;
  draft.setCounter("nextIno", ino + INODES_PER_PAGE);
  const times = { atimeNs: timeNs, mtimeNs: timeNs, ctimeNs: timeNs, btimeNs: timeNs };
  const owner = { uid: 0, gid: 0, rdev: 0, truncateSeq: 0, truncateSize: 0 };
  const rest = {
    allocated: 0,
    recount: false,
    xattrCount: 0,
    xattrBytes: 0,
    dataMax: 0,
    reservedTo: 0,
    size: 0,
    nlink: 2,
  };
  const mode = S_IFDIR | 0o700;
  const made = draft.createInode({ ino, mode, parent: ROOT_INO, ...times, ...owner, ...rest });
  draft.link(ROOT_INO, LOST_AND_FOUND, made);
  draft.put(changedDirectory(root, { size: 1, nlink: 1, timeNs }));
  return made;
}

/** Calls a deletion off. */
export function dropPurge(metadata: Metadata, id: number): Delta[] {
  if (metadata.purge(id) === undefined) return [];
  const page = purgePageNumber(id);
  const record: Delta[] = [{ d: "purgeRemove", id }];
  if (metadata.purgeNeighbours(id) === 1) record.push({ d: "purgePage", page, used: false });
  return record;
}

export function setInodeTotal(metadata: Metadata, value: number): Delta[] {
  const draft = new Draft(metadata);
  draft.setCounter("inodes", value);
  return draft.finish();
}
