/**
 * Synchronous appends that a worker had begun and not answered when it died. The kernel sends them
 * again; the next worker must not append a second time what is there already. The place had been
 * noted before the write was begun, and the end of the file was looked for under the fence: if the
 * file reaches over that place, the bytes there are this append's and nobody else's.
 */
import type { Ino } from "../../cluster/base/ids.js";
import type { RecordedAppend } from "./worker-record.js";

export class EarlierAppends {
  private readonly byCause = new Map<number, RecordedAppend>();
  private readonly found = new Map<Ino, number>();

  /** `sizes`: what the takeover found of the files. */
  restore(appends: readonly RecordedAppend[], sizes: readonly { ino: Ino; size: number }[]): void {
    for (const append of appends) this.byCause.set(append.cause, append);
    for (const { ino, size } of sizes) this.found.set(ino, size);
  }
  get any(): boolean {
    return this.byCause.size > 0;
  }

  /** Where the append belongs; undefined: nothing of it was written, it goes to the end. */
  place(cause: number, ino: Ino, sizeNow: number): number | undefined {
    const append = this.byCause.get(cause);
    const size = this.found.get(ino);
    if (append === undefined || append.ino !== ino || size === undefined) return undefined;
    this.byCause.delete(cause);
    const { position, length } = append;
    if (size >= position + length) return position;
    // A part of it (it spans objects): if others have appended since, it is written once more.
    return size > position && sizeNow === size ? position : undefined;
  }
}
