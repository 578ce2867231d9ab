/**
 * What this mount knows of the names in directories: those that answers and its own changes bring,
 * absent ones included, under the directory's capability (`Node.names`). Pure bookkeeping.
 */
import type { Ino } from "../../cluster/base/ids.js";
import { COLLISIONS_MAX, firstCookie, nameHash } from "../../mds/proto-order.js";
import type { DirectoryEntry, MdsReply, Request } from "../../mds/proto.js";
import { S_IFDIR, S_IFMT, type Node } from "./node.js";
import type { NodeTable } from "./node-table.js";

/** Names of one directory that are kept. */
const NAMES_MAX = 262_144;
/** Larger directories are listed by the leader, page by page. */
const LISTED_MAX = 4_096;

export class Names {
  constructor(private readonly table: Pick<NodeTable, "get" | "peek" | "valid" | "lasting">) {}

  /** What an answer says of names. */
  apply(request: Request, reply: MdsReply): void {
    const { answer } = reply;
    switch (request.op) {
      case "lookup":
        this.tell(request.parent, request.name, answer.inode?.ino ?? 0);
        return;
      case "create": {
        const ino = answer.inode?.ino;
        if (ino === undefined) return;
        this.change(request.parent, request.name, ino);
        const node = this.table.get(ino);
        if (ino === request.ino) node.unshared = node.mode !== "none";
        if (ino === request.ino && (request.mode & S_IFMT) === S_IFDIR && node.mode !== "none") {
          node.names = new Map(); // Empty, and all names are known.
          node.complete = true;
        }
        return;
      }
      case "link":
        this.change(request.parent, request.name, request.ino);
        return;
      case "unlink":
      case "rmdir":
        this.change(request.parent, request.name, 0);
        return;
      case "rename": {
        this.table.get(request.parent).listingEpoch++;
        this.table.get(request.newParent).listingEpoch++;
        const moved = answer.inode?.ino;
        if (moved === undefined) {
          this.forget(request.parent, request.name);
          this.forget(request.newParent, request.newName);
          return;
        }
        if (answer.removed === undefined && answer.other === undefined) {
          // Nothing was there, or it was another name of the same file, and then both stay.
          const directory = this.table.peek(request.newParent);
          const target = directory && this.find(directory, request.newName);
          if (target === moved) return;
          if (target === undefined) {
            this.forget(request.parent, request.name);
            this.forget(request.newParent, request.newName);
            return;
          }
        }
        this.set(request.parent, request.name, answer.other?.ino ?? 0);
        this.set(request.newParent, request.newName, moved);
        return;
      }
      case "readdir":
        for (const entry of answer.entries ?? []) {
          this.tell(request.ino, entry.name, entry.ino);
        }
        return;
      default: // Does not concern names.
    }
  }
  /** What a look changed nothing of: older than what was changed here since. */
  private tell(parent: Ino, name: Buffer, ino: Ino): void {
    if (this.table.peek(parent)?.promisedNames?.has(nameKey(name)) === true) return;
    this.set(parent, name, ino);
  }
  /** By this mount, now. */
  change(parent: Ino, name: Buffer, ino: Ino): void {
    this.table.get(parent).listingEpoch++;
    this.set(parent, name, ino);
  }
  private set(parent: Ino, name: Buffer, ino: Ino): void {
    const directory = this.table.get(parent);
    if (ino !== 0) {
      const child = this.table.peek(ino);
      if (child !== undefined) child.parent = parent;
    }
    if (directory.mode === "none") return;
    directory.names ??= new Map();
    const key = nameKey(name);
    if (ino === 0 && directory.complete) directory.names.delete(key);
    else if (directory.names.size < NAMES_MAX || directory.names.has(key)) {
      directory.names.set(key, ino);
    } else {
      directory.complete = false;
    }
  }
  private forget(parent: Ino, name: Buffer): void {
    const directory = this.table.peek(parent);
    if (directory === undefined) return;
    directory.names?.delete(nameKey(name));
    directory.complete = false;
    directory.namesEpoch++; // A listing that is under way does not make them complete.
  }
  /** The inode behind a name: 0 when it does not exist, undefined when that must be asked. */
  find(directory: Node, name: Buffer): Ino | undefined {
    if (!this.table.valid(directory) || directory.names === undefined) return undefined;
    return directory.names.get(nameKey(name)) ?? (directory.complete ? 0 : undefined);
  }

  /**
   * What the leader would list after `cookie`, without asking it: a reader need not wait until the
   * leader has heard of the changes that were made here. Undefined when something of it must be
   * asked: a name, the type of an inode, or, with `attributes`, those.
   */
  list(directory: Node, cookie: number, attributes: boolean): DirectoryEntry[] | undefined {
    const { names, complete } = directory;
    if (!complete || names === undefined || names.size > LISTED_MAX) return undefined;
    // Names of equal hash have numbers that the leader gave them.
    if (!this.table.lasting(directory) || cookie % COLLISIONS_MAX !== 0) return undefined;
    const entries: DirectoryEntry[] = [];
    for (const [key, ino] of names) {
      if (ino === 0) continue;
      const node = this.table.peek(ino);
      if (node?.inode === undefined) return undefined;
      if (attributes && !this.table.valid(node)) return undefined;
      const name = Buffer.from(key, "latin1");
      const type = node.inode.mode & S_IFMT;
      entries.push({ name, ino, type, cookie: firstCookie(nameHash(name)) });
    }
    entries.sort((a, b) => a.cookie - b.cookie);
    const alike = entries.some((entry, i) => i > 0 && entries[i - 1]!.cookie === entry.cookie);
    return alike ? undefined : entries.filter((entry) => entry.cookie > cookie);
  }

  /** A listing has brought every name, and nothing was thrown away since it began. */
  noteComplete(directory: Node): void {
    if (!this.table.lasting(directory)) return;
    directory.names ??= new Map();
    if (directory.names.size < NAMES_MAX) directory.complete = true;
  }
}

export function nameKey(name: Buffer): string {
  return name.toString("latin1");
}
