/**
 * Scrub of the PGs that this OSD is primary of (design §5; decisions in core/scrub.ts). A PG is
 * gone through in name order, a chunk at a time: the members' indexes are compared, what differs is
 * looked at again under the object's lock and put right, and in a deep scrub every member reads its
 * copies through and repairs what is damaged. Client writes wait for no more than one object's
 * comparison or copy.
 *
 * How far a scrub has come is durable now and then, and its outcome on all members: it goes on
 * after a crash or a new primary.
 *
 * Owner of: which scrubs are wanted and which run.
 */
import { DssError, describeError } from "../cluster/base/errors.js";
import { formatPg, type OsdId, type PgId } from "../cluster/base/ids.js";
import { Backoff } from "../cluster/messenger/backoff.js";
import type { RandomSource, Timer } from "../cluster/platform/ports.js";
import type { Call } from "../cluster/wire/registry.js";
import {
  compareCopies,
  judgeCopies,
  scrubDue,
  type Copy,
  type ScrubStamps,
  type Verdict,
} from "./core/scrub.js";
import { imageFromWire, imageToWire } from "./image-wire.js";
import type { MemberSide } from "./member.js";
import type { PgHost, PlacementGroup } from "./placement-group.js";
import {
  PullObject,
  PushObject,
  ScrubEnded,
  ScrubIndex,
  ScrubList,
  ScrubObject,
  type ScrubStatus,
} from "./proto.js";
import type { ScrubMember } from "./scrub-member.js";
import { Slots } from "../cluster/base/slots.js";
import { OpKind, type ObjectImage } from "./store/chunk-store.js";

export interface ScrubOptions {
  /** A PG is scrubbed so often, and read through so often. */
  lightMs: number;
  deepMs: number;
  /** PGs at a time. */
  max: number;
  /** How long health tells of damage that was met. */
  shownMs: number;
}

/** Objects compared at a time. */
const CHUNK_OBJECTS = 64;
/** Progress is written down after so many chunks. */
const NOTE_CHUNKS = 16;
/** How often is looked for PGs whose turn it is, and for damage that may have gone. */
const TICK_MS = 10_000;
const CALL_DEADLINE_MS = 10_000;
/** Reading an object through on a busy disk. */
const DEEP_DEADLINE_MS = 60_000;
const LOG_ENTRIES_MAX = 100_000;

/** The interval is over, or this OSD is primary no more: the scrub goes on when it can. */
class Superseded extends Error {}

interface Wanted {
  deep: boolean;
  /** When it was asked for last: milliseconds since 1970. */
  sinceMs: number;
  isRunning: boolean;
  /** Another scrub was asked for while this one ran. */
  again: "no" | "light" | "deep";
}

/** A scrub under way, in the interval that it has come to. */
interface Run {
  readonly pg: PlacementGroup;
  readonly deep: boolean;
  readonly startedMs: number;
  readonly generation: number;
  cursor: string;
  done: number;
  found: number;
  left: number;
}

export class Scrubber {
  private readonly wanted = new Map<PlacementGroup, Wanted>();
  private readonly progress = new Map<PlacementGroup, Run>();
  /** Since when this primary knows a PG that was never scrubbed. */
  private readonly knownMs = new Map<PgId, number>();
  private readonly slots: Slots;
  private timer: Timer | undefined;
  private isStopped = false;

  constructor(
    private readonly host: PgHost,
    private readonly parts: {
      options: ScrubOptions;
      member: MemberSide;
      scrubMember: ScrubMember;
      random: RandomSource;
      pgs: () => Iterable<PlacementGroup>;
    },
  ) {
    this.slots = new Slots(parts.options.max);
  }

  start(): void {
    const { lightMs } = this.parts.options;
    this.timer = this.host.clock.setTimer(Math.min(TICK_MS, lightMs / 4), () => {
      this.tick();
      this.start();
    });
  }
  stop(): void {
    this.isStopped = true;
    this.timer?.cancel();
  }

  /** A person's wish. The scrub is over when a stamp is as new as what is returned. */
  request(pg: PlacementGroup, deep: boolean): number {
    if (pg.entry.primary !== this.host.id) {
      const text = `osd.${this.host.id} is not the primary of pg ${formatPg(pg.id)}`;
      throw new DssError("NotPrimary", text, { epoch: this.host.epoch() });
    }
    const sinceMs = this.wallMs();
    this.want(pg, deep, sinceMs);
    return sinceMs;
  }

  status(pg: PlacementGroup): ScrubStatus {
    const wanted = this.wanted.get(pg);
    const run = this.progress.get(pg);
    return {
      ...pg.record.scrub.stamps,
      state: wanted === undefined ? "idle" : run === undefined ? "waiting" : "running",
      deep: wanted?.deep ?? false,
      done: run?.done ?? 0,
    };
  }

  private wallMs(): number {
    return Number(this.host.clock.wallNs() / 1_000_000n);
  }

  private tick(): void {
    const nowMs = this.wallMs();
    for (const pg of this.parts.pgs()) {
      this.lookAgain(pg);
      if (pg.activity !== "active" || this.wanted.has(pg)) continue;
      const knownMs = this.knownMs.get(pg.id) ?? nowMs;
      this.knownMs.set(pg.id, knownMs);
      const { stamps, progress } = pg.record.scrub;
      if (progress !== undefined) {
        // One that an earlier life or primary left off.
        this.want(pg, progress.deep, progress.startedMs);
        continue;
      }
      const due = scrubDue(stamps, { nowMs, knownMs, pg: pg.id }, this.parts.options);
      if (due !== undefined) this.want(pg, due === "deep", nowMs);
    }
  }

  /** Damage that could not be repaired may have been overwritten, or a member is back. */
  private lookAgain(pg: PlacementGroup): void {
    for (const object of pg.damage.names()) {
      if (!this.host.store.hasPg(pg.id)) return pg.damage.forget(object);
      this.host.repairer.heal(pg, object).catch((error: unknown) => {
        if (!(error instanceof DssError)) throw error;
        this.host.logger.debug({ object, error: describeError(error) }, "still damaged");
      });
    }
  }

  private want(pg: PlacementGroup, deep: boolean, sinceMs: number): void {
    const known = this.wanted.get(pg);
    if (known !== undefined) {
      // What has begun may have passed over what the person means.
      if (known.isRunning) known.again = deep || known.again === "deep" ? "deep" : "light";
      else known.deep ||= deep;
      return;
    }
    const wanted: Wanted = { deep, sinceMs, isRunning: false, again: "no" };
    this.wanted.set(pg, wanted);
    this.carryOut(pg, wanted).catch((error: unknown) => {
      this.host.fatal(error instanceof Error ? error : new Error(String(error)));
    });
  }

  private async carryOut(pg: PlacementGroup, wanted: Wanted): Promise<void> {
    const free = await this.slots.take();
    try {
      wanted.isRunning = true;
      await this.untilDone(pg, wanted.deep, wanted.sinceMs);
    } finally {
      free();
      this.progress.delete(pg);
      this.wanted.delete(pg);
    }
    if (wanted.again !== "no") this.want(pg, wanted.again === "deep", this.wallMs());
  }

  /** Goes on through failures and new intervals as long as this OSD is the primary. */
  private async untilDone(pg: PlacementGroup, deep: boolean, sinceMs: number): Promise<void> {
    const backoff = new Backoff(this.parts.random, { firstMs: 200, maxMs: 5_000 });
    const startedMs = this.wallMs();
    while (!this.isStopped && pg.entry.primary === this.host.id && this.host.store.hasPg(pg.id)) {
      if (pg.activity === "active" && pg.record.whole) {
        try {
          await this.run(this.begin(pg, deep, { startedMs, sinceMs }));
          return;
        } catch (error) {
          if (!(error instanceof DssError) && !(error instanceof Superseded)) throw error;
          const fields = { pg: formatPg(pg.id), error: describeError(error) };
          this.host.logger.debug(fields, "scrub is interrupted");
        }
      }
      this.progress.delete(pg);
      const ms = backoff.next();
      await new Promise<void>((resolve) => void this.host.clock.setTimer(ms, resolve));
    }
  }

  /** Where an interrupted scrub had come to, unless it began before this one was asked for. */
  private begin(
    pg: PlacementGroup,
    deep: boolean,
    { startedMs, sinceMs }: { startedMs: number; sinceMs: number },
  ): Run {
    const { generation } = pg;
    const { progress } = pg.record.scrub;
    if (progress !== undefined && progress.deep === deep && progress.startedMs >= sinceMs) {
      return { pg, generation, ...progress };
    }
    return { pg, deep, startedMs, generation, cursor: "", done: 0, found: 0, left: 0 };
  }

  // ——— One scrub ———

  private async run(run: Run): Promise<void> {
    const { pg, deep } = run;
    this.progress.set(pg, run);
    if (deep && run.cursor === "") await this.verifyIndexes(run);
    for (let chunk = 1; ; chunk++) {
      const cursor = await this.chunk(run);
      if (cursor === undefined) break;
      run.cursor = cursor;
      if (chunk % NOTE_CHUNKS === 0) await this.noteProgress(run);
    }
    const { stamps: before } = pg.record.scrub;
    const stamps: ScrubStamps = {
      lightMs: run.startedMs,
      deepMs: deep ? run.startedMs : before.deepMs,
      found: run.found,
      left: run.left,
    };
    await this.tellMembers(run, stamps);
    await this.note(pg, { stamps });
    this.host.count(deep ? "deepScrubs" : "lightScrubs");
    const { done: objects, found, left } = run;
    const fields = { pg: formatPg(pg.id), deep, objects, found, left };
    if (left > 0) this.host.logger.error(fields, "scrub has found what it could not repair");
    else if (found > 0) this.host.logger.warn(fields, "scrub has repaired what it found");
    else this.host.logger.debug(fields, "scrub has found nothing");
  }

  private async verifyIndexes(run: Run): Promise<void> {
    const { pg } = run;
    const { id } = this.host;
    const request = { pg: pg.id, interval: pg.entry.interval };
    const found = await Promise.all(
      [id, ...pg.others].map((member) =>
        member === id
          ? this.parts.scrubMember.verifyIndex(pg)
          : this.ask(run, member, ScrubIndex, request, DEEP_DEADLINE_MS),
      ),
    );
    for (const { damaged } of found) {
      run.found += damaged;
      this.host.count("scrubErrors", damaged);
    }
    this.check(run);
    // Who has lost something leaves the set: the scrub goes on with what was found in mind.
    if (run.found > 0 && pg.record.whole) await this.noteProgress(run);
    this.check(run);
  }

  private check({ pg, generation }: Run): void {
    if (this.isStopped || generation !== pg.generation) throw new Superseded();
  }

  private noteProgress({ pg, generation: _, ...progress }: Run): Promise<void> {
    return this.note(pg, { stamps: pg.record.scrub.stamps, progress });
  }
  private note(pg: PlacementGroup, scrub: PlacementGroup["record"]["scrub"]): Promise<void> {
    return new Promise((resolve) =>
      pg.record.noteScrub(scrub, (error) => {
        if (error === undefined) resolve();
        else this.host.fatal(error); // Never resolves: the OSD stops.
      }),
    );
  }

  private async tellMembers(run: Run, stamps: ScrubStamps): Promise<void> {
    const { pg } = run;
    const request = { pg: pg.id, interval: pg.entry.interval, stamps };
    await Promise.all(
      pg.others.map((member) => this.ask(run, member, ScrubEnded, request, DEEP_DEADLINE_MS)),
    );
    this.check(run);
  }

  /** Compares the next objects; returns how far that was, or undefined at the end. */
  private async chunk(run: Run): Promise<string | undefined> {
    const { pg, cursor: after, deep } = run;
    const { id } = this.host;
    const request = { pg: pg.id, interval: pg.entry.interval, after, limit: CHUNK_OBJECTS };
    const listings = await Promise.all(
      [id, ...pg.others].map(async (member) => ({
        member,
        ...(member === id
          ? await this.parts.scrubMember.list(pg, after, CHUNK_OBJECTS)
          : await this.ask(run, member, ScrubList, request, CALL_DEADLINE_MS)),
      })),
    );
    this.check(run);
    const { objects, suspects, cursor } = compareCopies(listings);
    for (const object of suspects) await this.settle(run, object);
    if (deep) for (const object of objects) await this.readThrough(run, object);
    run.done += objects.length;
    this.host.count("scrubbedObjects", objects.length);
    return cursor;
  }

  /** No write of the object is under way while its lock is held: now all copies must be equal. */
  private async settle(run: Run, object: string): Promise<void> {
    const { pg } = run;
    const unlock = await pg.lockObject(object);
    if (unlock === undefined) throw new Superseded();
    try {
      const verdict = judgeCopies(
        await this.copies(run, object),
        this.host.id,
        this.lastEntry(pg, object),
      );
      if (verdict.verdict === "equal") return;
      run.found += verdict.wrong.length;
      pg.damage.seen(this.host.clock.now());
      this.host.count("scrubErrors", verdict.wrong.length);
      const fields = { pg: formatPg(pg.id), object, ...verdict };
      this.host.logger.warn(fields, "copies of an object are not equal");
      await this.putRight(run, object, verdict);
      const after = judgeCopies(await this.copies(run, object), this.host.id, undefined);
      if (after.verdict === "equal") return;
      run.left += after.wrong.length;
      this.host.logger.error(fields, "copies of an object are still not equal");
    } finally {
      unlock();
    }
  }

  private copies(run: Run, object: string): Promise<Copy[]> {
    const { pg } = run;
    const request = { pg: pg.id, interval: pg.entry.interval, object, deep: false };
    return Promise.all(
      [this.host.id, ...pg.others].map(async (member) => ({
        member,
        row:
          member === this.host.id
            ? (await this.parts.scrubMember.examine(pg, object, false)).row
            : (await this.ask(run, member, ScrubObject, request, CALL_DEADLINE_MS)).row,
      })),
    );
  }

  private lastEntry(
    pg: PlacementGroup,
    object: string,
  ): { version: { interval: number; seq: number }; removed: boolean } | undefined {
    const { store } = this.host;
    const tail = store.pgInfo(pg.id)!.logTail;
    const entries = store.log(pg.id, tail, LOG_ENTRIES_MAX) ?? [];
    for (let i = entries.length - 1; i >= 0; i--) {
      const { object: name, version, kind } = entries[i]!;
      if (name === object) return { version, removed: kind === OpKind.remove };
    }
    return undefined;
  }

  private async putRight(
    run: Run,
    object: string,
    verdict: Exclude<Verdict, { verdict: "equal" }>,
  ): Promise<void> {
    const { pg } = run;
    const source = verdict.verdict === "copy" ? verdict.source : undefined;
    const image = source === undefined ? undefined : await this.imageOf(run, source, object);
    this.check(run);
    if (source !== undefined && image === undefined) {
      throw new DssError("NotActive", `osd.${source} does not have ${object} any more`);
    }
    const others = verdict.wrong.filter((osd) => osd !== this.host.id);
    if (others.length < verdict.wrong.length) {
      await this.parts.member.install(pg, object, image);
      this.check(run);
    }
    const { interval } = pg.entry;
    const header = { pg: pg.id, interval, attempt: pg.attempts, asOf: pg.lastSeq, object };
    const { message, data, sums } = imageToWire(header, image);
    for (const member of others) {
      const peer = this.peer(member);
      await peer.call(PushObject, message, { deadlineMs: CALL_DEADLINE_MS, data, sums });
      this.check(run);
    }
    this.host.count("repairedObjects", verdict.wrong.length);
  }

  private async imageOf(
    run: Run,
    source: OsdId,
    object: string,
  ): Promise<ObjectImage | undefined> {
    const { pg } = run;
    if (source === this.host.id) return this.host.repairer.image(pg, object);
    const request = { pg: pg.id, interval: pg.entry.interval, object };
    const deadlineMs = CALL_DEADLINE_MS;
    const { message, data, sums } = await this.peer(source).call(PullObject, request, {
      deadlineMs,
    });
    return imageFromWire(message, data, sums);
  }

  /** Every member reads its copy and repairs it. */
  private async readThrough(run: Run, object: string): Promise<void> {
    const { pg } = run;
    const request = { pg: pg.id, interval: pg.entry.interval, object, deep: true };
    const replies = await Promise.all([
      this.parts.scrubMember.examine(pg, object, true),
      ...pg.others.map((member) => this.ask(run, member, ScrubObject, request, DEEP_DEADLINE_MS)),
    ]);
    this.check(run);
    for (const { found, left, bytes: read } of replies) {
      run.found += found;
      run.left += left;
      this.host.count("scrubbedBytes", read);
      if (found > 0) this.host.count("scrubErrors", found);
    }
  }

  private peer(member: OsdId): NonNullable<ReturnType<PgHost["peer"]>> {
    const peer = this.host.peer(member);
    if (peer !== undefined) return peer;
    throw new DssError("Unreachable", `osd.${member} has no address`);
  }
  private async ask<Request, Reply>(
    run: Run,
    member: OsdId,
    call: Call<Request, Reply>,
    request: Request,
    deadlineMs: number,
  ): Promise<Reply> {
    this.check(run);
    const { message } = await this.peer(member).call(call, request, { deadlineMs });
    return message;
  }
}

