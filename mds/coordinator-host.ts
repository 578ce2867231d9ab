/**
 * Runs the coordinator (core/coordinator.ts) while this MDS leads: liveness and orders go in, maps
 * go to ZooKeeper under the term. One proposal is on its way at a time; what comes meanwhile makes
 * the next. After a failed write the map is read back first.
 */
import { DssError, describeError, isDssError } from "../cluster/base/errors.js";
import type { ClientId, Epoch, OsdId } from "../cluster/base/ids.js";
import type { Logger } from "../cluster/base/log.js";
import { isFenced, osdOf, type ClusterMap } from "../cluster/map/cluster-map.js";
import type { OsdInfo } from "../cluster/map/daemon-info.js";
import type { HealthCheck } from "../cluster/map/health.js";
import type { Clock, Timer } from "../cluster/platform/ports.js";
import type { Coordination } from "../cluster/zk/coordination.js";
import type { Term } from "../cluster/zk/election.js";
import { watchLiveOsds } from "../cluster/zk/registration.js";
import type { Watch } from "../cluster/zk/watch.js";
import {
  Coordinator,
  initialMap,
  livenessEvents,
  type CoordinatorEvent,
  type CoordinatorOptions,
  type InitialOptions,
} from "./core/coordinator.js";
import { LivenessGrace } from "./core/liveness.js";
import { SilenceBook } from "./core/silence.js";
import { NO_MAP, loadMap, saveMap, type StoredMap } from "./store/map-store.js";

const DUE_MS = 1_000;
const RETRY_MS = 200;

interface Order {
  event: CoordinatorEvent;
  resolve(epoch: Epoch): void;
  reject(error: unknown): void;
}

export class CoordinatorHost {
  private orders: Order[] = [];
  private live: OsdInfo[] | undefined;
  /**
   * Incarnations that refused connections although their znodes are still there: ZooKeeper notices
   * seconds later.
   */
  private readonly dead = new Map<OsdId, OsdInfo>();
  private readonly silence: SilenceBook;
  private readonly grace: LivenessGrace;
  /** Incarnations whose missing node is being looked into. */
  private readonly probing = new Set<string>();
  private running = false;
  /** Something happened since the proposal on its way was made. */
  private isDirty = false;
  private stopped = false;
  private watch: Watch | undefined;
  private unsubscribe: (() => void) | undefined;
  private timer: Timer | undefined;

  private constructor(
    private readonly parts: {
      coordination: Coordination;
      term: Term;
      clock: Clock;
      logger: Logger;
      onFailure: (error: unknown) => void;
      /** Does nobody listen there? */
      refuses: (address: { host: string; port: number }) => Promise<boolean>;
      /** How often OSDs repeat what they report. */
      heartbeatMs: number;
    },
    private readonly coordinator: Coordinator,
    private stored: StoredMap,
    graceMs: number,
  ) {
    this.silence = new SilenceBook(parts.heartbeatMs);
    this.grace = new LivenessGrace(graceMs);
  }

  /** Reads the map, or makes the first one. Fails with Fenced, Corrupt, or as ZooKeeper does. */
  static async start(
    parts: CoordinatorHost["parts"],
    options: {
      coordinator: CoordinatorOptions;
      initial: InitialOptions;
      /** See LivenessGrace. */
      livenessGraceMs: number;
    },
  ): Promise<CoordinatorHost> {
    const { coordination, term, clock, logger } = parts;
    let stored = await loadMap(coordination);
    if (stored === undefined) {
      const first: StoredMap = { map: initialMap(options.initial), version: NO_MAP };
      const version = await saveMap(coordination, term, first);
      stored = { map: first.map, version };
      logger.info({ clusterId: first.map.clusterId }, "made the first cluster map");
    }
    const coordinator = new Coordinator(stored.map, options.coordinator);
    const host = new CoordinatorHost(parts, coordinator, stored, options.livenessGraceMs);
    // Before the watch reads anything under a new connection.
    host.unsubscribe = coordination.onEvent((event) => {
      if (event === "connected") host.grace.begin(clock.now());
    });
    host.grace.begin(clock.now());
    host.watch = watchLiveOsds(coordination, logger, (infos) => {
      host.live = infos;
      host.silence.onLive(infos);
      host.kick();
    });
    host.onDue();
    return host;
  }

  get map(): ClusterMap {
    return this.coordinator.map;
  }
  warnings(): HealthCheck[] {
    return [...this.coordinator.warnings(), ...this.silence.warnings(this.parts.clock.now())];
  }
  /**
   * Resolves with the epoch in which the event has taken effect; fails as the coordinator refuses
   * it.
   */
  submit(event: CoordinatorEvent): Promise<Epoch> {
    if (this.stopped) return Promise.reject(notLeading());
    return new Promise((resolve, reject) => {
      this.orders.push({ event, resolve, reject });
      this.kick();
    });
  }
  async fence(client: ClientId): Promise<Epoch> {
    // Already fenced: the fence's own epoch is old, but the map at hand shows it.
    if (isFenced(this.map, client)) return this.map.epoch;
    return this.submit({ on: "fence", client });
  }
  /**
   * Someone cannot reach the OSD: if it refuses us as well its process is gone. Resolves with the
   * epoch that shows it.
   */
  async checkUnreachable(id: OsdId, incarnation: string): Promise<Epoch> {
    const info = this.live?.find((one) => one.id === id && one.incarnation === incarnation);
    const isUp = osdOf(this.map, id)?.up === true;
    // One whose node is missing is looked into anyhow.
    if (info === undefined || !isUp || this.dead.get(id) === info) return this.map.epoch;
    if (!(await this.parts.refuses(info.address))) return this.map.epoch;
    this.parts.logger.warn({ osd: id, incarnation }, "the OSD refuses connections: it is down");
    this.dead.set(id, info);
    return this.submit({ on: "osdGone", id, incarnation });
  }
  /** An OSD cannot hear another one. Resolves with the epoch that shows what comes of it. */
  async reportSilent(osd: { id: OsdId; incarnation: string }, reporter: OsdId): Promise<Epoch> {
    const { clock, logger } = this.parts;
    this.silence.report(osd, reporter, clock.now());
    const found = this.silence.judge(this.map, clock.now());
    for (const { id, incarnation, reporters } of found) {
      logger.warn({ osd: id, incarnation, reporters }, "most of its peers cannot hear the OSD");
    }
    const gone = found.map(({ id, incarnation }) =>
      this.submit({ on: "osdGone", id, incarnation }),
    );
    return Math.max(this.map.epoch, ...(await Promise.all(gone)));
  }
  /** An OSD that is shown as down hears its peers. */
  async reportAlive(id: OsdId, incarnation: string): Promise<Epoch> {
    if (this.silence.alive(id, incarnation, this.parts.clock.now())) this.kick();
    return this.map.epoch;
  }
  /**
   * A daemon that can be reached after all is alive; a znode that is gone or replaced needs no
   * remark.
   */
  private async reviewDead(): Promise<void> {
    for (const [id, info] of this.dead) {
      const { incarnation } = info;
      const isThere = this.live?.some((one) => one.id === id && one.incarnation === incarnation);
      if (isThere && (await this.parts.refuses(info.address))) continue;
      this.dead.delete(id);
      this.kick();
    }
  }

  /**
   * While missing nodes say nothing: those of the missing whose addresses refuse connections are
   * gone all the same.
   */
  private async probe(id: OsdId, incarnation: string): Promise<void> {
    const osd = osdOf(this.map, id);
    if (osd?.incarnation !== incarnation || this.probing.has(incarnation)) return;
    this.probing.add(incarnation);
    try {
      if (!(await this.parts.refuses(osd.address))) return;
      this.parts.logger.warn({ osd: id, incarnation }, "no node and no connection: it is down");
      this.grace.refused(osd);
      this.kick();
    } finally {
      this.probing.delete(incarnation);
    }
  }
  /** May the OSD whose node is missing, or whose address refuses, be declared down? */
  private isGone(id: OsdId, incarnation: string): boolean {
    if (this.dead.get(id)?.incarnation === incarnation) return true;
    // Another store or a later start has its place.
    if (this.live?.some((one) => one.id === id)) return true;
    if (this.grace.isGone({ id, incarnation }, this.parts.clock.now())) return true;
    this.probe(id, incarnation).catch((error: unknown) => this.parts.onFailure(error));
    return false;
  }

  stop(): void {
    this.stopped = true;
    this.watch?.stop();
    this.unsubscribe?.();
    this.timer?.cancel();
    for (const order of this.orders.splice(0)) order.reject(notLeading());
  }

  private onDue(): void {
    if (this.stopped) return;
    this.kick();
    if (this.dead.size > 0) {
      this.reviewDead().catch((error: unknown) => this.parts.onFailure(error));
    }
    this.timer = this.parts.clock.setTimer(DUE_MS, () => this.onDue());
  }
  private kick(): void {
    this.isDirty = true;
    if (this.running || this.stopped) return;
    this.running = true;
    this.parts.clock.defer(() => {
      this.isDirty = false;
      void this.run().finally(() => {
        this.running = false;
        if (this.isDirty) this.kick();
      });
    });
  }
  private async run(): Promise<void> {
    const orders = this.orders;
    this.orders = [];
    try {
      while (!this.stopped && !(await this.propose(orders))) {
        await new Promise<void>((resolve) => void this.parts.clock.setTimer(RETRY_MS, resolve));
      }
      if (this.stopped) throw notLeading();
    } catch (error) {
      for (const order of orders) order.reject(error);
      if (!this.stopped) this.parts.onFailure(error);
    }
  }

  /** False: the map was read back after a failed write; propose again. */
  private async propose(orders: readonly Order[]): Promise<boolean> {
    const { coordination, term, clock, logger } = this.parts;
    const isDead = (one: OsdInfo): boolean =>
      this.dead.get(one.id)?.incarnation === one.incarnation || this.silence.isSilent(one);
    const alive = this.live?.filter((one) => !isDead(one));
    const changes = alive === undefined ? [] : livenessEvents(this.map, alive);
    const liveness = changes.filter(
      (event) => event.on !== "osdGone" || this.isGone(event.id, event.incarnation),
    );
    const events = [...liveness, ...orders.map((order) => order.event)];
    const { map, outcomes } = this.coordinator.propose(events, Number(clock.wallNs() / 1_000_000n));
    if (map !== this.map) {
      try {
        const version = await saveMap(coordination, term, { map, version: this.stored.version });
        this.stored = { map, version };
      } catch (error) {
        if (!isDssError(error) || error.code === "Fenced") throw error;
        if (error.retry !== "same" && error.code !== "Conflict") throw error;
        logger.warn({ err: describeError(error) }, "the cluster map could not be written yet");
        const stored = await loadMap(coordination).catch(() => undefined);
        if (stored !== undefined) {
          this.stored = stored;
          this.coordinator.committed(stored.map);
        }
        return false;
      }
      this.coordinator.committed(map);
      logger.info({ epoch: map.epoch, events: events.map((event) => event.on) }, "new cluster map");
    }
    orders.forEach((order, index) => {
      const outcome = outcomes[liveness.length + index];
      if (outcome === undefined) order.resolve(this.map.epoch);
      else order.reject(outcome);
    });
    return true;
  }
}

function notLeading(): DssError {
  return new DssError("NotLeader", "this metadata server no longer leads");
}
