/**
 * The coordination layer over a real ZooKeeper: sessions, watches, election, registrations, client
 * ids and the map's store, with servers killed, stopped and started again.
 */
import t, { type Test } from "tap";
import type { DssError } from "../../cluster/base/errors.js";
import { isDssError, type ErrorCode } from "../../cluster/base/errors.js";
import { silentLogger } from "../../cluster/base/log.js";
import type { OsdInfo } from "../../cluster/map/daemon-info.js";
import { nodeClock } from "../../cluster/platform/node.js";
import { ClientIds } from "../../cluster/zk/client-ids.js";
import { ensureCluster, readCluster } from "../../cluster/zk/cluster-record.js";
import type { MultiError } from "../../cluster/zk/coordination.js";
import { type Coordination, type SessionEvent } from "../../cluster/zk/coordination.js";
import { Election, multiUnder, watchLeader, type Term } from "../../cluster/zk/election.js";
import { MapWatch } from "../../cluster/zk/map-watch.js";
import { registerOsd, watchLiveOsds } from "../../cluster/zk/registration.js";
import { LEADER_PATH, TERM_PATH } from "../../cluster/zk/schema.js";
import { connectZooKeeper } from "../../cluster/zk/session.js";
import { watchData } from "../../cluster/zk/watch.js";
import { initialMap } from "../../mds/core/coordinator.js";
import { NO_MAP, loadMap, saveMap } from "../../mds/store/map-store.js";
import {
  coordinationSuite,
  coordinationTrace,
  type CoordinationDriver,
} from "../support/coordination-suite.js";
import { ModelledZooKeeper } from "../sim/modelled-zookeeper.js";
import { freePort, waitFor } from "../support/temp.js";
import { startZooKeeper, type ZooKeeper } from "../support/zookeeper.js";

const log = silentLogger;
const text = (value: string): Buffer => Buffer.from(value);

async function join(t: Test, zk: ZooKeeper, sessionTimeoutMs = 6000): Promise<Coordination> {
  const session = await connectZooKeeper({
    servers: zk.address,
    clock: nodeClock,
    log,
    sessionTimeoutMs,
  });
  t.teardown(() => session.close());
  return session;
}
async function failsWith(t: Test, code: ErrorCode, promise: Promise<unknown>): Promise<DssError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  t.ok(isDssError(error, code), `fails with ${code}: ${String(error)}`);
  return error as DssError;
}
async function until(what: string, condition: () => boolean, withinMs = 10_000): Promise<number> {
  const start = performance.now();
  await waitFor(what, () => Promise.resolve(condition() ? true : undefined), {
    withinMs,
    everyMs: 5,
  });
  return performance.now() - start;
}
interface Inner {
  state: string;
  client: {
    connectionManager: { servers: { port: number }[]; socket: { destroy(): void } };
  };
  discard(client: unknown): void;
  watchdog: { cancel(): void };
}
function inner(session: Coordination): Inner {
  return session as unknown as Inner;
}
/** An abrupt end: no close of the session, as after `kill -9`. */
function vanish(session: Coordination): void {
  const parts = inner(session);
  parts.state = "closed";
  parts.watchdog.cancel();
  parts.discard(parts.client);
}

t.test("no ZooKeeper: a clear error, in time", async (t) => {
  const port = await freePort();
  const start = performance.now();
  const connecting = connectZooKeeper({
    servers: `127.0.0.1:${port}`,
    clock: nodeClock,
    log,
    connectDeadlineMs: 1000,
  });
  const error = await failsWith(t, "Unreachable", connecting);
  t.match(error.message, `no ZooKeeper answers at 127.0.0.1:${port}`);
  t.match(error.hint, "--zookeeper");
  t.match(String(error.cause), /ECONNREFUSED/);
  t.ok(performance.now() - start < 2000);
  await failsWith(
    t,
    "InvalidArgument",
    connectZooKeeper({ servers: "somewhere", clock: nodeClock, log }),
  );
});

t.test("one server", async (t) => {
  const zk = await startZooKeeper(t);

  const driver: CoordinationDriver = {
    join: (t, timeoutMs) => join(t, zk, timeoutMs),
    now: () => performance.now(),
    pause: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
    breakConnection: (session) => inner(session).client.connectionManager.socket.destroy(),
    expire,
    vanish,
  };
  t.test("the port's promises", async (t) => coordinationSuite(t, driver));

  t.test("the simulator's model answers as this server does", async (t) => {
    for (const seed of [1, 2]) {
      const real = [await join(t, zk), await join(t, zk)];
      const model = new ModelledZooKeeper(t, seed);
      const modelled = [await model.join(t), await model.join(t)];
      const options = { seed, steps: 60 };
      t.same(await coordinationTrace(real, options), await coordinationTrace(modelled, options));
    }
  });

  t.test("client ids are never given twice", async (t) => {
    await ensureCluster(await join(t, zk), { clusterId: "c-1", createdMs: 5 });
    const allocators = await Promise.all(
      [1, 2, 3].map(async () => new ClientIds(await join(t, zk))),
    );
    const ids = await Promise.all(
      allocators.flatMap((ids) => Array.from({ length: 200 }, () => ids.take())),
    );
    t.equal(new Set(ids).size, 600);
    t.ok(Math.min(...ids) >= 65_536);
  });

  t.test("the cluster's record is written once", async (t) => {
    const session = await join(t, zk);
    const record = await ensureCluster(session, { clusterId: "c-2", createdMs: 9 });
    t.same(record, { clusterId: "c-1", createdMs: 5, schema: 1 });
    t.same(await readCluster(session), record);
  });

  t.test("election: two candidates, a challenge, a fenced leader", async (t) => {
    const leaders: (number | undefined)[] = [];
    const observer = await join(t, zk);
    const watch = watchLeader(observer, log, (leader) => leaders.push(leader?.id));
    const a = await candidate(t, zk, 1);
    await until("mds.1 leads", () => a.term !== undefined);
    const b = await candidate(t, zk, 2);
    await until("mds.2 follows", () => b.following === 1);
    t.equal(leaders.at(-1), 1);
    const old = a.term!;
    await multiUnder(a.session, old, [{ op: "create", path: "/by-a", data: text("1") }]);
    const failed = await failsWith(
      t,
      "Exists",
      multiUnder(a.session, old, [{ op: "create", path: "/by-a", data: text("2") }]),
    );
    t.equal((failed as MultiError).index, 0, "the index does not count the check");

    await b.election.challenge({ id: 1, address: b.address, incarnation: a.incarnation });
    await until("mds.2 leads", () => b.term !== undefined);
    await until("mds.1 is deposed", () => a.deposed.length === 1);
    await until("mds.1 follows", () => a.following === 2);
    t.equal(b.term!.number, old.number + 1);
    await failsWith(
      t,
      "Fenced",
      multiUnder(a.session, old, [{ op: "set", path: "/by-a", data: text("late"), version: 0 }]),
    );
    t.equal((await observer.get("/by-a"))!.data.toString(), "1", "the late write had no effect");

    const start = performance.now();
    await b.election.close();
    await until("mds.1 leads again", () => a.term !== undefined);
    t.comment(`takeover after a resignation: ${Math.round(performance.now() - start)} ms`);
    t.equal(a.term!.number, old.number + 2);
    await until("the leader is known", () => leaders.at(-1) === 1);
    await a.election.close();
    t.equal(await observer.get(LEADER_PATH), undefined);
    watch.stop();
  });

  t.test("the first term is fenced too (version 0)", async (t) => {
    const session = await join(t, zk);
    const node = (await session.get(TERM_PATH))!;
    await session.remove(TERM_PATH, node.version);
    const a = await candidate(t, zk, 1);
    await until("mds.1 leads", () => a.term !== undefined);
    t.same(a.term, { number: 1, version: 0 });
    const b = await candidate(t, zk, 2);
    await until("mds.2 follows", () => b.following === 1);
    await b.election.challenge({ id: 1, address: b.address, incarnation: a.incarnation });
    await until("mds.2 leads", () => b.term !== undefined);
    await failsWith(
      t,
      "Fenced",
      multiUnder(a.session, { number: 1, version: 0 }, [
        { op: "create", path: "/late", data: text("") },
      ]),
    );
    await a.election.close();
    await b.election.close();
  });

  t.test("kill -9 and restart of a leader does not wait for its session", async (t) => {
    const a = await candidate(t, zk, 1);
    await until("mds.1 leads", () => a.term !== undefined);
    vanish(a.session);
    const start = performance.now();
    const again = await candidate(t, zk, 1);
    await until("its next start leads", () => again.term !== undefined, 3000);
    const ms = performance.now() - start;
    t.comment(`leading again after ${Math.round(ms)} ms`);
    t.ok(ms < 1500, "well before the session time-out of 6 s");
    const rival = await candidate(t, zk, 1);
    await until("an older start is told to end", () => again.replaced, 3000);
    await until("and the younger leads", () => rival.term !== undefined);
    t.equal(again.term, undefined, "the older no longer leads");
    await rival.election.close();
  });

  t.test("registration: predecessor, stranger, replaced", async (t) => {
    const observer = await join(t, zk);
    let live: string[] = [];
    const watch = watchLiveOsds(observer, log, (infos) => {
      live = infos.map((info) => `${info.id}:${info.incarnation}`);
    });
    const first = await join(t, zk);
    let replaced = 0;
    const events = { onReplaced: () => void replaced++ };
    await registerOsd(first, osd(4, "store", "i1"), events, log);
    await until("it is alive", () => live.join() === "4:i1");
    const second = await join(t, zk);
    const stranger = await failsWith(
      t,
      "Conflict",
      registerOsd(second, osd(4, "other", "i2"), events, log),
    );
    t.match(stranger.message, "osd.4 is running with another store at 127.0.0.1:9104");
    const start = performance.now();
    const registration = await registerOsd(second, osd(4, "store", "i3"), events, log);
    await until("the next start is alive", () => live.join() === "4:i3");
    t.ok(performance.now() - start < 1500, "at once");
    await until("the earlier one is told", () => replaced === 1);
    await observer.remove("/dss/live/osd/4", -1);
    await until("it registers again after a removal", () => live.join() === "4:i3");
    await registration.close();
    await until("it leaves", () => live.length === 0);
    watch.stop();
  });

  t.test("the map: compare-and-set under the term, and its watch", async (t) => {
    const a = await candidate(t, zk, 1);
    await until("mds.1 leads", () => a.term !== undefined);
    const reader = await join(t, zk);
    const source = new MapWatch(reader, nodeClock, log);
    const early = await failsWith(t, "TimedOut", source.atLeast(1, 100));
    t.match(early.message, "holds no cluster yet");
    const map = initialMap({ clusterId: "c-1", pool: pool() });
    t.equal(await loadMap(a.session), undefined);
    let version = await saveMap(a.session, a.term!, { map, version: NO_MAP });
    t.equal(version, 0);
    await failsWith(t, "Conflict", saveMap(a.session, a.term!, { map, version: NO_MAP }));
    t.same(await source.atLeast(1, 5000), map);
    const epochs: number[] = [];
    source.onChange((m) => epochs.push(m.epoch));
    for (let epoch = 2; epoch <= 5; epoch++) {
      version = await saveMap(a.session, a.term!, { map: { ...map, epoch }, version });
    }
    t.equal((await source.atLeast(5, 5000)).epoch, 5);
    t.same(
      epochs,
      [...epochs].sort((x, y) => x - y),
      "epochs rise",
    );
    await failsWith(t, "Conflict", saveMap(a.session, a.term!, { map, version: 1 }));
    await failsWith(t, "TimedOut", source.atLeast(6, 100));
    const stale: Term = { number: a.term!.number - 1, version: a.term!.version - 1 };
    await failsWith(t, "Fenced", saveMap(a.session, stale, { map: { ...map, epoch: 6 }, version }));
    t.same(await loadMap(reader), { map: { ...map, epoch: 5 }, version });
    source.close();
    await a.election.close();
  });
});

t.test("a server that dies, freezes and forgets", async (t) => {
  const zk = await startZooKeeper(t);

  t.test("killed and started again: the session and its nodes survive", async (t) => {
    const session = await join(t, zk);
    const events: SessionEvent[] = [];
    session.onEvent((event) => events.push(event));
    await ensureCluster(session, { clusterId: "c", createdMs: 1 });
    await session.create("/mine", text("e"), { ephemeral: true });
    await session.create("/seen", text("0"));
    const values: string[] = [];
    const watch = watchData(session, "/seen", log, (n) => values.push(String(n?.data)));
    await watch.ready;
    const id = session.sessionId;
    const inFlight = session.set("/seen", text("1"), 0).catch((error: unknown) => {
      t.ok(isDssError(error, "ConnectionLost"), "an unknown outcome is said to be one");
    });
    await zk.kill();
    await inFlight;
    await until("suspended", () => session.state === "suspended");
    const parked = session.get("/mine");
    await zk.restart();
    t.equal((await parked)!.ephemeralOwner, id, "a request made meanwhile is answered");
    t.equal(session.sessionId, id);
    const node = (await session.get("/seen"))!;
    await session.set("/seen", text("after"), node.version);
    await until("the watch still works", () => values.at(-1) === "after");
    t.same(
      events.filter((e) => e === "expired"),
      [],
    );
    watch.stop();
  });

  t.test("frozen: noticed in two thirds of the time-out, gone on after", async (t) => {
    const session = await join(t, zk, 3000);
    const pid = zk.process.pid;
    process.kill(pid, "SIGSTOP");
    const start = performance.now();
    try {
      await failsWith(t, "ConnectionLost", session.sync());
      const ms = performance.now() - start;
      t.ok(ms < 3500, `noticed after ${Math.round(ms)} ms`);
    } finally {
      process.kill(pid, "SIGCONT");
    }
    await session.sync();
    t.equal(session.state, "connected");
  });

  t.test("expired: told, a new session, everything registered again", async (t) => {
    const session = await join(t, zk, 1500);
    const leader = await candidate(t, zk, 7, session);
    await until("mds.7 leads", () => leader.term !== undefined);
    const term = leader.term!;
    const registration = await registerOsd(
      session,
      osd(1, "s", "i"),
      { onReplaced: () => t.fail("not replaced") },
      log,
    );
    const events: SessionEvent[] = [];
    session.onEvent((event) => events.push(event));
    const old = session.sessionId;
    const observer = await join(t, zk);
    await expire(session);
    await until("a new session", () => session.state === "connected" && session.sessionId !== old);
    t.same(events.slice(-3), ["suspended", "expired", "connected"]);
    t.equal(leader.deposed.length, 1, "the leader stopped");
    await until("it leads under a new term", () => leader.term !== undefined);
    t.equal(leader.term!.number, term.number + 1);
    const registered = async (): Promise<true | undefined> => {
      const node = await observer.get("/dss/live/osd/1");
      return node?.ephemeralOwner === session.sessionId ? true : undefined;
    };
    await waitFor("registered in the new session", registered, { withinMs: 5000, everyMs: 20 });
    await registration.close();
    await leader.election.close();
  });
});

/** Cuts the client off and keeps it from reconnecting until the server has expired its session. */
async function expire(session: Coordination): Promise<void> {
  const manager = inner(session).client.connectionManager;
  const server = manager.servers[0]!;
  const port = server.port;
  server.port = await freePort();
  manager.socket.destroy();
  await new Promise((resolve) => setTimeout(resolve, 3500));
  server.port = port;
}

interface Watched {
  session: Coordination;
  election: Election;
  address: { host: string; port: number };
  incarnation: string;
  term: Term | undefined;
  following: number | undefined;
  deposed: string[];
  replaced: boolean;
}

let starts = 0;
async function candidate(
  t: Test,
  zk: ZooKeeper,
  id: number,
  given?: Coordination,
): Promise<Watched> {
  const session = given ?? (await join(t, zk));
  await ensureCluster(session, { clusterId: "c-1", createdMs: 5 });
  const address = { host: "127.0.0.1", port: 9110 + id };
  const incarnation = `start-${++starts}`;
  const watched: Watched = {
    session,
    address,
    incarnation,
    term: undefined,
    following: undefined,
    deposed: [],
    replaced: false,
    election: new Election(
      session,
      { id, address, incarnation },
      {
        onLeading: (term) => (watched.term = term),
        onFollowing: (leader) => (watched.following = leader?.id),
        onDeposed: (reason) => {
          watched.term = undefined;
          watched.deposed.push(reason);
        },
        onReplaced: () => (watched.replaced = true),
      },
      log,
    ),
  };
  watched.election.start();
  return watched;
}

function osd(id: number, uuid: string, incarnation: string): OsdInfo {
  return {
    id,
    uuid,
    incarnation,
    address: { host: "127.0.0.1", port: 9100 + id },
    host: "h",
    weight: 1,
    capacity: 2 ** 40,
    pid: 1,
  };
}

function pool() {
  return {
    name: "data",
    replicas: 3,
    minimum: 2,
    pgCount: 128,
    objectSize: 4 << 20,
    stripeUnit: 4 << 20,
    stripeCount: 1,
  };
}
