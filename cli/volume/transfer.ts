/**
 * Bytes between volumes and files in order, many requests at a time: what export and import share.
 * How far a transfer came is noted beside its file (`FILE.dss-progress`), after the bytes up to
 * there are on the disk, so that it can go on later.
 */
import { existsSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { z } from "zod";
import { DssError } from "../../cluster/base/errors.js";
import { identify, isAlive } from "../local/process.js";
import { Progress } from "../progress.js";
import { formatSize } from "../sizes.js";

/** Requests under way. */
export const PARALLEL = 4;
/** Zeros are found by blocks of so many bytes. */
export const BLOCK = 4096;
const ZEROS = Buffer.alloc(64 * 1024);

const Note = z.object({
  direction: z.enum(["export", "import"]),
  volume: z.number(),
  /** Of the volume, when that is what is exported; 0: the volume as it is. */
  snapshot: z.number().default(0),
  /** Of the volume or the file, bytes. */
  size: z.number(),
  /** Of the file that is imported, milliseconds: it must not change meanwhile. */
  modifiedMs: z.number(),
  /** Everything before it is done. */
  next: z.number(),
  /** Who wrote the note. */
  by: z.object({ pid: z.number(), startTicks: z.number(), bootId: z.string() }).optional(),
});
export type TransferNote = Omit<z.infer<typeof Note>, "by">;

export function notePath(file: string): string {
  return `${file}.dss-progress`;
}
/**
 * Undefined when there is none. Errors: InvalidArgument, when it is no note of ours; Busy, when the
 * transfer goes on in another process.
 */
export function readNote(file: string): TransferNote | undefined {
  const path = notePath(file);
  if (!existsSync(path)) return undefined;
  let note;
  try {
    note = Note.parse(JSON.parse(readFileSync(path, "utf8")));
  } catch (cause) {
    const hint = `remove ${path} and begin anew`;
    throw new DssError("InvalidArgument", `${path} is damaged`, { cause, hint });
  }
  const { by } = note;
  if (by === undefined || by.pid === process.pid || !isAlive(by)) return note;
  throw new DssError("Busy", `the ${note.direction} of ${file} goes on in process ${by.pid}`, {
    hint: "wait for its end, or stop it first",
  });
}
export function writeNote(file: string, note: TransferNote): void {
  const path = notePath(file);
  writeFileSync(`${path}.new`, JSON.stringify({ ...note, by: identify(process.pid) }));
  renameSync(`${path}.new`, path);
}
export function removeNote(file: string): void {
  rmSync(notePath(file), { force: true });
}

export function isZero(bytes: Buffer): boolean {
  for (let at = 0; at < bytes.length; at += ZEROS.length) {
    const part = bytes.subarray(at, at + ZEROS.length);
    if (ZEROS.compare(part, 0, part.length, 0, part.length) !== 0) return false;
  }
  return true;
}

/** Runs of blocks that are not all zeros. */
export function* dataRuns(bytes: Buffer): Generator<{ at: number; length: number }> {
  let start = -1;
  for (let at = 0; at < bytes.length; at += BLOCK) {
    const zero = isZero(bytes.subarray(at, at + BLOCK));
    if (!zero && start < 0) start = at;
    if (zero && start >= 0) {
      yield { at: start, length: at - start };
      start = -1;
    }
  }
  if (start >= 0) yield { at: start, length: bytes.length - start };
}

/**
 * Runs the work of the items with several under way and gives the results in order. Errors of the
 * work come in order too; what is under way then ends before the error is thrown.
 */
export async function* inOrder<T, R>(
  items: AsyncIterable<T> | Iterable<T>,
  work: (item: T) => Promise<R>,
): AsyncGenerator<R> {
  const queue: Promise<R>[] = [];
  try {
    for await (const item of items) {
      const started = work(item);
      started.catch(() => undefined); // Looked at in its turn.
      queue.push(started);
      if (queue.length >= PARALLEL) yield await queue.shift()!;
    }
    while (queue.length > 0) yield await queue.shift()!;
  } finally {
    await Promise.allSettled(queue);
  }
}

/** How far a transfer is, and how fast. */
export class TransferProgress {
  private readonly progress: Progress;
  private readonly begunMs = performance.now();
  private moved = 0;

  constructor(
    title: string,
    private readonly total: number,
  ) {
    this.progress = new Progress(title);
  }
  /** `moved`: bytes that went over the network, holes excepted. */
  update(done: number, moved: number): void {
    this.moved += moved;
    const seconds = Math.max((performance.now() - this.begunMs) / 1_000, 0.001);
    const speed = `${formatSize(Math.round(this.moved / seconds))}/s`;
    const of = this.total > 0 ? ` of ${formatSize(this.total)}` : "";
    const text = `${formatSize(done)}${of}, ${formatSize(this.moved)} of data, ${speed}`;
    this.progress.update(done, Math.max(this.total, done, 1), text);
  }
  end(): void {
    this.progress.end();
  }
}
