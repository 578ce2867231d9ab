/**
 * Buffers for data that are used again. Each fresh one counts against the limit of memory outside
 * the heap at which V8 collects everything. Where bulk data flows, that is most of the processor
 * time; of writes of 4 KiB it was a tenth.
 *
 * Owns: the free buffers. A buffer is given back at most once, by the last who uses it; one that
 * is never given back is garbage like any other.
 */
/** What is smaller has no data, or so few that it is not worth the trouble. */
const CLASS_MIN = 2 * 1024;
const SLAB_BYTES = 256 * 1024;

export class BufferPool {
  /** For tests: whatever is given back is overwritten, so that who kept a view of it notices. */
  static overwrites = false;

  private readonly free = new Map<number, Buffer[]>();
  private freeBytes = 0;
  /** Of these nobody has had need since `trim`. */
  private unusedBytes = 0;
  private slab: Buffer = Buffer.alloc(0);
  private slabAt = 0;

  /**
   * `bytesMax`: what is kept for later. Buffers smaller than 2 KiB or larger than it are not.
   * `onKept`: there is something to `trim`, and there was nothing before.
   */
  constructor(
    private readonly bytesMax: number,
    private readonly onKept: () => void = () => undefined,
  ) {}

  /** Bytes that are kept. */
  get kept(): number {
    return this.freeBytes;
  }
  /** Lets go of what was not needed since the last call. */
  trim(): void {
    for (const [size, buffers] of this.free) {
      while (this.unusedBytes >= size && buffers.pop() !== undefined) {
        this.unusedBytes -= size;
        this.freeBytes -= size;
      }
    }
    this.unusedBytes = this.freeBytes;
  }

  /** At least `bytes` bytes of any content; the whole of it goes back with `give`. */
  take(bytes: number): Buffer {
    if (bytes < CLASS_MIN || bytes > this.bytesMax) return Buffer.allocUnsafeSlow(bytes);
    const size = classOf(bytes);
    const buffer = this.free.get(size)?.pop();
    if (buffer === undefined) return Buffer.allocUnsafeSlow(size);
    this.freeBytes -= size;
    if (this.freeBytes < this.unusedBytes) this.unusedBytes = this.freeBytes;
    return buffer;
  }
  /** The same bytes in memory that may be given back. Small ones share a slab. */
  copyOf(bytes: Buffer): Buffer {
    const copy = bytes.length < CLASS_MIN ? this.slice(bytes.length) : this.take(bytes.length);
    bytes.copy(copy);
    return copy;
  }
  private slice(length: number): Buffer {
    if (this.slabAt + length > this.slab.length) {
      this.slab = Buffer.allocUnsafeSlow(SLAB_BYTES);
      this.slabAt = 0;
    }
    const at = this.slabAt;
    this.slabAt = at + length + 7 - ((at + length + 7) % 8);
    return this.slab.subarray(at, at + length);
  }
  /** `buffer` as `take` or `copyOf` returned it. */
  give(buffer: Buffer): void {
    const size = buffer.length;
    if (BufferPool.overwrites) buffer.fill(0xdb);
    if (size < CLASS_MIN || size !== classOf(size)) return;
    if (this.freeBytes + size > this.bytesMax) return;
    if (this.freeBytes === 0) this.onKept();
    this.freeBytes += size;
    const known = this.free.get(size);
    if (known === undefined) this.free.set(size, [buffer]);
    else known.push(buffer);
  }
}

/** Eight sizes between one power of two and the next: at most a ninth is wasted. */
function classOf(bytes: number): number {
  const step = 2 ** (31 - Math.clz32(bytes)) / 8;
  return Math.ceil(bytes / step) * step;
}
