/** What `dss fsck` reports (mds/fsck.ts). */
/** What `dss fsck` can find. */
export const FSCK_KINDS = [
  /** A name leads to an inode that does not exist. Repair: the name goes. */
  "name-without-inode",
  /** The type beside a name is not the inode's. Repair: it is set. */
  "wrong-type",
  /** A directory has a second name, or another parent than its name says. Repair: one of them. */
  "directory-parent",
  /** A directory counts other entries than it has. Repair: the count is set. */
  "directory-count",
  /** Repair: the link count is set to the number of names. */
  "link-count",
  /** A file is not at home in a directory in which it has a name. Repair: it is. */
  "file-home",
  /** The recursive totals of a directory are not those of what is below. Repair: they are set. */
  "directory-totals",
  /** A quota of what is no directory. Repair: it goes. */
  "quota-without-directory",
  /** Nothing leads to the inode. Repair: it gets a name in /lost+found. */
  "inode-without-name",
  /** Directories that are below themselves. Repair: one of them moves to /lost+found. */
  "cycle",
  /** The last name is gone and nobody has it open. Repair: it is deleted. */
  "unlinked-inode",
  /** The total of inodes is wrong. Repair: it is set. */
  "inode-total",
  /** Deletion is queued for data that is in use. Repair: it is called off. */
  "purge-in-use",
  /** A stored page cannot be read, or tells of journal batches that do not exist. No repair. */
  "page-damaged",
  /** A stored page is not what the leader wrote. Repair: it is written again. */
  "page-differs",
  /** A journal batch that is needed is missing or damaged. No repair. */
  "journal-damaged",
  /** An object of a file or volume that does not exist. Repair: it is removed. */
  "object-without-owner",
  /** An object beyond the end of its file or volume. No repair. */
  "object-beyond-end",
  /** The objects hold more than the file's size says. Repair: the size is raised. */
  "file-too-short",
  /** An object whose name is of no known form. No repair. */
  "object-unknown",
  /** A placement group could not be listed. */
  "not-checked",
] as const;
export type FsckKind = (typeof FSCK_KINDS)[number];
export interface FsckFinding {
  kind: FsckKind;
  /** For people: which inode, name, page or object. */
  what: string;
  repaired: boolean;
}
export interface FsckStatus {
  /** Differs for every run, of any leader. */
  run: string;
  state: "running" | "done" | "failed";
  phase: "journal" | "names" | "links" | "totals" | "purge queue" | "objects" | "done";
  repair: boolean;
  /** So far. */
  inodes: number;
  names: number;
  objects: number;
  pgs: number;
  pgsTotal: number;
  found: number;
  repaired: number;
  /** Those from the number asked for, some at a time; beyond a limit they are only counted. */
  findings: FsckFinding[];
  /** Why it failed. */
  error: string;
}
