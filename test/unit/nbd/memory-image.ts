/** An image and a directory in memory for tests of the NBD server, with faults on request. */
import { assert } from "../../../cluster/base/assert.js";
import { DssError } from "../../../cluster/base/errors.js";
import type { BlockImage, ExportDirectory, ExportEntry } from "../../../nbd/block-image.js";

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
  async write(offset: number, data: Buffer, options: { fua: boolean }): Promise<void> {
    await this.enter(`write ${offset}+${data.length}${mark(options)}`, offset, data.length);
    data.copy(this.bytes, offset);
  }
  async zero(
    offset: number,
    length: number,
    options: { fua: boolean; mayTrim: boolean },
  ): Promise<void> {
    const hole = options.mayTrim ? "" : " no-hole";
    await this.enter(`zero ${offset}+${length}${mark(options)}${hole}`, offset, length);
    this.bytes.fill(0, offset, offset + length);
  }
  async trim(offset: number, length: number, options: { fua: boolean }): Promise<void> {
    await this.enter(`trim ${offset}+${length}${mark(options)}`, offset, length);
    this.bytes.fill(0, offset, offset + length);
  }
  async flush(): Promise<void> {
    await this.enter("flush", 0, 0);
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
