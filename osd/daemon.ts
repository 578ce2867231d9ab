/**
 * The OSD daemon: follows the cluster map, checks fences, epochs and intervals of every message in
 * one place (`gate`), and hands it to the placement group. Runs on injected ports, so the simulator
 * runs the very same.
 *
 * Owns: the placement groups of this OSD.
 */
import { BLOCK_SIZE } from "../cluster/base/checksum.js";
import { DssError, describeError } from "../cluster/base/errors.js";
import {
  CLIENT_ID_FIRST,
  OSD_ID_MAX,
  formatPg,
  poolOfPg,
  type OsdId,
  type PgId,
} from "../cluster/base/ids.js";
import type { Logger } from "../cluster/base/log.js";
import {
  allPgs,
  hasFlag,
  osdOf,
  pgOf,
  workProfileOf,
  type ClusterMap,
  type MapSource,
  type PgEntry,
  type PoolEntry,
  type WorkProfile,
} from "../cluster/map/cluster-map.js";
import type { Incoming, Messenger, Peer } from "../cluster/messenger/messenger.js";
import type { Clock, RandomSource } from "../cluster/platform/ports.js";
import { upSet } from "../cluster/map/placement.js";
import { faults } from "../cluster/base/faults.js";
import { GrantBook } from "./core/leases.js";
import { PROFILES } from "./core/work-shares.js";
import { Fullness } from "./fullness.js";
import { Heartbeats } from "./heartbeats.js";
import { LearnerDriver } from "./learner.js";
import { LeaseKeeper } from "./lease-keeper.js";
import { MemberSide } from "./member.js";
import { Membership, type CoordinatorClient } from "./membership.js";
import { PeeringDriver } from "./peering-driver.js";
import { UNKNOWN_META } from "./pg-record.js";
import { listActive, listed, measure } from "./object-lists.js";
import { PlacementGroup, type PgHost } from "./placement-group.js";
import { Repairer } from "./repair.js";
import { ScrubMember } from "./scrub-member.js";
import { Scrubber, type ScrubOptions } from "./scrubber.js";
import {
  BlockDigests,
  CopyRead,
  DigestObject,
  GetOsdStatus,
  GrantLease,
  ListActive,
  ListObjects,
  MeasureObjects,
  ObjectExtents,
  PgAdoptLog,
  PgBackfill,
  PgGetInfo,
  PgGetLog,
  PingOsd,
  PullObject,
  PushObject,
  ReadObject,
  ReleaseLease,
  RepOp,
  ScrubEnded,
  ScrubIndex,
  ScrubList,
  ScrubObject,
  StartScrub,
  StatObject,
  WriteObject,
  type OsdDigestReply,
  type OsdExtentsReply,
  type OsdRead,
  type OsdReadReply,
  type OsdRepOp,
  type OsdStatReply,
  type OsdStatus,
  type OsdWrite,
  type OsdWriteReply,
} from "./proto.js";
import { RateMeter } from "./rate-meter.js";
import { digestOf } from "./store/block-runs.js";
import type { ChunkStore } from "./store/chunk-store.js";
import { WorkQueue } from "./work-queue.js";
import { validateRead, validateWrite } from "./write-steps.js";

export interface OsdDaemonOptions {
  id: OsdId;
  /**
   * Of this start of the daemon; the map shows it once the coordinator has seen the registration.
   */
  incarnation: string;
  version: string;
  clock: Clock;
  random: RandomSource;
  logger: Logger;
  messenger: Messenger;
  maps: MapSource;
  store: ChunkStore;
  pid: number;
  pgLogEntries: number;
  readLeaseMs: number;
  replicaTimeoutMs: number;
  heartbeatMs: number;
  heartbeatGraceMs: number;
  /** Unless the map names one for the whole cluster. */
  workProfile: WorkProfile;
  coordinator: CoordinatorClient;
  scrub?: ScrubOptions;
  /** The store failed or a promise of ours was broken: stop the process. */
  onFatal: (error: Error) => void;
}

const DAY_MS = 86_400_000;
const SCRUB_DEFAULTS: ScrubOptions = {
  lightMs: DAY_MS,
  deepMs: 7 * DAY_MS,
  max: 1,
  shownMs: DAY_MS / 24,
};
/** How long a request may wait here for a map that its sender knows already. */
const MAP_WAIT_MS = 3_000;

interface GatedMessage {
  pg: number;
  interval: number;
  minEpoch?: number;
}

export class OsdDaemon implements PgHost {
  readonly id: OsdId;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly store: ChunkStore;
  readonly pgLogEntries: number;
  readonly replicaTimeoutMs: number;
  readonly leases: LeaseKeeper;
  readonly membership: Membership;
  readonly fullness: Fullness;
  readonly repairer: Repairer;
  private readonly pgs = new Map<PgId, PlacementGroup>();
  private readonly member: MemberSide;
  private readonly peering: PeeringDriver;
  private readonly learners: LearnerDriver;
  private readonly heartbeats: Heartbeats;
  private readonly scrubMember: ScrubMember;
  private readonly scrubber: Scrubber;
  readonly work: WorkQueue;
  private readonly copiedBytes = new RateMeter();
  private readonly copiedObjects = new RateMeter();
  /** The newest map has the flag `pause`. */
  private isPaused = false;
  private fenced = new Set<number>();
  private readonly counters: Record<string, number> = {};
  private readonly startedMs: number;
  private stopMaps: (() => void) | undefined;
  /** When damage of the index was met last. */
  private structureDamageMs = -Infinity;
  private lackNoted: Promise<void> | undefined;

  constructor(private readonly options: OsdDaemonOptions) {
    this.id = options.id;
    this.clock = options.clock;
    this.logger = options.logger;
    this.store = options.store;
    this.pgLogEntries = options.pgLogEntries;
    this.replicaTimeoutMs = options.replicaTimeoutMs;
    const { clock, random, logger, maps, coordinator, messenger, id } = options;
    const { readLeaseMs: leaseMs, heartbeatMs, heartbeatGraceMs: graceMs } = options;
    const grants = new GrantBook(clock.now(), leaseMs);
    const pgs = (): Iterable<PlacementGroup> => this.pgs.values();
    this.leases = new LeaseKeeper(this, { leaseMs, maps, grants, pgs });
    const learn = (epoch: number): void => this.learn(epoch);
    this.membership = new Membership({ id, clock, random, logger, coordinator, learn });
    this.repairer = new Repairer(this);
    this.member = new MemberSide(this, grants);
    this.peering = new PeeringDriver(this, this.member, random);
    const map = (): ClusterMap => maps.current();
    this.fullness = new Fullness(
      id,
      () => this.store.usage(),
      map,
      () => clock.now(),
    );
    this.learners = new LearnerDriver(this, random, map);
    const { incarnation } = options;
    this.scrubMember = new ScrubMember(this);
    this.scrubber = new Scrubber(this, {
      options: options.scrub ?? SCRUB_DEFAULTS,
      member: this.member,
      scrubMember: this.scrubMember,
      random,
      pgs,
    });
    this.heartbeats = new Heartbeats({
      ...{ id, incarnation, clock, messenger, heartbeatMs, graceMs, map },
      report: (osd, start, silent) => this.membership.reportUnreachable(osd, start, silent),
      reportAlive: () => this.membership.reportAlive(incarnation),
      level: (osd, level) => this.fullness.report(osd, level),
    });
    this.work = new WorkQueue(clock, PROFILES[options.workProfile]);
    this.startedMs = Number(options.clock.wallNs() / 1_000_000n);
  }

  start(): void {
    this.store.onDamage(({ pg }) => {
      this.structureDamageMs = this.clock.now();
      this.pgs.get(pg)?.structureLost();
    });
    this.serve();
    this.stopMaps = this.options.maps.onChange((map) => this.onMap(map));
    this.onMap(this.options.maps.current());
    this.heartbeats.start();
    this.scrubber.start();
  }
  stop(): void {
    this.stopMaps?.();
    this.heartbeats.stop();
    this.scrubber.stop();
    for (const pg of this.pgs.values()) pg.enterInterval(pg.entry, "stray", "stopping");
  }

  // ——— PgHost ———

  peer(osd: OsdId): Peer | undefined {
    const entry = osdOf(this.options.maps.current(), osd);
    return entry === undefined ? undefined : this.options.messenger.peer(entry.address);
  }
  epoch(): number {
    return this.options.maps.current().epoch;
  }
  upSet(pg: PgId): readonly OsdId[] {
    return upSet(this.options.maps.current(), pg);
  }
  fatal(error: Error): void {
    this.options.onFatal(error);
  }
  count(counter: string, amount = 1): void {
    this.counters[counter] = (this.counters[counter] ?? 0) + amount;
  }

  copied(bytes: number): void {
    this.count("recoveryOps");
    this.count("recoveryBytes", bytes);
    const now = this.clock.now();
    this.copiedObjects.add(1, now);
    this.copiedBytes.add(bytes, now);
  }

  // ——— The map ———

  private onMap(map: ClusterMap): void {
    this.options.messenger.setEpoch(map.epoch);
    this.takeFences(map);
    this.isPaused = hasFlag(map, "pause");
    this.work.setShares(PROFILES[workProfileOf(map) ?? this.options.workProfile]);
    // Until the map shows this start of the daemon, its intervals are those of an earlier life.
    if (osdOf(map, this.id)?.incarnation !== this.options.incarnation) return;
    if (this.store.mayLackPgs) this.noteLackingPgs(map);
    for (const { pg: id, entry, pool } of allPgs(map)) {
      const pg = this.pgs.get(id);
      if (pg === undefined && !this.belongs(map, id, entry)) continue;
      if (!entry.inSync.includes(this.id) && isLeftover(map, { pg: id, entry, pool }, this.id)) {
        this.forget(id, entry);
        continue;
      }
      if (pg === undefined || pg.entry.interval !== entry.interval) {
        this.enterInterval(pg ?? this.addPg(id), entry, map);
      } else if (entry.primary === this.id) this.learners.review(pg);
    }
  }

  /**
   * The store may have lost PGs without a trace. This OSD had those of whose in-sync set it is:
   * they are made anew, as PGs of which everything is lacking, so that nobody takes them for empty
   * ones.
   */
  private noteLackingPgs(map: ClusterMap): void {
    this.structureDamageMs = this.clock.now();
    const created = [...allPgs(map)]
      .filter(({ pg, entry }) => entry.inSync.includes(this.id) && !this.store.hasPg(pg))
      .map(({ pg }) => {
        return new Promise<void>((resolve) =>
          this.store.createPg(pg, UNKNOWN_META, (error) => {
            if (error === undefined) resolve();
            else this.fatal(error); // Never resolves: the OSD stops.
          }),
        );
      });
    this.lackNoted ??= Promise.all(created)
      .then(() => this.store.lackNoted())
      .catch((error: unknown) => {
        this.fatal(error instanceof Error ? error : new Error(String(error)));
      });
  }

  /** Members, those who are to become members, and whoever still has the PG's objects. */
  private belongs(map: ClusterMap, pg: PgId, entry: PgEntry): boolean {
    if (entry.inSync.length === 0) return false;
    return (
      entry.inSync.includes(this.id) || upSet(map, pg).includes(this.id) || this.store.hasPg(pg)
    );
  }

  /** All who should have the PG have it: this copy is in nobody's way but the disk's. */
  private forget(id: PgId, entry: PgEntry): void {
    // Whatever is still going on there ends with its interval.
    this.pgs.get(id)?.enterInterval(entry, "stray", "moved away");
    this.pgs.delete(id);
    if (!this.store.hasPg(id)) return;
    this.logger.info({ pg: formatPg(id) }, "removing the copy of a pg that has moved away");
    this.count("pgsRemoved");
    this.store.removePg(id, (error) => {
      if (error !== undefined) this.fatal(error);
    });
  }

  private learn(epoch: number): void {
    const { maps } = this.options;
    if (epoch <= maps.current().epoch) return;
    maps.atLeast(epoch, MAP_WAIT_MS).catch((error: unknown) => {
      // It comes by itself when ZooKeeper can be reached.
      if (!(error instanceof DssError)) throw error;
    });
  }

  private addPg(id: PgId): PlacementGroup {
    const pg = new PlacementGroup(id, this);
    this.pgs.set(id, pg);
    return pg;
  }

  private enterInterval(pg: PlacementGroup, entry: PgEntry, map: ClusterMap): void {
    if (!entry.inSync.includes(this.id)) {
      pg.enterInterval(entry, "stray", "not in the in-sync set");
    } else if (entry.primary !== this.id) {
      pg.enterInterval(entry, "replica");
    } else {
      pg.enterInterval(entry, "peering");
      const down = entry.inSync.filter((osd) => osdOf(map, osd)?.up !== true);
      this.peering.peer(pg, down).then(
        () => this.learners.review(pg),
        (error: unknown) => this.fatal(error instanceof Error ? error : new Error(String(error))),
      );
    }
  }

  private takeFences(map: ClusterMap): void {
    for (const { client } of map.fences) {
      if (!this.fenced.has(client)) this.store.forgetClient(client);
    }
    this.fenced = new Set(map.fences.map(({ client }) => client));
  }

  // ——— Requests ———

  private serve(): void {
    const { messenger } = this.options;
    messenger.handle(WriteObject, (request) => {
      const { message } = request;
      validateWrite(message, request.data.length);
      this.checkClient(message.client, request.sender);
      if (this.work.contended) this.work.admit(request, message.length, this.runWrite);
      else this.runWrite(request);
    });
    messenger.handle(ReadObject, (request) => {
      this.readGate(request, runRead, request.message.length);
    });
    messenger.handle(StatObject, (request) => {
      this.readGate(request, runStat);
    });
    messenger.handle(ObjectExtents, (request) => {
      this.readGate(request, runExtents);
    });
    messenger.handle(RepOp, (request) => {
      this.fromOsd(request.sender);
      if (this.work.contended) this.work.admit(request, request.data.length, this.runRepOp, false);
      else this.runRepOp(request);
    });
    messenger.handle(PgGetInfo, (request) => {
      this.memberGate(request, (pg) => this.member.getInfo(pg, request));
    });
    messenger.handle(PgGetLog, (request) => {
      this.memberGate(request, () => this.member.getLog(request));
    });
    messenger.handle(PgAdoptLog, (request) => {
      this.memberGate(request, (pg) => this.member.adoptLog(pg, request));
    });
    messenger.handle(PgBackfill, (request) => {
      this.memberGate(request, (pg) => this.member.backfill(pg, request));
    });
    messenger.handle(BlockDigests, (request) => {
      this.memberGate(request, (pg) => this.member.digests(pg, request));
    });
    messenger.handle(PushObject, (request) => {
      this.memberGate(request, (pg) => this.member.pushed(pg, request));
    });
    messenger.handle(PullObject, (request) => {
      this.memberGate(request, (pg) => this.member.pulled(pg, request));
    });
    messenger.handle(CopyRead, (request) => {
      this.memberGate(request, () => this.repairer.copyRead(request));
    });
    this.serveScrub();
    messenger.handle(GrantLease, (request) => {
      this.fromOsd(request.sender);
      this.leases.grant(request);
    });
    messenger.handle(ReleaseLease, (request) => {
      this.fromOsd(request.sender);
      this.release(request);
    });
    messenger.handle(PingOsd, (request) => request.reply(this.fullness.own()));
    messenger.handle(DigestObject, (request) => this.digest(request));
    messenger.handle(ListObjects, (request) => {
      const { pg, after, limit } = request.message;
      request.reply(this.store.hasPg(pg) ? listed(this.store, pg, after, limit) : { objects: [] });
    });
    messenger.handle(ListActive, (request) => {
      this.gate(request, (pg) => listActive(pg, this, request));
    });
    messenger.handle(MeasureObjects, (request) => {
      this.gate(request, (pg) => measure(pg, this, request));
    });
    messenger.handle(GetOsdStatus, (request) => request.reply(this.status()));
  }

  private serveScrub(): void {
    const { messenger } = this.options;
    messenger.handle(ScrubList, (request) => {
      this.memberGate(request, (pg) => this.scrubMember.listed(pg, request));
    });
    messenger.handle(ScrubObject, (request) => {
      this.memberGate(request, (pg) => this.scrubMember.examined(pg, request));
    });
    messenger.handle(ScrubIndex, (request) => {
      this.memberGate(request, (pg) => this.scrubMember.indexed(pg, request));
    });
    messenger.handle(ScrubEnded, (request) => {
      this.memberGate(request, (pg) => this.scrubMember.ended(pg, request));
    });
    messenger.handle(StartScrub, (request) => {
      const { pg, deep } = request.message;
      request.reply({ sinceMs: this.startScrub(pg, deep) });
    });
  }
  /** Milliseconds since 1970: the scrub is done when the PG's stamp is as new. */
  startScrub(id: PgId, deep: boolean): number {
    const pg = this.pgs.get(id);
    if (pg !== undefined) return this.scrubber.request(pg, deep);
    const text = `osd.${this.id} does not have pg ${formatPg(id)}`;
    throw new DssError("NotPrimary", text, { epoch: this.epoch() });
  }

  private readonly runWrite = (request: Incoming<OsdWrite, OsdWriteReply>): void => {
    this.gate(request, (pg) => pg.write(request));
  };
  private readonly runRepOp = (request: Incoming<OsdRepOp, Record<never, never>>): void => {
    this.gate(request, (pg) => pg.repOp(request));
  };

  private release(request: Incoming<{ pg: number; interval: number }, unknown>): void {
    const { maps } = this.options;
    const { pg: id, interval } = request.message;
    if (interval > maps.current().epoch) {
      maps.atLeast(interval, MAP_WAIT_MS).then(
        () => this.release(request),
        (error: unknown) => request.fail(error),
      );
      return;
    }
    const pg = this.pgs.get(id);
    if (pg === undefined || pg.entry.interval >= interval) request.reply({});
    else request.fail(new DssError("NotActive", `pg ${formatPg(id)} is in an earlier interval`));
  }

  private checkClient(client: number, sender: number): void {
    if (client !== sender || client <= OSD_ID_MAX) {
      throw new DssError("Malformed", `request of client ${client} came from ${sender}`);
    }
  }

  private readGate<Reply>(
    request: Incoming<OsdRead, Reply>,
    run: (pg: PlacementGroup, request: Incoming<OsdRead, Reply>) => void,
    bytes = 0,
  ): void {
    validateRead(request.message);
    this.checkClient(request.message.client, request.sender);
    if (!this.work.contended) return this.gate(request, (pg) => run(pg, request));
    this.work.admit(request, bytes, (counted) => this.gate(counted, (pg) => run(pg, counted)));
  }

  /** Members talk to members only. */
  private memberGate<M extends GatedMessage, Reply>(
    request: Incoming<M, Reply>,
    run: (pg: PlacementGroup) => void,
  ): void {
    this.fromOsd(request.sender);
    this.gate(request, run);
  }
  private fromOsd(sender: number): void {
    if (sender > OSD_ID_MAX) throw new DssError("Malformed", `${sender} is not an OSD`);
  }

  /**
   * The one place where a message meets the map: older intervals are refused unexecuted, newer ones
   * and unseen fences make this OSD fetch the map first (design §4).
   */
  private gate<M extends GatedMessage, Reply>(
    request: Incoming<M, Reply>,
    run: (pg: PlacementGroup) => void,
  ): void {
    const { message, sender } = request;
    const map = this.options.maps.current();
    const entry = pgOf(map, message.pg);
    const needed = Math.max(
      message.minEpoch ?? 0,
      entry === undefined || message.interval > entry.interval ? message.interval : 0,
    );
    if (needed > map.epoch) {
      this.options.maps.atLeast(needed, MAP_WAIT_MS).then(
        () => {
          try {
            this.gate(request, run);
          } catch (error) {
            request.fail(error);
          }
        },
        (error: unknown) => request.fail(error),
      );
      return;
    }
    if (sender >= CLIENT_ID_FIRST && this.fenced.has(sender)) {
      throw new DssError("Fenced", `client.${sender} is fenced`, { epoch: map.epoch });
    }
    if (this.isPaused && sender >= CLIENT_ID_FIRST) {
      throw new DssError("NotActive", "the cluster is paused", { epoch: map.epoch });
    }
    if (entry === undefined) {
      throw new DssError("NotFound", `there is no pg ${formatPg(message.pg)}`);
    }
    const pg = this.pgs.get(message.pg);
    if (pg === undefined || pg.entry.interval !== entry.interval) {
      const text = `osd.${this.id} has not taken up pg ${formatPg(message.pg)} in this interval`;
      throw new DssError(entry.inSync.includes(this.id) ? "NotActive" : "NotPrimary", text, {
        epoch: map.epoch,
      });
    }
    if (message.interval !== entry.interval && !faults.skipIntervalCheck) {
      throw new DssError("StaleEpoch", `pg ${formatPg(message.pg)} has a newer interval`, {
        epoch: map.epoch,
      });
    }
    run(pg);
  }

  private digest(request: Incoming<{ pg: number; object: string }, OsdDigestReply>): void {
    const { pg, object } = request.message;
    const none = { exists: false, size: 0, versionInterval: 0, versionSeq: 0, digest: 0 };
    if (!this.store.hasPg(pg)) {
      request.reply({ ...none, allocated: 0 });
      return;
    }
    this.store.image(pg, object).then(
      (image) => {
        if (image === undefined) {
          request.reply({ ...none, allocated: 0 });
          return;
        }
        const digest = digestOf(
          image.extents.flatMap(({ offset, sums }) =>
            Array.from(sums, (sum, i) => ({ at: offset / BLOCK_SIZE + i, sum })),
          ),
        );
        const { size, version, allocated } = image.info;
        request.reply({
          exists: true,
          size,
          versionInterval: version.interval,
          versionSeq: version.seq,
          digest,
          allocated,
        });
      },
      (error: unknown) => request.fail(error),
    );
  }

  status(): OsdStatus {
    const { used, total, objects } = this.store.usage();
    const map = this.options.maps.current();
    return {
      id: this.id,
      uuid: this.store.uuid,
      version: this.options.version,
      pid: this.options.pid,
      epoch: map.epoch,
      startedMs: this.startedMs,
      used,
      total,
      objects,
      refusing: this.fullness.refusing(),
      pgs: [...this.pgs.values()]
        .filter((pg) => map.pools.some((pool) => pool.id === poolOfPg(pg.id)))
        .map((pg) => {
          const info = this.store.pgInfo(pg.id);
          return {
            pg: pg.id,
            state: pg.activity,
            interval: pg.entry.interval,
            objects: info?.objects ?? 0,
            bytes: info?.bytes ?? 0,
            reason: pg.reason,
            learners: this.learners.status(pg),
            damaged: pg.damage.count,
            damagedObjects: pg.damage.shown(),
            ...(pg.entry.primary === this.id && { scrub: this.scrubber.status(pg) }),
          };
        }),
      recovery: {
        bytesPerSecond: Math.round(this.copiedBytes.perSecond(this.clock.now())),
        objectsPerSecond: Math.round(this.copiedObjects.perSecond(this.clock.now()) * 10) / 10,
      },
      counters: {
        ...this.counters,
        ...this.store.counters(),
        // Work (bytes and a part for each piece) done while not only clients wanted to work.
        sharedClientWork: this.work.done.client,
        sharedRecoveryWork: this.work.done.recovery,
        sharedScrubWork: this.work.done.scrub,
      },
      ...this.damageSeen(),
    };
  }

  private damageSeen(): { damageSeenMs?: number } {
    let seenMs = this.structureDamageMs;
    for (const pg of this.pgs.values()) seenMs = Math.max(seenMs, pg.damage.lastSeenMs);
    const agoMs = this.clock.now() - seenMs;
    const { shownMs } = this.options.scrub ?? SCRUB_DEFAULTS;
    return agoMs <= shownMs ? { damageSeenMs: Math.floor(agoMs) } : {};
  }
}

const runRead = (pg: PlacementGroup, request: Incoming<OsdRead, OsdReadReply>): void => {
  pg.read(request);
};
const runStat = (pg: PlacementGroup, request: Incoming<OsdRead, OsdStatReply>): void => {
  pg.stat(request);
};
const runExtents = (pg: PlacementGroup, request: Incoming<OsdRead, OsdExtentsReply>): void => {
  pg.extents(request);
};

/** Is the PG complete where it belongs, and this OSD not one of those? */
function isLeftover(
  map: ClusterMap,
  { pg, entry, pool }: { pg: PgId; entry: PgEntry; pool: PoolEntry },
  id: OsdId,
): boolean {
  const wanted = upSet(map, pg);
  if (wanted.includes(id) || wanted.length < pool.replicas) return false;
  return wanted.every((osd) => entry.inSync.includes(osd) && osdOf(map, osd)?.up === true);
}

/** The last words of a daemon whose disk failed. */
export function describeFatal(error: Error): string {
  return `the chunk store failed, the OSD stops: ${describeError(error)}`;
}
