/**
 * A worker begins where another one of the same mount has ended (design §7): what the record says
 * becomes what this one has, before the kernel's requests are read. Written data that died with the
 * other are reported once (EIO) and shown by nobody; the kernel forgets what it had cached.
 */
import { DssError, describeError, isDssError } from "../../cluster/base/errors.js";
import type { Ino } from "../../cluster/base/ids.js";
import { inParallel } from "../../cluster/base/parallel.js";
import type { Logger } from "../../cluster/base/log.js";
import type { Clock } from "../../cluster/platform/ports.js";
import type { MdsClient } from "../../mds/client/mds-client.js";
import { DirectoryHandle } from "./handle.js";
import type { FileLocks } from "./file-locks.js";
import type { FileOperations } from "./file-operations.js";
import type { NodeTable } from "./node-table.js";
import { FAILED, UNTOLD, UNWRITTEN, type Recorded } from "./worker-record.js";

/** Dropping pages may wait for answers that nobody gives before this worker reads requests. */
const INVALIDATE_MS = 300;
const QUESTIONS_MAX = 64;

export interface RestoreParts {
  mds: MdsClient;
  table: NodeTable;
  files: FileOperations;
  locks: FileLocks;
  directories: Map<number, DirectoryHandle>;
  clock: Clock;
  logger: Logger;
}

/** Before the session is opened: it claims open files and locks as they are known here. */
export function restoreHandles(parts: RestoreParts, recorded: Recorded): void {
  const { table, files, locks, directories } = parts;
  for (const handle of recorded.handles) {
    if (!handle.isDirectory) files.restore(handle);
    else {
      directories.set(handle.id, new DirectoryHandle(handle.id, handle.ino));
      table.get(handle.ino).opens++;
    }
    table.noteUsed(table.get(handle.ino));
  }
  locks.restore(recorded.locks);
  let lost = 0;
  for (const { ino, bits } of recorded.data) {
    const node = table.get(ino);
    node.marks = bits;
    if ((bits & (UNWRITTEN | FAILED)) === 0) continue;
    lost++;
    const message = "written data were lost with the process of the mount";
    files.loseData(node, new DssError("Disk", message));
  }
  const { handles, requests, generation } = recorded;
  parts.logger.warn(
    { worker: generation + 1, handles: handles.length, requests: requests.length, lost },
    "going on where another worker has ended",
  );
}

/** Names, attributes and pages that the kernel has by the word of the other worker. */
export async function forgetInKernel(parts: RestoreParts, recorded: Recorded): Promise<void> {
  const inos = new Set<Ino>([1, ...recorded.data.map(({ ino }) => ino)]);
  for (const { ino } of recorded.handles) inos.add(ino);
  const dropped = parts.table.forgetInKernel([...inos]);
  await Promise.race([
    dropped,
    new Promise<void>((resolve) => parts.clock.setTimer(INVALIDATE_MS, resolve)),
  ]);
}

/** With a session: ends the takeover at the leader, and learns what became of the open files. */
export async function endTakeover(parts: RestoreParts, recorded: Recorded): Promise<void> {
  const { mds, table, files, logger } = parts;
  const untold = recorded.data.filter(({ bits }) => (bits & (UNTOLD | UNWRITTEN)) !== 0);
  const taken = await mds.endTakeover(untold.map(({ ino }) => ino));
  table.disownAll();
  for (const { ino } of recorded.data) table.marks.dropped(table.get(ino));
  files.earlierAppends.restore(recorded.appends, taken?.sizes ?? []);
  const open = [...new Set(recorded.handles.map(({ ino }) => ino))];
  await inParallel(open, QUESTIONS_MAX, async (ino) => {
    try {
      await mds.call({ op: "getattr", ino });
    } catch (error) {
      if (!isDssError(error)) throw error;
      if (error.code === "StaleHandle") table.get(ino).stale = true;
      else logger.warn({ ino, error: describeError(error) }, "an open file is not known yet");
    }
  });
}
