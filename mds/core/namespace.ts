/**
 * The operations on files, directories and attributes (proto.Request): POSIX outcomes over the
 * metadata. Pure and synchronous.
 *
 * An operation looks at everything it needs (raising PageFault where a page is missing), tells
 * `Access` what others must not cache, and returns a `Plan`; it changes nothing. Permissions were
 * checked by the client's kernel; what is checked here is
 * what the kernel leaves to the file system: sticky directories, set-group-id inheritance, set-id
 * bits.
 */
import { DssError } from "../../cluster/base/errors.js";
import type { ClientId, Ino } from "../../cluster/base/ids.js";
import {
  FILE_SIZE_MAX,
  SYMLINK_MAX,
  type Actor,
  type DirectoryEntry,
  type Inode,
  type Layout,
  type Request,
} from "../proto.js";
import type { Access } from "./capability.js";
import { hashOfCookie } from "../proto-order.js";
import { hashDigits, nextPrefix, type Dentry } from "./dentry.js";
import { Draft, dataBound, grantSize, limitedDraft } from "./draft.js";
import { withName, withoutName } from "./links.js";
import { extendedGrant, firstGrant } from "./quota.js";
import { Renames } from "./rename.js";
import { checkLinks, checkName, checkSticky, exists, touched } from "./checks.js";
import {
  PERMISSION_BITS,
  S_IFBLK,
  S_IFCHR,
  S_IFDIR,
  S_IFIFO,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
  S_IFSOCK,
  S_ISGID,
  isDirectory,
  isRegular,
  publicInode,
  setMade,
  withoutSetId,
  type InodeRecord,
} from "./inode.js";
import { faultTogether, type Metadata } from "./metadata.js";
import { INODES_PER_PAGE, inodePageKey } from "./page.js";
import { changing, emptyPlan, type Plan } from "./plan.js";
import { spaceAfterResize } from "./space.js";
import { aclAfterChmod, aclsOfNew, type NewAcls } from "./xattrs.js";

export interface NamespaceOptions {
  /** Where new files go; undefined while there is no pool. */
  fileLayout(): Layout | undefined;
  usage(): { total: number; available: number };
  /** Inode numbers that a session gets at a time. */
  inoRange: number;
}

const FILE_TYPES = new Set([S_IFREG, S_IFDIR, S_IFLNK, S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK]);
/** Entries of one readdir answer at most. */
const READDIR_MAX = 4096;

type Of<Op extends Request["op"]> = Extract<Request, { op: Op }>;

export class Namespace {
  private readonly renames: Renames;

  constructor(
    private readonly metadata: Metadata,
    private readonly options: NamespaceOptions,
  ) {
    this.renames = new Renames(metadata, {
      inode: (ino) => this.inode(ino),
      directory: (ino) => this.directory(ino),
      entry: (parent, name) => this.entry(parent, name),
      dropLink: (...args) => this.dropLink(...args),
    });
  }

  lookup(access: Access, { parent, name }: Of<"lookup">): Plan {
    checkName(name);
    const plan = emptyPlan();
    access.attributes(parent);
    const directory = this.directory(parent);
    plan.shared.push(parent);
    plan.answer.parent = publicInode(directory);
    const entry = this.metadata.dentry(parent, name);
    if (entry === undefined) return { ...plan, notFound: true };
    access.attributes(entry.ino);
    plan.shared.push(entry.ino);
    if (holdsSole(access, parent)) plan.sole.push(entry.ino);
    plan.answer.inode = publicInode(this.inode(entry.ino));
    return plan;
  }

  getattr(access: Access, { ino }: Of<"getattr">): Plan {
    access.attributes(ino);
    return { ...emptyPlan(), shared: [ino], answer: { inode: publicInode(this.inode(ino)) } };
  }

  acquire(access: Access, { ino, mode }: Of<"acquire">): Plan {
    const inode = this.inode(ino);
    const plan = emptyPlan();
    plan.answer.inode = publicInode(inode);
    if (mode === "shared" || this.holdsExclusive(access, ino)) {
      access.attributes(ino);
      if (mode === "shared") access.queue(ino);
      plan.shared.push(ino);
      if (mode === "exclusive") plan.exclusive = { ino, maxSize: this.granted(access, inode) };
      return plan;
    }
    if (!isRegular(inode)) {
      throw new DssError("InvalidArgument", "only regular files are held exclusively");
    }
    access.change(ino);
    const draft = new Draft(this.metadata);
    this.grantExclusive(access, draft, plan, { inode });
    return { ...plan, record: draft.finish(), durable: true };
  }

  readdir(access: Access, request: Of<"readdir">): Plan {
    const { ino, cookie, plus } = request;
    const limit = Math.min(Math.max(1, request.limit), READDIR_MAX);
    access.attributes(ino);
    const directory = this.directory(ino);
    const { entries, end } = this.list(ino, cookie, limit);
    const plan = emptyPlan();
    plan.shared.push(ino);
    plan.answer = { parent: publicInode(directory), end, entries: [] };
    if (plus) {
      faultTogether(
        this.metadata.cache,
        entries.map((entry) => inodePageKey(entry.ino)),
      );
    }
    if (request.alone === true) plan.sole.push(ino);
    const sole = request.alone === true || holdsSole(access, ino);
    for (const entry of entries) {
      const { name, type, cookie: place } = entry;
      const listed: DirectoryEntry = { name, ino: entry.ino, type, cookie: place };
      const inode = plus ? this.metadata.inode(entry.ino) : undefined;
      // What another session is changing is left out; a look-up waits for it where it is needed.
      if (inode !== undefined && access.ready(entry.ino)) {
        listed.inode = publicInode(inode);
        plan.shared.push(entry.ino);
        if (sole) plan.sole.push(entry.ino);
      }
      plan.answer.entries!.push(listed);
    }
    return plan;
  }

  private list(ino: Ino, cookie: number, limit: number): { entries: Dentry[]; end: boolean } {
    const entries: Dentry[] = [];
    let digits: string | undefined = hashDigits(hashOfCookie(cookie));
    while (digits !== undefined) {
      const { page, prefix } = this.metadata.directoryPage(ino, digits);
      const { body } = page;
      body.sorted ??= [...body.entries.values()].sort((a, b) => a.cookie - b.cookie);
      for (let i = firstAfter(body.sorted, cookie); i < body.sorted.length; i++) {
        if (entries.length === limit) return { entries, end: false };
        entries.push(body.sorted[i]!);
      }
      const next: string | undefined = nextPrefix(prefix);
      digits = next?.padEnd(digits.length, "0");
    }
    return { entries, end: true };
  }

  create(access: Access, request: Of<"create">): Plan {
    const { parent, name, mode, actor } = request;
    checkName(name);
    const type = mode & S_IFMT;
    if (!FILE_TYPES.has(type)) throw new DssError("InvalidArgument", "no such type of file");
    access.attributes(parent);
    const directory = this.directory(parent);
    const known = this.metadata.dentry(parent, name);
    if (known !== undefined) return this.createExisting(access, request, directory, known);
    this.checkNewInode(access.session, request.ino);
    if (type === S_IFDIR) checkLinks(directory);

    const { inode, xattrs } = this.newInode(request, directory);
    if (type === S_IFLNK) {
      inode.target = symlinkTarget(request.target);
      inode.size = inode.target.length;
    }
    if (request.attributes !== undefined) setMade(inode, request.attributes);
    access.change(parent);
    const draft = limitedDraft(this.metadata, access);
    const plan = emptyPlan();
    draft.createInode(inode);
    for (const xattr of xattrs) draft.add({ d: "xattrPut", ino: inode.ino, ...xattr });
    draft.link(parent, name, inode);
    const changed = draft.put(
      touched(directory, actor, { size: 1, nlink: type === S_IFDIR ? 1 : 0 }),
    );
    plan.answer = { inode: publicInode(inode), parent: publicInode(changed) };
    plan.shared.push(inode.ino, parent);
    plan.sole.push(inode.ino, parent);
    plan.hides.push(inode.ino, parent);
    if (type === S_IFREG) this.grantExclusive(access, draft, plan, { inode, directory: parent });
    plan.record = draft.finish();
    return plan;
  }

  /** As POSIX wants it: with group and set-group-id bit, or the access list, of its directory. */
  private newInode(
    request: Pick<Of<"create">, "ino" | "mode" | "rdev" | "actor" | "unmasked" | "layout">,
    directory: InodeRecord,
  ): { inode: InodeRecord; xattrs: NewAcls["xattrs"] } {
    const { mode, actor } = request;
    const type = mode & S_IFMT;
    const inheritsGroup = (directory.mode & S_ISGID) !== 0;
    const acls = aclsOfNew(this.metadata, directory, request);
    const inode: InodeRecord = {
      ino: request.ino,
      mode:
        type | (acls.mode & PERMISSION_BITS) | (inheritsGroup && type === S_IFDIR ? S_ISGID : 0),
      nlink: type === S_IFDIR ? 2 : 1,
      uid: actor.uid,
      gid: inheritsGroup ? directory.gid : actor.gid,
      rdev: type === S_IFCHR || type === S_IFBLK ? request.rdev : 0,
      size: 0,
      atimeNs: actor.timeNs,
      mtimeNs: actor.timeNs,
      ctimeNs: actor.timeNs,
      btimeNs: actor.timeNs,
      truncateSeq: 0,
      truncateSize: 0,
      allocated: 0,
      recount: false,
      xattrCount: acls.xattrs.length,
      parent: directory.ino,
      dataMax: 0,
      xattrBytes: bytesOf(acls.xattrs),
      reservedTo: 0,
    };
    if (type === S_IFREG) inode.layout = this.newLayout(request.layout);
    return { inode, xattrs: acls.xattrs };
  }

  /**
   * O_TMPFILE: a file without a name, which is the session's until its last close, unless `link`
   * gives it one.
   */
  tmpfile(access: Access, request: Of<"tmpfile">): Plan {
    access.attributes(request.parent);
    const directory = this.directory(request.parent);
    if ((request.mode & S_IFMT) !== S_IFREG) {
      throw new DssError("InvalidArgument", "only regular files can be without a name");
    }
    this.checkNewInode(access.session, request.ino);
    const { inode, xattrs } = this.newInode({ ...request, rdev: 0 }, directory);
    const draft = new Draft(this.metadata);
    const plan = emptyPlan();
    const made = draft.createInode({ ...inode, nlink: 0, parent: 0 });
    for (const xattr of xattrs) draft.add({ d: "xattrPut", ino: inode.ino, ...xattr });
    draft.add({ d: "orphanAdd", id: access.session, ino: inode.ino });
    plan.answer = { inode: publicInode(made) };
    plan.hides.push(inode.ino);
    this.grantExclusive(access, draft, plan, { inode: made, directory: directory.ino });
    plan.record = draft.finish();
    return plan;
  }

  private createExisting(
    access: Access,
    request: Of<"create">,
    directory: InodeRecord,
    known: Dentry,
  ): Plan {
    const regular = known.type === S_IFREG && (request.mode & S_IFMT) === S_IFREG;
    if (request.exclusive || !regular) throw exists(request.name);
    access.attributes(known.ino);
    const plan = emptyPlan();
    plan.shared.push(known.ino, directory.ino);
    plan.answer.inode = publicInode(this.inode(known.ino));
    plan.answer.parent = publicInode(directory);
    return plan;
  }

  private checkNewInode(session: ClientId, ino: Ino): void {
    const ranges = this.metadata.session(session)?.ranges ?? [];
    if (!ranges.some((range) => ino >= range.first && ino < range.first + range.count)) {
      throw new DssError("InvalidArgument", `inode number ${ino} is not from the session's ranges`);
    }
    if (this.metadata.inode(ino) !== undefined) {
      throw new DssError("InvalidArgument", `inode number ${ino} is in use`);
    }
  }
  private newLayout(begun: Layout | undefined): Layout {
    const layout = begun ?? this.options.fileLayout();
    if (layout === undefined) {
      throw new DssError("NoSpace", "the cluster has no pool for files", {
        hint: "create one with `dss pool create`",
      });
    }
    return layout;
  }

  link(access: Access, { ino, parent, name, actor }: Of<"link">): Plan {
    checkName(name);
    access.attributes(parent);
    access.see(ino);
    const directory = this.directory(parent);
    const inode = this.inode(ino);
    if (isDirectory(inode)) throw new DssError("NotPermitted", "directories have one name only");
    if (this.metadata.dentry(parent, name) !== undefined) throw exists(name);
    const unnamed = inode.nlink === 0;
    // Made with O_TMPFILE by this session: the kernel lets nothing else without a name have one.
    if (unnamed && this.metadata.session(access.session)?.orphans.has(ino) !== true) {
      throw new DssError("NotFound", `inode ${ino} has been unlinked`);
    }
    checkLinks(inode);
    access.change(parent);
    access.change(ino);
    const draft = limitedDraft(this.metadata, access);
    draft.link(parent, name, inode);
    if (unnamed) draft.add({ d: "orphanRemove", id: access.session, ino });
    const named = withName(this.metadata, draft, inode, parent);
    const linked = draft.put({ ...named, ctimeNs: actor.timeNs });
    const changed = draft.put(touched(directory, actor, { size: 1 }));
    return changing(draft, {
      answer: { inode: publicInode(linked), parent: publicInode(changed) },
      inodes: [ino, parent],
    });
  }

  unlink(access: Access, { parent, name, stillOpen, actor }: Of<"unlink">): Plan {
    checkName(name);
    access.attributes(parent);
    const directory = this.directory(parent);
    const entry = this.entry(parent, name);
    access.see(entry.ino);
    const inode = this.inode(entry.ino);
    if (isDirectory(inode)) throw new DssError("IsDirectory", "unlink of a directory");
    checkSticky(directory, inode, actor);
    access.change(parent);
    access.change(inode.ino);
    const draft = new Draft(this.metadata);
    draft.unlink(parent, name);
    const changed = draft.put(touched(directory, actor, { size: -1 }));
    const { removed, gone } = this.dropLink(access, draft, { inode, parent }, { stillOpen, actor });
    return changing(draft, {
      answer: { parent: publicInode(changed), removed: publicInode(removed) },
      inodes: [parent, inode.ino],
      removed: gone ? [inode.ino] : [],
    });
  }

  rmdir(access: Access, { parent, name, actor }: Of<"rmdir">): Plan {
    checkName(name);
    access.attributes(parent);
    const directory = this.directory(parent);
    const entry = this.entry(parent, name);
    access.attributes(entry.ino);
    const inode = this.inode(entry.ino);
    if (!isDirectory(inode)) throw new DssError("NotDirectory", "rmdir of what is no directory");
    checkSticky(directory, inode, actor);
    if (inode.size > 0) throw new DssError("NotEmpty", "the directory is not empty");
    access.change(parent);
    access.change(inode.ino);
    const draft = new Draft(this.metadata);
    draft.unlink(parent, name);
    const changed = draft.put(touched(directory, actor, { size: -1, nlink: -1 }));
    const { removed } = this.dropLink(
      access,
      draft,
      { inode, parent },
      { stillOpen: false, actor },
    );
    return changing(draft, {
      answer: { parent: publicInode(changed), removed: publicInode(removed) },
      inodes: [parent, inode.ino],
      removed: [inode.ino],
    });
  }

  /**
   * A name of `inode` in `parent` went. The returned record is what the client is told; `gone`:
   * nothing of it is left.
   */
  private dropLink(
    access: Access,
    draft: Draft,
    { inode, parent }: { inode: InodeRecord; parent: Ino },
    { stillOpen, actor }: { stillOpen: boolean; actor: Actor },
  ): { removed: InodeRecord; gone: boolean } {
    const directory = isDirectory(inode);
    const left = directory
      ? { ...inode, nlink: 0 }
      : withoutName(this.metadata, draft, inode, parent);
    const removed: InodeRecord = { ...left, ctimeNs: actor.timeNs };
    const { nlink } = removed;
    if (directory) {
      draft.dropDirectory(inode.ino, this.options.fileLayout());
    } else {
      const openers = access.capabilities.openElsewhere(inode.ino, access.session);
      if (stillOpen) openers.push(access.session);
      if (nlink === 0) {
        for (const id of openers) draft.add({ d: "orphanAdd", id, ino: inode.ino });
      }
      if (nlink > 0 || openers.length > 0) {
        draft.put(removed);
        return { removed, gone: false };
      }
    }
    draft.removeInode(inode, access.capabilities);
    return { removed, gone: true };
  }

  rename(access: Access, request: Of<"rename">): Plan {
    return this.renames.rename(access, request);
  }

  setattr(access: Access, request: Of<"setattr">): Plan {
    const { ino, actor, size } = request;
    access.see(ino);
    const inode = this.inode(ino);
    if (size !== undefined) {
      checkSize(inode, size);
      // OSDs know only the last truncation: what an earlier, shorter one cut must be gone before a
      // longer one.
      const mayShowAgain = inode.truncateSeq > 0 && size > inode.truncateSize;
      if (mayShowAgain && this.metadata.isPurging(ino, size)) access.purging = true;
    }
    access.change(ino);
    const draft = limitedDraft(this.metadata, access);
    const plan = emptyPlan();
    let changed: InodeRecord = { ...inode, ctimeNs: actor.timeNs };
    if (request.uid !== undefined || request.gid !== undefined) {
      changed.uid = request.uid ?? inode.uid;
      changed.gid = request.gid ?? inode.gid;
      changed.mode = withoutSetId(changed.mode);
    }
    if (request.clearSuid === true) changed.mode = withoutSetId(changed.mode);
    if (request.mode !== undefined) {
      changed.mode = (inode.mode & S_IFMT) | (request.mode & PERMISSION_BITS);
    }
    if (size !== undefined) {
      const had = this.holdsExclusive(access, ino);
      changed = this.resize(access, draft, changed, size, actor);
      this.grantExclusive(access, draft, plan, { inode: changed, known: inode.size });
      plan.durable = !had; // As for acquire: a new leader must know of the grant.
    }
    if (request.atimeNs !== undefined) changed.atimeNs = request.atimeNs;
    if (request.mtimeNs !== undefined) changed.mtimeNs = request.mtimeNs;
    draft.put(changed);
    if (request.mode !== undefined) aclAfterChmod(this.metadata, draft, changed);
    plan.answer.inode = publicInode(changed);
    plan.shared.push(ino);
    plan.sole.push(ino);
    plan.hides.push(ino);
    plan.record = draft.finish();
    return plan;
  }

  /**
   * Truncation (design §5): whenever bytes beyond `size` may exist, also such that their writer has
   * not published, the sequence rises, so that OSDs clip them; whole objects beyond go to the purge
   * queue.
   */
  private resize(
    access: Access,
    draft: Draft,
    inode: InodeRecord,
    size: number,
    actor: Actor,
  ): InodeRecord {
    const bound = dataBound(this.metadata, access.capabilities, inode);
    const space = spaceAfterResize(inode, size);
    const timed = { size, mtimeNs: actor.timeNs, reservedTo: 0 };
    const changed: InodeRecord = { ...inode, ...space, ...timed };
    if (size >= bound && size >= inode.size) return changed;
    changed.truncateSeq = inode.truncateSeq + 1;
    changed.truncateSize = size;
    changed.dataMax = Math.min(inode.dataMax, size);
    if (inode.layout !== undefined && size < bound) {
      draft.purge({
        what: "objects",
        ino: inode.ino,
        prefix: inode.ino.toString(16),
        layout: inode.layout,
        from: size,
        likely: Math.min(inode.size, bound),
        bound,
        truncateSeq: changed.truncateSeq,
        unconditional: false,
      });
    }
    return changed;
  }

  publish(access: Access, request: Of<"publish">): Plan {
    const { ino, size, mtimeNs, allocated, recount } = request;
    const inode = this.inode(ino);
    this.checkHolder(access, ino);
    if (!Number.isSafeInteger(size) || size < 0 || size > FILE_SIZE_MAX) {
      throw new DssError("FileTooLarge", `size ${size}`);
    }
    const draft = new Draft(this.metadata);
    const ctimeNs = mtimeNs > inode.ctimeNs ? mtimeNs : inode.ctimeNs;
    const told = { size, mtimeNs, ctimeNs, allocated, recount, reservedTo: 0 };
    const changed = draft.put({ ...inode, ...told });
    return changing(draft, { answer: { inode: publicInode(changed) }, inodes: [ino] });
  }

  extend(access: Access, { ino, size }: Of<"extend">): Plan {
    const inode = this.inode(ino);
    this.checkHolder(access, ino);
    if (!Number.isSafeInteger(size) || size < 0 || size > FILE_SIZE_MAX) {
      throw new DssError("FileTooLarge", `size ${size}`);
    }
    // Without attributes: this answer may be overtaken by those of later changes.
    const plan = emptyPlan();
    const granted = this.granted(access, inode);
    if (size <= granted) return { ...plan, exclusive: { ino, maxSize: granted }, durable: true };
    const wanted = grantSize(size);
    const { maxSize, reserves } = extendedGrant(this.metadata, access, inode, { size, wanted });
    const draft = new Draft(this.metadata);
    if (reserves) draft.put({ ...inode, reservedTo: maxSize });
    draft.add({ d: "grantPut", id: access.session, ino, maxSize });
    return { ...plan, record: draft.finish(), exclusive: { ino, maxSize }, durable: true };
  }

  orphanRelease(access: Access, { ino }: Of<"orphanRelease">): Plan {
    const session = this.metadata.session(access.session);
    if (session?.orphans.has(ino) !== true) return emptyPlan(); // Told twice, or never was one.
    const draft = new Draft(this.metadata);
    const gone = this.releaseOrphan(access, draft, ino);
    return changing(draft, { answer: {}, inodes: [], removed: gone ? [ino] : [] });
  }
  /** The session no longer has the unlinked file open; true when nobody has. */
  private releaseOrphan(access: Access, draft: Draft, ino: Ino): boolean {
    draft.add({ d: "orphanRemove", id: access.session, ino });
    const inode = this.metadata.inode(ino);
    if (inode === undefined || inode.nlink > 0) return false;
    for (const other of this.metadata.sessions()) {
      if (other.id !== access.session && other.orphans.has(ino)) return false;
    }
    draft.removeInode(inode, access.capabilities);
    return true;
  }

  statfs(): Plan {
    const usage = { ...this.options.usage(), inodes: this.metadata.counter("inodes") };
    return { ...emptyPlan(), answer: { usage } };
  }

  inoRange(access: Access): Plan {
    const draft = new Draft(this.metadata);
    const first = draft.counter("nextIno");
    // Whole pages, so that sessions do not share them.
    const count = Math.ceil(this.options.inoRange / INODES_PER_PAGE) * INODES_PER_PAGE;
    draft.setCounter("nextIno", first + count);
    draft.add({ d: "sessionRange", id: access.session, first, count });
    return {
      ...emptyPlan(),
      record: draft.finish(),
      answer: { inoRange: { first, count, ...this.layoutAnswer() } },
      durable: true,
    };
  }

  private layoutAnswer(): { layout?: Layout } {
    const layout = this.options.fileLayout();
    return layout === undefined ? {} : { layout };
  }

  /** After a replay of what has been executed: the answer as the present state gives it. */
  again(access: Access, request: Request): Plan {
    const plan = emptyPlan();
    const look = (ino: Ino): Inode | undefined => {
      const inode = this.metadata.inode(ino);
      return inode === undefined ? undefined : publicInode(inode);
    };
    const set = (member: "inode" | "parent" | "newParent", ino: Ino): void => {
      const inode = look(ino);
      if (inode !== undefined) plan.answer[member] = inode;
    };
    if ("ino" in request) set("inode", request.ino);
    if ("parent" in request) set("parent", request.parent);
    if ("newParent" in request) set("newParent", request.newParent);
    if ("ino" in request && access.capabilities.mode(access.session, request.ino) === "exclusive") {
      const inode = this.metadata.inode(request.ino);
      if (inode !== undefined) {
        plan.exclusive = { ino: inode.ino, maxSize: this.granted(access, inode) };
      }
    }
    if (request.op === "inoRange") {
      const range = this.metadata.session(access.session)?.ranges.at(-1);
      if (range !== undefined) plan.answer.inoRange = { ...range, ...this.layoutAnswer() };
    }
    return plan;
  }

  // What several operations share.

  /** `known`: the size that the totals have, if it is another. */
  private grantExclusive(
    access: Access,
    draft: Draft,
    plan: Plan,
    file: { inode: InodeRecord; directory?: Ino; known?: number },
  ): void {
    const { inode, directory = inode.parent, known = inode.size } = file;
    const held = this.holdsExclusive(access, inode.ino);
    const granted = this.metadata.session(access.session)?.exclusive.get(inode.ino);
    const maxSize =
      held && granted !== undefined
        ? granted
        : this.newGrant(access, inode, { directory, size: known });
    if (granted !== maxSize) {
      draft.add({ d: "grantPut", id: access.session, ino: inode.ino, maxSize });
    }
    plan.exclusive = { ino: inode.ino, maxSize };
    if (!plan.shared.includes(inode.ino)) plan.shared.push(inode.ino);
  }
  private newGrant(
    access: Access,
    { dataMax, size: newSize }: InodeRecord,
    { directory, size }: { directory: Ino; size: number },
  ): number {
    const wanted = grantSize(dataMax);
    // Who had an answer before goes by the grant that it brought.
    if (access.answered) return wanted;
    return Math.min(wanted, Math.max(newSize, firstGrant(this.metadata, { directory, size })));
  }
  /**
   * Held and journaled: while a release is being journaled, the one is still so and the other not
   * any more.
   */
  private holdsExclusive(access: Access, ino: Ino): boolean {
    const { capabilities, session } = access;
    if (capabilities.mode(session, ino) !== "exclusive") return false;
    return this.metadata.session(session)?.exclusive.has(ino) === true;
  }
  private granted(access: Access, inode: InodeRecord): number {
    return this.metadata.session(access.session)?.exclusive.get(inode.ino) ?? inode.dataMax;
  }
  private checkHolder(access: Access, ino: Ino): void {
    if (access.capabilities.mode(access.session, ino) !== "exclusive") {
      throw new DssError("Conflict", `inode ${ino} is not held exclusively by this session`);
    }
  }
  private inode(ino: Ino): InodeRecord {
    const inode = this.metadata.inode(ino);
    if (inode === undefined) throw new DssError("StaleHandle", `inode ${ino} does not exist`);
    return inode;
  }
  private directory(ino: Ino): InodeRecord {
    const inode = this.inode(ino);
    if (!isDirectory(inode)) throw new DssError("NotDirectory", `inode ${ino} is no directory`);
    return inode;
  }
  private entry(parent: Ino, name: Buffer): Dentry {
    const entry = this.metadata.dentry(parent, name);
    if (entry === undefined) throw new DssError("NotFound", "no such name");
    return entry;
  }
}

/** The session changes names there by itself, and may want to remove what they lead to. */
function holdsSole(access: Access, directory: Ino): boolean {
  return access.capabilities.mode(access.session, directory) === "sole";
}
function checkSize(inode: InodeRecord, size: number): void {
  if (isDirectory(inode)) throw new DssError("IsDirectory", "size of a directory");
  if (!isRegular(inode)) throw new DssError("InvalidArgument", "size of what is no regular file");
  if (!Number.isSafeInteger(size) || size < 0) {
    throw new DssError("InvalidArgument", `size ${size}`);
  }
  if (size > FILE_SIZE_MAX) throw new DssError("FileTooLarge", `size ${size}`);
}
function symlinkTarget(target: Buffer | undefined): Buffer {
  if (target === undefined || target.length === 0) {
    throw new DssError("NotFound", "a symbolic link needs a target");
  }
  if (target.length > SYMLINK_MAX) {
    throw new DssError("NameTooLong", `target of ${target.length} bytes`);
  }
  return target;
}
function bytesOf(xattrs: NewAcls["xattrs"]): number {
  return xattrs.reduce((sum, { name, value }) => sum + name.length + value.length, 0);
}
/** Index of the first entry beyond `cookie`. */
function firstAfter(sorted: readonly Dentry[], cookie: number): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (sorted[middle]!.cookie > cookie) high = middle;
    else low = middle + 1;
  }
  return low;
}
