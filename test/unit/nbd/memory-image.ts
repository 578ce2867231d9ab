/** An image and a directory in memory for tests of the NBD server, with faults on request. */
import { assert } from "../../../cluster/base/assert.js";
import { DssError } from "../../../cluster/base/errors.js";
import type {
  BlockImage,
  ExportDirectory,
  ExportEntry,
  ImageExtent,
  ImagePart,
} from "../../../nbd/block-image.js";

const BLOCK = 65_536;
const ZEROS = Buffer.alloc(BLOCK);

export interface MemoryImageOptions {
  name: string;
  size: number;
  description?: string;
  readOnly?: boolean;
  blockSize?: { minimum: number; preferred: number; maximum: number };
}

export class MemoryImage implements BlockImage {
  readonly name: string;
  readonly description: string;
  readonly readOnly: boolean;
  readonly size: number;
  readonly blockSize: { minimum: number; preferred: number; maximum: number };
  readonly bytes: Buffer;
  /** One line per call, in the order of arrival. */
  readonly calls: string[] = [];
  /** Set to collect `calls`; off by default, because a benchmark makes millions. */
  recording = false;
  /** Fails every operation while set. */
  fault: Error | undefined;
  /** Reads in parts fail for this block of 64 KiB only. */
  badBlock: number | undefined;
  /** Bytes of reads that were given back. */
  recycled = 0;
  /** When set, operations wait for the promise it returns. */
  gate: ((call: string) => Promise<void>) | undefined;

  constructor(options: MemoryImageOptions) {
    this.name = options.name;
    this.size = options.size;
    this.description = options.description ?? "";
    this.readOnly = options.readOnly ?? false;
    this.blockSize = options.blockSize ?? {
      minimum: 1,
      preferred: 4096,
      maximum: 32 * 1024 * 1024,
    };
    this.bytes = Buffer.alloc(options.size);
  }

  async read(offset: number, length: number): Promise<Buffer[]> {
    await this.enter(`read ${offset}+${length}`, offset, length);
    // Two pieces where possible, so that tests see more than one.
    const copy = Buffer.from(this.bytes.subarray(offset, offset + length));
    if (length < 1024 * 1024) return [copy];
    return [copy.subarray(0, 4096), copy.subarray(4096)];
  }
  /** In blocks of 64 KiB. */
  async readParts(offset: number, length: number): Promise<ImagePart[]> {
    await this.enter(`read ${offset}+${length}`, offset, length);
    const parts: ImagePart[] = [];
    for (let at = offset; at < offset + length;) {
      const block = Math.floor(at / BLOCK);
      const end = Math.min((block + 1) * BLOCK, offset + length);
      const bad = block === this.badBlock;
      const bytes = Buffer.from(this.bytes.subarray(at, end));
      // Whoever looks at it afterwards finds other bytes.
      const recycle = (): void => {
        bytes.fill(0xdd);
        this.recycled += bytes.length;
      };
      if (bad) parts.push({ length: end - at, failure: new DssError("Corrupt", "a bad block") });
      else parts.push({ length: end - at, pieces: [bytes], recycle });
      at = end;
    }
    return parts;
  }
  async write(offset: number, data: Buffer, options: { fua: boolean }): Promise<void> {
    await this.enter(`write ${offset}+${data.length}${mark(options)}`, offset, data.length);
    data.copy(this.bytes, offset);
  }
  async zero(
    offset: number,
    length: number,
    options: { fua: boolean; mayTrim: boolean; fast: boolean },
  ): Promise<void> {
    const hole = options.mayTrim ? "" : " no-hole";
    const fast = options.fast ? " fast" : "";
    await this.enter(`zero ${offset}+${length}${mark(options)}${hole}${fast}`, offset, length);
    if (options.fast && offset % 4096 !== 0) throw new DssError("NotSupported", "not fast");
    this.bytes.fill(0, offset, offset + length);
  }
  async trim(offset: number, length: number, options: { fua: boolean }): Promise<void> {
    await this.enter(`trim ${offset}+${length}${mark(options)}`, offset, length);
    this.bytes.fill(0, offset, offset + length);
  }
  async flush(): Promise<void> {
    await this.enter("flush", 0, 0);
  }
  async cache(offset: number, length: number): Promise<void> {
    await this.enter(`cache ${offset}+${length}`, offset, length);
  }
  /** Blocks of 64 KiB that are all zeros are holes. */
  async status(offset: number, length: number, extentsMax: number): Promise<ImageExtent[]> {
    await this.enter(`status ${offset}+${length} ${extentsMax}`, offset, length);
    const extents: { length: number; hole: boolean; zero: boolean }[] = [];
    for (let at = offset; at < offset + length;) {
      const end = Math.min((Math.floor(at / BLOCK) + 1) * BLOCK, offset + length);
      const hole = this.bytes.subarray(at, end).equals(ZEROS.subarray(0, end - at));
      const last = extents.at(-1);
      if (last?.hole === hole) last.length += end - at;
      else if (extents.length === extentsMax) break;
      else extents.push({ length: end - at, hole, zero: hole });
      at = end;
    }
    return extents;
  }

  private enter(call: string, offset: number, length: number): Promise<void> | undefined {
    assert(offset >= 0 && offset + length <= this.size, `${call} outside ${this.size}`);
    if (this.recording) this.calls.push(call);
    if (this.fault !== undefined) throw this.fault;
    return this.gate?.(call);
  }
}

function mark(options: { fua: boolean }): string {
  return options.fua ? " fua" : "";
}

export class MemoryDirectory implements ExportDirectory {
  readonly opened: string[] = [];
  opens = 0;
  closes = 0;

  constructor(readonly images: readonly MemoryImage[]) {}

  async list(): Promise<ExportEntry[]> {
    return this.images.map(({ name, description }) => ({ name, description }));
  }
  async open(name: string): Promise<BlockImage> {
    const image = this.images.find((i) => i.name === name);
    if (!image) throw new DssError("NotFound", `no volume ${name}`);
    assert(!this.opened.includes(name), `${name} is opened twice`);
    this.opened.push(name);
    this.opens++;
    return image;
  }
  async close(image: BlockImage): Promise<void> {
    const at = this.opened.indexOf(image.name);
    assert(at >= 0, `${image.name} is closed but not open`);
    this.opened.splice(at, 1);
    this.closes++;
  }
}
