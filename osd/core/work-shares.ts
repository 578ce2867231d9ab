/**
 * Who may work next on an OSD: clients, recovery or scrub (design §5). Pure; osd/work-queue.ts has
 * the queues and the clock.
 *
 * As in mClock every class has a reservation (bytes per second it gets whatever others want), a
 * weight (its part of what is contended) and a limit. A class's start tag rises by cost / weight
 * with everything it starts; of those who wait the lowest tag goes first (start-time fair
 * queueing). Work done under a reservation counts for the share, too: a reservation is a floor, not
 * a bonus.
 *
 * Three additions. Clients answer to latency and keep few requests open, so a class is also taken
 * for present while it has work in service or had some a moment ago: lower classes do not slip into
 * the gaps between its requests. Longer gaps may be of their own making, because all daemons of a
 * machine share its processors: while a class is active, a lower one works through its gaps in
 * bursts and rests after each for as long as its weight says, counted from what the burst took in
 * time, on the other side too. And nobody waits for a share that nobody else claims: alone, a class
 * is never held up.
 *
 * Times are milliseconds of one monotonic clock; costs are bytes.
 */
import type { WorkProfile } from "../../cluster/map/cluster-map.js";

/** In order of precedence: a class does not slip into the gaps of an earlier one. */
export const WORK_CLASSES = ["client", "recovery", "scrub"] as const;
export type WorkClass = (typeof WORK_CLASSES)[number];

export interface Share {
  /** Bytes per second; 0: none. */
  reservation: number;
  /** More than 0. */
  weight: number;
  /** Bytes per second; Infinity: none. */
  limit: number;
}
export type Shares = Readonly<Record<WorkClass, Share>>;

const MiB = 2 ** 20;
const share = (weight: number, reservation = 0, limit = Infinity): Share => {
  return { weight, reservation, limit };
};
/** What the three profiles mean. Reservations keep lost copies and scrub going under any load. */
export const PROFILES: Readonly<Record<WorkProfile, Shares>> = {
  client: {
    client: share(80),
    recovery: share(15, 4 * MiB),
    scrub: share(5, MiB, 64 * MiB),
  },
  balanced: {
    client: share(50),
    recovery: share(40, 8 * MiB),
    scrub: share(10, 2 * MiB, 128 * MiB),
  },
  recovery: {
    client: share(25),
    recovery: share(65, 16 * MiB),
    scrub: share(10, 2 * MiB),
  },
};

/** Work costs its bytes and this much for being one more thing to do. */
export const COST_BASE = 32 * 1024;
/** Of all classes together, before anything waits: enough to keep a disk and a core busy. */
export const DEPTH_DEFAULT = 8 * MiB;
/** A class is present for this long after its last work. */
export const LINGER_MS = 5;
/** And active for this long: what works in its gaps rests in between. */
const ACTIVE_MS = 1_000;
const BURST_BYTES = 4 * MiB;
/** What took long because the other side hung is no reason to rest for long. */
const REST_MS_MAX = 1_000;
const RESERVATION_DEBT_MS = 1_000;

interface Tags {
  queued: number;
  inService: number;
  endedAt: number;
  /** Where its next work starts in virtual time. */
  start: number;
  reservedAt: number;
  limitedAt: number;
  /** Turns begun and not finished, and since when there are any; the cost of those since then. */
  turns: number;
  burstSince: number;
  burstCost: number;
  /** When the last burst ended, and how long it took. */
  burstEnd: number;
  burstMs: number;
}

/** Who goes next, or how long (ms) nobody may go unless something ends or arrives. */
export type Choice = { work: WorkClass; isReserved: boolean } | { waitMs: number };

export class WorkShares {
  private readonly tags: Record<WorkClass, Tags> = {
    client: fresh(),
    recovery: fresh(),
    scrub: fresh(),
  };
  private virtual = 0;
  private inService = 0;

  constructor(
    private shares: Shares,
    private readonly depth = DEPTH_DEFAULT,
  ) {}

  /** Takes effect with the next choice. */
  setShares(shares: Shares): void {
    this.shares = shares;
    // Promises at the old rates would hold up a class that may now do more.
    for (const tags of Object.values(this.tags)) {
      tags.reservedAt = -Infinity;
      tags.limitedAt = -Infinity;
    }
  }

  arrived(work: WorkClass): void {
    const tags = this.tags[work];
    // Who did not want its share while it was there cannot claim it later.
    if (tags.queued === 0) tags.start = Math.max(tags.start, this.virtual);
    tags.queued++;
  }

  started(work: WorkClass, cost: number, nowMs: number, isReserved = false): void {
    const tags = this.tags[work];
    const { weight, reservation, limit } = this.shares[work];
    tags.queued--;
    tags.inService += cost;
    this.inService += cost;
    if (!isReserved) this.virtual = Math.max(this.virtual, tags.start);
    tags.start += cost / weight;
    if (reservation > 0) {
      const ms = (cost / reservation) * 1000;
      // What it had beyond its reservation while nobody else wanted it is soon forgotten.
      const latest = nowMs + Math.max(ms, RESERVATION_DEBT_MS);
      tags.reservedAt = Math.min(Math.max(tags.reservedAt, nowMs) + ms, latest);
    }
    if (limit < Infinity) tags.limitedAt = Math.max(tags.limitedAt, nowMs) + (cost / limit) * 1000;
    if (work === "client") return;
    if (tags.turns++ === 0) {
      tags.burstSince = nowMs;
      tags.burstCost = 0;
    }
    tags.burstCost += cost;
  }

  /** A turn of recovery or scrub is over, on the other side too. */
  finished(work: Exclude<WorkClass, "client">, nowMs: number): void {
    const tags = this.tags[work];
    if (--tags.turns > 0) return;
    tags.burstEnd = nowMs;
    tags.burstMs = nowMs - tags.burstSince;
  }

  ended(work: WorkClass, cost: number, nowMs: number): void {
    const tags = this.tags[work];
    tags.inService -= cost;
    tags.endedAt = nowMs;
    this.inService -= cost;
  }

  next(nowMs: number): Choice {
    const waiting = WORK_CLASSES.filter((work) => this.tags[work].queued > 0);
    if (waiting.length === 0) return { waitMs: Infinity };
    // Alone before all others: nobody to share with.
    if (waiting.length === 1 && waiting[0] === "client") {
      return { work: "client", isReserved: false };
    }
    let waitMs = Infinity;
    let best: WorkClass | undefined;
    for (const work of waiting) {
      const { reservedAt, limitedAt, start } = this.tags[work];
      if (limitedAt > nowMs) {
        waitMs = Math.min(waitMs, limitedAt - nowMs);
        continue;
      }
      if (this.shares[work].reservation > 0) {
        if (reservedAt <= nowMs) return { work, isReserved: true };
        waitMs = Math.min(waitMs, reservedAt - nowMs);
      }
      if (best === undefined || start < this.tags[best].start) best = work;
    }
    if (best === undefined || this.inService >= this.depth) return { waitMs };
    for (const work of WORK_CLASSES) {
      if (work === best) break;
      const { start, queued, inService, endedAt } = this.tags[work];
      if (queued > 0 || start >= this.tags[best].start) continue;
      if (inService > 0) return { waitMs };
      const lingers = endedAt + LINGER_MS - nowMs;
      if (lingers > 0) return { waitMs: Math.min(waitMs, lingers) };
      // Gaps only: nobody of an earlier class must wait for the rest of a later one.
      const quietMs = endedAt + ACTIVE_MS - nowMs;
      if (quietMs <= 0 || waiting[0] !== best) continue;
      const { turns, burstCost } = this.tags[best];
      if (turns > 0 && burstCost >= BURST_BYTES) return { waitMs: Math.min(waitMs, quietMs) };
      const rests = this.restEnd(best, work) - nowMs;
      if (turns === 0 && rests > 0) return { waitMs: Math.min(waitMs, rests) };
    }
    return { work: best, isReserved: false };
  }

  private restEnd(work: WorkClass, above: WorkClass): number {
    const { burstEnd, burstMs } = this.tags[work];
    const ratio = this.shares[above].weight / this.shares[work].weight;
    return burstEnd + Math.min(burstMs * ratio, REST_MS_MAX);
  }
}

function fresh(): Tags {
  return {
    queued: 0,
    inService: 0,
    endedAt: -Infinity,
    start: 0,
    reservedAt: -Infinity,
    limitedAt: -Infinity,
    turns: 0,
    burstSince: 0,
    burstCost: 0,
    burstEnd: -Infinity,
    burstMs: 0,
  };
}
