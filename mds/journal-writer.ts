/**
 * Group commit of journal records: one batch is on its way to the store, the next one fills
 * meanwhile. A batch for which nobody waits lingers a little for company (every batch costs the
 * store a commit). Batches become safe in order. The first failure ends the leader: what was
 * written after it would have a gap before it.
 */
import { assert } from "../cluster/base/assert.js";
import type { Clock, Timer } from "../cluster/platform/ports.js";
import { BATCH_BYTES, BatchBuilder } from "./core/journal.js";
import type { Delta } from "./core/delta.js";
import type { MetadataStore } from "./store/metadata-store.js";

/** Sealed batches that wait; more, and operations wait before they change anything. */
const QUEUED_MAX = 8;

export interface JournalEvents {
  /**
   * A batch is complete and will be written: the pages in memory hold exactly the batches up to it.
   */
  onSealed(seq: number): void;
  onSafe(seq: number): void;
  onFailure(error: unknown): void;
}

export class JournalWriter {
  private open: BatchBuilder | undefined;
  private readonly sealed: { seq: number; data: Buffer }[] = [];
  private writing = false;
  private scheduled = false;
  private linger: Timer | undefined;
  private failed = false;
  private next: number;
  private readonly waiting: { seq: number; resolve: () => void }[] = [];
  safe: number;
  /** Bytes written since the checkpointer last looked. */
  bytes = 0;

  /** `last`: the newest batch in the store. */
  constructor(
    private readonly parts: {
      store: MetadataStore;
      clock: Clock;
      term: number;
      last: number;
      /** The longest that a batch waits for more records while nobody waits for it. */
      lingerMs: number;
      events: JournalEvents;
      /** The store answered a request that was sent at this clock time. */
      onContact: (sentMs: number) => void;
    },
  ) {
    this.next = parts.last + 1;
    this.safe = parts.last;
  }
  /** The batch that the next record belongs to. */
  get current(): number {
    return this.open?.seq ?? this.next;
  }
  /** Every record given so far is in a batch up to here. */
  get last(): number {
    return this.open?.seq ?? this.next - 1;
  }
  get idle(): boolean {
    return this.open === undefined && this.sealed.length === 0 && !this.writing;
  }
  get full(): boolean {
    return this.sealed.length >= QUEUED_MAX;
  }
  /** Number of the batch; its pages have been changed under this number. */
  add(record: readonly Delta[]): number {
    this.open ??= new BatchBuilder(this.next++, this.parts.term);
    const { open } = this;
    open.add(record);
    if (open.bytes >= BATCH_BYTES) this.seal();
    this.schedule();
    return open.seq;
  }
  /** Resolves when everything up to `seq` is safe; never when the leader fails first. */
  whenSafe(seq: number, resolve: () => void): void {
    if (seq <= this.safe) {
      resolve();
      return;
    }
    this.waiting.push({ seq, resolve });
    if (this.open !== undefined) this.schedule();
  }

  /** The records of one turn of the event loop, or of the time the last batch took, go together. */
  private schedule(): void {
    if (this.scheduled || this.writing || this.failed) return;
    const urgent = this.waiting.length > 0 || this.sealed.length > 0;
    if (!urgent && this.parts.lingerMs > 0) {
      this.linger ??= this.parts.clock.setTimer(this.parts.lingerMs, () => {
        this.linger = undefined;
        void this.pump();
      });
      return;
    }
    this.scheduled = true;
    this.parts.clock.defer(() => {
      this.scheduled = false;
      void this.pump();
    });
  }
  private seal(): void {
    const { open } = this;
    assert(open !== undefined, "no batch to seal");
    this.open = undefined;
    this.sealed.push({ seq: open.seq, data: open.seal() });
    this.parts.events.onSealed(open.seq);
  }
  private async pump(): Promise<void> {
    if (this.writing || this.failed) return;
    this.linger?.cancel();
    this.linger = undefined;
    this.writing = true;
    let isFirst = true;
    try {
      for (;;) {
        const wanted = isFirst || this.waiting.length > 0;
        isFirst = false;
        if (this.sealed.length === 0 && this.open !== undefined && wanted) this.seal();
        const batch = this.sealed[0];
        if (batch === undefined) break;
        const sent = this.parts.clock.now();
        await this.parts.store.appendBatch(batch.seq, batch.data);
        this.parts.onContact(sent);
        this.sealed.shift();
        this.bytes += batch.data.length;
        this.becomeSafe(batch.seq);
      }
    } catch (error) {
      this.failed = true;
      this.parts.events.onFailure(error);
    } finally {
      this.writing = false;
    }
    if (this.open !== undefined) this.schedule();
  }
  private becomeSafe(seq: number): void {
    this.safe = seq;
    this.parts.events.onSafe(seq);
    const due = this.waiting.filter((wait) => wait.seq <= seq);
    if (due.length === 0) return;
    this.waiting.splice(0, this.waiting.length, ...this.waiting.filter((wait) => wait.seq > seq));
    for (const wait of due) wait.resolve();
  }
}
