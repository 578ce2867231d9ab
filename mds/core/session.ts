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
import type { SessionBody } from "./page.js";

export function openSession(metadata: Metadata, id: ClientId, open: SessionOpen): Delta[] {
  const { type, instance, host, pid, detail, generation = 0 } = open;
  const draft = new Draft(metadata);
  draft.add({ d: "sessionPut", id, type, instance, host, pid, detail, generation });
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
  dropGrants(draft, session, recovered);
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

function dropGrants(
  draft: Draft,
  session: SessionBody,
  recovered: ReadonlyMap<Ino, Recovered>,
): void {
  for (const [ino, maxSize] of session.exclusive) {
    const inode = draft.inode(ino);
    if (inode !== undefined) draft.put(afterGrant(inode, maxSize, recovered.get(ino)));
  }
}
/** The session goes on, but without any of its write grants. */
export function endGrants(
  metadata: Metadata,
  id: ClientId,
  recovered: ReadonlyMap<Ino, Recovered>,
): Delta[] {
  const session = metadata.session(id);
  if (session === undefined) return [];
  const draft = new Draft(metadata);
  const unwritten = [...session.exclusive.keys()].filter((ino) => !recovered.has(ino));
  const before = new Map(unwritten.map((ino) => [ino, draft.inode(ino)]));
  dropGrants(draft, session, recovered);
  for (const [ino, known] of before) {
    const inode = draft.inode(ino);
    if (inode !== undefined && known !== undefined) draft.put({ ...inode, recount: known.recount });
  }
  for (const ino of session.exclusive.keys()) draft.add({ d: "grantRemove", id, ino });
  return draft.finish();
}

function openByOthers(metadata: Metadata, ino: Ino, except: ClientId): boolean {
  for (const other of metadata.sessions()) {
    if (other.id !== except && other.orphans.has(ino)) return true;
  }
  return false;
}
