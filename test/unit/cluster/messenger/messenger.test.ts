/**
 * The messenger on the simulated network: pipelining, deadlines, loss and return of the other side.
 */
import t from "tap";
import { DssError } from "../../../../cluster/base/errors.js";
import { silentLogger } from "../../../../cluster/base/log.js";
import { Prng } from "../../../../cluster/base/prng.js";
import { RpcMessenger } from "../../../../cluster/messenger/rpc.js";
import { defineCall, definePost, msgpack } from "../../../../cluster/wire/registry.js";
import { struct, u32 } from "../../../../cluster/wire/struct.js";
import { SimClock } from "../../../sim/sim-clock.js";
import { SimHost, SimNetwork } from "../../../sim/sim-network.js";

const Echo = defineCall(60_000, "TestEcho", {
  request: msgpack<{ text: string; waitMs?: number; fail?: boolean }>(),
  reply: msgpack<{ text: string }>(),
});
const Note = definePost(60_010, "TestNote", msgpack<{ text: string }>());
const SERVER = { host: "10.0.0.1", port: 9100 };

function world(seed = 1): { clock: SimClock; network: SimNetwork } {
  const clock = new SimClock();
  return { clock, network: new SimNetwork(clock, new Prng(seed)) };
}
function messengerOn(
  network: SimNetwork,
  name: string,
  entity: number,
  clusterId = "c1",
): { host: SimHost; messenger: RpcMessenger } {
  const host = new SimHost(name, network);
  const prng = new Prng(entity);
  const messenger = new RpcMessenger({
    clock: network.clock.forNode(() => host.alive),
    network: host,
    random: { u32: () => prng.u32(), bytes: (length) => prng.bytes(length) },
    logger: silentLogger,
    entity,
    role: "test",
    clusterId: () => clusterId,
  });
  return { host, messenger };
}
function serve(network: SimNetwork): {
  host: SimHost;
  messenger: RpcMessenger;
  executed: string[];
  notes: string[];
} {
  const { host, messenger } = messengerOn(network, "server", 1);
  const notes: string[] = [];
  const executed: string[] = [];
  const clock = network.clock.forNode(() => host.alive);
  messenger.handle(Echo, (request) => {
    const { text, waitMs = 0, fail = false } = request.message;
    executed.push(text);
    if (fail) throw new DssError("NoSpace", "full", { epoch: 9, hint: "add an OSD" });
    const answer = (): void => request.reply({ text }, [request.data], request.sums);
    clock.setTimer(waitMs, answer);
  });
  messenger.handlePost(Note, ({ text }) => notes.push(text));
  void messenger.listen(SERVER);
  return { host, messenger, executed, notes };
}
/** Runs the simulation until the promise settles. */
async function settled<T>(clock: SimClock, work: Promise<T>, withinMs = 60_000): Promise<T> {
  let done = false;
  const watched = work.finally(() => (done = true));
  watched.catch(() => undefined); // Judged by the caller.
  if (!(await clock.runUntil(() => done, withinMs))) throw new Error("did not settle");
  return watched;
}

t.test("answers find their calls, whatever their order; data comes along", async (t) => {
  const { clock, network } = world();
  serve(network);
  const { messenger } = messengerOn(network, "client", 70_000);
  const peer = messenger.peer(SERVER);
  const order: number[] = [];
  const calls = [30, 10, 20].map(async (waitMs) => {
    const data = Buffer.alloc(5_000, waitMs);
    const message = { text: String(waitMs), waitMs };
    const reply = await peer.call(Echo, message, { deadlineMs: 1_000, data: [data] });
    order.push(waitMs);
    t.equal(reply.message.text, String(waitMs));
    t.same(reply.data, data);
  });
  await settled(clock, Promise.all(calls));
  t.same(order, [10, 20, 30]);
});

t.test("an error comes over with code, epoch and hint; an unknown call is refused", async (t) => {
  const { clock, network } = world();
  serve(network);
  const { messenger } = messengerOn(network, "client", 70_000);
  const peer = messenger.peer(SERVER);
  const failing = peer.call(Echo, { text: "", fail: true }, { deadlineMs: 1_000 });
  await t.rejects(settled(clock, failing), {
    ...{ code: "NoSpace", message: "full", epoch: 9, hint: "add an OSD" },
  });
  const codecs = { request: msgpack<object>(), reply: msgpack<object>() };
  const Unknown = defineCall(60_020, "TestUnknown", codecs);
  const unknown = peer.call(Unknown, {}, { deadlineMs: 1_000 });
  await t.rejects(settled(clock, unknown), { code: "NotSupported" });
});

t.test("a deadline is kept, and the late answer harms nobody", async (t) => {
  const { clock, network } = world();
  serve(network);
  const { messenger } = messengerOn(network, "client", 70_000);
  const peer = messenger.peer(SERVER);
  const slow = peer.call(Echo, { text: "slow", waitMs: 2_000 }, { deadlineMs: 500 });
  await t.rejects(settled(clock, slow), { code: "TimedOut" });
  t.ok(clock.now < 700, `gave up after ${clock.now} ms`);
  const next = await settled(clock, peer.call(Echo, { text: "next" }, { deadlineMs: 5_000 }));
  t.equal(next.message.text, "next");
});

t.test(
  "calls in flight fail when the other side dies; later ones reach its successor",
  async (t) => {
    const { clock, network } = world();
    const first = serve(network);
    const { messenger } = messengerOn(network, "client", 70_000);
    const peer = messenger.peer(SERVER);
    await settled(clock, peer.call(Echo, { text: "1" }, { deadlineMs: 1_000 }));
    const lost = peer.call(Echo, { text: "lost", waitMs: 500 }, { deadlineMs: 5_000 });
    await clock.advance(100);
    first.host.crash();
    await t.rejects(settled(clock, lost), { code: "ConnectionLost" });
    const refused = peer.call(Echo, { text: "refused" }, { deadlineMs: 1_000 });
    await t.rejects(settled(clock, refused), { code: "Unreachable" });
    serve(network);
    const again = await settled(clock, peer.call(Echo, { text: "again" }, { deadlineMs: 5_000 }));
    t.equal(again.message.text, "again");
  },
);

t.test("a receiver is called once, with the answer or with what became of it", async (t) => {
  const { clock, network } = world();
  const first = serve(network);
  const { messenger } = messengerOn(network, "client", 70_000);
  const peer = messenger.peer(SERVER);
  const outcomes: string[] = [];
  const send = (message: { text: string; waitMs?: number; fail?: boolean }, deadlineMs: number) => {
    const note = (what: string): void => void outcomes.push(`${message.text} ${what}`);
    peer.send(
      Echo,
      Echo.request.encode(message),
      { deadlineMs },
      { answered: ({ text }) => note(`got ${text}`), failed: ({ code }) => note(code) },
    );
  };
  const next = async (): Promise<string | undefined> => {
    await clock.runUntil(() => outcomes.length > 0, 60_000);
    await clock.advance(5_000);
    t.ok(outcomes.length <= 1, "once");
    return outcomes.pop();
  };
  send({ text: "unconnected" }, 1_000);
  t.equal(await next(), "unconnected got unconnected");
  send({ text: "connected" }, 1_000);
  t.equal(await next(), "connected got connected");
  send({ text: "failing", fail: true }, 1_000);
  t.equal(await next(), "failing NoSpace");
  send({ text: "slow", waitMs: 2_000 }, 500);
  t.equal(await next(), "slow TimedOut");
  send({ text: "lost", waitMs: 500 }, 5_000);
  await clock.advance(100);
  first.host.crash();
  t.equal(await next(), "lost ConnectionLost");
  send({ text: "refused" }, 1_000);
  t.equal(await next(), "refused Unreachable");
  peer.close();
  send({ text: "closed" }, 1_000);
  t.equal(outcomes.pop(), "closed ShuttingDown");
});

t.test("an answer that cannot be decoded fails its call and ends the connection", async (t) => {
  const { clock, network } = world();
  const server = serve(network);
  const reply = { encode: () => Buffer.alloc(3), decode: struct("FourBytes", { a: u32 }).decode };
  const Odd = defineCall(60_030, "TestOdd", { request: msgpack<object>(), reply });
  server.messenger.handle(Odd, (request) => request.reply({ a: 1 }));
  const { messenger } = messengerOn(network, "client", 70_000);
  const peer = messenger.peer(SERVER);
  const other = peer.call(Echo, { text: "", waitMs: 900 }, { deadlineMs: 5_000 });
  await t.rejects(settled(clock, peer.call(Odd, {}, { deadlineMs: 1_000 })), { code: "Malformed" });
  await t.rejects(settled(clock, other), { code: "ConnectionLost" });
  await settled(clock, peer.call(Echo, { text: "anew" }, { deadlineMs: 1_000 }));
});

t.test("a call keeps its own deadline while a connection is being tried", async (t) => {
  const { clock, network } = world();
  serve(network);
  network.partition("client", "server");
  const { messenger } = messengerOn(network, "client", 70_000);
  const waiting = messenger.peer(SERVER).call(Echo, { text: "" }, { deadlineMs: 300 });
  await t.rejects(settled(clock, waiting), { code: "TimedOut" });
  t.ok(clock.now < 400, `gave up after ${clock.now} ms`);
});

t.test("another cluster is refused; posts arrive", async (t) => {
  const { clock, network } = world();
  const server = serve(network);
  const stranger = messengerOn(network, "stranger", 70_001, "c2").messenger;
  const refused = stranger.peer(SERVER).call(Echo, { text: "" }, { deadlineMs: 1_000 });
  await t.rejects(settled(clock, refused), { code: "Conflict" });
  const { messenger } = messengerOn(network, "client", 70_000);
  const peer = messenger.peer(SERVER);
  await settled(clock, peer.call(Echo, { text: "" }, { deadlineMs: 1_000 }));
  peer.post(Note, { text: "hello" });
  t.ok(await clock.runUntil(() => server.notes.length > 0, 1_000));
});

t.test("messages that come twice, and late, are executed once", async (t) => {
  const { clock, network } = world();
  const server = serve(network);
  network.faults = { delayMs: { min: 0.02, max: 0.2 }, loss: 0, duplicate: 1 };
  const { messenger } = messengerOn(network, "client", 70_000);
  const peer = messenger.peer(SERVER);
  const texts = Array.from({ length: 20 }, (_, i) => String(i));
  const answers = texts.map((text) => peer.call(Echo, { text }, { deadlineMs: 1_000 }));
  const got = await settled(clock, Promise.all(answers));
  t.same(
    got.map(({ message }) => message.text),
    texts,
  );
  t.same([...server.executed].sort(), [...texts].sort());
  t.ok(network.duplicated > texts.length);
  for (const text of texts) peer.post(Note, { text });
  await clock.advance(1_000);
  t.same(server.notes, texts);
});

t.test("garbage closes its connection and nothing else", async (t) => {
  const { clock, network } = world();
  serve(network);
  const { messenger } = messengerOn(network, "client", 70_000);
  const peer = messenger.peer(SERVER);
  await settled(clock, peer.call(Echo, { text: "" }, { deadlineMs: 1_000 }));
  const vandal = new SimHost("vandal", network);
  const connection = await settled(clock, vandal.connect(SERVER, { timeoutMs: 1_000 }));
  let closed = false;
  connection.onClose(() => (closed = true));
  connection.send([Buffer.alloc(100, 0xee)]);
  t.ok(await clock.runUntil(() => closed, 1_000));
  const mute = await settled(clock, vandal.connect(SERVER, { timeoutMs: 1_000 }));
  let dropped = false;
  mute.onClose(() => (dropped = true));
  t.ok(await clock.runUntil(() => dropped, 10_000), "who does not say Hello is dropped");
  await settled(clock, peer.call(Echo, { text: "still here" }, { deadlineMs: 1_000 }));
});
