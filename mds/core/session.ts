/**
 * Sessions as the journal knows them: opening, and the end with everything that a session leaves
 * behind. Pure. Leases, links and answers in memory belong to the leader (mds/leader.ts).
 */
import type { ClientId, Ino } from "../../cluster/base/ids.js";
import type { LastWord, SessionOpen } from "../proto.js";
import type { CapabilityTable } from "./capability.js";
import type { Delta } from "./delta.js";
import { Draft, afterGrant } from "./draft.js";
import type { Metadata } from "./metadata.js";

export function openSession(metadata: Metadata, id: ClientId, open: SessionOpen): Delta[] {
  const { type, instance, host, pid, detail } = open;
  const draft = new Draft(metadata);
  draft.add({ d: "sessionPut", id, type, instance, host, pid, detail });
  draft.add({ d: "sessionListed", id, live: true });
  return draft.finish();
}

/** Sessions that `open` succeeds: the same program, started again. */
export function predecessors(metadata: Metadata, open: SessionOpen): ClientId[] {
  if (open.instance === "") return [];
  return [...metadata.sessions()]
    .filter((session) => session.instance === open.instance && session.id !== open.client)
    .map((session) => session.id);
}

/** What a dead holder's objects say about a file. */
export type Recovered = LastWord;

/**
 * The end of a session: grants are dropped (with what was recovered of the files it wrote),
 * unlinked files that only it had open go, and with it its locks. `removed` are inodes that are
 * gone.
 */
export function endSession(
  metadata: Metadata,
  capabilities: CapabilityTable,
  { id, recovered }: { id: ClientId; recovered: ReadonlyMap<Ino, Recovered> },
): { record: Delta[]; removed: Ino[] } {
  const session = metadata.session(id);
  if (session === undefined) return { record: [], removed: [] };
  const draft = new Draft(metadata);
  const removed: Ino[] = [];
  for (const [ino, maxSize] of session.exclusive) {
    const inode = draft.inode(ino);
    if (inode === undefined) continue;
    const found = recovered.get(ino);
    const changed = afterGrant(inode, maxSize, found);
    draft.put(changed);
  }
  for (const ino of session.orphans) {
    const inode = draft.inode(ino);
    if (inode === undefined || inode.nlink > 0 || openByOthers(metadata, ino, id)) continue;
    draft.removeInode(inode, capabilities);
    removed.push(ino);
  }
  draft.add({ d: "sessionRemove", id });
  draft.add({ d: "sessionListed", id, live: false });
  return { record: draft.finish(), removed };
}

function openByOthers(metadata: Metadata, ino: Ino, except: ClientId): boolean {
  for (const other of metadata.sessions()) {
    if (other.id !== except && other.orphans.has(ino)) return true;
  }
  return false;
}
