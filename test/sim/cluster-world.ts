/**
 * A whole simulated cluster in one process: the programs as `dss osd`, `dss mds` and every client
 * run them (osd/main.ts, mds/main.ts, mds/client/cluster-session.ts), on a simulated clock, network
 * and disk, over the modelled ZooKeeper. A run is a pure function of its seed.
 *
 * Owns: the hosts. A host is one life of one program; a restart is a new one.
 */
import { DssError, describeError, isDssError } from "../../cluster/base/errors.js";
import { ANONYMOUS_ENTITY, type Epoch, type MdsId, type OsdId } from "../../cluster/base/ids.js";
import { silentLogger, type Logger } from "../../cluster/base/log.js";
import { Prng } from "../../cluster/base/prng.js";
import { simulatedConfig } from "../../cluster/config/load.js";
import type { Config } from "../../cluster/config/options.js";
import { allPgs, type ClusterMap } from "../../cluster/map/cluster-map.js";
import { decodeMap } from "../../cluster/map/map-codec.js";
import { upSet } from "../../cluster/map/placement.js";
import { RpcMessenger } from "../../cluster/messenger/rpc.js";
import type { Clock, Disk, Platform, RandomSource } from "../../cluster/platform/ports.js";
import type { ConnectZooKeeper } from "../../cluster/zk/session.js";
import { decodeLeader, type LeaderInfo } from "../../cluster/zk/election.js";
import { LEADER_PATH, MAP_PATH } from "../../cluster/zk/schema.js";
import { SessionObjects } from "../../client-fs/vfs/session-objects.js";
import { connectCluster, type ClusterSession } from "../../mds/client/cluster-session.js";
import { LeaderCoordinatorClient } from "../../mds/client/coordinator-client.js";
import { runMds, type RunningMds } from "../../mds/main.js";
import { MdsAdmin, type AdminReply, type AdminRequest } from "../../mds/proto.js";
import { Objecter } from "../../osd/client/objecter.js";
import type { OsdDaemon } from "../../osd/daemon.js";
import { runOsd } from "../../osd/main.js";
import type { ChunkStore } from "../../osd/store/chunk-store.js";
import { SimClock, type Skew } from "./sim-clock.js";
import { SimHost, SimNetwork } from "./sim-network.js";
import { SimZkClient } from "./sim-zk-client.js";
import { SimZooKeeper, ZK } from "./sim-zookeeper.js";

/** The disk under one OSD, kept across its crashes. */
export interface StoreOnDisk {
  open(clock: Clock): Promise<ChunkStore>;
  /** Power is cut: unsynced writes are lost or torn. */
  crash(): void;
  /** Flips a bit somewhere; false when nothing is stored there. */
  rot?(where: "data" | "log" | "index"): boolean;
}
export type DiskFactory = (osd: OsdId, random: Prng, clock: SimClock) => StoreOnDisk;

export interface WorldOptions {
  seed: number;
  osds: number;
  /** Metadata servers; 2 when left out. */
  mdss?: number;
  disk: DiskFactory;
  /** Settings that are not drawn from the option table's simulation ranges. */
  settings?: Readonly<Record<string, number>>;
  logger?: Logger;
}

interface RunningOsd {
  id: OsdId;
  host: SimHost;
  daemon: OsdDaemon;
  store: ChunkStore;
}
interface RunningMdsHost {
  id: MdsId;
  host: SimHost;
  mds: RunningMds;
}
export interface SimClient extends ClusterSession {
  host: SimHost;
  clock: Clock;
  logger: Logger;
  objects: SessionObjects;
}

/** A program that finds no ZooKeeper, or no cluster, is started again after this long. */
const RESTART_MS = 1_000;
const ORDER_MS = 3_000;

export class ClusterWorld {
  readonly clock = new SimClock();
  readonly random: Prng;
  readonly network: SimNetwork;
  readonly zk: SimZooKeeper;
  readonly config: Config;
  readonly running = new Map<OsdId, RunningOsd>();
  readonly metadata = new Map<MdsId, RunningMdsHost>();
  readonly clients = new Set<SimClient>();
  readonly fatal: Error[] = [];
  /** For scenarios that strike when the map changes. */
  onMap: (before: ClusterMap, after: ClusterMap) => void = () => undefined;
  /**
   * How the clocks of hosts that start from now on differ at most: in what they show, and in how
   * fast they run (0.004: four milliseconds a second faster or slower).
   */
  readonly skew = { wallMs: 0, rate: 0 };
  private readonly logger: Logger;
  private readonly disks = new Map<OsdId, StoreOnDisk>();
  /** Every host that lives, by name, started or not. */
  private readonly hosts = new Map<string, SimHost>();
  private newestMap: ClusterMap | undefined;
  private readonly admin: { host: SimHost; messenger: RpcMessenger };
  private clientNumber = 0;
  private expectedOsds = 0;

  constructor(private readonly options: WorldOptions) {
    this.random = new Prng(options.seed);
    this.network = new SimNetwork(this.clock, this.random.fork());
    this.zk = new SimZooKeeper(this.clock, this.network, this.random.fork());
    this.logger = options.logger ?? silentLogger;
    this.config = simulatedConfig(this.random.fork(), {
      "pool.pgs": 4,
      "mds.sessionLeaseMs": 10_000,
      // Most scenarios write objects of files that were never made.
      "mds.leftoversIntervalMs": 0,
      ...options.settings,
    });
    for (let id = 0; id < options.osds; id++) this.addDisk(id);
    this.zk.listeners.push(({ changes }) => {
      for (const change of changes) if (change.path === MAP_PATH) this.onNewMap();
    });
    const host = this.newHost("admin");
    const { clock, random } = this.platformOf(host);
    const role = "admin";
    const clusterId = (): string => this.newestMap?.clusterId ?? "";
    const entity = ANONYMOUS_ENTITY;
    const { logger } = this;
    const parts = { clock, random, logger, network: host, entity, role, clusterId };
    this.admin = { host, messenger: new RpcMessenger(parts) };
  }

  /** The newest map; there is one once `hasMap`. */
  get map(): ClusterMap {
    return this.newestMap!;
  }
  get hasMap(): boolean {
    return this.newestMap !== undefined;
  }
  private onNewMap(): void {
    const before = this.newestMap;
    const after = decodeMap(this.zk.tree.znode(MAP_PATH)!.data);
    this.newestMap = after;
    if (before !== undefined) this.onMap(before, after);
  }
  get leader(): LeaderInfo | undefined {
    return decodeLeader(this.zk.tree.znode(LEADER_PATH));
  }
  /** The host of the leading MDS, if it lives. */
  leaderHost(): SimHost | undefined {
    const { leader } = this;
    return leader === undefined ? undefined : this.metadata.get(leader.id)?.host;
  }

  /** Starts the metadata servers and these OSDs; nothing is waited for. */
  start(osds: readonly OsdId[] = [...this.disks.keys()]): void {
    this.expectedOsds = osds.length;
    for (let id = 0; id < (this.options.mdss ?? 2); id++) this.startMds(id);
    for (const id of osds) this.startOsd(id);
  }

  // ——— Hosts ———

  private newHost(name: string): SimHost {
    const host = new SimHost(name, this.network);
    this.hosts.set(name, host);
    return host;
  }
  private isCurrent(host: SimHost): boolean {
    return host.alive && this.hosts.get(host.name) === host;
  }
  private platformOf(host: SimHost): Platform {
    const { random } = this;
    const skew: Skew = {
      rate: 1 + (random.float() - 0.5) * 2 * this.skew.rate,
      wallMs: (random.float() - 0.5) * this.skew.wallMs,
    };
    const clock = this.clock.forNode(
      () => host.alive,
      (work) => host.run(work),
      skew,
    );
    const prng = random.fork();
    const source: RandomSource = { u32: () => prng.u32(), bytes: (length) => prng.bytes(length) };
    const disk = (): Promise<Disk> => {
      return Promise.reject(new DssError("NotSupported", "simulated stores have their own disk"));
    };
    return { clock, random: source, network: host, disk };
  }
  private connectFrom(host: SimHost): ConnectZooKeeper {
    return ({ clock, sessionTimeoutMs, connectDeadlineMs }) => {
      const client = new SimZkClient(this.zk, host, clock, sessionTimeoutMs ?? 6_000);
      return client.opened(connectDeadlineMs ?? 4_000);
    };
  }
  private loggerOf(host: SimHost): Logger {
    return this.logger.child({ host: host.name });
  }
  /** Runs the program; one that could not start is started again, one that ends is a failure. */
  private launch<P extends { ended: Promise<Error | undefined> }>(
    host: SimHost,
    run: () => Promise<P>,
    parts: { started(program: P): void; again(): void },
  ): void {
    const fail = (error: Error): void => {
      if (host.alive) this.fatal.push(error);
    };
    run().then(
      (program) => {
        if (!this.isCurrent(host)) return;
        parts.started(program);
        void program.ended.then((error) => {
          if (error !== undefined) fail(error);
        });
      },
      (error: unknown) => {
        if (!this.isCurrent(host)) return;
        if (!isPassing(error)) return fail(asError(error));
        this.loggerOf(host).warn({ error: describeError(error) }, "could not start");
        host.crash();
        this.clock.schedule(RESTART_MS, () => {
          if (this.hosts.get(host.name) === host) parts.again();
        });
      },
    );
  }

  // ——— OSDs ———

  addDisk(id: OsdId): void {
    this.disks.set(id, this.options.disk(id, this.random.fork(), this.clock));
  }
  diskOf(id: OsdId): StoreOnDisk | undefined {
    return this.disks.get(id);
  }
  /** Does nothing if it runs, or starts, already. */
  startOsd(id: OsdId): void {
    const disk = this.disks.get(id);
    if (disk === undefined || this.hosts.get(`osd.${id}`)?.alive === true) return;
    const host = this.newHost(`osd.${id}`);
    const platform = this.platformOf(host);
    this.launch(
      host,
      () =>
        runOsd({
          id,
          data: "",
          listen: { host: `10.0.0.${id + 1}`, port: 9100 },
          host: host.name,
          weight: 1,
          zookeeper: "zk:2181",
          config: this.config,
          logger: this.loggerOf(host),
          version: "sim",
          coordinator: (parts) =>
            new LeaderCoordinatorClient(parts.messenger, parts.coordination, parts.logger),
          platform,
          connect: this.connectFrom(host),
          openStore: () => disk.open(platform.clock),
        }),
      {
        started: ({ daemon, store }) => this.running.set(id, { id, host, daemon, store }),
        again: () => this.startOsd(id),
      },
    );
  }
  /** As `kill -9` with a power cut: what was not synced may be gone. */
  crashOsd(id: OsdId): void {
    const host = this.hosts.get(`osd.${id}`);
    if (host?.alive !== true) return;
    this.crashHost(host);
    this.disks.get(id)?.crash();
    this.running.delete(id);
  }
  /** The disk is gone with all that was on it; nothing takes its place. */
  destroyOsd(id: OsdId): void {
    this.crashOsd(id);
    this.disks.delete(id);
  }
  freezeOsd(id: OsdId, ms: number): void {
    this.freeze(this.running.get(id)?.host, ms);
  }

  // ——— Metadata servers ———

  startMds(id: MdsId): void {
    const name = `mds.${id}`;
    if (this.hosts.get(name)?.alive === true) return;
    const host = this.newHost(name);
    const platform = this.platformOf(host);
    this.launch(
      host,
      () =>
        runMds({
          id,
          listen: { host: `10.0.1.${id + 1}`, port: 9110 },
          zookeeper: "zk:2181",
          config: this.config,
          logger: this.loggerOf(host),
          expectedOsds: this.expectedOsds,
          platform,
          connect: this.connectFrom(host),
        }),
      {
        started: (mds) => this.metadata.set(id, { id, host, mds }),
        again: () => this.startMds(id),
      },
    );
  }
  /** As `kill -9`. */
  crashMds(id: MdsId): void {
    const host = this.hosts.get(`mds.${id}`);
    if (host?.alive !== true) return;
    this.crashHost(host);
    this.metadata.delete(id);
  }

  // ——— Clients ———

  /** Resolves when it has its session; never, when it is crashed before. */
  async startClient(): Promise<SimClient> {
    const host = this.newHost(`client.${this.clientNumber++}`);
    const platform = this.platformOf(host);
    const logger = this.loggerOf(host);
    for (;;) {
      let session: ClusterSession;
      try {
        session = await connectCluster({
          platform,
          zookeeper: "zk:2181",
          config: this.config,
          logger,
          type: "library",
          instance: "",
          host: host.name,
          detail: "",
          connect: this.connectFrom(host),
        });
        await session.mds.open(600_000);
      } catch (error) {
        if (!isPassing(error)) throw error;
        await this.pause(RESTART_MS);
        continue;
      }
      const { clock, random } = platform;
      const { messenger, maps, mds } = session;
      const objects = new SessionObjects(
        (id) =>
          new Objecter({
            ...{ messenger, maps, clock, random, logger },
            client: () => id,
            attemptDeadlineMs: 3_000,
          }),
      );
      mds.onSession((id) => objects.onSession(id));
      const client = { ...session, host, clock, logger, objects };
      this.clients.add(client);
      return client;
    }
  }
  crashClient(client: SimClient): void {
    this.crashHost(client.host);
    this.clients.delete(client);
  }
  freezeClient(client: SimClient, ms: number): void {
    this.freeze(client.host, ms);
  }

  // ——— Faults ———

  private crashHost(host: SimHost): void {
    host.crash();
    this.zk.hostDied(host);
  }
  /** As SIGSTOP for `ms`. */
  freeze(host: SimHost | undefined, ms: number): void {
    if (host === undefined || host.frozen || !host.alive) return;
    host.freeze();
    this.clock.schedule(ms, () => host.thaw());
  }
  /** Nothing goes between the host and `other` (a host's name, or ZK), or only one way. */
  cut(name: string, other: string, ms: number, ways: "both" | "from" | "to"): void {
    const undo = [
      ...(ways === "to" ? [] : [this.network.partition(name, other)]),
      ...(ways === "from" ? [] : [this.network.partition(other, name)]),
    ];
    this.clock.schedule(ms, () => {
      for (const heal of undo) heal();
    });
  }
  /** Names of all hosts that live. */
  hostNames(): string[] {
    return [...this.hosts.values()].filter(({ alive }) => alive).map(({ name }) => name);
  }
  /** Every partition, freeze and outage is over. */
  heal(): void {
    this.network.heal();
    this.zk.recover();
    for (const host of this.hosts.values()) host.thaw();
  }

  // ——— Orders ———

  /** An order to whoever leads, until it is done. */
  async order(request: AdminRequest): Promise<AdminReply> {
    for (;;) {
      const { leader } = this;
      try {
        if (leader !== undefined) {
          const peer = this.admin.messenger.peer(leader.address);
          return (await peer.call(MdsAdmin, request, { deadlineMs: ORDER_MS })).message;
        }
      } catch (error) {
        if (!isDssError(error) || (error.retry !== "same" && error.code !== "NotLeader")) {
          throw error;
        }
      }
      await this.pause(200);
    }
  }
  /** After this resolves every OSD that answers a request of the epoch refuses the client. */
  async fence(client: number): Promise<Epoch> {
    return (await this.order({ op: "fence", client })).epoch;
  }
  pause(ms: number): Promise<void> {
    return new Promise((resolve) => void this.clock.schedule(ms, resolve));
  }

  // ——— States ———

  /** Every PG has a primary that serves it. */
  allActive(): boolean {
    return (
      this.hasMap &&
      this.map.osds.length > 0 &&
      [...allPgs(this.map)].length > 0 &&
      [...allPgs(this.map)].every(({ pg, entry }) => {
        const status = this.running.get(entry.primary)?.daemon.status();
        return status?.pgs.some((row) => row.pg === pg && row.state === "active") === true;
      })
    );
  }
  /** Every PG is active with exactly its up set in sync. */
  allClean(): boolean {
    if (!this.allActive()) return false;
    const { map } = this;
    const sorted = (osds: readonly OsdId[]): string => [...osds].sort((a, b) => a - b).join();
    return [...allPgs(map)].every(
      ({ pg, entry }) => sorted(entry.inSync) === sorted(upSet(map, pg)),
    );
  }
  /** For the message of a failure. */
  describe(): string {
    if (!this.hasMap) return "no cluster map was made";
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
      return `osd.${osd.id} ${osd.up ? "up" : "down"} ${osd.in ? "in" : "out"}`;
    });
    const hosts = [...this.hosts.values()].map(({ name, alive, frozen }) => {
      return `${name} ${alive ? (frozen ? "frozen" : "alive") : "dead"}`;
    });
    const leads = `leader ${this.leader?.id} term ${this.leader?.term} epoch ${this.map.epoch}`;
    return [leads, hosts.join(", "), ...osds, ...lines, `at ${this.clock.now} ms`].join("\n");
  }
}
function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
/** Whoever starts a program tries again after these. */
function isPassing(error: unknown): boolean {
  return isDssError(error, "NoSession") || (isDssError(error) && error.retry === "same");
}
export { ZK };
