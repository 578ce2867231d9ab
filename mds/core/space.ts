/**
 * What `st_blocks` tells: bytes of the blocks that hold data. The holder of the write grant counts
 * and publishes it with the size; where nobody can know (a holder died), `recount` says that the
 * leader has to ask the objects (mds/recounter.ts). Pure.
 */
import type { Inode } from "../proto.js";

/** The chunk store's blocks. */
export const BLOCK = 4_096;
const S_IFMT = 0o170000;
const S_IFREG = 0o100000;

type Extent = Pick<Inode, "mode" | "size">;
export type Space = Pick<Inode, "allocated" | "recount">;

/** What a file of this size without holes has. */
export function denseBytes({ mode, size }: Extent): number {
  return (mode & S_IFMT) === S_IFREG ? Math.ceil(size / BLOCK) * BLOCK : 0;
}
export function isDense(inode: Extent & Pick<Inode, "allocated">): boolean {
  return inode.allocated === denseBytes(inode);
}

/** After a truncation by somebody who does not say; the holder's next word is better. */
export function spaceAfterResize(inode: Extent & Space, size: number): Space {
  const { allocated, recount } = inode;
  if (size >= inode.size) return { allocated, recount };
  if (size === 0) return { allocated: 0, recount: false };
  const left = denseBytes({ mode: inode.mode, size });
  if (isDense(inode)) return { allocated: left, recount };
  return { allocated: Math.min(allocated, left), recount: recount || allocated > 0 };
}
