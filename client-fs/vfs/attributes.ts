/** What stat(2) shows of an inode. Pure. */
import type { Inode } from "../../mds/proto.js";
import type { Attributes } from "../file-system.js";
import { S_IFMT, S_IFREG } from "./node.js";

const BLOCK = 4096;
const BLKSIZE = 128 * 1024;

/**
 * 512-byte units, whole blocks of the chunk store. Holes are not subtracted: that would take a
 * question to every OSD. Only regular files have bytes of their own.
 */
function blocksOf(inode: Inode): number {
  const isRegular = (inode.mode & S_IFMT) === S_IFREG;
  return isRegular ? Math.ceil(inode.size / BLOCK) * (BLOCK / 512) : 0;
}

export function attributesOf(inode: Inode): Attributes {
  return {
    ino: inode.ino,
    mode: inode.mode,
    nlink: inode.nlink,
    uid: inode.uid,
    gid: inode.gid,
    rdev: inode.rdev,
    size: inode.size,
    blocks: blocksOf(inode),
    blksize: BLKSIZE,
    atimeNs: inode.atimeNs,
    mtimeNs: inode.mtimeNs,
    ctimeNs: inode.ctimeNs,
    btimeNs: inode.btimeNs,
  };
}
