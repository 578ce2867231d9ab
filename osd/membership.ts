/**
 * What an OSD asks of the coordinator about in-sync sets (design §4 Joining, Leaving). An answer
 * may be lost, so every question is repeated until the interval that it was asked in is over; the
 * coordinator refuses what comes too late.
 */
import { DssError, describeError } from "../cluster/base/errors.js";
import { formatPg, type Epoch, type Interval, type OsdId, type PgId } from "../cluster/base/ids.js";
import type { Logger } from "../cluster/base/log.js";
import { Backoff } from "../cluster/messenger/backoff.js";
import type { Clock, RandomSource } from "../cluster/platform/ports.js";
import type { PlacementGroup } from "./placement-group.js";

export interface MemberRequest {
  pg: PgId;
  interval: Interval;
  requester: OsdId;
  member: OsdId;
}

export interface UnreachableReport {
  id: OsdId;
  incarnation: string;
  reporter: OsdId;
  silent: boolean;
}

/** The way to the coordinator. Answers with the epoch in which the change took effect. */
export interface CoordinatorClient {
  /** Errors: Conflict (the interval is over), Busy (too few would remain), those of the path. */
  removeMember(request: MemberRequest): Promise<Epoch>;
  /**
   * Errors: Conflict (the interval is over, or the member is not up in this incarnation), those of
   * the path.
   */
  addMember(request: MemberRequest & { incarnation: string }): Promise<Epoch>;
  /**
   * The OSD refuses connections, and the coordinator looks for itself; or it is silent, and the
   * coordinator counts who says so. Errors: those of the path.
   */
  reportUnreachable(report: UnreachableReport): Promise<void>;
  /**
   * This OSD, which the map shows as down, hears most of its peers. Errors: those of the path.
   */
  reportAlive(report: { id: OsdId; incarnation: string }): Promise<void>;
}

export interface MembershipOptions {
  id: OsdId;
  clock: Clock;
  random: RandomSource;
  logger: Logger;
  coordinator: CoordinatorClient;
  /** Fetches the map of this epoch if it has not come yet. */
  learn: (epoch: Epoch) => void;
}

const FIRST_PAUSE_MS = 100;
const PAUSE_MAX_MS = 2_000;

export class Membership {
  /** Removals being asked for: "pg interval member". */
  private readonly asking = new Set<string>();

  constructor(private readonly options: MembershipOptions) {}

  /** Asks until the interval is over or `isNeeded` is false. */
  askRemoval(pg: PlacementGroup, member: OsdId, isNeeded: () => boolean): void {
    const request = this.request(pg, member);
    const key = `${request.pg} ${request.interval} ${member}`;
    if (this.asking.has(key)) return;
    this.asking.add(key);
    this.options.logger.warn(
      { pg: formatPg(pg.id), interval: request.interval, osd: member },
      member === this.options.id
        ? "this OSD lacks part of the pg; asking for its own removal"
        : "a member does not answer or lacks the pg; asking for its removal",
    );
    this.repeat(pg, isNeeded, () => this.options.coordinator.removeMember(request)).then(
      () => this.asking.delete(key),
      (error: unknown) => {
        throw error; // A bug: operating errors are dealt with in `repeat`.
      },
    );
  }

  /**
   * Asks until the interval is over: it ends with the addition, or with the learner's removal if it
   * is refused (the learner must sync every write until then, because an earlier request may still
   * take effect).
   */
  async askAddition(pg: PlacementGroup, member: OsdId, incarnation: string): Promise<void> {
    const request = { ...this.request(pg, member), incarnation };
    let isRefused = false;
    await this.repeat(
      pg,
      () => !isRefused,
      async () => {
        try {
          return await this.options.coordinator.addMember(request);
        } catch (error) {
          isRefused = error instanceof DssError && error.code === "Conflict";
          throw error;
        }
      },
    );
    if (isRefused && pg.entry.interval === request.interval) {
      this.askRemoval(pg, member, () => true);
    }
  }

  reportUnreachable(id: OsdId, incarnation: string, silent: boolean): void {
    const report = { id, incarnation, reporter: this.options.id, silent };
    this.tell(id, this.options.coordinator.reportUnreachable(report));
  }
  reportAlive(incarnation: string): void {
    const { id, coordinator } = this.options;
    this.tell(id, coordinator.reportAlive({ id, incarnation }));
  }
  private tell(id: OsdId, told: Promise<void>): void {
    told.catch((error: unknown) => {
      if (!(error instanceof DssError)) throw error;
      // The next heartbeat tells again.
      this.options.logger.debug({ osd: id, error: describeError(error) }, "could not report");
    });
  }

  private request(pg: PlacementGroup, member: OsdId): MemberRequest {
    return { pg: pg.id, interval: pg.entry.interval, requester: this.options.id, member };
  }

  private async repeat(
    pg: PlacementGroup,
    isNeeded: () => boolean,
    ask: () => Promise<Epoch>,
  ): Promise<void> {
    const { clock, random, logger } = this.options;
    const { generation } = pg;
    const backoff = new Backoff(random, { firstMs: FIRST_PAUSE_MS, maxMs: PAUSE_MAX_MS });
    while (generation === pg.generation && isNeeded()) {
      try {
        this.options.learn(await ask());
      } catch (error) {
        if (!(error instanceof DssError)) throw error;
        logger.debug({ pg: formatPg(pg.id), error: describeError(error) }, "the set stays");
        if (error.epoch > 0) this.options.learn(error.epoch);
      }
      if (generation !== pg.generation) return;
      await new Promise<void>((resolve) => void clock.setTimer(backoff.next(), resolve));
    }
  }
}
