/**
 * What a client's change does to the log: one or more entries of whole 4 KiB blocks, merged with
 * what is there (design §5 Replication, Truncation). Runs on the primary, under the object's lock.
 */
import { BLOCK_SIZE } from "../cluster/base/checksum.js";
import { DssError } from "../cluster/base/errors.js";
import type { PgId } from "../cluster/base/ids.js";
import { cloneIdOf, cloneName, familyOf } from "../cluster/base/object-name.js";
import type { Incoming } from "../cluster/messenger/messenger.js";
import { blockCeil, blockFloor, edgesToRead, mergeBlocks, zeroedBlock } from "./core/blocks.js";
import { faults } from "../cluster/base/faults.js";
import { WHOLE } from "./core/range-locks.js";
import { cloneToMake, nameByParents, ownNameAt } from "./object-snapshots.js";
import {
  OBJECT_SIZE_MAX,
  WRITE_IF_ABSENT,
  WRITE_UNCONDITIONAL,
  WRITE_WHITEOUT,
  WriteKind,
  type ObjectParent,
  type OsdRead,
  type OsdWrite,
  type OsdWriteReply,
} from "./proto.js";
import {
  OpKind,
  type ChunkStore,
  type ObjectInfo,
  type ObjectRead,
  type Transaction,
} from "./store/chunk-store.js";

type WriteRequest = Incoming<OsdWrite, OsdWriteReply>;

/**
 * What a change does to the log: entries in order, of which the last one carries the client's
 * request number.
 */
export interface Step extends Pick<
  Transaction,
  "kind" | "offset" | "length" | "data" | "sums" | "size"
> {
  /** Nothing changes: what snapshots need of the object is not preserved. */
  keepsContext?: boolean;
  /** What is made from what; a clone takes all of this from its head. */
  copy?: { object: string; source: string } & Pick<
    Transaction,
    "truncateSeq" | "snapSeq" | "mtimeNs"
  >;
}

const NO_SUMS = new Uint32Array(0);

export class StepPlanner {
  constructor(
    private readonly pg: PgId,
    private readonly store: ChunkStore,
    /** Reads one block; a damaged one is repaired first. */
    private readonly readBlock: (object: string, offset: number) => Promise<ObjectRead | undefined>,
  ) {}

  /**
   * The log entries for a change: whole blocks, merged with what is there. What snapshots need of
   * the object comes first, as a clone.
   */
  prepare(request: WriteRequest): Step[] | Promise<Step[]> {
    const { message } = request;
    const { object } = message;
    const info = this.store.stat(this.pg, object);
    const isForAbsent = (message.flags & WRITE_IF_ABSENT) !== 0;
    if (info !== undefined && (isForAbsent || message.kind === WriteKind.copyUp)) {
      return [{ ...touch(info.size), keepsContext: true }];
    }
    if (info === undefined && message.parents.length > 0) {
      const source = nameByParents(this.store, this.pg, message.parents);
      if (source !== undefined) return this.prepareFrom(source, request);
    }
    const clone = cloneToMake(this.store, this.pg, message, info);
    const steps = this.prepareHead(request, info);
    if (clone === undefined || info === undefined) return steps;
    const first = copyStep({ object: clone, source: object }, info, info.snapSeq);
    return steps instanceof Promise ? steps.then((rest) => [first, ...rest]) : [first, ...steps];
  }

  /**
   * The object is not there, and what it is comes from a parent of its volume. It begins as a copy
   * that was there before all snapshots of the volume (its context is 0), so that they all find it
   * where they found the parent's.
   */
  private async prepareFrom(source: string, request: WriteRequest): Promise<Step[]> {
    const { object, kind, flags, offset, length, snapNewest } = request.message;
    if ((flags & WRITE_IF_ABSENT) !== 0) return [step(OpKind.remove, 0, 0, 0)]; // It is there.
    const then = this.store.stat(this.pg, source)!;
    const first = copyStep({ object, source }, then, 0);
    if (kind === WriteKind.copyUp) return [first];
    const isHidden =
      kind === WriteKind.remove ||
      (kind === WriteKind.write && offset === 0 && length >= then.size);
    // Nobody needs what it was.
    if (isHidden && snapNewest === 0) {
      if (kind === WriteKind.remove) return [touch(0)];
      return [writeStep(mergeBlocks(0, request.data, request.sums, noEdge), length)];
    }
    const rest = await this.prepareHead(request, { ...then, snapSeq: 0 }, source);
    if (snapNewest === 0) return [first, ...rest];
    const kept = copyStep({ object: cloneName(object, snapNewest), source: object }, then, 0);
    return [first, kept, ...rest];
  }

  /** `source` has the object's bytes as they are before the change. */
  private prepareHead(
    request: WriteRequest,
    info: ObjectInfo | undefined,
    source = request.message.object,
  ): Step[] | Promise<Step[]> {
    const { message } = request;
    if (message.kind === WriteKind.rollback) return [this.rollbackStep(message, info)];
    if (info === undefined && message.kind !== WriteKind.write) {
      return [step(OpKind.remove, 0, 0, 0)]; // Nothing to change, but the answer is remembered.
    }
    if (message.kind === WriteKind.remove && (message.flags & WRITE_WHITEOUT) !== 0) {
      return [step(OpKind.truncate, 0, 0, 0)];
    }
    if (message.kind === WriteKind.remove) {
      const newer = info !== undefined && info.truncateSeq >= message.truncateSeq;
      const keep = newer && (message.flags & WRITE_UNCONDITIONAL) === 0;
      return [keep ? touch(info.size) : step(OpKind.remove, 0, 0, 0)];
    }
    if (info !== undefined && message.truncateSeq < info.truncateSeq) {
      if (message.kind === WriteKind.truncate) return [touch(info.size)]; // A late purge.
      throw new DssError("StaleRequest", `${message.object} was truncated after this request`);
    }
    const trims =
      info !== undefined &&
      !faults.ignoreTruncation &&
      message.truncateSeq > info.truncateSeq &&
      info.size > message.truncateSize;
    if (!trims) return this.prepareChange(request, source, info?.size ?? 0);
    return this.shrinkSteps(source, message.truncateSize).then(async (steps) => [
      ...steps,
      ...(await this.prepareChange(request, source, message.truncateSize, message.truncateSize)),
    ]);
  }

  /** The object as it was at the snapshot; what it is now was preserved before. */
  private rollbackStep(message: OsdWrite, info: ObjectInfo | undefined): Step {
    const { object } = message;
    const source = ownNameAt(this.store, this.pg, message);
    if (source === undefined) return step(OpKind.remove, 0, 0, 0);
    if (source === object) return touch(info?.size ?? 0);
    const then = this.store.stat(this.pg, source)!;
    return copyStep({ object, source }, then, message.snapSeq);
  }

  /**
   * `size` is the object's size when the change is made; `validTo` hides old bytes that a trim
   * before it drops.
   */
  private prepareChange(
    request: WriteRequest,
    source: string,
    size: number,
    validTo = WHOLE,
  ): Step[] | Promise<Step[]> {
    const { message } = request;
    const { offset, length } = message;
    switch (message.kind) {
      case WriteKind.write: {
        const newSize = Math.max(size, offset + length);
        const { head, tail } = edgesToRead(offset, length, size);
        if (head === undefined && tail === undefined) {
          return [writeStep(mergeBlocks(offset, request.data, request.sums, noEdge), newSize)];
        }
        return this.readEdges(source, [head, tail], validTo).then((edge) => [
          writeStep(mergeBlocks(offset, request.data, request.sums, edge), newSize),
        ]);
      }
      case WriteKind.zero:
        return this.zeroSteps(source, offset, Math.min(offset + length, size), size, validTo);
      case WriteKind.truncate:
        if ((message.flags & WRITE_UNCONDITIONAL) === 0 || offset >= size) return [touch(size)];
        return this.shrinkSteps(source, offset);
      default:
        throw new DssError("Malformed", `unknown kind of change ${message.kind}`);
    }
  }

  private async readEdges(
    object: string,
    blocks: readonly (number | undefined)[],
    validTo = WHOLE,
  ): Promise<(blockOffset: number) => Buffer | undefined> {
    const edges = new Map<number, Buffer>();
    for (const block of blocks) {
      if (block === undefined || edges.has(block)) continue;
      const read = await this.readBlock(object, block);
      const data = read?.data[0];
      if (data === undefined) continue;
      const keep = Math.min(Math.max(validTo - block, 0), BLOCK_SIZE);
      edges.set(block, keep < BLOCK_SIZE ? zeroedBlock(data, keep, BLOCK_SIZE).data : data);
    }
    return (block) => edges.get(block);
  }

  /** Blocks wholly inside become holes; partial ones at the edges are rewritten. The size stays. */
  private async zeroSteps(
    object: string,
    start: number,
    end: number,
    size: number,
    validTo: number,
  ): Promise<Step[]> {
    if (start >= end) return [touch(size)];
    const steps: Step[] = [];
    const holeStart = blockCeil(start);
    // The last block of the object may go as a whole although the object ends inside it.
    const holeEnd = end === size ? blockCeil(end) : blockFloor(end);
    const partial = async (block: number, from: number, to: number): Promise<void> => {
      if (this.isHole(object, block)) return;
      const edge = await this.readEdges(object, [block], validTo);
      const old = edge(block);
      if (old === undefined) return;
      const { data, sums } = zeroedBlock(old, from, to);
      steps.push(writeStep({ offset: block, data: [data], sums }, size));
    };
    if (start < holeStart) {
      const block = blockFloor(start);
      await partial(block, start - block, Math.min(end - block, BLOCK_SIZE));
    }
    if (holeEnd > holeStart) steps.push(step(OpKind.zero, holeStart, holeEnd - holeStart, size));
    if (holeEnd < end && blockFloor(end) >= holeStart) {
      const block = blockFloor(end);
      await partial(block, 0, end - block);
    }
    return steps.length === 0 ? [touch(size)] : steps;
  }

  /** It reads as zeros and takes no space, which cutting it must not change. */
  private isHole(object: string, block: number): boolean {
    return this.store.extents(this.pg, object, block, BLOCK_SIZE).length === 0;
  }

  private async shrinkSteps(object: string, size: number): Promise<Step[]> {
    const block = blockFloor(size);
    if (block === size) return [step(OpKind.truncate, size, 0, size)];
    if (this.isHole(object, block)) return [step(OpKind.truncate, blockCeil(size), 0, size)];
    const edge = await this.readEdges(object, [block]);
    const old = edge(block);
    if (old === undefined) return [step(OpKind.truncate, blockCeil(size), 0, size)];
    const { data, sums } = zeroedBlock(old, size - block, BLOCK_SIZE);
    return [{ kind: OpKind.truncate, offset: block, length: 0, data: [data], sums, size }];
  }
}

const noEdge = (): undefined => undefined;
function step(kind: OpKind, offset: number, length: number, size: number): Step {
  return { kind, offset, length, data: [], sums: NO_SUMS, size };
}
function copyStep(
  names: { object: string; source: string },
  { size, truncateSeq, mtimeNs }: ObjectInfo,
  snapSeq: number,
): Step {
  return { ...step(OpKind.copy, 0, 0, size), copy: { ...names, truncateSeq, mtimeNs, snapSeq } };
}
function touch(size: number): Step {
  return step(OpKind.touch, 0, 0, size);
}
function writeStep(
  merged: { offset: number; data: Buffer[]; sums: Uint32Array },
  size: number,
): Step {
  const { offset, data, sums } = merged;
  return { kind: OpKind.write, offset, length: 0, data, sums, size };
}

/** Throws Malformed for what no correct client sends. */
export function validateWrite(message: OsdWrite, dataLength: number): void {
  const { kind, offset, length } = message;
  const bad =
    (kind === WriteKind.write && (length === 0 || length !== dataLength)) ||
    (kind !== WriteKind.write && dataLength !== 0) ||
    offset > OBJECT_SIZE_MAX ||
    offset + length > OBJECT_SIZE_MAX ||
    (cloneIdOf(message.object) !== undefined && kind !== WriteKind.remove) ||
    message.object.length === 0;
  if (bad) {
    const what = `kind ${kind}, offset ${offset}, length ${length}, data ${dataLength}`;
    throw new DssError("Malformed", `bad write: ${what}`);
  }
  validateParents(message);
}
/** Others are in other placement groups. */
function validateParents({
  object,
  parents,
}: {
  object: string;
  parents: readonly ObjectParent[];
}): void {
  if (parents.length === 0) return;
  const family = familyOf(object);
  const isClone = cloneIdOf(object) !== undefined;
  for (const { object: parent, snap } of parents) {
    const isSound = cloneIdOf(parent) === undefined && familyOf(parent) === family && snap > 0;
    if (isSound && parent !== object && !isClone) continue;
    throw new DssError("Malformed", `${parent}@${snap} is no parent of ${object}`);
  }
}
export function validateRead(message: OsdRead): void {
  if (message.offset + message.length > OBJECT_SIZE_MAX || message.object.length === 0) {
    const what = `offset ${message.offset}, length ${message.length}`;
    throw new DssError("Malformed", `bad read: ${what}`);
  }
  validateParents(message);
}
