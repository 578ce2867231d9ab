/**
 * Volumes (design §8): records, names, users and the exclusive lock. Pure. A session in use of a
 * volume is journaled with the session, so that a new leader knows who has the lock; the lock ends
 * with the session, after its fence.
 */
import { DssError } from "../../cluster/base/errors.js";
import type { ClientId, Epoch } from "../../cluster/base/ids.js";
import type { Layout, Request, Volume } from "../proto.js";
import type { Access } from "./capability.js";
import { Draft } from "./draft.js";
import type { Metadata } from "./metadata.js";
import { emptyPlan, type Plan } from "./plan.js";
import { NO_WRITER, volumePageKey, type SessionBody, type VolumeRecord } from "./page.js";

export const VOLUME_SIZE_MAX = 2 ** 52;
/** Sizes are rounded up to this many bytes. */
export const VOLUME_SIZE_UNIT = 4096;
/** Not like an option, nor like a path: names stand on command lines and in URIs. */
const NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/;
/** What unsafe changes of the volume table are marked with. */
const VOLUMES_KEY = -1;
/**
 * Never in use, so the conflicting sessions of `volumeOpen` are recalled under a key of their own.
 */
export function volumeKey(id: number): number {
  return -2 - id;
}

type Of<Op extends Request["op"]> = Extract<Request, { op: Op }>;

export class Volumes {
  constructor(
    private readonly metadata: Metadata,
    private readonly options: {
      layoutOf(pool: string): Layout | undefined;
      minEpoch(): Epoch;
      /** The session's lease is over: it can be evicted for its lock. */
      lapsed(session: ClientId): boolean;
      nowNs(): bigint;
      /** For people. */
      dateOf(ns: bigint): string;
    },
  ) {}

  create(access: Access, request: Of<"volumeCreate">): Plan {
    const { name, pool, actor } = request;
    access.see(VOLUMES_KEY);
    if (!NAME.test(name)) {
      throw new DssError("InvalidArgument", `${JSON.stringify(name)} is no name for a volume`, {
        hint: "use 1 to 128 letters, digits, dots, underscores or hyphens, not beginning with . or -",
      });
    }
    if (!Number.isSafeInteger(request.size) || request.size <= 0) {
      throw new DssError("InvalidArgument", `a volume of ${request.size} bytes`);
    }
    const size = Math.ceil(request.size / VOLUME_SIZE_UNIT) * VOLUME_SIZE_UNIT;
    if (size > VOLUME_SIZE_MAX) {
      throw new DssError("FileTooLarge", `a volume has at most ${VOLUME_SIZE_MAX} bytes`);
    }
    if (this.find(name) !== undefined) throw new DssError("Exists", `volume ${name} exists`);
    const layout = this.options.layoutOf(pool);
    if (layout === undefined) {
      throw new DssError("NotFound", pool === "" ? "there is no pool" : `there is no pool ${pool}`);
    }
    const draft = new Draft(this.metadata);
    const id = Math.max(1, draft.counter("nextVolume"));
    draft.setCounter("nextVolume", id + 1);
    const volume: VolumeRecord = {
      id,
      name,
      size,
      layout,
      createdNs: actor.timeNs,
      objectPrefix: `v${id.toString(16)}`,
      features: [],
      writer: NO_WRITER,
    };
    draft.add({ d: "volumePut", volume });
    this.metadata.cache.get(volumePageKey(id));
    return {
      ...emptyPlan(),
      record: draft.finish(),
      answer: { volume: this.describe(volume) },
      hides: [VOLUMES_KEY],
      durable: true,
    };
  }

  list(access: Access): Plan {
    access.see(VOLUMES_KEY);
    const volumes = [...this.metadata.volumes()].map((volume) => this.describe(volume));
    volumes.sort((a, b) => (a.name < b.name ? -1 : 1));
    return { ...emptyPlan(), answer: { volumes } };
  }

  info(access: Access, { name }: Of<"volumeInfo">): Plan {
    access.see(VOLUMES_KEY);
    return { ...emptyPlan(), answer: { volume: this.describe(this.named(name)) } };
  }

  remove(access: Access, { name }: Of<"volumeRemove">): Plan {
    access.see(VOLUMES_KEY);
    const volume = this.named(name);
    const users = this.users(volume.id);
    const lapsed = users.filter((user) => user.id !== access.session && this.lapsed(user));
    const alive = users.find((user) => !lapsed.includes(user));
    if (alive !== undefined) {
      throw new DssError("Busy", `volume ${name} is in use by ${describeSession(alive)}`);
    }
    evict(access, volume.id, lapsed);
    const draft = new Draft(this.metadata);
    draft.add({ d: "volumeRemove", volume: volume.id });
    draft.purge({
      what: "objects",
      ino: 0,
      prefix: volume.objectPrefix,
      layout: volume.layout,
      from: 0,
      likely: 0,
      bound: volume.size,
      truncateSeq: 0,
      unconditional: true,
    });
    return { ...emptyPlan(), record: draft.finish(), hides: [VOLUMES_KEY], durable: true };
  }

  open(access: Access, request: Of<"volumeOpen">): Plan {
    const { name, write, holder = "" } = request;
    access.see(VOLUMES_KEY);
    let volume = this.named(name);
    const mine = this.metadata.session(access.session)?.volumes.get(volume.id);
    const draft = new Draft(this.metadata);
    if (write) this.clearWay(access, volume, request);
    if (mine === undefined || (write && !mine)) {
      draft.add({ d: "volumeUse", id: access.session, volume: volume.id, write });
      if (write) {
        const writer = { client: access.session, sinceNs: this.options.nowNs(), holder };
        volume = { ...volume, writer };
        draft.add({ d: "volumePut", volume });
      }
    }
    const described = this.describe(volume);
    const self = this.metadata.session(access.session);
    if (write && self !== undefined) {
      described.owner = describeSession(self);
      described.ownerClient = self.id;
      described.ownerSinceNs = volume.writer.sinceNs;
    }
    return {
      ...emptyPlan(),
      record: draft.finish(),
      answer: { volume: described, minEpoch: this.options.minEpoch() },
      hides: [VOLUMES_KEY],
      durable: true,
    };
  }

  /**
   * The lock can be had when this returns and `evict` has been waited for. Errors: Busy (somebody
   * has it), StaleHandle (somebody else has had it, so that what the holder knows may be old).
   */
  private clearWay(access: Access, volume: VolumeRecord, request: Of<"volumeOpen">): void {
    const { name, force = false, holder = "", continues = false } = request;
    const { writer } = volume;
    const owner = this.users(volume.id).find(
      (user) => user.id !== access.session && user.volumes.get(volume.id) === true,
    );
    if (continues && (holder === "" || writer.holder !== holder)) {
      const who = owner === undefined ? `client.${writer.client}` : describeSession(owner);
      const when = this.options.dateOf(writer.sinceNs);
      throw new DssError("StaleHandle", `volume ${name} was taken over by ${who} at ${when}`);
    }
    if (owner === undefined) return;
    if (!force && !this.lapsed(owner)) {
      const since = this.options.dateOf(writer.sinceNs);
      throw new DssError(
        "Busy",
        `volume ${name} is in use by ${describeSession(owner)} since ${since}`,
      );
    }
    evict(access, volume.id, [owner]);
  }

  close(access: Access, { id }: Of<"volumeClose">): Plan {
    const draft = new Draft(this.metadata);
    if (this.metadata.session(access.session)?.volumes.has(id) !== true) return emptyPlan();
    draft.add({ d: "volumeLeave", id: access.session, volume: id });
    return { ...emptyPlan(), record: draft.finish(), hides: [VOLUMES_KEY] };
  }

  private find(name: string): VolumeRecord | undefined {
    for (const volume of this.metadata.volumes()) if (volume.name === name) return volume;
    return undefined;
  }
  private named(name: string): VolumeRecord {
    const volume = this.find(name);
    if (volume === undefined) throw new DssError("NotFound", `there is no volume ${name}`);
    return volume;
  }
  private users(id: number): SessionBody[] {
    return [...this.metadata.sessions()].filter((session) => session.volumes.has(id));
  }
  private lapsed(session: SessionBody): boolean {
    return this.options.lapsed(session.id);
  }
  private describe(volume: VolumeRecord): Volume {
    const owner = this.users(volume.id).find((user) => user.volumes.get(volume.id) === true);
    return {
      ...volume,
      owner: owner === undefined ? "" : describeSession(owner),
      ownerClient: owner?.id ?? 0,
      ownerSinceNs: owner === undefined ? 0n : volume.writer.sinceNs,
    };
  }
}

/** The operation waits until these sessions have been evicted. */
function evict(access: Access, volume: number, sessions: readonly SessionBody[]): void {
  if (sessions.length === 0) return;
  access.recalls.set(volumeKey(volume), { mode: "none", sessions: sessions.map((s) => s.id) });
}

export function describeSession(session: SessionBody): string {
  const detail = session.detail === "" ? "" : `, ${session.detail}`;
  return `${session.host} (${session.type} client.${session.id}, pid ${session.pid}${detail})`;
}
