/**
 * One term of leadership: sessions with their leases, requests, capabilities on the wire, eviction.
 * Created with replayed metadata; ends for good with `stop` or with its first failed write.
 *
 * Phases: *reconnecting* until every journaled session has come back, or its lease is over and it
 * was fenced; in it only sessions are opened and replays executed, of what clients know to be done.
 * Then *active*: everything else, also what was sent to an earlier leader and not answered. An
 * answer leaves only while the store has confirmed the term lately.
 */
import { DssError, describeError, isDssError } from "../cluster/base/errors.js";
import { faults } from "../cluster/base/faults.js";
import type { ClientId, Epoch, Ino } from "../cluster/base/ids.js";
import { inParallel } from "../cluster/base/parallel.js";
import type { Logger } from "../cluster/base/log.js";
import type { Incoming, Link } from "../cluster/messenger/messenger.js";
import type { Clock, Timer } from "../cluster/platform/ports.js";
import type { ObjectAccess } from "../osd/client/object-access.js";
import { Checkpointer } from "./checkpointer.js";
import { serveBatch } from "./batch.js";
import { noteAccessed } from "./core/access-times.js";
import { CapabilityTable, type Access } from "./core/capability.js";
import type { Delta } from "./core/delta.js";
import { getTotals, setQuota } from "./core/directory-totals.js";
import { Draft, afterGrant } from "./core/draft.js";
import { S_IFDIR } from "./core/inode.js";
import { Namespace } from "./core/namespace.js";
import { emptyPlan, type Plan } from "./core/plan.js";
import { isLedOnly } from "./core/quota.js";
import { getXattrs, removeXattr, setXattr } from "./core/xattrs.js";
import { endSession, openSession, predecessors, type Recovered } from "./core/session.js";
import { Clones, isCloneRequest } from "./core/clone.js";
import { isSnapshotRequest, Snapshots } from "./core/snapshot.js";
import { Volumes, volumeKey } from "./core/volume.js";
import type { Metadata } from "./core/metadata.js";
import { JournalWriter } from "./journal-writer.js";
import { LockService } from "./lock-service.js";
import { Operations } from "./operations.js";
import type { PageLoader } from "./page-loader.js";
import {
  isContextKey,
  MdsLockOutcome,
  MdsRecall,
  MdsSafe,
  MdsVolumeChanged,
  ROOT_INO,
  covers,
  type CapabilityMode,
  type Grant,
  type KeepAlive,
  type KeptAlive,
  type LastWord,
  type Layout,
  type MdsBatch,
  type MdsBatchReply,
  type MdsCall,
  type MdsReply,
  type MdsStatus,
  type Released,
  type SessionClose,
  type Claim,
  type Held,
  type SessionOpen,
  type SessionOpened,
  type TakenOver,
  type TakeoverEnd,
  type Volume,
} from "./proto.js";
import { Purger, type PurgeLister, type PurgerParts } from "./purger.js";
import { Recounter } from "./recounter.js";
import { recoverFile } from "./recovery.js";
import type { Replayed } from "./replay.js";
import { checkCall, checkHeld, checkLast, checkOpen } from "./request-check.js";
import { Takeovers } from "./takeover.js";
import type { MetadataStore } from "./store/metadata-store.js";

export interface LeaderOptions {
  /** A session that is silent for this long may be evicted. */
  leaseMs: number;
  /** A live session that keeps a recalled capability this long is evicted. */
  recallTimeoutMs: number;
  /** Answers leave only this long after a round trip to the store was begun. */
  confirmedMs: number;
  /** A checkpoint is begun this often, or after so many batches. */
  checkpointMs: number;
  checkpointBatches: number;
  /** Capabilities of one session at most; the oldest are recalled. */
  capabilitiesMax: number;
  /** A silent session is evicted after this long even if nobody waits for it. */
  expiryMs: number;
  /** Inode numbers that a session gets at a time. */
  inoRange: number;
  /**
   * A journal batch for which nobody waits is held back this long, for others to share its commit.
   */
  journalLingerMs: number;
  /** The object of a deleted file that has only one is freed this much later. */
  purgeDelayMs: number;
}
/** Capabilities that one session may claim, whatever `capabilitiesMax` says now. */
const CLAIMS_MAX = 2 ** 20;
export const LEADER_DEFAULTS: LeaderOptions = {
  leaseMs: 10_000,
  recallTimeoutMs: 60_000,
  confirmedMs: 3_000,
  checkpointMs: 5_000,
  checkpointBatches: 256,
  capabilitiesMax: 131_072,
  expiryMs: 300_000,
  inoRange: 1024,
  journalLingerMs: 0,
  purgeDelayMs: 0,
};

/** The leader's parts, for what works on all of its state. */
export interface LeaderInside {
  store: MetadataStore;
  objects: Pick<ObjectAccess, "stat" | "remove" | "trim">;
  clock: Clock;
  logger: Logger;
  metadata: Metadata;
  loader: PageLoader;
  journal: JournalWriter;
  operations: Operations;
  capabilities: CapabilityTable;
  /** Batches up to here are in the pages. */
  checkpoint(): number;
  minEpoch(): Epoch;
  /** Resolves when every session of the predecessor is back or over. */
  active(): Promise<void>;
  stopped(): boolean;
}

/** What the leader needs of the cluster. */
export interface ClusterPort {
  clusterId: string;
  epoch(): Epoch;
  /**
   * Refuses the client at the OSDs; resolves with the epoch of the fence, once it is in the map.
   */
  fence(client: ClientId): Promise<Epoch>;
  /** By the newest map. */
  isFenced(client: ClientId): boolean;
  allocateClient(): Promise<ClientId>;
  /** Layout of the pool with this name ("" or undefined: the file system's). */
  layoutOf(pool: string | undefined): Layout | undefined;
  usage(): { total: number; available: number };
}

interface Pending {
  incoming: Incoming<MdsCall, MdsReply>;
  reply?: MdsReply;
}
interface LiveSession {
  id: ClientId;
  /** It keeps what it is given, and tells what it did under it. */
  isMount: boolean;
  link: Link | undefined;
  lastSeen: number;
  floor: number;
  /** Requests in progress, and answers that may be asked for again. */
  requests: Map<number, Pending>;
  lastJournal: number;
  pushedSafe: number;
  /** The end of the replays of the present link. */
  replays: Promise<void>;
  replaying: number;
  /** Its replays after a reconnection are over. */
  settled: boolean;
  openedAt: number;
  /** Its worker has taken it over and does not know yet what it holds. */
  restoring: boolean;
  taking: Promise<void> | undefined;
  /** Recalls that it has not answered. */
  recalls: Map<Ino, { mode: CapabilityMode; seq: number; since: number; asked?: number }>;
  evicting: Promise<void> | undefined;
}

const LAPSED = "its lease is over while others wait";
const KEEPS = "it keeps what was recalled";
const FENCED = "it is fenced";
const RECALL_AGAIN_MS = 1_000;
/** How long a reconnected session has to send its replays when nothing says that they are over. */
const SETTLE_MS = 300;
const TICK_MS = 250;
const CONFIRM_MS = 1_000;
const PROBE_RETRY_MS = 1_000;
/** Files of an ended session whose sizes are found out at the same time. */
const PROBES_MAX = 16;
/** Exclusive grants of one session at most: its page holds them all. */
const EXCLUSIVE_MAX = 16_384;
/** Asked back at a time when a limit is passed: the session has something to do for each. */
const partOf = (max: number): number =>
  Math.min(Math.ceil(max / 2), Math.max(32, Math.ceil(max / 32)));
/** Of a session that holds many more than it may: this many parts. */
const PARTS_MAX = 8;

export class MdsLeader {
  readonly journal: JournalWriter;
  private readonly capabilities: CapabilityTable;
  private readonly operations: Operations;
  private readonly namespace: Namespace;
  private readonly volumes: Volumes;
  private readonly snapshots: Snapshots;
  private readonly clones: Clones;
  private readonly locks: LockService;
  private readonly takeovers: Takeovers;
  private readonly checkpointer: Checkpointer;
  private readonly purger: Purger;
  private readonly recounter: Recounter;
  private readonly sessions = new Map<ClientId, LiveSession>();
  private readonly byLink = new Map<Link, LiveSession>();
  /** Journaled sessions that have not come back yet. */
  private readonly awaited = new Set<ClientId>();
  private readonly startedAt: number;
  private readonly answered = new WeakSet<Incoming<MdsCall, MdsReply>>();
  private phase: "reconnecting" | "active" | "stopped" = "reconnecting";
  private readonly whenActive: (() => void)[] = [];
  /** Answers that wait for the store to confirm the term. */
  private readonly claims = new WeakMap<Link, Held[]>();
  private held: { send: () => void; drop?: (error: DssError) => void }[] = [];
  private confirmedAt: number;
  /** When the store confirmed the term after a time without: what nobody could do until then. */
  private resumedAt = Number.NEGATIVE_INFINITY;
  private confirming = false;
  private lastCheckpoint: number;
  private fenceEpoch: Epoch;
  private tick: Timer | undefined;

  constructor(
    private readonly parts: {
      clock: Clock;
      logger: Logger;
      store: MetadataStore;
      replayed: Replayed;
      term: number;
      id: number;
      cluster: ClusterPort;
      objects: PurgerParts["objects"];
      lister: PurgeLister;
      options: LeaderOptions;
      /** It cannot go on: superseded, or the store failed. */
      onFailure: (error: unknown) => void;
    },
  ) {
    const { clock, store, replayed, term, cluster, logger } = parts;
    const { metadata, loader } = replayed;
    this.startedAt = clock.now();
    this.confirmedAt = this.startedAt;
    this.lastCheckpoint = this.startedAt;
    this.fenceEpoch = cluster.epoch();
    this.capabilities = new CapabilityTable(term);
    this.journal = new JournalWriter({
      store,
      clock,
      term,
      last: replayed.last,
      lingerMs: parts.options.journalLingerMs,
      events: {
        onSealed: (seq) => this.checkpointer.onSealed(seq),
        onSafe: (seq) => this.onSafe(seq),
        onFailure: (error) => this.fail(error),
      },
      onContact: (sentMs) => this.confirmed(sentMs),
    });
    this.checkpointer = new Checkpointer({
      cache: metadata.cache,
      store,
      journal: this.journal,
      logger,
      checkpoint: replayed.checkpoint,
      batches: replayed.batches,
      onFailure: (error) => this.fail(error),
    });
    this.operations = new Operations({
      metadata,
      loader,
      capabilities: this.capabilities,
      journal: this.journal,
      recall: (ino, mode, sessions) => {
        for (const session of sessions) this.recall(session, ino, mode);
      },
      onPurge: (entry, isDeleted) => this.purger.add(entry, isDeleted),
      panic: (error) => this.fail(error),
    });
    this.namespace = new Namespace(metadata, {
      fileLayout: () => cluster.layoutOf(undefined),
      usage: () => cluster.usage(),
      inoRange: parts.options.inoRange,
    });
    this.volumes = new Volumes(metadata, {
      layoutOf: (pool) => cluster.layoutOf(pool),
      minEpoch: () => this.fenceEpoch,
      lapsed: (id) => this.isLapsed(id),
      progress: (entry) => this.purger.progress(entry),
      nowNs: () => parts.clock.wallNs(),
      dateOf: (ns) => new Date(Number(ns / 1_000_000n)).toISOString(),
    });
    this.snapshots = new Snapshots(metadata, this.volumes);
    this.clones = new Clones(metadata, this.volumes);
    this.locks = new LockService({
      send: (id, message) => {
        const link = this.sessions.get(id)?.link;
        this.answering(() => link?.post(MdsLockOutcome, message));
      },
      // While the store is gone nobody can be evicted.
      lapsed: (id) => this.mayAnswer() && this.isLapsed(id),
      evict: (id) => {
        const session = this.sessions.get(id);
        if (session !== undefined) void this.evict(session, LAPSED);
      },
    });
    this.takeovers = new Takeovers({
      ...{ metadata, logger, operations: this.operations, capabilities: this.capabilities },
      locks: this.locks,
      fence: async (client) => {
        this.fenceEpoch = Math.max(this.fenceEpoch, await cluster.fence(client));
      },
      allocateClient: () => cluster.allocateClient(),
      safe: (seq) => this.safe(seq),
      probe: (id, ino) => this.probe(id, ino),
    });
    this.purger = new Purger({
      metadata,
      objects: parts.objects,
      clock,
      logger,
      change: async (work, hides) => {
        const complete = (): Delta[] => {
          const record = work();
          for (const delta of record) metadata.require(delta);
          return record;
        };
        await this.operations.change(complete, 0, hides);
      },
      lister: parts.lister,
      restMs: parts.options.purgeDelayMs,
      usage: () => cluster.usage(),
      minEpoch: () => this.fenceEpoch,
      completed: (entry) => [
        ...this.volumes.shrunk(entry),
        ...this.snapshots.rolledBack(entry),
        ...this.clones.flattened(entry),
      ],
      read: (read) => loader.run(read),
      stopped: () => this.phase === "stopped",
      isSafe: (id) => this.operations.isPurgeSafe(id),
    });
    this.recounter = new Recounter({
      ...{ metadata, clock, logger, operations: this.operations },
      ...{ objects: parts.objects, lister: parts.lister },
      minEpoch: () => this.fenceEpoch,
      stopped: () => this.phase === "stopped",
    });
  }

  private get metadata() {
    return this.parts.replayed.metadata;
  }
  private now(): number {
    return this.parts.clock.now();
  }

  /** Makes the root of an empty file system, takes over the journaled sessions, begins to work. */
  async start(): Promise<void> {
    if (this.metadata.counter("formatted") === 0) await this.format();
    for (const session of this.metadata.sessions()) {
      this.awaited.add(session.id);
      this.sessions.set(session.id, this.newSession(session.id, undefined, session.floor));
      for (const ino of session.exclusive.keys()) {
        this.capabilities.raise(session.id, ino, "exclusive");
      }
    }
    this.parts.logger.info(
      { term: this.parts.term, sessions: this.awaited.size, journal: this.journal.last },
      "leading the metadata",
    );
    for (const session of this.sessions.values()) {
      // Our predecessor died on the way: no OSD takes its data, so it must not go on here.
      if (this.parts.cluster.isFenced(this.workerOf(session.id))) void this.evict(session, FENCED);
    }
    this.onTick();
    this.purger.start();
  }
  private workerOf(id: ClientId): ClientId {
    return this.metadata.session(id)?.worker ?? id;
  }
  private async format(): Promise<void> {
    const timeNs = this.parts.clock.wallNs();
    const seq = await this.operations.change(() => {
      const draft = new Draft(this.metadata);
      draft.setCounter("formatted", 1);
      draft.setCounter("nextIno", 1024);
      draft.createInode({
        ino: ROOT_INO,
        mode: S_IFDIR | 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        atimeNs: timeNs,
        mtimeNs: timeNs,
        ctimeNs: timeNs,
        btimeNs: timeNs,
        truncateSeq: 0,
        truncateSize: 0,
        allocated: 0,
        recount: false,
        xattrCount: 0,
        parent: ROOT_INO,
        dataMax: 0,
        xattrBytes: 0,
        reservedTo: 0,
      });
      return draft.finish();
    });
    await this.safe(seq);
  }
  private safe(seq: number): Promise<void> {
    return new Promise((resolve) => this.journal.whenSafe(seq, resolve));
  }

  /** Stops at once. Whoever waits gets NotLeader and turns to the next leader. */
  stop(): void {
    if (this.phase === "stopped") return;
    this.phase = "stopped";
    this.tick?.cancel();
    this.purger.stop();
    this.operations.stop();
    const error = new DssError("NotLeader", "this metadata server no longer leads");
    for (const session of this.sessions.values()) {
      for (const pending of session.requests.values()) {
        if (pending.reply !== undefined) continue;
        this.once(pending.incoming, () => pending.incoming.fail(error));
      }
      session.link?.destroy();
    }
    for (const { drop } of this.held.splice(0)) drop?.(error);
  }
  /**
   * For a stop in good order: what was answered is safe, and pages are written so that the
   * successor has little to replay.
   */
  async finish(): Promise<void> {
    if (this.phase === "stopped") return;
    await this.safe(this.journal.last);
  }
  private fail(error: unknown): void {
    if (this.phase === "stopped") return;
    this.stop();
    this.parts.onFailure(error);
  }

  // The lease of the leader itself.

  private confirmed(sentMs: number): void {
    if (!this.mayAnswer()) this.resumedAt = this.now();
    if (sentMs > this.confirmedAt) this.confirmedAt = sentMs;
    if (this.held.length === 0 || !this.mayAnswer()) return;
    const due = this.held;
    this.held = [];
    for (const { send } of due) send();
  }
  private mayAnswer(): boolean {
    return this.now() - this.confirmedAt < this.parts.options.confirmedMs;
  }
  /**
   * A request gets its first answer only: its session may end while the operation runs or becomes
   * safe.
   */
  private once(incoming: Incoming<MdsCall, MdsReply> | undefined, answer: () => void): void {
    if (incoming === undefined || this.answered.has(incoming)) return;
    this.answered.add(incoming);
    answer();
  }
  private answering(send: () => void): void {
    if (this.phase === "stopped") return;
    if (this.mayAnswer()) send();
    else this.held.push({ send });
  }
  private async confirm(): Promise<void> {
    if (this.confirming) return;
    this.confirming = true;
    try {
      const sent = this.now();
      await this.parts.store.confirm();
      this.confirmed(sent);
    } catch (error) {
      this.fail(error);
    } finally {
      this.confirming = false;
    }
  }

  private onTick(): void {
    if (this.phase === "stopped") return;
    const now = this.now();
    const { options } = this.parts;
    if (now - this.confirmedAt > CONFIRM_MS) void this.confirm();
    if (this.phase === "reconnecting") this.checkReconnected();
    for (const session of this.sessions.values()) this.checkSession(session, now);
    if (this.mayAnswer()) this.locks.check();
    const batches = this.journal.safe - this.checkpointer.checkpoint;
    const due = now - this.lastCheckpoint > options.checkpointMs;
    if (batches > 0 && (due || batches > options.checkpointBatches)) {
      this.lastCheckpoint = now;
      void this.checkpointer.run();
    }
    this.tick = this.parts.clock.setTimer(TICK_MS, () => this.onTick());
  }
  private checkSession(session: LiveSession, now: number): void {
    if (session.evicting !== undefined || this.awaited.has(session.id)) return;
    // While the store is gone nobody can be evicted, and afterwards everybody has time to be heard.
    if (!this.mayAnswer()) return;
    const silent = now - Math.max(session.lastSeen, this.resumedAt);
    if (silent > this.parts.options.expiryMs) {
      void this.evict(session, "silent for too long");
      return;
    }
    for (const [ino, recalled] of session.recalls) {
      const since = Math.max(recalled.since, this.resumedAt);
      if (silent > this.parts.options.leaseMs) {
        void this.evict(session, LAPSED);
        return;
      }
      if (now - since > this.parts.options.recallTimeoutMs && !session.restoring) {
        const { mode } = recalled;
        void this.evict(session, KEEPS, { ino, mode, afterMs: Math.round(now - since) });
        return;
      }
      // A recall or its answer may have been lost with a connection; to be asked twice is harmless.
      if (now - since > RECALL_AGAIN_MS && now - (recalled.asked ?? since) > RECALL_AGAIN_MS) {
        recalled.asked = now;
        const { mode, seq } = recalled;
        session.link?.post(MdsRecall, { ino, mode, seq });
      }
    }
  }
  private isLapsed(id: ClientId): boolean {
    const session = this.sessions.get(id);
    if (session === undefined) return true;
    return this.now() - Math.max(session.lastSeen, this.resumedAt) > this.parts.options.leaseMs;
  }

  /** Ends the reconnecting phase when it can. */
  private checkReconnected(): void {
    const now = this.now();
    if (this.awaited.size > 0) {
      const since = Math.max(this.startedAt, this.resumedAt);
      if (!this.mayAnswer() || now - since <= this.parts.options.leaseMs) return;
      for (const id of this.awaited) {
        const session = this.sessions.get(id);
        if (session !== undefined && session.evicting === undefined) {
          void this.evict(session, "it did not come back to the new leader");
        }
      }
      return;
    }
    for (const session of this.sessions.values()) {
      const isNew = session.link !== undefined && now - session.openedAt < SETTLE_MS;
      if (session.replaying > 0 || (isNew && !session.settled)) return;
    }
    this.phase = "active";
    this.parts.logger.info({ tookMs: Math.round(now - this.startedAt) }, "serving metadata");
    for (const resume of this.whenActive.splice(0)) resume();
  }
  private settled(session: LiveSession): void {
    if (session.settled) return;
    session.settled = true;
    this.checkAgain();
  }
  private checkAgain(): void {
    if (this.phase === "reconnecting") this.checkReconnected();
  }
  private async active(): Promise<void> {
    if (this.phase === "reconnecting") {
      this.checkReconnected();
      if ((this.phase as string) === "active") return;
      await new Promise<void>((resolve) => this.whenActive.push(resolve));
    }
  }

  // Sessions.

  private newSession(id: ClientId, link: Link | undefined, floor: number): LiveSession {
    return {
      id,
      isMount: this.metadata.session(id)?.type === "mount",
      link,
      lastSeen: this.now(),
      floor,
      requests: new Map(),
      lastJournal: 0,
      pushedSafe: 0,
      replays: Promise.resolve(),
      replaying: 0,
      settled: false,
      openedAt: this.now(),
      restoring: false,
      taking: undefined,
      recalls: new Map(),
      evicting: undefined,
    };
  }

  /** The first parts of what a session goes on with, for the `openSession` that follows. */
  claim({ held }: Claim, link: Link): void {
    checkHeld(held);
    const claims = this.claims.get(link) ?? [];
    const most = Math.max(CLAIMS_MAX, 4 * this.parts.options.capabilitiesMax);
    if (claims.length + held.length > most) {
      throw new DssError("Malformed", `session: it holds more than ${most} capabilities`);
    }
    for (const each of held) claims.push(each);
    this.claims.set(link, claims);
  }
  private takeClaims(open: SessionOpen, link: Link): SessionOpen {
    const claims = this.claims.get(link) ?? [];
    this.claims.delete(link);
    if (claims.length === (open.claimed ?? 0)) return { ...open, held: [...claims, ...open.held] };
    // What is not claimed would count as given back.
    throw new DssError("ConnectionLost", "the connection broke in the middle of the claims");
  }

  async openSession(asked: SessionOpen, link: Link): Promise<SessionOpened> {
    checkOpen(asked);
    const open = this.takeClaims(asked, link);
    // The answer begins a lease, so the term must be known to be ours.
    await this.confirmedLately();
    return open.client === 0 ? this.beginSession(open, link) : this.resumeSession(open, link);
  }
  private confirmedLately(): Promise<void> {
    if (this.mayAnswer()) return Promise.resolve();
    return new Promise((send, drop) => this.held.push({ send, drop }));
  }
  private async beginSession(open: SessionOpen, link: Link): Promise<SessionOpened> {
    // Before the wait for others to reconnect: a predecessor that died will not, and would be
    // waited for in vain.
    await this.evictPredecessors(open);
    await this.active();
    await this.evictPredecessors(open);
    const id = await this.parts.cluster.allocateClient();
    // A client that gave up waiting asks again: no session for a link that nobody listens on.
    if (link.closed) throw new DssError("ConnectionLost", "the client has gone");
    const seq = await this.operations.change(() => openSession(this.metadata, id, open));
    await this.safe(seq);
    const session = this.newSession(id, link, 1);
    session.settled = true;
    this.sessions.set(id, session);
    this.bind(session, link);
    const { type, host, pid, detail } = open;
    this.parts.logger.info({ client: id, type, host, pid, detail }, "session opened");
    return this.opened(session, []);
  }
  private async evictPredecessors(open: SessionOpen): Promise<void> {
    for (const id of predecessors(this.metadata, open)) {
      const session = this.sessions.get(id);
      if (session !== undefined) await this.evict(session, "a successor has started");
    }
  }
  private async resumeSession(open: SessionOpen, link: Link): Promise<SessionOpened> {
    const session = this.sessions.get(open.client);
    const known = this.metadata.session(open.client);
    if (session === undefined || known === undefined || session.evicting !== undefined) {
      throw new DssError("NoSession", `session ${open.client} has ended`);
    }
    session.lastSeen = this.now();
    await this.takeovers.admit(session, open);
    if (link.closed) throw new DssError("ConnectionLost", "the client has gone");
    const returning = this.awaited.delete(session.id);
    session.openedAt = this.now();
    session.settled = false;
    session.floor = Math.max(session.floor, open.floor);
    this.bind(session, link);
    session.restoring = open.restoring === true;
    this.takeHeld(session, open, returning);
    for (const [ino, { mode, seq }] of session.recalls) link.post(MdsRecall, { ino, mode, seq });
    this.parts.logger.info({ client: session.id, returning }, "session resumed");
    const completed = [...known.completed].filter((id) => id >= open.floor);
    return this.opened(session, completed);
  }
  private bind(session: LiveSession, link: Link): void {
    if (session.link !== undefined) this.byLink.delete(session.link);
    const earlier = this.byLink.get(link);
    if (earlier !== undefined && earlier !== session) {
      // The client never learned of it: it asked again before the answer came.
      earlier.link = undefined;
      void this.end(earlier, undefined);
    }
    session.link = link;
    session.lastSeen = this.now();
    session.pushedSafe = this.journal.safe;
    this.byLink.set(link, session);
    link.onClose(() => {
      this.byLink.delete(link);
      if (session.link === link) session.link = undefined;
    });
  }
  private opened(session: LiveSession, completed: number[]): SessionOpened {
    return {
      client: session.id,
      worker: this.workerOf(session.id),
      floor: session.floor,
      term: this.parts.term,
      leaseMs: this.parts.options.leaseMs,
      safe: this.journal.safe,
      completed,
      clusterId: this.parts.cluster.clusterId,
      epoch: this.parts.cluster.epoch(),
    };
  }
  /** What a resuming session says that it holds, against what is known. */
  private takeHeld(session: LiveSession, open: SessionOpen, returning: boolean): void {
    const told = new Map(open.held.map((held) => [held.ino, held]));
    const lost: Ino[] = [];
    // Until a takeover has ended nothing is given back: what was done under it comes first.
    const known = session.restoring ? [] : [...this.capabilities.ofSession(session.id)];
    for (const [ino, held] of known) {
      const claim = told.get(ino);
      if (held.mode === "exclusive") {
        if (!returning) continue;
        // It names in a release what it was granted, not what this leader has numbered anew.
        if (claim?.mode === "exclusive") held.seq = claim.seq;
        // The holder's last word went to a leader that is gone: its objects tell.
        else lost.push(ino);
      } else if (claim === undefined || !covers(claim.mode, held.mode)) {
        this.lower(session, ino, claim?.mode ?? "none");
      }
    }
    for (const { ino, mode, seq } of open.held) {
      const told = mode === "shared" || mode === "sole";
      if (!told || this.capabilities.exclusiveHolder(ino) !== undefined) continue;
      // A new leader learns of these only here; an old one knows what it has granted.
      if (returning) this.capabilities.raise(session.id, ino, mode, seq);
    }
    for (const ino of open.open ?? []) this.capabilities.setOpen(session.id, ino, true);
    if (returning && !this.locks.claim(session.id, open)) {
      void this.evict(session, "it claims locks that others hold");
    }
    const kept = new Map(lost.map((ino) => [ino, told.get(ino)?.mode ?? "none"]));
    void this.recoverReleased(session, kept).catch((error: unknown) => this.fail(error));
  }
  /** One after the other: there may be many, and clients' own work comes first. */
  private async recoverReleased(
    session: LiveSession,
    kept: ReadonlyMap<Ino, CapabilityMode>,
  ): Promise<void> {
    const inos = [...kept.keys()];
    const seqs = new Map(inos.map((ino) => [ino, this.capabilities.held(session.id, ino)?.seq]));
    for (const [ino, mode] of kept) {
      const found = await this.probe(session.id, ino);
      if (this.phase === "stopped" || session.evicting !== undefined) return;
      // The session may have acquired it again meanwhile: then it is the authority once more.
      const isOld = (): boolean => this.capabilities.held(session.id, ino)?.seq === seqs.get(ino);
      if (!isOld()) continue;
      await this.endGrant(session, ino, found, isOld);
      if (isOld()) this.lower(session, ino, mode);
    }
  }

  async closeSession(message: SessionClose, link: Link): Promise<void> {
    const session = this.byLink.get(link);
    if (session === undefined || session.id !== message.client) {
      throw new DssError("NoSession", "this link has no such session");
    }
    await this.end(session, undefined);
    this.parts.logger.info({ client: session.id }, "session closed");
  }

  /** See mds/takeover.ts. */
  endTakeover(message: TakeoverEnd, link: Link): Promise<TakenOver> {
    const session = this.byLink.get(link);
    if (session === undefined || session.id !== message.client) {
      throw new DssError("NoSession", "this link has no such session");
    }
    return this.takeovers.end(session, message.inos);
  }

  keepAlive(message: KeepAlive, link: Link): KeptAlive {
    const session = this.byLink.get(link);
    const isEvicted = session?.evicting !== undefined;
    if (session === undefined || session.id !== message.client || isEvicted) {
      throw new DssError("NoSession", `session ${message.client} is not open on this link`);
    }
    session.lastSeen = this.now();
    this.raiseFloor(session, message.floor);
    this.settled(session);
    return {
      term: this.parts.term,
      safe: this.journal.safe,
      leaseMs: this.parts.options.leaseMs,
      confirmed: this.mayAnswer(),
    };
  }
  private raiseFloor(session: LiveSession, floor: number): void {
    if (!(floor > session.floor)) return;
    session.floor = floor;
    for (const [id, pending] of session.requests) {
      if (id >= floor) break; // Ids rise.
      if (pending.reply !== undefined) session.requests.delete(id);
    }
  }

  // Eviction: first the fence, then what its objects say, then the capabilities are free.

  private evict(session: LiveSession, reason: string, about: object = {}): Promise<void> {
    session.evicting ??= this.runEviction(session, reason, about);
    return session.evicting;
  }
  private async runEviction(session: LiveSession, reason: string, about: object): Promise<void> {
    const { logger, cluster } = this.parts;
    logger.warn({ client: session.id, reason, ...about }, "evicting a session");
    try {
      for (;;) {
        try {
          const epoch = faults.grantBeforeFence
            ? cluster.epoch()
            : await cluster.fence(this.workerOf(session.id));
          this.fenceEpoch = Math.max(this.fenceEpoch, epoch);
          // It will not come back. What it holds is found out below, and conflicts wait for that.
          this.awaited.delete(session.id);
          this.checkAgain();
          break;
        } catch (error) {
          if (this.phase === "stopped" || !isDssError(error) || error.retry !== "same") throw error;
          await this.pause();
        }
      }
      await this.leaseOver(session, reason);
      await this.end(session, this.fenceEpoch);
      logger.warn({ client: session.id, epoch: this.fenceEpoch }, "session evicted and fenced");
    } catch (error) {
      if (this.phase !== "stopped") this.fail(error);
    }
  }
  /**
   * The fence stops its writes, but what it has cached it reads until it hears of its end or its
   * lease is over: nobody may change that before. Nothing that it sends prolongs the lease now; an
   * earlier leader may have until we began. For any other reason it is over already, or people ask
   * for it.
   */
  private async leaseOver(session: LiveSession, reason: string): Promise<void> {
    const left = session.lastSeen + this.parts.options.leaseMs - this.now();
    if (left <= 0 || (reason !== KEEPS && reason !== FENCED)) return;
    await new Promise<void>((resolve) => void this.parts.clock.setTimer(left, resolve));
  }
  private pause(): Promise<void> {
    return new Promise((resolve) => void this.parts.clock.setTimer(PROBE_RETRY_MS, resolve));
  }
  /** The session is over; `fenced`: nobody writes under its grants any more. */
  private async end(session: LiveSession, fenced: Epoch | undefined): Promise<void> {
    session.evicting ??= Promise.resolve();
    const { id } = session;
    const recovered = new Map<Ino, Recovered>();
    const locks = [...(this.metadata.session(id)?.volumes.keys() ?? [])].map(volumeKey);
    const held = [...(this.metadata.session(id)?.exclusive.keys() ?? [])];
    await inParallel(held, PROBES_MAX, async (ino) => {
      if (this.phase === "stopped") return;
      const found = await this.probe(id, ino);
      if (found !== undefined) recovered.set(ino, found);
    });
    if (this.phase === "stopped") return;
    let removed: Ino[] = [];
    const hides = [...recovered.keys()];
    const seq = await this.operations.change(
      () => {
        const ended = endSession(this.metadata, this.capabilities, { id, recovered });
        removed = ended.removed;
        return ended.record;
      },
      id,
      hides,
    );
    await this.safe(seq);
    for (const ino of removed) this.capabilities.forget(ino);
    const freed = [...this.capabilities.ofSession(id)].map(([ino]) => ino);
    this.capabilities.dropSession(id);
    this.locks.ended(id);
    this.sessions.delete(id);
    this.awaited.delete(id);
    const gone = new DssError(fenced === undefined ? "NoSession" : "Fenced", "the session is over");
    for (const pending of session.requests.values()) {
      if (pending.reply === undefined)
        this.once(pending.incoming, () => pending.incoming.fail(gone));
    }
    if (session.link !== undefined) {
      this.byLink.delete(session.link);
      if (fenced !== undefined) session.link.destroy();
    }
    for (const ino of [...freed, ...locks]) this.operations.released(ino);
    for (const ino of session.recalls.keys()) this.operations.released(ino);
    this.purger.wake();
    this.checkAgain();
  }
  /** Size and time of a file by its objects, below what the session may have written. */
  private async probe(id: ClientId, ino: Ino): Promise<Recovered | undefined> {
    for (;;) {
      try {
        const inode = await this.parts.replayed.loader.run(() => this.metadata.inode(ino));
        const bound = this.metadata.session(id)?.exclusive.get(ino);
        if (inode === undefined || bound === undefined) return undefined;
        return await recoverFile(this.parts.objects, inode, {
          bound: Math.max(bound, inode.dataMax),
          minEpoch: this.fenceEpoch,
        });
      } catch (error) {
        if (this.phase === "stopped") return undefined;
        // Nobody else may have the file before its end is known: wait for the OSDs, however long.
        this.parts.logger.warn(
          { client: id, ino, err: describeError(error) },
          "the size of a dead writer's file cannot be found yet; trying again",
        );
        await this.pause();
      }
    }
  }

  // Capabilities on the wire.

  /**
   * A grant overtakes a recall that others still wait for: the recall follows with a newer number.
   */
  private recallAgain(session: LiveSession, ino: Ino): void {
    const recalled = session.recalls.get(ino);
    if (recalled === undefined) return;
    recalled.seq = this.capabilities.nextSeq();
    const { mode, seq } = recalled;
    this.parts.clock.defer(() => {
      if (session.recalls.get(ino)?.seq === seq) session.link?.post(MdsRecall, { ino, mode, seq });
    });
  }
  private recall(id: ClientId, ino: Ino, mode: CapabilityMode): void {
    const session = this.sessions.get(id);
    if (session === undefined) return;
    const silent = this.now() - session.lastSeen > this.parts.options.leaseMs;
    if (silent || (ino < 0 && !isContextKey(ino))) {
      void this.evict(session, silent ? LAPSED : "its volume is taken over by force");
      return;
    }
    const known = session.recalls.get(ino);
    if (known !== undefined && (known.mode === "none" || known.mode === mode)) return;
    const seq = this.capabilities.nextSeq();
    session.recalls.set(ino, { mode, seq, since: known?.since ?? this.now() });
    session.link?.post(MdsRecall, { ino, mode, seq });
  }

  onReleased(message: Released, link: Link): void {
    const session = this.byLink.get(link);
    if (session === undefined || session.evicting !== undefined) return;
    session.lastSeen = this.now();
    // What it did under the capability comes first.
    this.afterReplays(session, () => {
      void this.release(session, message).catch((error: unknown) => this.fail(error));
    });
  }
  private async release(session: LiveSession, message: Released): Promise<void> {
    if (session.evicting !== undefined) return;
    const { ino, mode, seq } = message;
    const held = this.capabilities.held(session.id, ino);
    // Sent before the newest grant arrived: the client holds that grant.
    if (held !== undefined && seq < held.seq) return;
    if (session.restoring && held?.mode === "exclusive") return; // How far it was written is open.
    if (held?.mode === "exclusive" && mode !== "exclusive") {
      // It may be acquired again before that is applied.
      const isOld = (): boolean => (this.capabilities.held(session.id, ino)?.seq ?? 0) <= seq;
      await this.endGrant(session, ino, checkLast(message.last), isOld);
      if (!isOld()) return;
    }
    this.capabilities.setOpen(session.id, ino, message.open && mode === "none");
    const recalled = session.recalls.get(ino);
    if (recalled !== undefined && covers(recalled.mode, mode)) session.recalls.delete(ino);
    this.lower(session, ino, mode);
  }
  private lower(session: LiveSession, ino: Ino, mode: CapabilityMode): void {
    this.capabilities.lower(session.id, ino, mode);
    this.operations.released(ino);
  }
  /** Journals the end of an exclusive grant, with its holder's last word. */
  private async endGrant(
    session: LiveSession,
    ino: Ino,
    last: LastWord | undefined,
    isOld: () => boolean,
  ): Promise<void> {
    await this.operations.change(
      () => {
        if (!isOld()) return [];
        const grant = this.metadata.session(session.id)?.exclusive.get(ino);
        const inode = this.metadata.inode(ino);
        if (grant === undefined) return [];
        const draft = new Draft(this.metadata);
        if (inode !== undefined) draft.put(afterGrant(inode, grant, last));
        draft.add({ d: "grantRemove", id: session.id, ino });
        return draft.finish();
      },
      session.id,
      [ino],
    );
  }

  private grants(session: LiveSession, plan: Plan): Grant[] {
    const grants: Grant[] = [];
    const { capabilities } = this;
    const minEpoch = this.fenceEpoch;
    if (plan.exclusive !== undefined) {
      const { ino, maxSize } = plan.exclusive;
      capabilities.raise(session.id, ino, "exclusive");
      const held = capabilities.held(session.id, ino)!;
      held.seq = capabilities.nextSeq(); // The same grant, perhaps with another maxSize.
      this.recallAgain(session, ino);
      grants.push({ ino, mode: "exclusive", seq: held.seq, maxSize, minEpoch });
    }
    for (const ino of session.isMount ? plan.sole : []) {
      if (plan.removed.includes(ino) || !capabilities.alone(ino, session.id)) continue;
      if (isLedOnly(this.metadata, ino)) continue;
      const held = capabilities.raise(session.id, ino, "sole");
      if (held === undefined) continue;
      this.recallAgain(session, ino);
      grants.push({ ino, mode: "sole", seq: held.seq, maxSize: 0, minEpoch });
    }
    for (const ino of plan.shared) {
      if (ino === plan.exclusive?.ino || plan.removed.includes(ino)) continue;
      if (capabilities.pendingBefore(ino, Infinity) !== undefined) continue;
      if (capabilities.above(ino, session.id, "shared").length > 0) continue;
      const held = capabilities.raise(session.id, ino, "shared");
      if (held === undefined) continue;
      grants.push({ ino, mode: "shared", seq: held.seq, maxSize: 0, minEpoch });
    }
    this.limitCapabilities(session);
    return grants;
  }
  private limitCapabilities(session: LiveSession): void {
    const journaled = this.metadata.session(session.id)?.exclusive;
    if (journaled !== undefined && journaled.size > EXCLUSIVE_MAX) {
      const lower = session.isMount ? "sole" : "shared";
      this.recallOldest(session, journaled.keys(), { count: partOf(EXCLUSIVE_MAX), mode: lower });
    }
    const { capabilitiesMax } = this.parts.options;
    const held = this.capabilities.count(session.id) - session.recalls.size;
    if (held <= capabilitiesMax) return;
    const part = partOf(capabilitiesMax);
    const count = Math.min(Math.max(part, held - capabilitiesMax), PARTS_MAX * part);
    if (session.recalls.size >= count) return; // It has as many to give back already.
    const inos = this.capabilities.inosOf(session.id);
    this.recallOldest(session, inos, { count, mode: "none" });
  }
  /** Of the first so many, asks for those back that are not asked back yet. */
  private recallOldest(
    session: LiveSession,
    inos: Iterable<Ino>,
    { count, mode }: { count: number; mode: CapabilityMode },
  ): void {
    let left = count;
    for (const ino of inos) {
      if (!session.recalls.has(ino)) this.recall(session.id, ino, mode);
      if (--left === 0) return;
    }
  }

  // Requests.

  onOperation(incoming: Incoming<MdsCall, MdsReply>): void {
    const call = incoming.message;
    const session = this.byLink.get(incoming.link);
    if (session === undefined || session.evicting !== undefined) {
      throw new DssError("NoSession", "this link has no session");
    }
    checkCall(call);
    session.lastSeen = this.now();
    if (call.id < session.floor) {
      throw new DssError("StaleRequest", `request ${call.id} is below the floor ${session.floor}`);
    }
    this.raiseFloor(session, Math.min(call.floor, call.id));
    const known = session.requests.get(call.id);
    if (known !== undefined) {
      known.incoming = incoming; // The earlier link is gone; this one gets the answer.
      if (known.reply !== undefined)
        this.send(session, call, this.stillGranted(session, known.reply));
      return;
    }
    session.requests.set(call.id, { incoming });
    if (!call.replay) {
      // Those sent again without ever having had an answer are among these: they may need what
      // another session holds, which
      // gives it back with requests of its own. They follow what some client knows to be done, or
      // it might wait for them.
      this.afterReplays(session, () => {
        if (this.phase === "active") this.execute(session, call, () => undefined);
        else this.whenActive.push(() => this.execute(session, call, () => undefined));
      });
      return;
    }
    // Replays run one after the other, as they were sent.
    session.replaying++;
    session.replays = session.replays
      .then(() => new Promise<void>((resolve) => this.execute(session, call, resolve)))
      .then(() => {
        session.replaying--;
        this.checkAgain();
      });
  }

  onOperations(incoming: Incoming<MdsBatch, MdsBatchReply>): void {
    serveBatch(incoming, (one) => this.onOperation(one));
  }
  /** At once, unless replays that came earlier are not executed yet. */
  private afterReplays(session: LiveSession, work: () => void): void {
    if (session.replaying === 0) work();
    else void session.replays.then(work);
  }
  /** An answer of an earlier link may grant what was given back since. */
  private stillGranted(session: LiveSession, reply: MdsReply): MdsReply {
    const isHeld = ({ ino, mode }: Grant): boolean =>
      covers(this.capabilities.mode(session.id, ino), mode);
    return { ...reply, grants: reply.grants.filter(isHeld) };
  }

  private execute(session: LiveSession, call: MdsCall, over: () => void): void {
    const { id } = call;
    const repeated = this.metadata.session(session.id)?.completed.has(id) === true;
    this.operations.submit({
      session: session.id,
      request: { id, floor: session.floor },
      plan: (access) => this.planFor(session, access, { call, repeated }),
      done: (plan, seq) => {
        this.finished(session, call, plan, repeated ? this.journal.last : seq);
        over();
      },
      fail: (error) => {
        const pending = session.requests.get(id);
        session.requests.delete(id);
        this.answering(() => this.once(pending?.incoming, () => pending?.incoming.fail(error)));
        over();
      },
    });
  }

  private planFor(
    session: LiveSession,
    access: Access,
    { call, repeated }: { call: MdsCall; repeated: boolean },
  ): Plan {
    // It may have waited while its session was evicted.
    if (session.evicting !== undefined) throw new DssError("NoSession", "the session is over");
    this.takeovers.checkAlive(session.requests.get(call.id)?.incoming);
    access.answered = call.replay;
    // To open again what is open changes nothing, and the client needs the record.
    const again = repeated && call.request.op !== "volumeOpen";
    return again ? this.namespace.again(access, call.request) : this.plan(access, call);
  }

  private finished(session: LiveSession, call: MdsCall, plan: Plan, seq: number): void {
    const reply: MdsReply = {
      id: call.id,
      journal: seq,
      notFound: plan.notFound,
      answer: plan.answer,
      grants: this.grants(session, plan),
    };
    this.recounter.see(plan.answer);
    for (const ino of plan.lowered ?? []) {
      if (covers(this.capabilities.mode(session.id, ino), "sole")) {
        this.recall(session.id, ino, "shared");
      }
    }
    if (seq > session.lastJournal) session.lastJournal = seq;
    const pending = session.requests.get(call.id);
    if (pending !== undefined) {
      if (seq > 0) pending.reply = reply;
      else session.requests.delete(call.id);
    }
    const send = (): void => this.send(session, call, reply, pending?.incoming);
    // A repeated or second request may find a change of an earlier one that is not safe yet.
    const { volumeChanged } = plan;
    if (volumeChanged !== undefined) {
      this.journal.whenSafe(seq, () => this.tellUsers(volumeChanged));
    }
    const unchanged = plan.durable && seq === 0 ? this.journal.last : seq;
    const needed = call.request.op === "sync" ? session.lastJournal : unchanged;
    if (plan.durable || call.wait === "safe" || call.request.op === "sync") {
      if (pending !== undefined) delete pending.reply;
      this.journal.whenSafe(needed, () => {
        if (pending !== undefined && seq > 0) pending.reply = reply;
        send();
      });
    } else send();
  }
  private tellUsers(volume: Volume): void {
    for (const { id, link } of this.sessions.values()) {
      const isUser = this.metadata.session(id)?.volumes.has(volume.id) === true;
      if (isUser) link?.post(MdsVolumeChanged, volume);
    }
  }
  private send(
    session: LiveSession,
    call: MdsCall,
    reply: MdsReply,
    first?: Incoming<MdsCall, MdsReply>,
  ): void {
    this.answering(() => {
      const incoming = session.requests.get(call.id)?.incoming ?? first;
      this.once(incoming, () => incoming?.reply(reply));
    });
  }

  private plan(access: Access, { request }: MdsCall): Plan {
    const { namespace, volumes } = this;
    if (isSnapshotRequest(request)) return this.snapshots.plan(access, request);
    if (isCloneRequest(request)) return this.clones.plan(access, request);
    switch (request.op) {
      case "lookup":
        return namespace.lookup(access, request);
      case "getattr":
        return namespace.getattr(access, request);
      case "acquire":
        return namespace.acquire(access, request);
      case "readdir":
        return namespace.readdir(access, request);
      case "create":
        return namespace.create(access, request);
      case "tmpfile":
        return namespace.tmpfile(access, request);
      case "link":
        return namespace.link(access, request);
      case "unlink":
        return namespace.unlink(access, request);
      case "rmdir":
        return namespace.rmdir(access, request);
      case "rename":
        return namespace.rename(access, request);
      case "setattr":
        return namespace.setattr(access, request);
      case "publish":
        return namespace.publish(access, request);
      case "accessed":
        return noteAccessed(this.metadata, access, request);
      case "extend":
        return namespace.extend(access, request);
      case "orphanRelease":
        return namespace.orphanRelease(access, request);
      case "getxattrs":
        return getXattrs(this.metadata, access, request);
      case "setxattr":
        return setXattr(this.metadata, access, request);
      case "removexattr":
        return removeXattr(this.metadata, access, request);
      case "totals":
        return getTotals(this.metadata, request);
      case "quotaSet":
        return setQuota(this.metadata, access, request);
      case "statfs":
        return namespace.statfs();
      case "inoRange":
        return namespace.inoRange(access);
      case "volumeCreate":
        return volumes.create(access, request);
      case "volumeList":
        return volumes.list(access);
      case "volumeInfo":
        return volumes.info(access, request);
      case "volumeRemove":
        return volumes.remove(access, request);
      case "volumeResize":
        return volumes.resize(access, request);
      case "volumeRename":
        return volumes.rename(access, request);
      case "volumeLimit":
        return volumes.limit(access, request);
      case "volumeOpen":
        return volumes.open(access, request);
      case "volumeClose":
        return volumes.close(access, request);
      case "volumeReport":
        return volumes.report(access, request);
      case "volumeTop":
        return volumes.top();
      case "lock":
      case "unlock":
      case "lockTest":
      case "lockCancel":
        return this.locks.plan(access.session, request);
      case "sync":
        return emptyPlan();
    }
  }

  private onSafe(seq: number): void {
    this.operations.onSafe(seq);
    this.purger.wake();
    for (const session of this.sessions.values()) {
      if (session.link === undefined || session.pushedSafe >= session.lastJournal) continue;
      session.pushedSafe = seq;
      session.link.post(MdsSafe, { journal: seq });
    }
  }

  /** For the check of the whole (fsck.ts), which looks at everything. */
  inside(): LeaderInside {
    const { store, objects, clock, logger, replayed } = this.parts;
    return {
      ...{ store, objects, clock, logger },
      ...{ metadata: this.metadata, loader: replayed.loader, journal: this.journal },
      ...{ operations: this.operations, capabilities: this.capabilities },
      checkpoint: () => this.checkpointer.checkpoint,
      minEpoch: () => this.fenceEpoch,
      active: () => this.active(),
      stopped: () => this.phase === "stopped",
    };
  }
  /** Begins a checkpoint and waits for its end. */
  checkpoint(): Promise<void> {
    return this.checkpointer.run();
  }
  /** People fence a client: its session ends too. */
  async fence(client: ClientId): Promise<Epoch> {
    const isOf = (session: LiveSession): boolean =>
      session.id === client || this.workerOf(session.id) === client;
    const session = [...this.sessions.values()].find(isOf);
    if (session === undefined) return this.parts.cluster.fence(client);
    await this.evict(session, "an administrator asked for it");
    return this.fenceEpoch;
  }

  status(): MdsStatus {
    let entries = 0;
    let bytes = 0;
    for (const entry of this.metadata.purges()) {
      entries++;
      bytes += Math.max(0, Math.min(entry.likely, entry.bound) - entry.from);
    }
    const silent = [...this.sessions.values()].filter((session) => this.isLapsed(session.id));
    return {
      leader: this.parts.id,
      term: this.parts.term,
      journal: this.journal.last,
      safe: this.journal.safe,
      sessions: [...this.metadata.sessions()].map((session) => ({
        id: session.id,
        type: session.type,
        host: session.host,
        pid: session.pid,
        detail: session.detail,
        instance: session.instance,
        capabilities: this.capabilities.count(session.id),
      })),
      inodes: this.metadata.counter("inodes"),
      volumes: [...this.metadata.volumes()].length,
      purgeQueue: { entries, bytes, volumes: this.volumes.purges() },
      warnings:
        silent.length === 0
          ? []
          : [
              {
                code: "MDS_CLIENT_SILENT",
                severity: "HEALTH_WARN",
                summary: `${silent.length} client(s) have not been heard of for a lease`,
                detail: silent.map((session) => `client.${session.id}`),
              },
            ],
    };
  }
}
