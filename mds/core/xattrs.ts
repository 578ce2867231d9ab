/**
 * Extended attributes of inodes, and the access control lists among them: those also change the
 * mode, follow chmod and are inherited (acl.ts). Pure, as namespace.ts.
 */
import { DssError } from "../../cluster/base/errors.js";
import {
  ACL_ACCESS,
  ACL_DEFAULT,
  XATTR_NAME_MAX,
  XATTR_TOTAL_MAX,
  XATTR_VALUE_MAX,
  type Request,
} from "../proto.js";
import { chmodAcl, inheritAcl, modeOfAcl, modeUnderAcl, parseAcl } from "./acl.js";
import type { Access } from "./capability.js";
import { nameKey } from "./dentry.js";
import { Draft } from "./draft.js";
import { S_IFLNK, S_IFMT, S_ISGID, isDirectory, publicInode, type InodeRecord } from "./inode.js";
import type { Metadata } from "./metadata.js";
import { changing, emptyPlan, type Plan } from "./plan.js";

type Of<Op extends Request["op"]> = Extract<Request, { op: Op }>;

function inodeOf(metadata: Metadata, ino: number): InodeRecord {
  const inode = metadata.inode(ino);
  if (inode === undefined) throw new DssError("StaleHandle", `inode ${ino} does not exist`);
  return inode;
}
function valueOf(metadata: Metadata, inode: InodeRecord, name: string): Buffer | undefined {
  return inode.xattrCount === 0 ? undefined : metadata.xattrs(inode.ino).get(name);
}

export function getXattrs(metadata: Metadata, access: Access, { ino }: Of<"getxattrs">): Plan {
  access.see(ino);
  const inode = inodeOf(metadata, ino);
  const plan = emptyPlan();
  plan.answer = { inode: publicInode(inode), xattrs: [] };
  if (inode.xattrCount === 0) return plan;
  for (const [name, value] of metadata.xattrs(ino)) {
    plan.answer.xattrs!.push({ name: Buffer.from(name, "latin1"), value });
  }
  return plan;
}

export function setXattr(metadata: Metadata, access: Access, request: Of<"setxattr">): Plan {
  const { ino, name, value, actor } = request;
  if (name.length === 0 || name.length > XATTR_NAME_MAX) {
    throw new DssError("RangeTooLarge", `attribute name of ${name.length} bytes`);
  }
  if (value.length > XATTR_VALUE_MAX) {
    throw new DssError("TooBig", `attribute of ${value.length} bytes`);
  }
  access.see(ino);
  const inode = inodeOf(metadata, ino);
  const known = metadata.xattrs(ino).get(nameKey(name));
  if (known !== undefined && request.create) {
    throw new DssError("Exists", "the attribute exists");
  }
  if (known === undefined && request.replace) {
    throw new DssError("NoAttribute", "there is no such attribute");
  }
  const under = withAcl(inode, request);
  access.change(ino);
  const draft = new Draft(metadata);
  const changed = under.keep
    ? put(draft, under.inode, { name, value, known })
    : drop(draft, under.inode, { name, known });
  draft.put({ ...changed, ctimeNs: actor.timeNs });
  return changing(draft, { answer: { inode: publicInode(draft.inode(ino)!) }, inodes: [ino] });
}

export function removeXattr(metadata: Metadata, access: Access, request: Of<"removexattr">): Plan {
  const { ino, name, actor } = request;
  access.see(ino);
  const inode = inodeOf(metadata, ino);
  const key = nameKey(name);
  const known = valueOf(metadata, inode, key);
  if (known === undefined) {
    // Every inode has an access control list: without one that is its mode.
    const isList = key === ACL_ACCESS || key === ACL_DEFAULT;
    if (!isList) throw new DssError("NoAttribute", "there is no such attribute");
    return { ...emptyPlan(), answer: { inode: publicInode(inode) } };
  }
  access.change(ino);
  const draft = new Draft(metadata);
  const changed = draft.put({ ...drop(draft, inode, { name, known }), ctimeNs: actor.timeNs });
  return changing(draft, { answer: { inode: publicInode(changed) }, inodes: [ino] });
}

function put(
  draft: Draft,
  inode: InodeRecord,
  { name, value, known }: { name: Buffer; value: Buffer; known: Buffer | undefined },
): InodeRecord {
  const before = known === undefined ? 0 : name.length + known.length;
  const xattrBytes = inode.xattrBytes - before + name.length + value.length;
  if (xattrBytes > XATTR_TOTAL_MAX) {
    throw new DssError("NoSpace", "the inode's attributes are too large together");
  }
  draft.add({ d: "xattrPut", ino: inode.ino, name, value });
  return { ...inode, xattrBytes, xattrCount: inode.xattrCount + (known === undefined ? 1 : 0) };
}
function drop(
  draft: Draft,
  inode: InodeRecord,
  { name, known }: { name: Buffer; known: Buffer | undefined },
): InodeRecord {
  if (known === undefined) return inode;
  draft.add({ d: "xattrRemove", ino: inode.ino, name });
  const xattrBytes = inode.xattrBytes - name.length - known.length;
  return { ...inode, xattrBytes, xattrCount: inode.xattrCount - 1 };
}

// ---- Access control lists ----------------------------------------------------------------------

/** The inode with the mode that the attribute brings; `keep`: it says more than the mode does. */
function withAcl(
  inode: InodeRecord,
  { name, value, clearSgid }: Of<"setxattr">,
): { inode: InodeRecord; keep: boolean } {
  const key = nameKey(name);
  if (key !== ACL_ACCESS && key !== ACL_DEFAULT) return { inode, keep: true };
  if ((inode.mode & S_IFMT) === S_IFLNK) {
    throw new DssError("NotSupported", "symbolic links have no access control list");
  }
  const entries = parseAcl(value);
  if (key === ACL_DEFAULT) {
    if (!isDirectory(inode)) {
      throw new DssError("AccessDenied", "only directories have a default access control list");
    }
    return { inode, keep: true };
  }
  const { bits, minimal } = modeOfAcl(entries);
  let mode = modeUnderAcl(inode.mode, bits);
  if (clearSgid === true) mode &= ~S_ISGID;
  return { inode: { ...inode, mode }, keep: !minimal };
}

/** The mode has changed: so has the access list. */
export function aclAfterChmod(metadata: Metadata, draft: Draft, changed: InodeRecord): void {
  const value = valueOf(metadata, changed, ACL_ACCESS);
  if (value === undefined) return;
  const name = Buffer.from(ACL_ACCESS);
  draft.add({ d: "xattrPut", ino: changed.ino, name, value: chmodAcl(value, changed.mode) });
}

/** What a new inode gets from the default list of its directory. */
export interface NewAcls {
  mode: number;
  xattrs: { name: Buffer; value: Buffer }[];
}
/** `unmasked`: permission bits as asked for, before the umask. */
export function aclsOfNew(
  metadata: Metadata,
  directory: InodeRecord,
  { mode, unmasked }: { mode: number; unmasked?: number },
): NewAcls {
  const type = mode & S_IFMT;
  const value = type === S_IFLNK ? undefined : valueOf(metadata, directory, ACL_DEFAULT);
  if (value === undefined) return { mode, xattrs: [] };
  const asked = unmasked === undefined ? mode : type | (unmasked & ~S_IFMT);
  const { mode: inherited, access } = inheritAcl(value, asked);
  const xattrs: NewAcls["xattrs"] = [];
  if (access !== undefined) xattrs.push({ name: Buffer.from(ACL_ACCESS), value: access });
  if (isDirectory({ ...directory, mode })) xattrs.push({ name: Buffer.from(ACL_DEFAULT), value });
  return { mode: inherited, xattrs };
}
