/**
 * An image as the only file of a FUSE mount, for what takes files and not NBD: losetup makes it a
 * block device (attach --loop). Reads and writes go past the kernel's page cache, because whoever
 * uses the file has a cache of its own. Holes that are punched and ranges that are zeroed read as
 * zeros and give their space back.
 */
import { DssError } from "../../cluster/base/errors.js";
import type {
  Attributes,
  DirEntry,
  Entry,
  FileSystem,
  OpenDirReply,
  OpenReply,
  StatFs,
} from "../../client-fs/file-system.js";
import type { BlockImage } from "../../nbd/block-image.js";

const ROOT = 1;
const FILE = 2;
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const VALID_MS = 1_000;
const BLOCK = 4096;
const ACCESS_MODE = 3;
const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const ZERO_RANGE = 0x10;

const refused = (what: string): DssError =>
  new DssError("NotPermitted", `${what}: this folder holds one volume and nothing else`);
/** For the many operations that there are none of here. */
const refuse = async (): Promise<never> => {
  throw refused("not possible");
};

export class VolumeFileSystem implements FileSystem {
  private readonly name: Buffer;
  private readonly startedNs: bigint;

  constructor(
    private readonly image: BlockImage,
    nowNs: bigint,
    /** Looks whether the image has another size. */
    private readonly refresh: () => Promise<void>,
  ) {
    this.name = Buffer.from(image.name, "utf8");
    this.startedNs = nowNs;
  }

  init(): void {
    // Nothing is cached, so the kernel is never told anything.
  }
  async destroy(): Promise<void> {
    if (!this.image.readOnly) await this.image.flush();
  }

  async lookup(parent: number, name: Buffer): Promise<Entry> {
    if (parent === ROOT && name.equals(this.name)) return this.entry(FILE);
    throw new DssError("NotFound", name.toString("utf8"));
  }
  forget(): void {
    // Both inodes live as long as the mount.
  }
  async getattr(ino: number): Promise<Entry> {
    if (ino === FILE) await this.refresh();
    return this.entry(ino);
  }
  /** Times may be set to no effect; a size is the volume's own. */
  async setattr(ino: number, changes: { size?: number; mode?: number }): Promise<Entry> {
    if (changes.size !== undefined && changes.size !== this.image.size) {
      throw new DssError("NotPermitted", "the size of a volume is not that of a file", {
        hint: "dss volume resize",
      });
    }
    return this.entry(ino);
  }

  async open(ino: number, flags: number): Promise<OpenReply> {
    if (ino !== FILE) throw new DssError("IsDirectory", "the folder of a volume");
    if (this.image.readOnly && (flags & ACCESS_MODE) !== 0) {
      throw new DssError("ReadOnly", `${this.image.name} is attached read-only`);
    }
    return { handle: 0, directIo: true, keepCache: false };
  }
  async read(_ino: number, _handle: number, offset: number, length: number): Promise<Buffer[]> {
    const end = Math.min(offset + length, this.image.size);
    return end <= offset ? [] : await this.image.read(offset, end - offset);
  }
  async write(_ino: number, _handle: number, offset: number, data: Buffer): Promise<number> {
    if (offset + data.length > this.image.size) throw this.beyond();
    await this.image.write(offset, data, { fua: false });
    return data.length;
  }
  async flush(): Promise<void> {
    // Of one descriptor: nothing is buffered.
  }
  async release(): Promise<void> {
    // Nothing is kept for a handle.
  }
  async fsync(): Promise<void> {
    await this.image.flush();
  }
  async fallocate(
    _ino: number,
    _handle: number,
    offset: number,
    length: number,
    mode: number,
  ): Promise<void> {
    if ((mode & ~(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE)) !== 0) {
      throw new DssError("NotSupported", `fallocate mode ${mode}`);
    }
    if (this.image.readOnly) throw new DssError("ReadOnly", "attached read-only");
    const end = Math.min(offset + length, this.image.size);
    if (offset + length > this.image.size && (mode & KEEP_SIZE) === 0) throw this.beyond();
    // Space itself cannot be reserved: a volume takes what is written.
    if ((mode & (PUNCH_HOLE | ZERO_RANGE)) === 0 || end <= offset) return;
    await this.image.zero(offset, end - offset, { fua: false, mayTrim: true, fast: false });
  }
  async syncfs(): Promise<void> {
    await this.image.flush();
  }

  async opendir(): Promise<OpenDirReply> {
    return { handle: 0, cacheListing: false, keepListing: false };
  }
  async readdir(_ino: number, _handle: number, cookie: number): Promise<Iterable<DirEntry>> {
    const names: [string, number, number][] = [
      [".", ROOT, S_IFDIR],
      ["..", ROOT, S_IFDIR],
      [this.image.name, FILE, S_IFREG],
    ];
    return names
      .map(([name, ino, type], i) => ({ name: Buffer.from(name), ino, type, cookie: i + 1 }))
      .slice(cookie);
  }
  entriesTaken(): void {
    // See `forget`.
  }
  async releasedir(): Promise<void> {
    // Nothing is kept for a handle.
  }
  async fsyncdir(): Promise<void> {
    // The listing never changes.
  }

  async statfs(): Promise<StatFs> {
    const blocks = Math.ceil(this.image.size / BLOCK);
    return {
      ...{ blockSize: BLOCK, blocks, blocksFree: 0, blocksAvailable: 0 },
      ...{ files: 1, filesFree: 0, nameMax: 255 },
    };
  }
  async getxattr(): Promise<Buffer> {
    throw new DssError("NoAttribute", "a volume has no attributes");
  }
  async listxattr(): Promise<Buffer> {
    return Buffer.alloc(0);
  }
  readonly readlink = refuse;
  readonly symlink = refuse;
  readonly mknod = refuse;
  readonly mkdir = refuse;
  readonly unlink = refuse;
  readonly rmdir = refuse;
  readonly rename = refuse;
  readonly link = refuse;
  readonly create = refuse;
  readonly setxattr = refuse;
  readonly removexattr = refuse;

  private beyond(): DssError {
    return new DssError("NoSpace", `beyond the end of ${this.image.name}`);
  }

  private entry(ino: number): Entry {
    const isFile = ino === FILE;
    const { size, readOnly } = this.image;
    const at = this.startedNs;
    const attributes: Attributes = {
      ...{ ino, uid: 0, gid: 0, rdev: 0, nlink: isFile ? 1 : 2, blksize: BLOCK },
      mode: isFile ? S_IFREG | (readOnly ? 0o400 : 0o600) : S_IFDIR | 0o500,
      size: isFile ? size : 0,
      blocks: isFile ? Math.ceil(size / 512) : 0,
      ...{ atimeNs: at, mtimeNs: at, ctimeNs: at, btimeNs: at },
    };
    return { attributes, generation: 0, entryValidMs: VALID_MS, attributesValidMs: VALID_MS };
  }
}
