/**
 * Carries out peering (core/peering.ts decides): the primary asks every in-sync member what it has,
 * brings all of them to the longest log, objects included, waits until no earlier primary can serve
 * reads any more, and only then becomes active. The members' side is in member.ts.
 */
import { DssError, describeError } from "../cluster/base/errors.js";
import { formatPg, type OsdId } from "../cluster/base/ids.js";
import { inParallel } from "../cluster/base/parallel.js";
import { Backoff } from "../cluster/messenger/backoff.js";
import type { RandomSource } from "../cluster/platform/ports.js";
import type { Call } from "../cluster/wire/registry.js";
import { faults } from "../cluster/base/faults.js";
import { NOBODY_KNOWN } from "./core/leases.js";
import { planPeering, type MemberInfo, type PeeringPlan } from "./core/peering.js";
import { compareVersions, VERSION_ZERO, type Version } from "./core/version.js";
import { imageFromWire, imageToWire } from "./image-wire.js";
import { adoptionPages, fetchLog, type WholeLog } from "./log-transfer.js";
import type { MemberSide } from "./member.js";
import type { PgHost, PlacementGroup } from "./placement-group.js";
import {
  CopyRead,
  PgAdoptLog,
  PgGetInfo,
  PgGetLog,
  PullObject,
  PushObject,
  ReleaseLease,
  type PgAdoptRequest,
  type PgInfoReply,
} from "./proto.js";
import type { ObjectImage } from "./store/chunk-store.js";

/** Copying and syncing may take long on a busy disk; GetInfo may not. */
const CALL_DEADLINE_MS = 10_000;
/** Objects copied at a time per PG: clients wait for these, so they pass by the work queue. */
const PARALLEL_COPIES = 4;

type CatchUp = Extract<PeeringPlan, { plan: "catch-up" }>;
type RollBack = Extract<PeeringPlan, { plan: "roll-back" }>;

/** A promise of some member to an earlier primary, by the clock of this OSD. */
interface ForeignGrant {
  holder: number;
  until: number;
}

/** Ends a peering whose interval, or whose turn, is over. */
class Superseded extends Error {}

/** One attempt: `check` throws when it is over. */
interface Attempt {
  pg: PlacementGroup;
  /** The other members that are up. */
  others: readonly OsdId[];
  number: number;
  check: () => void;
}

export class PeeringDriver {
  constructor(
    private readonly host: PgHost,
    private readonly member: MemberSide,
    private readonly random: RandomSource,
  ) {}

  /**
   * Runs until the PG is active or incomplete, or its interval is over. While members are down it
   * only gets as far as waiting for them: those who are left have every acknowledged write, and
   * others can be brought up to date by them.
   */
  async peer(pg: PlacementGroup, down: readonly OsdId[]): Promise<void> {
    const { generation } = pg;
    const backoff = new Backoff(this.random, { firstMs: 20, maxMs: 1_000 });
    for (;;) {
      try {
        await this.attempt(pg, down, generation);
        return;
      } catch (error) {
        if (error instanceof Superseded) return;
        if (!(error instanceof DssError)) throw error;
        if (generation !== pg.generation) return;
        const fields = { pg: formatPg(pg.id), error: describeError(error) };
        this.host.logger.debug(fields, "peering is tried again");
        const ms = backoff.next();
        await new Promise<void>((resolve) => void this.host.clock.setTimer(ms, resolve));
        if (generation !== pg.generation) return;
      }
    }
  }

  private async attempt(
    pg: PlacementGroup,
    down: readonly OsdId[],
    generation: number,
  ): Promise<void> {
    const number = ++pg.attempts;
    const check = (): void => {
      if (generation !== pg.generation || number !== pg.attempts) throw new Superseded();
    };
    const others = pg.others.filter((osd) => !down.includes(osd));
    const attempt: Attempt = { pg, others, number, check };
    pg.beginAttempt(number);
    const grants: ForeignGrant[] = [];
    const note = (member: OsdId, info: PgInfoReply): MemberInfo => {
      if (info.grantMs > 0) {
        grants.push({ holder: info.grantHolder, until: this.host.clock.now() + info.grantMs });
      }
      return { member, ...info, unfinished: info.cursor !== undefined };
    };
    const infos: MemberInfo[] = await Promise.all([
      this.ownInfo(pg).then((info) => note(this.host.id, info)),
      ...others.map((member) => this.memberInfo(attempt, member).then((i) => note(member, i))),
    ]);
    check();
    // Whoever answered has entered this interval, and serves nothing on earlier grants.
    const released = this.released(
      attempt,
      grants.filter(({ holder }) => !infos.some(({ member }) => member === holder)),
    );
    const plan = planPeering(infos);
    const waits = `waits for ${down.map((osd) => `osd.${osd}`).join(", ")}`;
    if (plan.plan === "create" && down.length > 0) {
      pg.transition("waiting", waits);
      return;
    }
    if (plan.plan === "incomplete") {
      this.host.logger.error({ pg: formatPg(pg.id), reason: plan.reason }, "pg is incomplete");
      pg.transition("incomplete", plan.reason);
      return;
    }
    if (plan.plan === "expel") {
      await this.expel(attempt, plan, down);
      return;
    }
    if (plan.plan === "create") await this.createEverywhere(attempt);
    else if (plan.plan === "roll-back") await this.rollBack(attempt, plan);
    else await this.catchUp(attempt, plan, infos);
    check();
    if (!faults.promoteWithoutWaiting) await released;
    check();
    if (down.length === 0) pg.transition("active");
    else pg.transition("waiting", waits);
  }

  /**
   * What these members had is gone. They are asked to leave; the others go on as if those were
   * down, so that learners can be filled where too few would be left.
   */
  private async expel(
    { pg }: Attempt,
    { members, reason }: Extract<PeeringPlan, { plan: "expel" }>,
    down: readonly OsdId[],
  ): Promise<void> {
    this.host.logger.error({ pg: formatPg(pg.id), members, reason }, "members have lost the pg");
    for (const member of members) this.host.membership.askRemoval(pg, member, () => true);
    if (members.includes(this.host.id)) pg.transition("incomplete", reason);
    else await this.attempt(pg, [...down, ...members], pg.generation);
  }

  private memberInfo({ pg, number }: Attempt, member: OsdId): Promise<PgInfoReply> {
    const request = { pg: pg.id, interval: pg.entry.interval, attempt: number };
    return this.ask(pg, member, PgGetInfo, request, this.host.replicaTimeoutMs);
  }

  /**
   * Resolves when no earlier primary can serve reads any more: its grants are over, or it says so
   * itself (a planned move of a primary then costs no wait).
   */
  private async released({ pg }: Attempt, grants: readonly ForeignGrant[]): Promise<void> {
    const untilByHolder = new Map<number, number>();
    for (const { holder, until } of grants) {
      untilByHolder.set(holder, Math.max(untilByHolder.get(holder) ?? 0, until));
    }
    const request = { pg: pg.id, interval: pg.entry.interval };
    const over = [...untilByHolder].map(([holder, until]) => {
      const expired = this.waitUntil(until);
      const peer = holder === NOBODY_KNOWN ? undefined : this.host.peer(holder);
      if (peer === undefined) return expired;
      const answered = peer.call(ReleaseLease, request, { deadlineMs: CALL_DEADLINE_MS }).then(
        () => undefined,
        (error: unknown) => {
          if (!(error instanceof DssError)) throw error;
          return expired;
        },
      );
      return Promise.race([expired, answered]);
    });
    await Promise.all(over);
  }

  private async waitUntil(instant: number): Promise<void> {
    // A timer may fire a little early by this clock.
    for (;;) {
      const ms = instant - this.host.clock.now();
      if (ms <= 0) return;
      await new Promise<void>((resolve) => void this.host.clock.setTimer(ms, resolve));
    }
  }

  private async createEverywhere(attempt: Attempt): Promise<void> {
    const { others } = attempt;
    const log = { entries: [], retries: [] };
    const request = adoptRequest(attempt, { common: VERSION_ZERO, log, missing: [], create: true });
    await this.adopt(attempt, this.host.id, request);
    await Promise.all(others.map((member) => this.adopt(attempt, member, request)));
  }

  /** In pages, on this OSD or another. */
  private async adopt(attempt: Attempt, member: OsdId, whole: PgAdoptRequest): Promise<void> {
    for (const page of adoptionPages(whole)) {
      if (member === this.host.id) await this.member.adopt(attempt.pg, page);
      else await this.ask(attempt.pg, member, PgAdoptLog, page);
      attempt.check();
    }
  }

  private async catchUp(
    attempt: Attempt,
    plan: CatchUp,
    infos: readonly MemberInfo[],
  ): Promise<void> {
    const { pg, others, check } = attempt;
    /** What each member must still receive. */
    const missing = new Map<OsdId, Set<string>>();
    for (const info of infos) missing.set(info.member, new Set(info.missing));
    const adoptions: { member: OsdId; request: PgAdoptRequest }[] = [];
    for (const { member, after, create } of plan.lagging) {
      const log = await this.logOf(pg, plan.authority, after);
      check();
      const lacks = missing.get(member)!;
      for (const entry of log.entries) lacks.add(entry.object);
      const request = adoptRequest(attempt, { common: after, log, missing: [...lacks], create });
      adoptions.push({ member, request });
    }
    const lagging = new Set(plan.lagging.map(({ member }) => member));
    const sourceOf = (object: string): OsdId => {
      const source = infos.find(
        ({ member, missing: lacks }) => !lagging.has(member) && !lacks.includes(object),
      );
      if (source === undefined) {
        throw new DssError("NotActive", `no member of pg ${formatPg(pg.id)} has ${object} whole`);
      }
      return source.member;
    };

    // This OSD first: it then has everything to give to the others.
    const own = adoptions.find(({ member }) => member === this.host.id);
    if (own !== undefined) await this.adopt(attempt, this.host.id, own.request);
    check();
    await inParallel([...missing.get(this.host.id)!], PARALLEL_COPIES, async (object) => {
      const image = await this.pull(pg, sourceOf(object), object);
      check();
      await this.member.install(pg, object, image);
    });
    check();
    await Promise.all(
      others.map(async (member) => {
        const adoption = adoptions.find((candidate) => candidate.member === member);
        if (adoption !== undefined) await this.adopt(attempt, member, adoption.request);
        check();
        await inParallel([...missing.get(member)!], PARALLEL_COPIES, async (object) => {
          const image = await this.host.repairer.image(pg, object);
          check();
          await this.push(attempt, member, object, image);
        });
      }),
    );
  }

  /**
   * Every object is first noted as missing everywhere; what was copied already is found whole by
   * the next attempt.
   */
  private async rollBack(attempt: Attempt, plan: RollBack): Promise<void> {
    const { pg, others, check } = attempt;
    const { common } = plan;
    const members = [this.host.id, ...others];
    const log = await this.logOf(pg, plan.authority, common);
    check();
    const objects = [...new Set([...plan.missing, ...log.entries.map(({ object }) => object)])];
    const fields = { pg: formatPg(pg.id), objects: objects.length, entries: log.entries.length };
    this.host.logger.warn(fields, "unacknowledged writes are rolled back: their bytes are gone");
    const sources = new Map<string, OsdId>();
    await inParallel(objects, PARALLEL_COPIES, async (object) => {
      sources.set(object, await this.newestCopy(attempt, members, object));
    });
    check();
    const cutBack = { common, log: { entries: [], retries: [] }, missing: objects, create: false };
    const request = adoptRequest(attempt, cutBack);
    await this.adopt(attempt, this.host.id, request);
    await Promise.all(others.map((member) => this.adopt(attempt, member, request)));
    check();
    await inParallel(objects, PARALLEL_COPIES, async (object) => {
      const image = await this.pull(pg, sources.get(object)!, object);
      check();
      await Promise.all(others.map((member) => this.push(attempt, member, object, image)));
      check();
      await this.member.install(pg, object, image);
    });
  }

  /** Who has the object at the greatest version; any of them has all that was acknowledged. */
  private async newestCopy(
    { pg, check }: Attempt,
    members: readonly OsdId[],
    object: string,
  ): Promise<OsdId> {
    let newest: { member: OsdId; version: Version } | undefined;
    for (const member of members) {
      let version = this.host.store.stat(pg.id, object)?.version;
      if (member !== this.host.id) {
        const identity = { pg: pg.id, interval: pg.entry.interval, object };
        const copy = await this.ask(pg, member, CopyRead, { ...identity, offset: 0, length: 0 });
        check();
        const { exists, versionInterval: interval, versionSeq: seq } = copy;
        version = exists ? { interval, seq } : undefined;
      }
      if (version === undefined) continue;
      if (newest === undefined || compareVersions(version, newest.version) > 0) {
        newest = { member, version };
      }
    }
    return newest?.member ?? this.host.id;
  }

  private logOf(pg: PlacementGroup, member: OsdId, after: Version): Promise<WholeLog> {
    const identity = { pg: pg.id, interval: pg.entry.interval };
    return fetchLog({ after, withRetries: true }, (page) =>
      member === this.host.id
        ? Promise.resolve(this.member.readLog(pg.id, page))
        : this.ask(pg, member, PgGetLog, { ...identity, ...page }),
    );
  }

  private async ownInfo(pg: PlacementGroup): Promise<PgInfoReply> {
    await new Promise<void>((resolve) => pg.whenSynced(resolve));
    return this.member.describe(pg, this.host.id);
  }

  private async ask<Request, Reply>(
    pg: PlacementGroup,
    member: OsdId,
    call: Call<Request, Reply>,
    request: Request,
    deadlineMs = CALL_DEADLINE_MS,
  ): Promise<Reply> {
    const { generation } = pg;
    const peer = this.host.peer(member);
    if (peer === undefined) throw new DssError("Unreachable", `osd.${member} has no address`);
    try {
      const { message } = await peer.call(call, request, { deadlineMs });
      if (generation === pg.generation) pg.memberAnswered(member);
      return message;
    } catch (error) {
      if (error instanceof DssError && generation === pg.generation) {
        pg.memberFailed(member, error, deadlineMs);
      }
      throw error;
    }
  }

  private async pull(
    pg: PlacementGroup,
    source: OsdId,
    object: string,
  ): Promise<ObjectImage | undefined> {
    if (source === this.host.id) return this.host.repairer.image(pg, object);
    const peer = this.host.peer(source);
    if (peer === undefined) throw new DssError("Unreachable", `osd.${source} has no address`);
    const { message, data, sums } = await peer.call(
      PullObject,
      { pg: pg.id, interval: pg.entry.interval, object },
      { deadlineMs: CALL_DEADLINE_MS },
    );
    return imageFromWire(message, data, sums);
  }

  private async push(
    { pg, number }: Attempt,
    member: OsdId,
    object: string,
    image: ObjectImage | undefined,
  ): Promise<void> {
    const peer = this.host.peer(member);
    if (peer === undefined) throw new DssError("Unreachable", `osd.${member} has no address`);
    const header = { pg: pg.id, interval: pg.entry.interval, attempt: number, asOf: 0, object };
    const { message, data, sums } = imageToWire(header, image);
    await peer.call(PushObject, message, { deadlineMs: CALL_DEADLINE_MS, data, sums });
    this.host.copied(image?.info.allocated ?? 0);
  }
}

function adoptRequest(
  { pg, number }: Attempt,
  what: { common: Version; log: WholeLog; missing: string[]; create: boolean },
): PgAdoptRequest {
  const { common, log, missing, create } = what;
  const identity = { pg: pg.id, interval: pg.entry.interval, attempt: number };
  return { ...identity, create, startOver: false, common, ...log, missing };
}
