/**
 * Brings OSDs that belong to a PG, but are not in its in-sync set, up to date and has them added
 * (design §4 Joining; decisions in core/recover.ts). Runs on the primary of a PG that is active or
 * waits for a member; ends with the interval.
 *
 * Order is everything: the learner takes over the log as of one instant, and from that instant
 * every new entry goes to it too, in order. An object is copied under a lock that keeps writes off
 * it, so the image and the entries around it cannot miss or overtake each other. Any failure
 * abandons the attempt: the stream stops at once, and the next attempt begins with what the learner
 * then says it has.
 */
import { DssError, describeError } from "../cluster/base/errors.js";
import { formatPg, type OsdId } from "../cluster/base/ids.js";
import { inParallel } from "../cluster/base/parallel.js";
import { osdOf, type ClusterMap } from "../cluster/map/cluster-map.js";
import { upSet } from "../cluster/map/placement.js";
import { Backoff } from "../cluster/messenger/backoff.js";
import type { RandomSource } from "../cluster/platform/ports.js";
import type { Call } from "../cluster/wire/registry.js";
import { assert } from "../cluster/base/assert.js";
import {
  compareListings,
  legalPhase,
  planRecovery,
  type LearnerInfo,
  type LearnerPhase,
  type Listed,
} from "./core/recover.js";
import { compareVersions, type Version } from "./core/version.js";
import { imageToWire } from "./image-wire.js";
import { EntryStream } from "./entry-stream.js";
import type { PgHost, PlacementGroup } from "./placement-group.js";
import {
  ListObjects,
  PgAdoptLog,
  PgBackfill,
  PgGetInfo,
  PgGetLog,
  PushObject,
  type LearnerStatus,
  type PgInfoReply,
} from "./proto.js";
import { Slots } from "./slots.js";

const CALL_DEADLINE_MS = 10_000;
const ADOPT_DEADLINE_MS = 30_000;
const LOG_ENTRIES_MAX = 100_000;
/** Objects copied at a time: per PG, and by the whole OSD (clients' work comes first). */
const COPIES_PER_PG = 4;
const COPIES_PER_OSD = 6;
/** Objects compared in one step of backfill. */
const BACKFILL_STEP = 256;

/** The interval is over or the learner is not wanted any more. */
class Superseded extends Error {}

interface Learner {
  readonly pg: PlacementGroup;
  readonly generation: number;
  readonly osd: OsdId;
  phase: LearnerPhase;
  isWanted: boolean;
  attempt: number;
  stream: EntryStream | undefined;
  missing: number;
  missingBytes: number;
  compared: number;
}

export class LearnerDriver {
  private readonly learners = new Map<PlacementGroup, Map<OsdId, Learner>>();
  private readonly slots = new Slots(COPIES_PER_OSD);

  constructor(
    private readonly host: PgHost,
    private readonly random: RandomSource,
    private readonly map: () => ClusterMap,
  ) {}

  /**
   * Starts and stops learners as the map says: after every map, and when a PG has become active.
   */
  review(pg: PlacementGroup): void {
    const known = this.learners.get(pg);
    const present = known ?? new Map<OsdId, Learner>();
    for (const [osd, learner] of present) {
      if (learner.generation !== pg.generation) present.delete(osd);
    }
    const isPeered = pg.activity === "active" || pg.activity === "waiting";
    const wanted = isPeered && this.host.store.hasPg(pg.id) ? this.wanted(pg) : [];
    for (const [osd, learner] of present) {
      if (wanted.includes(osd) || learner.phase === "joining") continue;
      learner.isWanted = false;
      present.delete(osd);
    }
    for (const osd of wanted) {
      if (!present.has(osd)) present.set(osd, this.begin(pg, osd));
    }
    if (present.size === 0) this.learners.delete(pg);
    else if (known === undefined) this.learners.set(pg, present);
  }

  status(pg: PlacementGroup): LearnerStatus[] {
    return [...(this.learners.get(pg)?.values() ?? [])]
      .filter((learner) => learner.generation === pg.generation)
      .map(({ osd, phase, missing, missingBytes, compared }) => {
        return { osd, phase, missing, missingBytes, compared };
      });
  }

  private wanted(pg: PlacementGroup): OsdId[] {
    const map = this.map();
    return upSet(map, pg.id).filter((osd) => {
      const entry = osdOf(map, osd);
      return entry?.up === true && entry.in && !pg.entry.inSync.includes(osd);
    });
  }

  private begin(pg: PlacementGroup, osd: OsdId): Learner {
    const learner: Learner = {
      pg,
      generation: pg.generation,
      osd,
      phase: "asking",
      isWanted: true,
      attempt: 0,
      stream: undefined,
      missing: 0,
      missingBytes: 0,
      compared: 0,
    };
    this.run(learner).catch((error: unknown) => {
      this.host.fatal(error instanceof Error ? error : new Error(String(error)));
    });
    return learner;
  }

  private async run(learner: Learner): Promise<void> {
    const { pg, osd } = learner;
    const backoff = new Backoff(this.random, { firstMs: 50, maxMs: 2_000 });
    for (;;) {
      try {
        await this.attempt(learner);
        return;
      } catch (error) {
        this.detach(learner);
        if (error instanceof Superseded || this.isOver(learner)) return;
        if (!(error instanceof DssError)) throw error;
        const fields = { pg: formatPg(pg.id), osd, error: describeError(error) };
        this.host.logger.debug(fields, "recovery is tried again");
        learner.phase = "asking";
        const ms = backoff.next();
        await new Promise<void>((resolve) => void this.host.clock.setTimer(ms, resolve));
        if (this.isOver(learner)) return;
      }
    }
  }

  private isOver(learner: Learner): boolean {
    return !learner.isWanted || learner.generation !== learner.pg.generation;
  }
  private check(learner: Learner): void {
    if (this.isOver(learner)) throw new Superseded();
    if (learner.stream?.failure !== undefined) throw learner.stream.failure;
  }
  private enter(learner: Learner, phase: LearnerPhase): void {
    assert(legalPhase(learner.phase, phase), `learner: ${learner.phase} -> ${phase}`);
    learner.phase = phase;
    const { pg, osd, missing } = learner;
    this.host.logger.debug({ pg: formatPg(pg.id), osd, phase, missing }, "learner");
  }
  private detach(learner: Learner): void {
    const { pg, osd, stream } = learner;
    stream?.stop();
    if (learner.generation === pg.generation && pg.streams.get(osd) === stream) {
      pg.streams.delete(osd);
    }
    learner.stream = undefined;
  }

  // ——— One attempt ———

  private async attempt(learner: Learner): Promise<void> {
    const { pg } = learner;
    learner.attempt = ++pg.attempts;
    const identity = { pg: pg.id, interval: pg.entry.interval, attempt: learner.attempt };
    const info = await this.ask(learner, PgGetInfo, identity, this.host.replicaTimeoutMs);
    const theirs = await this.learnerInfo(learner, info);
    let { cursor, missing } = await this.adopt(learner, theirs);
    this.enter(learner, "recovering");
    for (;;) {
      await this.copy(learner, missing);
      if (cursor === undefined) break;
      this.enter(learner, "backfilling");
      ({ cursor, missing } = await this.backfillStep(learner, cursor));
      this.enter(learner, "recovering");
    }
    await this.join(learner);
  }

  private async learnerInfo(learner: Learner, info: PgInfoReply): Promise<LearnerInfo> {
    const { pg } = learner;
    const { exists, missing, cursor } = info;
    const empty = { tail: info.logTail, entries: [] };
    const ourTail = this.host.store.pgInfo(pg.id)!.logTail;
    if (!exists || compareVersions(info.last, ourTail) < 0) {
      return { exists, missing, cursor, log: empty };
    }
    // From just before our own tail: whether the learner has that very entry decides.
    const before: Version = { interval: ourTail.interval, seq: Math.max(0, ourTail.seq - 1) };
    const after = compareVersions(info.logTail, before) >= 0 ? info.logTail : before;
    const request = { pg: pg.id, interval: pg.entry.interval, after };
    const { entries } = await this.ask(learner, PgGetLog, request);
    const tail = after === info.logTail ? after : (entries[0]?.version ?? info.last);
    return { exists, missing, cursor, log: { tail, entries } };
  }

  /**
   * Plans, and begins the stream in the same turn: the log that is handed over ends where the
   * stream begins.
   */
  private async adopt(
    learner: Learner,
    theirs: LearnerInfo,
  ): Promise<{ cursor: string | undefined; missing: string[] }> {
    const { pg, osd } = learner;
    const { store } = this.host;
    const { last, logTail } = store.pgInfo(pg.id)!;
    const entries = store.log(pg.id, logTail, LOG_ENTRIES_MAX)!;
    const plan = planRecovery({ tail: logTail, entries }, theirs);
    const isBackfill = plan.plan === "backfill";
    const common = isBackfill ? last : plan.common;
    const missing = isBackfill ? [] : plan.missing;
    const cursor = isBackfill ? "" : theirs.cursor;
    const request = {
      pg: pg.id,
      interval: pg.entry.interval,
      attempt: learner.attempt,
      create: !theirs.exists,
      startOver: isBackfill,
      common,
      entries: entries.filter(({ version }) => compareVersions(version, common) > 0),
      retries: store.exportRetries(pg.id),
      missing,
    };
    this.enter(learner, "adopting");
    learner.compared = 0;
    this.count(learner, missing);
    learner.stream = new EntryStream(this.host, osd);
    pg.streams.set(osd, learner.stream);
    await this.ask(learner, PgAdoptLog, request, ADOPT_DEADLINE_MS);
    learner.stream.start();
    return { cursor, missing };
  }

  private count(learner: Learner, missing: readonly string[]): void {
    learner.missing = missing.length;
    learner.missingBytes = 0;
    for (const object of missing) learner.missingBytes += this.bytesOf(learner, object);
  }
  private bytesOf({ pg }: Learner, object: string): number {
    return this.host.store.stat(pg.id, object)?.allocated ?? 0;
  }

  private async copy(learner: Learner, missing: readonly string[]): Promise<void> {
    await inParallel(missing, COPIES_PER_PG, async (object) => {
      this.check(learner);
      const free = await this.slots.take();
      try {
        await this.push(learner, object);
      } finally {
        free();
      }
    });
    this.check(learner);
  }

  private async push(learner: Learner, object: string): Promise<void> {
    this.check(learner);
    const { pg, osd } = learner;
    const unlock = await pg.lockObject(object);
    if (unlock === undefined) throw new Superseded();
    try {
      this.check(learner);
      const asOf = pg.lastSeq;
      const image = await this.host.store.image(pg.id, object);
      this.check(learner);
      const peer = this.host.peer(osd);
      if (peer === undefined) throw new DssError("Unreachable", `osd.${osd} has no address`);
      const { interval } = pg.entry;
      const header = { pg: pg.id, interval, attempt: learner.attempt, asOf, object };
      const { message, data, sums } = imageToWire(header, image);
      await peer.call(PushObject, message, { deadlineMs: CALL_DEADLINE_MS, data, sums });
      const bytes = image?.info.allocated ?? 0;
      learner.missing--;
      learner.missingBytes = Math.max(0, learner.missingBytes - bytes);
      this.host.count("recoveryOps");
      this.host.count("recoveryBytes", bytes);
    } catch (error) {
      // Before the lock goes: a write that the learner gets from now on could meet the image on its
      // way.
      this.detachAfterFailure(learner);
      throw error;
    } finally {
      unlock();
    }
  }
  private detachAfterFailure(learner: Learner): void {
    learner.stream?.fail(new DssError("ConnectionLost", `a copy to osd.${learner.osd} failed`));
    if (learner.generation === learner.pg.generation) learner.pg.streams.delete(learner.osd);
  }

  /** Compares the next objects; those that differ are missing from then on, the others are live. */
  private async backfillStep(
    learner: Learner,
    cursor: string,
  ): Promise<{ cursor: string | undefined; missing: string[] }> {
    const { pg } = learner;
    const request = { pg: pg.id, after: cursor, limit: BACKFILL_STEP };
    // Beyond the cursor the learner's objects stay as they are: entries for them are only logged.
    const listed = await this.ask(learner, ListObjects, request);
    const theirs: Listed[] = listed.objects.map(({ object, versionInterval, versionSeq }) => {
      return { object, version: { interval: versionInterval, seq: versionSeq } };
    });
    const ours = this.host.store.list(pg.id, cursor, BACKFILL_STEP);
    const step = compareListings(
      {
        objects: ours.map(({ object, info }) => ({ object, version: info.version })),
        complete: ours.length < BACKFILL_STEP,
      },
      { objects: theirs, complete: theirs.length < BACKFILL_STEP },
    );
    const advance = {
      pg: pg.id,
      interval: pg.entry.interval,
      attempt: learner.attempt,
      asOf: pg.lastSeq,
      missing: step.differing,
      ...(step.cursor === undefined ? {} : { cursor: step.cursor }),
    };
    learner.compared += ours.length;
    this.count(learner, step.differing);
    // In the turn of the comparison, behind all entries that it covers and ahead of all others.
    await this.ask(learner, PgBackfill, advance);
    return { cursor: step.cursor, missing: step.differing };
  }

  /**
   * Nothing is missing: from now on no write is acknowledged without the learner, and the
   * coordinator is asked.
   */
  private async join(learner: Learner): Promise<void> {
    const { pg, osd, stream } = learner;
    const map = this.map();
    const incarnation = osdOf(map, osd)?.incarnation;
    if (incarnation === undefined || stream === undefined) throw new Superseded();
    // One at a time: every addition is a new interval.
    if (pg.isAdding) {
      throw new DssError("Busy", `pg ${formatPg(pg.id)} is adding another member`);
    }
    this.enter(learner, "joining");
    pg.streams.delete(osd);
    pg.requireLearner(osd);
    try {
      await stream.drained();
      this.check(learner);
    } catch (error) {
      if (learner.generation === pg.generation) pg.releaseLearner(osd);
      throw error;
    }
    await this.host.membership.askAddition(pg, osd, incarnation);
  }

  private async ask<Request, Reply>(
    learner: Learner,
    call: Call<Request, Reply>,
    request: Request,
    deadlineMs = CALL_DEADLINE_MS,
  ): Promise<Reply> {
    this.check(learner);
    const peer = this.host.peer(learner.osd);
    if (peer === undefined) throw new DssError("Unreachable", `osd.${learner.osd} has no address`);
    const { message } = await peer.call(call, request, { deadlineMs });
    this.check(learner);
    return message;
  }
}
