/**
 * A simulated cluster of OSDs and clients: the real daemons, messenger, objecter and file store on a simulated clock, network
 * and disk. The map is decided by the real coordinator; only ZooKeeper is left out (maps reach each host after a seeded delay).
 */
import { DssError } from "../../cluster/base/errors.js";
import { CLIENT_ID_FIRST, type Epoch, type OsdId } from "../../cluster/base/ids.js";
import { silentLogger, type Logger } from "../../cluster/base/log.js";
import { Prng } from "../../cluster/base/prng.js";
import type { ClusterMap, MapSource } from "../../cluster/map/cluster-map.js";
import { RpcMessenger } from "../../cluster/messenger/rpc.js";
import type { Clock, Disk } from "../../cluster/platform/ports.js";
import { Coordinator, COORDINATOR_DEFAULTS, initialMap } from "../../mds/core/coordinator.js";
import type { CoordinatorEvent } from "../../mds/core/coordinator.js";
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
  logger?: Logger;
}

/** The map as one host has seen it. */
class HostMaps implements MapSource {
  private readonly listeners = new Set<(map: ClusterMap) => void>();

  constructor(
    private map: ClusterMap,
    private readonly clock: Clock,
    private readonly newest: () => ClusterMap,
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
    this.learn(this.newest());
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
  private readonly disks = new Map<OsdId, StoreOnDisk>();
  private readonly coordinator: Coordinator;
  private readonly logger: Logger;
  private incarnations = 0;
  private nextClient = CLIENT_ID_FIRST;

  constructor(options: WorldOptions) {
    this.random = new Prng(options.seed);
    this.network = new SimNetwork(this.clock, this.random.fork());
    this.logger = options.logger ?? silentLogger;
    const pool = {
      name: "data",
      replicas: options.replicas,
      minimum: Math.min(2, options.replicas),
      pgCount: options.pgCount,
      objectSize: 4 * 1024 * 1024,
      stripeUnit: 4 * 1024 * 1024,
      stripeCount: 1,
    };
    const map = initialMap({ clusterId: `sim-${options.seed}`, pool, virtualNodes: 100 });
    this.coordinator = new Coordinator(map, {
      ...COORDINATOR_DEFAULTS,
      expectedOsds: options.osds,
    });
    for (let id = 0; id < options.osds; id++) {
      this.disks.set(id, options.disk(id, this.random.fork(), this.clock));
    }
  }

  get map(): ClusterMap {
    return this.coordinator.map;
  }

  // ——— Hosts ———

  async startOsd(id: OsdId): Promise<void> {
    const host = new SimHost(`osd.${id}`, this.network);
    const clock = this.clock.forNode(() => host.alive);
    const store = await this.disks.get(id)!.open(clock);
    const incarnation = `life-${++this.incarnations}`;
    const maps = new HostMaps(this.map, clock, () => this.map);
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
      pgLogEntries: 200,
      onFatal: (error) => {
        if (host.alive) this.fatal.push(error);
      },
    });
    this.running.set(id, { host, maps, daemon, store });
    daemon.start();
    const identity = { id, uuid: store.uuid, host: host.name, address, incarnation };
    const info = { ...identity, weight: 1, capacity: 0, pid: 1 };
    this.coordinate([{ on: "osdRegistered", info }]);
  }

  /** As `kill -9` with a power cut: what was not synced may be gone. */
  crashOsd(id: OsdId): void {
    const osd = this.running.get(id);
    if (osd === undefined) return;
    osd.host.crash();
    this.disks.get(id)!.crash();
    this.running.delete(id);
  }

  startClient(): SimClient {
    const id = this.nextClient++;
    const host = new SimHost(`client.${id}`, this.network);
    const clock = this.clock.forNode(() => host.alive);
    const maps = new HostMaps(this.map, clock, () => this.map);
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

  private nodeRandom(): { u32(): number; bytes(length: number): Buffer } {
    const prng = this.random.fork();
    return { u32: () => prng.u32(), bytes: (length) => prng.bytes(length) };
  }

  private coordinate(events: CoordinatorEvent[]): void {
    const nowMs = Number(this.clock.epochNs / 1_000_000n) + this.clock.now;
    const { map, outcomes } = this.coordinator.propose(events, nowMs);
    for (const outcome of outcomes) if (outcome !== undefined) throw outcome;
    if (map === this.coordinator.map) return;
    this.coordinator.committed(map);
    for (const { host, maps } of [...this.running.values(), ...this.clients.values()]) {
      this.clock.schedule(this.network.delay() * 5, () => {
        if (host.alive) maps.learn(map);
      });
    }
  }
}
