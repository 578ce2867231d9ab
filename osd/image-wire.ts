/** Whole objects on the wire: what recovery copies. */
import { BLOCK_SIZE } from "../cluster/base/checksum.js";
import { DssError } from "../cluster/base/errors.js";
import type { PgId } from "../cluster/base/ids.js";
import { patchedRuns } from "./image-patch.js";
import { OBJECT_SIZE_MAX, type OsdPush } from "./proto.js";
import type { ObjectImage, SpoiledBlock } from "./store/chunk-store.js";

/** The message that carries an object, or says that there is none. */
export interface ImageHeader {
  pg: PgId;
  interval: number;
  attempt: number;
  asOf: number;
  object: string;
}

export function imageToWire(
  header: ImageHeader,
  image: ObjectImage | undefined,
  /** Only these blocks travel: the other side has the rest. */
  patch?: ObjectImage["extents"],
): { message: OsdPush; data: Buffer[]; sums: Uint32Array } {
  const extents = patch ?? image?.extents ?? [];
  const places = (runs: ObjectImage["extents"]): { offset: number; length: number }[] =>
    runs.map(({ offset, data }) => ({ offset, length: data.length }));
  const sums = new Uint32Array(extents.reduce((count, extent) => count + extent.sums.length, 0));
  let at = 0;
  for (const extent of extents) {
    sums.set(extent.sums, at);
    at += extent.sums.length;
  }
  return {
    message: {
      ...header,
      exists: image !== undefined,
      size: image?.info.size ?? 0,
      versionInterval: image?.info.version.interval ?? 0,
      versionSeq: image?.info.version.seq ?? 0,
      mtimeNs: image?.info.mtimeNs ?? 0n,
      truncateSeq: image?.info.truncateSeq ?? 0,
      snapSeq: image?.info.snapSeq ?? 0,
      extents: places(image?.extents ?? []),
      patch: patch !== undefined,
      carried: places(patch ?? []),
      spoiled: [...(image?.spoiled ?? [])],
    },
    data: extents.map(({ data }) => data),
    sums,
  };
}

/**
 * `old` is this side's copy, for a patch. Errors: Malformed; NotActive when the patch does not fit.
 */
export function imageFromWire(
  message: OsdPush,
  data: Buffer,
  sums: Uint32Array,
  old?: ObjectImage,
): ObjectImage | undefined {
  if (!message.exists) return undefined;
  const came = runsOf(message, message.patch ? message.carried : message.extents, data, sums);
  const extents = message.patch ? patchedRuns(placesOf(message), came, old) : came;
  return {
    info: {
      size: message.size,
      version: { interval: message.versionInterval, seq: message.versionSeq },
      mtimeNs: message.mtimeNs,
      truncateSeq: message.truncateSeq,
      snapSeq: message.snapSeq,
      allocated: extents.reduce((bytes, run) => bytes + run.data.length, 0),
    },
    extents,
    ...(message.spoiled.length > 0 && { spoiled: spoiledWithin(message, extents) }),
  };
}

/** Of a patch nothing but this has been checked. */
function placesOf(message: OsdPush): OsdPush["extents"] {
  for (const { offset, length } of message.extents) {
    const isWhole = offset % BLOCK_SIZE === 0 && length % BLOCK_SIZE === 0 && length > 0;
    if (!isWhole || offset + length > OBJECT_SIZE_MAX) {
      throw new DssError("Malformed", `bad extent ${offset}+${length} of ${message.object}`);
    }
  }
  return message.extents;
}

function runsOf(
  message: OsdPush,
  places: OsdPush["extents"],
  data: Buffer,
  sums: Uint32Array,
): ObjectImage["extents"] {
  let at = 0;
  let block = 0;
  return places.map(({ offset, length }) => {
    const blocks = length / BLOCK_SIZE;
    if (!Number.isInteger(blocks) || offset % BLOCK_SIZE !== 0 || at + length > data.length) {
      throw new DssError("Malformed", `bad extent ${offset}+${length} of ${message.object}`);
    }
    const extent = {
      offset,
      data: data.subarray(at, at + length),
      sums: sums.subarray(block, block + blocks),
    };
    at += length;
    block += blocks;
    return extent;
  });
}

/** Checked here, at the edge: they must be blocks that the image has. */
function spoiledWithin(
  message: OsdPush,
  extents: ObjectImage["extents"],
): readonly SpoiledBlock[] {
  for (const { offset } of message.spoiled) {
    const isThere = extents.some(
      (run) => offset >= run.offset && offset < run.offset + run.data.length,
    );
    if (offset % BLOCK_SIZE !== 0 || !isThere) {
      throw new DssError("Malformed", `bad spoiled block at ${offset} of ${message.object}`);
    }
  }
  return message.spoiled;
}
