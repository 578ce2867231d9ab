/**
 * What the NBD server serves: an image is a flat run of bytes, a directory names the images.
 * The server owns an image from `open` to `close`; however many connections use it, it is opened
 * once, so that a flush on one connection covers the writes answered on all of them.
 */
import type { DssError } from "../cluster/base/errors.js";

/**
 * A stretch of a read: its bytes, or why they cannot be had. Lengths are bytes. `recycle` is for
 * the last reader of the pieces of all parts, and may be left uncalled.
 */
export type ImagePart =
  | {
      readonly length: number;
      readonly pieces: readonly Buffer[];
      readonly recycle?: () => void;
    }
  | { readonly length: number; readonly failure: DssError };

/** All of a read's bytes. Errors: that of the first part that failed. */
export function wholeOf(parts: readonly ImagePart[]): Buffer[] {
  const pieces: Buffer[] = [];
  for (const part of parts) {
    if ("failure" in part) throw part.failure;
    for (const piece of part.pieces) pieces.push(piece);
  }
  return pieces;
}

/** What is known of a stretch without reading it; true to both is a hole. */
export interface ImageExtent {
  /** Bytes, more than 0. */
  readonly length: number;
  /** It takes no space. */
  readonly hole: boolean;
  /** It reads as zeros. */
  readonly zero: boolean;
}

export interface BlockImage {
  /** Canonical export name: valid UTF-8 without NUL, at most 4,096 bytes. */
  readonly name: string;
  /** For people; may be empty. */
  readonly description: string;
  /**
   * Bytes, below 2^64. Read again for every request, so that a resize takes effect at once. Above
   * 2^53 it is a multiple of 4,096 and so is the smallest block: such numbers are exact up to 2^65.
   */
  readonly size: number;
  readonly readOnly: boolean;
  /** What all connections together may do a second, read again for every request; 0: no limit. */
  readonly limits?: { readonly operations: number; readonly bytes: number };
  /**
   * Bytes. `minimum` is a power of two up to 65,536, `preferred` a power of two of at least 512,
   * `maximum` the longest read or write. The server refuses requests outside them.
   */
  readonly blockSize: {
    readonly minimum: number;
    readonly preferred: number;
    readonly maximum: number;
  };

  /** Pieces that add up to `length`; they do not change afterwards. Errors: any DssError. */
  read(offset: number, length: number): Promise<Buffer[]>;
  /**
   * The same in parts, of which some may have failed; the pieces stay as they are until they are
   * recycled. Errors: as `read`, when there is nothing to be had at all, or when nothing may be
   * believed (Fenced).
   */
  readParts(offset: number, length: number): Promise<ImagePart[]>;
  /**
   * `data` belongs to the image until the promise settles and must not be kept longer. With `fua`
   * the promise resolves only when the bytes are durable.
   */
  write(offset: number, data: Buffer, options: { fua: boolean }): Promise<void>;
  /**
   * Makes the range read as zeros; only with `mayTrim` may it give the space back. With `fast` it
   * fails at once with NotSupported, having changed nothing, unless that takes less than a write.
   */
  zero(
    offset: number,
    length: number,
    options: { fua: boolean; mayTrim: boolean; fast: boolean },
  ): Promise<void>;
  /** A hint: the bytes of the range are undefined until written again. */
  trim(offset: number, length: number, options: { fua: boolean }): Promise<void>;
  /** A hint: the range will be read soon. Holds at most 1 MiB at a time. */
  cache(offset: number, length: number): Promise<void>;
  /**
   * What the range consists of, from `offset` on and as far as it is easily known: at least one
   * extent, at most `extentsMax`, together no longer than `length`; neighbours differ.
   */
  status(offset: number, length: number, extentsMax: number): Promise<ImageExtent[]>;
  /** Resolves when every write, zero and trim answered before the call is durable. */
  flush(): Promise<void>;
}

export interface ExportEntry {
  readonly name: string;
  readonly description: string;
}

export interface ExportDirectory {
  /** Every export a client may ask for. */
  list(): Promise<ExportEntry[]>;
  /**
   * Errors: NotFound when there is no such export; Busy, NotPermitted or AccessDenied when it may
   * not be used; ShuttingDown; any other DssError when it cannot be reached.
   */
  open(name: string): Promise<BlockImage>;
  /** Called once per successful `open`, after the last flush and with no request in flight. */
  close(image: BlockImage): Promise<void>;
}
