/**
 * A member's part in peering and recovery: it tells what it has, takes over logs, and receives
 * objects. The daemon has checked map and interval; here a message of an earlier attempt of the
 * primary is refused, so that nothing that was delayed on its way overwrites what came after it.
 *
 * A crash in the middle is safe: what will be lacking is durable before the log that names it.
 */
import { DssError } from "../cluster/base/errors.js";
import { formatPg, type PgId } from "../cluster/base/ids.js";
import type { Incoming } from "../cluster/messenger/messenger.js";
import type { GrantBook } from "./core/leases.js";
import { compareVersions, VERSION_ZERO } from "./core/version.js";
import { imageFromWire, imageToWire } from "./image-wire.js";
import { digestBlocks } from "./image-patch.js";
import { readLogPage } from "./log-transfer.js";
import { EMPTY_META, UNKNOWN_META } from "./pg-record.js";
import type { PgHost, PlacementGroup } from "./placement-group.js";
import type {
  OsdBlockDigests,
  OsdBlockDigestsReply,
  OsdFillLevel,
  OsdPush,
  PgAdoptRequest,
  PgBackfillRequest,
  PgInfoReply,
  PgInfoRequest,
  PgLogReply,
  PgLogRequest,
} from "./proto.js";
import type { Durable, LogEntry, ObjectImage } from "./store/chunk-store.js";

export class MemberSide {
  constructor(
    private readonly host: PgHost,
    private readonly grants: GrantBook,
  ) {}

  // ——— Requests of the primary ———

  getInfo(pg: PlacementGroup, request: Incoming<PgInfoRequest, PgInfoReply>): void {
    pg.beginAttempt(request.message.attempt);
    pg.whenSynced(() => request.reply(this.describe(pg, request.sender)));
  }

  getLog(request: Incoming<PgLogRequest, PgLogReply>): void {
    request.reply(this.readLog(request.message.pg, request.message));
  }

  adoptLog(pg: PlacementGroup, request: Incoming<PgAdoptRequest, Record<string, never>>): void {
    pg.checkAttempt(request.message.attempt);
    this.adopt(pg, request.message).then(
      () => request.reply({}),
      (error: unknown) => request.fail(error),
    );
  }

  backfill(pg: PlacementGroup, request: Incoming<PgBackfillRequest, Record<string, never>>): void {
    const { attempt, asOf, cursor, missing } = request.message;
    pg.checkAttempt(attempt);
    const last = this.host.store.pgInfo(pg.id)?.last.seq;
    if (last !== asOf) {
      const text = `pg ${formatPg(pg.id)}: backfill as of ${asOf}, but the log ends at ${last}`;
      throw new DssError("NotActive", text);
    }
    pg.record.advance(cursor, missing, (error) => {
      if (error === undefined) request.reply({});
      else this.host.fatal(error);
    });
  }

  pushed(pg: PlacementGroup, request: Incoming<OsdPush, OsdFillLevel>): void {
    const { message } = request;
    pg.checkAttempt(message.attempt);
    const last = this.host.store.pgInfo(pg.id)?.last.seq ?? 0;
    if (last < message.asOf) {
      const text = `an object as of ${message.asOf}, but the log ends at ${last}`;
      throw new DssError("NotActive", `pg ${formatPg(pg.id)}: ${text}`);
    }
    this.takeIn(pg, request).then(
      () => {
        request.reply(this.host.fullness.own());
        request.recycle();
      },
      (error: unknown) => request.fail(error),
    );
  }
  private async takeIn(
    pg: PlacementGroup,
    { message, data, sums }: Incoming<OsdPush, OsdFillLevel>,
  ): Promise<void> {
    const { generation } = pg;
    const { object, attempt } = message;
    let old: ObjectImage | undefined;
    if (message.patch) {
      old = await this.host.store.image(pg.id, object);
      // Another interval or attempt may have begun meanwhile.
      pg.checkAttempt(attempt, generation);
    }
    await this.install(pg, object, imageFromWire(message, data, sums, old));
  }

  /** What this member's old copy has. A damaged one is none: all of it is copied. */
  digests(pg: PlacementGroup, request: Incoming<OsdBlockDigests, OsdBlockDigestsReply>): void {
    const { attempt, object } = request.message;
    pg.checkAttempt(attempt);
    this.host.store.image(pg.id, object).then(
      (image) => {
        if (image === undefined) request.reply({ exists: false });
        else request.reply({ exists: true }, [digestBlocks(image.extents)]);
      },
      (error: unknown) => {
        const isDamaged = error instanceof DssError && error.code === "Corrupt";
        if (isDamaged) request.reply({ exists: false });
        else request.fail(error);
      },
    );
  }

  pulled(
    pg: PlacementGroup,
    request: Incoming<{ pg: number; interval: number; object: string }, OsdPush>,
  ): void {
    const { interval, object } = request.message;
    this.host.repairer.image(pg, object).then(
      (image) => {
        const header = { pg: pg.id, interval, attempt: 0, asOf: 0, object };
        const { message, data, sums } = imageToWire(header, image);
        request.reply(message, data, sums);
      },
      (error: unknown) => request.fail(error),
    );
  }

  // ——— The same on the own store, for the primary itself ———

  describe(pg: PlacementGroup, asking: number): PgInfoReply {
    const { ms, holder } = this.grants.remaining(pg.id, asking, this.host.clock.now());
    const now = { grantMs: ms, grantHolder: holder, level: this.host.fullness.own() };
    const info = this.host.store.pgInfo(pg.id);
    if (info === undefined) {
      const none = { last: VERSION_ZERO, logTail: VERSION_ZERO, base: VERSION_ZERO };
      return { exists: false, ...none, objects: 0, missing: [], ...now };
    }
    const { last, logTail, objects } = info;
    const { missing, base, cursor } = pg.record;
    const has = { exists: true, last, logTail, objects };
    const reply = { ...has, missing: [...missing], base, ...now };
    return cursor === undefined ? reply : { ...reply, cursor };
  }

  readLog(id: PgId, request: Pick<PgLogRequest, "after" | "retriesAfter">): PgLogReply {
    const page = readLogPage(this.host.store, id, request);
    if (page !== undefined) return page;
    throw new DssError("NotActive", `the log of pg ${formatPg(id)} does not reach back so far`);
  }

  /** Notes durably what will be missing, then takes over the log. */
  async adopt(pg: PlacementGroup, request: PgAdoptRequest): Promise<void> {
    const { store } = this.host;
    const { common, attempt } = request;
    const { generation } = pg;
    /**
     * Between two steps another interval or attempt may have begun, which has been told what is
     * here.
     */
    const step = async (work: (done: Durable) => void): Promise<void> => {
      await this.durably(work);
      pg.checkAttempt(attempt, generation);
    };
    const entries = request.entries as LogEntry[];
    if (!store.hasPg(pg.id)) {
      if (!request.create) {
        throw new DssError("NotActive", `osd.${this.host.id} does not have pg ${formatPg(pg.id)}`);
      }
      const meta = request.startOver ? UNKNOWN_META : EMPTY_META;
      await step((done) => {
        store.createPg(pg.id, meta, done);
        // In the same turn: whoever asks next must not take a PG that was just made for a whole
        // one.
        pg.record.load();
      });
    } else if (request.startOver) {
      await step((done) => pg.record.startOver(done));
    }
    if (request.noteOnly === true) {
      store.mergeRetries(pg.id, request.retries);
      await step((done) => pg.record.note(request.missing, common, done));
      return;
    }
    const end = store.pgInfo(pg.id)!.last;
    const isKnown = request.missing.every((object) => pg.record.missing.has(object));
    const isSame = entries.length === 0 && compareVersions(common, end) === 0;
    const isNews = request.startOver || request.retries.length > 0;
    if (isSame && isKnown && !isNews) return;
    if (!isKnown) await step((done) => pg.record.note(request.missing, common, done));
    if (request.startOver) {
      // Nothing of the old log may be believed, the answers to clients included.
      await step((done) => pg.rewriteLog(VERSION_ZERO, [], done));
    }
    store.mergeRetries(pg.id, request.retries);
    await step((done) => pg.rewriteLog(common, entries, done));
  }

  async install(pg: PlacementGroup, object: string, image: ObjectImage | undefined): Promise<void> {
    const { store } = this.host;
    // In one turn: what arrives later must find the object there, and not missing.
    const stored = this.durably((done) =>
      image === undefined
        ? store.discard(pg.id, object, done)
        : store.install(pg.id, object, image, done),
    );
    const noted = this.durably((done) => pg.record.arrived(object, done));
    await stored;
    await noted;
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
