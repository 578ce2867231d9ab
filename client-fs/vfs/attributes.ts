/** What stat(2) shows of an inode. Pure. */
import type { Attributes } from "../file-system.js";
import type { Node } from "./node.js";

const BLKSIZE = 128 * 1024;

export function attributesOf(
  node: Pick<Node, "inode" | "space">,
  owner: { uid?: number; gid?: number } = {},
): Attributes {
  const inode = node.inode!;
  return {
    ino: inode.ino,
    mode: inode.mode,
    nlink: inode.nlink,
    uid: owner.uid ?? inode.uid,
    gid: owner.gid ?? inode.gid,
    rdev: inode.rdev,
    size: inode.size,
    // 512-byte units, whole blocks of the chunk store.
    blocks: (node.space ?? inode).allocated / 512,
    blksize: BLKSIZE,
    atimeNs: inode.atimeNs,
    mtimeNs: inode.mtimeNs,
    ctimeNs: inode.ctimeNs,
    btimeNs: inode.btimeNs,
  };
}
