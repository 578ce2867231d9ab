/**
 * What every implementation of the coordination port must do: one suite for the real ZooKeeper
 * (test/integration/zk.test.ts) and for the modelled one (test/sim/zookeeper.test.ts), so that what
 * the simulator proves over the model holds over the real one.
 */
import type { Test } from "tap";
import { isDssError, type DssError, type ErrorCode } from "../../cluster/base/errors.js";
import { silentLogger } from "../../cluster/base/log.js";
import { Prng } from "../../cluster/base/prng.js";
import type {
  Coordination,
  CoordinationOp,
  MultiError,
  SessionEvent,
} from "../../cluster/zk/coordination.js";
import { watchData, watchDirectory } from "../../cluster/zk/watch.js";

export interface CoordinationDriver {
  join(t: Test, sessionTimeoutMs?: number): Promise<Coordination>;
  /** Milliseconds of the implementation's own clock. */
  now(): number;
  pause(ms: number): Promise<void>;
  /** Resets the session's connection; it comes back by itself. */
  breakConnection(session: Coordination): void;
  /** Keeps the session from its server until it has expired. */
  expire(session: Coordination): Promise<void>;
  /** Ends the session's process: nobody closes anything. */
  vanish(session: Coordination): void;
}

const text = (value: string): Buffer => Buffer.from(value);
const empty = Buffer.alloc(0);

async function failsWith(t: Test, code: ErrorCode, promise: Promise<unknown>): Promise<DssError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  t.ok(isDssError(error, code), `fails with ${code}: ${String(error)}`);
  return error as DssError;
}

export function coordinationSuite(t: Test, driver: CoordinationDriver): void {
  const until = async (what: string, condition: () => boolean): Promise<void> => {
    const limit = driver.now() + 15_000;
    while (!condition()) {
      if (driver.now() > limit) throw new Error(`not within 15 s: ${what}`);
      await driver.pause(5);
    }
  };

  t.test("nodes, versions and transactions", async (t) => {
    const session = await driver.join(t);
    await session.ensurePath("/a/b");
    await session.ensurePath("/a/b");
    t.equal(await session.get("/a/x"), undefined);
    t.equal(await session.create("/a/x", text("one")), "/a/x");
    await failsWith(t, "Exists", session.create("/a/x", text("again")));
    await failsWith(t, "NotFound", session.create("/no/parent", text("")));
    await failsWith(t, "NotFound", session.set("/a/none", text(""), -1));
    await failsWith(t, "NotFound", session.remove("/a/none", -1));
    const node = (await session.get("/a/x"))!;
    t.same([node.data.toString(), node.version, node.ephemeralOwner], ["one", 0, 0n]);
    t.equal(node.created, node.modified);
    t.equal(await session.set("/a/x", text("two"), 0), 1);
    t.ok((await session.get("/a/x"))!.modified > node.modified, "transactions are numbered");
    await failsWith(t, "Conflict", session.set("/a/x", text("three"), 0));
    await failsWith(t, "Conflict", session.remove("/a/x", 0));
    await failsWith(t, "NotEmpty", session.remove("/a", -1));
    t.same((await session.children("/a"))!.names.sort(), ["b", "x"]);
    t.equal(await session.children("/nowhere"), undefined);

    const failed = await failsWith(
      t,
      "Conflict",
      session.multi([
        { op: "create", path: "/a/y", data: text("") },
        { op: "check", path: "/a/x", version: 0 },
        { op: "remove", path: "/a/x", version: 1 },
      ]),
    );
    t.equal((failed as MultiError).index, 1, "version 0 is compared, not taken for any");
    t.equal(await session.get("/a/y"), undefined, "all or nothing");
    const results = await session.multi([
      { op: "check", path: "/a/x", version: 1 },
      { op: "set", path: "/a/x", data: text("three"), version: 1 },
      { op: "set", path: "/a/x", data: text("four"), version: 2 },
      { op: "create", path: "/a/z-", data: text("z"), sequential: true },
      { op: "remove", path: "/a/b", version: 0 },
      { op: "create", path: "/a/b", data: text("again") },
      { op: "create", path: "/a/b/c", data: text("below") },
    ]);
    t.equal(results[2]!.version, 3, "an operation sees those before it");
    t.match(results[3]!.path, /^\/a\/z-\d{10}$/);
    t.ok((await session.get("/a/b"))!.created > node.created, "a replaced node is another");
    await session.sync();

    const large = Buffer.alloc(900_000, 7);
    await session.create("/a/large", large);
    t.ok((await session.get("/a/large"))!.data.equals(large), "a packet of many segments");
    await failsWith(t, "TooLarge", session.create("/a/huge", Buffer.alloc(1_000_001)));
    t.ok(driver.now() - session.contactMs < 5000, "contact is recent");
    await session.close();
    t.equal(session.state, "closed");
    await failsWith(t, "ShuttingDown", session.get("/a"));
  });

  t.test("sequential nodes count the creations", async (t) => {
    const session = await driver.join(t);
    await session.create("/seq", empty);
    const make = (): Promise<string> => session.create("/seq/n-", empty, { sequential: true });
    t.equal(await make(), "/seq/n-0000000000");
    t.equal(await make(), "/seq/n-0000000001");
    await session.remove("/seq/n-0000000001", -1);
    t.equal(await make(), "/seq/n-0000000002", "a number is not given twice");
    await session.create("/seq/plain", empty);
    t.equal(await make(), "/seq/n-0000000004");
    t.equal((await session.children("/seq"))!.version, 6, "creations and removals");
  });

  t.test("requests keep their order, and many are in flight", async (t) => {
    const session = await driver.join(t);
    await session.create("/order", text("0"));
    const order: string[] = [];
    const requests = Array.from({ length: 300 }, (_, i) => [
      session.set("/order", text(String(i)), i).then((version) => order.push(`w${version}`)),
      session.get("/order").then((node) => order.push(`r${node!.data.toString()}`)),
    ]);
    await Promise.all(requests.flat());
    t.same(order, Array.from({ length: 300 }, (_, i) => [`w${i + 1}`, `r${i}`]).flat());
  });

  t.test("watches fire once, before anything newer is read", async (t) => {
    const session = await driver.join(t);
    const other = await driver.join(t);
    const seen: string[] = [];
    const note = (what: string) => () => void seen.push(what);
    await session.get("/w", note("created"));
    await other.create("/w", text("0"));
    await until("the creation", () => seen.length === 1);
    await session.get("/w", note("changed"));
    await session.children("/w", note("children"));
    await other.create("/w/child", empty);
    await until("the child", () => seen.length === 2);
    await other.set("/w/child", text("1"), -1);
    await other.set("/w", text("1"), 0);
    await until("the change", () => seen.length === 3);
    await other.set("/w", text("2"), 1);
    t.equal(await session.children("/none", note("never")), undefined);
    await other.create("/none", empty);
    await session.get("/w", note("removed"));
    await session.children("/w", note("gone"));
    await other.multi([
      { op: "remove", path: "/w/child", version: -1 },
      { op: "remove", path: "/w", version: -1 },
    ]);
    await until("the removal", () => seen.length === 5);
    t.same(seen.slice(0, 3), ["created", "children", "changed"]);
    t.same(seen.slice(3).sort(), ["gone", "removed"]);

    await session.create("/mine", text("0"));
    const order: string[] = [];
    await session.get("/mine", () => void order.push("watch"));
    await session.set("/mine", text("1"), 0).then(() => order.push("answer"));
    t.same(order, ["watch", "answer"], "one's own change too");
    const reads: string[] = [];
    await session.get("/mine", () => void reads.push("watch"));
    const change = other.set("/mine", text("2"), 1);
    for (;;) {
      const node = (await session.get("/mine"))!;
      reads.push(node.data.toString());
      if (node.version === 2) break;
      await driver.pause(1);
    }
    await change;
    // An answer from before the change may have come in one piece with the watch.
    const news = reads.filter((each) => each !== "1");
    t.same(news, ["watch", "2"], "the watch comes before the new value");
    await driver.pause(100);
    t.equal(seen.length, 5, "nothing else fires");
  });

  t.test("persistent watches deliver the last state", async (t) => {
    const session = await driver.join(t);
    const other = await driver.join(t);
    const values: (string | undefined)[] = [];
    const watch = watchData(session, "/watched", silentLogger, (node) => {
      values.push(node?.data.toString());
    });
    await watch.ready;
    t.same(values, [undefined]);
    await other.create("/watched", text("a"));
    await until("the creation", () => values.at(-1) === "a");
    for (let i = 0; i < 50; i++) await other.set("/watched", text(String(i)), i);
    await until("the last value", () => values.at(-1) === "49");
    await other.remove("/watched", -1);
    await until("the removal", () => values.at(-1) === undefined);
    watch.stop();

    const listings: string[] = [];
    const directory = watchDirectory(session, "/folder", silentLogger, (children) => {
      const lines = [...children].map(([name, node]) => `${name}=${node.data.toString()}`);
      listings.push(lines.sort().join());
    });
    await directory.ready;
    await other.ensurePath("/folder");
    await other.create("/folder/1", text("x"));
    await until("a child", () => listings.at(-1) === "1=x");
    await other.multi([
      { op: "remove", path: "/folder/1", version: -1 },
      { op: "create", path: "/folder/1", data: text("y") },
    ]);
    await until("a child replaced under its name", () => listings.at(-1) === "1=y");
    directory.stop();
  });

  t.test("ephemeral nodes live as long as their session", async (t) => {
    const session = await driver.join(t, 2000);
    const observer = await driver.join(t);
    await session.create("/live", text(""), { ephemeral: true });
    await observer.sync();
    t.equal((await observer.get("/live"))?.ephemeralOwner, session.sessionId);
    const path = await session.create("/live-", empty, { ephemeral: true, sequential: true });
    t.match(path, /^\/live-\d{10}$/);
    await failsWith(t, "InvalidArgument", session.create("/live/below", empty));
    let isGone = false;
    await observer.sync();
    await observer.get("/live", () => (isGone = true));
    await session.close();
    await until("they are gone with the session", () => isGone);
    await observer.sync();
    t.equal(await observer.get(path), undefined);

    const dying = await driver.join(t, 2000);
    await dying.create("/dying", empty, { ephemeral: true });
    await observer.sync();
    isGone = false;
    const node = await observer.get("/dying", () => (isGone = true));
    t.ok(node !== undefined);
    const start = driver.now();
    driver.vanish(dying);
    await until("it is gone when the session has expired", () => isGone);
    const ms = driver.now() - start;
    t.ok(ms > 1300 && ms < 6000, `after ${Math.round(ms)} ms`);
  });

  t.test("a lost connection: unknown outcomes, same session, nothing missed", async (t) => {
    const session = await driver.join(t);
    const other = await driver.join(t);
    const events: SessionEvent[] = [];
    session.onEvent((event) => events.push(event));
    const id = session.sessionId;
    await session.create("/kept", empty, { ephemeral: true });
    await session.create("/counted", text("0"));
    await session.create("/list", empty);
    const fired: string[] = [];
    await session.get("/counted", () => void fired.push("data"));
    await session.children("/list", () => void fired.push("children"));
    await session.get("/absent", () => void fired.push("exists"));
    await session.get("/kept", () => void fired.push("never"));
    const inFlight = session.set("/counted", text("1"), 0).then(
      () => "done",
      (error: unknown) => (isDssError(error, "ConnectionLost") ? "unknown" : String(error)),
    );
    driver.breakConnection(session);
    const outcome = await inFlight;
    t.ok(outcome === "done" || outcome === "unknown", outcome);
    await other.multi([
      { op: "set", path: "/counted", data: text("2"), version: -1 },
      { op: "create", path: "/list/1", data: empty },
      { op: "create", path: "/absent", data: empty },
    ]);
    await until("connected again", () => session.state === "connected");
    t.equal(session.sessionId, id);
    await session.sync();
    t.equal((await session.get("/kept"))?.ephemeralOwner, id);
    await until("what changed meanwhile was told", () => fired.length === 3);
    t.same(fired.sort(), ["children", "data", "exists"]);
    t.same(events, ["suspended", "connected"]);
  });

  t.test("an expired session: told, and replaced", async (t) => {
    const session = await driver.join(t, 1500);
    const observer = await driver.join(t);
    const events: SessionEvent[] = [];
    session.onEvent((event) => events.push(event));
    const old = session.sessionId;
    await session.create("/expiring", empty, { ephemeral: true });
    await session.create("/stays", text("0"));
    let fired = 0;
    await session.get("/stays", () => void fired++);
    await driver.expire(session);
    await until("a new session", () => session.state === "connected" && session.sessionId !== old);
    t.same(events.slice(-3), ["suspended", "expired", "connected"]);
    await observer.sync();
    t.equal(await observer.get("/expiring"), undefined);
    await observer.set("/stays", text("1"), -1);
    await session.sync();
    await driver.pause(50);
    t.equal(fired, 0, "watches end with their session");
  });
}

/**
 * What a seeded sequence of requests by two sessions comes to, as text: the same on every
 * implementation.
 */
export async function coordinationTrace(
  sessions: readonly Coordination[],
  { seed, steps }: { seed: number; steps: number },
): Promise<string[]> {
  const random = new Prng(seed);
  const trace: string[] = [];
  const root = `/trace-${seed}`;
  await sessions[0]!.create(root, empty);
  const sequences: string[] = [];
  const paths = ["/a", "/b", "/a/c", "/a/d", "/b/e", "/a/c/f"].map((path) => root + path);
  const pick = (): string =>
    sequences.length > 0 && random.chance(0.2) ? random.pick(sequences) : random.pick(paths);
  const version = (): number => random.pick([-1, -1, 0, 1, 2]);
  const operation = (): CoordinationOp => {
    const path = pick();
    const data = random.bytes(random.int(0, 5));
    const roll = random.int(0, 9);
    if (roll < 4) {
      const sequential = random.chance(0.15);
      return { op: "create", path, data, sequential, ephemeral: random.chance(0.15) };
    }
    if (roll < 6) return { op: "set", path, data, version: version() };
    if (roll < 8) return { op: "remove", path, version: version() };
    return { op: "check", path, version: version() };
  };
  for (let step = 0; step < steps; step++) {
    const session = random.pick(sessions);
    const ops = Array.from({ length: random.pick([1, 1, 2, 4]) }, operation);
    const line = await session.multi(ops).then(
      (results) => {
        for (const { path } of results) if (/\d{10}$/.test(path ?? "")) sequences.push(path!);
        return results.map(({ path, version }) => `${path ?? ""}@${version ?? ""}`).join(" ");
      },
      (error: unknown) => `${(error as DssError).code} ${(error as MultiError).index}`,
    );
    trace.push(`${step} ${ops.map(({ op }) => op).join("+")}: ${line}`);
    const reader = random.pick(sessions);
    await reader.sync();
    const path = pick();
    const node = await reader.get(path);
    const children = await reader.children(path);
    const owner = sessions.findIndex((one) => one.sessionId === node?.ephemeralOwner);
    const names = children?.names.sort().join();
    trace.push(`${path} ${node?.data.toString("hex")} v${node?.version} ${owner} ${names}`);
    trace.push(`children version ${children?.version}`);
  }
  return trace;
}
