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
import { formatPg, poolOfPg, type OsdId } from "../cluster/base/ids.js";
import { inParallel } from "../cluster/base/parallel.js";
import { hasFlag, osdOf, poolOf, type ClusterMap } from "../cluster/map/cluster-map.js";
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
import { PATCH_BYTES_MIN, differingRuns } from "./image-patch.js";
import { adoptionPages, fetchLog } from "./log-transfer.js";
import type { PgHost, PlacementGroup } from "./placement-group.js";
import {
  BlockDigests,
  ListObjects,
  PgAdoptLog,
  PgBackfill,
  PgGetInfo,
  PgGetLog,
  PushObject,
  type LearnerStatus,
  type PgInfoReply,
} from "./proto.js";
import { Slots } from "../cluster/base/slots.js";
import type { ObjectImage } from "./store/chunk-store.js";
import type { Turn } from "./work-queue.js";

const CALL_DEADLINE_MS = 10_000;
const ADOPT_DEADLINE_MS = 30_000;
/** More than the longest log that the option permits; a longer one is not handed over. */
const LOG_ENTRIES_MAX = 100_000;
/**
 * PGs that are brought up to date at a time, so that they are done one after the other: until it
 * has joined, a learner costs an additional copy of every write.
 */
const LEARNERS_AT_A_TIME = 8;
/**
 * Objects on their way: workers per PG, and bytes of the whole OSD (memory here and there; who may
 * work how much is the work queue's matter). A small object counts as COPY_BYTES_MIN.
 */
const COPIES_PER_PG = 4;
const COPY_BYTES_MAX = 16 * 1024 * 1024;
const COPY_BYTES_MIN = 256 * 1024;
/** The other side receives, writes and syncs what is read and sent here; measured (decision 6). */
const COPY_COST = 1.5;
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
  missing: number;
  missingBytes: number;
  compared: number;
  backfill: boolean;
  tooFull: boolean;
  /** Objects that are expected to be copied, while `missing` does not tell yet. */
  expected: number;
}
/**
 * One beginning. Whatever belongs to an attempt that has ended stops by itself: it has its own
 * number, stream and end.
 */
interface Attempt {
  readonly learner: Learner;
  readonly number: number;
  stream: EntryStream | undefined;
  /** The learner has objects, of which it may have old copies. */
  hasCopies: boolean;
  hasEnded: boolean;
}

export class LearnerDriver {
  private readonly learners = new Map<PlacementGroup, Map<OsdId, Learner>>();
  private readonly turns = new Slots(LEARNERS_AT_A_TIME);
  private readonly copyBytes = new Slots(COPY_BYTES_MAX);

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
    const learners = this.learners.get(pg);
    if (learners === undefined) return [];
    const info = this.host.store.pgInfo(pg.id);
    const objects = info?.objects ?? 0;
    const bytesEach = objects > 0 ? info!.bytes / objects : 0;
    return [...learners.values()]
      .filter((learner) => learner.generation === pg.generation)
      .map((learner) => {
        const { osd, phase, missing, missingBytes, compared, expected } = learner;
        const { backfill, tooFull } = learner;
        const unseen = Math.max(0, Math.min(expected, objects) - compared);
        const objectsLeft = missing + unseen;
        const bytesLeft = Math.round(missingBytes + unseen * bytesEach);
        const seen = { compared, backfill, objectsLeft, bytesLeft };
        return { osd, phase, missing, missingBytes, ...seen, tooFull };
      });
  }

  private wanted(pg: PlacementGroup): OsdId[] {
    const map = this.map();
    // Copies that are merely in the wrong place may have to stay there.
    if (hasFlag(map, "norebalance") && !isDegraded(map, pg)) return [];
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
      missing: 0,
      missingBytes: 0,
      compared: 0,
      backfill: false,
      tooFull: false,
      expected: 0,
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
      const number = ++pg.attempts;
      const attempt = { learner, number, stream: undefined, hasCopies: false, hasEnded: false };
      try {
        await this.attempt(attempt);
        return;
      } catch (error) {
        this.end(attempt);
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
  private check(attempt: Attempt): void {
    if (this.isOver(attempt.learner)) throw new Superseded();
    // An index that has lost something has nothing to give that is sure.
    if (!attempt.learner.pg.record.whole) throw new Superseded();
    if (attempt.stream?.failure !== undefined) throw attempt.stream.failure;
    if (attempt.hasEnded) throw new Superseded();
  }
  /**
   * A disk that is too full takes no copies: the attempt ends, and the next one looks again. What
   * was deleted meanwhile is deleted there first, or nothing would ever make room.
   */
  private checkRoom(learner: Learner, bytes: number): void {
    if (bytes === 0) return;
    const { pg, osd } = learner;
    learner.tooFull = !this.host.fullness.mayTakeCopy(osd, bytes, isDegraded(this.map(), pg));
    if (learner.tooFull) throw new DssError("NoSpace", `osd.${osd} is too full to take copies`);
  }
  private enter(learner: Learner, phase: LearnerPhase): void {
    assert(legalPhase(learner.phase, phase), `learner: ${learner.phase} -> ${phase}`);
    learner.phase = phase;
    const { pg, osd, missing } = learner;
    this.host.logger.debug({ pg: formatPg(pg.id), osd, phase, missing }, "learner");
  }
  private end(attempt: Attempt): void {
    const { learner, stream } = attempt;
    const { pg, osd } = learner;
    attempt.hasEnded = true;
    stream?.stop();
    if (stream !== undefined && pg.streams.get(osd) === stream) pg.streams.delete(osd);
  }

  // ——— One attempt ———

  private async attempt(attempt: Attempt): Promise<void> {
    const { learner } = attempt;
    const { pg } = learner;
    // What will have to be done is known (roughly) before its turn comes.
    const before = await this.info(attempt);
    this.host.fullness.report(learner.osd, before.level);
    learner.expected = this.expectedOf(pg, before);
    const free = await this.turns.take(1, isDegraded(this.map(), pg));
    try {
      const theirs = await this.learnerInfo(attempt, await this.info(attempt));
      let { cursor, missing } = await this.adopt(attempt, theirs);
      this.enter(learner, "recovering");
      for (;;) {
        await this.copy(attempt, missing);
        if (cursor === undefined) break;
        this.enter(learner, "backfilling");
        ({ cursor, missing } = await this.backfillStep(attempt, cursor));
        this.enter(learner, "recovering");
      }
    } finally {
      free();
    }
    await this.join(attempt);
  }

  private info(attempt: Attempt): Promise<PgInfoReply> {
    const { pg } = attempt.learner;
    const identity = { pg: pg.id, interval: pg.entry.interval, attempt: attempt.number };
    return this.ask(attempt, PgGetInfo, identity, this.host.replicaTimeoutMs);
  }

  private expectedOf(pg: PlacementGroup, info: PgInfoReply): number {
    const ours = this.host.store.pgInfo(pg.id)!;
    if (!info.exists || compareVersions(info.last, ours.logTail) < 0) return ours.objects;
    const rest = info.cursor === undefined ? 0 : Math.max(0, ours.objects - info.objects);
    return rest + info.missing.length + Math.max(0, ours.last.seq - info.last.seq);
  }

  private async learnerInfo(attempt: Attempt, info: PgInfoReply): Promise<LearnerInfo> {
    const { pg } = attempt.learner;
    const { exists, missing, cursor, objects } = info;
    const empty = { tail: info.logTail, entries: [] };
    const ourTail = this.host.store.pgInfo(pg.id)!.logTail;
    if (!exists || compareVersions(info.last, ourTail) < 0) {
      return { exists, objects, missing, cursor, log: empty };
    }
    // From just before our own tail: whether the learner has that very entry decides.
    const before: Version = { interval: ourTail.interval, seq: Math.max(0, ourTail.seq - 1) };
    const after = compareVersions(info.logTail, before) >= 0 ? info.logTail : before;
    const identity = { pg: pg.id, interval: pg.entry.interval };
    const { entries } = await fetchLog({ after, withRetries: false }, (page) =>
      this.ask(attempt, PgGetLog, { ...identity, ...page }),
    );
    const tail = after === info.logTail ? after : (entries[0]?.version ?? info.last);
    return { exists, objects, missing, cursor, log: { tail, entries } };
  }

  /**
   * Plans, and begins the stream in the same turn: the log that is handed over ends where the
   * stream begins.
   */
  private async adopt(
    attempt: Attempt,
    theirs: LearnerInfo,
  ): Promise<{ cursor: string | undefined; missing: string[] }> {
    const { learner } = attempt;
    const { pg, osd } = learner;
    const { store } = this.host;
    const { last, logTail } = store.pgInfo(pg.id)!;
    const entries = store.log(pg.id, logTail, LOG_ENTRIES_MAX)!;
    const isWhole = entries.length < LOG_ENTRIES_MAX;
    const plan = isWhole
      ? planRecovery({ tail: logTail, entries }, theirs)
      : { plan: "backfill" as const };
    const isBackfill = plan.plan === "backfill";
    const common = isBackfill ? last : plan.common;
    const missing = isBackfill ? [] : plan.missing;
    const cursor = isBackfill ? "" : theirs.cursor;
    const pages = adoptionPages({
      pg: pg.id,
      interval: pg.entry.interval,
      attempt: attempt.number,
      create: !theirs.exists,
      startOver: isBackfill,
      common,
      entries: isBackfill
        ? []
        : entries.filter(({ version }) => compareVersions(version, common) > 0),
      retries: store.exportRetries(pg.id),
      missing,
    });
    this.enter(learner, "adopting");
    attempt.hasCopies = theirs.objects > 0;
    learner.compared = 0;
    learner.backfill = cursor !== undefined;
    learner.expected = cursor === undefined ? 0 : store.pgInfo(pg.id)!.objects;
    if (cursor !== undefined && cursor !== "") {
      learner.compared = Math.min(learner.expected, theirs.objects);
    }
    this.count(learner, missing);
    const stream = new EntryStream(this.host, osd);
    attempt.stream = stream;
    pg.streams.set(osd, stream);
    for (const page of pages) await this.ask(attempt, PgAdoptLog, page, ADOPT_DEADLINE_MS);
    stream.start();
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

  private async copy(attempt: Attempt, missing: readonly string[]): Promise<void> {
    const { learner } = attempt;
    const isSmall = (object: string): boolean => this.bytesOf(learner, object) === 0;
    const frees = missing.filter(isSmall);
    const takes = frees.length === 0 ? missing : missing.filter((each) => !isSmall(each));
    await inParallel([...frees, ...takes], COPIES_PER_PG, async (object) => {
      this.check(attempt);
      const bytes = this.bytesOf(learner, object);
      const free = await this.copyBytes.take(Math.max(bytes, COPY_BYTES_MIN));
      try {
        this.check(attempt);
        // Before the lock: nobody waits for an object whose turn has not come.
        const turn = await this.host.work.turn("recovery", COPY_COST * bytes);
        let arrived = (): void => undefined;
        try {
          this.checkRoom(learner, bytes);
          arrived = this.host.fullness.copies(learner.osd, bytes);
          await this.push(attempt, object, turn);
        } finally {
          arrived();
          turn.end();
        }
      } finally {
        free();
      }
    });
    this.check(attempt);
  }

  private async push(attempt: Attempt, object: string, turn: Turn): Promise<void> {
    this.check(attempt);
    const { learner } = attempt;
    const { pg, osd } = learner;
    const unlock = await pg.lockObject(object);
    if (unlock === undefined) throw new Superseded();
    try {
      // What was made from the object while it was not there is not there either.
      const names = new Set([object]);
      for (const name of names) {
        await this.pushLocked(attempt, name, turn);
        for (const copy of attempt.stream?.takeCopies(name) ?? []) names.add(copy);
      }
      const bytes = this.bytesOf(learner, object);
      learner.missing--;
      learner.missingBytes = Math.max(0, learner.missingBytes - bytes);
    } catch (error) {
      // Before the lock goes: a write that the learner gets from now on could meet the image on its
      // way.
      const failure = new DssError("ConnectionLost", `a copy to osd.${osd} failed`);
      attempt.stream?.fail(failure);
      if (pg.streams.get(osd) === attempt.stream) pg.streams.delete(osd);
      throw error;
    } finally {
      unlock();
    }
  }

  private async pushLocked(attempt: Attempt, object: string, turn: Turn): Promise<void> {
    const { pg, osd } = attempt.learner;
    this.check(attempt);
    const asOf = pg.lastSeq;
    const image = await this.host.repairer.image(pg, object);
    turn.release();
    this.check(attempt);
    const peer = this.host.peer(osd);
    if (peer === undefined) throw new DssError("Unreachable", `osd.${osd} has no address`);
    const { interval } = pg.entry;
    const header = { pg: pg.id, interval, attempt: attempt.number, asOf, object };
    const patch = image && (await this.patchOf(attempt, image, object));
    const { message, data, sums } = imageToWire(header, image, patch);
    const deadlineMs = CALL_DEADLINE_MS;
    const answer = await peer.call(PushObject, message, { deadlineMs, data, sums });
    this.host.fullness.report(osd, answer.message);
    this.host.copied(data.reduce((sum, piece) => sum + piece.length, 0));
    image?.recycle?.(); // The other side has it all: nothing waits in a socket.
  }

  /** What the learner's old copy of the object lacks; undefined: send all of it. */
  private async patchOf(
    attempt: Attempt,
    image: ObjectImage,
    object: string,
  ): Promise<ObjectImage["extents"] | undefined> {
    const isWorthIt = attempt.hasCopies && image.info.allocated >= PATCH_BYTES_MIN;
    if (!isWorthIt || image.spoiled !== undefined) return undefined;
    const { learner, number } = attempt;
    const { pg, osd } = learner;
    const peer = this.host.peer(osd);
    if (peer === undefined) throw new DssError("Unreachable", `osd.${osd} has no address`);
    const request = { pg: pg.id, interval: pg.entry.interval, attempt: number, object };
    const options = { deadlineMs: CALL_DEADLINE_MS };
    const { message, data } = await peer.call(BlockDigests, request, options);
    this.check(attempt);
    return message.exists ? differingRuns(image, data) : undefined;
  }

  /** Compares the next objects; those that differ are missing from then on, the others are live. */
  private async backfillStep(
    attempt: Attempt,
    cursor: string,
  ): Promise<{ cursor: string | undefined; missing: string[] }> {
    const { learner } = attempt;
    const { pg } = learner;
    const request = { pg: pg.id, after: cursor, limit: BACKFILL_STEP };
    // Beyond the cursor the learner's objects stay as they are: entries for them are only logged.
    const listed = await this.ask(attempt, ListObjects, request);
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
    // What was made of objects behind the cursor of then is not there, though before it: the
    // learner has noted so. (A clone's name follows that of the object that returns to it.)
    const made = attempt.stream?.takeCopiesWithin(cursor, step.cursor) ?? [];
    const lacking = made.filter((object) => object <= cursor);
    const missing = [...new Set([...step.differing, ...lacking])];
    const advance = {
      pg: pg.id,
      interval: pg.entry.interval,
      attempt: attempt.number,
      asOf: pg.lastSeq,
      missing,
      ...(step.cursor === undefined ? {} : { cursor: step.cursor }),
    };
    learner.compared += ours.length;
    this.count(learner, missing);
    // In the turn of the comparison, behind all entries that it covers and ahead of all others.
    await this.ask(attempt, PgBackfill, advance);
    return { cursor: step.cursor, missing };
  }

  /**
   * Nothing is missing: from now on no write is acknowledged without the learner, and the
   * coordinator is asked.
   */
  private async join(attempt: Attempt): Promise<void> {
    const { learner, stream } = attempt;
    const { pg, osd } = learner;
    const map = this.map();
    const incarnation = osdOf(map, osd)?.incarnation;
    if (incarnation === undefined || stream === undefined) throw new Superseded();
    // One at a time: every addition is a new interval.
    if (pg.isAdding) {
      throw new DssError("Busy", `pg ${formatPg(pg.id)} is adding another member`);
    }
    this.enter(learner, "joining");
    learner.tooFull = false;
    pg.streams.delete(osd);
    pg.requireLearner(osd);
    try {
      await stream.drained();
      this.check(attempt);
    } catch (error) {
      if (learner.generation === pg.generation) pg.releaseLearner(osd);
      throw error;
    }
    await this.host.membership.askAddition(pg, osd, incarnation);
  }

  private async ask<Request, Reply>(
    attempt: Attempt,
    call: Call<Request, Reply>,
    request: Request,
    deadlineMs = CALL_DEADLINE_MS,
  ): Promise<Reply> {
    this.check(attempt);
    const { osd } = attempt.learner;
    const peer = this.host.peer(osd);
    if (peer === undefined) throw new DssError("Unreachable", `osd.${osd} has no address`);
    const { message } = await peer.call(call, request, { deadlineMs });
    this.check(attempt);
    return message;
  }
}

/** Fewer living in-sync members than the pool wants copies. */
function isDegraded(map: ClusterMap, pg: PlacementGroup): boolean {
  const living = pg.entry.inSync.filter((osd) => osdOf(map, osd)?.up === true);
  return living.length < (poolOf(map, poolOfPg(pg.id))?.replicas ?? 0);
}
