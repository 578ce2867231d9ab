/**
 * New log entries on their way to a learner, in order. They are held until the learner has taken
 * over the log, and are never sent twice: whatever fails ends the stream, and recovery begins anew.
 *
 * Nobody waits for a slow learner: beyond a bound the stream fails.
 */
import { DssError } from "../cluster/base/errors.js";
import type { OsdId } from "../cluster/base/ids.js";
import type { LearnerStream, PgHost } from "./placement-group.js";
import { RepOp } from "./proto.js";
import type { Replicating } from "./replication.js";

const PENDING_MAX = 4_096;
const PENDING_BYTES_MAX = 64 * 1024 * 1024;

export class EntryStream implements LearnerStream {
  /** Why the stream has ended. */
  failure: DssError | undefined;
  private started = false;
  private readonly pending = new Map<number, { entry: Replicating; bytes: number }>();
  private pendingBytes = 0;
  /** What was made of an object, by its name: not there when the object was not. */
  private readonly copies = new Map<string, string[]>();
  private waiters: { resolve: () => void; reject: (error: DssError) => void }[] = [];

  constructor(
    private readonly host: PgHost,
    private readonly osd: OsdId,
  ) {}

  append(entry: Replicating): void {
    if (this.failure !== undefined) return;
    const bytes = entry.data.reduce((sum, piece) => sum + piece.length, 0);
    this.pending.set(entry.seq, { entry, bytes });
    this.pendingBytes += bytes;
    const { source, object } = entry.message;
    if (source !== "") this.copies.set(source, [...(this.copies.get(source) ?? []), object]);
    if (this.pending.size > PENDING_MAX || this.pendingBytes > PENDING_BYTES_MAX) {
      this.fail(new DssError("Overloaded", `osd.${this.osd} is too slow to catch up`));
    } else if (this.started) this.send(entry);
  }

  /** The objects that were made of this one since the stream began; each is told once. */
  takeCopies(source: string): readonly string[] {
    const found = this.copies.get(source) ?? [];
    this.copies.delete(source);
    return found;
  }

  /** The same for all sources with names after `after`, up to `upTo` (undefined: to the end). */
  takeCopiesWithin(after: string, upTo: string | undefined): readonly string[] {
    const sources = [...this.copies.keys()].filter(
      (source) => source > after && (upTo === undefined || source <= upTo),
    );
    return sources.flatMap((source) => this.takeCopies(source));
  }

  /** The learner has the log up to where the stream begins. */
  start(): void {
    this.started = true;
    for (const { entry } of this.pending.values()) this.send(entry);
  }

  /**
   * Resolves once everything that was appended is synced there; rejects when the stream fails
   * first.
   */
  drained(): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.failure !== undefined) reject(this.failure);
      else if (this.pending.size === 0) resolve();
      else this.waiters.push({ resolve, reject });
    });
  }

  stop(): void {
    this.fail(new DssError("ShuttingDown", "the stream was stopped"));
  }
  fail(error: DssError): void {
    if (this.failure !== undefined) return;
    this.failure = error;
    this.pending.clear();
    const { waiters } = this;
    this.waiters = [];
    for (const { reject } of waiters) reject(error);
  }

  private send(entry: Replicating): void {
    const peer = this.host.peer(this.osd);
    if (peer === undefined) {
      this.fail(new DssError("Unreachable", `osd.${this.osd} has no address`));
      return;
    }
    const { message, data, sums } = entry;
    peer.call(RepOp, message, { deadlineMs: this.host.replicaTimeoutMs, data, sums }).then(
      (answer) => {
        this.host.fullness.report(this.osd, answer.message);
        this.acknowledged(entry.seq);
      },
      (error: unknown) => {
        if (!(error instanceof DssError)) throw error;
        this.fail(error);
      },
    );
  }

  private acknowledged(seq: number): void {
    const known = this.pending.get(seq);
    if (known === undefined) return;
    this.pending.delete(seq);
    this.pendingBytes -= known.bytes;
    if (this.pending.size > 0) return;
    const { waiters } = this;
    this.waiters = [];
    for (const { resolve } of waiters) resolve();
  }
}
