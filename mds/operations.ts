/**
 * Runs operations to their end: attempts one, loads the pages it misses, recalls the capabilities
 * that stand in its way, waits for what is not safe yet, attempts it again; then applies and
 * journals it in one step. Each attempt is synchronous.
 */
import { isDssError } from "../cluster/base/errors.js";
import type { ClientId, Ino } from "../cluster/base/ids.js";
import type { CapabilityMode } from "./proto.js";
import { Access, UnsafeChanges, type CapabilityTable } from "./core/capability.js";
import type { Delta } from "./core/delta.js";
import type { Metadata } from "./core/metadata.js";
import type { Plan } from "./core/plan.js";
import type { PurgeEntry } from "./core/page.js";
import { PageFault } from "./core/page-cache.js";
import type { JournalWriter } from "./journal-writer.js";
import type { PageLoader } from "./page-loader.js";

export interface Task {
  /** Whose operation it is; 0 for the leader's own. */
  readonly session: ClientId;
  /** Looks around and says what to do; runs as often as needed. */
  plan(access: Access): Plan;
  /** For the memory of executed requests; undefined for the leader's own. */
  readonly request?: { id: number; floor: number };
  /**
   * Applied and given to the journal as part of batch `seq` (0: nothing changed). In the same turn
   * as the application.
   */
  done(plan: Plan, seq: number): void;
  fail(error: unknown): void;
}

interface Running extends Task {
  number: number;
  pins: Set<string>;
  pending: Set<Ino>;
  over: boolean;
  scheduled: boolean;
}

export class Operations {
  private readonly unsafe = new UnsafeChanges();
  private lastNumber = 0;
  private readonly onRelease = new Map<Ino, Set<Running>>();
  private readonly onEnd = new Map<number, Set<Running>>();
  private onPurged = new Set<Running>();
  /** Purge entries whose batch is not safe yet, with its number. */
  private readonly unsafePurges = new Map<number, number>();
  private stopped = false;
  /** Told of every record, after it was applied. */
  private readonly observers = new Set<(record: readonly Delta[]) => void>();

  constructor(
    private readonly parts: {
      metadata: Metadata;
      loader: PageLoader;
      capabilities: CapabilityTable;
      journal: JournalWriter;
      /** Asks the sessions to lower what they hold; repeated calls are harmless. */
      recall(ino: Ino, mode: CapabilityMode, sessions: readonly ClientId[]): void;
      /** Data to free: journaled now; `isDeleted` when it is that of a file deleted with it. */
      onPurge(entry: PurgeEntry, isDeleted: boolean): void;
      /** A bug: the leader must stop. */
      panic(error: unknown): void;
    },
  ) {}

  submit(task: Task): void {
    const running: Running = Object.assign(Object.create(task) as Task, {
      number: ++this.lastNumber,
      pins: new Set<string>(),
      pending: new Set<Ino>(),
      over: false,
      scheduled: false,
    });
    this.attempt(running);
  }
  /** The leader's own change. */
  change(work: () => Delta[], session = 0, hides: readonly Ino[] = []): Promise<number> {
    return new Promise((resolve, reject) => {
      this.submit({
        session,
        plan: () => ({
          record: work(),
          answer: {},
          notFound: false,
          shared: [],
          sole: [],
          hides: [...hides],
          durable: false,
          removed: [],
        }),
        done: (_plan, seq) => resolve(seq),
        fail: reject,
      });
    });
  }
  stop(): void {
    this.stopped = true;
  }
  observe(observer: (record: readonly Delta[]) => void): () => void {
    this.observers.add(observer);
    return () => void this.observers.delete(observer);
  }
  onSafe(seq: number): void {
    this.unsafe.safe(seq);
    for (const [id, batch] of this.unsafePurges) if (batch <= seq) this.unsafePurges.delete(id);
  }
  isPurgeSafe(id: number): boolean {
    return !this.unsafePurges.has(id);
  }
  /** What a session holds of this inode has become less. */
  released(ino: Ino): void {
    const waiting = this.onRelease.get(ino);
    if (waiting === undefined) return;
    this.onRelease.delete(ino);
    for (const task of waiting) this.again(task);
  }

  private again(task: Running): void {
    if (task.over || task.scheduled || this.stopped) return;
    task.scheduled = true;
    queueMicrotask(() => {
      task.scheduled = false;
      if (!task.over && !this.stopped) this.attempt(task);
    });
  }

  private attempt(task: Running): void {
    const { metadata, journal, capabilities } = this.parts;
    if (journal.full) {
      journal.whenSafe(journal.safe + 1, () => this.again(task));
      return;
    }
    const { cache } = metadata;
    const access = new Access(task.session, task.number, capabilities, this.unsafe);
    const touched = new Set<string>();
    cache.touched = touched;
    let plan: Plan;
    try {
      plan = task.plan(access);
    } catch (error) {
      cache.touched = undefined;
      if (error instanceof PageFault) void this.load(task, touched, error.keys);
      else if (!isDssError(error)) this.parts.panic(error);
      else if (access.sawOld()) {
        // What it ran into may be another session's change that is not safe yet, or that its
        // holder has not told.
        this.wait(task, access);
      } else {
        this.end(task);
        task.fail(error);
      }
      return;
    } finally {
      cache.touched = undefined;
    }
    if (access.blocked) this.wait(task, access);
    else this.commit(task, plan);
  }

  private async load(task: Running, touched: Set<string>, keys: readonly string[]): Promise<void> {
    try {
      for (const key of touched) this.parts.loader.pin(key, task.pins);
      await this.parts.loader.load(keys, task.pins);
      this.again(task);
    } catch (error) {
      this.end(task);
      task.fail(error);
    }
  }

  private wait(task: Running, access: Access): void {
    this.parts.loader.release(task.pins);
    const { capabilities, journal } = this.parts;
    if (access.behind !== undefined) {
      const waiting = this.onEnd.get(access.behind) ?? new Set();
      waiting.add(task);
      this.onEnd.set(access.behind, waiting);
    } else {
      // Only the first in the queue recalls; the others' turn comes when it has ended.
      for (const [ino, { mode, sessions }] of access.recalls) {
        capabilities.addPending(ino, task.number);
        task.pending.add(ino);
        const waiting = this.onRelease.get(ino) ?? new Set();
        waiting.add(task);
        this.onRelease.set(ino, waiting);
        this.parts.recall(ino, mode, sessions);
      }
    }
    if (access.purging) this.onPurged.add(task);
    if (access.safeAfter > 0) journal.whenSafe(access.safeAfter, () => this.again(task));
  }

  private commit(task: Running, plan: Plan): void {
    const { metadata, journal, capabilities } = this.parts;
    let seq = 0;
    if (plan.record.length > 0) {
      if (task.request !== undefined) {
        const { id, floor } = task.request;
        plan.record.push({ d: "sessionDone", id: task.session, request: id, floor });
      }
      seq = journal.current;
      try {
        for (const delta of plan.record) metadata.apply(delta, seq);
      } catch (error) {
        this.parts.panic(error); // Half applied: nothing of it may be written or shown.
        return;
      }
      for (const ino of plan.hides) this.unsafe.mark(ino, task.session, seq);
      for (const ino of plan.removed) capabilities.forget(ino);
      journal.add(plan.record);
      for (const observer of this.observers) observer(plan.record);
      for (const delta of plan.record) {
        if (delta.d !== "purgePut") continue;
        this.unsafePurges.set(delta.entry.id, seq);
        this.parts.onPurge(delta.entry, plan.removed.includes(delta.entry.ino));
      }
    }
    if (plan.record.some((delta) => delta.d === "purgeRemove")) this.purged();
    this.end(task); // Others wake in a later microtask, after the grants that `done` makes.
    task.done(plan, seq);
  }

  private purged(): void {
    const waiting = this.onPurged;
    this.onPurged = new Set();
    for (const task of waiting) this.again(task);
  }

  private end(task: Running): void {
    task.over = true;
    this.parts.loader.release(task.pins);
    for (const ino of task.pending) {
      this.parts.capabilities.removePending(ino, task.number);
      this.released(ino);
    }
    const followers = this.onEnd.get(task.number);
    this.onEnd.delete(task.number);
    for (const follower of followers ?? []) this.again(follower);
  }
}
