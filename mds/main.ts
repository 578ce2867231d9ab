/**
 * Runs one metadata server as a process: ZooKeeper, messenger, objecter, daemon; and ends it in
 * good order.
 */
import { hostname } from "node:os";
import { DssError, describeError } from "../cluster/base/errors.js";
import { MDS_ENTITY_BASE, formatUuid, type MdsId } from "../cluster/base/ids.js";
import type { Logger } from "../cluster/base/log.js";
import type { Config } from "../cluster/config/options.js";
import { MDS_ID_MAX } from "../cluster/map/daemon-info.js";
import { RpcMessenger } from "../cluster/messenger/rpc.js";
import { nodePlatform } from "../cluster/platform/node.js";
import { formatAddress, type Platform } from "../cluster/platform/ports.js";
import { ClientIds } from "../cluster/zk/client-ids.js";
import { ensureCluster } from "../cluster/zk/cluster-record.js";
import { MapWatch } from "../cluster/zk/map-watch.js";
import { newIncarnation, registerMds } from "../cluster/zk/registration.js";
import { connectZooKeeper, type ConnectZooKeeper } from "../cluster/zk/session.js";
import { Objecter } from "../osd/client/objecter.js";
import { COORDINATOR_DEFAULTS } from "./core/coordinator.js";
import { MdsDaemon } from "./daemon.js";
import { LEADER_DEFAULTS } from "./leader.js";
import { ZkReader, ZkStore } from "./store/zk-store.js";
import { objectLister } from "./object-lister.js";
import { ClusterUsage } from "./usage.js";

export interface MdsProcessOptions {
  id: MdsId;
  /** `host: "127.0.0.1", port: 0` picks a free port. */
  listen: { host: string; port: number };
  /** "host:port,…" */
  zookeeper: string;
  config: Config;
  logger: Logger;
  /**
   * PGs are created when this many OSDs are up, or after a while with fewer; 0: the pool's
   * replicas.
   */
  expectedOsds?: number;
  /** Called when requests are answered (perhaps with NotLeader). */
  onReady?: (address: { host: string; port: number }) => void;
  /** The world that it runs in: this machine, unless the simulator gives another. */
  platform?: Platform;
  connect?: ConnectZooKeeper;
}

export interface RunningMds {
  /** Resolves when the process should end: undefined after `stop`, the error otherwise. */
  readonly ended: Promise<Error | undefined>;
  readonly daemon: MdsDaemon;
  stop(): Promise<void>;
}

/** An OSD that somebody cannot reach has this long to refuse our connection, too. */
const REFUSAL_MS = 1_000;
/** A machine that cannot be reached proves nothing about its processes. */
function isRefusal(error: unknown): boolean {
  const cause: unknown = error instanceof DssError ? error.cause : undefined;
  return cause instanceof Error && (cause as NodeJS.ErrnoException).code === "ECONNREFUSED";
}

/** Name of the pool that a new cluster begins with. */
export const DEFAULT_POOL = "data";

export async function runMds(options: MdsProcessOptions): Promise<RunningMds> {
  const { id, logger, config, platform = nodePlatform, connect = connectZooKeeper } = options;
  if (!Number.isInteger(id) || id < 0 || id > MDS_ID_MAX) {
    throw new DssError("InvalidArgument", `an MDS id is a number from 0 to ${MDS_ID_MAX}`);
  }
  const { clock, random, network } = platform;
  const coordination = await connect({
    servers: options.zookeeper,
    clock,
    log: logger,
    sessionTimeoutMs: config.cluster.zkSessionMs,
  });
  let finish: (error: Error | undefined) => void = () => undefined;
  const ended = new Promise<Error | undefined>((resolve) => (finish = resolve));
  const undo: (() => Promise<void> | void)[] = [() => coordination.close()];
  const unwind = async (): Promise<void> => {
    for (const step of undo.reverse()) await step();
    undo.length = 0;
  };
  let daemon: MdsDaemon;
  try {
    const createdMs = Number(clock.wallNs() / 1_000_000n);
    const proposed = { clusterId: formatUuid(random.bytes(16)), createdMs };
    const { clusterId } = await ensureCluster(coordination, proposed);
    const maps = new MapWatch(coordination, clock, logger);
    undo.push(() => maps.close());
    const messenger = new RpcMessenger({
      clock,
      network,
      random,
      logger,
      entity: MDS_ENTITY_BASE + id,
      role: "mds",
      clusterId: () => clusterId,
      limits: { inFlightBytesMax: config.cluster.connectionInFlightBytesMax },
    });
    undo.push(() => messenger.close());
    let mapSeen = false;
    maps.onChange((map) => {
      mapSeen = true;
      messenger.setEpoch(map.epoch);
    });
    const client = await new ClientIds(coordination).take();
    // OSDs take a client's requests only from a connection under that client's id.
    const clientMessenger = new RpcMessenger({
      clock,
      network,
      random,
      logger,
      entity: client,
      role: "mds",
      clusterId: () => clusterId,
      limits: { inFlightBytesMax: config.cluster.connectionInFlightBytesMax },
    });
    undo.push(() => clientMessenger.close());
    maps.onChange((map) => clientMessenger.setEpoch(map.epoch));
    const objects = new Objecter({
      ...{ maps, clock, random, logger },
      messenger: clientMessenger,
      client: () => client,
    });
    undo.push(() => objects.close());
    const usage = new ClusterUsage({
      clock,
      messenger,
      map: () => (mapSeen ? maps.current() : undefined),
    });
    // Last, and nothing is waited for until the daemon answers: whoever connects in between would
    // be told that this is no metadata server.
    const address = await messenger.listen(options.listen);
    if (!("port" in address)) throw new DssError("InvalidArgument", "an MDS listens on TCP");
    const incarnation = newIncarnation(random);
    daemon = new MdsDaemon(
      {
        clock,
        logger,
        coordination,
        messenger,
        objects,
        reader: new ZkReader(coordination, clock),
        store: (term) => new ZkStore(coordination, clock, term.version),
        refuses: async (address) => {
          try {
            (await network.connect(address, { timeoutMs: REFUSAL_MS })).destroy();
            return false;
          } catch (error) {
            return isRefusal(error);
          }
        },
        usage: () => usage.now(),
        lister: objectLister({ messenger, maps }),
        onFatal: (error) => finish(error),
      },
      {
        id,
        self: { id, address, incarnation },
        clusterId,
        cacheBytes: config.mds.pageCacheBytes,
        leader: {
          ...LEADER_DEFAULTS,
          leaseMs: config.mds.sessionLeaseMs,
          recallTimeoutMs: config.mds.recallTimeoutMs,
          inoRange: config.mds.inoRange,
          capabilitiesMax: config.mds.capabilitiesMax,
          journalLingerMs: config.mds.journalBatchMs,
          purgeDelayMs: config.mds.purgeDelayMs,
          checkpointBatches: config.mds.journalBatchesMax,
        },
        coordinator: {
          ...COORDINATOR_DEFAULTS,
          downOutIntervalMs: config.cluster.downOutMs,
          expectedOsds: options.expectedOsds ?? 0,
        },
        livenessGraceMs: config.cluster.zkSessionMs,
        pool: {
          name: DEFAULT_POOL,
          replicas: config.pool.replicas,
          minimum: config.pool.minimum,
          pgCount: config.pool.pgs,
          objectSize: config.pool.objectBytes,
          stripeUnit: config.pool.objectBytes,
          stripeCount: 1,
        },
        pingMs: config.cluster.leaderHeartbeatMs,
        virtualNodes: config.pool.virtualNodes,
        ratios: {
          nearFullRatio: config.osd.nearFullRatio,
          fullRatio: config.osd.fullRatio,
          backfillFullRatio: config.osd.backfillFullRatio,
        },
        graceMs: config.cluster.leaderGraceMs,
        osdHeartbeatMs: config.cluster.heartbeatMs,
        leftoversIntervalMs: config.mds.leftoversIntervalMs,
      },
    );
    daemon.start();
    undo.push(() => daemon.stop());
    usage.start();
    undo.push(() => usage.stop());

    const registration = await registerMds(
      coordination,
      { id, address, incarnation, host: hostname(), pid: process.pid },
      { onReplaced: () => finish(new DssError("Conflict", `mds.${id} was started elsewhere`)) },
      logger,
    );
    undo.push(() => registration.close());
    logger.info({ address: formatAddress(address), cluster: clusterId }, `mds.${id} is up`);
    options.onReady?.(address);
  } catch (error) {
    await unwind().catch((problem: unknown) => {
      logger.warn({ err: describeError(problem) }, "while giving up the start");
    });
    throw error;
  }
  return {
    ended,
    daemon,
    async stop() {
      await unwind();
      finish(undefined);
    },
  };
}
