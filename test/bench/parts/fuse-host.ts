/** `fuse-host.js MOUNTPOINT`: a mount that keeps names and sizes, but no bytes. */
import type { Entry } from "../../../client-fs/file-system.js";
import { DssError } from "../../../cluster/base/errors.js";
import { MemoryFileSystem, serve } from "../../integration/memory-fs.js";

const ZEROS = Buffer.alloc(2 ** 20);
/** One instance, as the mount of dss has it: a stack trace is not free. */
const NOT_FOUND = new DssError("NotFound", "no such name");
const NO_ATTRIBUTE = new DssError("NoAttribute", "no such attribute");

class HollowFileSystem extends MemoryFileSystem {
  override lookup(parent: number, name: Buffer): Promise<Entry> {
    const known = this.inodes.get(parent)?.names.has(name.toString("latin1"));
    return known === true ? super.lookup(parent, name) : Promise.reject(NOT_FOUND);
  }
  override getxattr(): Promise<Buffer> {
    return Promise.reject(NO_ATTRIBUTE);
  }
  override read(ino: number, _handle: number, offset: number, length: number): Promise<Buffer[]> {
    const end = Math.min(offset + length, this.sizeOf(ino));
    const pieces: Buffer[] = [];
    for (let left = end - offset; left > 0; left -= ZEROS.length) {
      pieces.push(ZEROS.subarray(0, Math.min(left, ZEROS.length)));
    }
    return Promise.resolve(pieces);
  }
  override write(ino: number, _handle: number, offset: number, data: Buffer): Promise<number> {
    const inode = this.inodes.get(ino);
    if (inode !== undefined) inode.size = Math.max(inode.size, offset + data.length);
    return Promise.resolve(data.length);
  }
  private sizeOf(ino: number): number {
    return this.inodes.get(ino)?.size ?? 0;
  }
}

await serve(new HollowFileSystem(), "kernel", process.argv[2] ?? "");
