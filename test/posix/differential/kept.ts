/** Sequences that once showed a difference, or that are worth having in every run. */
import { constants } from "node:fs";
import { BEGINNING, type Operation } from "./operations.js";

const { O_RDWR, O_CREAT } = constants;

/** A list with an entry for user 1001: owner rwx, user rw-, group r-x, mask rwx, others ---. */
const LIST =
  "0200000001000700ffffffff02000600e903000004000500ffffffff10000700ffffffff20000000ffffffff";
const root = { uid_: 0 } as const;

export const KEPT: Readonly<Record<string, readonly Operation[]>> = {
  "fallocate by an unprivileged user takes the set-id bits away": [
    ...BEGINNING,
    ...[0, 1, 3, 16].flatMap((how) => [
      { ...root, op: "open", via: 0, slot: 0, path: "d/a", flags: O_RDWR | O_CREAT, mode: 0o666 },
      { ...root, op: "pwrite", via: 0, slot: 0, at: 0, length: 20_000, fill: 1 },
      { ...root, op: "fchmod", via: 0, slot: 0, mode: 0o6775 },
      { ...root, op: "fallocate", via: 0, slot: 0, at: 5_000, length: 5_000, how },
      { ...root, op: "stat", via: 1, path: "d/a" },
      { uid_: 1000, op: "fallocate", via: 0, slot: 0, at: 5_000, length: 5_000, how },
      { ...root, op: "stat", via: 1, path: "d/a" },
    ]),
  ],
  "a file without a name is written by one mount and read by the other": [
    ...BEGINNING,
    { ...root, op: "tmpfile", via: 0, slot: 0, path: "d", flags: O_RDWR, mode: 0o666 },
    { ...root, op: "pwrite", via: 0, slot: 0, at: 100, length: 9_000, fill: 3 },
    { ...root, op: "fstat", via: 0, slot: 0 },
    { ...root, op: "linkfd", via: 0, slot: 0, path: "d/a" },
    { ...root, op: "stat", via: 1, path: "d/a" },
    { ...root, op: "open", via: 1, slot: 1, path: "d/a", flags: O_RDWR, mode: 0 },
    { ...root, op: "pread", via: 1, slot: 1, at: 0, length: 20_000 },
    { ...root, op: "unlink", via: 1, path: "d/a" },
    { ...root, op: "pread", via: 0, slot: 0, at: 50, length: 20_000 },
    { ...root, op: "linkfd", via: 0, slot: 0, path: "d/b" },
  ],
  "fallocate changes the time of modification also where it changes nothing": [
    ...BEGINNING,
    { ...root, op: "tmpfile", via: 0, slot: 1, path: "", flags: O_RDWR, mode: 0o644 },
    { ...root, op: "linkfd", via: 0, slot: 1, path: "d/a" },
    ...[1, 0].flatMap((how) => [
      { ...root, op: "ftruncate", via: 0, slot: 1, size: 30_000 },
      { ...root, op: "utime", via: 0, path: "d/a", atime: 914932251, mtime: 576274555 },
      { ...root, op: "fallocate", via: 1, slot: 1, at: 20_480, length: 146, how },
      { ...root, op: "fstat", via: 1, slot: 1 },
    ]),
  ],
  "a copy takes the set-id bits away, also of a hole": [
    ...BEGINNING,
    { ...root, op: "open", via: 0, slot: 0, path: "d/a", flags: O_RDWR | O_CREAT, mode: 0o666 },
    { ...root, op: "ftruncate", via: 0, slot: 0, size: 8_768 },
    { ...root, op: "open", via: 0, slot: 1, path: "d/b", flags: O_RDWR | O_CREAT, mode: 0o666 },
    { ...root, op: "pwrite", via: 0, slot: 1, at: 0, length: 60_000, fill: 1 },
    { ...root, op: "fchmod", via: 0, slot: 1, mode: 0o6755 },
    { uid_: 1001, op: "copy", via: 0, slot: 0, target: 1, at: 4_675, length: 199, to: 50_688 },
    { ...root, op: "fstat", via: 0, slot: 1 },
  ],
  "blocks that a truncation cut before they were written back are not counted": [
    ...BEGINNING,
    { ...root, op: "open", via: 0, slot: 3, path: "d/b", flags: O_RDWR | O_CREAT, mode: 0o666 },
    { ...root, op: "pwrite", via: 0, slot: 3, at: 4_194_217, length: 22, fill: 41_566 },
    { ...root, op: "ftruncate", via: 0, slot: 3, size: 4_192_447 },
  ],
  "trusted attributes are listed to the superuser only": [
    ...BEGINNING,
    { ...root, op: "setxattr", via: 0, path: "d", name: "trusted.c", value: "00ff", flags: 0 },
    { uid_: 1000, op: "listxattr", via: 1, path: "d", name: "" },
    { ...root, op: "listxattr", via: 1, path: "d", name: "" },
  ],
  "a named pipe that is open outlives its name, whichever mount takes it": [
    ...BEGINNING,
    ...[0, 1].flatMap((via) => [
      { ...root, op: "mknod", via: 0, path: "d/p", mode: 0o010644 },
      { ...root, op: "open", via: 0, slot: 0, path: "d/p", flags: O_RDWR, mode: 0 },
      { ...root, op: "unlink", via, path: "d/p" },
      { ...root, op: "fstat", via: 0, slot: 0 },
      { ...root, op: "seek", via: 0, slot: 0, at: 100, whence: 4 },
      { ...root, op: "fchmod", via: 0, slot: 0, mode: 0o640 },
      { ...root, op: "fstat", via: 0, slot: 0 },
      { ...root, op: "stat", via: 0, path: "d/p" },
    ]),
  ],
  "an access control list decides, follows chmod and is inherited": [
    ...BEGINNING,
    { ...root, op: "mkdir", via: 0, path: "d/e", mode: 0o770 },
    ...(["system.posix_acl_default", "system.posix_acl_access"] as const).map((name) => ({
      ...{ ...root, op: "setxattr", via: 0, path: "d/e", name, value: LIST, flags: 0 },
    })),
    { op: "access", via: 1, uid_: 1001, path: "d/e", mode: 6 },
    { op: "access", via: 1, uid_: 1001, path: "d/e", mode: 1 },
    { op: "access", via: 1, uid_: 1000, path: "d/e", mode: 4 },
    { ...root, op: "open", via: 1, slot: 0, path: "d/e/a", flags: O_RDWR | O_CREAT, mode: 0o666 },
    { ...root, op: "mkdir", via: 0, path: "d/e/b", mode: 0o777 },
    { ...root, op: "chmod", via: 1, path: "d/e/b", mode: 0o705 },
    { ...root, op: "getxattr", via: 0, path: "d/e/b", name: "system.posix_acl_access" },
    { op: "access", via: 0, uid_: 1001, path: "d/e/b", mode: 4 },
    { ...root, op: "chmod", via: 1, path: "d/e", mode: 0o700 },
    { op: "access", via: 0, uid_: 1001, path: "d/e", mode: 4 },
  ],
};
