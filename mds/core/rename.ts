/**
 * rename(2) in its three forms: to a free name, over another one, and exchanging two. Pure, as
 * namespace.ts.
 */
import { DssError } from "../../cluster/base/errors.js";
import type { Ino } from "../../cluster/base/ids.js";
import { ROOT_INO, type Actor, type Answer, type Request } from "../proto.js";
import type { Access } from "./capability.js";
import { checkLinks, checkName, checkSticky, exists, touched } from "./checks.js";
import { limitedDraft, type Draft } from "./draft.js";
import { isDirectory, publicInode, type InodeRecord } from "./inode.js";
import { withNameMoved } from "./links.js";
import type { Metadata } from "./metadata.js";
import { changing, emptyPlan, type Plan } from "./plan.js";
import { entersRealm, lowerBelow } from "./quota.js";

type Rename = Extract<Request, { op: "rename" }>;
/** What renaming shares with the other operations on names. */
export interface NameTools {
  inode(ino: Ino): InodeRecord;
  directory(ino: Ino): InodeRecord;
  entry(parent: Ino, name: Buffer): { ino: Ino };
  dropLink(
    access: Access,
    draft: Draft,
    name: { inode: InodeRecord; parent: Ino },
    how: { stillOpen: boolean; actor: Actor },
  ): { removed: InodeRecord; gone: boolean };
}

export class Renames {
  constructor(
    private readonly metadata: Metadata,
    private readonly tools: NameTools,
  ) {}

  rename(access: Access, request: Rename): Plan {
    const { parent, name, newParent, newName, actor } = request;
    checkName(name);
    checkName(newName);
    if (request.noReplace && request.exchange) {
      throw new DssError("InvalidArgument", "rename both without replacing and with exchange");
    }
    access.attributes(parent);
    access.attributes(newParent);
    const source = this.tools.directory(parent);
    const target = this.tools.directory(newParent);
    const entry = this.tools.entry(parent, name);
    access.see(entry.ino);
    const moved = this.tools.inode(entry.ino);
    checkSticky(source, moved, actor);
    if (isDirectory(moved)) this.checkNotBelow(newParent, moved.ino, access);
    const known = this.metadata.dentry(newParent, newName);
    if (known === undefined) {
      if (request.exchange)
        throw new DssError("NotFound", "exchange with a name that is not there");
      return this.move(access, request, { source, target, moved, replaced: undefined });
    }
    if (request.noReplace) throw exists(newName);
    access.attributes(known.ino);
    const other = this.tools.inode(known.ino);
    if (other.ino === moved.ino) {
      // Two names of one file (or one name twice): POSIX says that nothing happens.
      const plan = emptyPlan();
      plan.answer = { parent: publicInode(source), newParent: publicInode(target) };
      plan.answer.inode = publicInode(moved);
      return plan;
    }
    checkSticky(target, other, actor);
    if (request.exchange) {
      if (isDirectory(other)) this.checkNotBelow(parent, other.ino, access);
      return this.exchange(access, request, { source, target, moved, other });
    }
    if (isDirectory(other) && !isDirectory(moved)) {
      throw new DssError("IsDirectory", "rename of a file over a directory");
    }
    if (!isDirectory(other) && isDirectory(moved)) {
      throw new DssError("NotDirectory", "rename of a directory over a file");
    }
    if (isDirectory(other) && other.size > 0) {
      throw new DssError("NotEmpty", "the directory to be replaced is not empty");
    }
    return this.move(access, request, { source, target, moved, replaced: other });
  }

  /** `directory` must not be `moved` or below it. */
  private checkNotBelow(directory: Ino, moved: Ino, access: Access): void {
    let at = directory;
    for (;;) {
      if (at === moved) {
        throw new DssError("InvalidArgument", "rename of a directory into itself");
      }
      if (at === ROOT_INO) return;
      access.see(at);
      at = this.tools.inode(at).parent;
    }
  }

  private move(
    access: Access,
    { parent, name, newParent, newName, stillOpen, actor }: Rename,
    parts: {
      source: InodeRecord;
      target: InodeRecord;
      moved: InodeRecord;
      replaced: InodeRecord | undefined;
    },
  ): Plan {
    const { source, target, moved, replaced } = parts;
    const directory = isDirectory(moved);
    const same = parent === newParent;
    const linkGain = directory && replaced === undefined ? 1 : 0;
    if (!same && linkGain > 0) checkLinks(target);
    for (const ino of [parent, newParent, moved.ino]) access.change(ino);
    if (replaced !== undefined) access.change(replaced.ino);

    const draft = limitedDraft(this.metadata, access);
    draft.unlink(parent, name);
    draft.link(newParent, newName, moved);
    draft.put(touched(source, actor, { size: -1, nlink: directory ? -1 : 0 }));
    const before = draft.inode(newParent)!;
    // In one directory the entry and the subdirectory count itself as gone and come back.
    const gain = replaced === undefined ? 1 : 0;
    draft.put(touched(before, actor, { size: gain, nlink: linkGain }));
    const placed = draft.put(
      this.relocated(draft, moved, { from: parent, to: newParent, timeNs: actor.timeNs }),
    );
    const answer: Answer = {
      inode: publicInode(placed),
      parent: publicInode(draft.inode(parent)!),
      newParent: publicInode(draft.inode(newParent)!),
    };
    const inodes = [parent, newParent, moved.ino];
    let gone: Ino[] = [];
    if (replaced !== undefined) {
      const name = { inode: replaced, parent: newParent };
      const dropped = this.tools.dropLink(access, draft, name, { stillOpen, actor });
      answer.removed = publicInode(dropped.removed);
      inodes.push(replaced.ino);
      if (dropped.gone) gone = [replaced.ino];
    }
    return this.intoRealm(access, changing(draft, { answer, inodes, removed: gone }), {
      moved,
      from: parent,
      to: newParent,
    });
  }
  private relocated(
    draft: Draft,
    inode: InodeRecord,
    { from, to, timeNs }: { from: Ino; to: Ino; timeNs: bigint },
  ): InodeRecord {
    const placed = isDirectory(inode)
      ? { ...inode, parent: to }
      : withNameMoved(this.metadata, draft, inode, { from, to });
    return { ...placed, ctimeNs: timeNs };
  }
  /** Nobody may hold what was granted below `moved` when no quota was above it. */
  private intoRealm(
    access: Access,
    plan: Plan,
    { moved, from, to }: { moved: InodeRecord; from: Ino; to: Ino },
  ): Plan {
    if (!entersRealm(this.metadata, moved, { from, to })) return plan;
    const lowered = isDirectory(moved) ? lowerBelow(this.metadata, access, moved.ino) : [];
    return { ...plan, lowered: [...(plan.lowered ?? []), moved.ino, ...lowered] };
  }

  private exchange(
    access: Access,
    { parent, name, newParent, newName, actor }: Rename,
    parts: { source: InodeRecord; target: InodeRecord; moved: InodeRecord; other: InodeRecord },
  ): Plan {
    const { source, moved, other } = parts;
    const gain = (isDirectory(moved) ? 1 : 0) - (isDirectory(other) ? 1 : 0);
    if (gain > 0) checkLinks(parts.target);
    if (gain < 0) checkLinks(source);
    for (const ino of [parent, newParent, moved.ino, other.ino]) access.change(ino);
    const draft = limitedDraft(this.metadata, access);
    draft.link(parent, name, other);
    draft.link(newParent, newName, moved);
    draft.put(touched(source, actor, { nlink: -gain }));
    draft.put(touched(draft.inode(newParent)!, actor, { nlink: gain }));
    const { timeNs } = actor;
    const there = { from: parent, to: newParent };
    const back = { from: newParent, to: parent };
    const placed = draft.put(this.relocated(draft, moved, { ...there, timeNs }));
    const swapped = draft.put(this.relocated(draft, other, { ...back, timeNs }));
    const plan = changing(draft, {
      answer: {
        inode: publicInode(placed),
        other: publicInode(swapped),
        parent: publicInode(draft.inode(parent)!),
        newParent: publicInode(draft.inode(newParent)!),
      },
      inodes: [parent, newParent, moved.ino, other.ino],
    });
    const entered = this.intoRealm(access, plan, { moved, ...there });
    return this.intoRealm(access, entered, { moved: other, ...back });
  }
}
