/**
 * Extended attributes that nobody stored: the recursive totals of a directory, and its quota. They
 * are the leader's, asked for each time, and not listed (as CephFS has them). Quotas are root's to
 * set.
 */
import { DssError } from "../../cluster/base/errors.js";
import type { Ino } from "../../cluster/base/ids.js";
import type { MdsClient } from "../../mds/client/mds-client.js";
import type { Request } from "../../mds/proto.js";
import type { DirectoryTotals } from "../../mds/proto-totals.js";

const PREFIX = Buffer.from("dss.");
const READERS: Record<string, (totals: DirectoryTotals) => bigint | number> = {
  "dss.dir.rfiles": ({ files }) => files,
  "dss.dir.rsubdirs": ({ directories }) => directories,
  "dss.dir.rentries": ({ files, directories }) => files + directories,
  "dss.dir.rbytes": ({ bytes }) => bytes,
  "dss.dir.rallocated": ({ allocated }) => allocated,
};
const LIMITS: Record<string, "maxBytes" | "maxInodes"> = {
  "dss.quota.max_bytes": "maxBytes",
  "dss.quota.max_inodes": "maxInodes",
};

export function isDirectoryXattr(name: Buffer): boolean {
  return name.subarray(0, PREFIX.length).equals(PREFIX);
}

/** Errors: NoAttribute, of other inodes than directories too. */
export async function getDirectoryXattr(mds: MdsClient, ino: Ino, name: Buffer): Promise<Buffer> {
  const text = name.toString("latin1");
  const read = Object.hasOwn(READERS, text) ? READERS[text] : undefined;
  const limit = Object.hasOwn(LIMITS, text) ? LIMITS[text] : undefined;
  if (read === undefined && limit === undefined) throw noAttribute(text);
  const totals = await ask(mds, { op: "totals", ino }, text);
  const value = read === undefined ? totals[limit!] : read(totals);
  if (limit !== undefined && value === 0) throw noAttribute(text);
  return Buffer.from(String(value));
}

/** A limit of 0 takes it away. Errors: NotPermitted, InvalidArgument, NoAttribute. */
export async function setDirectoryXattr(
  mds: MdsClient,
  { ino, name, value, uid }: { ino: Ino; name: Buffer; value: Buffer; uid: number },
): Promise<void> {
  const text = name.toString("latin1");
  const limit = Object.hasOwn(LIMITS, text) ? LIMITS[text] : undefined;
  if (limit === undefined) {
    if (Object.hasOwn(READERS, text)) throw new DssError("NotPermitted", `${text} is read only`);
    throw new DssError("NotSupported", `there is no attribute ${text}`);
  }
  if (uid !== 0) throw new DssError("NotPermitted", "only root sets quotas");
  const number = /^\d{1,16}$/.test(value.toString("latin1")) ? Number(value.toString()) : NaN;
  if (!Number.isSafeInteger(number)) {
    throw new DssError("InvalidArgument", `${text} is a whole number of bytes or inodes`);
  }
  await ask(mds, { op: "quotaSet", ino, [limit]: number }, text);
}

async function ask(
  mds: MdsClient,
  request: Extract<Request, { op: "totals" | "quotaSet" }>,
  name: string,
): Promise<DirectoryTotals> {
  try {
    return (await mds.call(request)).answer.totals!;
  } catch (error) {
    if (error instanceof DssError && error.code === "NotDirectory") throw noAttribute(name);
    throw error;
  }
}
function noAttribute(name: string): DssError {
  return new DssError("NoAttribute", `there is no ${name} here`);
}
