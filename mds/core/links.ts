/**
 * Where the names of files are. A file is at home in one directory (`InodeRecord.parent`), which
 * counts it (totals.ts). Of one with several names a page of its own says how many there are in
 * which directory, so that it has another home when the last name in its present one goes. Pure.
 */
import type { Ino } from "../../cluster/base/ids.js";
import type { Draft } from "./draft.js";
import type { InodeRecord } from "./inode.js";
import type { Metadata } from "./metadata.js";

/** Names of a file, by directory. */
export type NamePlaces = ReadonlyMap<Ino, number>;

export function namePlaces(metadata: Metadata, inode: InodeRecord): NamePlaces {
  if (inode.nlink === 0 || inode.parent === 0) return new Map();
  return inode.nlink === 1 ? new Map([[inode.parent, 1]]) : metadata.links(inode.ino);
}

/** The file with one more name, in `directory`. */
export function withName(
  metadata: Metadata,
  draft: Draft,
  inode: InodeRecord,
  directory: Ino,
): InodeRecord {
  const nlink = inode.nlink + 1;
  if (inode.nlink === 0) return { ...inode, nlink, parent: directory };
  const places = namePlaces(metadata, inode);
  if (inode.nlink === 1 && inode.parent !== directory) {
    draft.add({ d: "linkPut", ino: inode.ino, directory: inode.parent, count: 1 });
  }
  const count = (places.get(directory) ?? 0) + 1;
  draft.add({ d: "linkPut", ino: inode.ino, directory, count });
  return { ...inode, nlink };
}

/** The file with one name less, in `directory`. */
export function withoutName(
  metadata: Metadata,
  draft: Draft,
  inode: InodeRecord,
  directory: Ino,
): InodeRecord {
  const nlink = inode.nlink - 1;
  if (nlink <= 0) return { ...inode, nlink, parent: 0 };
  const places = new Map(namePlaces(metadata, inode));
  const count = (places.get(directory) ?? 1) - 1;
  if (count > 0) places.set(directory, count);
  else places.delete(directory);
  const parent = homeAmong(places, inode.parent);
  if (nlink === 1) draft.add({ d: "linkDrop", ino: inode.ino });
  else draft.add({ d: "linkPut", ino: inode.ino, directory, count });
  return { ...inode, nlink, parent };
}

/** The file after one of its names went from one directory to another. */
export function withNameMoved(
  metadata: Metadata,
  draft: Draft,
  inode: InodeRecord,
  { from, to }: { from: Ino; to: Ino },
): InodeRecord {
  if (from === to) return inode;
  if (inode.nlink <= 1) return { ...inode, parent: to };
  const places = new Map(namePlaces(metadata, inode));
  const left = (places.get(from) ?? 1) - 1;
  const count = (places.get(to) ?? 0) + 1;
  places.set(to, count);
  if (left > 0) places.set(from, left);
  else places.delete(from);
  draft.add({ d: "linkPut", ino: inode.ino, directory: from, count: left });
  draft.add({ d: "linkPut", ino: inode.ino, directory: to, count });
  // The moved name is at hand: it is the likeliest to stay.
  return { ...inode, parent: places.has(inode.parent) ? inode.parent : to };
}

/** The present home, as long as there is a name; else any other. */
function homeAmong(places: NamePlaces, home: Ino): Ino {
  if (places.has(home)) return home;
  const [first] = places.keys();
  return first ?? home; // None is damage: fsck finds it.
}
