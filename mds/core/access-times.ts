/** Reads that mounts tell of, many at a time (client-fs/vfs/access-times.ts). Pure. */
import type { Ino } from "../../cluster/base/ids.js";
import type { Request } from "../proto.js";
import type { Access } from "./capability.js";
import { Draft } from "./draft.js";
import { faultTogether, type Metadata } from "./metadata.js";
import { inodePageKey } from "./page.js";
import { emptyPlan, type Plan } from "./plan.js";

/**
 * Times of access go forward only, and nobody is asked for anything on their account: who caches
 * the attributes goes on showing the older time.
 */
export function noteAccessed(
  metadata: Metadata,
  access: Access,
  { reads }: Extract<Request, { op: "accessed" }>,
): Plan {
  faultTogether(
    metadata.cache,
    reads.map(({ ino }) => inodePageKey(ino)),
  );
  const draft = new Draft(metadata);
  const hides: Ino[] = [];
  for (const { ino, atimeNs } of reads) {
    access.see(ino);
    const inode = draft.inode(ino);
    if (inode === undefined || inode.atimeNs >= atimeNs) continue;
    draft.put({ ...inode, atimeNs });
    hides.push(ino);
  }
  return draft.changed ? { ...emptyPlan(), record: draft.finish(), hides } : emptyPlan();
}
