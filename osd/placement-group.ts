/**
 * One placement group on this OSD: the primary's data path, the members' side of replication, and
 * its activity. Peering is in peering-driver.ts; the daemon (daemon.ts) hands requests over once
 * map, interval and fences are checked.
 *
 * Owns: locks, operations in flight, what each member has still to acknowledge (replication.ts),
 * the learners' streams. All of it belongs to one interval: a new one drops it, and clients ask
 * again (their retries find the answer in the store's retry memory).
 */
import { assert } from "../cluster/base/assert.js";
import { BLOCK_SIZE } from "../cluster/base/checksum.js";
import { DssError } from "../cluster/base/errors.js";
import { formatPg, type OsdId, type PgId } from "../cluster/base/ids.js";
import { familyOf } from "../cluster/base/object-name.js";
import type { Logger } from "../cluster/base/log.js";
import type { PgEntry } from "../cluster/map/cluster-map.js";
import type { Incoming, Peer } from "../cluster/messenger/messenger.js";
import type { Clock } from "../cluster/platform/ports.js";
import type { Membership } from "./membership.js";
import { blockCeil, blockFloor } from "./core/blocks.js";
import { faults } from "../cluster/base/faults.js";
import { ReadLease } from "./core/leases.js";
import { legalWithinInterval, type PgActivity } from "./core/peering.js";
import { RangeLocks, WHOLE, type RangeLock } from "./core/range-locks.js";
import {
  WRITE_IF_ABSENT,
  WriteKind,
  type OsdExtentsReply,
  type OsdFillLevel,
  type OsdRead,
  type OsdReadReply,
  type OsdRepOp,
  type OsdStatReply,
  type OsdWrite,
  type OsdWriteReply,
} from "./proto.js";
import type { Version } from "./core/version.js";
import type { Fullness } from "./fullness.js";
import type { LeaseKeeper } from "./lease-keeper.js";
import { effectiveExtents, effectiveSize, nameAt, statReply } from "./object-snapshots.js";
import { PgDamage } from "./pg-damage.js";
import { PgRecord } from "./pg-record.js";
import type { WorkQueue } from "./work-queue.js";
import type { Repairer } from "./repair.js";
import { Replicating, Replication } from "./replication.js";
import { SharedMemory } from "./shared-memory.js";
import { StepPlanner, type Step } from "./write-steps.js";
import {
  OpKind,
  StructureDamage,
  type ChunkStore,
  type Durable,
  type LogEntry,
  type ObjectInfo,
  type Transaction,
} from "./store/chunk-store.js";

/** What a PG needs of its daemon. */
export interface PgHost {
  readonly id: OsdId;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly store: ChunkStore;
  /** The messenger's peer of another OSD, by the newest map. */
  peer(osd: OsdId): Peer | undefined;
  /** The newest map's epoch, for errors that make a client fetch it. */
  epoch(): number;
  /** The store failed: the OSD must stop. */
  fatal(error: Error): void;
  count(counter: string, amount?: number): void;
  /** An object of that many bytes went to another OSD. */
  copied(bytes: number): void;
  /** Who works how much: every copy for recovery and every look of scrub takes its turn here. */
  readonly work: WorkQueue;
  /** Log entries that a PG keeps at least (and at most a quarter more). */
  readonly pgLogEntries: number;
  /** A member's answer that takes longer is missing. */
  readonly replicaTimeoutMs: number;
  readonly leases: LeaseKeeper;
  readonly fullness: Fullness;
  readonly membership: Membership;
  readonly repairer: Repairer;
  /** Where the PG's copies belong, by the newest map. */
  upSet(pg: PgId): readonly OsdId[];
}

type WriteRequest = Incoming<OsdWrite, OsdWriteReply>;
type ReadRequest<Reply> = Incoming<OsdRead, Reply>;
interface Served<Reply> {
  reply: Reply;
  data?: Buffer[];
  sums?: Uint32Array;
  /** The data have left this process. */
  sent?: () => void;
}

/** A client's change under way: from its lock to the last member's acknowledgement. */
interface InFlight {
  requests: WriteRequest[];
  /** Disk space that it may take. */
  bytes: number;
}
/** An OSD outside the in-sync set that gets every new entry, too (osd/learner.ts). */
export interface LearnerStream {
  append(entry: Replicating): void;
}

export class PlacementGroup {
  activity: PgActivity = "stray";
  reason = "";
  entry: PgEntry = { inSync: [], primary: -1, interval: 0 };
  /** Rises with every new interval: work that began under an older one ends quietly. */
  generation = 0;

  private nextSeq = 0;
  private readonly locks = new Map<string, RangeLocks>();
  private readonly inFlight = new Map<string, InFlight>();
  private readonly replication: Replication;
  /**
   * Who must have a write before it is acknowledged: the in-sync set, and a learner whose addition
   * was asked for.
   */
  private required: readonly OsdId[] = [];
  private requiredOthers: readonly OsdId[] = [];
  /** Since when a member's answers are missing. */
  private readonly silentSince = new Map<OsdId, number>();
  /** What must be told that the interval is over: requests that wait for a lock or a lease. */
  private readonly endings = new Set<() => void>();
  readonly streams = new Map<OsdId, LearnerStream>();
  readonly lease = new ReadLease();
  /** Reads came since the lease was asked for last. */
  isRead = false;
  /** As the primary: rises with every new beginning of peering or of a learner's recovery. */
  attempts = 0;

  private readonly planner: StepPlanner;
  /** As a member: what it lacks. */
  readonly record: PgRecord;
  /** What of this OSD's copy is damaged. */
  readonly damage = new PgDamage();
  private seenAttempt = 0;
  /**
   * Changes of the log that were handed to the store, and how many of them are durable (they become
   * so in order).
   */
  private issued = 0;
  private completed = 0;
  private syncWaiters: { after: number; run: () => void }[] = [];
  /** Every quarter of the log's length, where it will be cut a whole length later. */
  private readonly trimMarks: Version[] = [];
  private untilMark = 0;

  constructor(
    readonly id: PgId,
    private readonly host: PgHost,
  ) {
    this.nextSeq = (host.store.pgInfo(id)?.last.seq ?? 0) + 1;
    this.record = new PgRecord(id, host.store);
    this.replication = new Replication(this, host);
    this.planner = new StepPlanner(id, host.store, (object, offset) =>
      host.repairer.read(this, object, offset, BLOCK_SIZE),
    );
  }

  /** The in-sync members but this one. */
  get others(): OsdId[] {
    return this.entry.inSync.filter((osd) => osd !== this.host.id);
  }
  /** The members whose grants a read needs. */
  get grantors(): readonly OsdId[] {
    return this.requiredOthers;
  }
  /** Is a learner's addition being asked for? */
  get isAdding(): boolean {
    return this.required !== this.entry.inSync;
  }
  /** The newest entry's number, as the primary. */
  get lastSeq(): number {
    return this.nextSeq - 1;
  }

  // ——— Intervals and activity ———

  /** A new interval: everything under way is dropped. */
  enterInterval(entry: PgEntry, activity: PgActivity, reason = ""): void {
    this.generation++;
    this.entry = entry;
    this.setActivity(activity, reason);
    this.replication.reset();
    this.locks.clear();
    this.silentSince.clear();
    this.streams.clear();
    this.seenAttempt = 0;
    this.lease.reset();
    this.require(entry.inSync);
    this.host.leases.forget(this);
    const endings = [...this.endings];
    this.endings.clear();
    for (const end of endings) end();
    const dropped = [...this.inFlight.values()];
    this.inFlight.clear();
    for (const { requests, bytes } of dropped) {
      this.host.fullness.finished(bytes);
      for (const request of requests) request.fail(this.stale());
    }
  }
  private require(members: readonly OsdId[]): void {
    this.required = members;
    this.requiredOthers = members.filter((osd) => osd !== this.host.id);
    this.lease.require(this.requiredOthers);
  }
  /** From now on nothing is acknowledged and nothing read without this learner. */
  requireLearner(learner: OsdId): void {
    if (!faults.joinWithoutSync) this.require([...this.entry.inSync, learner]);
  }
  /** Only before its addition was asked for. */
  releaseLearner(learner: OsdId): void {
    this.require(this.entry.inSync);
    this.replication.release(learner);
  }
  /** `end` is called if the interval ends before the returned function was called. */
  untilIntervalEnds(end: () => void): () => void {
    this.endings.add(end);
    return () => this.endings.delete(end);
  }

  /** Within the interval, as core/peering.ts allows. */
  transition(activity: PgActivity, reason = ""): void {
    assert(
      legalWithinInterval(this.activity, activity),
      `pg ${formatPg(this.id)}: ${this.activity} -> ${activity}`,
    );
    if (activity === "active" || activity === "waiting") {
      const info = this.host.store.pgInfo(this.id);
      assert(info !== undefined || activity === "waiting", `pg ${formatPg(this.id)} has no store`);
      this.nextSeq = (info?.last.seq ?? 0) + 1;
    }
    this.setActivity(activity, reason);
  }
  private setActivity(activity: PgActivity, reason: string): void {
    if (activity !== this.activity || reason !== this.reason) {
      const { interval } = this.entry;
      this.host.logger.debug({ pg: formatPg(this.id), activity, interval, reason }, "pg");
    }
    this.activity = activity;
    this.reason = reason;
  }

  private stale(): DssError {
    return new DssError("StaleEpoch", `pg ${formatPg(this.id)} has a new interval`, {
      epoch: this.host.epoch(),
    });
  }
  /** Errors: NotActive, NotPrimary. */
  refuseUnlessActive(): void {
    if (this.activity === "active") {
      if (this.record.whole) return;
      const text = `pg ${formatPg(this.id)} has lost part of its index on osd.${this.host.id}`;
      throw new DssError("NotActive", `${text} and waits for another primary`);
    }
    if (this.activity === "replica" || this.activity === "stray") {
      const text = `osd.${this.host.id} is not the primary of pg ${formatPg(this.id)}`;
      throw new DssError("NotPrimary", text, { epoch: this.host.epoch() });
    }
    const why = this.reason === "" ? this.activity : this.reason;
    throw new DssError("NotActive", `pg ${formatPg(this.id)} is not active: ${why}`);
  }

  // ——— Reads, as the primary ———

  read(request: ReadRequest<OsdReadReply>): void {
    const { message } = request;
    const start = blockFloor(message.offset);
    const end = blockCeil(message.offset + Math.max(message.length, 1));
    this.withSharedLock(request, message.object, start, end, async () => {
      const { offset, length } = message;
      const object = nameAt(this.host.store, this.id, message);
      let read;
      try {
        if (object) read = await this.host.store.read(this.id, object, offset, length);
      } catch (error) {
        const range = { object: object!, offset, length };
        read = await this.host.repairer.readAfter(error, this, range);
      }
      if (read === undefined) {
        return { reply: { exists: false, size: 0, dataOffset: 0, mtimeNs: 0n } };
      }
      const size = effectiveSize(read.info, message);
      this.host.count("readOps");
      this.host.count("readBytes", message.length);
      return {
        reply: { exists: true, size, dataOffset: start, mtimeNs: read.info.mtimeNs },
        data: read.data,
        sums: read.sums,
        ...(read.recycle === undefined ? {} : { sent: read.recycle }),
      };
    });
  }

  stat(request: ReadRequest<OsdStatReply>): void {
    const { message } = request;
    this.withSharedLock(request, message.object, 0, WHOLE, async () => {
      return { reply: statReply(this.host.store, this.id, message) };
    });
  }

  extents(request: ReadRequest<OsdExtentsReply>): void {
    const { message } = request;
    const end = message.offset + message.length;
    this.withSharedLock(request, message.object, message.offset, end, async () => {
      const { offset, length } = message;
      const object = nameAt(this.host.store, this.id, message);
      const info = object === undefined ? undefined : this.host.store.stat(this.id, object);
      if (object === undefined || info === undefined) {
        return { reply: { exists: false, size: 0, extents: [] } };
      }
      const found = { name: object, info, message };
      const extents = effectiveExtents(this.host.store, this.id, found, { offset, length });
      return { reply: { exists: true, size: effectiveSize(info, message), extents } };
    });
  }

  private withSharedLock<Reply>(
    request: ReadRequest<Reply>,
    object: string,
    start: number,
    end: number,
    work: () => Promise<Served<Reply>>,
  ): void {
    this.refuseUnlessActive();
    this.isRead = true;
    this.lock(object, start, end, true, request, (unlock) => {
      // Looked at under the lock, when the bytes are about to be read: that is the instant at which
      // they must be current.
      this.whenGranted(request, () => this.serve(request, unlock, work));
    });
  }

  /** When `run` is called, what this member has is current: it holds grants of all the others. */
  whenGranted(waiter: { fail(error: unknown): void }, run: () => void): void {
    if (this.host.clock.now() < this.lease.until || faults.readWithoutGrants) return run();
    const forget = this.untilIntervalEnds(() => waiter.fail(this.stale()));
    this.host.leases.acquire(this, () => {
      forget();
      run();
    });
  }

  private serve<Reply>(
    request: ReadRequest<Reply>,
    unlock: () => void,
    work: () => Promise<Served<Reply>>,
  ): void {
    const { generation } = this;
    work().then(
      ({ reply, data, sums, sent }) => {
        if (generation !== this.generation) return request.fail(this.stale());
        unlock();
        request.reply(reply, data, sums, sent);
      },
      (error: unknown) => {
        unlock();
        request.fail(passing(error));
      },
    );
  }

  private lock(
    object: string,
    start: number,
    end: number,
    shared: boolean,
    /** Told when the interval ends before the lock is held. */
    waiter: { fail(error: unknown): void } | undefined,
    run: (unlock: () => void) => void,
  ): void {
    const family = familyOf(object);
    let locks = this.locks.get(family);
    if (locks === undefined) {
      locks = new RangeLocks();
      this.locks.set(family, locks);
    }
    const { generation } = this;
    const held = locks;
    const unlock = (): void => {
      if (generation !== this.generation) return; // The interval's locks are gone with it.
      held.release(lock);
      if (held.idle) this.locks.delete(family);
    };
    let entered = false;
    const enter = (): void => {
      entered = true;
    };
    const lock: RangeLock = locks.acquire(start, end, shared, enter);
    if (entered) run(unlock);
    else {
      const forget = this.untilIntervalEnds(() => waiter?.fail(this.stale()));
      lock.run = () => {
        if (generation !== this.generation) return;
        forget();
        run(unlock);
      };
    }
  }

  /**
   * Writes of the object and its clones wait until `unlock`; undefined when the interval ended
   * first.
   */
  lockObject(object: string): Promise<(() => void) | undefined> {
    return new Promise((resolve) => {
      this.lock(object, 0, WHOLE, true, { fail: () => resolve(undefined) }, resolve);
    });
  }

  // ——— Writes, as the primary ———

  write(request: WriteRequest): void {
    this.refuseUnlessActive();
    const { message } = request;
    const key = `${message.client}:${message.sequence}`;
    const repeated = this.inFlight.get(key);
    if (repeated !== undefined) {
      repeated.requests.push(request);
      return;
    }
    const known = this.host.store.answered(this.id, message.client, message.sequence);
    if (known === "below-floor") {
      throw new DssError("StaleRequest", `request ${key} is older than what the client waits for`);
    }
    if (known !== undefined && !faults.forgetRetries) {
      const { version, size } = known;
      request.reply({ interval: version.interval, seq: version.seq, size });
      return;
    }
    const { start, end } = this.lockedRange(message);
    const bytes = this.admit(message);
    this.inFlight.set(key, { requests: [request], bytes });
    // The requests in flight are told by themselves when the interval ends.
    this.lock(message.object, start, end, false, undefined, (unlock) => {
      this.execute(request, key, unlock);
    });
  }

  /** The space that the change may take. Throws NoSpace when a member has too little. */
  private admit({ kind, offset, length }: OsdWrite): number {
    if (kind !== WriteKind.write) return 0; // What frees space always may.
    const { fullness } = this.host;
    const bytes = blockCeil(offset + length) - blockFloor(offset);
    const full = fullness.memberWithoutRoom(this.required, bytes);
    if (full !== undefined) {
      this.host.count("writesRefusedFull");
      throw new DssError("NoSpace", `osd.${full} is full`);
    }
    fullness.admitted(bytes);
    return bytes;
  }

  private lockedRange(message: OsdWrite): { start: number; end: number } {
    let info: ObjectInfo | undefined;
    try {
      info = this.host.store.stat(this.id, message.object);
    } catch (error) {
      throw passing(error);
    }
    const trims = info !== undefined && message.truncateSeq > info.truncateSeq;
    const clones = info !== undefined && message.snapNewest > info.snapSeq;
    const isPart = message.kind === WriteKind.write || message.kind === WriteKind.zero;
    const copiesUp = info === undefined && message.parents.length > 0;
    if (trims || clones || copiesUp || !isPart || (message.flags & WRITE_IF_ABSENT) !== 0) {
      return { start: 0, end: WHOLE };
    }
    const end = blockCeil(message.offset + Math.max(message.length, 1));
    return { start: blockFloor(message.offset), end };
  }

  private finish(key: string, answer: (request: WriteRequest) => void): void {
    const inFlight = this.inFlight.get(key);
    if (inFlight === undefined) return; // Dropped with its interval, and answered then.
    this.inFlight.delete(key);
    this.host.fullness.finished(inFlight.bytes);
    for (const request of inFlight.requests) answer(request);
  }

  private execute(request: WriteRequest, key: string, unlock: () => void): void {
    const { generation } = this;
    const fail = (error: unknown): void => {
      if (generation !== this.generation) return; // The same request may be under way anew.
      unlock();
      this.finish(key, (waiting) => waiting.fail(passing(error)));
    };
    try {
      const prepared = this.planner.prepare(request);
      if (!(prepared instanceof Promise)) return this.appendAll(request, key, prepared, unlock);
      prepared
        .then((steps) => {
          if (generation === this.generation) this.appendAll(request, key, steps, unlock);
        })
        .catch(fail);
    } catch (error) {
      fail(error);
    }
  }

  private appendAll(
    request: WriteRequest,
    key: string,
    steps: readonly Step[],
    unlock: () => void,
  ): void {
    const { message } = request;
    const { interval } = this.entry;
    let left = steps.length;
    let seq = 0;
    let size = 0;
    const memory = new SharedMemory(() => request.recycle());
    const done = (): void => {
      if (--left > 0) return;
      unlock();
      this.host.count("writeOps");
      this.host.count("writeBytes", message.length);
      this.finish(key, (waiting) => waiting.reply({ interval, seq, size }));
    };
    for (let i = 0; i < steps.length; i++) {
      const entry = this.append(message, steps[i]!, memory, i === steps.length - 1, done);
      seq = entry.seq;
      size = entry.message.size;
    }
    memory.release();
  }

  /** Gives the step the next version, applies it here and sends it to every other member. */
  private append(
    message: OsdWrite,
    work: Step,
    memory: SharedMemory,
    last: boolean,
    done: () => void,
  ): Replicating {
    const object = work.copy?.object ?? message.object;
    const info = work.copy === undefined ? this.host.store.stat(this.id, object) : undefined;
    const seq = this.nextSeq++;
    // Another part of the object may have grown it since this step was prepared; what shrinks it is
    // alone.
    const shrinks = work.kind === OpKind.truncate || work.kind === OpKind.remove;
    const size = shrinks ? work.size : Math.max(work.size, info?.size ?? 0);
    const truncateSeq = Math.max(
      info?.truncateSeq ?? 0,
      message.kind === WriteKind.remove ? 0 : message.truncateSeq,
    );
    const rep: OsdRepOp = {
      pg: this.id,
      interval: this.entry.interval,
      seq,
      client: last ? message.client : 0,
      sequence: last ? message.sequence : 0,
      floor: last ? message.floor : 0,
      kind: work.kind,
      offset: work.offset,
      length: work.length,
      size,
      truncateSeq,
      snapSeq: Math.max(info?.snapSeq ?? 0, work.keepsContext ? 0 : message.snapSeq),
      mtimeNs:
        info !== undefined && info.mtimeNs > message.mtimeNs ? info.mtimeNs : message.mtimeNs,
      object,
      source: "",
    };
    if (work.copy !== undefined) Object.assign(rep, work.copy);
    const waitingFor = [...this.required];
    const entry = new Replicating(rep, work.data, work.sums, waitingFor, done, memory);
    this.replication.add(entry);
    const { generation } = this;
    this.trim({ interval: rep.interval, seq });
    this.issued++;
    memory.use();
    this.host.store.apply(transactionOf(rep, work.data, work.sums), (error) => {
      if (error !== undefined) return this.host.fatal(error);
      memory.release();
      this.completedOne();
      if (generation === this.generation) this.replication.acknowledged(this.host.id, entry);
    });
    for (const member of this.requiredOthers) this.replication.send(member, entry);
    if (this.streams.size > 0) {
      memory.use(); // A learner may still lack it when the client is answered.
      for (const stream of this.streams.values()) stream.append(entry);
    }
    if (faults.acknowledgeBeforeSync) {
      for (const member of this.required) this.replication.acknowledged(member, entry);
    }
    return entry;
  }

  /** A required member answered: it is there. */
  memberAnswered(member: OsdId): void {
    if (this.silentSince.size > 0) this.silentSince.delete(member);
  }
  /**
   * A call to a required member failed: after some time, or at once if it is not there, its removal
   * is asked for.
   */
  memberFailed(member: OsdId, error: DssError, deadlineMs = this.host.replicaTimeoutMs): void {
    if (!this.requiredOthers.includes(member)) return;
    const now = this.host.clock.now();
    const { replicaTimeoutMs } = this.host;
    // A call that timed out was sent that long ago.
    const since = now - (error.code === "TimedOut" ? deadlineMs : 0);
    const silent = Math.min(this.silentSince.get(member) ?? since, since);
    this.silentSince.set(member, silent);
    if (error.code !== "Unreachable" && now - silent < replicaTimeoutMs) return;
    this.host.membership.askRemoval(this, member, () => this.silentSince.has(member));
  }

  /** Keeps the log at its length: called for every entry. */
  private trim(version: Version): void {
    if (this.untilMark-- > 0) return;
    this.untilMark = Math.ceil(this.host.pgLogEntries / 4);
    this.trimMarks.push(version);
    if (this.trimMarks.length > 5) this.host.store.trimLog(this.id, this.trimMarks.shift()!);
  }

  // ——— As a member ———

  repOp(request: Incoming<OsdRepOp, OsdFillLevel>): void {
    const { message } = request;
    const info = this.host.store.pgInfo(this.id);
    if (info === undefined) {
      throw new DssError("NotActive", `osd.${this.host.id} has no pg ${formatPg(this.id)} yet`);
    }
    const expected = info.last.seq + 1;
    if (message.seq > expected) {
      // An earlier one was lost with a connection; the primary sends all of them again in order.
      const text = `pg ${formatPg(this.id)}: entry ${message.seq} came, ${expected} is next`;
      throw new DssError("NotActive", text);
    }
    const { object, source } = message;
    const reply = (): void => request.reply(this.host.fullness.own());
    if (message.seq < expected) {
      this.whenSynced(reply);
      return;
    }
    const version = { interval: message.interval, seq: message.seq };
    this.trim(version);
    const isSourceLacking = source !== "" && this.lacksFor(source);
    if (isSourceLacking && !this.lacksFor(object)) this.lack(object, info.last);
    if (isSourceLacking || this.lacksFor(object)) {
      // Its bytes come with recovery, as of this entry or later.
      const { kind, client, sequence, size } = message;
      const entry = { version, kind: kind as OpKind, object, client, sequence, size };
      this.rewriteLog(info.last, [entry], reply);
      return;
    }
    this.issued++;
    this.host.store.apply(transactionOf(message, [request.data], request.sums), (error) => {
      if (error !== undefined) return this.host.fatal(error);
      this.completedOne();
      reply();
      request.recycle();
    });
  }
  /** What was made from something that is not here: ahead of the log that names it. */
  private lack(object: string, base: Version): void {
    this.issued++;
    this.record.note([object], base, (error) => {
      if (error !== undefined) this.host.fatal(error);
      else this.completedOne();
    });
  }
  private lacksFor(object: string): boolean {
    if (faults.dropLearnerWrites && this.activity === "stray") return true;
    return !this.record.whole && this.record.lacks(object);
  }

  /** Replaces the log after `common`, in order with what is appended. */
  rewriteLog(common: Version, entries: readonly LogEntry[], done: Durable): void {
    this.issued++;
    this.host.store.rewriteLog(this.id, common, entries, (error) => {
      if (error !== undefined) return this.host.fatal(error);
      this.completedOne();
      done();
    });
  }
  private completedOne(): void {
    this.completed++;
    if (this.syncWaiters.length === 0) return;
    const ready = this.syncWaiters.filter((waiter) => waiter.after <= this.completed);
    this.syncWaiters = this.syncWaiters.filter((waiter) => waiter.after > this.completed);
    for (const waiter of ready) waiter.run();
  }
  /** Runs `ready` once every change of the log until now is durable here. */
  whenSynced(ready: () => void): void {
    if (this.completed === this.issued) ready();
    else this.syncWaiters.push({ after: this.issued, run: ready });
  }

  /**
   * Part of the index is gone here, and the durable record says already that all objects must be
   * compared. What an attempt of the primary has achieved until now does not count any more.
   */
  structureLost(): void {
    this.record.load();
    this.damage.seen(this.host.clock.now());
    this.seenAttempt++;
    if (!this.entry.inSync.includes(this.host.id)) return;
    this.host.membership.askRemoval(this, this.host.id, () => !this.record.whole);
  }

  /** The primary begins anew: whatever an earlier attempt of it sent is refused from now on. */
  beginAttempt(attempt: number): void {
    this.checkAttempt(attempt);
    this.seenAttempt = attempt;
  }
  checkAttempt(attempt: number, generation = this.generation): void {
    if (attempt >= this.seenAttempt && generation === this.generation) return;
    throw new DssError("StaleEpoch", `pg ${formatPg(this.id)}: a later attempt has begun`);
  }
}

/** Damage of the index is this OSD's affair: the client is served by another one in a moment. */
function passing(error: unknown): unknown {
  if (!(error instanceof StructureDamage)) return error;
  return new DssError("NotActive", `${error.message}; another OSD takes over`, { cause: error });
}

function transactionOf(rep: OsdRepOp, data: readonly Buffer[], sums: Uint32Array): Transaction {
  return {
    pg: rep.pg,
    version: { interval: rep.interval, seq: rep.seq },
    kind: rep.kind as OpKind,
    object: rep.object,
    client: rep.client,
    sequence: rep.sequence,
    floor: rep.floor,
    size: rep.size,
    offset: rep.offset,
    length: rep.length,
    data: data.length === 1 && data[0]!.length === 0 ? [] : data,
    sums,
    mtimeNs: rep.mtimeNs,
    truncateSeq: rep.truncateSeq,
    snapSeq: rep.snapSeq,
    source: rep.source,
  };
}
