/**
 * Volumes (design §8): records, names, users and the exclusive lock. Pure. A session in use of a
 * volume is journaled with the session, so that a new leader knows who has the lock; the lock ends
 * with the session, after its fence.
 */
import { DssError } from "../../cluster/base/errors.js";
import type { ClientId, Epoch } from "../../cluster/base/ids.js";
import { isClonePrefix } from "../../cluster/base/object-name.js";
import {
  contextKey,
  volumeUse,
  type Layout,
  type Request,
  type Volume,
  type VolumeActivity,
  type VolumePurge,
  type VolumeTop,
} from "../proto.js";
import type { Access } from "./capability.js";
import type { Delta } from "./delta.js";
import { Draft } from "./draft.js";
import type { Metadata } from "./metadata.js";
import { emptyPlan, type Plan } from "./plan.js";
import {
  NO_WRITER,
  volumePageKey,
  type PurgeEntry,
  type SessionBody,
  type VolumeRecord,
} from "./page.js";
import { ancestorsOf, childrenOf } from "./clone.js";
import { snapshotNamed } from "./snapshot.js";

/**
 * The end of the address space of 64 bits, less a unit. Above 2^53 bytes sizes and offsets are
 * multiples of the unit, which a number holds exactly up to 2^65.
 */
export const VOLUME_SIZE_MAX = 2 ** 64 - 4096;
const OBJECT_SIZE_MIN = 64 * 1024;
const OBJECT_SIZE_MAX = 64 * 1024 * 1024;
const STRIPE_COUNT_MAX = 256;
/** Sizes are rounded up to this many bytes. */
export const VOLUME_SIZE_UNIT = 4096;
/** Not like an option, nor like a path: names stand on command lines and in URIs. */
const NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/;
/** What unsafe changes of the volume table are marked with. */
export const VOLUMES_KEY = -1;
/**
 * Never in use, so the conflicting sessions of `volumeOpen` are recalled under a key of their own.
 */
export function volumeKey(id: number): number {
  return -2 - id;
}

type Of<Op extends Request["op"]> = Extract<Request, { op: Op }>;

export class Volumes {
  /** The newest of every server; not journaled, because the next ones come within a second. */
  private readonly reports = new Map<ClientId, readonly VolumeActivity[]>();

  constructor(
    private readonly metadata: Metadata,
    private readonly options: {
      layoutOf(pool: string): Layout | undefined;
      minEpoch(): Epoch;
      /** The session's lease is over: it can be evicted for its lock. */
      lapsed(session: ClientId): boolean;
      /** How far the work of a purge entry is. */
      progress(purge: PurgeEntry): { done: number; total: number };
      nowNs(): bigint;
      /** For people. */
      dateOf(ns: bigint): string;
    },
  ) {}

  create(access: Access, request: Of<"volumeCreate">): Plan {
    const { name, pool, actor } = request;
    access.see(VOLUMES_KEY);
    checkName(name);
    const size = checkSize(request.size);
    this.refuseTaken(name);
    const standard = this.options.layoutOf(pool);
    if (standard === undefined) {
      const what = pool === "" ? "there is no pool" : `there is no pool ${pool}`;
      throw new DssError("NotFound", what, {
        hint: "see dss pool ls, or make one: dss pool create",
      });
    }
    const layout = chosenLayout(standard, request);
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
      ...{ revision: 1, shrinkTo: 0, iopsLimit: 0, bandwidthLimit: 0 },
      ...{ writer: NO_WRITER, snapSeq: 0, snapshots: [], rollbackTo: 0 },
      ...{ parent: null, isFlattening: false },
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
    const byId = new Map(volumes.map((volume) => [volume.id, volume]));
    for (const { name, parent } of volumes) {
      if (parent !== null) byId.get(parent.volume)?.children.push({ name, snap: parent.snap });
    }
    return { ...emptyPlan(), answer: { volumes, volumePurges: this.purges() } };
  }

  /** What is done to objects of volumes in the background. */
  purges(): VolumePurge[] {
    return [...this.metadata.purges()].flatMap((entry): VolumePurge[] => {
      const { volume, name, what, shrinks: shrinking } = entry;
      if (volume === 0 || what === "directory") return [];
      return [{ volume, name, what, shrinking, ...this.options.progress(entry) }];
    });
  }

  info(access: Access, { name }: Of<"volumeInfo">): Plan {
    access.see(VOLUMES_KEY);
    const volume = this.describe(this.named(name));
    volume.children = childrenOf(this.metadata, volume.id);
    return { ...emptyPlan(), answer: { volume } };
  }

  remove(access: Access, { name }: Of<"volumeRemove">): Plan {
    access.see(VOLUMES_KEY);
    const volume = this.named(name);
    if (volume.snapshots.length > 0) {
      const count = volume.snapshots.length;
      throw new DssError("Busy", `volume ${name} has ${count} snapshot${count > 1 ? "s" : ""}`, {
        hint: `remove them first: dss volume snap rm --all ${name}`,
      });
    }
    this.refuseRollback(volume);
    this.refuseFlatten(volume);
    this.endUse(access, volume);
    const draft = new Draft(this.metadata);
    draft.add({ d: "volumeRemove", volume: volume.id });
    // Beyond its end there may be empty objects, which it got when it was shrunk.
    const isSimple = volume.snapSeq === 0 && !isClonePrefix(volume.objectPrefix);
    const bound = isSimple ? volume.size : VOLUME_SIZE_MAX;
    draft.purge({ ...wholeOf(volume), from: 0, bound });
    return { ...emptyPlan(), record: draft.finish(), hides: [VOLUMES_KEY], durable: true };
  }

  resize(access: Access, request: Of<"volumeResize">): Plan {
    const { name } = request;
    access.see(VOLUMES_KEY);
    const volume = this.named(name);
    const size = checkSize(request.size);
    this.refuseRest(volume);
    if (size === volume.size) return { ...emptyPlan(), answer: { volume: this.describe(volume) } };
    if (size > volume.size) {
      this.refuseNewBlockSize(volume, size);
      return this.change({ ...volume, size });
    }
    if (!request.shrink) {
      throw new DssError("InvalidArgument", `volume ${name} has ${volume.size} bytes already`, {
        hint: "what is beyond the new size would be lost; if you mean it, add --allow-shrink",
      });
    }
    this.refuseFlatten(volume);
    this.endUse(access, volume);
    const draft = new Draft(this.metadata);
    draft.purge({ ...wholeOf(volume), from: size, shrinks: true });
    return this.change({ ...volume, shrinkTo: size }, draft);
  }

  rename(access: Access, { name, newName }: Of<"volumeRename">): Plan {
    access.see(VOLUMES_KEY);
    const volume = this.named(name);
    checkName(newName);
    if (newName === name) return { ...emptyPlan(), answer: { volume: this.describe(volume) } };
    this.refuseTaken(newName);
    return this.change({ ...volume, name: newName });
  }

  limit(access: Access, request: Of<"volumeLimit">): Plan {
    access.see(VOLUMES_KEY);
    const volume = this.named(request.name);
    const iopsLimit = request.iops ?? volume.iopsLimit;
    const bandwidthLimit = request.bandwidth ?? volume.bandwidthLimit;
    return this.change({ ...volume, iopsLimit, bandwidthLimit });
  }

  /** Facts for the journal when the deletes of a shrinking volume are over. */
  shrunk(entry: PurgeEntry): Delta[] {
    const volume = this.metadata.volume(entry.volume);
    if (!entry.shrinks || volume === undefined) return [];
    const revision = volume.revision + 1;
    const { from: size } = entry;
    // What was cut off hides the parent from now on, whatever size the volume will have.
    const parent = volume.parent && {
      ...volume.parent,
      overlap: Math.min(volume.parent.overlap, size),
    };
    return [{ d: "volumePut", volume: { ...volume, size, shrinkTo: 0, parent, revision } }];
  }

  open(access: Access, request: Of<"volumeOpen">): Plan {
    const { name, write, holder = "" } = request;
    access.see(VOLUMES_KEY);
    if (name.includes("@")) return this.openSnapshot(access, request);
    let volume = this.named(name);
    this.refuseRest(volume);
    if (write) access.queue(contextKey(volume.id));
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
      shared: write ? [contextKey(volume.id)] : [],
    };
  }

  /** NAME@SNAPSHOT, to be read. */
  private openSnapshot(access: Access, { name, write }: Of<"volumeOpen">): Plan {
    const at = name.indexOf("@");
    const volume = this.named(name.slice(0, at));
    const { id, size } = snapshotNamed(volume, name.slice(at + 1));
    if (write) {
      throw new DssError("ReadOnly", `${name} is a snapshot and cannot be written`, {
        hint: "open it --read-only",
      });
    }
    const described = { ...this.describe(volume), size, snapshot: id };
    const use = volumeUse(described);
    const draft = new Draft(this.metadata);
    if (this.metadata.session(access.session)?.volumes.has(use) !== true) {
      draft.add({ d: "volumeUse", id: access.session, volume: use, write: false });
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
      throw new DssError("StaleHandle", `volume ${name} was taken over by ${who} at ${when}`, {
        hint: "what was written here since then is lost: detach, and attach it when it is free",
      });
    }
    if (owner === undefined) return;
    if (!force && !this.lapsed(owner)) {
      const since = this.options.dateOf(writer.sinceNs);
      throw new DssError(
        "Busy",
        `volume ${name} is in use by ${describeSession(owner)} since ${since}`,
        {
          hint: "stop it there, open the volume --read-only, or take it away: --force fences the owner",
        },
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

  report(access: Access, { volumes }: Of<"volumeReport">): Plan {
    for (const client of this.reports.keys()) {
      if (this.metadata.session(client) === undefined) this.reports.delete(client);
    }
    this.reports.set(access.session, volumes);
    return emptyPlan();
  }
  top(): Plan {
    const volumeTop: VolumeTop[] = [];
    for (const [client, volumes] of this.reports) {
      const session = this.metadata.session(client);
      if (session === undefined) continue;
      const server = describeSession(session);
      for (const activity of volumes) {
        const name = this.metadata.volume(activity.volume)?.name;
        if (name !== undefined) volumeTop.push({ name, server, client, activity });
      }
    }
    return { ...emptyPlan(), answer: { volumeTop } };
  }

  /** For the journal and for all who have the volume open. */
  change(changed: VolumeRecord, draft = new Draft(this.metadata)): Plan {
    const volume = { ...changed, revision: changed.revision + 1 };
    draft.add({ d: "volumePut", volume });
    const described = this.describe(volume);
    return {
      ...emptyPlan(),
      record: draft.finish(),
      answer: { volume: described },
      hides: [VOLUMES_KEY],
      durable: true,
      volumeChanged: described,
    };
  }
  /** Nobody has the volume open: those whose lease is over are fenced first. Errors: Busy. */
  endUse(access: Access, volume: VolumeRecord): void {
    const users = this.users(volume.id);
    const lapsed = users.filter((user) => user.id !== access.session && this.lapsed(user));
    const alive = users.find((user) => !lapsed.includes(user));
    if (alive !== undefined) {
      throw new DssError("Busy", `volume ${volume.name} is in use by ${describeSession(alive)}`, {
        hint: "stop or detach it there first",
      });
    }
    evict(access, volume.id, lapsed);
  }
  /** Beyond 2^53 the smallest block is 4 KiB, and who has it open knows it as a byte. */
  private refuseNewBlockSize({ id, name, size: old }: VolumeRecord, size: number): void {
    const [user] = this.users(id);
    if (user === undefined || Number.isSafeInteger(old) === Number.isSafeInteger(size)) return;
    throw new DssError("Busy", `volume ${name} is in use by ${describeSession(user)}`, {
      hint: "detach it: beyond 8 PiB its smallest block is another one",
    });
  }
  /** A snapshot that somebody reads stays; silent sessions are evicted. Errors: Busy. */
  refuseUse(access: Access, volume: VolumeRecord, snapshot: number): void {
    const use = volumeUse({ id: volume.id, snapshot });
    const users = this.users(use);
    const lapsed = users.filter((user) => user.id !== access.session && this.lapsed(user));
    const alive = users.find((user) => !lapsed.includes(user));
    if (alive !== undefined) {
      const text = `the snapshot of volume ${volume.name} is in use by ${describeSession(alive)}`;
      throw new DssError("Busy", text, { hint: "stop or detach it there first" });
    }
    evict(access, use, lapsed);
  }
  /** While objects are being changed in the background nothing else changes. Errors: Busy. */
  refuseRest(volume: VolumeRecord): void {
    this.refuseRollback(volume);
    const { name, shrinkTo } = volume;
    if (shrinkTo === 0) return;
    throw new DssError("Busy", `volume ${name} is being shrunk to ${shrinkTo} bytes`, {
      hint: "its deletes go on by themselves: see dss volume ls",
    });
  }
  private refuseRollback({ name, rollbackTo, snapshots }: VolumeRecord): void {
    if (rollbackTo === 0) return;
    const to = snapshots.find(({ id }) => id === rollbackTo)?.name ?? rollbackTo;
    throw new DssError("Busy", `volume ${name} is being rolled back to its snapshot ${to}`, {
      hint: "that goes on by itself: see dss volume ls",
    });
  }
  /** Errors: Busy. */
  refuseFlatten({ name, isFlattening }: VolumeRecord): void {
    if (!isFlattening) return;
    throw new DssError("Busy", `volume ${name} is being made independent of its parent`, {
      hint: "that goes on by itself: see dss volume ls",
    });
  }
  private find(name: string): VolumeRecord | undefined {
    for (const volume of this.metadata.volumes()) if (volume.name === name) return volume;
    return undefined;
  }
  named(name: string): VolumeRecord {
    const volume = this.find(name);
    if (volume !== undefined) return volume;
    throw new DssError("NotFound", `there is no volume ${name}`, { hint: "see dss volume ls" });
  }
  refuseTaken(name: string): void {
    if (this.find(name) === undefined) return;
    throw new DssError("Exists", `volume ${name} exists`, {
      hint: "choose another name, or remove it first: dss volume rm",
    });
  }
  private users(id: number): SessionBody[] {
    return [...this.metadata.sessions()].filter((session) => session.volumes.has(id));
  }
  private lapsed(session: SessionBody): boolean {
    return this.options.lapsed(session.id);
  }
  describe(volume: VolumeRecord): Volume {
    const owner = this.users(volume.id).find((user) => user.volumes.get(volume.id) === true);
    return {
      ...volume,
      snapshot: 0,
      ancestors: ancestorsOf(this.metadata, volume),
      children: [],
      owner: owner === undefined ? "" : describeSession(owner),
      ownerClient: owner?.id ?? 0,
      ownerSinceNs: owner === undefined ? 0n : volume.writer.sinceNs,
    };
  }
}

export function checkName(name: string): void {
  if (NAME.test(name)) return;
  throw new DssError("InvalidArgument", `${JSON.stringify(name)} is no name for a volume`, {
    hint: "use 1 to 128 letters, digits, dots, underscores or hyphens, not beginning with . or -",
  });
}
/** The size in whole units. */
function checkSize(bytes: number): number {
  if (!Number.isInteger(bytes) || bytes <= 0) {
    throw new DssError("InvalidArgument", `a volume of ${bytes} bytes`);
  }
  const size = Math.ceil(bytes / VOLUME_SIZE_UNIT) * VOLUME_SIZE_UNIT;
  if (size <= VOLUME_SIZE_MAX) return size;
  throw new DssError("FileTooLarge", `a volume has at most ${VOLUME_SIZE_MAX} bytes`);
}
/** Errors: InvalidArgument. */
function chosenLayout(standard: Layout, chosen: Partial<Omit<Layout, "pool">>): Layout {
  const objectSize = chosen.objectSize ?? standard.objectSize;
  const stripeCount = chosen.stripeCount ?? standard.stripeCount;
  const usual = chosen.objectSize === undefined ? standard.stripeUnit : objectSize;
  const stripeUnit = chosen.stripeUnit ?? usual;
  const isPower = (value: number): boolean => Number.isInteger(Math.log2(value));
  if (!(objectSize >= OBJECT_SIZE_MIN && objectSize <= OBJECT_SIZE_MAX) || !isPower(objectSize)) {
    const text = `objects of ${objectSize} bytes are not possible: give a power of two, 64K to 64M`;
    throw new DssError("InvalidArgument", text);
  }
  if (!(stripeUnit >= VOLUME_SIZE_UNIT && stripeUnit <= objectSize) || !isPower(stripeUnit)) {
    const range = `give a power of two from 4K to the object size, ${objectSize} bytes`;
    const text = `a stripe unit of ${stripeUnit} bytes is not possible: ${range}`;
    throw new DssError("InvalidArgument", text);
  }
  if (!(stripeCount >= 1 && stripeCount <= STRIPE_COUNT_MAX)) {
    const text = `stripes over ${stripeCount} objects: give 1 to ${STRIPE_COUNT_MAX}`;
    throw new DssError("InvalidArgument", text);
  }
  return { pool: standard.pool, objectSize, stripeUnit, stripeCount };
}
/** What all deletes of a volume have in common. */
export function wholeOf({ id, name, objectPrefix, layout, size }: VolumeRecord) {
  return {
    ...{ what: "objects" as const, ino: 0, prefix: objectPrefix, layout, likely: 0, bound: size },
    ...{ truncateSeq: 0, unconditional: true, volume: id, name, snap: 0 },
  };
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
