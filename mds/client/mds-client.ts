/**
 * A client's session with the MDS leader (design §6): finds the leader, keeps the session alive,
 * numbers the requests, keeps those whose effect is not yet in the journal, and replays them in
 * order to the next leader.
 *
 * Invariants: request ids rise and are never reused; a changing request is kept until its journal
 * batch is safe; requests are sent in the order of their ids; nothing is accepted from a leader of
 * a lower term. Answers are given to the cache in the order in which the leader sent them, before
 * the caller continues, so that a later recall finds what an earlier answer brought.
 *
 * Owns: the connection, the outstanding requests, ranges of inode numbers. The capabilities
 * themselves belong to the `SessionCache`.
 */
import { assert } from "../../cluster/base/assert.js";
import { DssError, describeError, isDssError } from "../../cluster/base/errors.js";
import type { ClientId, Epoch, Ino } from "../../cluster/base/ids.js";
import { heldFor } from "../../cluster/base/lease.js";
import type { Logger } from "../../cluster/base/log.js";
import { Backoff } from "../../cluster/messenger/backoff.js";
import type { Link, Messenger, Peer } from "../../cluster/messenger/messenger.js";
import {
  formatAddress,
  type Address,
  type Clock,
  type RandomSource,
  type Timer,
} from "../../cluster/platform/ports.js";
import { errorFromBody } from "../../cluster/wire/error-body.js";
import {
  CloseMdsSession,
  MdsAdmin,
  MdsClaim,
  MdsKeepAlive,
  MdsLockOutcome,
  MdsOperation,
  MdsOperations,
  MdsRecall,
  MdsReleased,
  MdsSafe,
  MdsTakenOver,
  MdsVolumeChanged,
  OpenMdsSession,
  type AdminReply,
  type AdminRequest,
  type MadeAttributes,
  type MdsReply,
  type Operation,
  type Released,
  type Request,
  type SessionOpened,
  type SessionType,
  type TakenOver,
} from "../proto.js";
import { InoRanges } from "./ino-ranges.js";
import {
  InheritedRequests,
  LOGGED,
  NO_LOG,
  type Inheritance,
  type LoggedRequest,
  type RequestLog,
} from "./request-log.js";
import { NO_CACHE, NO_LOCKS, type SessionCache, type SessionLocks } from "./session-cache.js";

/** Who leads, as far as this program knows. The real one watches ZooKeeper. */
export interface LeaderSource {
  current(): { address: Address; term: number } | undefined;
  /** Returns a function that ends the subscription. */
  onChange(listener: () => void): () => void;
}

export interface MdsClientOptions {
  messenger: Messenger;
  clock: Clock;
  random: RandomSource;
  leader: LeaderSource;
  logger: Logger;
  type: SessionType;
  /** `host:type:path`; empty: no predecessor to fence. */
  instance: string;
  host: string;
  pid: number;
  detail: string;
  /** Milliseconds after which a request that no leader answered fails with TimedOut. */
  operationDeadlineMs: number;
  /** Keeps changes over the death of this process. */
  log?: RequestLog;
  /** Which worker of its mount this is, from 0. */
  generation?: number;
  /** The session of the worker before, to be taken over. */
  inherited?: Inheritance;
}

/** Request ids of each worker of a mount are above those of its predecessors. */
const IDS_PER_WORKER = 2 ** 36;
/**
 * One attempt; the request itself goes on with the next. Long, because an answer may wait for
 * another client's recall.
 */
const ATTEMPT_MS = 60_000;
const OPEN_ATTEMPT_MS = 5_000;
const CLOSE_MS = 3_000;
/** Of what a session goes on with, in one message: some 2 MB of the 4 that one may have. */
const CLAIMS_MAX = 50_000;
/** A wait that is longer than this is logged, once. */
const SLOW_MS = 5_000;
const CHECK_MS = 1_000;
/** Look again for a leader although nothing said that it changed. */
const LEADER_POLL_MS = 500;
/**
 * Requests without an answer before callers wait: the leader's memory of answers is bounded too.
 */
const OUTSTANDING_MAX = 4_096;
/**
 * Promised changes wait this long for others, unless something waits for them: long enough that
 * a small file is written before its creation is told, and then both are one change.
 */
const BATCH_MS = 200;
const BATCH_MAX = 512;

/**
 * Their effect is journaled, so `fsync` waits for it; sizes are not among them (design §6 Sizes).
 */
const CHANGES: ReadonlySet<Operation> = new Set<Operation>([
  "create",
  "link",
  "unlink",
  "rmdir",
  "rename",
  "setattr",
  "orphanRelease",
  "setxattr",
  "removexattr",
  "volumeCreate",
  "volumeRemove",
  "volumeResize",
  "volumeRename",
  "volumeLimit",
  "volumeSnapCreate",
  "volumeSnapRemove",
  "volumeSnapProtect",
  "volumeRollback",
]);
/** Harmless to do twice, so a new session may issue them again. */
const REPEATABLE: ReadonlySet<Operation> = new Set<Operation>([
  "lookup",
  "getattr",
  "acquire",
  "readdir",
  "getxattrs",
  "lockTest",
  "totals",
  "quotaSet",
  "statfs",
  "inoRange",
  "volumeList",
  "volumeInfo",
  "volumeReport",
  "volumeTop",
]);

function evictedError(cause?: DssError): DssError {
  const message = "this client was evicted by the metadata server";
  return new DssError("NoSession", message, cause === undefined ? {} : { cause });
}

interface Outstanding {
  id: number;
  /** The kernel's request that it is for; 0: none. */
  readonly cause: number;
  readonly request: Request;
  readonly wait: "unsafe" | "safe";
  /** Done here, under a sole capability; the leader is told afterwards. */
  readonly promised: boolean;
  /** The leader has executed it. */
  confirmed: boolean;
  readonly deadlineAt: number;
  readonly slowAt: number;
  slowLogged: boolean;
  /** Sent at least once. */
  sent: boolean;
  answered: boolean;
  /** Batch that holds the change, once answered. */
  journal: number;
  resolve: (reply: MdsReply) => void;
  reject: (error: DssError) => void;
}
function loggedOf({ id, cause, promised, request }: Outstanding): LoggedRequest {
  return { id, cause, promised, state: "sent", ino: 0, request };
}
interface SafeWaiter {
  upTo: number;
  resolve: () => void;
  reject: (error: DssError) => void;
}

type State = "idle" | "connecting" | "active" | "closed";
const LEGAL: Record<State, readonly State[]> = {
  idle: ["connecting", "closed"],
  connecting: ["active", "closed"],
  active: ["connecting", "closed"],
  closed: [],
};

export class MdsClient {
  private state: State = "idle";
  private cache: SessionCache = NO_CACHE;
  private locks: SessionLocks = NO_LOCKS;
  private readonly clock: Clock;
  private readonly logger: Logger;
  private readonly backoff: Backoff;
  private readonly peers = new Map<Peer, { link: Link | undefined }>();

  private sessionId: ClientId = 0;
  private workerId: ClientId = 0;
  /** The session was another worker's, and that is not over. */
  private restoring = false;
  private readonly log: RequestLog;
  /** Requests of the worker before, for the kernel to hear of. */
  readonly inherited = new InheritedRequests();
  private readonly restored = new Map<Outstanding, { resolve(reply: undefined): void }>();
  private restoredWaiters: (() => void)[] = [];
  private term = 0;
  private leaseMs = 0;
  private epochSeen: Epoch = 0;
  private link: Link | undefined;
  /** Pushed by the leader before this side had finished opening the session. */
  private early: { link: Link; run: () => void }[] = [];
  private opening = false;

  private nextId = 1;
  /** By id, ascending. */
  private readonly outstanding = new Map<number, Outstanding>();
  /** The part of `outstanding` that `waitSafe` waits for. */
  private readonly changes = new Map<number, Outstanding>();
  private safe = 0;
  private safeWaiters: SafeWaiter[] = [];
  private roomWaiters: (() => void)[] = [];
  /**
   * A change that had been answered and was lost with its leader or session; the next waitSafe
   * reports it.
   */
  private lostChange: DssError | undefined;

  /** Inode numbers for `create`. */
  readonly inos = new InoRanges(() => this.call({ op: "inoRange" }));

  /** Not sent yet: they go together, and before anything that is sent later. */
  private batch: Outstanding[] = [];
  /** Creations among them. */
  private readonly untold = new Map<Ino, Outstanding>();
  private batchTimer: Timer | undefined;

  private lastContactMs = 0;
  private hasLapsed = false;
  private keepAliveTimer: Timer | undefined;
  private leaseTimer: Timer | undefined;
  private checkTimer: Timer | undefined;
  private leaderWake: (() => void) | undefined;
  private readonly stopLeaderWatch: () => void;
  private readonly sessionListeners: ((client: ClientId) => void)[] = [];
  private openWaiters: { resolve: () => void; reject: (error: DssError) => void }[] = [];

  constructor(private readonly options: MdsClientOptions) {
    this.clock = options.clock;
    this.logger = options.logger;
    this.log = options.log ?? NO_LOG;
    this.nextId = 1 + (options.generation ?? 0) * IDS_PER_WORKER;
    if (options.inherited !== undefined) this.inherit(options.inherited);
    this.backoff = new Backoff(options.random, { firstMs: 20, maxMs: 1_000 });
    const { messenger } = options;
    messenger.handlePost(MdsSafe, (message, link) => {
      this.fromLeader(link, () => this.onSafe(message.journal));
    });
    messenger.handlePost(MdsRecall, (message, link) => {
      this.fromLeader(link, () => this.cache.recall(message));
    });
    messenger.handlePost(MdsLockOutcome, (message, link) => {
      this.fromLeader(link, () => this.locks.outcome(message));
    });
    messenger.handlePost(MdsVolumeChanged, (message, link) => {
      this.fromLeader(link, () => this.cache.volumeChanged?.(message));
    });
    this.stopLeaderWatch = options.leader.onChange(() => this.onLeaderChange());
  }

  /** 0 while there is no session. */
  get client(): ClientId {
    return this.sessionId;
  }
  /** The map epoch that the leader named last. */
  get epoch(): Epoch {
    return this.epochSeen;
  }
  /** What is cached under capabilities may be believed. */
  get trusted(): boolean {
    return this.trustedMs > 0;
  }
  /** For so long, should the leader not be heard of again. */
  get trustedMs(): number {
    if (this.sessionId === 0 || this.hasLapsed) return 0;
    // By the clock, not by a timer: a program that slept for long reads before its timers run.
    return Math.max(0, this.lastContactMs + this.leaseMs - this.clock.now());
  }
  get active(): boolean {
    return this.state === "active";
  }
  /**
   * Data may be read and written under the capabilities at hand. Also while the leader cannot
   * confirm its term: a successor that ends this session has it fenced at the OSDs first, so what
   * they answer and take is right. What is merely cached needs `trusted`.
   */
  get usable(): boolean {
    return this.trusted || (this.sessionId !== 0 && this.state === "active");
  }

  setCache(cache: SessionCache): void {
    this.cache = cache;
  }
  setLocks(locks: SessionLocks): void {
    this.locks = locks;
  }
  /** Called with the id for object operations of every new session, the present one included. */
  onSession(listener: (client: ClientId) => void): void {
    this.sessionListeners.push(listener);
    if (this.workerId !== 0) listener(this.workerId);
  }

  // ---- Takeover --------------------------------------------------------------------------------

  private inherit({ client, requests }: Inheritance): void {
    this.sessionId = client;
    this.restoring = true;
    for (const logged of requests) {
      const heir = this.inherited.add(logged);
      if (logged.state === "done") {
        heir.resolve(undefined);
        continue;
      }
      const entry = this.newEntry(logged.request, "unsafe", logged, heir.resolve, heir.reject);
      entry.id = logged.id;
      entry.sent = true;
      entry.answered = logged.promised || logged.state === "answered";
      if (entry.answered) {
        entry.journal = Number.MAX_SAFE_INTEGER;
        heir.resolve(undefined);
      }
      this.restored.set(entry, heir);
      this.outstanding.set(entry.id, entry);
      if (CHANGES.has(entry.request.op)) this.changes.set(entry.id, entry);
    }
  }
  private noteRestored(entry: Outstanding): void {
    if (!this.restored.delete(entry) || this.restored.size > 0) return;
    for (const wake of this.restoredWaiters.splice(0)) wake();
  }
  /**
   * Resolves when what the worker before had not heard to be executed is; false: the session was
   * lost.
   */
  async replayed(): Promise<boolean> {
    const client = this.sessionId;
    const isOver = (): boolean => this.sessionId !== client || this.state === "closed";
    while (this.restored.size > 0 && !isOver()) {
      await new Promise<void>((resolve) => this.restoredWaiters.push(resolve));
    }
    return !isOver();
  }
  /**
   * After `replayed`: ends the takeover. `written`: files
   * whose sizes it may not have told; the answer has what was found of them. Undefined: the session
   * was lost, and there is another one.
   */
  async endTakeover(written: readonly Ino[]): Promise<TakenOver | undefined> {
    const client = this.sessionId;
    const isOver = (): boolean => this.sessionId !== client || this.state === "closed";
    if (!(await this.replayed())) return undefined;
    while (!isOver()) {
      const { link } = this;
      if (link === undefined || this.state !== "active") {
        await this.pause(LEADER_POLL_MS / 10);
        continue;
      }
      try {
        this.log.commit();
        const message = { client, inos: [...written] };
        const answer = await link.call(MdsTakenOver, message, { deadlineMs: ATTEMPT_MS });
        this.restoring = false;
        return answer.message;
      } catch (error) {
        if (!isDssError(error)) throw error;
        if (error.code === "NoSession" && link === this.link) this.evict(error);
        else if (error.retry === "same") this.lose(link);
        else throw error;
      }
    }
    return undefined;
  }

  /** Opens the session; TimedOut when no leader was found within `deadlineMs`. */
  async open(deadlineMs: number): Promise<void> {
    this.start();
    if (this.state === "active") return;
    await new Promise<void>((resolve, reject) => {
      const timer = this.clock.setTimer(deadlineMs, () => {
        this.openWaiters = this.openWaiters.filter((waiter) => waiter !== entry);
        reject(
          new DssError("TimedOut", `no metadata server answered within ${deadlineMs} ms`, {
            hint: "check that an MDS is running: dss status",
          }),
        );
      });
      const entry = {
        resolve: () => {
          timer.cancel();
          resolve();
        },
        reject: (error: DssError) => {
          timer.cancel();
          reject(error);
        },
      };
      this.openWaiters.push(entry);
    });
  }

  /**
   * Sends one request; resolves with the answer, which for changes is *unsafe* unless `wait` is
   * "safe". Waits through failovers. Fails with the leader's error, TimedOut, NoSession (evicted
   * with a change in flight), ShuttingDown.
   */
  call(
    request: Request,
    options: { wait?: "unsafe" | "safe"; cause?: number | undefined } = {},
  ): Promise<MdsReply> {
    if (this.state === "closed") {
      return Promise.reject(new DssError("ShuttingDown", "the metadata session is closed"));
    }
    this.start();
    if (this.outstanding.size >= OUTSTANDING_MAX) return this.callWhenRoom(request, options);
    return this.issue(request, options);
  }

  /** There is room for changes that are promised, and reason to believe that they will be taken. */
  get mayPromise(): boolean {
    return this.trusted && this.state !== "closed" && this.outstanding.size < OUTSTANDING_MAX;
  }
  /**
   * A change that the caller has made already, under a sole capability, and that is certain to be
   * taken. It is executed after what was promised before it and before what is sent after it, by
   * this leader or the next; until it is safe it is lost with the session, like any other.
   * Returns its number: answers of a higher one know of it.
   */
  promise(request: Request, cause = 0): number {
    this.start();
    const entry = this.newEntry(request, "unsafe", { promised: true, cause });
    this.enter(entry);
    this.sendSoon(entry);
    if (request.op === "create" && this.batch.at(-1) === entry) this.untold.set(request.ino, entry);
    return entry.id;
  }
  /** The creation of this inode is promised and on no way yet: it takes more with it. */
  isUntold(ino: Ino): boolean {
    return this.untold.has(ino);
  }
  amend(ino: Ino, attributes: MadeAttributes): void {
    const entry = this.untold.get(ino);
    assert(entry?.request.op === "create", "amended is what is on no way yet");
    this.amendEntry(entry, { attributes });
  }
  /**
   * True: the last change that was promised is one of the same inode's attributes and on no way
   * yet, and says this, too.
   */
  amendLast(request: Extract<Request, { op: "setattr" }>): boolean {
    if (this.state !== "active") return false; // What came since is not in the batch.
    const last = this.batch.at(-1);
    if (last?.promised !== true || last.request.op !== "setattr") return false;
    if (last.request.ino !== request.ino) return false;
    this.amendEntry(last, request);
    return true;
  }
  private amendEntry(entry: Outstanding, more: Partial<Request>): void {
    Object.assign(entry.request, more);
    this.log.amended(entry.id, more);
  }
  /** As `call`, for what nobody waits for: it may travel with others. */
  callLater(request: Request): Promise<MdsReply> {
    if (this.state !== "active" || this.outstanding.size >= OUTSTANDING_MAX) {
      return this.call(request);
    }
    return new Promise((resolve, reject) => {
      const entry = this.newEntry(request, "unsafe", {}, resolve, reject);
      this.enter(entry);
      this.sendSoon(entry);
    });
  }

  /**
   * Resolves when every change made before is in the journal. Reports, once, a change that was
   * lost.
   */
  waitSafe(): Promise<void> {
    const lost = this.lostChange;
    if (lost !== undefined) {
      this.lostChange = undefined;
      return Promise.reject(lost);
    }
    if (this.changes.size === 0) return Promise.resolve();
    // Somebody waits: the batch should not wait for company. Its failure is the changes' own.
    this.call({ op: "sync" }).catch(() => undefined);
    return new Promise((resolve, reject) => {
      this.safeWaiters.push({ upTo: this.nextId - 1, resolve, reject });
    });
  }

  /**
   * One-way; false when there is no connection (a new leader learns of a release by what is not
   * held).
   */
  release(released: Released): boolean {
    if (this.state !== "active" || this.link === undefined) return false;
    this.sendBatch(); // What was done under the capability comes first.
    this.log.commit();
    this.link.post(MdsReleased, released);
    return true;
  }

  /**
   * Operations on the map and the daemon's figures; needs no session. Retries until `deadlineMs`
   * are over.
   */
  async admin(request: AdminRequest, deadlineMs: number): Promise<AdminReply> {
    const end = this.clock.now() + deadlineMs;
    let last: unknown;
    for (;;) {
      const leader = this.options.leader.current();
      const left = end - this.clock.now();
      if (left <= 0) {
        throw new DssError("TimedOut", "no metadata server answered", {
          cause: last,
          hint: "check that an MDS is running: dss mds ls",
        });
      }
      if (leader !== undefined) {
        try {
          const peer = this.options.messenger.peer(leader.address);
          return (await peer.call(MdsAdmin, request, { deadlineMs: left })).message;
        } catch (error) {
          if (!isDssError(error) || error.retry !== "same") throw error;
          last = error;
        }
      }
      await this.pause(Math.min(this.backoff.next(), Math.max(left, 1)));
    }
  }

  /** Waits until every change is safe, then ends the session in good order. */
  async close(options: { force?: boolean } = {}): Promise<void> {
    if (this.state === "closed") return;
    const link = this.link;
    let failure: Error | undefined;
    if (this.state === "active" && options.force !== true) {
      try {
        await this.waitSafe();
        await link?.call(CloseMdsSession, { client: this.sessionId }, { deadlineMs: CLOSE_MS });
      } catch (error) {
        failure = error as Error;
      }
    }
    this.shutDown();
    if (failure !== undefined) {
      if (!isDssError(failure)) throw failure;
      // The leader ends the session when its lease runs out; lost changes are another matter.
      if (failure.retry === "never") throw failure;
      this.logger.warn({ error: describeError(failure) }, "the session did not end in good order");
    }
  }

  // ---- Requests --------------------------------------------------------------------------------

  private async callWhenRoom(
    request: Request,
    options: { wait?: "unsafe" | "safe"; cause?: number | undefined },
  ): Promise<MdsReply> {
    while (this.outstanding.size >= OUTSTANDING_MAX) {
      await new Promise<void>((resolve) => this.roomWaiters.push(resolve));
    }
    return this.call(request, options);
  }

  /** It cannot be asked again in the session that follows the one for which it was made. */
  private isOutlived(request: Request, wasSent: boolean): boolean {
    if (request.op === "create") return request.ino < this.inos.first;
    return wasSent && !REPEATABLE.has(request.op);
  }

  private issue(
    request: Request,
    { wait = "unsafe", cause = 0 }: { wait?: "unsafe" | "safe"; cause?: number | undefined },
  ): Promise<MdsReply> {
    // It had waited while the session ended.
    if (this.isOutlived(request, false)) return Promise.reject(evictedError());
    return new Promise((resolve, reject) => {
      const entry = this.newEntry(request, wait, { cause }, resolve, reject);
      this.enter(entry);
      if (this.state !== "active") return;
      this.sendBatch();
      if (this.state === "active") this.send(entry);
    });
  }
  private newEntry(
    request: Request,
    wait: "unsafe" | "safe",
    { promised = false, cause = 0 }: Partial<Pick<LoggedRequest, "promised" | "cause">>,
    resolve: (reply: MdsReply) => void = () => undefined,
    reject: (error: DssError) => void = () => undefined,
  ): Outstanding {
    const now = this.clock.now();
    this.checkTimer ??= this.clock.setTimer(CHECK_MS, () => this.onCheck());
    return {
      id: this.nextId++,
      cause,
      request,
      wait,
      promised,
      confirmed: false,
      deadlineAt: now + this.options.operationDeadlineMs,
      slowAt: now + SLOW_MS,
      slowLogged: false,
      sent: false,
      answered: promised,
      journal: promised ? Number.MAX_SAFE_INTEGER : 0,
      resolve,
      reject,
    };
  }

  private enter(entry: Outstanding): void {
    this.outstanding.set(entry.id, entry);
    if (CHANGES.has(entry.request.op)) this.changes.set(entry.id, entry);
    if (LOGGED.has(entry.request.op)) this.log.entered(loggedOf(entry));
  }

  private floor(): number {
    return this.outstanding.keys().next().value ?? this.nextId;
  }

  private dropBatch(): void {
    this.batch = [];
    this.untold.clear();
  }
  private sendSoon(entry: Outstanding): void {
    if (this.state !== "active") return; // The next leader gets it with the others.
    this.batch.push(entry);
    if (this.batch.length >= BATCH_MAX) this.sendBatch();
    else this.batchTimer ??= this.clock.setTimer(BATCH_MS, () => this.sendBatch());
  }
  /** What was promised is on its way when this returns, or will be with the next session. */
  sendBatch(): void {
    this.batchTimer?.cancel();
    this.batchTimer = undefined;
    const { link, batch } = this;
    if (batch.length === 0 || link === undefined || this.state !== "active") return;
    this.dropBatch();
    this.log.commit();
    const [first] = batch as [Outstanding, ...Outstanding[]];
    if (batch.length === 1) {
      this.send(first);
      return;
    }
    const calls = batch.map((entry) => {
      entry.sent = true;
      return { id: entry.id, replay: entry.answered, request: entry.request };
    });
    link.call(MdsOperations, { floor: this.floor(), calls }, { deadlineMs: ATTEMPT_MS }).then(
      ({ message: { replies } }) => {
        replies.forEach((reply, at) => {
          const entry = batch[at];
          if (entry === undefined || entry.id !== reply.id) return;
          if (!("error" in reply)) return this.onReply(entry, reply);
          this.onFailure(entry, link, errorFromBody(reply.error));
        });
      },
      (error: unknown) => {
        for (const entry of batch) this.onFailure(entry, link, error);
      },
    );
  }

  private send(entry: Outstanding): void {
    const link = this.link;
    assert(link !== undefined, "requests are sent on an open session");
    entry.sent = true;
    this.log.commit();
    const { id, wait, request, answered: replay } = entry;
    link
      .call(
        MdsOperation,
        { id, floor: this.floor(), wait, replay, request },
        { deadlineMs: ATTEMPT_MS },
      )
      .then(
        (answered) => this.onReply(entry, answered.message),
        (error: unknown) => this.onFailure(entry, link, error),
      );
  }

  private onReply(entry: Outstanding, reply: MdsReply): void {
    if (this.outstanding.get(entry.id) !== entry) return; // Evicted or given up meanwhile.
    const repeated = entry.answered;
    this.cache.apply(entry.request, reply, repeated);
    this.confirm(entry);
    entry.answered = true;
    this.log.answered(entry.id, reply.answer.inode?.ino ?? 0);
    this.noteRestored(entry);
    entry.journal = reply.journal;
    if (reply.journal === 0 || reply.journal <= this.safe || entry.wait === "safe") {
      this.settle(entry);
    }
    if (!repeated) entry.resolve(reply);
  }

  private onFailure(entry: Outstanding, link: Link, error: unknown): void {
    if (!(error instanceof DssError)) throw error;
    if (this.outstanding.get(entry.id) !== entry) return;
    if (error.code === "NoSession" || error.code === "Fenced") {
      if (link === this.link) this.evict(error);
      return;
    }
    if (error.retry === "same") {
      if (link !== this.link) return; // The next leader gets it again.
      // Promised changes keep their order: all of them go again, over another connection.
      if (!entry.promised && (error.code === "TimedOut" || error.code === "Overloaded")) {
        void this.pause(this.backoff.next()).then(() => {
          if (link !== this.link || this.outstanding.get(entry.id) !== entry) return;
          this.send(entry);
        });
      } else {
        this.lose(link);
      }
      return;
    }
    if (entry.promised) this.cache.refused(entry.request, error);
    this.settle(entry, false);
    if (entry.answered) {
      this.logger.error(
        { request: entry.id, op: entry.request.op, error: describeError(error) },
        "a change that had been answered failed when it was executed",
      );
      this.loseChange(error);
    } else {
      entry.reject(error);
    }
  }

  private confirm(entry: Outstanding): void {
    if (!entry.promised || entry.confirmed) return;
    entry.confirmed = true;
    this.cache.confirmed(entry.request);
  }
  private settle(entry: Outstanding, executed = true): void {
    this.confirm(entry);
    this.log.settled(entry.id, executed);
    this.noteRestored(entry);
    this.outstanding.delete(entry.id);
    if (this.changes.delete(entry.id)) this.wakeSafeWaiters();
    if (this.roomWaiters.length > 0) this.roomWaiters.shift()!();
  }

  private onSafe(journal: number): void {
    if (journal <= this.safe) return;
    this.safe = journal;
    for (const entry of this.outstanding.values()) {
      if (entry.answered && entry.journal <= journal) this.settle(entry);
    }
  }

  private wakeSafeWaiters(): void {
    if (this.safeWaiters.length === 0) return;
    const oldest = this.changes.keys().next().value ?? this.nextId;
    const waiting: SafeWaiter[] = [];
    for (const waiter of this.safeWaiters) {
      if (waiter.upTo < oldest) waiter.resolve();
      else waiting.push(waiter);
    }
    this.safeWaiters = waiting;
  }

  private loseChange(error: DssError): void {
    const waiters = this.safeWaiters;
    this.safeWaiters = [];
    if (waiters.length === 0) this.lostChange = error;
    for (const waiter of waiters) waiter.reject(error);
  }

  private onCheck(): void {
    this.checkTimer = undefined;
    const now = this.clock.now();
    for (const entry of this.outstanding.values()) {
      if (entry.answered) continue;
      if (now >= entry.deadlineAt) {
        this.settle(entry, false);
        entry.reject(
          new DssError("TimedOut", `no metadata server answered ${entry.request.op} in time`),
        );
      } else if (now >= entry.slowAt && !entry.slowLogged) {
        entry.slowLogged = true;
        this.logger.warn(
          { request: entry.id, op: entry.request.op, connected: this.state === "active" },
          "a metadata request has been waiting for 5 s",
        );
      }
    }
    if (this.outstanding.size > 0) {
      this.checkTimer = this.clock.setTimer(CHECK_MS, () => this.onCheck());
    }
  }

  // ---- Session ---------------------------------------------------------------------------------

  private transition(next: State): void {
    assert(LEGAL[this.state].includes(next), `mds session: ${this.state} -> ${next}`);
    this.state = next;
  }

  private start(): void {
    if (this.state !== "idle") return;
    this.transition("connecting");
    this.connect();
  }

  private connect(): void {
    if (this.opening) return;
    this.opening = true;
    void this.connectLoop().finally(() => {
      this.opening = false;
      // Lost again while the loop was ending.
      if (this.state === "connecting") this.connect();
    });
  }

  private async connectLoop(): Promise<void> {
    let complained = false;
    while (this.state === "connecting") {
      const leader = this.options.leader.current();
      if (leader === undefined || leader.term < this.term) {
        await this.leaderChangeOr(LEADER_POLL_MS);
        continue;
      }
      try {
        await this.openWith(leader.address);
        this.backoff.reset();
        return;
      } catch (error) {
        if (!isDssError(error)) throw error;
        if (error.code === "NoSession" || error.code === "Fenced") {
          if (this.sessionId !== 0) this.evict(error);
        } else if (error.code === "Conflict" && this.sessionId !== 0) {
          this.superseded(error);
          return;
        } else if (error.retry === "never" && error.code !== "StaleRequest") {
          // Two clusters, another version: asking again does not help the one who waits for open().
          for (const waiter of this.openWaiters.splice(0)) waiter.reject(error);
        }
        if (!complained) {
          complained = true;
          const address = formatAddress(leader.address);
          this.logger.warn({ address, error: describeError(error) }, "no session with the MDS yet");
        }
        await this.leaderChangeOr(this.backoff.next());
      }
    }
  }

  private async openWith(address: Address): Promise<void> {
    const { options } = this;
    const peer = options.messenger.peer(address);
    let slot = this.peers.get(peer);
    if (slot === undefined) {
      const created: { link: Link | undefined } = { link: undefined };
      slot = created;
      this.peers.set(peer, created);
      peer.onUp((link) => {
        created.link = link;
        link.onClose(() => {
          if (created.link === link) created.link = undefined;
          this.lose(link);
        });
      });
    }
    this.early = [];
    const resumed = this.sessionId !== 0;
    this.log.commit();
    const held = resumed ? this.cache.held() : [];
    const sentMs = this.clock.now();
    let opened: SessionOpened;
    try {
      const claimed = Math.floor(held.length / CLAIMS_MAX) * CLAIMS_MAX;
      for (let at = 0; at < claimed; at += CLAIMS_MAX) {
        const message = { held: held.slice(at, at + CLAIMS_MAX) };
        await peer.call(MdsClaim, message, { deadlineMs: OPEN_ATTEMPT_MS });
      }
      const answer = await peer.call(
        OpenMdsSession,
        {
          type: options.type,
          instance: options.instance,
          host: options.host,
          pid: options.pid,
          detail: options.detail,
          client: this.sessionId,
          claimed,
          held: held.slice(claimed),
          orphans: resumed ? this.cache.orphans() : [],
          open: resumed ? this.cache.opened() : [],
          locks: resumed ? this.locks.claims() : [],
          floor: this.floor(),
          generation: options.generation ?? 0,
          restoring: this.restoring,
        },
        { deadlineMs: OPEN_ATTEMPT_MS },
      );
      opened = answer.message;
    } catch (error) {
      if (isDssError(error, "TimedOut")) slot.link?.destroy();
      throw error;
    }
    if (opened.term < this.term) {
      throw new DssError("NotLeader", `this leader's term ${opened.term} is over`);
    }
    const link = slot.link;
    if (link === undefined || link.closed || this.state !== "connecting") {
      throw new DssError("ConnectionLost", "the connection was lost while the session opened");
    }
    this.onOpened(link, opened, sentMs);
  }

  private onOpened(link: Link, opened: SessionOpened, sentMs: number): void {
    const sameTerm = opened.term === this.term;
    const isNew = opened.client !== this.sessionId;
    const isOther = opened.worker !== this.workerId;
    this.term = opened.term;
    this.leaseMs = heldFor(opened.leaseMs);
    this.epochSeen = Math.max(this.epochSeen, opened.epoch);
    this.sessionId = opened.client;
    this.workerId = opened.worker;
    this.log.session(opened.client);
    this.link = link;
    this.lastContactMs = sentMs;
    this.hasLapsed = false;
    this.watchLease();
    this.transition("active");
    this.logger.info(
      { client: opened.client, term: opened.term, leader: link.remote, resumed: !isNew },
      "metadata session open",
    );
    if (isOther) {
      this.options.messenger.setEntity(opened.worker);
      for (const listener of this.sessionListeners) listener(opened.worker);
    }
    // A new leader counts its batches anew only above what is safe; an unsafe number of the old
    // one means nothing to it.
    this.safe = sameTerm ? Math.max(this.safe, opened.safe) : opened.safe;
    this.cache.resumed();
    this.locks.reconnected();
    const completed = new Set(opened.completed);
    this.dropBatch(); // Sent with all others, in order.
    for (const entry of [...this.outstanding.values()]) {
      const heir = this.restored.get(entry);
      if (heir !== undefined && entry.id < opened.floor) {
        heir.resolve(undefined); // The worker before had heard so, and had no time to note it.
        this.settle(entry);
        continue;
      }
      // Of a promised change the answer may have been lost with a connection to this leader.
      const isKnown = entry.answered && (entry.confirmed || !entry.promised || !sameTerm);
      if (isKnown && completed.has(entry.id)) {
        // Executed by this very leader: its Safe will come. Known to a new leader: it read it in
        // the journal.
        if (!sameTerm || entry.journal <= this.safe) this.settle(entry);
      } else if (this.outstanding.get(entry.id) === entry) {
        // The number of the old leader's batch, which was lost, says nothing about the new one's.
        if (!sameTerm) entry.journal = Number.MAX_SAFE_INTEGER;
        this.send(entry);
      }
    }
    this.cache.releaseUnsaid?.();
    for (const { link: from, run } of this.early.splice(0)) if (from === link) run();
    for (const waiter of this.openWaiters.splice(0)) waiter.resolve();
    // Tells a new leader that nothing more is replayed, so that it need not wait for it.
    if (isNew) this.keepAliveSoon();
    else this.keepAlive();
  }

  /** Pushes count only from the link that has the session; while it opens they wait their turn. */
  private fromLeader(link: Link, run: () => void): void {
    if (link === this.link) run();
    else if (this.state === "connecting") this.early.push({ link, run });
  }

  /** The connection is useless; whatever was in flight goes to the next. */
  private lose(link: Link): void {
    if (link !== this.link) return;
    this.link = undefined;
    this.keepAliveTimer?.cancel();
    link.destroy();
    if (this.state !== "active") return;
    this.transition("connecting");
    this.connect();
  }

  private onLeaderChange(): void {
    const leader = this.options.leader.current();
    if (leader !== undefined && leader.term > this.term && this.link !== undefined) {
      this.lose(this.link);
    }
    this.leaderWake?.();
  }

  private keepAliveSoon(): void {
    this.keepAliveTimer?.cancel();
    this.keepAliveTimer = this.clock.setTimer(this.leaseMs / 3, () => this.keepAlive());
  }

  private keepAlive(): void {
    const link = this.link;
    if (link === undefined) return;
    this.log.commit();
    const sentMs = this.clock.now();
    const message = { client: this.sessionId, floor: this.floor() };
    link.call(MdsKeepAlive, message, { deadlineMs: this.leaseMs / 3 }).then(
      ({ message: kept }) => {
        if (link !== this.link) return;
        if (kept.term < this.term) {
          this.lose(link);
          return;
        }
        this.leaseMs = heldFor(kept.leaseMs);
        if (kept.confirmed) this.extendLease(sentMs);
        this.onSafe(kept.safe);
        this.keepAliveSoon();
      },
      (error: unknown) => {
        if (!isDssError(error)) throw error;
        if (link !== this.link) return;
        if (error.code === "NoSession" || error.code === "Fenced") this.evict(error);
        else this.lose(link);
      },
    );
  }

  private extendLease(sentMs: number): void {
    this.lastContactMs = sentMs;
    if (!this.hasLapsed) return;
    this.hasLapsed = false;
    this.watchLease();
    this.cache.resumed();
  }

  /**
   * The lease runs out without contact, or when the leader has none with its store; then other
   * clients may change what is cached here.
   */
  private watchLease(): void {
    this.leaseTimer?.cancel();
    const left = this.lastContactMs + this.leaseMs - this.clock.now();
    this.leaseTimer = this.clock.setTimer(Math.max(left, 0), () => {
      this.leaseTimer = undefined;
      if (this.state === "closed" || this.sessionId === 0 || this.hasLapsed) return;
      if (this.lastContactMs + this.leaseMs > this.clock.now()) {
        this.watchLease();
        return;
      }
      this.hasLapsed = true;
      this.logger.warn(
        { client: this.sessionId },
        "the MDS does not confirm: caches are set aside",
      );
      this.cache.lapsed();
    });
  }

  /** Asks the leader at once whether the session lives (an OSD said that this client is fenced). */
  checkSession(): void {
    if (this.state === "active") this.keepAlive();
  }

  private evict(reason: DssError): void {
    this.logger.error(
      { client: this.sessionId, error: describeError(reason) },
      "the metadata session was ended by the leader",
    );
    const error = evictedError(reason);
    this.sessionId = 0;
    this.workerId = 0;
    this.restoring = false;
    this.restored.clear();
    this.inherited.lose();
    for (const wake of this.restoredWaiters.splice(0)) wake();
    this.inos.clear();
    const entries = [...this.outstanding.values()];
    this.outstanding.clear();
    this.changes.clear();
    this.dropBatch();
    let lost = this.safeWaiters.length > 0;
    const lostRequests: Request[] = [];
    for (const entry of entries) {
      this.log.settled(entry.id, false);
      if (entry.answered) {
        lost ||= CHANGES.has(entry.request.op);
        lostRequests.push(entry.request);
      } else if (!this.isOutlived(entry.request, entry.sent)) {
        entry.id = this.nextId++;
        entry.sent = false;
        this.enter(entry);
      } else {
        entry.reject(error);
      }
    }
    if (lost) this.loseChange(error);
    while (this.roomWaiters.length > 0) this.roomWaiters.shift()!();
    this.locks.evicted();
    this.cache.evicted(error, lostRequests);
    const link = this.link;
    if (link !== undefined) this.lose(link);
  }

  /** Another worker of the same mount has the session: nothing that this one does counts. */
  private superseded(error: DssError): void {
    this.logger.error({ error: describeError(error) }, "this worker has been replaced");
    this.evict(error);
    this.shutDown();
  }

  private shutDown(): void {
    this.transition("closed");
    this.stopLeaderWatch();
    this.keepAliveTimer?.cancel();
    this.leaseTimer?.cancel();
    this.checkTimer?.cancel();
    this.batchTimer?.cancel();
    const error = new DssError("ShuttingDown", "the metadata session is closed");
    const entries = [...this.outstanding.values()];
    this.outstanding.clear();
    this.changes.clear();
    for (const entry of entries) if (!entry.answered) entry.reject(error);
    for (const waiter of this.safeWaiters.splice(0)) waiter.reject(error);
    for (const waiter of this.openWaiters.splice(0)) waiter.reject(error);
    for (const wake of this.roomWaiters.splice(0)) wake();
    for (const wake of this.restoredWaiters.splice(0)) wake();
    const link = this.link;
    this.link = undefined;
    link?.destroy();
    this.leaderWake?.();
  }

  private pause(ms: number): Promise<void> {
    return new Promise((resolve) => this.clock.setTimer(ms, resolve));
  }
  private leaderChangeOr(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = this.clock.setTimer(ms, () => this.leaderWake?.());
      this.leaderWake = () => {
        this.leaderWake = undefined;
        timer.cancel();
        resolve();
      };
    });
  }
}
