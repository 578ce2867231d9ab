/**
 * One metadata server: a candidate, a standby, at times the leader. It owns the order of things at
 * a take-over: the coordinator and the metadata under the new term, then the answers. All requests
 * arrive here; without leadership they fail with NotLeader.
 */
import { DssError, describeError, isDssError } from "../cluster/base/errors.js";
import { MDS_ENTITY_BASE, type Epoch, type MdsId } from "../cluster/base/ids.js";
import type { Logger } from "../cluster/base/log.js";
import { isFenced, poolNamed, type PoolEntry } from "../cluster/map/cluster-map.js";
import type { Messenger } from "../cluster/messenger/messenger.js";
import type { Clock } from "../cluster/platform/ports.js";
import { ClientIds } from "../cluster/zk/client-ids.js";
import type { Coordination } from "../cluster/zk/coordination.js";
import { Election, type Candidate, type Term } from "../cluster/zk/election.js";
import { clearFault, noteFault } from "../cluster/zk/metadata-fault.js";
import { CoordinatorHost } from "./coordinator-host.js";
import type { CoordinatorOptions, FullRatios } from "./core/coordinator.js";
import { Fsck, type ObjectLister } from "./fsck.js";
import type { PurgeLister, PurgerParts } from "./purger.js";
import { MdsLeader, type LeaderOptions } from "./leader.js";
import {
  CloseMdsSession,
  MdsAdmin,
  MdsKeepAlive,
  MdsOperation,
  MdsOperations,
  MdsPing,
  MdsReleased,
  MdsTakenOver,
  MdsClaim,
  OpenMdsSession,
  type AdminReply,
  type AdminRequest,
  type Layout,
} from "./proto.js";
import { replayMetadata } from "./replay.js";
import { TotalsService, checkDirectoryName, checkLimits } from "./totals-service.js";
import { Standby } from "./standby.js";
import type { MetadataReader, MetadataStore } from "./store/metadata-store.js";

export interface MdsDaemonOptions {
  id: MdsId;
  self: Candidate;
  clusterId: string;
  cacheBytes: number;
  leader: LeaderOptions;
  coordinator: CoordinatorOptions;
  /**
   * For so long after ZooKeeper was away, or nobody led, a missing liveness node does not make an
   * OSD dead: a session's time, in which whoever lives registers again.
   */
  livenessGraceMs: number;
  /** The pool that a new cluster begins with; files go to the pool with the lowest id. */
  pool: Omit<PoolEntry, "id">;
  /** Of the placement ring of a new cluster. */
  virtualNodes: number;
  /** Of a cluster that has no map yet. */
  ratios: FullRatios;
  /** The standby asks the leader this often; one that is silent for the grace is challenged. */
  pingMs: number;
  graceMs: number;
  /** How often OSDs repeat what they report. */
  osdHeartbeatMs: number;
  /** How often leftovers of deleted files are looked for; 0: never. */
  leftoversIntervalMs: number;
}
export interface MdsDaemonParts {
  clock: Clock;
  logger: Logger;
  coordination: Coordination;
  messenger: Messenger;
  /** Stat and removal of objects. */
  objects: PurgerParts["objects"];
  reader: MetadataReader;
  /** Writes under the term. */
  store(term: Term): MetadataStore;
  /** Does nobody listen there? Only a refused connection says so; silence does not. */
  refuses(address: { host: string; port: number }): Promise<boolean>;
  /** Bytes of the cluster, as one copy counts. */
  usage(): { total: number; available: number };
  /** Absent: fsck looks at metadata only. */
  lister: ObjectLister & PurgeLister;
  /** The process must end: replaced by a later start, or metadata that must not be used. */
  onFatal(error: Error): void;
}

interface Leading {
  term: Term;
  host?: CoordinatorHost;
  leader?: MdsLeader;
  fsck?: Fsck;
}

export class MdsDaemon {
  private readonly election: Election;
  private readonly clientIds: ClientIds;
  private standby: Standby | undefined;
  private leading: Leading | undefined;
  private following: Candidate | undefined;
  private stopped = false;

  constructor(
    private readonly parts: MdsDaemonParts,
    private readonly options: MdsDaemonOptions,
  ) {
    this.clientIds = new ClientIds(parts.coordination);
    this.election = new Election(
      parts.coordination,
      options.self,
      {
        onLeading: (term) => void this.takeOver(term),
        onFollowing: (leader) => this.follow(leader),
        onDeposed: () => this.stepDown(),
        onReplaced: () => {
          this.stepDown();
          parts.onFatal(new DssError("Conflict", `mds.${options.id} was started elsewhere`));
        },
      },
      parts.logger,
    );
  }

  /** Answers from now on and becomes a candidate. The messenger listens already. */
  start(): void {
    const { messenger } = this.parts;
    messenger.setEntity(MDS_ENTITY_BASE + this.options.id);
    messenger.handle(OpenMdsSession, (incoming) => {
      this.leader()
        .openSession(incoming.message, incoming.link)
        .then(
          (opened) => incoming.reply(opened),
          (error: unknown) => incoming.fail(error),
        );
    });
    messenger.handle(MdsClaim, (incoming) => {
      try {
        this.leader().claim(incoming.message, incoming.link);
        incoming.reply({});
      } catch (error) {
        incoming.fail(error);
      }
    });
    messenger.handle(CloseMdsSession, (incoming) => {
      this.leader()
        .closeSession(incoming.message, incoming.link)
        .then(
          () => incoming.reply({}),
          (error: unknown) => incoming.fail(error),
        );
    });
    messenger.handle(MdsTakenOver, (incoming) => {
      this.leader()
        .endTakeover(incoming.message, incoming.link)
        .then(
          (taken) => incoming.reply(taken),
          (error: unknown) => incoming.fail(error),
        );
    });
    messenger.handle(MdsOperation, (incoming) => this.leader().onOperation(incoming));
    messenger.handle(MdsOperations, (incoming) => this.leader().onOperations(incoming));
    messenger.handle(MdsKeepAlive, (incoming) => {
      incoming.reply(this.leader().keepAlive(incoming.message, incoming.link));
    });
    messenger.handlePost(MdsReleased, (message, link) => {
      this.leading?.leader?.onReleased(message, link);
    });
    messenger.handle(MdsAdmin, (incoming) => {
      this.administer(incoming.message).then(
        (reply) => incoming.reply(reply),
        (error: unknown) => incoming.fail(error),
      );
    });
    messenger.handle(MdsPing, (incoming) => {
      const term = this.leading?.leader === undefined ? 0 : this.leading.term.number;
      incoming.reply({ leading: term > 0, term });
    });
    this.beStandby();
    this.election.start();
  }

  /** Finishes the open batch, hands leadership on at once. */
  async stop(): Promise<void> {
    if (this.stopped) return;
    this.stopped = true;
    this.standby?.stop();
    const leader = this.leading?.leader;
    if (leader !== undefined) {
      await new Promise<void>((resolve) => {
        const timer = this.parts.clock.setTimer(STOP_MS, resolve);
        void leader.finish().then(() => {
          timer.cancel();
          resolve();
        });
      });
    }
    this.stepDown();
    await this.election.close();
  }

  private leader(): MdsLeader {
    const leader = this.leading?.leader;
    if (leader !== undefined) return leader;
    const who =
      this.following === undefined ? "nobody leads yet" : `mds.${this.following.id} leads`;
    throw new DssError("NotLeader", `mds.${this.options.id} does not lead: ${who}`);
  }

  private follow(leader: Candidate | undefined): void {
    this.following = leader;
    this.standby?.setLeader(leader);
  }
  private beStandby(): void {
    if (this.stopped) return;
    const { clock, logger, messenger, reader } = this.parts;
    this.standby = new Standby({
      clock,
      logger,
      messenger,
      reader,
      pingMs: this.options.pingMs,
      graceMs: this.options.graceMs,
      challenge: (leader) => this.election.challenge(leader),
    });
    this.standby.setLeader(this.following);
    this.standby.start();
  }

  private stepDown(): void {
    const { leading } = this;
    this.leading = undefined;
    leading?.leader?.stop();
    leading?.host?.stop();
    if (leading !== undefined && !this.stopped) this.beStandby();
  }

  private async takeOver(term: Term): Promise<void> {
    const { logger } = this.parts;
    const leading: Leading = { term };
    this.leading = leading;
    const tail = this.standby?.tail ?? new Map<number, Buffer>();
    this.standby?.stop();
    this.standby = undefined;
    const started = this.parts.clock.now();
    try {
      await this.lead(leading, tail);
      if (this.leading !== leading) return;
      const tookMs = Math.round(this.parts.clock.now() - started);
      logger.info({ term: term.number, tookMs }, "took over the metadata");
    } catch (error) {
      this.onFailure(leading, error);
    }
  }
  private async lead(leading: Leading, tail: ReadonlyMap<number, Buffer>): Promise<void> {
    const { parts, options } = this;
    const { clock, logger, coordination } = parts;
    const { term } = leading;
    const onFailure = (error: unknown): void => this.onFailure(leading, error);
    const store = parts.store(term);
    const hosting = CoordinatorHost.start(
      {
        ...{ coordination, term, clock, logger, onFailure },
        refuses: parts.refuses,
        heartbeatMs: options.osdHeartbeatMs,
      },
      {
        coordinator: options.coordinator,
        livenessGraceMs: options.livenessGraceMs,
        initial: {
          clusterId: options.clusterId,
          pool: options.pool,
          virtualNodes: options.virtualNodes,
          ratios: options.ratios,
        },
      },
    );
    const replaying = replayMetadata(store, { cacheBytes: options.cacheBytes, tail, logger });
    // Without its metadata this leader never begins, and its coordinator must not go on alone. Who
    // cannot even begin to coordinate says so below, where both are awaited.
    replaying.catch(() => hosting.then((host) => host.stop()).catch(() => undefined));
    const [host, replayed] = await Promise.all([hosting, replaying]);
    if (this.leading !== leading) {
      host.stop();
      return;
    }
    leading.host = host;
    await clearFault(coordination, term);
    if (this.leading !== leading) return;
    const leader = new MdsLeader({
      clock,
      logger,
      store,
      replayed,
      term: term.number,
      id: options.id,
      cluster: {
        clusterId: options.clusterId,
        epoch: () => host.map.epoch,
        fence: (client) => host.fence(client),
        isFenced: (client) => isFenced(host.map, client),
        allocateClient: () => this.clientIds.take(),
        layoutOf: (name) => layoutOf(host, name),
        usage: () => parts.usage(),
      },
      objects: parts.objects,
      lister: parts.lister,
      options: options.leader,
      onFailure,
    });
    await leader.start();
    if (this.leading !== leading) {
      leader.stop();
      return;
    }
    leading.leader = leader;
    if (options.leftoversIntervalMs > 0) this.sweepLater(leading);
  }
  private sweepLater(leading: Leading): void {
    this.parts.clock.setTimer(this.options.leftoversIntervalMs, () => {
      if (this.leading !== leading || leading.leader === undefined) return;
      this.fsck(leading.leader).sweep();
      this.sweepLater(leading);
    });
  }
  private onFailure(leading: Leading, error: unknown): void {
    const { logger, onFatal } = this.parts;
    const current = this.leading === leading;
    const served = leading.leader !== undefined;
    leading.leader?.stop();
    leading.host?.stop();
    delete leading.leader;
    delete leading.host;
    if (!current || this.stopped) return;
    logger.error({ term: leading.term.number, err: describeError(error) }, "cannot lead");
    if (isDssError(error, "Fenced")) {
      this.election.superseded(leading.term);
      return;
    }
    // The end of the ZooKeeper session is told by the election.
    if (isDssError(error, "NoSession") || isDssError(error, "ShuttingDown")) return;
    if (!served && isDssError(error) && error.retry === "same") {
      // Nothing was written under this term yet but the map, so it can begin again.
      this.parts.clock.setTimer(RETRY_MS, () => {
        if (this.leading === leading && !this.stopped) void this.takeOver(leading.term);
      });
      return;
    }
    const fatal = error instanceof Error ? error : new Error(String(error));
    const isRefused = isDssError(error, "Corrupt") || isDssError(error, "IncompatibleVersion");
    if (!isRefused) onFatal(fatal);
    else void this.noteRefusal(leading.term, fatal).then(() => onFatal(fatal));
  }
  /** For `dss status`: this process ends. */
  private async noteRefusal(term: Term, fault: Error): Promise<void> {
    const { coordination, clock, logger } = this.parts;
    const atMs = Number(clock.wallNs() / 1_000_000n);
    const note = { mds: this.options.id, message: fault.message, atMs };
    await noteFault(coordination, term, note).catch((error: unknown) => {
      logger.warn({ err: describeError(error) }, "the refusal could not be noted in ZooKeeper");
    });
  }

  private fsck(leader: MdsLeader): Fsck {
    const leading = this.leading!;
    leading.fsck ??= new Fsck(leader.inside(), this.parts.lister, leading.term.number);
    return leading.fsck;
  }
  private async administer(request: AdminRequest): Promise<AdminReply> {
    const host = this.leading?.host;
    // PGs do not wait for the metadata to be replayed.
    if (host !== undefined) {
      const epoch = await orderOfOsd(host, request);
      if (epoch !== undefined) return { epoch };
    }
    const leader = this.leader();
    if (host === undefined) throw new DssError("NotLeader", "the coordinator is not running");
    const totals = new TotalsService(leader.inside());
    switch (request.op) {
      case "status": {
        const status = leader.status();
        for (const { code, severity, summary, detail } of host.warnings()) {
          status.warnings.push({ code, severity, summary, detail: [...detail] });
        }
        return { epoch: host.map.epoch, status };
      }
      case "osdOut":
        return { epoch: await host.submit({ on: "osdOut", id: request.id }) };
      case "osdIn":
        return { epoch: await host.submit({ on: "osdIn", id: request.id }) };
      case "osdReweight":
        return {
          epoch: await host.submit({ on: "osdReweight", id: request.id, weight: request.weight }),
        };
      case "osdRemove":
        return { epoch: await host.submit({ on: "osdRemove", id: request.id }) };
      case "poolCreate":
        return { epoch: await host.submit({ on: "poolCreate", pool: request.pool }) };
      case "fence":
        return { epoch: await leader.fence(request.client) };
      case "fsck": {
        const { repair, objects } = request;
        const settings = { repair: repair === true, objects: objects === true };
        return { epoch: host.map.epoch, fsck: this.fsck(leader).start(settings) };
      }
      case "fsckStatus": {
        const { run, after } = request;
        if (!Number.isSafeInteger(after) || after < 0) {
          throw new DssError("Malformed", `findings after ${after}`);
        }
        return { epoch: host.map.epoch, fsck: this.fsck(leader).status(run, after) };
      }
      case "usage": {
        const usage = await totals.usage(checkDirectoryName(request), request.children === true);
        return { epoch: host.map.epoch, usage };
      }
      case "quotaSet": {
        const set = await totals.setQuota(checkDirectoryName(request), checkLimits(request));
        return { epoch: host.map.epoch, totals: set };
      }
      case "quotaList":
        return { epoch: host.map.epoch, quotas: await totals.quotas() };
      case "flag": {
        const { flag, isSet } = request;
        return { epoch: await host.submit({ on: "flag", flag, isSet }) };
      }
      case "workProfile": {
        const { profile } = request;
        const wanted = profile === undefined ? {} : { profile };
        return { epoch: await host.submit({ on: "workProfile", ...wanted }) };
      }
      default:
        throw new DssError("Malformed", "no such order");
    }
  }
}

/** What OSDs ask of the coordinator; undefined: it is another order. */
function orderOfOsd(host: CoordinatorHost, request: AdminRequest): Promise<Epoch> | undefined {
  switch (request.op) {
    case "removeMember": {
      const { pg, interval, requester, member } = request;
      return host.submit({ on: "removeMember", pg, interval, requester, member });
    }
    case "addMember": {
      const { pg, interval, requester, member, incarnation } = request;
      return host.submit({ on: "addMember", pg, interval, requester, member, incarnation });
    }
    case "osdUnreachable":
      return request.silent
        ? host.reportSilent(request, request.reporter)
        : host.checkUnreachable(request.id, request.incarnation);
    case "osdAlive":
      return host.reportAlive(request.id, request.incarnation);
    default:
      return undefined;
  }
}

/** A stop waits this long for the open batch. */
const STOP_MS = 2_000;
/** Pause before a take-over that ZooKeeper interrupted begins again. */
const RETRY_MS = 500;

/** undefined when there is no such pool; without a name, the pool with the lowest id. */
function layoutOf(host: CoordinatorHost, name: string | undefined): Layout | undefined {
  const { map } = host;
  const pool =
    name === undefined || name === ""
      ? [...map.pools].sort((a, b) => a.id - b.id)[0]
      : poolNamed(map, name);
  if (pool === undefined) return undefined;
  const { id, objectSize, stripeUnit, stripeCount } = pool;
  return { pool: id, objectSize, stripeUnit, stripeCount };
}
