/**
 * The bytes of one regular file on this mount: buffered and direct reads and writes, truncation,
 * holes. The caller holds the capability (a pin) for the time of each call and has extended the
 * grant.
 *
 * Direct writes go to the OSDs at once, any number in parallel unless their bytes overlap each
 * other or buffered data.
 */
import type { Ino } from "../../cluster/base/ids.js";
import { assert } from "../../cluster/base/assert.js";
import { isDssError, type DssError } from "../../cluster/base/errors.js";
import type { Layout } from "../../mds/proto.js";
import {
  NO_TRUNCATION,
  type AccessOptions,
  type ObjectAccess,
  type ObjectAddress,
} from "../../osd/client/object-access.js";
import { objectName } from "../../cluster/base/object-name.js";
import { extentsOf, filePrefix, objectSizeWithin } from "../../osd/client/striper.js";
import type { ExtentCache } from "./extent-cache.js";
import { FileSpace, SPACE_BLOCK } from "./file-space.js";
import type { ReadStream } from "./handle.js";
import type { Node } from "./node.js";
import { FileReader } from "./reader.js";
import { FileWriter, type Segment, type WriteBudget } from "./writer.js";

export interface DataEnvironment {
  objects: ObjectAccess;
  cache: ExtentCache;
  budget: WriteBudget;
  readAheadBytes: number;
  /** A write-back of this file failed for good. */
  onError(node: Node, error: DssError): void;
  /** Everything of this file is durable. */
  onClean(node: Node): void;
  /** The objects or the length change past the buffers. */
  onChanging(node: Node): void;
}

interface Range {
  start: number;
  end: number;
  done: Promise<void>;
}

export class FileData {
  readonly ino: Ino;
  readonly writer: FileWriter;
  /** A truncation in progress dropped all that was to be written to the block that it cuts. */
  private cutUnsent = false;
  private readonly reader: FileReader;
  private readonly prefix: string;
  private readonly direct: Range[] = [];
  /** Counts them. */
  private directChanges = 0;

  constructor(
    private readonly node: Node,
    private readonly environment: DataEnvironment,
  ) {
    this.ino = node.ino;
    this.prefix = filePrefix(node.ino);
    this.writer = new FileWriter(this, environment.budget);
    this.reader = new FileReader(
      this,
      environment.objects,
      environment.cache,
      environment.readAheadBytes,
    );
  }

  /** Object writes that cannot be called back any more. */
  get inFlight(): boolean {
    return this.writer.inFlight || this.direct.length > 0;
  }
  get clean(): boolean {
    return this.writer.clean && this.direct.length === 0;
  }

  // What reader and writer ask of the file.
  layout(): Layout {
    const layout = this.node.inode?.layout;
    assert(layout !== undefined, `inode ${this.ino} has no layout`);
    return layout;
  }
  address(index: number): ObjectAddress {
    return { pool: this.layout().pool, object: objectName(this.prefix, index) };
  }
  access(index: number): AccessOptions {
    const inode = this.node.inode!;
    const truncation =
      inode.truncateSeq === 0
        ? NO_TRUNCATION
        : {
            seq: inode.truncateSeq,
            size: objectSizeWithin(this.layout(), index, inode.truncateSize),
          };
    return { truncation, minEpoch: this.node.minEpoch };
  }
  size(): number {
    return this.node.size;
  }
  mtimeNs(): bigint {
    return this.node.inode!.mtimeNs;
  }
  otherChanges(): number {
    const isAlone = this.node.mode === "exclusive" && this.direct.length === 0;
    return isAlone ? this.directChanges : -1;
  }
  overlay(offset: number, end: number): Segment[] {
    return this.writer.overlay(offset, end);
  }
  beforeWrite(start: number, end: number): Promise<unknown> | undefined {
    return this.node.space?.before(start, end);
  }
  onError(error: DssError): void {
    this.environment.onError(this.node, error);
  }
  onClean(): void {
    this.environment.onClean(this.node);
  }

  read(offset: number, length: number, stream: ReadStream | undefined): Promise<Buffer[]> {
    return this.reader.read(offset, length, stream);
  }
  /** The first page into the cache; the caller has looked at the capability. */
  fetchAhead(): void {
    this.reader.fetchAhead();
  }

  /** Counts the blocks; under the exclusive capability, before the bytes are given to anybody. */
  noteWritten(offset: number, length: number): void {
    this.space().wrote(offset, offset + length);
  }
  /** Under the exclusive capability. */
  space(): FileSpace {
    const { node } = this;
    node.space ??= new FileSpace(node.inode!, this.layout(), (start, length) =>
      this.runs(start, length),
    );
    return node.space;
  }
  /** Runs of the file that hold data, as the OSDs have them now. */
  async runs(offset: number, length: number): Promise<{ start: number; length: number }[]> {
    const { objects } = this.environment;
    const found = extentsOf(this.layout(), offset, length).map(async (extent) => {
      const { index, at } = extent;
      const where = [this.address(index), extent.offset, extent.length] as const;
      const { extents } = await objects.extents(...where, this.access(index));
      const base = offset + at - extent.offset;
      return extents.map((run) => ({ start: base + run.offset, length: run.length }));
    });
    return (await Promise.all(found)).flat();
  }

  /** `data` is used until the promise settles, which is when the bytes are durable. */
  writeDirect(offset: number, data: Buffer): Promise<void> {
    const end = offset + data.length;
    if (this.overlapping(offset, end).length === 0 && this.writer.isClean(offset, end)) {
      return this.sendDirect(offset, data);
    }
    return this.writeDirectLater(offset, data);
  }
  private async writeDirectLater(offset: number, data: Buffer): Promise<void> {
    const end = offset + data.length;
    for (;;) {
      const others = this.overlapping(offset, end);
      if (others.length > 0) await Promise.all(others.map((range) => range.done));
      else if (!this.writer.isClean(offset, end)) await this.writer.flush({ start: offset, end });
      else break;
    }
    await this.sendDirect(offset, data);
  }
  private sendDirect(offset: number, data: Buffer): Promise<void> {
    const { objects, cache } = this.environment;
    this.environment.onChanging(this.node);
    const mtimeNs = this.mtimeNs();
    const extents = extentsOf(this.layout(), offset, data.length);
    const end = offset + data.length;
    const write = (extent: (typeof extents)[number]): Promise<number> =>
      objects.write(
        this.address(extent.index),
        extent.offset,
        [extents.length === 1 ? data : data.subarray(extent.at, extent.at + extent.length)],
        { ...this.access(extent.index), mtimeNs },
      );
    // All of them end before the buffer goes back to the driver, also when one fails.
    const send = (): Promise<unknown> =>
      extents.length === 1 ? write(extents[0]!) : everySettled(extents.map(write));
    const before = this.beforeWrite(offset, end);
    const sent = before === undefined ? send() : before.then(send);
    return this.during(offset, end, sent, cache, (error) => {
      this.node.space?.failed();
      const refused = extents.length === 1 && isDssError(error) && error.retry === "never";
      if (refused) return;
      // Some of it may be in the objects, or come late. Beyond the end it would lie in wait for
      // whoever makes the file longer: so the file reaches over it at once.
      const { inode } = this.node;
      if (inode !== undefined && end > inode.size) inode.size = end;
    });
  }

  /** Makes [offset, offset + length) read as zeros, within the file's size. */
  async zero(offset: number, length: number): Promise<void> {
    const end = offset + length;
    const space = this.space();
    await space.beforeZero(offset, end);
    // Whole stripe units: of those at the edges the OSDs tell afterwards what is there.
    const { stripeUnit } = this.layout();
    const first = offset - (offset % stripeUnit);
    await this.waitFor(first, Math.ceil(end / stripeUnit) * stripeUnit);
    const { objects, cache } = this.environment;
    this.environment.onChanging(this.node);
    const mtimeNs = this.mtimeNs();
    const sent = everySettled(
      extentsOf(this.layout(), offset, length).map((extent) =>
        objects.zero(this.address(extent.index), extent.offset, extent.length, {
          ...this.access(extent.index),
          mtimeNs,
        }),
      ),
    );
    await this.during(offset, end, sent, cache, () => space.failed());
    await space.zeroed(offset, end);
  }

  /**
   * Drops what is dirty beyond `size` and waits for what is in flight there. Writers must be kept
   * away.
   */
  async cutOff(size: number): Promise<void> {
    this.environment.onChanging(this.node);
    const block = size - (size % SPACE_BLOCK);
    const { writer } = this;
    this.cutUnsent = !writer.isClean(size, block + SPACE_BLOCK) && writer.isClean(block, size);
    await writer.cutOff(size);
    for (;;) {
      const others = this.overlapping(size, Number.MAX_SAFE_INTEGER);
      if (others.length === 0) break;
      await Promise.all(others.map((range) => range.done));
    }
  }
  /** The size changed on the MDS: pages beyond it, and the one that it cuts, are stale. */
  async afterResize(size: number, before: number): Promise<void> {
    this.environment.cache.drop(this.ino, size, Number.MAX_SAFE_INTEGER);
    if (size < before) this.node.space?.truncated(size, this.cutUnsent);
    this.cutUnsent = false;
    await this.node.space?.pending;
  }

  /** Everything written is durable, direct writes included. */
  async flush(options: { untilDone?: boolean; recalled?: boolean } = {}): Promise<void> {
    if (!this.writer.clean) await this.writer.flush(undefined, options);
    while (this.direct.length > 0) await Promise.all(this.direct.map((range) => range.done));
  }

  /**
   * Where data (or a hole) begins at or after `offset`; the file is flushed. -1: nothing but a
   * hole follows. Looks at ever more objects at a time: a hole may be long.
   */
  async seek(offset: number, wantData: boolean): Promise<number> {
    const size = this.size();
    const { stripeUnit } = this.layout();
    const { allocated, recount } = this.node.space ?? this.node.inode!;
    if (allocated === 0 && !recount) return wantData ? -1 : offset;
    let at = offset;
    let units = 1;
    while (at < size) {
      const end = Math.min(size, (Math.floor(at / stripeUnit) + units) * stripeUnit);
      let position = at;
      for (const run of await this.runs(at, end - at)) {
        const from = Math.max(run.start, at);
        const to = Math.min(run.start + run.length, end);
        if (to <= position) continue;
        if (wantData) return Math.max(from, position);
        if (from > position) return position;
        position = to;
      }
      if (!wantData && position < end) return position;
      at = end;
      units = Math.min(2 * units, SEEK_UNITS_MAX);
    }
    return wantData ? -1 : size;
  }

  /** The file is gone, or its capability without warning: nothing more is written or believed. */
  discard(): void {
    this.writer.discard();
    this.environment.cache.dropAll(this.ino);
  }
  dropCache(): void {
    this.environment.cache.dropAll(this.ino);
  }

  private overlapping(start: number, end: number): Range[] {
    if (this.direct.length === 0) return NONE;
    return this.direct.filter((range) => range.start < end && range.end > start);
  }
  private async waitFor(start: number, end: number): Promise<void> {
    for (;;) {
      const others = this.overlapping(start, end);
      if (others.length > 0) await Promise.all(others.map((range) => range.done));
      else if (!this.writer.isClean(start, end)) await this.writer.flush({ start, end });
      else return;
    }
  }
  private during(
    start: number,
    end: number,
    work: Promise<unknown>,
    cache: ExtentCache,
    onFailure?: (error: unknown) => void,
  ): Promise<void> {
    cache.drop(this.ino, start, end);
    this.directChanges++;
    const range: Range = { start, end, done: DONE };
    const finish = (): void => {
      // Readers that began meanwhile may have cached the older bytes.
      cache.drop(this.ino, start, end);
      this.direct.splice(this.direct.indexOf(range), 1);
    };
    const result = work.then(finish, (error: unknown) => {
      finish();
      onFailure?.(error);
      throw error;
    });
    range.done = result.catch(() => undefined);
    this.direct.push(range);
    return result;
  }
}

/** Objects that a seek looks at together. */
const SEEK_UNITS_MAX = 64;
const NONE: Range[] = [];
const DONE: Promise<void> = Promise.resolve();

/** Like Promise.all, but waits for all of them before it fails. */
async function everySettled(promises: readonly Promise<unknown>[]): Promise<void> {
  const outcomes = await Promise.allSettled(promises);
  for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
}
