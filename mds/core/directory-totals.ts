/** Requests about the totals of directories and their quotas. Pure, as namespace.ts. */
import { DssError } from "../../cluster/base/errors.js";
import type { Ino } from "../../cluster/base/ids.js";
import type { Request } from "../proto.js";
import type { DirectoryTotals } from "../proto-totals.js";
import type { Access } from "./capability.js";
import type { Delta } from "./delta.js";
import { isDirectory } from "./inode.js";
import type { Metadata } from "./metadata.js";
import { emptyPlan, type Plan } from "./plan.js";
import { NO_QUOTA, QUOTAS_MAX, lowerBelow } from "./quota.js";

type Of<Op extends Request["op"]> = Extract<Request, { op: Op }>;
/** What a message can carry. */
const TOLD_MAX = 2n ** 63n - 1n;

export function describeTotals(metadata: Metadata, ino: Ino): DirectoryTotals {
  const inode = metadata.inode(ino);
  if (inode === undefined) throw new DssError("StaleHandle", `inode ${ino} does not exist`);
  if (!isDirectory(inode)) throw new DssError("NotDirectory", `inode ${ino} is no directory`);
  const { files, directories, bytes, allocated } = metadata.totals(ino);
  const limits = metadata.quotas.get(ino) ?? NO_QUOTA;
  return { ino, files, directories, bytes: told(bytes), allocated: told(allocated), ...limits };
}
function told(value: bigint): bigint {
  return value > TOLD_MAX ? TOLD_MAX : value;
}

/** The answer waits until everything that it counts is in the journal. */
export function getTotals(metadata: Metadata, { ino }: Of<"totals">): Plan {
  return { ...emptyPlan(), answer: { totals: describeTotals(metadata, ino) }, durable: true };
}

/** A member left out stays; a directory without any limit has no quota. */
export function setQuota(
  metadata: Metadata,
  access: Access,
  request: Omit<Of<"quotaSet">, "op">,
): Plan {
  const { ino } = request;
  access.see(ino);
  const totals = describeTotals(metadata, ino);
  const { maxBytes, maxInodes } = totals;
  const quota = {
    maxBytes: request.maxBytes ?? maxBytes,
    maxInodes: request.maxInodes ?? maxInodes,
  };
  const plan: Plan = { ...emptyPlan(), answer: { totals: { ...totals, ...quota } }, durable: true };
  if (quota.maxBytes === maxBytes && quota.maxInodes === maxInodes) return plan;
  const isNone = quota.maxBytes === 0 && quota.maxInodes === 0;
  if (!isNone && !metadata.quotas.has(ino) && metadata.quotas.size >= QUOTAS_MAX) {
    throw new DssError("TooBig", `${QUOTAS_MAX} directories have quotas`, {
      hint: "remove some, see dss quota ls",
    });
  }
  const isNew = maxBytes === 0 && maxInodes === 0;
  if (isNew || (maxBytes === 0 && quota.maxBytes > 0)) {
    plan.lowered = lowerBelow(metadata, access, ino);
  }
  const change: Delta = isNone ? { d: "quotaRemove", ino } : { d: "quotaPut", ino, quota };
  plan.record = [change];
  metadata.require(change);
  return plan;
}
