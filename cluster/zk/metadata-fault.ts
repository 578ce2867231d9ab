/**
 * The note that a leader leaves when it refuses the metadata: the process ends, and whoever asks
 * for the cluster's health still learns why nobody serves. Written and removed under the term.
 */
import type { MdsId } from "../base/ids.js";
import type { Coordination, CoordinationOp, Znode } from "./coordination.js";
import { multiUnder, type Term } from "./election.js";
import { FAULT_PATH } from "./schema.js";

export interface MetadataFault {
  mds: MdsId;
  message: string;
  /** Wall-clock ms since 1970. */
  atMs: number;
}

/** Errors: Fenced, those of a request. */
export async function noteFault(
  coordination: Coordination,
  term: Term,
  fault: MetadataFault,
): Promise<void> {
  const data = Buffer.from(JSON.stringify(fault), "utf8");
  const present = await coordination.get(FAULT_PATH);
  const op: CoordinationOp = present
    ? { op: "set", path: FAULT_PATH, data, version: present.version }
    : { op: "create", path: FAULT_PATH, data };
  await multiUnder(coordination, term, [op]);
}

/** The metadata is good. Errors: Fenced, those of a request. */
export async function clearFault(coordination: Coordination, term: Term): Promise<void> {
  const present = await coordination.get(FAULT_PATH);
  if (present === undefined) return;
  const op: CoordinationOp = { op: "remove", path: FAULT_PATH, version: present.version };
  await multiUnder(coordination, term, [op]);
}

/** Undefined when there is none; a note that cannot be read still says that there is a fault. */
export function decodeFault(node: Znode | undefined): MetadataFault | undefined {
  if (node === undefined) return undefined;
  try {
    const { mds, message, atMs } = JSON.parse(node.data.toString("utf8")) as MetadataFault;
    if (typeof mds === "number" && typeof message === "string" && typeof atMs === "number") {
      return { mds, message, atMs };
    }
  } catch {
    // Below.
  }
  return { mds: -1, message: `${FAULT_PATH} cannot be read`, atMs: 0 };
}
