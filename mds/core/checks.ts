/** What POSIX asks of names, links and sticky directories before they change. Pure. */
import { DssError } from "../../cluster/base/errors.js";
import { LINK_MAX, NAME_MAX, type Actor } from "../proto.js";
import { S_ISVTX, type InodeRecord } from "./inode.js";

export function checkName(name: Buffer): void {
  if (name.length > NAME_MAX) throw new DssError("NameTooLong", `name of ${name.length} bytes`);
  const dots = name.length <= 2 && name.every((byte) => byte === 0x2e);
  if (dots || name.includes(0x2f) || name.includes(0)) {
    throw new DssError("InvalidArgument", "not a name: empty, a dot, two dots, or with / or NUL");
  }
}
export function exists(name: Buffer): DssError {
  return new DssError("Exists", `${JSON.stringify(name.toString("utf8"))} exists`);
}
export function checkLinks(inode: InodeRecord): void {
  if (inode.nlink >= LINK_MAX) throw new DssError("TooManyLinks", `inode ${inode.ino}`);
}
export function checkSticky(directory: InodeRecord, inode: InodeRecord, actor: Actor): void {
  if ((directory.mode & S_ISVTX) === 0 || actor.uid === 0) return;
  if (actor.uid === inode.uid || actor.uid === directory.uid) return;
  throw new DssError("NotPermitted", "the directory is sticky and the file belongs to another");
}
/** The directory after names came or went. */
export function touched(
  directory: InodeRecord,
  actor: Actor,
  { size = 0, nlink = 0 }: { size?: number; nlink?: number },
): InodeRecord {
  return {
    ...directory,
    size: directory.size + size,
    nlink: directory.nlink + nlink,
    mtimeNs: actor.timeNs,
    ctimeNs: actor.timeNs,
  };
}
