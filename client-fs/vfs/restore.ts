/**
 * A worker begins where another one of the same mount has ended (design §7): what the record says
 * becomes what this one has, before the kernel's requests are read. Small files that were closed
 * are written back from it. Other data that were written and died with the other worker are
 * reported once (EIO) and shown by nobody; the kernel forgets what it had cached.
 */
import { DssError, describeError, isDssError } from "../../cluster/base/errors.js";
import type { ClientId, Ino } from "../../cluster/base/ids.js";
import { inParallel } from "../../cluster/base/parallel.js";
import type { Logger } from "../../cluster/base/log.js";
import type { Clock } from "../../cluster/platform/ports.js";
import type { MdsClient } from "../../mds/client/mds-client.js";
import type { ObjectAccess } from "../../osd/client/object-access.js";
import { extentsOf } from "../../osd/client/striper.js";
import { DirectoryHandle } from "./handle.js";
import type { FileLocks } from "./file-locks.js";
import type { FileOperations } from "./file-operations.js";
import type { KernelListings } from "./kernel-listings.js";
import type { NodeTable } from "./node-table.js";
import { FAILED, KEPT, UNTOLD, UNWRITTEN, type KeptFile, type Recorded } from "./worker-record.js";

/** Dropping pages may wait for answers that nobody gives before this worker reads requests. */
const INVALIDATE_MS = 300;
const QUESTIONS_MAX = 64;
const WRITES_MAX = 64;
const RETRY_MS = 1_000;

export interface RestoreParts {
  mds: MdsClient;
  table: NodeTable;
  files: FileOperations;
  locks: FileLocks;
  directories: Map<number, DirectoryHandle>;
  kernelListings: KernelListings;
  objects: ObjectAccess;
  clock: Clock;
  logger: Logger;
}

/** Before the session is opened: it claims open files and locks as they are known here. */
export function restoreHandles(parts: RestoreParts, recorded: Recorded): void {
  const { table, files, locks, directories } = parts;
  for (const handle of recorded.handles) {
    if (!handle.isDirectory) files.restore(handle);
    else {
      const restored = new DirectoryHandle(handle.id, handle.ino);
      directories.set(handle.id, restored);
      parts.kernelListings.restored(table.get(handle.ino), restored);
      table.get(handle.ino).opens++;
    }
    table.noteUsed(table.get(handle.ino));
  }
  locks.restore(recorded.locks);
  let lost = 0;
  for (const { ino, bits } of recorded.data) {
    const node = table.get(ino);
    node.marks = bits;
    if ((bits & FAILED) === 0 && (bits & (UNWRITTEN | KEPT)) !== UNWRITTEN) continue;
    lost++;
    files.loseData(node, lostWithWorker());
  }
  const { handles, requests, kept, generation } = recorded;
  const counts = { handles: handles.length, requests: requests.length, kept: kept.length, lost };
  parts.logger.warn(
    { worker: generation + 1, ...counts },
    "going on where another worker has ended",
  );
}
function lostWithWorker(cause?: DssError): DssError {
  const message = "written data were lost with the process of the mount";
  return new DssError("Disk", message, cause === undefined ? {} : { cause });
}

/**
 * With a session, before the takeover ends: the files are still held as the worker before held
 * them, and the leader asks the objects for their sizes afterwards.
 */
export async function writeKept(parts: RestoreParts, recorded: Recorded): Promise<void> {
  const { mds, table, files, logger } = parts;
  if (recorded.kept.length === 0) return;
  await mds.replayed();
  await inParallel(recorded.kept, WRITES_MAX, async (file) => {
    const node = table.get(file.ino);
    try {
      await untilWritten(parts, recorded.client, file);
    } catch (error) {
      if (!isDssError(error)) throw error;
      const isRemoved = error.code === "StaleHandle" || error.code === "NotFound";
      if (!isRemoved) {
        logger.error({ ino: file.ino, error: describeError(error) }, "data of a file are lost");
        files.loseData(node, lostWithWorker(error));
      }
    }
    // Once the takeover has ended others may write to it: a later worker must not write this again.
    table.marks.durable(node);
  });
}
async function untilWritten(parts: RestoreParts, client: ClientId, file: KeptFile): Promise<void> {
  for (;;) {
    try {
      await writeBack(parts, client, file);
      return;
    } catch (error) {
      const isFinal = !isDssError(error) || error.retry === "never";
      if (isFinal || parts.mds.client !== client) throw error;
      await new Promise<void>((resolve) => parts.clock.setTimer(RETRY_MS, resolve));
    }
  }
}
async function writeBack(
  { mds, table, objects }: RestoreParts,
  client: ClientId,
  { ino, mtimeNs, pieces }: KeptFile,
): Promise<void> {
  await mds.call({ op: "getattr", ino });
  const file = table.dataOf(table.get(ino));
  for (const { start, data } of pieces) {
    for (const { index, offset, length, at } of extentsOf(file.layout(), start, data.length)) {
      // In another session others may have written to it since.
      if (mds.client !== client) throw new DssError("NoSession", "the session was lost");
      const options = { ...file.access(index), mtimeNs };
      const bytes = [data.subarray(at, at + length)];
      await objects.write(file.address(index), offset, bytes, options);
    }
  }
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
