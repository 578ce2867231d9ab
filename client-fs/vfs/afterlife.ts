/**
 * Inodes without a name that programs here may still have: a working directory, an open directory,
 * and named pipes, sockets and devices, which the kernel opens and closes without a word to us. The
 * leader keeps regular files only. Of the others it takes no more than their attributes, and those
 * are this mount's own, since numbers are never used again and nobody else can come to them.
 */
import { isDssError } from "../../cluster/base/errors.js";
import type { Request } from "../../mds/proto.js";
import { type Node, S_ISGID, S_ISUID, S_IXGRP } from "./node.js";

const PERMISSION_BITS = 0o7777;

/** `error` says no more than that: the node goes on as what is known of it, without links. */
export function outlives(node: Node, error: unknown): boolean {
  const { inode } = node;
  if (!isDssError(error, "StaleHandle") || inode === undefined || node.isRegular) return false;
  if (node.lookups === 0 && node.opens === 0) return false;
  if (inode.nlink > 0) node.inode = { ...inode, nlink: 0 };
  return true;
}

/** A change of its attributes. */
export function alter(node: Node, request: Extract<Request, { op: "setattr" }>): void {
  const inode = node.inode!;
  const { uid, gid, atimeNs, mtimeNs, actor } = request;
  let { mode } = inode;
  if ((uid !== undefined || gid !== undefined || request.clearSuid === true) && !node.isDirectory) {
    mode &= ~S_ISUID;
    if ((mode & S_IXGRP) !== 0) mode &= ~S_ISGID;
  }
  if (request.mode !== undefined) mode = (mode & ~PERMISSION_BITS) | request.mode;
  node.inode = {
    ...inode,
    mode,
    uid: uid ?? inode.uid,
    gid: gid ?? inode.gid,
    atimeNs: atimeNs ?? inode.atimeNs,
    mtimeNs: mtimeNs ?? inode.mtimeNs,
    ctimeNs: actor.timeNs,
  };
}
