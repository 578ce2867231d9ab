/**
 * What the worker's record says of each file's data (worker-record.ts): written and not durable,
 * durable and its size not told, lost and not reported, kept in the record. Notes a change of that,
 * not every write.
 */
import type { Node } from "./node.js";
import {
  FAILED,
  KEPT,
  UNTOLD,
  UNWRITTEN,
  type KeptFile,
  type WorkerRecord,
} from "./worker-record.js";

export class DataMarks {
  constructor(private readonly record: WorkerRecord | undefined) {}

  private set(node: Node, marks: number): void {
    if (node.marks === marks) return;
    node.marks = marks;
    this.record?.data(node.ino, marks);
  }
  /** Bytes go into the buffers. */
  written(node: Node): void {
    this.set(node, (node.marks & ~KEPT) | UNWRITTEN | UNTOLD);
  }
  /** The next worker would write back these bytes: all that is not durable. */
  keep(node: Node, pieces: KeptFile["pieces"]): void {
    if (this.record === undefined || (node.marks & (UNWRITTEN | KEPT)) !== UNWRITTEN) return;
    const file = { ino: node.ino, mtimeNs: node.inode!.mtimeNs, pieces };
    if (!this.record.mayKeep(file)) return;
    this.record.keep(file);
    this.set(node, node.marks | KEPT);
  }
  /** What was kept is not to be written any more as it was: the objects or the size change. */
  changing(node: Node): void {
    this.set(node, node.marks & ~KEPT);
  }
  /** What was written would outlive this worker, or nobody follows it. */
  mayLinger(node: Node): boolean {
    return this.record === undefined || (node.marks & KEPT) !== 0;
  }
  /** Bytes go to the objects, or the time changed. */
  untold(node: Node): void {
    this.set(node, node.marks | UNTOLD);
  }
  /** Everything that was written is durable, or was given up with an error. */
  durable(node: Node): void {
    this.set(node, node.marks & ~(UNWRITTEN | KEPT));
    // Nobody is answered, but a worker that dies now has lost nothing of it.
    this.record?.commitSoon();
  }
  /** The leader has its size and time, or nobody may say them any more. */
  told(node: Node): void {
    if (!node.unpublished && (node.data?.clean ?? true)) {
      this.set(node, node.marks & ~(UNTOLD | UNWRITTEN | KEPT));
    }
  }
  failed(node: Node): void {
    this.set(node, node.marks | FAILED);
  }
  reported(node: Node): void {
    this.set(node, node.marks & ~FAILED);
  }
  /** The file is gone, or all of it that was here. */
  dropped(node: Node): void {
    this.set(node, node.marks & FAILED);
  }
  gone(node: Node): void {
    this.set(node, 0);
  }
}
