/** The index, with an eye on failures of the database itself: after one nothing is believed. */
import { isDssError } from "../../cluster/base/errors.js";
import type { OrderedStore, StoreBatch } from "../../cluster/platform/ports.js";

export class WatchedIndex implements OrderedStore {
  onBroken: (error: Error) => void = () => undefined;

  constructor(private readonly inner: OrderedStore) {}

  get(key: Buffer): Buffer | undefined {
    try {
      return this.inner.get(key);
    } catch (error) {
      throw this.broken(error);
    }
  }
  *range(options: Parameters<OrderedStore["range"]>[0]): ReturnType<OrderedStore["range"]> {
    try {
      // Who stops early ends the inner one too, and with it the snapshot that it reads.
      yield* this.inner.range(options);
    } catch (error) {
      throw this.broken(error);
    }
  }
  commit(batch: StoreBatch): Promise<void> {
    return this.inner.commit(batch); // Its failures are the checkpoint's to report.
  }
  close(): Promise<void> {
    return this.inner.close();
  }

  private broken(error: unknown): unknown {
    if (isDssError(error, "Corrupt") || isDssError(error, "Disk")) this.onBroken(error);
    return error;
  }
}
