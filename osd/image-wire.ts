/** Whole objects on the wire: what recovery copies. */
import { BLOCK_SIZE } from "../cluster/base/checksum.js";
import { DssError } from "../cluster/base/errors.js";
import type { PgId } from "../cluster/base/ids.js";
import type { OsdPush } from "./proto.js";
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
): { message: OsdPush; data: Buffer[]; sums: Uint32Array } {
  const extents = image?.extents ?? [];
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
      extents: extents.map(({ offset, data }) => ({ offset, length: data.length })),
      spoiled: [...(image?.spoiled ?? [])],
    },
    data: extents.map(({ data }) => data),
    sums,
  };
}

export function imageFromWire(
  message: OsdPush,
  data: Buffer,
  sums: Uint32Array,
): ObjectImage | undefined {
  if (!message.exists) return undefined;
  let at = 0;
  let block = 0;
  const extents = message.extents.map(({ offset, length }) => {
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
  return {
    info: {
      size: message.size,
      version: { interval: message.versionInterval, seq: message.versionSeq },
      mtimeNs: message.mtimeNs,
      truncateSeq: message.truncateSeq,
      allocated: at,
    },
    extents,
    ...(message.spoiled.length > 0 && { spoiled: spoiledWithin(message, extents) }),
  };
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
