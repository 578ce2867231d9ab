/**
 * The coordinator (design §4): decides every change of the cluster map. Pure: a proposal is
 * computed from the committed map and a batch of events; the shell saves it under its term and then
 * calls `committed`, or drops it. Several events make one epoch.
 *
 * Invariants: an OSD is (id, store UUID); every change of a PG's set, primary or of a member's
 * incarnation is a new interval; a set never shrinks below the pool's minimum of living members:
 * the PG then waits for the one it misses, which stays recorded as complete; only a PG's primary of
 * the present interval changes its set, and the last copies are never dropped for balance.
 */
import { assert } from "../../cluster/base/assert.js";
import { DssError } from "../../cluster/base/errors.js";
import {
  formatPg,
  pgIndex,
  poolOfPg,
  type ClientId,
  type Interval,
  type OsdId,
  type PgId,
  type PoolId,
} from "../../cluster/base/ids.js";
import {
  CLUSTER_FLAGS,
  WORK_PROFILES,
  hasFlag,
  profileFlag,
  type ClusterMap,
  type OsdEntry,
  type PgEntry,
  type PoolEntry,
} from "../../cluster/map/cluster-map.js";
import type { OsdInfo } from "../../cluster/map/daemon-info.js";
import type { HealthCheck } from "../../cluster/map/health.js";
import { mapFault, poolFault } from "../../cluster/map/map-codec.js";
import { upSets } from "../../cluster/map/placement.js";
import { VIRTUAL_NODES_DEFAULT, WEIGHT_MAX } from "../../cluster/map/ring.js";

export type CoordinatorEvent =
  /** The liveness znode is there. Refused (Conflict) for a known id with another store. */
  | { on: "osdRegistered"; info: OsdInfo }
  /** The liveness znode of this incarnation is gone. */
  | { on: "osdGone"; id: OsdId; incarnation: string }
  | { on: "osdOut"; id: OsdId }
  | { on: "osdIn"; id: OsdId }
  | { on: "osdReweight"; id: OsdId; weight: number }
  | { on: "osdRemove"; id: OsdId }
  | { on: "poolCreate"; pool: Omit<PoolEntry, "id"> }
  | { on: "fence"; client: ClientId }
  | { on: "flag"; flag: string; isSet: boolean }
  /** Without a name every OSD goes by its own option again. */
  | { on: "workProfile"; profile?: string }
  /**
   * A primary misses a member's answers. Conflict: the interval or its primary is another; Busy:
   * too few would remain. A member that is not in the set yet (an addition whose outcome is
   * unknown) costs an interval, after which that addition can no longer take effect. A member that
   * has lost part of the PG asks for its own removal; a primary that cannot be spared yet hands the
   * PG over at least.
   */
  | ({ on: "removeMember" } & MemberRequest)
  /**
   * A primary's learner has every acknowledged write and syncs every new one. Conflict as above.
   */
  | ({ on: "addMember"; incarnation: string } & MemberRequest);

/** What a PG's primary asks about its set. */
export interface MemberRequest {
  pg: PgId;
  /** The PG's interval as the requester knows it. */
  interval: Interval;
  requester: OsdId;
  member: OsdId;
}

export interface CoordinatorOptions {
  /** Down becomes out after this long. */
  downOutIntervalMs: number;
  /** PGs are created when this many OSDs are up, if more than a pool's replicas. */
  expectedOsds: number;
  /** After this long with at least the minimum, PGs are created on the OSDs there are. */
  createWaitMs: number;
}

export const COORDINATOR_DEFAULTS: CoordinatorOptions = {
  downOutIntervalMs: 600_000,
  expectedOsds: 0,
  createWaitMs: 10_000,
};

/**
 * A fence outlives its session, so none is ever dropped: a refused id may come back after any time.
 * Each one costs 8 bytes of the map; at this many (crashed or evicted clients of the cluster's
 * whole life) new ones are refused loudly rather than old ones forgotten.
 */
export const FENCES_MAX = 65_536;

export interface Proposal {
  /** The committed map itself when nothing changes. */
  map: ClusterMap;
  /** Per event: undefined, or why it was refused (the others of the batch take effect). */
  outcomes: (DssError | undefined)[];
}

export interface InitialOptions {
  clusterId: string;
  pool: Omit<PoolEntry, "id">;
  virtualNodes?: number;
  ratios?: FullRatios;
}
export type FullRatios = Pick<ClusterMap, "nearFullRatio" | "fullRatio" | "backfillFullRatio">;
const RATIOS: FullRatios = { nearFullRatio: 0.85, fullRatio: 0.95, backfillFullRatio: 0.97 };

/** Epoch 1: no OSDs, and the default pool (id 1) waiting for them. Errors: InvalidArgument. */
export function initialMap(options: InitialOptions): ClusterMap {
  const pool: PoolEntry = { id: 1, ...options.pool };
  const fault = poolFault(pool);
  if (fault !== undefined) throw new DssError("InvalidArgument", fault);
  return {
    clusterId: options.clusterId,
    epoch: 1,
    osds: [],
    pools: [pool],
    pgs: { [pool.id]: emptyPgs(pool, 1) },
    flags: [],
    fences: [],
    virtualNodes: options.virtualNodes ?? VIRTUAL_NODES_DEFAULT,
    ...(options.ratios ?? RATIOS),
  };
}

function emptyPgs(pool: PoolEntry, epoch: number): PgEntry[] {
  return Array.from({ length: pool.pgCount }, () => ({ inSync: [], primary: -1, interval: epoch }));
}

/**
 * The events that bring the map's idea of who lives up to a complete list of the liveness znodes.
 */
export function livenessEvents(map: ClusterMap, live: readonly OsdInfo[]): CoordinatorEvent[] {
  const present = new Map(live.map((info) => [info.id, info]));
  const gone = map.osds
    .filter((osd) => osd.up && present.get(osd.id)?.uuid !== osd.uuid)
    .map(({ id, incarnation }): CoordinatorEvent => ({ on: "osdGone", id, incarnation }));
  const registered = live
    .filter((info) => {
      const osd = map.osds.find((entry) => entry.id === info.id);
      return !osd?.up || osd.incarnation !== info.incarnation || osd.uuid !== info.uuid;
    })
    .map((info): CoordinatorEvent => ({ on: "osdRegistered", info }));
  return [...gone, ...registered];
}

export class Coordinator {
  /** In memory only: a new leader waits anew. */
  private readonly waitingSinceMs = new Map<PoolId, number>();
  private readonly strangers = new Map<OsdId, string>();

  constructor(
    private current: ClusterMap,
    private readonly options: CoordinatorOptions,
  ) {}

  get map(): ClusterMap {
    return this.current;
  }

  /** The proposal is in ZooKeeper now (or a newer map was read back). */
  committed(map: ClusterMap): void {
    assert(map.epoch >= this.current.epoch, `map ${map.epoch} after ${this.current.epoch}`);
    this.current = map;
  }

  /**
   * `nowMs` is wall-clock time since 1970. Without events it does what has become due (call it once
   * a second).
   */
  propose(events: readonly CoordinatorEvent[], nowMs: number): Proposal {
    const draft = new Draft(this.current);
    const outcomes = events.map((event) => {
      try {
        this.apply(draft, event, nowMs);
        return undefined;
      } catch (error) {
        if (error instanceof DssError) return error;
        throw error;
      }
    });
    if (!hasFlag(this.current, "noout")) this.outAfterDown(draft, nowMs);
    this.createPgs(draft, nowMs);
    if (!hasFlag(this.current, "norebalance")) draft.preferPrimaries();
    const map = draft.finish();
    return { map, outcomes };
  }

  /** Warnings that the map does not show. */
  warnings(): HealthCheck[] {
    if (this.strangers.size === 0) return [];
    const detail = [...this.strangers].map(
      ([id, uuid]) =>
        `osd.${id}: store ${uuid} was refused; "dss osd rm ${id}" forgets the old one`,
    );
    return [
      {
        code: "OSD_WRONG_STORE",
        severity: "HEALTH_WARN",
        summary: `${this.strangers.size} OSD(s) started with another store than the registered one`,
        detail,
      },
    ];
  }

  private apply(draft: Draft, event: CoordinatorEvent, nowMs: number): void {
    switch (event.on) {
      case "osdRegistered":
        return this.onRegistered(draft, event.info);
      case "osdGone":
        return this.onGone(draft, event, nowMs);
      case "osdOut":
        return draft.change(event.id, { in: false, autoOut: false });
      case "osdIn":
        return draft.change(event.id, { in: true, autoOut: false });
      case "osdReweight": {
        if (!(event.weight >= 0 && event.weight <= WEIGHT_MAX)) {
          const message = `weight ${event.weight} is not between 0 and ${WEIGHT_MAX}`;
          throw new DssError("InvalidArgument", message);
        }
        return draft.change(event.id, { weight: event.weight });
      }
      case "osdRemove":
        draft.removeOsd(event.id);
        this.strangers.delete(event.id);
        return;
      case "poolCreate":
        return draft.addPool(event.pool);
      case "fence":
        return draft.fence(event.client);
      case "flag":
        return draft.setFlag(event.flag, event.isSet);
      case "workProfile":
        return draft.setWorkProfile(event.profile);
      case "removeMember":
        return draft.removeMember(event);
      case "addMember":
        return draft.addMember(event);
    }
  }

  private onRegistered(draft: Draft, info: OsdInfo): void {
    const known = draft.osds.get(info.id);
    if (known && known.uuid !== info.uuid) {
      this.strangers.set(info.id, info.uuid);
      throw new DssError("Conflict", `osd.${info.id} is registered with another store`, {
        hint: `start it with its own data, or forget the old store with "dss osd rm ${info.id}"`,
      });
    }
    this.strangers.delete(info.id);
    if (known?.up && known.incarnation === info.incarnation) return;
    const { id, uuid, host, address, incarnation } = info;
    const returned = known?.autoOut ? { in: true, autoOut: false } : {};
    draft.put({
      ...(known ?? { weight: info.weight, in: true }),
      ...returned,
      id,
      uuid,
      host,
      address,
      incarnation,
      up: true,
      state: "joining",
      upFrom: draft.epoch,
      downSinceMs: 0,
    });
    draft.memberStarted(id);
  }

  private onGone(draft: Draft, event: { id: OsdId; incarnation: string }, nowMs: number): void {
    const known = draft.osds.get(event.id);
    // Late news about an earlier start of the daemon.
    if (!known?.up || known.incarnation !== event.incarnation) return;
    draft.put({ ...known, up: false, downSinceMs: nowMs });
    draft.memberGone(event.id);
  }

  private outAfterDown(draft: Draft, nowMs: number): void {
    for (const osd of [...draft.osds.values()]) {
      if (osd.up || !osd.in || nowMs - osd.downSinceMs < this.options.downOutIntervalMs) continue;
      draft.put({ ...osd, in: false, autoOut: true });
    }
  }

  /**
   * PGs of a new pool get their first in-sync sets, all at once: nothing was ever written to them.
   */
  private createPgs(draft: Draft, nowMs: number): void {
    for (const pool of draft.pools) {
      if (draft.pgs[pool.id]!.every((pg) => pg.inSync.length > 0)) {
        this.waitingSinceMs.delete(pool.id);
        continue;
      }
      const usable = draft.usableOsds();
      if (usable < pool.minimum) {
        this.waitingSinceMs.delete(pool.id);
        continue;
      }
      const sinceMs = this.waitingSinceMs.get(pool.id) ?? nowMs;
      this.waitingSinceMs.set(pool.id, sinceMs);
      const isWaitOver = nowMs - sinceMs >= this.options.createWaitMs;
      if (usable < Math.max(pool.replicas, this.options.expectedOsds) && !isWaitOver) continue;
      draft.createPgs(pool);
    }
  }
}

/** A map being changed; `finish` gives the next epoch, or the map it began with. */
class Draft {
  /** Also the interval of every PG that it changes. */
  readonly epoch: number;
  readonly osds: Map<OsdId, OsdEntry>;
  readonly pools: PoolEntry[];
  readonly pgs: Record<number, readonly PgEntry[]>;
  private fences: ClusterMap["fences"];
  private flags: ClusterMap["flags"];
  private isChanged = false;

  constructor(private readonly base: ClusterMap) {
    this.epoch = base.epoch + 1;
    this.osds = new Map(base.osds.map((osd) => [osd.id, osd]));
    this.pools = [...base.pools];
    this.pgs = { ...base.pgs };
    this.fences = base.fences;
    this.flags = base.flags;
  }

  put(osd: OsdEntry): void {
    this.osds.set(osd.id, osd);
    this.isChanged = true;
  }

  change(id: OsdId, fields: Partial<OsdEntry>): void {
    const osd = this.known(id);
    const names = Object.keys(fields) as (keyof OsdEntry)[];
    if (names.every((name) => (osd[name] ?? false) === fields[name])) return;
    this.put({ ...osd, ...fields });
  }

  /** Its sets go on without it, where enough living members remain. */
  memberGone(id: OsdId): void {
    this.changePgsOf(id, (pg, wanted, pool) => {
      const rest = pg.inSync.filter((osd) => osd !== id);
      const inSync = this.countUp(rest) >= pool.minimum ? rest : pg.inSync;
      return { inSync, primary: this.primaryOf(inSync, wanted, pg.primary), interval: this.epoch };
    });
  }

  /** What it knew of its intervals is gone with its earlier life. */
  memberStarted(id: OsdId): void {
    this.changePgsOf(id, (pg, wanted) => {
      // Who was waiting serves nobody: the preferred primary may as well take over.
      const wasServing = pg.inSync.every((osd) => osd !== id && this.osds.get(osd)?.up === true);
      const old = wasServing ? pg.primary : -1;
      return { ...pg, primary: this.primaryOf(pg.inSync, wanted, old), interval: this.epoch };
    });
  }

  removeMember(request: MemberRequest): void {
    const { pg, pool } = this.asked(request, true);
    const { member } = request;
    const inSync = pg.inSync.filter((osd) => osd !== member);
    const isPrimary = pg.primary === member;
    const wanted = isPrimary ? upSets(this.snapshot(), pool)[pgIndex(request.pg)]! : [];
    const primary = isPrimary ? this.primaryOf(inSync, wanted, -1) : pg.primary;
    if (inSync.length < pg.inSync.length && this.countUp(inSync) < pool.minimum) {
      const text = `without osd.${member} PG ${formatPg(request.pg)} has too few members`;
      if (!isPrimary || primary === -1) throw new DssError("Busy", text);
      // Another one may lead the set to where it can do without this member.
      this.setPg(request.pg, { inSync: pg.inSync, primary, interval: this.epoch });
      return;
    }
    this.setPg(request.pg, { inSync, primary, interval: this.epoch });
  }

  addMember(request: MemberRequest & { incarnation: string }): void {
    const { pg, pool } = this.asked(request);
    const osd = this.osds.get(request.member);
    if (!osd?.up || osd.incarnation !== request.incarnation) {
      throw new DssError("Conflict", `osd.${request.member} is not up in that incarnation`);
    }
    if (pg.inSync.includes(request.member)) {
      throw new DssError("Conflict", `osd.${request.member} is in the set already`);
    }
    // A member that was kept only because too few were left can go now.
    const grown = [...pg.inSync, request.member];
    const living = grown.filter((id) => this.osds.get(id)?.up);
    const inSync = living.length >= pool.minimum ? living : grown;
    this.setPg(request.pg, { inSync, primary: pg.primary, interval: this.epoch });
  }

  /**
   * The PG of a request whose author is its primary in its present interval, or (`orSelf`) a member
   * that asks about itself.
   */
  private asked(request: MemberRequest, orSelf = false): { pg: PgEntry; pool: PoolEntry } {
    const { pg: id, interval, requester } = request;
    const pool = this.pools.find((candidate) => candidate.id === poolOfPg(id));
    const pg = pool && this.pgs[pool.id]![pgIndex(id)];
    if (!pg) throw new DssError("NotFound", `there is no PG ${formatPg(id)}`);
    // A change earlier in this batch is a newer interval, too.
    const isSelf = orSelf && requester === request.member && pg.inSync.includes(requester);
    const mayAsk = pg.primary === requester || isSelf;
    if (pg.interval !== interval || !mayAsk || requester === -1) {
      const where = `PG ${formatPg(id)} in interval ${interval}`;
      const text = `osd.${requester} is not the primary of ${where}`;
      throw new DssError("Conflict", text, { epoch: this.epoch - 1 });
    }
    return { pg, pool };
  }

  private setPg(id: PgId, entry: PgEntry): void {
    const pool = poolOfPg(id);
    const entries = [...this.pgs[pool]!];
    entries[pgIndex(id)] = entry;
    this.pgs[pool] = entries;
    this.isChanged = true;
  }

  private changePgsOf(
    member: OsdId,
    change: (pg: PgEntry, wanted: readonly OsdId[], pool: PoolEntry) => PgEntry,
  ): void {
    const placed = this.snapshot();
    for (const pool of this.pools) {
      const entries = this.pgs[pool.id]!;
      if (!entries.some((pg) => pg.inSync.includes(member))) continue;
      const wanted = upSets(placed, pool);
      this.pgs[pool.id] = entries.map((pg, index) =>
        pg.inSync.includes(member) ? change(pg, wanted[index]!, pool) : pg,
      );
    }
  }

  private countUp(members: readonly OsdId[]): number {
    return members.filter((osd) => this.osds.get(osd)?.up).length;
  }

  /** The old one while it lives; else the preferred one, which spreads the load; -1: none lives. */
  private primaryOf(inSync: readonly OsdId[], wanted: readonly OsdId[], old: OsdId): OsdId {
    const preferred = wanted.filter((osd) => inSync.includes(osd));
    const order = inSync.includes(old) ? [old, ...preferred, ...inSync] : [...preferred, ...inSync];
    return order.find((osd) => this.osds.get(osd)?.up) ?? -1;
  }

  removeOsd(id: OsdId): void {
    const osd = this.known(id);
    const holding = this.pools.filter((pool) =>
      this.pgs[pool.id]!.some((pg) => pg.inSync.includes(id)),
    );
    if (holding.length > 0) {
      const pools = holding.map((pool) => pool.name).join(", ");
      throw new DssError("Busy", `osd.${id} still holds data of ${pools}`, {
        hint: `move it away first: dss osd drain ${id}`,
      });
    }
    if (osd.up) {
      throw new DssError("Busy", `osd.${id} is running`, { hint: "stop its daemon first" });
    }
    this.osds.delete(id);
    this.isChanged = true;
  }

  addPool(wanted: Omit<PoolEntry, "id">): void {
    if (this.pools.some((pool) => pool.name === wanted.name)) {
      throw new DssError("Exists", `there is a pool "${wanted.name}" already`, {
        hint: "choose another name, or change that one: dss pool set",
      });
    }
    // Ids are never used twice: the id of an earlier pool may still be on disks.
    const id = Math.max(0, ...Object.keys(this.pgs).map(Number)) + 1;
    const pool = { id, ...wanted };
    const fault = poolFault(pool);
    if (fault !== undefined) throw new DssError("InvalidArgument", fault);
    this.pools.push(pool);
    this.pgs[id] = emptyPgs(pool, this.epoch);
    this.isChanged = true;
  }

  fence(client: ClientId): void {
    if (this.fences.some((fence) => fence.client === client)) return;
    if (this.fences.length >= FENCES_MAX) {
      throw new DssError("Overloaded", `the map holds ${FENCES_MAX} fences, its limit`);
    }
    this.fences = [...this.fences, { client, epoch: this.epoch }];
    this.isChanged = true;
  }

  setFlag(flag: string, isSet: boolean): void {
    if (!CLUSTER_FLAGS.some((name) => name === flag)) {
      const text = `there is no flag "${flag}"; there are: ${CLUSTER_FLAGS.join(", ")}`;
      throw new DssError("InvalidArgument", text);
    }
    if (this.flags.includes(flag) === isSet) return;
    const rest = this.flags.filter((name) => name !== flag);
    this.flags = isSet ? [...rest, flag] : rest;
    this.isChanged = true;
  }
  setWorkProfile(name: string | undefined): void {
    const profile = WORK_PROFILES.find((each) => each === name);
    if (name !== undefined && profile === undefined) {
      const text = `there is no profile "${name}"; there are: ${WORK_PROFILES.join(", ")}`;
      throw new DssError("InvalidArgument", text);
    }
    const all = WORK_PROFILES.map(profileFlag);
    const rest = this.flags.filter((flag) => !all.includes(flag));
    const flags = profile === undefined ? rest : [...rest, profileFlag(profile)];
    if (flags.join() === this.flags.join()) return;
    this.flags = flags;
    this.isChanged = true;
  }

  /**
   * Once every PG of a pool is where it belongs its primaries are the preferred ones again, which
   * spreads the load: all in one epoch, because every move makes its PG pause.
   */
  preferPrimaries(): void {
    const placed = this.snapshot();
    for (const pool of this.pools) {
      const wanted = upSets(placed, pool);
      const entries = this.pgs[pool.id]!;
      const isAtHome = (pg: PgEntry, index: number): boolean =>
        pg.inSync.length === wanted[index]!.length &&
        wanted[index]!.length >= pool.replicas &&
        wanted[index]!.every((osd) => pg.inSync.includes(osd) && this.osds.get(osd)?.up === true);
      const isLed = (pg: PgEntry, index: number): boolean => pg.primary === wanted[index]![0];
      if (entries.every(isLed) || !entries.every(isAtHome)) continue;
      this.pgs[pool.id] = entries.map((pg, index) =>
        isLed(pg, index) ? pg : { ...pg, primary: wanted[index]![0]!, interval: this.epoch },
      );
      this.isChanged = true;
    }
  }

  usableOsds(): number {
    let count = 0;
    for (const osd of this.osds.values()) if (osd.up && osd.in && osd.weight > 0) count++;
    return count;
  }

  /** Only if every PG has at least the minimum of its up set alive. */
  createPgs(pool: PoolEntry): void {
    const isUp = (id: OsdId): boolean => this.osds.get(id)!.up;
    const wanted = upSets(this.snapshot(), pool).map((set) => set.filter(isUp));
    const entries = this.pgs[pool.id]!;
    const isReady = entries.every(
      (pg, index) => pg.inSync.length > 0 || wanted[index]!.length >= pool.minimum,
    );
    if (!isReady) return;
    this.pgs[pool.id] = entries.map((pg, index) => {
      if (pg.inSync.length > 0) return pg;
      const inSync = wanted[index]!;
      return { inSync, primary: inSync[0]!, interval: this.epoch };
    });
    this.isChanged = true;
  }

  finish(): ClusterMap {
    if (!this.isChanged) return this.base;
    const placed = this.snapshot();
    for (const pool of this.pools) this.pgs[pool.id] = this.withoutExtras(placed, pool);
    const map = this.snapshot();
    const states = new Map(map.osds.map((osd) => [osd.id, stateOf(map, osd)]));
    const osds = map.osds.map((osd) => {
      const state = states.get(osd.id)!;
      return state === osd.state ? osd : { ...osd, state };
    });
    const finished = { ...map, osds };
    const fault = mapFault(finished);
    assert(fault === undefined, `map ${map.epoch}: ${fault}`);
    return finished;
  }

  /** Members outside the up set go once all of the up set, alive and complete, is in. */
  private withoutExtras(placed: ClusterMap, pool: PoolEntry): readonly PgEntry[] {
    const entries = this.pgs[pool.id]!;
    const wanted = upSets(placed, pool);
    const isReplaced = (pg: PgEntry, index: number): boolean =>
      pg.inSync.length > wanted[index]!.length &&
      wanted[index]!.length >= pool.replicas &&
      wanted[index]!.every((osd) => pg.inSync.includes(osd) && this.osds.get(osd)?.up === true);
    if (!entries.some(isReplaced)) return entries;
    return entries.map((pg, index) => {
      if (!isReplaced(pg, index)) return pg;
      const inSync = pg.inSync.filter((osd) => wanted[index]!.includes(osd));
      const primary = this.primaryOf(inSync, wanted[index]!, pg.primary);
      return { inSync, primary, interval: this.epoch };
    });
  }

  private snapshot(): ClusterMap {
    return {
      ...this.base,
      epoch: this.epoch,
      osds: [...this.osds.values()].sort((a, b) => a.id - b.id),
      pools: this.pools,
      pgs: this.pgs,
      fences: this.fences,
      flags: this.flags,
    };
  }

  private known(id: OsdId): OsdEntry {
    const osd = this.osds.get(id);
    if (!osd) throw new DssError("NotFound", `there is no osd.${id}`, { hint: "see dss osd ls" });
    return osd;
  }
}

/** What people see of an OSD (design §4). */
function stateOf(map: ClusterMap, osd: OsdEntry): OsdEntry["state"] {
  if (!osd.up) return "failed";
  let holds = 0;
  let lacks = 0;
  for (const pool of map.pools) {
    const wanted = upSets(map, pool);
    map.pgs[pool.id]!.forEach((pg, index) => {
      if (pg.inSync.includes(osd.id)) holds++;
      else if (pg.inSync.length > 0 && wanted[index]!.includes(osd.id)) lacks++;
    });
  }
  if (!osd.in) return holds > 0 ? "leaving" : "init";
  return lacks > 0 ? "joining" : "active";
}
