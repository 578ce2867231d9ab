/**
 * A quick, short-lived view of a cluster for commands: the map and the leader straight from
 * ZooKeeper, figures from the daemons, admin requests to the leader. It registers nowhere (its
 * messenger is anonymous) and leaves nothing behind; `close` lets the process end at once.
 */
import { hostname } from "node:os";
import { ANONYMOUS_ENTITY, type OsdId } from "../cluster/base/ids.js";
import { DssError, isDssError } from "../cluster/base/errors.js";
import { silentLogger } from "../cluster/base/log.js";
import type { ClusterMap, OsdEntry } from "../cluster/map/cluster-map.js";
import { decodeMdsInfo, type MdsInfo } from "../cluster/map/daemon-info.js";
import { decodeMap } from "../cluster/map/map-codec.js";
import { RpcMessenger } from "../cluster/messenger/rpc.js";
import { nodeClock, nodePlatform, nodeRandom } from "../cluster/platform/node.js";
import type { Coordination } from "../cluster/zk/coordination.js";
import type { Infer } from "../cluster/wire/struct.js";
import { decodeLeader, watchLeader, type LeaderInfo } from "../cluster/zk/election.js";
import { decodeFault, type MetadataFault } from "../cluster/zk/metadata-fault.js";
import {
  FAULT_PATH,
  LEADER_PATH,
  LIVE_MDS_PATH,
  MAP_PATH,
  liveMdsPath,
} from "../cluster/zk/schema.js";
import { connectZooKeeper } from "../cluster/zk/session.js";
import type { MdsClient } from "../mds/client/mds-client.js";
import { MdsAdmin, type AdminReply, type AdminRequest } from "../mds/proto.js";
import {
  DigestObject,
  GetOsdStatus,
  ListObjects,
  ListActive,
  MeasureObjects,
  StartScrub,
  type OsdListReply,
  type OsdDigestReply,
  type OsdMeasured,
  type OsdStatus,
} from "../osd/proto.js";
import { FIGURES_MS } from "./gather.js";

const CONNECT_MS = 2_000;
/** Reading and verifying one object of an OSD. */
const VERIFY_MS = 30_000;
const LIST_MS = 10_000;
const AGAIN_MS = 100;
const ADMIN_MS = 15_000;
const SESSION_MS = 10_000;

export interface OsdReport {
  osd: OsdEntry;
  /** Undefined when it is down or does not answer. */
  status: OsdStatus | undefined;
}

export class ClusterClient {
  /** Undefined before the first metadata server has made one. */
  map: ClusterMap | undefined;
  leader: LeaderInfo | undefined;
  /** Every metadata server that is alive, the leader included. */
  mds: MdsInfo[] = [];
  /** Why metadata servers refuse to serve. */
  fault: MetadataFault | undefined;

  /** OSDs that did not answer when they were asked last. */
  private silent = new Set<OsdId>();

  private constructor(
    readonly zookeeper: string,
    readonly coordination: Coordination,
    readonly messenger: RpcMessenger,
    private readonly known: { clusterId: string },
  ) {}

  /** Errors: Unreachable. */
  static async open(zookeeper: string): Promise<ClusterClient> {
    const coordination = await connectZooKeeper({
      servers: zookeeper,
      clock: nodeClock,
      log: silentLogger,
      connectDeadlineMs: CONNECT_MS,
    });
    const known = { clusterId: "" };
    const messenger = new RpcMessenger({
      clock: nodeClock,
      network: nodePlatform.network,
      random: nodeRandom,
      logger: silentLogger,
      entity: ANONYMOUS_ENTITY,
      role: "client",
      clusterId: () => known.clusterId,
    });
    const client = new ClusterClient(zookeeper, coordination, messenger, known);
    try {
      await client.refresh();
      return client;
    } catch (error) {
      await client.close();
      throw error;
    }
  }

  /** Reads the map, the leader and the list of metadata servers again. */
  async refresh(): Promise<void> {
    const { coordination } = this;
    const [map, leader, live, fault] = await Promise.all([
      coordination.get(MAP_PATH),
      coordination.get(LEADER_PATH),
      coordination.children(LIVE_MDS_PATH),
      coordination.get(FAULT_PATH),
    ]);
    this.map = map === undefined || map.data.length === 0 ? undefined : decodeMap(map.data);
    this.known.clusterId = this.map?.clusterId ?? "";
    this.leader = decodeLeader(leader);
    this.fault = decodeFault(fault);
    const nodes = await Promise.all(
      (live?.names ?? []).map((name) => coordination.get(liveMdsPath(Number(name)))),
    );
    this.mds = nodes
      .filter((node) => node !== undefined)
      .map((node) => decodeMdsInfo(node.data, LIVE_MDS_PATH))
      .sort((a, b) => a.id - b.id);
  }

  /** The map, for commands that can do nothing without one. Errors: NotActive. */
  needMap(): ClusterMap {
    if (this.map !== undefined) return this.map;
    throw new DssError(
      "NotActive",
      `there is no cluster map in ZooKeeper at ${this.zookeeper} yet`,
      {
        hint: "start a metadata server: dss mds start 0, or everything: dss cluster up",
      },
    );
  }

  /** Sends a request to the leader; finds a new one when it has changed. */
  async admin(request: AdminRequest, deadlineMs = ADMIN_MS): Promise<AdminReply> {
    const start = performance.now();
    for (;;) {
      const left = deadlineMs - (performance.now() - start);
      const leader = this.leader;
      try {
        if (leader === undefined) throw new DssError("NotLeader", "no metadata server leads");
        const peer = this.messenger.peer(leader.address);
        const call = peer.call(MdsAdmin, request, { deadlineMs: Math.max(left, 1) });
        const answer = await within(call, Math.max(left, 1));
        if (answer === undefined) {
          throw new DssError("TimedOut", `mds.${leader.id} did not answer within ${deadlineMs} ms`);
        }
        return answer.message;
      } catch (error) {
        // Every request states a wanted result, so that it may be sent again.
        const isPassing = isDssError(error) && error.retry === "same" && error.code !== "TimedOut";
        if (!isPassing || left < 200) throw withHint(error);
      }
      await new Promise((resolve) => setTimeout(resolve, 100));
      await this.refresh();
    }
  }

  /** Figures of every OSD, asked for at the same time. */
  async osdReports(deadlineMs = FIGURES_MS): Promise<OsdReport[]> {
    const osds = [...(this.map?.osds ?? [])].sort((a, b) => a.id - b.id);
    const reports = await Promise.all(
      osds.map(async (osd) => {
        // One that was silent just now gets less time: the command is not held up twice.
        const ms = this.silent.has(osd.id) ? AGAIN_MS : deadlineMs;
        return { osd, status: osd.up ? await this.osdStatus(osd, ms) : undefined };
      }),
    );
    const silent = reports.filter(({ osd, status }) => osd.up && status === undefined);
    this.silent = new Set(silent.map(({ osd }) => osd.id));
    return reports;
  }

  private async osdStatus(osd: OsdEntry, deadlineMs: number): Promise<OsdStatus | undefined> {
    const peer = this.messenger.peer(osd.address);
    const asked = peer.call(GetOsdStatus, {}, { deadlineMs });
    try {
      const answer = await within(asked, deadlineMs);
      return answer?.message.id === osd.id ? answer.message : undefined;
    } catch (error) {
      if (isDssError(error)) return undefined;
      throw error;
    }
  }

  /** Reads and verifies the OSD's own copy. */
  async digestObject(
    osd: OsdEntry,
    request: { pg: number; object: string },
  ): Promise<OsdDigestReply> {
    const peer = this.messenger.peer(osd.address);
    return (await peer.call(DigestObject, request, { deadlineMs: VERIFY_MS })).message;
  }

  /** Asks the PG's primary for a scrub; `sinceMs`: it is over when a stamp is as new. */
  async startScrub(
    osd: OsdEntry,
    request: { pg: number; deep: boolean },
    deadlineMs: number,
  ): Promise<number> {
    const peer = this.messenger.peer(osd.address);
    const answer = await within(peer.call(StartScrub, request, { deadlineMs }), deadlineMs);
    if (answer !== undefined) return answer.message.sinceMs;
    throw new DssError("TimedOut", `osd.${osd.id} did not answer within ${deadlineMs} ms`);
  }

  /** Objects of a placement group on the OSD, by name. */
  async listObjects(
    osd: OsdEntry,
    request: { pg: number; after: string; limit: number },
  ): Promise<Infer<typeof OsdListReply>["objects"]> {
    const peer = this.messenger.peer(osd.address);
    return (await peer.call(ListObjects, request, { deadlineMs: LIST_MS })).message.objects;
  }

  /** The same, of a group that is active there in the interval. Errors: StaleEpoch, NotActive. */
  async listActive(
    osd: OsdEntry,
    request: { pg: number; interval: number; after: string; limit: number },
  ): Promise<Infer<typeof OsdListReply>["objects"]> {
    const peer = this.messenger.peer(osd.address);
    const asked = { ...request, minEpoch: this.needMap().epoch };
    return (await peer.call(ListActive, asked, { deadlineMs: LIST_MS })).message.objects;
  }

  /** What the objects with these names take on the primary of a placement group. */
  async measureObjects(
    osd: OsdEntry,
    request: { pg: number; interval: number; prefix: string },
  ): Promise<OsdMeasured> {
    const peer = this.messenger.peer(osd.address);
    return (await peer.call(MeasureObjects, request, { deadlineMs: LIST_MS })).message;
  }

  /** The OSD's entry. Errors: NotFound. */
  needOsd(id: OsdId): OsdEntry {
    const map = this.needMap();
    const osd = map.osds.find((each) => each.id === id);
    if (osd !== undefined) return osd;
    const known = map.osds.map((each) => each.id).join(", ");
    throw new DssError("NotFound", `there is no osd.${id}`, {
      hint: known === "" ? "no OSD has joined yet" : `the cluster has: ${known}`,
    });
  }

  /** Runs the action in a session with the leader, which ends in good order. */
  async withSession<T>(detail: string, action: (mds: MdsClient) => Promise<T>): Promise<T> {
    const { MdsClient } = await import("../mds/client/mds-client.js");
    let leader: LeaderInfo | undefined = this.leader;
    const listeners = new Set<() => void>();
    const watch = watchLeader(this.coordination, silentLogger, (next) => {
      leader = next;
      for (const listener of [...listeners]) listener();
    });
    const mds = new MdsClient({
      messenger: this.messenger,
      clock: nodeClock,
      random: nodeRandom,
      logger: silentLogger,
      leader: {
        current: () => leader,
        onChange(listener) {
          listeners.add(listener);
          return () => void listeners.delete(listener);
        },
      },
      type: "cli",
      instance: "", // Two commands at a time do not succeed each other.
      host: hostname(),
      pid: process.pid,
      detail,
      operationDeadlineMs: ADMIN_MS,
    });
    mds.onSession((id) => this.messenger.setEntity(id));
    try {
      await mds.open(SESSION_MS);
      return await action(mds);
    } finally {
      await mds.close();
      watch.stop();
    }
  }

  async close(): Promise<void> {
    await Promise.all([this.messenger.close(), this.coordination.close()]);
  }
}

/**
 * Undefined when it takes longer: opening a connection to a program that was stopped has a longer
 * deadline of its own. What comes of it later is nobody's concern.
 */
async function within<T>(answer: Promise<T>, ms: number): Promise<T | undefined> {
  answer.catch(() => undefined);
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), ms);
  });
  try {
    return await Promise.race([answer, late]);
  } finally {
    clearTimeout(timer);
  }
}

function withHint(error: unknown): unknown {
  if (!isDssError(error) || error.hint !== undefined) return error;
  const passing = error.retry === "same";
  if (!passing) return error;
  return new DssError(error.code, `the metadata servers do not answer: ${error.message}`, {
    cause: error.cause,
    hint: "see dss status; after a failover, try again in a few seconds",
  });
}

/** Runs the action with a view of the cluster and closes it, whatever happens. */
export async function withClient<T>(
  zookeeper: string,
  action: (client: ClusterClient) => Promise<T> | T,
): Promise<T> {
  const client = await ClusterClient.open(zookeeper);
  try {
    return await action(client);
  } finally {
    await client.close();
  }
}
