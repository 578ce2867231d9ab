/**
 * The images that are open, each once however many connections use it. The last user's release
 * flushes the image and closes it; whoever asks for it meanwhile waits and opens it anew.
 * Owner of: the user counts and the order open … close of every image.
 */
import { assert } from "../cluster/base/assert.js";
import { describeError } from "../cluster/base/errors.js";
import type { Logger } from "../cluster/base/log.js";
import type { Clock } from "../cluster/platform/ports.js";
import type { BlockImage, ExportDirectory } from "./block-image.js";
import { Meter, type Activity } from "./meter.js";

/** One connection's right to use an image. */
export interface ExportShare {
  readonly image: BlockImage;
  /** Shared by all who use the image. */
  readonly meter: Meter;
  /** Once, when none of the holder's requests is in flight. */
  release(): void;
}

interface Entry {
  readonly image: Promise<BlockImage>;
  users: number;
}

export class ExportTable {
  private readonly entries = new Map<string, Entry>();
  /** Of the open images: an image may be open under two names. */
  private readonly meters = new Map<BlockImage, Meter>();
  /** Images being flushed and closed, by name. */
  private readonly closing = new Map<string, Promise<void>>();
  /** The first failure to flush or close since the start; `stop` of the server reports it. */
  private failure: Error | undefined;

  constructor(
    private readonly directory: ExportDirectory,
    private readonly log: Logger,
    private readonly clock: Pick<Clock, "now">,
  ) {}

  /** What the open images did since the last call. */
  activity(): { image: BlockImage; activity: Activity }[] {
    return [...this.meters].map(([image, meter]) => ({ image, activity: meter.take() }));
  }

  get openCount(): number {
    return this.entries.size + this.closing.size;
  }

  /** Errors: those of `ExportDirectory.open`. */
  async acquire(name: string): Promise<ExportShare> {
    let pending = this.closing.get(name);
    while (pending) {
      await pending;
      pending = this.closing.get(name);
    }
    let entry = this.entries.get(name);
    if (!entry) {
      entry = { image: this.open(name), users: 0 };
      this.entries.set(name, entry);
    }
    const held = entry;
    held.users++;
    let image: BlockImage;
    try {
      image = await held.image;
    } catch (error) {
      // All who waited for the same opening fail with it; the next one tries again.
      if (this.entries.get(name) === held) this.entries.delete(name);
      throw error;
    }
    let released = false;
    let meter = this.meters.get(image);
    if (meter === undefined) this.meters.set(image, (meter = new Meter(this.clock)));
    return {
      image,
      meter,
      release: () => {
        assert(!released, `export ${name}: released twice`);
        released = true;
        held.users--;
        if (held.users > 0) return;
        this.meters.delete(image);
        this.close(name, image);
      },
    };
  }

  /** Resolves when nothing is open or being closed; fails with the first failed flush or close. */
  async drained(): Promise<void> {
    while (this.closing.size > 0) await Promise.all(this.closing.values());
    if (this.failure !== undefined) throw this.failure;
  }

  private async open(name: string): Promise<BlockImage> {
    const image = await this.directory.open(name);
    const { minimum, preferred, maximum } = image.blockSize;
    const { size } = image;
    assert(Number.isInteger(size) && size >= 0 && size < 2 ** 64, `${name}: size ${size}`);
    assert(Number.isSafeInteger(size) || minimum % 4096 === 0, `${name}: size ${size}`);
    assert(isPowerOfTwo(minimum) && minimum <= 65_536, `${name}: minimum block ${minimum}`);
    assert(
      isPowerOfTwo(preferred) && preferred >= Math.max(minimum, 512),
      `${name}: preferred block ${preferred}`,
    );
    assert(maximum >= preferred && maximum < 2 ** 32, `${name}: longest request ${maximum}`);
    return image;
  }

  private close(name: string, image: BlockImage): void {
    this.entries.delete(name);
    const done = this.flushAndClose(name, image).finally(() => this.closing.delete(name));
    this.closing.set(name, done);
  }

  /** Never fails: a failure is logged and kept for `drained`. */
  private async flushAndClose(name: string, image: BlockImage): Promise<void> {
    try {
      if (!image.readOnly) await image.flush();
    } catch (error) {
      // Writes that were answered without a flush may be lost: the protocol allows it, but
      // somebody should know.
      this.failure ??= asError(error);
      this.log.error({ export: name, reason: describeError(error) }, "last flush failed");
    }
    try {
      await this.directory.close(image);
      this.log.info({ export: name }, "export closed");
    } catch (error) {
      this.failure ??= asError(error);
      this.log.error({ export: name, reason: describeError(error) }, "closing an export failed");
    }
  }
}

function isPowerOfTwo(value: number): boolean {
  return Number.isInteger(value) && value > 0 && (value & (value - 1)) === 0;
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
