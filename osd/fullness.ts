/**
 * How full the OSDs are that this one works with (design §5 Full). A primary refuses a client's
 * write when it could take any member beyond the full mark, what is on its way included; copies of
 * recovery have marks of their own.
 *
 * Levels come with every answer to replication and with heartbeats. Between two of them a member
 * gets what this OSD has sent, and what others have, of which nothing is known: they are taken to
 * have as much under way as this one.
 *
 * Owner of: the levels known, and the bytes of admitted writes.
 */
import type { OsdId } from "../cluster/base/ids.js";
import type { ClusterMap } from "../cluster/map/cluster-map.js";
import type { StoreUsage } from "./store/chunk-store.js";

/** Bytes: used by objects, and what objects may use in all. */
export interface FillLevel {
  used: number;
  total: number;
}

/** So long a refusal is told. */
const REFUSAL_SHOWN_MS = 60_000;

export class Fullness {
  private readonly levels = new Map<OsdId, FillLevel>();
  /** Blocks of client writes that not all members have acknowledged. */
  private pendingBytes = 0;
  /** Bytes of copies on their way. */
  private readonly copying = new Map<OsdId, number>();
  /** When a write was last refused for want of room there; ms of the monotonic clock. */
  private readonly refusals = new Map<OsdId, number>();
  /** By epoch: how many OSDs may be sending to the same member. */
  private senders = { epoch: -1, count: 1 };

  constructor(
    private readonly id: OsdId,
    private readonly usage: () => StoreUsage,
    private readonly map: () => ClusterMap,
    private readonly now: () => number,
  ) {}

  own(): FillLevel {
    const { used, total } = this.usage();
    return { used, total };
  }
  report(osd: OsdId, { used, total }: FillLevel): void {
    this.levels.set(osd, { used, total });
  }
  private level(osd: OsdId): FillLevel | undefined {
    return osd === this.id ? this.own() : this.levels.get(osd);
  }

  /** The member that has no room for `bytes` more of client data; undefined when all have. */
  memberWithoutRoom(members: readonly OsdId[], bytes: number): OsdId | undefined {
    const map = this.map();
    const onTheWay = this.pendingBytes * this.countSenders(map) + bytes;
    const found = members.find((osd) => {
      const level = this.level(osd);
      return level !== undefined && level.used + onTheWay > level.total * map.fullRatio;
    });
    if (found !== undefined) this.refusals.set(found, this.now());
    return found;
  }
  /**
   * OSDs for whose sake writes were refused a short while ago and that are nearly full still. One
   * may be just below the mark: what did not fit was larger than what is left.
   */
  refusing(): OsdId[] {
    const { nearFullRatio } = this.map();
    return [...this.refusals].flatMap(([osd, at]) => {
      const level = this.level(osd);
      const isRecent = this.now() - at < REFUSAL_SHOWN_MS;
      return isRecent && level !== undefined && level.used >= level.total * nearFullRatio
        ? [osd]
        : [];
    });
  }
  admitted(bytes: number): void {
    this.pendingBytes += bytes;
  }
  finished(bytes: number): void {
    this.pendingBytes -= bytes;
  }

  /**
   * May a copy of `bytes` go there? `forSafety`: the PG has fewer good copies than wanted, which is
   * worth more than room for clients. A copy that only moves never makes a full disk fuller.
   */
  mayTakeCopy(osd: OsdId, bytes: number, forSafety: boolean): boolean {
    const map = this.map();
    const level = this.level(osd);
    const ratio = forSafety ? map.backfillFullRatio : map.fullRatio;
    const onTheWay = (this.copying.get(osd) ?? 0) * this.countSenders(map) + bytes;
    return level === undefined || level.used + onTheWay <= level.total * ratio;
  }
  /** A copy is on its way, until the function that is returned is called. */
  copies(osd: OsdId, bytes: number): () => void {
    const add = (more: number): void => {
      this.copying.set(osd, (this.copying.get(osd) ?? 0) + more);
    };
    add(bytes);
    return () => add(-bytes);
  }

  private countSenders(map: ClusterMap): number {
    if (this.senders.epoch !== map.epoch) {
      const count = Math.max(1, map.osds.filter((osd) => osd.up).length);
      this.senders = { epoch: map.epoch, count };
    }
    return this.senders.count;
  }
}
