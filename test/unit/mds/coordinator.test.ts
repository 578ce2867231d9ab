/**
 * The coordinator decides who is in charge: never below the minimum, always bumping intervals.
 */
import t from "tap";
import type { DssError } from "../../../cluster/base/errors.js";
import { pgId } from "../../../cluster/base/ids.js";
import { Prng } from "../../../cluster/base/prng.js";
import {
  osdOf,
  workProfileOf,
  type ClusterMap,
  type PgEntry,
} from "../../../cluster/map/cluster-map.js";
import type { OsdInfo } from "../../../cluster/map/daemon-info.js";
import { healthOf, pgSummary } from "../../../cluster/map/health.js";
import { decodeMap, encodeMap, mapFault } from "../../../cluster/map/map-codec.js";
import { upSet } from "../../../cluster/map/placement.js";
import {
  COORDINATOR_DEFAULTS,
  Coordinator,
  FENCES_MAX,
  initialMap,
  livenessEvents,
  type CoordinatorEvent,
  type CoordinatorOptions,
} from "../../../mds/core/coordinator.js";

const POOL = {
  name: "data",
  replicas: 3,
  minimum: 2,
  pgCount: 64,
  objectSize: 4 << 20,
  stripeUnit: 4 << 20,
  stripeCount: 1,
};

function info(id: number, changes: Partial<OsdInfo> = {}): OsdInfo {
  return {
    id,
    uuid: `store${id}`,
    address: { host: "127.0.0.1", port: 9100 + id },
    host: `host${id}`,
    weight: 1,
    incarnation: "first",
    capacity: 1e12,
    pid: 1,
    ...changes,
  };
}
const registered = (id: number, changes: Partial<OsdInfo> = {}): CoordinatorEvent => ({
  on: "osdRegistered",
  info: info(id, changes),
});
const gone = (id: number, incarnation = "first"): CoordinatorEvent => ({
  on: "osdGone",
  id,
  incarnation,
});

function fresh(options: Partial<CoordinatorOptions> = {}): Coordinator {
  const map = initialMap({ clusterId: "c", pool: POOL, virtualNodes: 100 });
  return new Coordinator(map, { ...COORDINATOR_DEFAULTS, ...options });
}
/** Proposes and commits; the refusals' codes. */
function run(coordinator: Coordinator, events: CoordinatorEvent[], nowMs = 0): string[] {
  const { map, outcomes } = coordinator.propose(events, nowMs);
  coordinator.committed(map);
  return outcomes.flatMap((error) => (error ? [error.code] : []));
}
const entries = (map: ClusterMap): readonly PgEntry[] => map.pgs[1]!;

/** Three OSDs, PGs created, in epoch 2. */
function running(options: Partial<CoordinatorOptions> = {}): Coordinator {
  const coordinator = fresh(options);
  run(coordinator, [registered(0), registered(1), registered(2)]);
  return coordinator;
}

t.test("a batch of registrations is one epoch, and creates the PGs on their up sets", (t) => {
  const c = running();
  t.equal(c.map.epoch, 2);
  t.same(
    c.map.osds.map((osd) => [osd.id, osd.up, osd.in, osd.state, osd.upFrom]),
    [0, 1, 2].map((id) => [id, true, true, "active", 2]),
  );
  entries(c.map).forEach((pg, index) => {
    t.same(pg.inSync, upSet(c.map, pgId(1, index)));
    t.equal(pg.primary, pg.inSync[0]);
    t.equal(pg.interval, 2);
  });
  t.equal(new Set(entries(c.map).map((pg) => pg.primary)).size, 3, "primaries are spread");
  t.equal(c.propose([], 1).map, c.map, "nothing to do: the same map");
  t.equal(c.propose([registered(1)], 1).map, c.map, "the same incarnation again is no news");
  t.equal(healthOf(c.map).status, "HEALTH_OK");
  t.end();
});

t.test("a pool waits for its OSDs", (t) => {
  const c = fresh({ createWaitMs: 5000 });
  t.same(
    healthOf(c.map).checks.map((x) => x.code),
    ["NO_OSDS", "POOL_WAITING"],
  );
  run(c, [registered(0)], 0);
  run(c, [], 100_000);
  t.ok(
    entries(c.map).every((pg) => pg.inSync.length === 0),
    "one OSD is below the minimum",
  );
  run(c, [registered(1)], 100_000);
  run(c, [], 104_999);
  t.ok(
    entries(c.map).every((pg) => pg.inSync.length === 0),
    "two wait for a third",
  );
  t.match(
    healthOf(c.map).checks.map((x) => x.code),
    ["TOO_FEW_OSDS", "POOL_WAITING"],
  );
  run(c, [], 105_000);
  t.ok(
    entries(c.map).every((pg) => pg.inSync.length === 2),
    "but not for ever",
  );
  const none = { clean: 0, misplaced: 0, inactive: 0, down: 0 };
  t.same(pgSummary(c.map), { ...none, total: 64, degraded: 64 });
  t.end();
});

t.test("the expected number of OSDs is waited for", (t) => {
  const c = fresh({ expectedOsds: 5 });
  run(c, [registered(0), registered(1), registered(2)]);
  t.ok(entries(c.map).every((pg) => pg.inSync.length === 0));
  run(c, [registered(3), registered(4)]);
  const holders = new Set(entries(c.map).flatMap((pg) => pg.inSync));
  t.same([...holders].sort(), [0, 1, 2, 3, 4]);
  t.end();
});

t.test("sets go on without a lost OSD, down to the minimum; then they wait for it", (t) => {
  const c = running();
  const before = entries(c.map);
  run(c, [gone(1)], 7000);
  t.match(osdOf(c.map, 1), { up: false, in: true, downSinceMs: 7000, state: "failed" });
  entries(c.map).forEach((pg, index) => {
    t.same(
      pg.inSync,
      before[index]!.inSync.filter((id) => id !== 1),
    );
    t.equal(pg.interval, 3);
    t.not(pg.primary, 1);
    t.ok(pg.inSync.includes(pg.primary));
    if (before[index]!.primary !== 1) t.equal(pg.primary, before[index]!.primary, "undisturbed");
  });
  t.same(
    healthOf(c.map).checks.map((x) => x.code),
    ["OSD_DOWN", "PG_DEGRADED"],
  );
  run(c, [gone(0), gone(2)]);
  t.ok(entries(c.map).every((pg) => pg.primary === -1 && pg.inSync.length === 2));
  t.equal(healthOf(c.map).status, "HEALTH_ERR");
  run(c, [registered(1, { incarnation: "second" })]);
  t.ok(
    entries(c.map).every((pg) => pg.primary === -1),
    "it is not complete",
  );
  run(c, [registered(2, { incarnation: "second" })]);
  t.ok(entries(c.map).every((pg) => pg.primary === 2 && pg.interval === Number(c.map.epoch)));
  t.end();
});

t.test("a restart is seen by its incarnation even when the absence was not", (t) => {
  const c = running();
  const address = { host: "127.0.0.1", port: 9200 };
  run(c, [registered(1, { incarnation: "second", address })]);
  t.match(osdOf(c.map, 1), { up: true, upFrom: 3, incarnation: "second", address });
  t.ok(entries(c.map).every((pg) => pg.interval === 3));
  t.equal(c.propose([gone(1, "first")], 0).map, c.map, "late news of the first start");
  t.end();
});

t.test("an unrelated OSD's coming and going disturbs nobody", (t) => {
  const c = running();
  const before = entries(c.map);
  run(c, [registered(7)]);
  t.equal(c.map.epoch, 3);
  t.equal(osdOf(c.map, 7)?.state, "joining", "it holds nothing of what it should");
  run(c, [gone(7)]);
  t.equal(entries(c.map), before);
  t.end();
});

t.test("another store under a known id is refused, by name", (t) => {
  const c = running();
  const { map, outcomes } = c.propose([registered(1, { uuid: "other" }), registered(9)], 0);
  t.equal((outcomes[0] as DssError).message, "osd.1 is registered with another store");
  t.equal(outcomes[1], undefined, "the rest of the batch takes effect");
  t.equal(osdOf(map, 1)?.uuid, "store1");
  t.ok(osdOf(map, 9));
  t.same(
    c.warnings().map((w) => w.code),
    ["OSD_WRONG_STORE"],
  );
  run(c, [registered(1, { incarnation: "second" })]);
  t.same(c.warnings(), [], "the right store ends the warning");
  t.end();
});

t.test("down becomes out, and in again on return; out by hand stays out", (t) => {
  const c = running({ downOutIntervalMs: 1000 });
  run(c, [gone(0)], 5000);
  run(c, [], 5999);
  t.equal(osdOf(c.map, 0)?.in, true);
  run(c, [], 6000);
  t.match(osdOf(c.map, 0), { in: false, autoOut: true });
  run(c, [registered(0, { incarnation: "second" })], 9000);
  t.match(osdOf(c.map, 0), { in: true, autoOut: false, up: true });
  run(c, [{ on: "osdOut", id: 0 }, gone(0, "second")], 9000);
  run(c, [registered(0, { incarnation: "third" })], 9500);
  t.match(osdOf(c.map, 0), { in: false, up: true, state: "init" });
  run(c, [{ on: "osdIn", id: 0 }]);
  t.match(osdOf(c.map, 0), { in: true, state: "joining" }, "it has to be added again");
  t.same(run(c, [{ on: "osdOut", id: 99 }]), ["NotFound"]);
  t.end();
});

t.test("weights and removal", (t) => {
  const c = running();
  run(c, [registered(3), { on: "osdReweight", id: 3, weight: 2.5 }]);
  t.equal(osdOf(c.map, 3)?.weight, 2.5);
  run(c, [registered(3, { incarnation: "b", weight: 1 })]);
  t.equal(osdOf(c.map, 3)?.weight, 2.5, "the map's weight outlives a restart");
  for (const weight of [-1, Number.NaN, 101]) {
    t.same(run(c, [{ on: "osdReweight", id: 3, weight }]), ["InvalidArgument"]);
  }
  t.same(run(c, [{ on: "osdRemove", id: 3 }]), ["Busy"], "it is running");
  run(c, [gone(0), gone(1), gone(3, "b")]);
  t.same(run(c, [{ on: "osdRemove", id: 1 }]), ["Busy"], "it is in in-sync sets");
  t.same(run(c, [{ on: "osdRemove", id: 3 }]), []);
  t.equal(osdOf(c.map, 3), undefined);
  t.end();
});

t.test("pools", (t) => {
  const c = running();
  t.same(run(c, [{ on: "poolCreate", pool: POOL }]), ["Exists"]);
  t.same(run(c, [{ on: "poolCreate", pool: { ...POOL, name: "x", pgCount: 100 } }]), [
    "InvalidArgument",
  ]);
  t.same(run(c, [{ on: "poolCreate", pool: { ...POOL, name: "x", minimum: 4 } }]), [
    "InvalidArgument",
  ]);
  run(c, [{ on: "poolCreate", pool: { ...POOL, name: "x", replicas: 2, minimum: 1 } }]);
  t.equal(c.map.pools[1]!.id, 2);
  t.ok(c.map.pgs[2]!.every((pg) => pg.inSync.length === 2 && pg.interval === Number(c.map.epoch)));
  t.end();
});

t.test("fences are kept, once each, and never forgotten", (t) => {
  const c = running();
  run(c, [
    { on: "fence", client: 70_000 },
    { on: "fence", client: 70_000 },
    { on: "fence", client: 70_001 },
  ]);
  t.same(c.map.fences, [
    { client: 70_000, epoch: 3 },
    { client: 70_001, epoch: 3 },
  ]);
  t.equal(c.propose([{ on: "fence", client: 70_000 }], 0).map, c.map);
  const fences = Array.from({ length: FENCES_MAX }, (_, i) => ({ client: 80_000 + i, epoch: 1 }));
  const full = new Coordinator({ ...c.map, fences }, COORDINATOR_DEFAULTS);
  t.same(run(full, [{ on: "fence", client: 70_000 }]), ["Overloaded"]);
  t.ok(encodeMap(full.map).length < 900_000, "a map full of fences still fits its znode");
  t.end();
});

t.test("liveness events bring a new leader up to date", (t) => {
  const c = running();
  const live = [info(0), info(2, { incarnation: "second" }), info(5)];
  t.same(livenessEvents(c.map, live), [
    gone(1),
    registered(2, { incarnation: "second" }),
    registered(5),
  ]);
  run(c, livenessEvents(c.map, live));
  t.same(livenessEvents(c.map, live), []);
  run(c, livenessEvents(c.map, [info(0, { uuid: "other" })]));
  t.equal(osdOf(c.map, 0)?.up, false, "a stranger in its place: the known one is gone");
  t.end();
});

/** The first PG, and what its primary asks. */
function first(c: Coordinator): {
  pg: PgEntry;
  ask: (on: "removeMember" | "addMember", member: number, fields?: object) => string[];
} {
  const pg = entries(c.map)[0]!;
  const question = { pg: pgId(1, 0), interval: pg.interval, requester: pg.primary };
  const ask = (on: "removeMember" | "addMember", member: number, fields = {}): string[] =>
    run(c, [{ on, ...question, member, incarnation: "first", ...fields }]);
  return { pg, ask };
}

t.test("only the primary of the present interval has a member removed", (t) => {
  const c = running();
  const { pg, ask } = first(c);
  const [one, two] = pg.inSync.filter((id) => id !== pg.primary);
  t.same(ask("removeMember", one!, { requester: two! }), ["Conflict"]);
  t.same(ask("removeMember", one!, { interval: 1 }), ["Conflict"]);
  t.same(ask("removeMember", one!, { pg: pgId(1, 999) }), ["NotFound"]);
  t.equal(entries(c.map)[0], pg);
  t.same(ask("removeMember", one!), []);
  t.match(entries(c.map)[0], { inSync: pg.inSync.filter((id) => id !== one), primary: pg.primary });
  t.equal(entries(c.map)[0]!.interval, Number(c.map.epoch));
  t.equal(osdOf(c.map, one!)?.up, true, "it is not down for that");
  t.same(ask("removeMember", two!), ["Conflict"], "that interval is over");
  t.same(first(c).ask("removeMember", two!), ["Busy"]);
  t.end();
});

t.test("a member is added in the incarnation that was brought up to date", (t) => {
  const c = running();
  const { pg, ask } = first(c);
  const [lost] = pg.inSync.filter((id) => id !== pg.primary);
  ask("removeMember", lost!);
  const add = first(c).ask;
  t.same(add("addMember", lost!, { incarnation: "later" }), ["Conflict"]);
  t.same(add("addMember", 77), ["Conflict"], "nobody knows it");
  t.same(add("addMember", lost!), []);
  t.same([...entries(c.map)[0]!.inSync].sort(), [0, 1, 2]);
  t.same(add("addMember", lost!), ["Conflict"], "the answer was lost, and the interval is over");
  t.same(first(c).ask("addMember", lost!), ["Conflict"], "it is in the set");
  t.end();
});

t.test("a member that has lost the PG asks for its own removal", (t) => {
  const c = running();
  const { pg, ask } = first(c);
  const [one, two] = pg.inSync.filter((id) => id !== pg.primary);
  t.same(ask("removeMember", pg.primary), [], "the primary");
  const after = first(c);
  t.notOk(after.pg.inSync.includes(pg.primary));
  t.ok([one, two].includes(after.pg.primary), "another one leads");
  t.ok(after.pg.interval > pg.interval);
  const rest = after.pg.inSync.find((id) => id !== after.pg.primary)!;
  t.same(after.ask("removeMember", rest, { requester: rest }), ["Busy"], "too few would be left");
  t.same(after.ask("removeMember", after.pg.primary), [], "a primary hands over at least");
  const last = first(c);
  t.same(last.pg.inSync, after.pg.inSync);
  t.equal(last.pg.primary, rest);
  t.same(
    last.ask("removeMember", pg.primary, { requester: pg.primary }),
    ["Conflict"],
    "a stranger",
  );
  t.end();
});

t.test("an addition that is withdrawn can no longer take effect", (t) => {
  const c = running();
  const { pg, ask } = first(c);
  const [lost] = pg.inSync.filter((id) => id !== pg.primary);
  ask("removeMember", lost!);
  const { pg: shrunk, ask: late } = first(c);
  t.same(first(c).ask("removeMember", lost!), [], "it is not in the set: a new interval is all");
  t.same(entries(c.map)[0]!.inSync, shrunk.inSync);
  t.ok(entries(c.map)[0]!.interval > shrunk.interval);
  t.same(late("addMember", lost!), ["Conflict"]);
  t.end();
});

t.test("a member is replaced only after the whole up set is in and alive", (t) => {
  const c = fresh();
  run(c, [registered(0), registered(1), registered(2)]);
  run(c, [registered(3), registered(4), { on: "osdOut", id: 0 }]);
  const index = entries(c.map).findIndex((pg) => pg.inSync.includes(0) && pg.primary !== 0);
  const wanted = upSet(c.map, pgId(1, index));
  const add = (member: number): void => {
    const { interval, primary: requester } = entries(c.map)[index]!;
    const question = { pg: pgId(1, index), interval, requester, member, incarnation: "first" };
    t.same(run(c, [{ on: "addMember", ...question }]), []);
  };
  const missing = wanted.filter((id) => !entries(c.map)[index]!.inSync.includes(id));
  t.ok(missing.length > 0);
  for (const member of missing) {
    t.ok(entries(c.map)[index]!.inSync.includes(0), "nobody goes before");
    add(member);
  }
  const { inSync, primary } = entries(c.map)[index]!;
  t.same([...inSync].sort(), [...wanted].sort());
  t.ok(inSync.includes(primary));
  t.end();
});

t.test("primaries return to the preferred members when all is where it belongs", (t) => {
  const c = running();
  const home = entries(c.map).map((pg) => pg.primary);
  run(c, [gone(0)]);
  const spare = entries(c.map).findIndex((pg, index) => home[index] === 0 && pg.primary !== 0);
  t.ok(spare >= 0);
  run(c, [registered(0, { incarnation: "second" })]);
  const left = (): number[] =>
    entries(c.map).flatMap((pg, index) => (pg.inSync.includes(0) ? [] : [index]));
  const add = (index: number): void => {
    const { interval, primary: requester } = entries(c.map)[index]!;
    const question = { pg: pgId(1, index), interval, requester, member: 0 };
    t.same(run(c, [{ on: "addMember", ...question, incarnation: "second" }]), []);
  };
  for (const index of left().slice(1)) add(index);
  t.not(entries(c.map)[spare]!.primary, 0, "not while one PG is not whole");
  for (const index of left()) add(index);
  run(c, [{ on: "flag", flag: "norebalance", isSet: true }]);
  const epoch = c.map.epoch;
  run(c, [], 1);
  if (c.map.epoch !== epoch) t.fail("nothing moves under norebalance");
  run(c, [{ on: "flag", flag: "norebalance", isSet: false }]);
  run(c, [], 2);
  t.same(
    entries(c.map).map((pg) => pg.primary),
    home,
  );
  t.equal(c.propose([], 3).map, c.map, "and then nothing moves any more");
  t.end();
});

t.test("flags: noout keeps the down in, unknown ones are refused, health tells", (t) => {
  const c = running({ downOutIntervalMs: 1_000 });
  t.same(run(c, [{ on: "flag", flag: "noout", isSet: true }]), []);
  const { epoch } = c.map;
  t.same(run(c, [{ on: "flag", flag: "noout", isSet: true }]), []);
  t.equal(c.map.epoch, epoch, "set already");
  run(c, [gone(2)], 10);
  run(c, [], 5_000);
  t.equal(osdOf(c.map, 2)!.in, true);
  t.ok(healthOf(c.map).checks.some(({ code }) => code === "CLUSTER_FLAGS"));
  run(c, [{ on: "flag", flag: "noout", isSet: false }], 5_000);
  run(c, [], 5_001);
  t.equal(osdOf(c.map, 2)!.in, false);
  t.same(run(c, [{ on: "flag", flag: "nowhere", isSet: true }]), ["InvalidArgument"]);
  t.same(run(c, [{ on: "workProfile", profile: "lazy" }]), ["InvalidArgument"]);
  run(c, [{ on: "workProfile", profile: "balanced" }]);
  run(c, [{ on: "workProfile", profile: "recovery" }]);
  t.equal(workProfileOf(c.map), "recovery");
  t.same(decodeMap(encodeMap(c.map)), c.map);
  run(c, [{ on: "workProfile" }]);
  t.equal(workProfileOf(c.map), undefined);
  t.end();
});

t.test("a proposal that was not committed leaves no trace", (t) => {
  const c = running();
  const before = c.map;
  c.propose([gone(0), { on: "fence", client: 70_000 }], 0);
  t.equal(c.map, before);
  t.equal(
    entries(before).every((pg) => pg.interval === 2),
    true,
  );
  t.end();
});

t.test("random histories keep the invariants", (t) => {
  for (let seed = 1; seed <= 30; seed++) {
    const random = new Prng(seed);
    const c = fresh({ downOutIntervalMs: 50 });
    let nowMs = 0;
    for (let step = 0; step < 60; step++) {
      nowMs += random.int(0, 40);
      const events = Array.from({ length: random.int(0, 4) }, () => randomEvent(random, c.map));
      const before = c.map;
      const { map } = c.propose(events, nowMs);
      if (random.chance(0.2)) continue; // The write failed: dropped.
      c.committed(map);
      const fault = mapFault(map) ?? historyFault(before, map);
      if (fault !== undefined) t.fail(`seed ${seed}, step ${step}: ${fault}`);
      if (step % 10 === 0) t.same(decodeMap(encodeMap(map)), map);
    }
  }
  t.end();
});

function randomEvent(random: Prng, map: ClusterMap): CoordinatorEvent {
  const id = random.int(0, 5);
  const incarnation = random.pick(["first", "second", "third"]);
  return random.pick<CoordinatorEvent>([
    registered(id, { incarnation }),
    registered(id, { incarnation, uuid: random.pick([`store${id}`, "other"]) }),
    gone(id, osdOf(map, id)?.incarnation ?? "first"),
    { on: "osdOut", id },
    { on: "osdIn", id },
    { on: "osdRemove", id },
    { on: "osdReweight", id, weight: random.int(1, 4) },
    { on: "fence", client: random.int(65_536, 65_600) },
    { on: "flag", flag: random.pick(["noout", "norebalance"]), isSet: random.chance(0.5) },
    memberEvent(random, map, id),
    memberEvent(random, map, id),
  ]);
}
function memberEvent(random: Prng, map: ClusterMap, member: number): CoordinatorEvent {
  const index = random.int(0, 63);
  const { interval, primary } = entries(map)[index]!;
  const requester = random.chance(0.9) ? primary : 3;
  const question = { pg: pgId(1, index), interval, requester, member };
  const incarnation = osdOf(map, member)?.incarnation ?? "first";
  return random.chance(0.5)
    ? { on: "removeMember", ...question }
    : { on: "addMember", ...question, incarnation };
}

function historyFault(before: ClusterMap, after: ClusterMap): string | undefined {
  if (after === before) return undefined;
  if (after.epoch !== before.epoch + 1) return `epoch ${before.epoch} -> ${after.epoch}`;
  const members = (map: ClusterMap, pg: PgEntry): string =>
    pg.inSync
      .map((id) => {
        const osd = osdOf(map, id)!;
        return `${id}/${osd.uuid}/${osd.incarnation}/${osd.up}/${osd.upFrom}`;
      })
      .join();
  for (let index = 0; index < entries(after).length; index++) {
    const old = entries(before)[index]!;
    const pg = entries(after)[index]!;
    const left = pg.inSync.filter((id) => old.inSync.includes(id));
    if (old.inSync.length > 0 && left.length === 0) return `PG ${index}: nobody is left`;
    // Of several events in one epoch an earlier one may have seen members that a later one lost.
    const wasUp = (id: number): boolean => osdOf(after, id)!.up || osdOf(before, id)?.up === true;
    const living = pg.inSync.filter(wasUp).length;
    if (pg.inSync.length < old.inSync.length && living < POOL.minimum) {
      return `PG ${index}: in-sync set ${old.inSync} -> ${pg.inSync}`;
    }
    if (pg.inSync.length === 0) continue;
    const isUp = pg.inSync.some((id) => osdOf(after, id)!.up);
    if (isUp !== (pg.primary !== -1)) return `PG ${index}: primary ${pg.primary}`;
    if (pg.primary !== -1 && !osdOf(after, pg.primary)!.up) return `PG ${index}: primary is down`;
    const isChanged = pg.primary !== old.primary || members(before, old) !== members(after, pg);
    const isNewInterval = pg.interval === Number(after.epoch);
    // A withdrawn addition is a new interval of the same set.
    if (isChanged && !isNewInterval) return `PG ${index}: interval ${pg.interval}`;
    if (!isNewInterval && pg.interval !== old.interval) return `PG ${index}: ${pg.interval}`;
  }
  return undefined;
}
