/**
 * A simulated cluster of OSDs and clients: the real daemons, messenger, objecter and file store on
 * a simulated clock, network and disk. The map is decided by the real coordinator. ZooKeeper and
 * the MDS are modelled as one host, "zk", that never fails but can be cut off: maps reach each host
 * after a seeded delay, a host that is dead, frozen or cut off for the session's time is reported
 * gone, and the answers to what OSDs ask of the coordinator may be lost.
 */
import { DssError } from "../../cluster/base/errors.js";
import { CLIENT_ID_FIRST, type Epoch, type OsdId } from "../../cluster/base/ids.js";
import { silentLogger, type Logger } from "../../cluster/base/log.js";
import { Prng } from "../../cluster/base/prng.js";
import { allPgs, osdOf, type ClusterMap, type MapSource } from "../../cluster/map/cluster-map.js";
import { RpcMessenger } from "../../cluster/messenger/rpc.js";
import type { Clock, Disk } from "../../cluster/platform/ports.js";
import type { OsdInfo } from "../../cluster/map/daemon-info.js";
import { upSet } from "../../cluster/map/placement.js";
import { Coordinator, COORDINATOR_DEFAULTS, initialMap } from "../../mds/core/coordinator.js";
import type { CoordinatorEvent } from "../../mds/core/coordinator.js";
import type { CoordinatorClient } from "../../osd/membership.js";
import { Objecter } from "../../osd/client/objecter.js";
import { OsdDaemon } from "../../osd/daemon.js";
import type { ChunkStore } from "../../osd/store/chunk-store.js";
import { SimClock } from "./sim-clock.js";
import { SimHost, SimNetwork } from "./sim-network.js";

/** The disk under one OSD, kept across its crashes. */
export interface StoreOnDisk {
  open(clock: Clock): Promise<ChunkStore>;
  /** Power is cut: unsynced writes are lost or torn. */
  crash(): void;
}
export type DiskFactory = (osd: OsdId, random: Prng, clock: SimClock) => StoreOnDisk;
export type { Disk };

export interface WorldOptions {
  seed: number;
  osds: number;
  replicas: number;
  pgCount: number;
  disk: DiskFactory;
  minimum?: number;
  settings?: Partial<WorldSettings>;
  logger?: Logger;
}
export interface WorldSettings {
  readLeaseMs: number;
  replicaTimeoutMs: number;
  heartbeatMs: number;
  heartbeatGraceMs: number;
  zkSessionMs: number;
  downOutMs: number;
  pgLogEntries: number;
  /** Probability that the answer of the coordinator is lost. */
  lostAnswers: number;
}
const SETTINGS: WorldSettings = {
  readLeaseMs: 1_000,
  replicaTimeoutMs: 3_000,
  heartbeatMs: 1_000,
  heartbeatGraceMs: 5_000,
  zkSessionMs: 6_000,
  downOutMs: 60_000,
  pgLogEntries: 200,
  lostAnswers: 0.1,
};
/** The host that stands for ZooKeeper and the MDS leader, in partitions. */
export const ZK = "zk";

/** The map as one host has seen it. */
class HostMaps implements MapSource {
  private readonly listeners = new Set<(map: ClusterMap) => void>();

  constructor(
    private map: ClusterMap,
    private readonly clock: Clock,
    /** Undefined while the host cannot reach ZooKeeper. */
    private readonly newest: () => ClusterMap | undefined,
  ) {}
  current(): ClusterMap {
    return this.map;
  }
  onChange(listener: (map: ClusterMap) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }
  async atLeast(epoch: Epoch, deadlineMs: number): Promise<ClusterMap> {
    await new Promise<void>((resolve) => void this.clock.setTimer(2, resolve));
    const newest = this.newest();
    if (newest !== undefined) this.learn(newest);
    if (this.map.epoch < epoch) {
      const rest = Math.max(deadlineMs - 2, 0);
      await new Promise<void>((resolve) => void this.clock.setTimer(rest, resolve));
    }
    if (this.map.epoch < epoch) {
      throw new DssError("TimedOut", `no map ${epoch} within ${deadlineMs} ms`);
    }
    return this.map;
  }
  learn(map: ClusterMap): void {
    if (map.epoch <= this.map.epoch) return;
    this.map = map;
    for (const listener of [...this.listeners]) listener(map);
  }
}

interface RunningOsd {
  info: OsdInfo;
  host: SimHost;
  maps: HostMaps;
  daemon: OsdDaemon;
  store: ChunkStore;
}
export interface SimClient {
  id: number;
  host: SimHost;
  maps: HostMaps;
  objecter: Objecter;
}

export class OsdWorld {
  readonly clock = new SimClock();
  readonly random: Prng;
  readonly network: SimNetwork;
  readonly running = new Map<OsdId, RunningOsd>();
  readonly clients = new Map<number, SimClient>();
  readonly fatal: Error[] = [];
  /** For scenarios that strike when the map changes. */
  onMap: (before: ClusterMap, after: ClusterMap) => void = () => undefined;
  private readonly disks = new Map<OsdId, StoreOnDisk>();
  private readonly coordinator: Coordinator;
  private readonly logger: Logger;
  private readonly settings: WorldSettings;
  private incarnations = 0;
  private nextClient = CLIENT_ID_FIRST;

  constructor(options: WorldOptions) {
    this.random = new Prng(options.seed);
    this.network = new SimNetwork(this.clock, this.random.fork());
    this.logger = options.logger ?? silentLogger;
    this.settings = { ...SETTINGS, ...options.settings };
    const pool = {
      name: "data",
      replicas: options.replicas,
      minimum: options.minimum ?? Math.min(2, options.replicas),
      pgCount: options.pgCount,
      objectSize: 4 * 1024 * 1024,
      stripeUnit: 4 * 1024 * 1024,
      stripeCount: 1,
    };
    const map = initialMap({ clusterId: `sim-${options.seed}`, pool, virtualNodes: 100 });
    this.coordinator = new Coordinator(map, {
      ...COORDINATOR_DEFAULTS,
      expectedOsds: options.osds,
      downOutIntervalMs: this.settings.downOutMs,
    });
    for (let id = 0; id < options.osds; id++) {
      this.disks.set(id, options.disk(id, this.random.fork(), this.clock));
    }
    this.tick();
  }

  get map(): ClusterMap {
    return this.coordinator.map;
  }

  // ——— Hosts ———

  async startOsd(id: OsdId): Promise<void> {
    const host = new SimHost(`osd.${id}`, this.network);
    const clock = this.clock.forNode(
      () => host.alive,
      (work) => host.run(work),
    );
    const store = await this.disks.get(id)!.open(clock);
    const incarnation = `life-${++this.incarnations}`;
    const maps = new HostMaps(this.map, clock, () => this.mapFor(host));
    const random = this.nodeRandom();
    const messenger = new RpcMessenger({
      clock,
      network: host,
      random,
      logger: this.logger.child({ host: host.name }),
      entity: id,
      role: "osd",
      clusterId: () => this.map.clusterId,
    });
    const address = { host: `10.0.0.${id + 1}`, port: 9100 };
    await messenger.listen(address);
    const daemon = new OsdDaemon({
      id,
      incarnation,
      version: "sim",
      clock,
      random,
      logger: this.logger.child({ host: host.name }),
      messenger,
      maps,
      store,
      pid: 1,
      ...this.settings,
      coordinator: this.coordinatorFor(host),
      onFatal: (error) => {
        if (host.alive) this.fatal.push(error);
      },
    });
    const identity = { id, uuid: store.uuid, host: host.name, address, incarnation };
    const info = { ...identity, weight: 1, capacity: 0, pid: 1 };
    this.running.set(id, { info, host, maps, daemon, store });
    daemon.start();
    this.coordinate([{ on: "osdRegistered", info }]);
  }

  /** As `kill -9` with a power cut: what was not synced may be gone. */
  crashOsd(id: OsdId): void {
    const osd = this.running.get(id);
    if (osd === undefined) return;
    osd.host.crash();
    this.disks.get(id)!.crash();
    this.running.delete(id);
    this.expireSession(osd);
  }
  /**
   * The disk is gone with all that was on it; another of the same kind takes its place under no
   * name.
   */
  destroyOsd(id: OsdId): void {
    this.crashOsd(id);
    this.disks.delete(id);
  }
  /** As SIGSTOP for `ms`. */
  freezeOsd(id: OsdId, ms: number): void {
    const osd = this.running.get(id);
    if (osd === undefined || osd.host.frozen) return;
    osd.host.freeze();
    this.expireSession(osd);
    this.clock.schedule(ms, () => {
      osd.host.thaw();
      this.register(osd);
    });
  }
  freezeClient(client: SimClient, ms: number): void {
    client.host.freeze();
    this.clock.schedule(ms, () => {
      client.host.thaw();
      this.sendMap(client);
    });
  }
  /** Nothing goes between the host and `other` (a host's name, or ZK), or only one way. */
  cut(name: string, other: string, ms: number, ways: "both" | "from" | "to"): void {
    const undo = [
      ...(ways === "to" ? [] : [this.network.partition(name, other)]),
      ...(ways === "from" ? [] : [this.network.partition(other, name)]),
    ];
    const hosts = [...this.running.values()].filter(({ host }) => host.name === name);
    if (other === ZK) for (const osd of hosts) this.expireSession(osd);
    this.clock.schedule(ms, () => {
      for (const heal of undo) heal();
      if (other !== ZK) return;
      for (const osd of this.running.values()) if (osd.host.name === name) this.register(osd);
      for (const node of [...this.running.values(), ...this.clients.values()]) {
        if (node.host.name === name) this.sendMap(node);
      }
    });
  }

  // ——— What ZooKeeper and the MDS do ———

  private tick(): void {
    this.clock.schedule(1_000, () => {
      this.coordinate([]);
      this.tick();
    });
  }
  private canReach(host: SimHost): boolean {
    return host.alive && !this.network.isCut(host.name, ZK) && !this.network.isCut(ZK, host.name);
  }
  private isLive(osd: RunningOsd): boolean {
    return this.canReach(osd.host) && !osd.host.frozen;
  }
  private mapFor(host: SimHost): ClusterMap | undefined {
    return this.canReach(host) ? this.map : undefined;
  }

  /** The session ends if the host has still not come back then. */
  private expireSession(osd: RunningOsd): void {
    const { id, incarnation } = osd.info;
    this.clock.schedule(this.settings.zkSessionMs, () => {
      if (!this.isLive(osd)) this.coordinate([{ on: "osdGone", id, incarnation }]);
    });
  }
  /** A daemon that lost its session makes its znode again. */
  private register(osd: RunningOsd): void {
    this.clock.schedule(this.network.delay() * 5, () => {
      const { info } = osd;
      if (!this.isLive(osd) || this.running.get(info.id) !== osd) return;
      this.sendMap(osd);
      if (osdOf(this.map, info.id)?.up !== true) this.coordinate([{ on: "osdRegistered", info }]);
    });
  }

  private coordinatorFor(host: SimHost): CoordinatorClient {
    const ask = (event: () => CoordinatorEvent | undefined): Promise<Epoch> =>
      new Promise((resolve, reject) => {
        const answer = (give: () => void): void => {
          const isLost = !this.canReach(host) || this.random.chance(this.settings.lostAnswers);
          const timedOut = new DssError("TimedOut", "the coordinator did not answer");
          this.clock.schedule(isLost ? 2_000 : this.network.delay() * 3, () => {
            host.run(isLost ? () => reject(timedOut) : give);
          });
        };
        // What was sent may arrive long after, and after the asker has died.
        const isSent = this.canReach(host);
        const busyMs = this.random.chance(0.2) ? this.random.float() * 1_000 : 0;
        this.clock.schedule(this.network.delay() * 3 + busyMs, () => {
          if (!isSent) return answer(() => undefined);
          const question = event();
          const refusal = question === undefined ? undefined : this.coordinate([question])[0];
          const { epoch } = this.map;
          answer(() => (refusal === undefined ? resolve(epoch) : reject(refusal)));
        });
      });
    return {
      removeMember: (request) => ask(() => ({ on: "removeMember", ...request })),
      addMember: (request) => ask(() => ({ on: "addMember", ...request })),
      reportUnreachable: async ({ id, incarnation, silent }) => {
        // Who is silent is found out by lost liveness alone in this world.
        if (silent) return;
        await ask(() => {
          // The coordinator tries to connect: only who is dead refuses.
          const osd = this.running.get(id);
          const refuses = osd === undefined || osd.info.incarnation !== incarnation;
          return refuses ? { on: "osdGone", id, incarnation } : undefined;
        });
      },
      reportAlive: () => Promise.resolve(),
    };
  }

  private sendMap({ host, maps }: { host: SimHost; maps: HostMaps }): void {
    const { map } = this;
    this.clock.schedule(this.network.delay() * 5, () => {
      if (this.canReach(host)) host.run(() => maps.learn(map));
    });
  }

  startClient(): SimClient {
    const id = this.nextClient++;
    const host = new SimHost(`client.${id}`, this.network);
    const clock = this.clock.forNode(
      () => host.alive,
      (work) => host.run(work),
    );
    const maps = new HostMaps(this.map, clock, () => this.mapFor(host));
    const random = this.nodeRandom();
    const logger = this.logger.child({ host: host.name });
    const messenger = new RpcMessenger({
      clock,
      network: host,
      random,
      logger,
      entity: id,
      role: "client",
      clusterId: () => this.map.clusterId,
    });
    const objecter = new Objecter({
      messenger,
      maps,
      clock,
      random,
      logger,
      client: () => id,
      attemptDeadlineMs: 3_000,
    });
    const client = { id, host, maps, objecter };
    this.clients.set(id, client);
    return client;
  }
  crashClient(client: SimClient): void {
    client.host.crash();
    this.clients.delete(client.id);
  }
  /** After this returns every OSD that answers a request of a later epoch refuses the client. */
  fence(client: number): Epoch {
    this.coordinate([{ on: "fence", client }]);
    return this.map.epoch;
  }

  /** Every PG has a primary that serves it. */
  allActive(): boolean {
    return Object.values(this.map.pgs)
      .flat()
      .every((entry, index) => {
        const primary = this.running.get(entry.primary);
        return primary?.daemon
          .status()
          .pgs.some((pg) => pg.pg % 65_536 === index && pg.state === "active");
      });
  }

  /** Every PG is active with exactly its up set in sync. */
  allClean(): boolean {
    const { map } = this;
    const sorted = (osds: readonly OsdId[]): string => [...osds].sort((a, b) => a - b).join();
    return (
      this.allActive() &&
      [...allPgs(map)].every(({ pg, entry }) => sorted(entry.inSync) === sorted(upSet(map, pg)))
    );
  }
  /** For the message of a failure. */
  describe(): string {
    const lines = [...allPgs(this.map)].map(({ pg, entry }) => {
      const status = this.running.get(entry.primary)?.daemon.status();
      const row = status?.pgs.find((candidate) => candidate.pg === pg);
      const learners = (row?.learners ?? []).map((l) => `${l.osd}:${l.phase}:${l.missing}`);
      return (
        `pg ${pg % 65_536} [${entry.inSync}] primary ${entry.primary} interval ${entry.interval} ` +
        `${row?.state} ${row?.reason} up set [${upSet(this.map, pg)}] ${learners.join(" ")}`
      );
    });
    const osds = this.map.osds.map((osd) => {
      const running = this.running.get(osd.id);
      const state = running === undefined ? "dead" : running.host.frozen ? "frozen" : "alive";
      return `osd.${osd.id} ${osd.up ? "up" : "down"} ${osd.in ? "in" : "out"} ${state}`;
    });
    return [...osds, ...lines].join("\n");
  }

  private nodeRandom(): { u32(): number; bytes(length: number): Buffer } {
    const prng = this.random.fork();
    return { u32: () => prng.u32(), bytes: (length) => prng.bytes(length) };
  }

  private coordinate(events: CoordinatorEvent[]): (DssError | undefined)[] {
    const nowMs = Number(this.clock.epochNs / 1_000_000n) + this.clock.now;
    const { map, outcomes } = this.coordinator.propose(events, nowMs);
    if (map === this.coordinator.map) return outcomes;
    const before = this.coordinator.map;
    this.coordinator.committed(map);
    this.onMap(before, map);
    for (const node of [...this.running.values(), ...this.clients.values()]) this.sendMap(node);
    return outcomes;
  }
}
