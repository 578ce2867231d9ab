/**
 * Carries out peering (core/peering.ts decides): the primary asks every in-sync member what it has, brings all of them to
 * the longest log, objects included, and only then becomes active. Members answer its questions here too.
 *
 * A crash in the middle is safe: a member notes durably which objects it lacks before it takes over the log that names them,
 * and says so at the next peering.
 */
import { assert } from "../cluster/base/assert.js";
import { BLOCK_SIZE } from "../cluster/base/checksum.js";
import { DssError, describeError } from "../cluster/base/errors.js";
import { formatPg, type OsdId, type PgId } from "../cluster/base/ids.js";
import type { Incoming } from "../cluster/messenger/messenger.js";
import { Backoff } from "../cluster/messenger/backoff.js";
import type { RandomSource } from "../cluster/platform/ports.js";
import { msgpack, type Call } from "../cluster/wire/registry.js";
import { planPeering, type MemberInfo, type PeeringPlan } from "./core/peering.js";
import { VERSION_ZERO, type Version } from "./core/version.js";
import type { PgHost, PlacementGroup } from "./placement-group.js";
import {
  PgAdoptLog,
  PgGetInfo,
  PgGetLog,
  PullObject,
  PushObject,
  type OsdPush,
  type PgAdoptRequest,
  type PgInfoReply,
  type PgLogReply,
  type PgLogRequest,
} from "./proto.js";
import type { Durable, LogEntry, ObjectImage } from "./store/chunk-store.js";

const CALL_DEADLINE_MS = 10_000;
const LOG_ENTRIES_MAX = 100_000;
/** Objects copied at a time per PG. */
const PARALLEL_COPIES = 4;

/** The durable record of a PG beside its log. */
interface PgMeta {
  missing: string[];
}
const metaCodec = msgpack<PgMeta>();
const EMPTY_META = metaCodec.encode({ missing: [] });

type CatchUp = Extract<PeeringPlan, { plan: "catch-up" }>;

/** Ends a peering whose interval is over. */
class Superseded extends Error {}

export class PeeringDriver {
  constructor(
    private readonly host: PgHost,
    private readonly random: RandomSource,
  ) {}

  // ——— As the primary ———

  /** Runs until the PG is active or incomplete, or its interval is over. */
  async peer(pg: PlacementGroup): Promise<void> {
    const { generation } = pg;
    const backoff = new Backoff(this.random, { firstMs: 20, maxMs: 1_000 });
    for (;;) {
      try {
        await this.attempt(pg, generation);
        return;
      } catch (error) {
        if (error instanceof Superseded) return;
        if (!(error instanceof DssError)) throw error;
        if (generation !== pg.generation) return;
        const fields = { pg: formatPg(pg.id), error: describeError(error) };
        this.host.logger.debug(fields, "peering is tried again");
        await new Promise<void>((resolve) => void this.host.clock.setTimer(backoff.next(), resolve));
        if (generation !== pg.generation) return;
      }
    }
  }

  private async attempt(pg: PlacementGroup, generation: number): Promise<void> {
    const check = (): void => {
      if (generation !== pg.generation) throw new Superseded();
    };
    const { interval } = pg.entry;
    const infos: MemberInfo[] = await Promise.all([
      this.ownInfo(pg).then((info) => ({ member: this.host.id, ...info })),
      ...pg.others.map(async (member) => {
        const info = await this.ask(member, PgGetInfo, { pg: pg.id, interval });
        return { member, ...info };
      }),
    ]);
    check();
    const plan = planPeering(infos);
    if (plan.plan === "incomplete") {
      this.host.logger.error({ pg: formatPg(pg.id), reason: plan.reason }, "pg is incomplete");
      pg.transition("incomplete", plan.reason);
      return;
    }
    if (plan.plan === "create") await this.createEverywhere(pg, check);
    else await this.catchUp(pg, plan, infos, check);
    check();
    pg.transition("active");
  }

  private async createEverywhere(pg: PlacementGroup, check: () => void): Promise<void> {
    const request = adoptRequest(pg, VERSION_ZERO, { entries: [], retries: [] }, [], true);
    await this.adopt(pg, request);
    check();
    await Promise.all(pg.others.map((member) => this.ask(member, PgAdoptLog, request)));
  }

  private async catchUp(
    pg: PlacementGroup,
    plan: CatchUp,
    infos: readonly MemberInfo[],
    check: () => void,
  ): Promise<void> {
    const { interval } = pg.entry;
    const log = (after: Version): Promise<PgLogReply> =>
      plan.authority === this.host.id
        ? Promise.resolve(this.readLog(pg.id, after))
        : this.ask(plan.authority, PgGetLog, { pg: pg.id, interval, after });

    /** What each member must still receive. */
    const missing = new Map<OsdId, Set<string>>();
    for (const info of infos) missing.set(info.member, new Set(info.missing));
    const adoptions: { member: OsdId; request: PgAdoptRequest }[] = [];
    for (const { member, after, create } of plan.lagging) {
      const reply = await log(after);
      check();
      const lacks = missing.get(member)!;
      for (const entry of reply.entries) lacks.add(entry.object);
      adoptions.push({ member, request: adoptRequest(pg, after, reply, [...lacks], create) });
    }
    const sourceOf = (object: string): OsdId => {
      const lagging = new Set(plan.lagging.map(({ member }) => member));
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
    if (own !== undefined) await this.adopt(pg, own.request);
    check();
    await inParallel([...missing.get(this.host.id)!], async (object) => {
      const image = await this.pull(pg, sourceOf(object), object);
      check();
      await this.install(pg.id, object, image);
    });
    check();
    await Promise.all(
      pg.others.map(async (member) => {
        const adoption = adoptions.find((candidate) => candidate.member === member);
        if (adoption !== undefined) await this.ask(member, PgAdoptLog, adoption.request);
        check();
        await inParallel([...missing.get(member)!], async (object) => {
          await this.push(pg, member, object);
          check();
        });
      }),
    );
  }

  private async ownInfo(pg: PlacementGroup): Promise<PgInfoReply> {
    await new Promise<void>((resolve) => pg.whenSynced(resolve));
    return this.describe(pg.id);
  }

  private async ask<Request, Reply>(
    member: OsdId,
    call: Call<Request, Reply>,
    request: Request,
  ): Promise<Reply> {
    const peer = this.host.peer(member);
    if (peer === undefined) throw new DssError("Unreachable", `osd.${member} has no address`);
    const { message } = await peer.call(call, request, { deadlineMs: CALL_DEADLINE_MS });
    return message;
  }

  private async pull(
    pg: PlacementGroup,
    source: OsdId,
    object: string,
  ): Promise<ObjectImage | undefined> {
    const peer = this.host.peer(source);
    if (peer === undefined) throw new DssError("Unreachable", `osd.${source} has no address`);
    const { message, data, sums } = await peer.call(
      PullObject,
      { pg: pg.id, interval: pg.entry.interval, object },
      { deadlineMs: CALL_DEADLINE_MS },
    );
    return imageFromWire(message, data, sums);
  }

  private async push(pg: PlacementGroup, member: OsdId, object: string): Promise<void> {
    const image = await this.host.store.image(pg.id, object);
    const peer = this.host.peer(member);
    if (peer === undefined) throw new DssError("Unreachable", `osd.${member} has no address`);
    const { message, data, sums } = imageToWire(pg.id, pg.entry.interval, object, image);
    await peer.call(PushObject, message, { deadlineMs: CALL_DEADLINE_MS, data, sums });
    this.host.count("recoveryOps");
    this.host.count("recoveryBytes", image?.info.allocated ?? 0);
  }

  // ——— As a member (the daemon has checked the interval) ———

  getInfo(pg: PlacementGroup, request: Incoming<unknown, PgInfoReply>): void {
    pg.whenSynced(() => request.reply(this.describe(pg.id)));
  }

  getLog(request: Incoming<PgLogRequest, PgLogReply>): void {
    request.reply(this.readLog(request.message.pg, request.message.after));
  }

  adoptLog(pg: PlacementGroup, request: Incoming<PgAdoptRequest, Record<string, never>>): void {
    this.adopt(pg, request.message).then(
      () => request.reply({}),
      (error: unknown) => request.fail(error),
    );
  }

  pushed(request: Incoming<OsdPush, Record<never, never>>): void {
    const { message } = request;
    const image = imageFromWire(message, request.data, request.sums);
    this.install(message.pg, message.object, image).then(
      () => request.reply({}),
      (error: unknown) => request.fail(error),
    );
  }

  pulled(request: Incoming<{ pg: number; interval: number; object: string }, OsdPush>): void {
    const { pg, interval, object } = request.message;
    this.host.store.image(pg, object).then(
      (image) => {
        const { message, data, sums } = imageToWire(pg, interval, object, image);
        request.reply(message, data, sums);
      },
      (error: unknown) => request.fail(error),
    );
  }

  // ——— The local store ———

  private describe(id: PgId): PgInfoReply {
    const info = this.host.store.pgInfo(id);
    if (info === undefined) {
      const none = { last: VERSION_ZERO, logTail: VERSION_ZERO, objects: 0, missing: [] };
      return { exists: false, ...none };
    }
    const { missing } = metaCodec.decode(info.meta);
    return { exists: true, last: info.last, logTail: info.logTail, objects: info.objects, missing };
  }

  private readLog(id: PgId, after: Version): PgLogReply {
    const entries = this.host.store.log(id, after, LOG_ENTRIES_MAX);
    if (entries === undefined) {
      throw new DssError("NotActive", `the log of pg ${formatPg(id)} does not reach back so far`);
    }
    return { entries, retries: this.host.store.exportRetries(id) };
  }

  /** Notes durably what will be missing, then takes over the log. */
  private async adopt(pg: PlacementGroup, request: PgAdoptRequest): Promise<void> {
    const { store } = this.host;
    if (request.create && !store.hasPg(pg.id)) {
      await this.durably((done) => store.createPg(pg.id, EMPTY_META, done));
    }
    const info = store.pgInfo(pg.id);
    if (info === undefined) {
      throw new DssError("NotActive", `osd.${this.host.id} does not have pg ${formatPg(pg.id)}`);
    }
    if (request.entries.length === 0 && request.missing.length === 0) return;
    const before = metaCodec.decode(info.meta).missing;
    const missing = [...new Set([...before, ...request.missing])];
    await this.durably((done) => store.setPgMeta(pg.id, metaCodec.encode({ missing }), done));
    store.mergeRetries(pg.id, request.retries);
    const entries = request.entries as LogEntry[];
    await this.durably((done) => store.rewriteLog(pg.id, request.common, entries, done));
    pg.logReplaced();
  }

  private async install(id: PgId, object: string, image: ObjectImage | undefined): Promise<void> {
    const { store } = this.host;
    await this.durably((done) =>
      image === undefined ? store.discard(id, object, done) : store.install(id, object, image, done),
    );
    const info = store.pgInfo(id);
    assert(info !== undefined, `pg ${formatPg(id)} received an object and is gone`);
    const missing = metaCodec.decode(info.meta).missing.filter((name) => name !== object);
    await this.durably((done) => store.setPgMeta(id, metaCodec.encode({ missing }), done));
  }

  private durably(work: (done: Durable) => void): Promise<void> {
    return new Promise((resolve) =>
      work((error) => {
        if (error === undefined) resolve();
        else this.host.fatal(error); // Never resolves: the OSD stops.
      }),
    );
  }
}

function adoptRequest(
  pg: PlacementGroup,
  common: Version,
  log: PgLogReply,
  missing: string[],
  create: boolean,
): PgAdoptRequest {
  const { interval } = pg.entry;
  return { pg: pg.id, interval, create, common, ...log, missing };
}

async function inParallel<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < items.length) await work(items[next++]!);
  };
  await Promise.all(Array.from({ length: Math.min(PARALLEL_COPIES, items.length) }, worker));
}

function imageToWire(
  pg: PgId,
  interval: number,
  object: string,
  image: ObjectImage | undefined,
): { message: OsdPush; data: Buffer[]; sums: Uint32Array } {
  const extents = image?.extents ?? [];
  const sums = new Uint32Array(extents.reduce((count, extent) => count + extent.sums.length, 0));
  let at = 0;
  for (const extent of extents) {
    sums.set(extent.sums, at);
    at += extent.sums.length;
  }
  return {
    message: {
      pg,
      interval,
      exists: image !== undefined,
      size: image?.info.size ?? 0,
      versionInterval: image?.info.version.interval ?? 0,
      versionSeq: image?.info.version.seq ?? 0,
      mtimeNs: image?.info.mtimeNs ?? 0n,
      truncateSeq: image?.info.truncateSeq ?? 0,
      extents: extents.map(({ offset, data }) => ({ offset, length: data.length })),
      object,
    },
    data: extents.map(({ data }) => data),
    sums,
  };
}

function imageFromWire(
  message: OsdPush,
  data: Buffer,
  sums: Uint32Array,
): ObjectImage | undefined {
  if (!message.exists) return undefined;
  let at = 0;
  let block = 0;
  const extents = message.extents.map(({ offset, length }) => {
    const blocks = length / BLOCK_SIZE;
    if (!Number.isInteger(blocks) || offset % BLOCK_SIZE !== 0 || at + length > data.length) {
      throw new DssError("Malformed", `bad extent ${offset}+${length} of ${message.object}`);
    }
    const extent = {
      offset,
      data: data.subarray(at, at + length),
      sums: sums.subarray(block, block + blocks),
    };
    at += length;
    block += blocks;
    return extent;
  });
  return {
    info: {
      size: message.size,
      version: { interval: message.versionInterval, seq: message.versionSeq },
      mtimeNs: message.mtimeNs,
      truncateSeq: message.truncateSeq,
      allocated: at,
    },
    extents,
  };
}
