/**
 * A volume as an NBD image: bytes of the volume to operations on its objects, many at once.
 *
 * Invariants: a change is answered only when it is durable on every in-sync member of each object
 * that it touches, and after all its operations have ended, so that its buffer is free; overlapping
 * changes take effect in the order of their arrival; once the volume is lost (its lock may be
 * another's) nothing succeeds any more, reads included, because they could be stale.
 * Nothing is buffered, so a flush has nothing to wait for.
 */
import { DssError, isDssError } from "../cluster/base/errors.js";
import type { Epoch } from "../cluster/base/ids.js";
import { isClonePrefix, objectName } from "../cluster/base/object-name.js";
import type { Clock } from "../cluster/platform/ports.js";
import type { Volume } from "../mds/proto.js";
import { parentObjects } from "../osd/client/ancestry.js";
import {
  NO_TRUNCATION,
  type AccessOptions,
  type ObjectAccess,
  type ObjectAddress,
  type ObjectContent,
  type ObjectStat,
} from "../osd/client/object-access.js";
import { objectSizeWithin } from "../osd/client/striper.js";
import { wholeOf, type BlockImage, type ImageExtent, type ImagePart } from "./block-image.js";
import { statusSpan, volumeExtents, type ObjectRun } from "./block-status.js";
import { objectRanges, type ObjectRange } from "./object-ranges.js";
import { ChangeGate } from "./change-gate.js";
import { RangeOrder } from "./range-order.js";

/** Longest read or write, bytes: what NBD clients may always ask for. */
const REQUEST_BYTES_MAX = 32 * 1024 * 1024;
/** Checksums and holes are kept by blocks of so many bytes. */
const BLOCK = 4096;
const BYTES = { minimum: 1, preferred: BLOCK, maximum: REQUEST_BYTES_MAX };
const BLOCKS = { ...BYTES, minimum: BLOCK };
/** Operations of one trim or zero under way; it may span thousands of objects. */
const OPERATIONS_MAX = 32;
/** The same for zeros that are written out: their bytes are in flight. */
const ZERO_WRITES_MAX = 4;
/** Questions about objects under way for one block status, and the longest range of one, bytes. */
const STATUS_QUESTIONS_MAX = 16;
const STATUS_BYTES_MAX = 4 * 1024 * 1024;
/** A cache request reads so many bytes at a time, and no more in all: an OSD's memory is small. */
const CACHE_PIECE_BYTES = 1024 * 1024;
const CACHE_BYTES_MAX = 32 * 1024 * 1024;
/** How often a record that is too old is fetched again for one change. */
const RENEWALS_MAX = 3;
/** Source of every hole that is read and every zero that is written. */
const ZEROS = Buffer.alloc(1024 * 1024);

export interface VolumeImageOptions {
  readonly volume: Volume;
  readonly access: ObjectAccess;
  readonly clock: Clock;
  readonly readOnly: boolean;
  /** Of the lock under which the volume is used; makes OSDs see fences first. */
  readonly minEpoch: Epoch;
  /** Gets the volume's record anew: its snapshots are others than are known here. */
  readonly renew?: (image: VolumeImage) => Promise<void>;
}

export class VolumeImage implements BlockImage {
  readonly name: string;
  readonly description: string;
  readonly readOnly: boolean;
  /** Its newest record. */
  volume: Volume;
  private readonly access: ObjectAccess;
  private readonly clock: Clock;
  private readonly options: AccessOptions;
  private readonly order = new RangeOrder();
  /** Object by object: what snapshots wait for is short. */
  readonly gate = new ChangeGate();
  private readonly renew: VolumeImageOptions["renew"];
  private loss: DssError | undefined;

  constructor({ volume, access, clock, readOnly, minEpoch, renew }: VolumeImageOptions) {
    const { snapshot } = volume;
    const taken = volume.snapshots.find(({ id }) => id === snapshot)?.name;
    this.volume = volume;
    this.renew = renew;
    this.name = taken === undefined ? volume.name : `${volume.name}@${taken}`;
    this.description = `dss volume ${volume.id}`;
    this.readOnly = readOnly || snapshot !== 0;
    this.access = access;
    this.clock = clock;
    this.options = { truncation: NO_TRUNCATION, minEpoch, snap: snapshot };
  }

  get size(): number {
    return this.volume.size;
  }
  get limits(): { operations: number; bytes: number } {
    return { operations: this.volume.iopsLimit, bytes: this.volume.bandwidthLimit };
  }
  /** A number tells every byte below 2^53 and every block up to 2^65. */
  get blockSize(): BlockImage["blockSize"] {
    return Number.isSafeInteger(this.size) ? BYTES : BLOCKS;
  }

  /** The record has changed, for example its size. Older news are left alone. */
  update(volume: Volume): void {
    const { id, snapshot, revision } = this.volume;
    if (volume.id === id && volume.snapshot === snapshot && volume.revision > revision) {
      this.volume = volume;
    }
  }

  /** The session under which the volume was opened is over: everything fails from now on. */
  lose(cause: DssError): void {
    this.loss ??= new DssError("Fenced", `volume ${this.name} is no longer ours to use`, { cause });
  }

  async read(offset: number, length: number): Promise<Buffer[]> {
    return wholeOf(await this.readParts(offset, length));
  }

  async readParts(offset: number, length: number): Promise<ImagePart[]> {
    this.check();
    const { extents, objects } = objectRanges(this.volume.layout, offset, length);
    const contents = new Map<number, { from: number; content: ObjectContent | DssError }>();
    let failures = 0;
    await allEnded(
      objects.map(async (object) => {
        const address = this.address(object.index);
        const from = object.offset;
        try {
          const options = this.reading(object.index);
          const content = await this.access.read(address, from, object.length, options);
          contents.set(object.index, { from, content });
        } catch (error) {
          // A part that failed leaves the others good, unless nothing may be believed any more.
          const alone = isDssError(error) && error.code !== "Fenced";
          if (!alone || ++failures === objects.length) throw error;
          contents.set(object.index, { from, content: error });
        }
      }),
    );
    // A read that was under way when the volume was lost may have been answered by a copy of it
    // that somebody else has changed since.
    this.check();
    const recycle = (): void => {
      for (const { content } of contents.values()) {
        if (!(content instanceof DssError)) content.recycle?.();
      }
    };
    let first = true;
    return extents.map((extent): ImagePart => {
      const { length } = extent;
      const { from, content } = contents.get(extent.index)!;
      if (content instanceof DssError) return { length, failure: content };
      const at = extent.offset - from;
      const data = content.data.subarray(at, at + length);
      const pieces: Buffer[] = data.length > 0 ? [data] : [];
      pushZeros(pieces, length - data.length);
      const part = first ? { length, pieces, recycle } : { length, pieces };
      first = false;
      return part;
    });
  }

  write(offset: number, data: Buffer): Promise<void> {
    return this.change(offset, data.length, async () => {
      const { objects } = objectRanges(this.volume.layout, offset, data.length);
      await allEnded(
        objects.map((object) =>
          this.changeObject(() =>
            this.access.write(
              this.address(object.index),
              object.offset,
              object.pieces.map(({ at, length }) => data.subarray(at, at + length)),
              this.stamped(object.index),
            ),
          ),
        ),
      );
    });
  }

  async zero(
    offset: number,
    length: number,
    options: { mayTrim: boolean; fast?: boolean },
  ): Promise<void> {
    // Of partial blocks the rest has to be read and written again.
    const end = offset + length;
    const whole = offset % BLOCK === 0 && (end % BLOCK === 0 || end === this.size);
    if (options.fast === true && !(whole && options.mayTrim)) {
      throw new DssError("NotSupported", "these zeros take as long as a write");
    }
    await this.change(offset, length, () =>
      options.mayTrim ? this.clear(offset, length, false) : this.writeZeros(offset, length),
    );
  }

  trim(offset: number, length: number): Promise<void> {
    return this.change(offset, length, () => this.clear(offset, length, true));
  }

  /** What there is of an object and of what it was, its volume's own. */
  async objectState(index: number): Promise<ObjectStat> {
    this.check();
    return await this.access.stat(this.address(index), { ...this.options, snap: 0 });
  }

  async flush(): Promise<void> {
    this.check();
  }

  /** Makes OSDs have the range in memory; nothing is kept here. */
  async cache(offset: number, length: number): Promise<void> {
    const wanted = Math.min(length, CACHE_BYTES_MAX);
    for (const object of this.objectsOf(offset, wanted)) {
      const end = object.offset + object.length;
      const options = this.reading(object.index);
      for (let at = object.offset; at < end; at += CACHE_PIECE_BYTES) {
        this.check();
        const bytes = Math.min(CACHE_PIECE_BYTES, end - at);
        const address = this.address(object.index);
        const content = await this.access.read(address, at, bytes, options);
        content.recycle?.();
        if (content.size <= at + bytes) break;
      }
    }
  }

  async status(offset: number, length: number, extentsMax: number): Promise<ImageExtent[]> {
    this.check();
    const { layout } = this.volume;
    const span = statusSpan(layout, offset, length);
    const runs = new Map<number, ObjectRun[]>();
    await this.inSlices(offset, span, STATUS_QUESTIONS_MAX, async (object) => {
      const found: ObjectRun[] = [];
      const end = object.offset + object.length;
      const options = this.reading(object.index);
      for (let at = object.offset; at < end; at += STATUS_BYTES_MAX) {
        const bytes = Math.min(STATUS_BYTES_MAX, end - at);
        const address = this.address(object.index);
        const known = await this.access.extents(address, at, bytes, options);
        for (const run of known.extents) found.push(run);
        if (!known.exists || known.size <= at + bytes) break;
      }
      runs.set(object.index, found);
    });
    this.check();
    const range = { offset, length: span };
    return volumeExtents(layout, range, (index) => runs.get(index) ?? [], extentsMax);
  }

  /** Runs a change in its order. */
  private async change(offset: number, length: number, run: () => Promise<void>): Promise<void> {
    this.check();
    if (this.readOnly) throw new DssError("ReadOnly", `${this.name} cannot be written`);
    await this.order.run(offset, length, () => {
      this.check();
      return run();
    });
  }

  private check(): void {
    if (this.loss) throw this.loss;
  }

  /** Whole objects are removed; of others the range is zeroed, or only its whole blocks. */
  private clear(offset: number, length: number, wholeBlocks: boolean): Promise<void> {
    const { layout } = this.volume;
    return this.inSlices(offset, length, OPERATIONS_MAX, async (object) => {
      const address = this.address(object.index);
      if (object.length >= objectSizeWithin(layout, object.index, this.size)) {
        // What is gone must not let a parent's through; who has not heard yet that the volume is
        // independent would still look there.
        const { snapshots, objectPrefix } = this.volume;
        const whiteout = snapshots.length > 0 || isClonePrefix(objectPrefix);
        const options = { unconditional: true, whiteout };
        await this.changeObject(() =>
          this.access.remove(address, { ...this.stamped(object.index), ...options }),
        );
        return;
      }
      const end = object.offset + object.length;
      const start = wholeBlocks ? Math.ceil(object.offset / BLOCK) * BLOCK : object.offset;
      const stop = wholeBlocks ? Math.floor(end / BLOCK) * BLOCK : end;
      if (stop <= start) return;
      await this.changeObject(() =>
        this.access.zero(address, start, stop - start, this.stamped(object.index)),
      );
    });
  }

  /** Zeros that keep their space. */
  private writeZeros(offset: number, length: number): Promise<void> {
    return this.inSlices(offset, length, ZERO_WRITES_MAX, async (object) => {
      const data: Buffer[] = [];
      pushZeros(data, object.length);
      await this.changeObject(() =>
        this.access.write(
          this.address(object.index),
          object.offset,
          data,
          this.stamped(object.index),
        ),
      );
    });
  }

  /** A change of one object, under the volume's snapshots as they are when it is sent. */
  private async changeObject<T>(change: () => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.gate.run(() => {
          this.check();
          return change();
        });
      } catch (error) {
        const isStale = isDssError(error, "StaleSnapshots") && this.renew !== undefined;
        if (!isStale || attempt >= RENEWALS_MAX) throw error;
        await this.renew(this);
      }
    }
  }

  /**
   * Does something to every object of a range that may be gigabytes long, at most `limit` at once.
   * After a failure nothing more is begun.
   */
  private async inSlices(
    offset: number,
    length: number,
    limit: number,
    act: (object: ObjectRange) => Promise<void>,
  ): Promise<void> {
    const objects = this.objectsOf(offset, length);
    let failed = false;
    const worker = async (): Promise<void> => {
      for (;;) {
        const next = objects.next();
        if (failed || next.done === true) return;
        try {
          this.check();
          await act(next.value);
        } catch (error) {
          failed = true;
          throw error;
        }
      }
    };
    await allEnded(Array.from({ length: limit }, worker));
  }

  /** Set by set of objects, so that a long range is never cut up as a whole. */
  private *objectsOf(offset: number, length: number): Generator<ObjectRange> {
    const { layout } = this.volume;
    const setBytes = layout.objectSize * layout.stripeCount;
    const end = offset + length;
    for (let at = offset; at < end;) {
      const next = Math.min((Math.floor(at / setBytes) + 1) * setBytes, end);
      yield* objectRanges(layout, at, next - at).objects;
      at = next;
    }
  }

  private address(index: number): ObjectAddress {
    const { layout, objectPrefix } = this.volume;
    return { pool: layout.pool, object: objectName(objectPrefix, index) };
  }
  /** For an operation on the object. */
  private reading(index: number): AccessOptions {
    const { ancestors, layout } = this.volume;
    if (ancestors.length === 0) return this.options;
    return { ...this.options, parents: parentObjects(ancestors, layout, index) };
  }
  private stamped(index: number): AccessOptions & { mtimeNs: bigint } {
    const { snapSeq: seq, snapshots } = this.volume;
    const newest = snapshots.at(-1)?.id ?? 0;
    return { ...this.reading(index), snapshots: { seq, newest }, mtimeNs: this.clock.wallNs() };
  }
}

function pushZeros(pieces: Buffer[], length: number): void {
  for (let left = length; left > 0; left -= ZEROS.length) {
    pieces.push(left >= ZEROS.length ? ZEROS : ZEROS.subarray(0, left));
  }
}

/** Waits for all of them, then fails with the gravest failure: a fence explains the others. */
async function allEnded(work: readonly Promise<unknown>[]): Promise<void> {
  if (work.length === 1) {
    await work[0];
    return;
  }
  let failure: { error: unknown } | undefined;
  for (const result of await Promise.allSettled(work)) {
    if (result.status === "fulfilled") continue;
    const { reason } = result as { reason: unknown };
    if (failure === undefined || isDssError(reason, "Fenced")) failure = { error: reason };
  }
  if (failure) throw failure.error;
}
