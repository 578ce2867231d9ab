/**
 * Journal records: what an operation changes, resolved to single facts about single pages, so that
 * replay needs no decisions and can skip each page on its own. Applying one twice, or to a page
 * whose later form is known, changes nothing wrongly.
 * The numbers are published with the journal format: never reuse one.
 */
import { unreachable } from "../../cluster/base/assert.js";
import { DssError } from "../../cluster/base/errors.js";
import type { ClientId, Ino } from "../../cluster/base/ids.js";
import type { SessionType } from "../proto.js";
import type { Reader, Writer } from "./binary.js";
import { readDentry, writeDentry, type Dentry } from "./dentry.js";
import { readInode, writeInode, type InodeRecord } from "./inode.js";
import {
  COUNTERS,
  readPurge,
  readVolume,
  writePurge,
  writeVolume,
  type Counter,
  type PurgeEntry,
  type VolumeRecord,
} from "./page.js";
import { readQuota, writeQuota, type Quota } from "./quota.js";
import { readTotals, writeTotals } from "./totals.js";
import { makeChain, type TotalsAdd } from "./totals-changes.js";

export type Delta =
  | { d: "inodePut"; inode: InodeRecord }
  | { d: "inodeRemove"; ino: Ino }
  | { d: "dentryPut"; directory: Ino; entry: Dentry }
  | { d: "dentryRemove"; directory: Ino; name: Buffer }
  | { d: "directorySplit"; directory: Ino; prefix: string }
  | { d: "directoryDrop"; directory: Ino; prefix: string }
  | { d: "xattrPut"; ino: Ino; name: Buffer; value: Buffer }
  | { d: "xattrRemove"; ino: Ino; name: Buffer }
  | { d: "xattrDrop"; ino: Ino }
  | {
      d: "sessionPut";
      id: ClientId;
      type: SessionType;
      instance: string;
      host: string;
      pid: number;
      detail: string;
      generation: number;
    }
  /** Another worker goes on with the session; `worker` is the id of its object operations. */
  | { d: "sessionWorker"; id: ClientId; worker: ClientId; generation: number; pid: number }
  | { d: "sessionRemove"; id: ClientId }
  | { d: "sessionDone"; id: ClientId; request: number; floor: number }
  | { d: "sessionRange"; id: ClientId; first: Ino; count: number }
  | { d: "orphanAdd"; id: ClientId; ino: Ino }
  | { d: "orphanRemove"; id: ClientId; ino: Ino }
  | { d: "grantPut"; id: ClientId; ino: Ino; maxSize: number }
  | { d: "grantRemove"; id: ClientId; ino: Ino }
  | { d: "volumePut"; volume: VolumeRecord }
  | { d: "volumeRemove"; volume: number }
  | { d: "volumeUse"; id: ClientId; volume: number; write: boolean }
  | { d: "volumeLeave"; id: ClientId; volume: number }
  | { d: "purgePut"; entry: PurgeEntry }
  | { d: "purgeProgress"; id: number; next: number }
  | { d: "purgeRemove"; id: number }
  | { d: "purgePage"; page: number; used: boolean }
  | { d: "sessionListed"; id: ClientId; live: boolean }
  /** In the journal for one directory; of an operation for those above it too. */
  | TotalsAdd
  /** So many names of the file are in the directory; told of files with several. */
  | { d: "linkPut"; ino: Ino; directory: Ino; count: number }
  | { d: "linkDrop"; ino: Ino }
  | { d: "quotaPut"; ino: Ino; quota: Quota }
  | { d: "quotaRemove"; ino: Ino }
  | { d: "counter"; counter: Counter; value: number };

const NUMBER: Record<Delta["d"], number> = {
  inodePut: 1,
  inodeRemove: 2,
  dentryPut: 3,
  dentryRemove: 4,
  directorySplit: 5,
  directoryDrop: 6,
  xattrPut: 7,
  xattrRemove: 8,
  xattrDrop: 9,
  sessionPut: 10,
  sessionRemove: 11,
  sessionDone: 12,
  sessionRange: 13,
  orphanAdd: 14,
  orphanRemove: 15,
  grantPut: 16,
  grantRemove: 17,
  volumePut: 18,
  volumeRemove: 19,
  volumeUse: 20,
  volumeLeave: 21,
  purgePut: 22,
  purgeProgress: 23,
  purgeRemove: 24,
  purgePage: 25,
  sessionListed: 26,
  counter: 27,
  sessionWorker: 28,
  totalsAdd: 29,
  linkPut: 30,
  linkDrop: 31,
  quotaPut: 32,
  quotaRemove: 33,
};
const KIND = new Map(Object.entries(NUMBER).map(([name, n]) => [n, name as Delta["d"]]));

export function writeDelta(out: Writer, delta: Delta): void {
  out.u8(NUMBER[delta.d]);
  switch (delta.d) {
    case "inodePut":
      return writeInode(out, delta.inode);
    case "inodeRemove":
    case "xattrDrop":
    case "linkDrop":
    case "quotaRemove":
      return out.uint(delta.ino);
    case "totalsAdd":
      // One directory: what operations add is summed up for the journal (journal.ts).
      out.uint(delta.chain.inos[0]!);
      return writeTotals(out, delta.by);
    case "linkPut":
      out.uint(delta.ino);
      out.uint(delta.directory);
      return out.uint(delta.count);
    case "quotaPut":
      out.uint(delta.ino);
      return writeQuota(out, delta.quota);
    case "dentryPut":
      out.uint(delta.directory);
      return writeDentry(out, delta.entry);
    case "dentryRemove":
      out.uint(delta.directory);
      return out.bytes(delta.name);
    case "directorySplit":
    case "directoryDrop":
      out.uint(delta.directory);
      return out.text(delta.prefix);
    case "xattrPut":
      out.uint(delta.ino);
      out.bytes(delta.name);
      return out.bytes(delta.value);
    case "xattrRemove":
      out.uint(delta.ino);
      return out.bytes(delta.name);
    case "sessionPut":
      out.uint(delta.id);
      for (const text of [delta.type, delta.instance, delta.host, delta.detail]) out.text(text);
      out.uint(delta.pid);
      return out.uint(delta.generation);
    case "sessionWorker":
      out.uint(delta.id);
      out.uint(delta.worker);
      out.uint(delta.generation);
      return out.uint(delta.pid);
    case "sessionRemove":
      return out.uint(delta.id);
    case "sessionDone":
      out.uint(delta.id);
      out.uint(delta.request);
      return out.uint(delta.floor);
    case "sessionRange":
      out.uint(delta.id);
      out.uint(delta.first);
      return out.uint(delta.count);
    case "orphanAdd":
    case "orphanRemove":
    case "grantRemove":
      out.uint(delta.id);
      return out.uint(delta.ino);
    case "grantPut":
      out.uint(delta.id);
      out.uint(delta.ino);
      return out.uint(delta.maxSize);
    case "volumePut":
      return writeVolume(out, delta.volume);
    case "volumeRemove":
      return out.uint(delta.volume);
    case "volumeUse":
      out.uint(delta.id);
      out.uint(delta.volume);
      return out.bool(delta.write);
    case "volumeLeave":
      out.uint(delta.id);
      return out.uint(delta.volume);
    case "purgePut":
      return writePurge(out, delta.entry);
    case "purgeProgress":
      out.uint(delta.id);
      return out.uint(delta.next);
    case "purgeRemove":
      return out.uint(delta.id);
    case "purgePage":
      out.uint(delta.page);
      return out.bool(delta.used);
    case "sessionListed":
      out.uint(delta.id);
      return out.bool(delta.live);
    case "counter":
      out.u8(COUNTERS.indexOf(delta.counter));
      return out.uint(delta.value);
    default:
      return unreachable(delta, "journal record");
  }
}

export function readDelta(from: Reader): Delta {
  const number = from.u8();
  const d = KIND.get(number);
  switch (d) {
    case undefined:
      throw new DssError("IncompatibleVersion", `journal record of unknown kind ${number}`);
    case "inodePut":
      return { d, inode: readInode(from) };
    case "inodeRemove":
    case "xattrDrop":
    case "linkDrop":
    case "quotaRemove":
      return { d, ino: from.uint() };
    case "totalsAdd":
      return { d, chain: makeChain([from.uint()]), by: readTotals(from) };
    case "linkPut":
      return { d, ino: from.uint(), directory: from.uint(), count: from.uint() };
    case "quotaPut":
      return { d, ino: from.uint(), quota: readQuota(from) };
    case "dentryPut":
      return { d, directory: from.uint(), entry: readDentry(from) };
    case "dentryRemove":
      return { d, directory: from.uint(), name: from.bytes() };
    case "directorySplit":
    case "directoryDrop":
      return { d, directory: from.uint(), prefix: from.text() };
    case "xattrPut":
      return { d, ino: from.uint(), name: from.bytes(), value: from.bytes() };
    case "xattrRemove":
      return { d, ino: from.uint(), name: from.bytes() };
    case "sessionPut": {
      const id = from.uint();
      const type = from.text() as SessionType;
      const [instance, host, detail] = [from.text(), from.text(), from.text()];
      const pid = from.uint();
      return { d, id, type, instance, host, detail, pid, generation: from.uint() };
    }
    case "sessionWorker": {
      const [id, worker, generation] = [from.uint(), from.uint(), from.uint()];
      return { d, id, worker, generation, pid: from.uint() };
    }
    case "sessionRemove":
      return { d, id: from.uint() };
    case "sessionDone":
      return { d, id: from.uint(), request: from.uint(), floor: from.uint() };
    case "sessionRange":
      return { d, id: from.uint(), first: from.uint(), count: from.uint() };
    case "orphanAdd":
    case "orphanRemove":
    case "grantRemove":
      return { d, id: from.uint(), ino: from.uint() };
    case "grantPut":
      return { d, id: from.uint(), ino: from.uint(), maxSize: from.uint() };
    case "volumePut":
      return { d, volume: readVolume(from) };
    case "volumeRemove":
      return { d, volume: from.uint() };
    case "volumeUse":
      return { d, id: from.uint(), volume: from.uint(), write: from.bool() };
    case "volumeLeave":
      return { d, id: from.uint(), volume: from.uint() };
    case "purgePut":
      return { d, entry: readPurge(from) };
    case "purgeProgress":
      return { d, id: from.uint(), next: from.uint() };
    case "purgeRemove":
      return { d, id: from.uint() };
    case "purgePage":
      return { d, page: from.uint(), used: from.bool() };
    case "sessionListed":
      return { d, id: from.uint(), live: from.bool() };
    case "counter": {
      const counter = COUNTERS[from.u8()];
      if (counter === undefined) throw new DssError("Corrupt", "journal record of unknown counter");
      return { d, counter, value: from.uint() };
    }
  }
}
