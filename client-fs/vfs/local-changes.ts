/**
 * Changes that this mount makes by itself and tells the leader afterwards (design §6, unsafe
 * changes): creations, removals and attributes of what it holds alone. What is changed here is
 * certain to be taken: everything that could refuse it (names, link counts, types, the sticky bit)
 * was looked at under the sole capability, and whatever is not certain is left to the leader.
 *
 * The capability is not given back before what was done under it is on its way (`MdsClient.release`
 * sends it first, the leader executes it first), so nobody else sees an older state; and the leader
 * shows nobody a change before it is safe. A refusal is a fault of somebody: it is logged, reported
 * by the next fsync or sync, and what was believed is forgotten.
 *
 * Owns: the changes that the leader has not confirmed. Answers to requests that were made before
 * the last of them are older than what is known here.
 */
import { DssError } from "../../cluster/base/errors.js";
import type { Ino } from "../../cluster/base/ids.js";
import type { MdsClient } from "../../mds/client/mds-client.js";
import {
  LINK_MAX,
  NAME_MAX,
  NEW_FILE_GRANT,
  SYMLINK_MAX,
  covers,
  type Actor,
  type Inode,
  type Request,
} from "../../mds/proto.js";
import { S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, S_ISGID, S_ISUID, type Node } from "./node.js";
import { nameKey } from "./names.js";
import type { NodeTable } from "./node-table.js";

type Of<Op extends Request["op"]> = Extract<Request, { op: Op }>;
/** What a creation asks for; the inode number is chosen here. */
export type Making = Omit<Of<"create">, "op" | "ino" | "layout">;

interface Promised {
  directory?: { node: Node; key: string };
  child: Node;
}

const S_ISVTX = 0o1000;
const S_IFCHR = 0o020000;
const S_IFBLK = 0o060000;
const PERMISSION_BITS = 0o7777;

export class LocalChanges {
  private readonly promised = new Map<Request, Promised>();

  constructor(
    private readonly mds: MdsClient,
    private readonly table: NodeTable,
    /** False with -o sync: every change waits for the journal. */
    private readonly enabled: boolean,
  ) {}

  // ---- What may be changed ---------------------------------------------------------------------

  /** Held alone, not asked back, and no request of ours may change it meanwhile. */
  private mine(node: Node): boolean {
    return (
      covers(node.mode, "sole") &&
      this.table.lasting(node) &&
      node.asked === 0 &&
      !node.removed &&
      node.removing === undefined &&
      node.acquiring === undefined &&
      node.barrier === undefined &&
      node.resizing === 0 &&
      node.inode!.nlink > 0
    );
  }
  private directory(ino: Ino): Node | undefined {
    const node = this.candidate(ino);
    return node !== undefined && this.mine(node) ? node : undefined;
  }
  /** A directory that may be changed here once it is held alone. */
  private candidate(ino: Ino): Node | undefined {
    if (!this.enabled || !this.mds.mayPromise) return undefined;
    const node = this.table.peek(ino);
    return node?.isDirectory === true ? node : undefined;
  }
  /** The directory would have to be held alone. */
  lacksDirectory(parent: Ino): boolean {
    const node = this.candidate(parent);
    return node !== undefined && !covers(node.mode, "sole");
  }
  /** Only the capability of the child stands in the way: a listing may bring it. */
  lacksChild(parent: Ino, child: Node): boolean {
    return this.directory(parent) !== undefined && !covers(child.mode, "sole");
  }

  // ---- Changes ---------------------------------------------------------------------------------

  /** The new inode; undefined: ask the leader. */
  make(making: Making, cause?: number): Inode | undefined {
    const { parent, name, mode, rdev, target, actor } = making;
    const directory = this.directory(parent);
    if (directory === undefined || this.table.names.find(directory, name) !== 0) return undefined;
    if (name.length === 0 || name.length > NAME_MAX) return undefined;
    const above = directory.inode!;
    const type = mode & S_IFMT;
    if (above.xattrCount > 0) return undefined; // New inodes may inherit some.
    if (type === S_IFDIR && above.nlink >= LINK_MAX) return undefined;
    if (type === S_IFLNK && !(target && target.length > 0 && target.length <= SYMLINK_MAX)) {
      return undefined;
    }
    const layout = type === S_IFREG ? this.mds.inos.fileLayout : undefined;
    if (type === S_IFREG && layout === undefined) return undefined;
    const ino = this.mds.inos.take();
    if (ino === undefined) return undefined;
    const inherits = (above.mode & S_ISGID) !== 0;
    const { uid, timeNs } = actor;
    const inode: Inode = {
      ino,
      mode: type | (mode & PERMISSION_BITS) | (inherits && type === S_IFDIR ? S_ISGID : 0),
      nlink: type === S_IFDIR ? 2 : 1,
      uid,
      gid: inherits ? above.gid : actor.gid,
      rdev: type === S_IFCHR || type === S_IFBLK ? rdev : 0,
      size: type === S_IFLNK ? target!.length : 0,
      atimeNs: timeNs,
      mtimeNs: timeNs,
      ctimeNs: timeNs,
      btimeNs: timeNs,
      truncateSeq: 0,
      truncateSize: 0,
      ...(layout === undefined ? {} : { layout }),
      allocated: 0,
      recount: false,
      ...(type === S_IFLNK ? { target: target! } : {}),
      xattrCount: 0,
    };
    const node = this.table.adopt(inode, type === S_IFREG ? "exclusive" : "sole", parent);
    if (type === S_IFREG) node.maxSize = NEW_FILE_GRANT;
    node.minEpoch = directory.minEpoch;
    touch(directory, actor, { size: 1, nlink: type === S_IFDIR ? 1 : 0 });
    this.table.names.change(parent, name, ino);
    const request: Of<"create"> = {
      // The name is known to be free: whoever has it after all must not be taken for this one.
      ...{ op: "create", ...making, exclusive: true, ino },
      ...(layout === undefined ? {} : { layout }),
    };
    const where = { node: directory, key: nameKey(name) };
    this.promise(request, { directory: where, child: node }, cause);
    return inode;
  }

  /** True when the name and its file are gone; false: ask the leader. */
  unlink(parent: Ino, name: Buffer, child: Node, actor: Actor, cause?: number): boolean {
    const directory = this.directory(parent);
    if (directory === undefined || this.table.names.find(directory, name) !== child.ino)
      return false;
    const { inode } = child;
    if (inode === undefined || child.isDirectory || inode.nlink !== 1) return false;
    if (!this.mine(child) || child.opens > 0 || child.pins > 0 || child.data?.inFlight === true) {
      return false;
    }
    // Others may have it open without a capability.
    if (child.mode === "exclusive" && !child.unshared) return false;
    if (isStuck(directory, inode, actor)) return false;
    this.remove(directory, name, child, actor);
    touch(directory, actor, { size: -1 });
    const request: Request = { op: "unlink", parent, name, stillOpen: false, actor };
    this.promise(request, { directory: { node: directory, key: nameKey(name) }, child }, cause);
    return true;
  }
  rmdir(parent: Ino, name: Buffer, actor: Actor, cause?: number): boolean {
    const directory = this.directory(parent);
    if (directory === undefined) return false;
    const ino = this.table.names.find(directory, name);
    const child = ino === undefined || ino === 0 ? undefined : this.directory(ino);
    // The size of a directory is the number of its entries.
    if (child === undefined || child.inode!.size !== 0) return false;
    if (isStuck(directory, child.inode!, actor)) return false;
    this.remove(directory, name, child, actor);
    touch(directory, actor, { size: -1, nlink: -1 });
    const request: Request = { op: "rmdir", parent, name, actor };
    this.promise(request, { directory: { node: directory, key: nameKey(name) }, child }, cause);
    return true;
  }
  private remove(directory: Node, name: Buffer, child: Node, actor: Actor): void {
    this.table.names.change(directory.ino, name, 0);
    child.inode = { ...child.inode!, nlink: 0, ctimeNs: actor.timeNs };
    this.table.gone(child);
    child.removed = true;
  }

  /** Mode, owner and times. */
  setattr(request: Of<"setattr">): boolean {
    const node = this.table.peek(request.ino);
    if (!this.enabled || node === undefined || !this.mds.mayPromise || !this.mine(node)) {
      return false;
    }
    const inode = node.inode!;
    const { mode, uid, gid, atimeNs, mtimeNs, actor } = request;
    const setId = S_ISUID | S_ISGID;
    // Who may keep or set these bits, and what lists of access rights make of them, is not ours
    // to say.
    const owned = uid !== undefined || gid !== undefined || request.clearSuid === true;
    if (owned && (inode.mode & setId) !== 0) return false;
    if (mode !== undefined && ((mode & setId) !== 0 || inode.xattrCount > 0)) return false;
    if (request.size !== undefined) return false;
    node.inode = {
      ...inode,
      mode: mode === undefined ? inode.mode : (inode.mode & S_IFMT) | (mode & PERMISSION_BITS),
      uid: uid ?? inode.uid,
      gid: gid ?? inode.gid,
      atimeNs: atimeNs ?? inode.atimeNs,
      mtimeNs: mtimeNs ?? inode.mtimeNs,
      ctimeNs: actor.timeNs,
    };
    if (mtimeNs !== undefined) node.publishedMtimeNs = mtimeNs;
    if (this.tellWithCreation(node) || this.mds.amendLast(request)) return true;
    this.promise(request, { child: node });
    return true;
  }
  /**
   * What is durable or set of a new file goes with its creation, if that is on no way yet. A
   * directory's own attributes do not: what is made in it afterwards changes them again.
   */
  private tellWithCreation(node: Node): boolean {
    if (!node.isRegular || !this.mds.isUntold(node.ino)) return false;
    const { mode, uid, gid, atimeNs, ctimeNs } = node.inode!;
    const attributes = {
      ...{ mode, uid, gid, atimeNs, ctimeNs },
      size: node.publishedSize,
      mtimeNs: node.publishedMtimeNs,
      allocated: node.publishedAllocated,
      recount: node.publishedRecount,
    };
    this.mds.amend(node.ino, attributes);
    return true;
  }
  /** Size and time of data that is durable; false: the leader is to be told. */
  publish(node: Node): boolean {
    if (!this.mds.isUntold(node.ino)) return false;
    node.noteTold(node.lastWord());
    return this.tellWithCreation(node);
  }

  // ---- What is not confirmed -------------------------------------------------------------------

  private promise(request: Request, promised: Promised, cause = 0): void {
    const { child, directory } = promised;
    this.promised.set(request, promised);
    child.promised++;
    this.table.noteUsed(child);
    if (directory !== undefined) {
      const { node, key } = directory;
      node.promised++;
      this.table.noteUsed(node);
      node.promisedNames ??= new Map();
      node.promisedNames.set(key, (node.promisedNames.get(key) ?? 0) + 1);
    }
    const id = this.mds.promise(request, cause);
    child.promisedUpTo = id;
    if (directory !== undefined) directory.node.promisedUpTo = id;
  }
  confirmed(request: Request): void {
    const promised = this.promised.get(request);
    if (promised === undefined) return;
    this.promised.delete(request);
    const { child, directory } = promised;
    child.promised--;
    this.table.noteIdle(child);
    if (directory === undefined) return;
    const { node, key } = directory;
    node.promised--;
    const left = (node.promisedNames?.get(key) ?? 1) - 1;
    if (left > 0) node.promisedNames?.set(key, left);
    else node.promisedNames?.delete(key);
    this.table.noteIdle(node);
  }
  refused(request: Request, error: DssError): void {
    const promised = this.promised.get(request);
    if (promised === undefined) return;
    this.confirmed(request);
    const { child, directory } = promised;
    child.removed = false; // It may be there still.
    if (request.op === "create") this.lost(child, error);
    else if (child.mode !== "none") this.table.distrust(child);
    if (directory !== undefined) this.table.distrust(directory.node);
  }
  private lost(node: Node, cause: DssError): void {
    node.fail(new DssError("Disk", "the creation of this file was lost", { cause }));
    node.stale = true;
    this.table.gone(node);
  }
  /** Everything that was not safe is lost with the session. */
  evicted(lost: readonly Request[], reason: DssError): void {
    this.promised.clear();
    for (const request of lost) {
      if (request.op !== "create") continue;
      const node = this.table.peek(request.ino);
      if (node !== undefined) this.lost(node, reason);
    }
  }

  /**
   * A request of ours that may change these is on its way: nothing of them is changed here until
   * its answer.
   */
  async during<T>(request: Request, others: readonly Ino[], work: Promise<T>): Promise<T> {
    const inos: Ino[] = [...others];
    if ("ino" in request) inos.push(request.ino);
    if ("parent" in request) inos.push(request.parent);
    if ("newParent" in request) inos.push(request.newParent);
    const nodes = inos.map((ino) => this.table.get(ino));
    for (const node of nodes) node.asked++;
    try {
      return await work;
    } finally {
      for (const node of nodes) {
        node.asked--;
        this.table.noteIdle(node);
      }
    }
  }
}

/** The directory after names came or went. */
function touch(
  directory: Node,
  actor: Actor,
  { size, nlink = 0 }: { size: number; nlink?: number },
): void {
  const inode = directory.inode!;
  directory.inode = {
    ...inode,
    size: inode.size + size,
    nlink: inode.nlink + nlink,
    mtimeNs: actor.timeNs,
    ctimeNs: actor.timeNs,
  };
}
/** Sticky directories let only some remove a name: the leader says who. */
function isStuck(directory: Node, child: Inode, actor: Actor): boolean {
  const { mode, uid } = directory.inode!;
  return (mode & S_ISVTX) !== 0 && actor.uid !== 0 && actor.uid !== uid && actor.uid !== child.uid;
}
