/**
 * The session with the MDS leader: order, replay, safety, eviction, deadlines. Over a real leader
 * on simulated time.
 */
import t from "tap";
import { NO_CACHE } from "../../../mds/client/session-cache.js";
import { DssError } from "../../../cluster/base/errors.js";
import { MDS_ENTITY_BASE } from "../../../cluster/base/ids.js";
import { silentLogger } from "../../../cluster/base/log.js";
import { Prng } from "../../../cluster/base/prng.js";
import { RpcMessenger } from "../../../cluster/messenger/rpc.js";
import type { Address } from "../../../cluster/platform/ports.js";
import { MdsClient, type LeaderSource } from "../../../mds/client/mds-client.js";
import {
  MdsAdmin,
  MdsKeepAlive,
  MdsOperation,
  MdsSafe,
  MdsClaim,
  OpenMdsSession,
  type MdsCall,
  type MdsReply,
  type Held,
  type SessionOpen,
} from "../../../mds/proto.js";
import type { Incoming, Link } from "../../../cluster/messenger/messenger.js";
import { SimClock } from "../../sim/sim-clock.js";
import { SimHost, SimNetwork } from "../../sim/sim-network.js";
import { newWorld } from "../client-fs/vfs/world.js";

/** A leader that says exactly what the test wants. */
class Scripted {
  readonly opens: SessionOpen[] = [];
  readonly claims: Held[] = [];
  readonly calls: MdsCall[] = [];
  link: Link | undefined;
  confirmed = true;
  keepAlives = 0;
  completed: number[] = [];
  safe = 0;
  answer: (incoming: Incoming<MdsCall, MdsReply>) => void = (incoming) => this.reply(incoming, 0);
  opening: (open: SessionOpen) => { term?: number; client?: number } = () => ({});

  constructor(
    readonly host: SimHost,
    messenger: RpcMessenger,
    readonly term: number,
  ) {
    messenger.handle(OpenMdsSession, (incoming) => {
      this.opens.push(incoming.message);
      this.link = incoming.link;
      const { term: given = term, client = incoming.message.client || 65_536 } = this.opening(
        incoming.message,
      );
      incoming.reply({
        client,
        worker: client,
        floor: 1,
        term: given,
        leaseMs: 9_000,
        safe: this.safe,
        completed: this.completed,
        clusterId: "test",
        epoch: 1,
      });
    });
    messenger.handle(MdsClaim, (incoming) => {
      this.claims.push(...incoming.message.held);
      incoming.reply({});
    });
    messenger.handle(MdsOperation, (incoming) => {
      this.calls.push(incoming.message);
      this.answer(incoming);
    });
    messenger.handle(MdsKeepAlive, (incoming) => {
      this.keepAlives++;
      incoming.reply({ term, safe: this.safe, leaseMs: 9_000, confirmed: this.confirmed });
    });
    messenger.handle(MdsAdmin, (incoming) => incoming.reply({ epoch: 7 }));
  }
  reply(incoming: Incoming<MdsCall, MdsReply>, journal: number): void {
    const { id } = incoming.message;
    incoming.reply({ id, journal, notFound: false, answer: {}, grants: [] });
  }
}

class Stage {
  readonly clock = new SimClock();
  readonly network = new SimNetwork(this.clock, new Prng(1));
  private now: { address: Address; term: number } | undefined;
  private readonly listeners = new Set<() => void>();
  readonly source: LeaderSource = {
    current: () => this.now,
    onChange: (listener) => {
      this.listeners.add(listener);
      return () => void this.listeners.delete(listener);
    },
  };
  readonly client: MdsClient;
  readonly sessions: number[] = [];

  constructor(deadlineMs = 60_000) {
    const host = new SimHost("client", this.network);
    this.client = new MdsClient({
      messenger: this.messenger(host, 65_535),
      clock: this.clock.forNode(() => true),
      random: this.random,
      leader: this.source,
      logger: silentLogger,
      type: "cli",
      instance: "",
      host: "h",
      pid: 1,
      detail: "",
      operationDeadlineMs: deadlineMs,
    });
    this.client.onSession((id) => this.sessions.push(id));
  }
  private get random() {
    const prng = new Prng(2);
    return { u32: () => prng.u32(), bytes: (n: number) => prng.bytes(n) };
  }
  private messenger(host: SimHost, entity: number): RpcMessenger {
    return new RpcMessenger({
      clock: this.clock.forNode(() => host.alive),
      network: host,
      random: this.random,
      logger: silentLogger,
      entity,
      role: "test",
      clusterId: () => "test",
    });
  }
  async lead(term: number): Promise<Scripted> {
    const host = new SimHost(`mds${term}`, this.network);
    const messenger = this.messenger(host, MDS_ENTITY_BASE);
    const scripted = new Scripted(host, messenger, term);
    const address = await messenger.listen({ host: `mds${term}`, port: 0 });
    this.now = { address, term };
    for (const listener of this.listeners) listener();
    return scripted;
  }
  async run<T>(promise: Promise<T>, withinMs = 200_000): Promise<T> {
    let settled = false;
    const outcome = promise.finally(() => (settled = true));
    outcome.catch(() => undefined);
    const done = await this.clock.runUntil(() => settled, withinMs);
    if (!done) throw new Error(`not settled within ${withinMs} ms`);
    return outcome;
  }
}
const touch = (name: string) =>
  ({
    op: "unlink",
    parent: 1,
    name: Buffer.from(name),
    stillOpen: false,
    actor: { uid: 0, gid: 0, timeNs: 0n },
  }) as const;

t.test("unsafe and unanswered requests go to the next leader, in order", async (t) => {
  const stage = new Stage();
  const first = await stage.lead(1);
  let journal = 0;
  first.answer = (incoming) => {
    if (incoming.message.id <= 3) first.reply(incoming, ++journal);
  };
  await stage.run(stage.client.open(5_000));
  for (const name of ["a", "b", "c"]) await stage.run(stage.client.call(touch(name)));
  const unanswered = stage.client.call(touch("d"));
  const reading = stage.client.call({ op: "getattr", ino: 1 });
  await stage.clock.advance(100);
  first.link!.post(MdsSafe, { journal: 1 });
  await stage.clock.advance(100);
  first.host.crash();
  await stage.clock.advance(100); // It takes a moment to be noticed.
  const waiting = stage.client.call(touch("e"));
  const second = await stage.lead(2);
  second.completed = [2];
  second.safe = 2;
  let replayed = 10;
  second.answer = (incoming) => second.reply(incoming, ++replayed);
  await stage.run(Promise.all([unanswered, reading, waiting]));
  t.same(second.opens[0]!.client, 65_536);
  t.same(second.opens[0]!.floor, 2, "the first is safe, the second is not");
  t.same(
    second.calls.map(({ id, replay }) => [id, replay]),
    [
      [3, true],
      [4, false],
      [5, false],
      [6, false],
    ],
    "the second was known to the new leader; only what was answered is a replay",
  );
  let isSafe = false;
  const safe = stage.client.waitSafe().then(() => (isSafe = true));
  await stage.clock.advance(100);
  t.notOk(isSafe);
  second.link!.post(MdsSafe, { journal: 14 });
  await stage.run(safe);
});

t.test("a session goes on with more capabilities than one message holds", async (t) => {
  const stage = new Stage();
  const first = await stage.lead(1);
  await stage.run(stage.client.open(5_000));
  const held = Array.from({ length: 262_144 }, (_, i) => ({
    ...{ ino: 2 ** 40 + i, mode: "exclusive" as const, seq: 2 ** 50 + i },
  }));
  stage.client.setCache({ ...NO_CACHE, held: () => held });
  first.host.crash();
  await stage.clock.advance(100);
  const second = await stage.lead(2);
  await stage.clock.advance(3_000);
  t.ok(stage.client.active);
  t.equal(second.opens.length, 1);
  const { claimed, held: last } = second.opens[0]!;
  t.equal(second.claims.length, claimed);
  t.strictSame([...second.claims, ...last], held);
});

t.test("a lower term is refused; keep-alives go out every third of the lease", async (t) => {
  const stage = new Stage();
  const leader = await stage.lead(5);
  await stage.run(stage.client.open(5_000));
  await stage.clock.advance(9_500);
  t.equal(leader.keepAlives, 3);
  leader.host.crash();
  const old = await stage.lead(4);
  await stage.clock.advance(5_000);
  t.equal(old.opens.length, 0);
  const liar = await stage.lead(6);
  liar.opening = () => ({ term: 3 });
  await stage.clock.advance(5_000);
  t.notOk(stage.client.active);
  liar.opening = () => ({});
  await stage.clock.advance(5_000);
  t.ok(stage.client.active);
});

t.test("an ended session: changes in flight fail, readers go on in a new session", async (t) => {
  const stage = new Stage();
  const leader = await stage.lead(1);
  leader.answer = () => undefined;
  await stage.run(stage.client.open(5_000));
  const change = stage.client.call(touch("a"));
  const read = stage.client.call({ op: "getattr", ino: 1 });
  change.catch(() => undefined);
  await stage.clock.advance(50);
  leader.opening = (open) => {
    if (open.client !== 0) throw new DssError("NoSession", "evicted");
    return { client: 65_540 };
  };
  leader.answer = (incoming) => leader.reply(incoming, 0);
  leader.link!.destroy();
  await t.rejects(stage.run(change), { code: "NoSession" });
  await stage.run(read);
  t.same(stage.sessions, [65_536, 65_540]);
  t.equal(stage.client.client, 65_540);
});

t.test("an inode number of an ended session is of no use in the next one", async (t) => {
  const stage = new Stage();
  const leader = await stage.lead(1);
  let first = 0;
  leader.answer = (incoming) => {
    const { id, request } = incoming.message;
    const answer = request.op === "inoRange" ? { inoRange: { first: ++first, count: 1 } } : {};
    incoming.reply({ id, journal: 0, notFound: false, answer, grants: [] });
  };
  await stage.run(stage.client.open(5_000));
  const make = (ino: number): Promise<MdsReply> => {
    const [name, actor] = [Buffer.from("a"), { uid: 0, gid: 0, timeNs: 0n }];
    const what = { parent: 1, name, ino, mode: 0o100644, rdev: 0, exclusive: true, actor };
    return stage.client.call({ op: "create", ...what });
  };
  const old = await stage.run(stage.client.inos.next());
  leader.opening = (open) => {
    if (open.client !== 0) throw new DssError("NoSession", "evicted");
    return { client: 65_540 };
  };
  leader.link!.destroy();
  await stage.clock.advance(20);
  const waiting = make(old);
  await t.rejects(stage.run(waiting), { code: "NoSession" });
  await stage.run(make(await stage.run(stage.client.inos.next())));
  await t.rejects(stage.run(make(old)), { code: "NoSession" });
  t.equal(leader.calls.filter(({ request }) => request.op === "create").length, 1);
});

t.test("a leader that its store does not confirm keeps the session, not the lease", async (t) => {
  const stage = new Stage();
  const leader = await stage.lead(1);
  await stage.run(stage.client.open(5_000));
  await stage.clock.advance(30_000);
  t.ok(stage.client.trusted);
  leader.confirmed = false;
  await stage.clock.advance(9_500);
  t.notOk(stage.client.trusted, "a successor may have given away what is cached here");
  t.ok(stage.client.active, "and yet nothing is torn down");
  leader.confirmed = true;
  await stage.clock.advance(3_500);
  t.ok(stage.client.trusted);
  t.equal(leader.opens.length, 1);
});

t.test("a lost answered change is reported by the next waitSafe, once", async (t) => {
  const stage = new Stage();
  const leader = await stage.lead(1);
  leader.answer = (incoming) => leader.reply(incoming, 1);
  await stage.run(stage.client.open(5_000));
  await stage.run(stage.client.call(touch("a")));
  leader.opening = (open) => {
    if (open.client !== 0) throw new DssError("NoSession", "evicted");
    return { client: 65_541 };
  };
  leader.link!.destroy();
  await stage.clock.advance(5_000);
  await t.rejects(stage.client.waitSafe(), { code: "NoSession" });
  await stage.client.waitSafe();
});

t.test("without a leader a request waits, and fails at its deadline", async (t) => {
  const stage = new Stage(10_000);
  const call = stage.client.call({ op: "getattr", ino: 1 });
  await t.rejects(stage.run(call), { code: "TimedOut" });
  t.ok(stage.clock.now >= 10_000);
  await t.rejects(stage.run(stage.client.open(1_000)), { code: "TimedOut" });
  const later = stage.client.call({ op: "getattr", ino: 1 });
  await stage.clock.advance(5_000);
  await stage.lead(1);
  await stage.run(later);
});

t.test("administration needs no session and finds the leader when there is one", async (t) => {
  const stage = new Stage();
  const asking = stage.client.admin({ op: "status" }, 20_000);
  await stage.clock.advance(3_000);
  const leader = await stage.lead(1);
  t.equal((await stage.run(asking)).epoch, 7);
  t.equal(leader.opens.length, 0);
});

t.test("closing fails what waits and is quick", async (t) => {
  const stage = new Stage();
  const leader = await stage.lead(1);
  leader.answer = () => undefined;
  await stage.run(stage.client.open(5_000));
  const call = stage.client.call({ op: "getattr", ino: 1 });
  call.catch(() => undefined);
  await stage.run(stage.client.close({ force: true }));
  await t.rejects(call, { code: "ShuttingDown" });
  await t.rejects(stage.client.call({ op: "getattr", ino: 1 }), { code: "ShuttingDown" });
});

t.test("a hundred creations survive leaders that die one after the other", async (t) => {
  const world = await newWorld(3);
  const host = new SimHost("c", world.network);
  const client = world.mdsClient(host, "");
  await world.run(client.open(10_000));
  const made: Promise<MdsReply>[] = [];
  const inos = new Set<number>();
  for (let i = 0; i < 100; i++) {
    const ino = await world.run(client.inos.next());
    inos.add(ino);
    made.push(
      client.call({
        op: "create",
        parent: 1,
        name: Buffer.from(`f${i}`),
        ino,
        mode: 0o100644,
        rdev: 0,
        exclusive: true,
        actor: { uid: 0, gid: 0, timeNs: 1n },
      }),
    );
    if (i % 20 === 19) await world.lead();
  }
  await world.run(Promise.all(made));
  await world.run(client.waitSafe());
  t.equal(inos.size, 100, "no number twice");
  const { answer } = await world.run(
    client.call({ op: "readdir", ino: 1, cookie: 0, limit: 1_000, plus: false }),
  );
  t.equal(answer.entries!.length, 100);
  await world.run(client.close());
});
