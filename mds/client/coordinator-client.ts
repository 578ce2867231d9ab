/**
 * The way of an OSD to the coordinator (`CoordinatorClient` of osd/membership.ts): orders for
 * whoever leads the metadata servers, as ZooKeeper shows it. One attempt a call; the OSD repeats.
 */
import { DssError } from "../../cluster/base/errors.js";
import type { Epoch, Interval, OsdId, PgId } from "../../cluster/base/ids.js";
import type { Logger } from "../../cluster/base/log.js";
import type { Messenger } from "../../cluster/messenger/messenger.js";
import type { Coordination } from "../../cluster/zk/coordination.js";
import { watchLeader, type LeaderInfo } from "../../cluster/zk/election.js";
import { MdsAdmin, type AdminRequest } from "../proto.js";

const DEADLINE_MS = 3_000;

interface MemberRequest {
  pg: PgId;
  interval: Interval;
  requester: OsdId;
  member: OsdId;
}

export class LeaderCoordinatorClient {
  private leader: LeaderInfo | undefined;
  private readonly watch: { stop(): void };

  constructor(
    private readonly messenger: Messenger,
    coordination: Coordination,
    logger: Logger,
  ) {
    this.watch = watchLeader(coordination, logger, (leader) => (this.leader = leader));
  }
  stop(): void {
    this.watch.stop();
  }

  removeMember(request: MemberRequest): Promise<Epoch> {
    return this.order({ op: "removeMember", ...request });
  }
  addMember(request: MemberRequest & { incarnation: string }): Promise<Epoch> {
    return this.order({ op: "addMember", ...request });
  }
  async reportUnreachable(report: {
    id: OsdId;
    incarnation: string;
    reporter: OsdId;
    silent: boolean;
  }): Promise<void> {
    await this.order({ op: "osdUnreachable", ...report });
  }
  async reportAlive(report: { id: OsdId; incarnation: string }): Promise<void> {
    await this.order({ op: "osdAlive", ...report });
  }

  private async order(request: AdminRequest): Promise<Epoch> {
    const { leader } = this;
    if (leader === undefined) throw new DssError("NotLeader", "no metadata server leads now");
    const peer = this.messenger.peer(leader.address);
    const { message } = await peer.call(MdsAdmin, request, { deadlineMs: DEADLINE_MS });
    return message.epoch;
  }
}
