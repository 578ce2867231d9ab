/**
 * What every long-running client has: ZooKeeper's session, the map and the leader as it shows them,
 * a messenger, and a session with the MDS leader. What is done with objects is added on top.
 *
 * `connectCluster` ends with a map in hand; the MDS session is opened by its first use or by
 * `mds.open`, so that a server can first make sure that its address is its own: opening a session
 * fences the predecessor of the same instance.
 */
import { ANONYMOUS_ENTITY } from "../../cluster/base/ids.js";
import type { Logger } from "../../cluster/base/log.js";
import type { Config } from "../../cluster/config/options.js";
import { RpcMessenger } from "../../cluster/messenger/rpc.js";
import type { Platform } from "../../cluster/platform/ports.js";
import type { Coordination } from "../../cluster/zk/coordination.js";
import { watchLeader, type LeaderInfo } from "../../cluster/zk/election.js";
import { MapWatch } from "../../cluster/zk/map-watch.js";
import { connectZooKeeper, type ConnectZooKeeper } from "../../cluster/zk/session.js";
import type { SessionType } from "../proto.js";
import { MdsClient, type LeaderSource, type MdsClientOptions } from "./mds-client.js";

/** How long `connectCluster` waits for the first map. */
const MAP_WAIT_MS = 10_000;

export interface ClusterSessionOptions {
  platform: Platform;
  /** "host:port,…" */
  zookeeper: string;
  config: Config;
  logger: Logger;
  type: SessionType;
  /** See `SessionOpen`: `host:type:path`, or empty for no predecessor. */
  instance: string;
  host: string;
  /** For people. */
  detail: string;
  /** A worker of a mount keeps its requests, and may go on with another one's session. */
  worker?: Pick<MdsClientOptions, "log" | "generation" | "inherited">;
  /** The simulator's way to its ZooKeeper. */
  connect?: ConnectZooKeeper;
}

export interface ClusterSession {
  readonly coordination: Coordination;
  readonly maps: MapWatch;
  readonly messenger: RpcMessenger;
  readonly mds: MdsClient;
  /** Ends the MDS session in good order (unless `force`), then everything else. */
  close(options?: { force?: boolean }): Promise<void>;
}

/**
 * Errors: Unreachable (no ZooKeeper), TimedOut (no cluster there), Corrupt or IncompatibleVersion
 * (of the map).
 */
export async function connectCluster(options: ClusterSessionOptions): Promise<ClusterSession> {
  const { config, logger, connect = connectZooKeeper } = options;
  const { clock, random, network } = options.platform;
  const coordination = await connect({
    servers: options.zookeeper,
    clock,
    log: logger,
    sessionTimeoutMs: config.cluster.zkSessionMs,
  });
  const maps = new MapWatch(coordination, clock, logger);
  try {
    await maps.atLeast(1, MAP_WAIT_MS);
  } catch (error) {
    maps.close();
    await coordination.close();
    throw error;
  }
  const messenger = new RpcMessenger({
    clock,
    network,
    random,
    logger,
    entity: ANONYMOUS_ENTITY, // Until the MDS gives this incarnation its id.
    role: "client",
    clusterId: () => maps.current().clusterId,
    limits: { inFlightBytesMax: config.cluster.connectionInFlightBytesMax },
  });
  messenger.setEpoch(maps.current().epoch);
  maps.onChange((map) => messenger.setEpoch(map.epoch));
  const leader = leaderFrom(coordination, logger);
  const mds = new MdsClient({
    messenger,
    clock,
    random,
    leader,
    logger,
    type: options.type,
    instance: options.instance,
    host: options.host,
    pid: process.pid,
    detail: options.detail,
    operationDeadlineMs: config.client.requestDeadlineMs,
    ...options.worker,
  });
  return {
    coordination,
    maps,
    messenger,
    mds,
    async close(ending = {}) {
      try {
        await mds.close(ending);
      } finally {
        leader.stop();
        await messenger.close();
        maps.close();
        await coordination.close();
      }
    },
  };
}

/** The leader as ZooKeeper shows it. */
function leaderFrom(coordination: Coordination, logger: Logger): LeaderSource & { stop(): void } {
  let leader: LeaderInfo | undefined;
  const listeners = new Set<() => void>();
  const watch = watchLeader(coordination, logger, (next) => {
    leader = next;
    for (const listener of [...listeners]) listener();
  });
  return {
    current: () => leader,
    onChange(listener) {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
    stop: () => watch.stop(),
  };
}
