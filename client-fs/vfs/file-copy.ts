/**
 * copy_file_range(2) inside the mount: bytes go from the OSDs to the OSDs through this process, but
 * not through the kernel and the caller, and holes stay holes. Each piece is a read followed by a
 * write under the usual capabilities, so whoever writes meanwhile sees what a copying program would
 * have made.
 */
import { DssError } from "../../cluster/base/errors.js";
import type { FilePosition } from "../file-system.js";
import { PAGE_BYTES } from "./extent-cache.js";
import type { FileData } from "./file-data.js";
import type { Node } from "./node.js";

/** Bytes read at a time, while those before are being written. */
const PIECE_BYTES = 4 * 1024 * 1024;
const BLOCK = 4_096;

/** What a copy needs of the open files. */
export interface CopyFiles {
  /** Fails unless it is open. */
  node(position: FilePosition): Node;
  /** Runs under the shared capability. */
  reading<T>(node: Node, work: (data: FileData) => Promise<T>): Promise<T>;
  /** The capability is still there. */
  mayCache(node: Node): boolean;
  write(position: FilePosition, data: Buffer): Promise<unknown>;
  /** What of [offset, end) there is reads as zeros. */
  clear(node: Node, offset: number, end: number): Promise<void>;
  /** The file is at least that long. */
  reach(node: Node, end: number): Promise<void>;
  /** Buffers of an answer are not needed any more. */
  done(pieces: readonly Buffer[]): void;
}

interface Run {
  start: number;
  bytes: Buffer;
}
/** A part of the source as it was at one moment. */
interface Loaded {
  start: number;
  end: number;
  runs: Run[];
}

/** Resolves with the bytes copied; fewer than `length` at the end of the source. */
export async function copyRange(
  files: CopyFiles,
  source: FilePosition,
  target: FilePosition,
  length: number,
): Promise<number> {
  files.node(target);
  const shift = target.offset - source.offset;
  const end = source.offset + length;
  const load = async (start: number): Promise<Loaded> => {
    const loaded = await loadPart(files, files.node(source), start, end);
    return loaded;
  };
  let copied = 0;
  let next: Promise<Loaded> | undefined = load(source.offset);
  try {
    while (next !== undefined) {
      const part: Loaded = await next;
      if (part.end === part.start) break;
      next = part.end < end ? load(part.end) : undefined;
      next?.catch(() => undefined); // Looked at in its turn.
      await storePart(files, target, part, shift);
      copied += part.end - part.start;
    }
  } catch (error) {
    if (!(error instanceof DssError) || copied === 0) throw error;
    await next?.catch(() => undefined); // What was copied is told; the next call fails.
  }
  if (copied > 0) await files.reach(files.node(target), target.offset + copied);
  return copied;
}

async function loadPart(files: CopyFiles, node: Node, start: number, end: number): Promise<Loaded> {
  return files.reading(node, async (data) => {
    const piece = Math.min(PIECE_BYTES - (start % PIECE_BYTES), end - start);
    const until = Math.max(start, Math.min(start + piece, node.size));
    const loaded: Loaded = { start, end: until, runs: [] };
    for (const run of await dataRuns(node, data, start, until)) {
      // What is larger than a page of the cache would only displace others there.
      const isKept = node.size <= PAGE_BYTES && files.mayCache(node);
      const stream = isKept ? { next: 0, window: 0 } : undefined;
      const pieces = await data.read(run.start, run.end - run.start, stream);
      loaded.runs.push({ start: run.start, bytes: Buffer.concat(pieces) });
      files.done(pieces);
    }
    return loaded;
  });
}

/** Whole blocks that may hold data. */
async function dataRuns(
  node: Node,
  data: FileData,
  start: number,
  end: number,
): Promise<{ start: number; end: number }[]> {
  if (end <= start) return [];
  const { allocated, recount } = node.space ?? node.inode!;
  if (!recount && allocated >= Math.ceil(node.size / BLOCK) * BLOCK) return [{ start, end }];
  await data.writer.flush({ start, end });
  const found: { start: number; end: number }[] = [];
  for (const run of await data.runs(start, end - start)) {
    const from = Math.max(start, Math.floor(run.start / BLOCK) * BLOCK);
    const to = Math.min(end, Math.ceil((run.start + run.length) / BLOCK) * BLOCK);
    const last = found.at(-1);
    if (last !== undefined && last.end >= from) last.end = Math.max(last.end, to);
    else if (to > from) found.push({ start: from, end: to });
  }
  return found;
}

async function storePart(
  files: CopyFiles,
  target: FilePosition,
  part: Loaded,
  shift: number,
): Promise<void> {
  let at = part.start;
  const clear = async (until: number): Promise<void> => {
    if (until > at) await files.clear(files.node(target), at + shift, until + shift);
  };
  for (const { start, bytes } of part.runs) {
    await clear(start);
    if (bytes.length > 0) await files.write({ ...target, offset: start + shift }, bytes);
    at = start + bytes.length;
  }
  await clear(part.end);
}
