/**
 * The form of a journal batch: format, number, term, records, checksum. Pure. A record is what one
 * operation changed; records apply in order, and a batch as a whole.
 */
import { DssError } from "../../cluster/base/errors.js";
import { Reader, Writer, unseal } from "./binary.js";
import { readDelta, writeDelta, type Delta } from "./delta.js";
import { BatchTotals } from "./totals-changes.js";

const JOURNAL_FORMAT = 3;
/** A batch is sealed when it holds this many bytes. */
export const BATCH_BYTES = 256 * 1024;
/** Of what is added to one directory's totals, about. */
const TOTALS_BYTES = 16;

export interface Batch {
  seq: number;
  term: number;
  records: Delta[][];
}

/** A batch being filled; encoding happens as records come, so that sealing is quick. */
export class BatchBuilder {
  private readonly out = new Writer(16 * 1024);
  private readonly totals = new BatchTotals();
  count = 0;

  constructor(
    readonly seq: number,
    readonly term: number,
  ) {
    this.out.u8(JOURNAL_FORMAT);
    this.out.uint(seq);
    this.out.uint(term);
  }
  add(record: readonly Delta[]): void {
    let length = 0;
    for (const delta of record) {
      if (delta.d === "totalsAdd") this.totals.add(delta);
      else length++;
    }
    this.write(record, length);
    this.count++;
  }
  private write(record: readonly Delta[], length: number): void {
    this.out.uint(length);
    for (const delta of record) if (delta.d !== "totalsAdd") writeDelta(this.out, delta);
  }
  get bytes(): number {
    return this.out.length + this.totals.size * TOTALS_BYTES;
  }
  /**
   * The encoded batch; nothing can be added afterwards. Its last record has what all others
   * together add to the totals of directories.
   */
  seal(): Buffer {
    const sums = this.totals.record();
    if (sums.length > 0) {
      this.out.uint(sums.length);
      for (const sum of sums) writeDelta(this.out, sum);
    }
    return this.out.seal();
  }
}

/** Corrupt when damaged or not batch `seq`; IncompatibleVersion when written by a later release. */
export function decodeBatch(seq: number, data: Buffer): Batch {
  const from = new Reader(unseal(data, `journal batch ${seq}`));
  const format = from.u8();
  if (format !== JOURNAL_FORMAT) {
    throw new DssError("IncompatibleVersion", `journal batch ${seq} has format ${format}`);
  }
  const number = from.uint();
  if (number !== seq) throw new DssError("Corrupt", `journal batch ${seq} holds batch ${number}`);
  const term = from.uint();
  const records: Delta[][] = [];
  while (!from.end) {
    const record: Delta[] = [];
    for (let left = from.uint(); left > 0; left--) record.push(readDelta(from));
    records.push(record);
  }
  return { seq, term, records };
}
