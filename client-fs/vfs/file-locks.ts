/**
 * The locks of this mount's programs: asks the leader for them, and keeps what is held, so that a
 * new leader can be told and a close knows what to give back.
 *
 * What is told to a new leader must never be more than the old one had on its table, or two mounts
 * could claim the same. So a lock counts as held from its answer on, and no longer counts from the
 * moment when the request that gives it up is sent.
 *
 * An owner's range locks go with the first close by that owner, as POSIX wants it; what belongs to
 * an open file (flock, and ranges of F_OFD_SETLK, which look like those of a process) goes with
 * its release. A session that ends takes all locks with it: handles that relied on one fail from
 * then on, because others may have the lock and change what it protects.
 *
 * Owns: the owners, the waiting requests.
 */
import { DssError, describeError, isDssError } from "../../cluster/base/errors.js";
import type { Ino } from "../../cluster/base/ids.js";
import { lowerRange, setRange, type LockedRange } from "../../cluster/base/lock-ranges.js";
import type { Logger } from "../../cluster/base/log.js";
import type { MdsClient } from "../../mds/client/mds-client.js";
import type { SessionLocks } from "../../mds/client/session-cache.js";
import {
  LOCK_END,
  type Answer,
  type LockClaim,
  type LockKind,
  type LockOutcomeMessage,
} from "../../mds/proto.js";
import type { Caller, FileLock } from "../file-system.js";
import type { RecordedLock, WorkerRecord } from "./worker-record.js";

interface Bytes {
  readonly start: bigint;
  readonly end: bigint;
}
const ALL: Bytes = { start: 0n, end: LOCK_END };

/** Somebody who has asked for a lock of a file and has not closed it since. */
interface Owner {
  readonly key: string;
  readonly kind: LockKind;
  readonly ino: Ino;
  readonly name: string;
  ranges: LockedRange[];
  /** Requests on their way that give something up: what they cover no longer counts. */
  readonly lessening: Set<Bytes & { unlock: boolean }>;
  /** Open files through which it asked. */
  readonly handles: Set<number>;
}
type Outcome = NonNullable<Answer["lock"]>["outcome"] | "interrupted";

interface Waiting {
  readonly id: number;
  readonly claim: LockClaim;
  /** The leader has it in its queue; otherwise the request is on its way. */
  queued: boolean;
  interrupted: boolean;
  settle(outcome: Outcome | DssError): void;
}

export class FileLocks implements SessionLocks {
  private readonly owners = new Map<string, Owner>();
  private readonly byHandle = new Map<number, Set<Owner>>();
  private readonly waiting = new Map<number, Waiting>();
  private lastWaiter = 0;

  constructor(
    private readonly options: {
      mds: MdsClient;
      logger: Logger;
      /** The handle relied on a lock that is gone. */
      lost(handle: number): void;
      record?: WorkerRecord | undefined;
    },
  ) {}

  /** Locks that an earlier worker held for programs that go on; the session claims them. */
  restore(locks: readonly RecordedLock[]): void {
    for (const { kind, ino, name, ranges, handles } of locks) {
      for (const handle of handles) this.ownerOf(ino, kind, name, handle).ranges = [...ranges];
    }
  }
  private noteOwner(owner: Owner): void {
    const { record } = this.options;
    if (record === undefined || this.owners.get(owner.key) !== owner) return;
    const { key, kind, ino, name, handles } = owner;
    record.lock(key, {
      kind,
      ino,
      name,
      ranges: sureRanges(owner).map((range) => ({ ...range })),
      handles: [...handles],
    });
  }

  // ---- Requests of programs --------------------------------------------------------------------

  async set(
    ino: Ino,
    handle: number,
    lock: FileLock,
    options: { wait: boolean; caller: Caller },
  ): Promise<void> {
    const { kind, mode, start, end, pid } = lock;
    const name = lock.owner.toString(16);
    if (mode === "unlocked") return this.unlock(ino, { kind, name }, { start, end });
    const owner = this.ownerOf(ino, kind, name, handle);
    const claim: LockClaim = { kind, ino, owner: name, mode, start, end, pid };
    const outcome = await this.lessening(owner, claim, () =>
      options.wait ? this.askAndWait(claim, options.caller) : this.ask(claim),
    );
    if (outcome === "granted") {
      setRange(owner.ranges, claim, { mode, pid });
      this.noteOwner(owner);
      return;
    }
    throw refusal(outcome);
  }

  /** Runs a request that gives up what it covers, if only for a while, of what is held. */
  private async lessening<T>(owner: Owner, claim: LockClaim, run: () => Promise<T>): Promise<T> {
    const isFlock = claim.kind === "flock";
    const held = owner.ranges[0]?.mode;
    if (isFlock ? held === undefined || held === claim.mode : claim.mode === "exclusive") {
      return run();
    }
    // A flock that is converted is given up first, whatever becomes of the conversion.
    const entry = { start: claim.start, end: claim.end, unlock: isFlock };
    owner.lessening.add(entry);
    this.noteOwner(owner);
    try {
      return await run();
    } finally {
      owner.lessening.delete(entry);
      if (isFlock) owner.ranges = [];
      this.noteOwner(owner);
    }
  }

  async test(ino: Ino, lock: FileLock): Promise<FileLock> {
    const { kind, mode, start, end, pid } = lock;
    const owner = lock.owner.toString(16);
    if (mode === "unlocked") throw new DssError("InvalidArgument", "F_GETLK of an unlock");
    const { mds } = this.options;
    const reply = await mds.call({ op: "lockTest", kind, ino, owner, mode, start, end, pid });
    const holder = reply.answer.lock?.holder;
    if (holder === undefined) return { ...lock, mode: "unlocked" };
    return {
      ...lock,
      mode: holder.mode,
      start: holder.start,
      end: holder.end,
      // Process numbers of other mounts mean nothing here.
      pid: holder.client === mds.client ? holder.pid : 0,
    };
  }

  /** A close by this owner; undefined when it had nothing to give back. */
  closed(ino: Ino, lockOwner: bigint): Promise<void> | undefined {
    if (this.owners.size === 0) return undefined;
    const owner = this.owners.get(ownerKey("posix", ino, lockOwner.toString(16)));
    return owner === undefined ? undefined : this.giveUp(owner);
  }
  /** The open file is no more; undefined when it had nothing to give back. */
  released(handle: number): Promise<void> | undefined {
    const owners = this.byHandle.get(handle);
    if (owners === undefined) return undefined;
    this.byHandle.delete(handle);
    return Promise.all([...owners].map((owner) => this.giveUp(owner))).then(() => undefined);
  }
  /** Ends all waits: the mount is going. */
  stop(): void {
    for (const entry of this.waiting.values()) entry.settle("interrupted");
  }

  private ownerOf(ino: Ino, kind: LockKind, name: string, handle: number): Owner {
    const key = ownerKey(kind, ino, name);
    let owner = this.owners.get(key);
    if (owner === undefined) {
      owner = { key, kind, ino, name, ranges: [], lessening: new Set(), handles: new Set() };
      this.owners.set(key, owner);
    }
    owner.handles.add(handle);
    const owners = this.byHandle.get(handle);
    if (owners === undefined) this.byHandle.set(handle, new Set([owner]));
    else owners.add(owner);
    return owner;
  }
  private forget(owner: Owner): void {
    if (this.owners.get(owner.key) === owner) {
      this.owners.delete(owner.key);
      this.options.record?.unlocked(owner.key);
    }
    for (const handle of owner.handles) {
      const owners = this.byHandle.get(handle);
      owners?.delete(owner);
      if (owners?.size === 0) this.byHandle.delete(handle);
    }
  }

  private async unlock(
    ino: Ino,
    { kind, name }: { kind: LockKind; name: string },
    bytes: Bytes,
  ): Promise<void> {
    const owner = this.owners.get(ownerKey(kind, ino, name));
    if (owner !== undefined) await this.sendUnlock(owner, bytes);
  }
  private async sendUnlock(owner: Owner, { start, end }: Bytes): Promise<void> {
    const { ino, kind, name } = owner;
    const entry = { start, end, unlock: true };
    owner.lessening.add(entry);
    this.noteOwner(owner);
    try {
      await this.options.mds.call({ op: "unlock", kind, ino, owner: name, start, end });
    } catch (error) {
      // With the session every lock is gone: so it is unlocked.
      if (!isDssError(error, "NoSession")) throw error;
    } finally {
      owner.lessening.delete(entry);
      setRange(owner.ranges, { start, end }, undefined);
      this.noteOwner(owner);
    }
  }
  /** Everything that the owner has of the file. Never fails: close(2) is not about locks. */
  private async giveUp(owner: Owner): Promise<void> {
    this.forget(owner);
    try {
      await this.sendUnlock(owner, ALL);
    } catch (error) {
      if (isDssError(error, "ShuttingDown")) return; // They go with the session.
      this.options.logger.warn(
        { ino: owner.ino, error: describeError(error) },
        "a lock was not given back; it goes with the session at the latest",
      );
    }
  }

  // ---- Waiting ---------------------------------------------------------------------------------

  private async ask(claim: LockClaim, waiter = 0): Promise<Outcome> {
    const reply = await this.options.mds.call({ op: "lock", waiter, ...claim });
    const outcome = reply.answer.lock?.outcome;
    if (outcome === undefined) throw new DssError("Malformed", "a lock without an outcome");
    return outcome;
  }

  private async askAndWait(claim: LockClaim, caller: Caller): Promise<Outcome> {
    const id = ++this.lastWaiter;
    try {
      return await new Promise<Outcome>((resolve, reject) => {
        const entry: Waiting = {
          id,
          claim,
          queued: false,
          interrupted: false,
          settle: (outcome) => {
            if (!this.waiting.delete(id)) return;
            if (outcome instanceof DssError) reject(outcome);
            else resolve(outcome);
          },
        };
        this.waiting.set(id, entry);
        caller.onInterrupt = () => this.interrupt(entry);
        this.send(entry);
        if (caller.interrupted === true) this.interrupt(entry);
      });
    } finally {
      delete caller.onInterrupt;
    }
  }
  private send(entry: Waiting): void {
    entry.queued = false;
    this.ask(entry.claim, entry.id).then(
      (outcome) => {
        if (outcome === "queued") entry.queued = true;
        else entry.settle(outcome);
      },
      (error: unknown) => this.failed(entry, error),
    );
  }
  private failed(entry: Waiting, error: unknown): void {
    if (!(error instanceof DssError)) throw error;
    entry.settle(error);
  }
  /** It may be granted before the leader hears of it: then it is held, and the call says so. */
  private interrupt(entry: Waiting): void {
    if (entry.interrupted) return;
    entry.interrupted = true;
    this.cancel(entry);
  }
  private cancel(entry: Waiting): void {
    this.options.mds.call({ op: "lockCancel", waiter: entry.id }).then(
      ({ answer }) => {
        if (answer.lock?.outcome === "cancelled") entry.settle("interrupted");
        else if (this.waiting.has(entry.id)) {
          // A leader that knows nothing of it: it must not have been granted unheard either.
          this.send(entry);
          this.cancel(entry);
        }
      },
      (error: unknown) => this.failed(entry, error),
    );
  }

  // ---- Session ---------------------------------------------------------------------------------

  claims(): LockClaim[] {
    const claims: LockClaim[] = [];
    for (const owner of this.owners.values()) {
      const { kind, ino, name } = owner;
      for (const range of sureRanges(owner)) claims.push({ kind, ino, owner: name, ...range });
    }
    return claims;
  }
  outcome({ waiter, outcome }: LockOutcomeMessage): void {
    this.waiting.get(waiter)?.settle(outcome);
  }
  reconnected(): void {
    for (const entry of this.waiting.values()) if (entry.queued) this.send(entry);
  }
  evicted(): void {
    const error = new DssError("NoSession", "the lock was lost with the metadata session");
    for (const entry of this.waiting.values()) entry.settle(error);
    let lost = 0;
    // The owners stay until they close: a request that was not sent yet is the next session's.
    for (const owner of this.owners.values()) {
      if (owner.ranges.length === 0) continue;
      lost++;
      owner.ranges = [];
      this.noteOwner(owner);
      for (const handle of owner.handles) this.options.lost(handle);
    }
    if (lost === 0) return;
    this.options.logger.error({ owners: lost }, "file locks were lost; their files report EIO");
  }
}

/** What is held for certain: not what is on its way back. */
function sureRanges({ ranges, lessening }: Owner): LockedRange[] {
  const sure = [...ranges];
  for (const part of lessening) {
    if (part.unlock) setRange(sure, part, undefined);
    else lowerRange(sure, part);
  }
  return sure;
}

function ownerKey(kind: LockKind, ino: Ino, name: string): string {
  return `${kind}.${ino}.${name}`;
}

function refusal(outcome: Outcome): DssError {
  switch (outcome) {
    case "conflict":
      return new DssError("WouldBlock", "somebody else has locked it");
    case "deadlock":
      return new DssError("Deadlock", "who holds it waits for a lock of the caller");
    case "full":
      return new DssError("NoLocks", "this mount holds as many locks as it may");
    case "interrupted":
      return new DssError("Interrupted", "the wait for a lock was interrupted");
    default:
      return new DssError("Malformed", `a lock was answered with ${outcome}`);
  }
}
