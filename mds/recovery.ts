/**
 * What the objects of a file say about its size and time after the holder of its write grant died:
 * the grant let it write below `bound` without telling anyone. Only objects from the published end
 * up to there are asked.
 */
import type { Epoch } from "../cluster/base/ids.js";
import { objectName } from "../cluster/base/object-name.js";
import type { ObjectAccess } from "../osd/client/object-access.js";
import {
  fileSizeProvedBy,
  filePrefix,
  objectCount,
  objectSizeWithin,
} from "../osd/client/striper.js";
import type { InodeRecord } from "./core/inode.js";
import type { Recovered } from "./core/session.js";
import { denseBytes, isDense } from "./core/space.js";

/** Objects asked at the same time for one file. */
const PARALLEL = 16;

/** Fails as ObjectAccess.stat does; the caller tries again. */
export async function recoverFile(
  objects: Pick<ObjectAccess, "stat">,
  inode: InodeRecord,
  { bound, minEpoch }: { bound: number; minEpoch: Epoch },
): Promise<Recovered> {
  const { layout, allocated } = inode;
  const found: Recovered = { size: inode.size, mtimeNs: inode.mtimeNs, allocated, recount: true };
  if (layout === undefined) return found;
  const count = objectCount(layout, Math.max(bound, inode.size));
  // The stripe that holds the published end may reach beyond it.
  const setBytes = layout.objectSize * layout.stripeCount;
  const sets = Math.floor(Math.max(0, inode.size - 1) / setBytes);
  let next = sets * layout.stripeCount;
  // Below that a file without holes has no room for more; any other may have got something there.
  const before = { mode: inode.mode, size: sets * setBytes };
  if (isDense(inode) && !inode.recount) {
    found.allocated = denseBytes(before);
    found.recount = false;
  }
  const worker = async (): Promise<void> => {
    while (next < count) {
      const index = next++;
      const address = { pool: layout.pool, object: objectName(filePrefix(inode.ino), index) };
      const truncation = {
        seq: inode.truncateSeq,
        size: inode.truncateSeq === 0 ? 0 : objectSizeWithin(layout, index, inode.truncateSize),
      };
      const stat = await objects.stat(address, { truncation, minEpoch });
      if (!stat.exists) continue;
      if (!found.recount) found.allocated += stat.allocated;
      found.size = Math.max(found.size, fileSizeProvedBy(layout, index, stat.size));
      if (stat.mtimeNs > found.mtimeNs) found.mtimeNs = stat.mtimeNs;
    }
  };
  await Promise.all(Array.from({ length: PARALLEL }, worker));
  return found;
}
