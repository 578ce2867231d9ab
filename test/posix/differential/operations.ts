/**
 * Random operations on a small tree: few names and few open files, so that they meet. Determined by
 * the seed. Pure.
 */
import { constants } from "node:fs";
import type { Prng } from "../../../cluster/base/prng.js";

/** As the executor reads it: `via` is the mount, `uid_` who does it. */
export interface Operation {
  op: string;
  via: number;
  uid_: number;
  [member: string]: string | number;
}

const { O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_EXCL, O_TRUNC, O_APPEND, O_NOFOLLOW, O_DIRECTORY } =
  constants;
const KIB = 1024;
const OBJECT = 4 * KIB * KIB;
const SLOTS = 6;
const USERS = [0, 0, 0, 1000, 1001];
const FOLDERS = ["", "d/", "e/", "d/s/"];
const NAMES = ["a", "b", "c", "d", "e", "s", "x".repeat(255)];
const MODES = [0o644, 0o600, 0o666, 0o755, 0o777, 0o4755, 0o2775, 0o1777, 0o6777, 0, 0o070];
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
/** As uapi/linux/falloc.h: allocate, keep size, punch a hole, zero a range; the last is refused. */
const FALLOCATE = [0, 1, 3, 16, 17, 2];
/** version 2; owner rwx, a user, owning group, mask, others. */
const acl = (permissions: readonly number[]): string => {
  const tags = [1, 2, 4, 16, 32];
  const entries = tags.map((tag, index) => {
    const entry = Buffer.alloc(8);
    entry.writeUInt16LE(tag, 0);
    entry.writeUInt16LE(permissions[index] ?? 0, 2);
    entry.writeUInt32LE(tag === 2 ? 1001 : 0xffff_ffff, 4);
    return entry;
  });
  return Buffer.concat([Buffer.from([2, 0, 0, 0]), ...entries]).toString("hex");
};

export class Generator {
  constructor(private readonly random: Prng) {}

  private path(): string {
    return this.random.pick(FOLDERS) + this.random.pick(NAMES);
  }
  private folder(): string {
    return this.random.pick(["", "d", "e", "d/s", this.path()]);
  }
  private slot(): number {
    return this.random.int(0, SLOTS - 1);
  }
  /** Places near a border are what goes wrong. */
  private place(): number {
    const { random } = this;
    if (random.chance(0.2)) return Math.max(0, OBJECT * random.int(0, 2) + random.int(-5000, 5000));
    if (random.chance(0.3)) return 4 * KIB * random.int(0, 12);
    return random.int(0, 50 * KIB);
  }
  private range(): { at: number; length: number } {
    const { random } = this;
    const length = random.chance(0.5) ? random.int(1, 200) : random.int(1, 40 * KIB);
    return { at: this.place(), length };
  }
  private fill(): number {
    return this.random.int(0, 60 * KIB);
  }
  private openFlags(): number {
    const { random } = this;
    let flags = random.pick([O_RDONLY, O_WRONLY, O_RDWR, O_RDWR, O_RDWR]);
    if (random.chance(0.6)) flags |= O_CREAT;
    for (const [flag, chance] of [
      [O_EXCL, 0.1],
      [O_TRUNC, 0.15],
      [O_APPEND, 0.2],
      [O_NOFOLLOW, 0.1],
      [O_DIRECTORY, 0.03],
    ] as const) {
      if (random.chance(chance)) flags |= flag;
    }
    return flags;
  }

  /** Of one open file. */
  private onSlot(): Record<string, string | number> {
    const { random } = this;
    const slot = this.slot();
    return random.pick([
      () => ({ op: "pwrite", slot, ...this.range(), fill: this.fill() }),
      () => ({ op: "pwrite", slot, ...this.range(), fill: this.fill() }),
      () => ({ op: "write", slot, length: this.range().length, fill: this.fill() }),
      () => ({ op: "pread", slot, ...this.range() }),
      () => ({ op: "pread", slot, ...this.range() }),
      () => ({ op: "read", slot, length: this.range().length }),
      () => ({ op: "rewind", slot, at: this.place() }),
      () => ({ op: "seek", slot, at: this.place(), whence: random.pick([SEEK_DATA, SEEK_HOLE]) }),
      () => ({ op: "copy", slot, target: this.slot(), ...this.range(), to: this.place() }),
      () => ({
        op: random.pick(["mapread", "mapwrite"]),
        slot,
        ...this.range(),
        fill: this.fill(),
      }),
      () => ({ op: "ftruncate", slot, size: random.chance(0.2) ? 0 : this.place() }),
      () => ({ op: "fallocate", slot, ...this.range(), how: random.pick(FALLOCATE) }),
      () => ({ op: random.pick(["fsync", "fdatasync"]), slot }),
      () => ({ op: "fstat", slot }),
      () => ({ op: "fchmod", slot, mode: random.pick(MODES) }),
      () => ({ op: "close", slot }),
    ])();
  }

  /** Of names. */
  private onName(): Record<string, string | number> {
    const { random } = this;
    const path = this.path();
    const mode = random.pick(MODES);
    const direct = { at: 4 * KIB * random.int(0, 20), length: 4 * KIB * random.int(1, 6) };
    return random.pick([
      () => ({ op: "open", slot: this.slot(), path, flags: this.openFlags(), mode }),
      () => ({ op: "open", slot: this.slot(), path, flags: this.openFlags(), mode }),
      () => ({ op: "open", slot: this.slot(), path, flags: this.openFlags(), mode }),
      () => ({ op: "open", slot: this.slot(), path, flags: O_RDWR | O_CREAT, mode: 0o666 }),
      () => ({ op: "tmpfile", slot: this.slot(), path: this.folder(), flags: O_RDWR, mode }),
      () => ({ op: "linkfd", slot: this.slot(), path }),
      () => ({ op: "truncate", path, size: this.place() }),
      () => ({ op: "dread", path, ...direct }),
      () => ({ op: "dwrite", path, ...direct, fill: this.fill() }),
      () => ({ op: random.pick(["stat", "lstat"]), path }),
      () => ({ op: random.pick(["stat", "lstat"]), path: this.folder() }),
      () => ({ op: "mkdir", path, mode }),
      () => ({ op: "mkdir", path: random.pick(["d", "e", "d/s"]), mode: 0o777 }),
      () => ({ op: "rmdir", path }),
      () => ({ op: "unlink", path }),
      () => ({ op: "unlink", path }),
      () => ({ op: "rename", path, to: this.path(), flags: random.pick([0, 0, 0, 1, 2]) }),
      () => ({ op: "rename", path, to: this.path(), flags: 0 }),
      () => ({ op: "link", path, to: this.path() }),
      () => ({ op: "symlink", path, target: random.pick([...NAMES, "../a", "d/s", "none"]) }),
      () => ({ op: "readlink", path }),
      () => ({ op: "chmod", path, mode }),
      () => ({ op: "chown", path, uid: random.pick([0, 1000, 1001]), gid: random.pick([0, 1000]) }),
      () => ({
        ...{ op: "utime", path },
        ...{ atime: random.int(0, 1e9), mtime: random.int(0, 1e9) },
      }),
      () => ({ op: "mknod", path, mode: random.pick([0o010644, 0o140600, 0o020600, 0o100640]) }),
      () => ({ op: "readdir", path: this.folder() }),
      () => ({ op: "access", path, mode: random.int(0, 7) }),
      () => this.onXattr(path),
    ])();
  }

  private onXattr(path: string): Record<string, string | number> {
    const { random } = this;
    const lists = ["system.posix_acl_access", "system.posix_acl_default"];
    const name = random.pick(["user.a", "user.b", "trusted.c", ...lists]);
    const bits = [7, 6, random.int(0, 7), random.int(0, 7), random.int(0, 7)];
    const value = name.startsWith("system.") ? acl(bits) : "00ff10".repeat(random.int(0, 20));
    const op = random.pick(["setxattr", "setxattr", "getxattr", "removexattr", "listxattr"]);
    // XATTR_CREATE and XATTR_REPLACE; for lists the kernel has its own mind.
    const flags = name.startsWith("system.") ? 0 : random.pick([0, 0, 1, 2]);
    return { op, path: random.chance(0.3) ? this.folder() : path, name, value, flags };
  }

  next(): Operation {
    const { random } = this;
    const chosen = random.chance(0.5) ? this.onSlot() : this.onName();
    return { via: random.int(0, 1), uid_: random.pick(USERS), ...chosen } as Operation;
  }
}

/** A tree to begin with, that everybody may change. */
export const BEGINNING: readonly Operation[] = [
  { op: "mkdir", via: 0, uid_: 0, path: "d", mode: 0o777 },
  { op: "chmod", via: 0, uid_: 0, path: "d", mode: 0o777 },
  { op: "mkdir", via: 0, uid_: 0, path: "e", mode: 0o777 },
  { op: "chmod", via: 0, uid_: 0, path: "e", mode: 0o3777 },
  { op: "mkdir", via: 1, uid_: 0, path: "d/s", mode: 0o777 },
];
