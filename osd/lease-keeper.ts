/**
 * Gets and renews the grants under which this OSD's active PGs serve reads (core/leases.ts), and
 * answers those who ask for them. One message per member covers all the PGs shared with it.
 *
 * On demand: a read without a valid lease asks at once; while reads keep coming the lease is
 * renewed at a third of its time; without reads there is no traffic.
 */
import { DssError } from "../cluster/base/errors.js";
import type { OsdId } from "../cluster/base/ids.js";
import { heldFor } from "../cluster/base/lease.js";
import { pgOf, type MapSource } from "../cluster/map/cluster-map.js";
import type { Incoming } from "../cluster/messenger/messenger.js";
import type { Timer } from "../cluster/platform/ports.js";
import type { GrantBook } from "./core/leases.js";
import type { PgHost, PlacementGroup } from "./placement-group.js";
import { GrantLease, type LeaseReply, type LeaseRequest } from "./proto.js";

/** A member that did not grant is asked again after this, while reads wait. */
const RETRY_MS = 20;
const MAP_WAIT_MS = 3_000;

export class LeaseKeeper {
  private waiting = new Map<PlacementGroup, (() => void)[]>();
  /** Members with a request under way, and whether another one is due after it. */
  private readonly busy = new Map<OsdId, { again: boolean }>();
  private renewal: Timer | undefined;
  private retry: Timer | undefined;
  private isDue = false;

  constructor(
    private readonly host: PgHost,
    private readonly options: {
      leaseMs: number;
      maps: MapSource;
      grants: GrantBook;
      pgs: () => Iterable<PlacementGroup>;
    },
  ) {}

  // ——— As a primary ———

  /** Runs `ready` once the PG has a lease; never, if its interval ends before. */
  acquire(pg: PlacementGroup, ready: () => void): void {
    const waiting = this.waiting.get(pg);
    if (waiting === undefined) this.waiting.set(pg, [ready]);
    else waiting.push(ready);
    if (this.isDue) return;
    // After what is at hand: reads of several PGs then share their messages.
    this.isDue = true;
    this.host.clock.defer(() => {
      this.isDue = false;
      this.ask();
    });
  }
  /** The PG's interval is over. */
  forget(pg: PlacementGroup): void {
    this.waiting.delete(pg);
  }

  /** Asks every member that shares a PG for which reads wait or came since the last time. */
  private ask(): void {
    const members = new Set<OsdId>();
    for (const pg of this.options.pgs()) {
      if (pg.activity !== "active" || !(pg.isRead || this.waiting.has(pg))) continue;
      pg.isRead = false;
      for (const member of pg.grantors) members.add(member);
    }
    for (const [pg] of this.waiting) this.serve(pg);
    if (members.size === 0) return;
    for (const member of members) this.askMember(member);
    this.renewal ??= this.host.clock.setTimer(this.options.leaseMs / 3, () => {
      this.renewal = undefined;
      this.ask();
    });
  }

  private askMember(member: OsdId): void {
    const busy = this.busy.get(member);
    if (busy !== undefined) {
      busy.again = true;
      return;
    }
    const peer = this.host.peer(member);
    if (peer === undefined) return this.askLater();
    const state = { again: false };
    this.busy.set(member, state);
    const shared: { pg: PlacementGroup; interval: number }[] = [];
    for (const pg of this.options.pgs()) {
      if (pg.activity !== "active" || !pg.grantors.includes(member)) continue;
      shared.push({ pg, interval: pg.entry.interval });
    }
    const { leaseMs } = this.options;
    const until = this.host.clock.now() + heldFor(leaseMs);
    const request = { pgs: shared.map(({ pg, interval }) => ({ pg: pg.id, interval })) };
    peer.call(GrantLease, request, { deadlineMs: leaseMs }).then(
      ({ message, epoch }) => {
        this.onReply(member, shared, message, until);
        if (message.granted.length < shared.length) this.learn(epoch);
        this.finish(member, state);
      },
      (error: unknown) => {
        if (!(error instanceof DssError)) throw error;
        for (const { pg, interval } of shared) {
          if (pg.entry.interval !== interval || !this.waiting.has(pg)) continue;
          pg.memberFailed(member, error, leaseMs);
        }
        this.finish(member, state);
      },
    );
  }

  private onReply(
    member: OsdId,
    shared: readonly { pg: PlacementGroup; interval: number }[],
    message: LeaseReply,
    until: number,
  ): void {
    const granted = new Set(message.granted);
    for (const { pg, interval } of shared) {
      if (!granted.has(pg.id) || pg.entry.interval !== interval) continue;
      pg.memberAnswered(member);
      pg.lease.granted(member, until);
      this.serve(pg);
    }
  }

  private finish(member: OsdId, state: { again: boolean }): void {
    this.busy.delete(member);
    if (state.again) this.askMember(member);
    else if (this.waiting.size > 0) this.askLater();
  }
  private askLater(): void {
    this.retry ??= this.host.clock.setTimer(RETRY_MS, () => {
      this.retry = undefined;
      if (this.waiting.size > 0) this.ask();
    });
  }

  private serve(pg: PlacementGroup): void {
    if (this.host.clock.now() >= pg.lease.until) return;
    const ready = this.waiting.get(pg);
    this.waiting.delete(pg);
    for (const run of ready ?? []) run();
  }

  /** Who did not grant may know of a newer interval. */
  private learn(epoch: number): void {
    const { maps } = this.options;
    if (epoch <= maps.current().epoch) return;
    maps.atLeast(epoch, MAP_WAIT_MS).catch((error: unknown) => {
      // It comes by itself when ZooKeeper can be reached.
      if (!(error instanceof DssError)) throw error;
    });
  }

  // ——— As a member ———

  grant(request: Incoming<LeaseRequest, LeaseReply>): void {
    const { maps } = this.options;
    const newest = Math.max(0, ...request.message.pgs.map(({ interval }) => interval));
    if (newest <= maps.current().epoch) return this.decide(request);
    maps.atLeast(newest, MAP_WAIT_MS).then(
      () => this.decide(request),
      (error: unknown) => request.fail(error),
    );
  }

  private decide(request: Incoming<LeaseRequest, LeaseReply>): void {
    const map = this.options.maps.current();
    const now = this.host.clock.now();
    const granted: number[] = [];
    for (const { pg, interval } of request.message.pgs) {
      const entry = pgOf(map, pg);
      if (entry?.interval !== interval || entry.primary !== request.sender) continue;
      this.options.grants.grant(pg, request.sender, now);
      granted.push(pg);
    }
    request.reply({ granted });
  }
}
