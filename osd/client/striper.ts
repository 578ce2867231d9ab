/**
 * Striping (design §3): byte ranges of a file or volume to extents of objects. Pure.
 *
 * Stripe units go round-robin over `stripeCount` objects; when these are full (objectSize bytes
 * each), the next object set begins (the layout of Ceph's striper). With stripeUnit = objectSize
 * and stripeCount = 1 it is plain concatenation.
 */
export interface StripeLayout {
  objectSize: number;
  stripeUnit: number;
  stripeCount: number;
}

export interface Extent {
  /** Object number within the file. */
  index: number;
  /** Byte offset in the object. */
  offset: number;
  length: number;
  /** Where this piece is in the range that was asked for. */
  at: number;
}

/** The extents of [offset, offset + length), in file order; neighbours in one object are joined. */
export function extentsOf(layout: StripeLayout, offset: number, length: number): Extent[] {
  const { objectSize, stripeUnit, stripeCount } = layout;
  const extents: Extent[] = [];
  const unitsPerObject = objectSize / stripeUnit;
  let at = 0;
  while (at < length) {
    const position = offset + at;
    const unit = Math.floor(position / stripeUnit);
    const inUnit = position - unit * stripeUnit;
    const stripe = Math.floor(unit / stripeCount);
    const set = Math.floor(stripe / unitsPerObject);
    const index = set * stripeCount + (unit % stripeCount);
    const objectOffset = (stripe % unitsPerObject) * stripeUnit + inUnit;
    const take = Math.min(stripeUnit - inUnit, length - at);
    const last = extents[extents.length - 1];
    if (last !== undefined && last.index === index && last.offset + last.length === objectOffset) {
      last.length += take;
    } else {
      extents.push({ index, offset: objectOffset, length: take, at });
    }
    at += take;
  }
  return extents;
}

/** Bytes of object `index` that belong to a file of `size` bytes. */
export function objectSizeWithin(layout: StripeLayout, index: number, size: number): number {
  const { objectSize, stripeUnit, stripeCount } = layout;
  const setBytes = objectSize * stripeCount;
  const set = Math.floor(index / stripeCount);
  const inSet = size - set * setBytes;
  if (inSet <= 0) return 0;
  if (inSet >= setBytes) return objectSize;
  const column = index % stripeCount;
  const stripeBytes = stripeUnit * stripeCount;
  const full = Math.floor(inSet / stripeBytes);
  const rest = inSet - full * stripeBytes - column * stripeUnit;
  return full * stripeUnit + Math.min(Math.max(rest, 0), stripeUnit);
}

/**
 * The file size that a non-empty object of `bytes` bytes proves: the end of its last byte in the
 * file.
 */
export function fileSizeProvedBy(layout: StripeLayout, index: number, bytes: number): number {
  if (bytes === 0) return 0;
  const { objectSize, stripeUnit, stripeCount } = layout;
  const set = Math.floor(index / stripeCount);
  const column = index % stripeCount;
  const last = bytes - 1;
  const stripe = Math.floor(last / stripeUnit);
  const position =
    set * objectSize * stripeCount +
    stripe * stripeUnit * stripeCount +
    column * stripeUnit +
    (last % stripeUnit);
  return position + 1;
}

/** Objects that a file of `size` bytes can have: 0 … count - 1. */
export function objectCount(layout: StripeLayout, size: number): number {
  if (size === 0) return 0;
  const setBytes = layout.objectSize * layout.stripeCount;
  const fullSets = Math.floor(size / setBytes);
  const rest = size - fullSets * setBytes;
  const units = Math.ceil(rest / layout.stripeUnit);
  return fullSets * layout.stripeCount + Math.min(units, layout.stripeCount);
}

export function filePrefix(ino: number): string {
  return ino.toString(16);
}
