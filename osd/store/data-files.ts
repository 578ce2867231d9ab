/**
 * The large sparse files that hold object bytes. Block b is in file floor(b / blocksPerFile). A
 * file is created when the first block in it is written; its name is durable before any write to
 * it counts as synced.
 *
 * Large writes may pass by the page cache, which is most of what they would cost; small ones are
 * gathered in it. The kernel cannot keep a page right that is written in both ways at once (pages
 * come in groups of many blocks), so in each file the two take turns. Large reads pass by it the
 * first time, and go through it when they come again: who reads everything once would pay for
 * pages that nobody needs, and drive out those that are. What is read in small pieces here and
 * there is fetched into it in large ones (`ReadAround`).
 */
import { LRUCache } from "lru-cache";
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import { isDssError } from "../../cluster/base/errors.js";
import type { DirectFile, Disk, DiskFile } from "../../cluster/platform/ports.js";
import type { Run } from "./extent-map.js";
import { ReadAround } from "./read-around.js";
import { WayTurns } from "./way-turns.js";

const DIRECTORY = "data";
/** Reads of less go through the page cache, which reads ahead for them. */
const DIRECT_READ_BLOCKS = (256 * 1024) / BLOCK_SIZE;
/** What is fetched around small reads, and how many at a time: the disk has others to serve. */
const PLACE_BYTES = DIRECT_READ_BLOCKS * BLOCK_SIZE;
const FETCHES_MAX = 2;
/** Large reads that are remembered: the last ones of together so many blocks (4 GiB). */
const REMEMBERED_BLOCKS = 2 ** 32 / BLOCK_SIZE;

export class DataFiles {
  private readonly files: (DiskFile | undefined)[] = [];
  private readonly opening: (Promise<DiskFile> | undefined)[] = [];
  private readonly directs: (DirectFile | undefined)[] = [];
  private readonly turns: WayTurns[] = [];
  /** Direct reads under way of each file. */
  private readonly directReads: number[] = [];
  private readonly blocksPerFile: number;
  /** Bytes that each file takes on the disk, and the files for which that may have changed. */
  private readonly taken: number[] = [];
  private readonly changed = new Set<number>();
  /** Where large reads began lately, in units of `DIRECT_READ_BLOCKS`; sizes are in blocks. */
  private readonly readBefore = new LRUCache<number, true>({ maxSize: REMEMBERED_BLOCKS });
  private readonly around = new ReadAround(DIRECT_READ_BLOCKS);
  private readonly fetches = new Set<Promise<void>>();
  /** Where fetched bytes go: the page cache has them then, nobody looks at these. */
  private readonly fetched = Buffer.allocUnsafeSlow(PLACE_BYTES);

  constructor(
    private readonly disk: Disk,
    private readonly fileBytes: number,
    /** Large reads and writes pass by the page cache where the file system can do that. */
    private readonly mayBeDirect: boolean,
  ) {
    this.blocksPerFile = fileBytes / BLOCK_SIZE;
  }

  static async format(disk: Disk): Promise<void> {
    await disk.makeDirectory(DIRECTORY);
  }

  /**
   * Opens what exists, so that reads need not wait for it. The names may be the work of a process
   * that was killed before it had synced them; nobody would do it later.
   */
  async open(): Promise<void> {
    await this.disk.syncDirectory(DIRECTORY);
    for (const name of await this.disk.list(DIRECTORY)) {
      if (/^\d{5}$/.test(name)) await this.file(Number(name));
    }
  }

  fileOf(block: number): number {
    return Math.floor(block / this.blocksPerFile);
  }

  private file(index: number): Promise<DiskFile> {
    return (this.opening[index] ??= this.openFile(index));
  }

  private async openFile(index: number): Promise<DiskFile> {
    const path = `${DIRECTORY}/${String(index).padStart(5, "0")}`;
    const file = await this.disk.open(path, { create: true });
    // A crash may have left a name without its size; sizes only matter to readers of the file.
    if ((await file.size()) < this.fileBytes) {
      await file.truncate(this.fileBytes);
      await file.sync();
      await this.disk.syncDirectory(DIRECTORY);
    }
    if (this.mayBeDirect) this.directs[index] = await this.disk.openDirect(path);
    this.turns[index] = new WayTurns();
    this.directReads[index] = 0;
    this.files[index] = file;
    this.changed.add(index);
    return file;
  }

  /** Splits a run where a data file ends. */
  private *pieces(run: Run): Generator<{ index: number; start: number; count: number }> {
    let start = run.start;
    let left = run.count;
    while (left > 0) {
      const index = this.fileOf(start);
      const count = Math.min(left, (index + 1) * this.blocksPerFile - start);
      yield { index, start, count };
      start += count;
      left -= count;
    }
  }

  private position(block: number): number {
    return (block % this.blocksPerFile) * BLOCK_SIZE;
  }

  /**
   * Writes the run; `chunks` hold exactly its bytes. `touched` collects the files to sync. `large`:
   * it is worth passing by the page cache.
   */
  async write(
    run: Run,
    chunks: readonly Buffer[],
    touched: Set<number>,
    large = false,
  ): Promise<void> {
    let offset = 0;
    for (const { index, start, count } of this.pieces(run)) {
      const bytes = count * BLOCK_SIZE;
      const part = count === run.count ? chunks : sliceChunks(chunks, offset, bytes);
      offset += bytes;
      touched.add(index);
      const file = this.files[index] ?? (await this.file(index));
      const direct = large ? this.directs[index] : undefined;
      const turns = this.turns[index]!;
      const way = direct === undefined ? "cached" : "direct";
      if (direct !== undefined) this.forgetReads(start, count);
      await turns.enter(way);
      try {
        await (direct ?? file).write(part, this.position(start));
      } finally {
        turns.leave();
      }
      this.changed.add(index);
    }
  }

  /**
   * One block on this thread; false when its file is not open yet, or is read or written directly
   * now, for which the kernel would have this thread wait.
   */
  writeBlockSync(block: number, bytes: Buffer, touched: Set<number>): boolean {
    const index = this.fileOf(block);
    const file = this.files[index];
    if (!file || this.turns[index]!.isDirect || this.directReads[index]! > 0) return false;
    touched.add(index);
    file.writeSync([bytes], this.position(block));
    this.changed.add(index);
    return true;
  }

  async sync(touched: ReadonlySet<number>): Promise<void> {
    if (touched.size === 1) {
      for (const index of touched) await (this.files[index] ?? (await this.file(index))).sync();
      return;
    }
    await Promise.all(
      [...touched].map(async (index) => (this.files[index] ?? (await this.file(index))).sync()),
    );
  }

  /** Bytes that the files take on the disk. */
  async allocated(): Promise<number> {
    // There may be thousands of files: only those that were written to are asked.
    for (const index of [...this.changed]) {
      this.changed.delete(index);
      try {
        this.taken[index] = await (await this.file(index)).allocated();
      } catch (error) {
        this.changed.add(index);
        throw error;
      }
    }
    return this.taken.reduce((sum, bytes) => sum + (bytes ?? 0), 0);
  }

  /** Gives the run's space back to the file system. */
  async punch(run: Run): Promise<void> {
    for (const { index, start, count } of this.pieces(run)) {
      const file = this.files[index] ?? (await this.file(index));
      await file.punch(this.position(start), count * BLOCK_SIZE);
      this.changed.add(index);
    }
  }

  /** The same for everything from this block on. */
  async punchFrom(block: number): Promise<void> {
    const end = this.opening.length * this.blocksPerFile;
    if (block < end) await this.punch({ start: block, count: end - block });
  }

  /** Everything that any process wrote to them. */
  async syncAll(): Promise<void> {
    for (const opening of this.opening) await (await opening)?.sync();
  }

  /** Reads the run on this thread; false when its file is not open yet (never written). */
  readSync(run: Run, buffer: Buffer): boolean {
    let offset = 0;
    for (const { index, start, count } of this.pieces(run)) {
      const file = this.files[index];
      if (!file) return false;
      const bytes = count * BLOCK_SIZE;
      const got = file.readSync(buffer.subarray(offset, offset + bytes), this.position(start));
      buffer.fill(0, offset + got, offset + bytes);
      offset += bytes;
      this.readAround(start, file);
    }
    return true;
  }

  /** Has the page cache hold what lies around a small read, if it is one of several there. */
  private readAround(block: number, file: DiskFile): void {
    if (this.fetches.size >= FETCHES_MAX) return;
    const place = Math.floor(this.position(block) / PLACE_BYTES);
    const placesPerFile = Math.ceil(this.fileBytes / PLACE_BYTES);
    if (!this.around.noteRead(this.fileOf(block) * placesPerFile + place)) return;
    // A block that cannot be read is an error of whoever wants it.
    const fetch = file.read(this.fetched, place * PLACE_BYTES).then(
      () => undefined,
      () => undefined,
    );
    this.fetches.add(fetch);
    void fetch.then(() => this.fetches.delete(fetch));
  }

  async read(run: Run, buffer: Buffer): Promise<void> {
    let offset = 0;
    for (const { index, start, count } of this.pieces(run)) {
      const file = this.files[index] ?? (await this.file(index));
      const bytes = count * BLOCK_SIZE;
      const part = buffer.subarray(offset, offset + bytes);
      const direct = this.isFirstRead(start, count) ? this.directs[index] : undefined;
      const got =
        direct === undefined
          ? await file.read(part, this.position(start))
          : await this.readDirect(direct, index, part, this.position(start));
      buffer.fill(0, offset + got, offset + bytes);
      offset += bytes;
    }
  }
  private async readDirect(
    file: DirectFile,
    index: number,
    buffer: Buffer,
    position: number,
  ): Promise<number> {
    this.directReads[index]!++;
    try {
      return await file.read(buffer, position);
    } finally {
      this.directReads[index]!--;
    }
  }

  /** Of a large run, as far as large reads are remembered. */
  private isFirstRead(start: number, count: number): boolean {
    if (count < DIRECT_READ_BLOCKS) return false;
    const place = Math.floor(start / DIRECT_READ_BLOCKS);
    if (this.readBefore.get(place) === true) return false;
    this.readBefore.set(place, true, { size: count });
    return true;
  }

  /** What is written past the page cache is not in it any more. */
  private forgetReads(start: number, count: number): void {
    const end = (start + count) / DIRECT_READ_BLOCKS;
    for (let place = Math.floor(start / DIRECT_READ_BLOCKS); place < end; place++) {
      this.readBefore.delete(place);
    }
  }

  async close(): Promise<void> {
    await Promise.all(this.fetches);
    for (const direct of this.directs) await direct?.close();
    for (const opening of this.opening) {
      if (!opening) continue;
      try {
        await (await opening).close();
      } catch (error) {
        // A file that never opened has told its writer already.
        if (!isDssError(error)) throw error;
      }
    }
  }
}

/** The bytes [offset, offset + length) of `chunks`, uncopied. */
export function sliceChunks(chunks: readonly Buffer[], offset: number, length: number): Buffer[] {
  const out: Buffer[] = [];
  let skip = offset;
  let left = length;
  for (const chunk of chunks) {
    if (left === 0) break;
    if (skip >= chunk.length) {
      skip -= chunk.length;
      continue;
    }
    const take = Math.min(chunk.length - skip, left);
    out.push(take === chunk.length ? chunk : chunk.subarray(skip, skip + take));
    skip = 0;
    left -= take;
  }
  return out;
}
