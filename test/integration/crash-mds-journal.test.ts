/**
 * A journal batch in a real ZooKeeper is damaged, then missing: every metadata server refuses
 * loudly (the log and health name the znode), none serves, nothing is skipped or changed; with the
 * batch back everything is there. And the journal is trimmed while it is written.
 *
 * DSS_TAKEOVER_FILES (2,000): how many files there are at the takeover that is measured.
 */
import { hostname } from "node:os";
import t, { type Test } from "tap";
import { silentLogger } from "../../cluster/base/log.js";
import { loadConfig } from "../../cluster/config/load.js";
import { nodeClock, nodePlatform } from "../../cluster/platform/node.js";
import { JOURNAL_PATH, pagePath } from "../../cluster/zk/schema.js";
import type { Coordination } from "../../cluster/zk/coordination.js";
import { connectZooKeeper } from "../../cluster/zk/session.js";
import { connectCluster, type ClusterSession } from "../../mds/client/cluster-session.js";
import { NO_CACHE } from "../../mds/client/session-cache.js";
import { ROOT_INO, type Actor } from "../../mds/proto.js";
import { dss, run, start, type Program } from "../support/process.js";
import { freePort, waitFor, withDeadline } from "../support/temp.js";
import { startZooKeeper } from "../support/zookeeper.js";

const TAKEOVER_FILES = Number(process.env["DSS_TAKEOVER_FILES"] ?? 2_000);
const ACTOR: Actor = { uid: 0, gid: 0, timeNs: 1n };
const BATCHES = 6;

t.setTimeout(240_000 + TAKEOVER_FILES * 10);
const zookeeper = await startZooKeeper(t);
const coordination = await connectZooKeeper({
  servers: zookeeper.address,
  clock: nodeClock,
  log: silentLogger,
});
t.teardown(() => coordination.close());

async function startMds(id: number, settings: Record<string, string> = {}): Promise<Program> {
  const port = String(await freePort());
  return start(
    t,
    ...dss("mds", "start", String(id), "--port", port, "--zookeeper", zookeeper.address),
    { env: settings },
  );
}
async function serving(id: number, settings?: Record<string, string>): Promise<Program> {
  const program = await startMds(id, settings);
  await program.output(new RegExp(`mds.${id} is up`), 30_000);
  return program;
}

async function connect(): Promise<ClusterSession> {
  const session = await connectCluster({
    platform: nodePlatform,
    zookeeper: zookeeper.address,
    config: loadConfig({}),
    logger: silentLogger,
    type: "library",
    instance: "",
    host: hostname(),
    detail: "test",
  });
  t.teardown(() => session.close({ force: true }));
  // Creations come with capabilities: at many, the leader asks for some of them back.
  session.mds.setCache({
    ...NO_CACHE,
    recall: ({ ino, mode, seq }) => {
      session.mds.release({ ino, mode, seq, open: false });
    },
  });
  await session.mds.open(40_000);
  return session;
}

async function create(session: ClusterSession, parent: number, name: string): Promise<number> {
  const ino = await session.mds.inos.next();
  await session.mds.call({
    op: "create",
    parent,
    name: Buffer.from(name),
    ino,
    mode: name.endsWith("/") ? 0o040755 : 0o100644,
    rdev: 0,
    exclusive: true,
    actor: ACTOR,
  });
  return ino;
}

async function list(session: ClusterSession, ino: number): Promise<string[]> {
  const { answer } = await session.mds.call({
    ...{ op: "readdir", ino, cookie: 0, limit: 1_000, plus: false },
  });
  return (answer.entries ?? []).map(({ name }) => name.toString());
}

interface Health {
  health: { status: string; checks: { code: string; detail: string[] }[] };
}
async function health(t: Test): Promise<Health["health"]> {
  const [program, args] = dss("status", "--json", "--zookeeper", zookeeper.address);
  const { stdout, stderr } = await run(t, program, args, { withinMs: 20_000 });
  if (!stdout.startsWith("{")) throw new Error(stderr);
  return (JSON.parse(stdout) as Health).health;
}

/** The znodes that a new leader has to replay, oldest first. */
async function replayable(zk: Coordination): Promise<string[]> {
  const mark = (await zk.get(pagePath("checkpoint")))?.data.toString("latin1") ?? "0";
  const { names } = (await zk.children(JOURNAL_PATH))!;
  const wanted = names.filter((name) => Number(name) > Number(mark)).sort();
  return wanted.map((name) => `${JOURNAL_PATH}/${name}`);
}

const made: string[] = [];

/** Both servers refuse, and say why. */
async function refused(t: Test, path: string, why: RegExp): Promise<void> {
  const before = (await replayable(coordination)).join();
  const servers = [await startMds(0), await startMds(1)];
  for (const [id, server] of servers.entries()) {
    const { code } = await withDeadline(40_000, `the end of mds.${id}`, server.exited);
    t.not(code, 0, `mds.${id} ends with an error`);
    const printed = server.tail(60);
    t.match(printed, path, "which names the znode");
    t.match(printed, why);
    t.notMatch(printed, /serving metadata/);
  }
  t.equal((await replayable(coordination)).join(), before, "nothing was changed or skipped");
  const { status, checks } = await health(t);
  t.equal(status, "HEALTH_ERR");
  const check = checks.find(({ code }) => code === "MDS_METADATA_DAMAGED");
  t.match(check?.detail.join(" "), path, "health names it too");
}

/** A server serves, and everything is there. */
async function good(t: Test): Promise<void> {
  const server = await serving(0);
  const session = await connect();
  t.same((await list(session, ROOT_INO)).sort(), [...made].sort());
  await waitFor("health without the fault", async () => {
    const { checks } = await health(t);
    return !checks.some(({ code }) => code === "MDS_METADATA_DAMAGED");
  });
  // In good order: the next leader would wait for a session that does not come back.
  await session.close();
  await server.kill();
}

await t.test("a damaged or missing batch is refused by every server", async (t) => {
  const servers = [await serving(0), await serving(1)];
  const session = await connect();
  for (let batch = 0; batch < BATCHES; batch++) {
    const name = `f${batch}`;
    await create(session, ROOT_INO, name);
    await session.mds.waitSafe();
    made.push(name);
  }
  await Promise.all(servers.map((server) => server.kill()));
  await session.close({ force: true });
  const paths = await replayable(coordination);
  t.ok(paths.length >= 3, `${paths.length} batches are to be replayed`);
  const path = paths[Math.floor(paths.length / 2)]!;
  const node = (await coordination.get(path))!;

  const damaged = Buffer.from(node.data);
  damaged[damaged.length >> 1]! ^= 1;
  await coordination.set(path, damaged, node.version);
  await t.test("damaged", (t) => refused(t, path, /checksum/));
  await coordination.remove(path, node.version + 1);
  await t.test("missing", (t) => refused(t, path, /is missing/));
  await coordination.create(path, node.data);
  await t.test("back", good);
});

await t.test("the journal is trimmed while it is written", async (t) => {
  const server = await serving(0, { DSS_MDS_JOURNAL_BATCHES_MAX: "32" });
  const session = await connect();
  const first = (await replayable(coordination)).at(-1)!;
  let longest = 0;
  for (let batch = 0; batch < 400; batch++) {
    await create(session, ROOT_INO, `trim${batch}`);
    await session.mds.waitSafe();
    if (batch % 50 === 0) {
      longest = Math.max(longest, (await coordination.children(JOURNAL_PATH))!.names.length);
    }
  }
  await waitFor("a short journal", async () => {
    const { names } = (await coordination.children(JOURNAL_PATH))!;
    return names.length < 100 && !names.some((name) => first.endsWith(name));
  });
  t.comment(`at most ${longest} batches of 400 were there at a time`);
  t.ok(longest < 350);
  // In good order: the next leader would wait for a session that does not come back.
  await session.close();
  await server.kill();
});

await t.test("a takeover at size", async (t) => {
  const servers = [await serving(0), await serving(1)];
  const session = await connect();
  const began = performance.now();
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < TAKEOVER_FILES) await create(session, ROOT_INO, `s${next++}`);
  };
  await Promise.all(Array.from({ length: 64 }, worker)).catch((error: unknown) => {
    for (const server of servers) t.comment(server.tail(20));
    throw error;
  });
  await session.mds.waitSafe();
  t.comment(`${TAKEOVER_FILES} files in ${Math.round(performance.now() - began)} ms`);
  const { status } = await session.mds.admin({ op: "status" }, 10_000);
  await servers[status!.leader]!.kill();
  const killed = performance.now();
  await create(session, ROOT_INO, "after");
  const tookMs = Math.round(performance.now() - killed);
  t.comment(`a takeover with ${TAKEOVER_FILES} files: ${tookMs} ms`);
  t.ok(tookMs < 20_000);
  await session.close({ force: true });
});
