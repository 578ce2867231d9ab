/**
 * Links are cut between machines (network namespaces), silently, under a load of fio with
 * verification: between two OSDs, between a client and one OSD, and around a minority with one of
 * three ZooKeeper servers, one of three OSDs and a client. The majority serves; the minority
 * neither acknowledges a write nor, once the grants have ended, answers a read; and when the link
 * is back nothing that was acknowledged is lost and nothing late takes effect.
 */
import { constants } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import { measure, SILENCE_GOAL_MS } from "../support/fault-cases.js";
import { FaultLoad, Prober } from "../support/fault-load.js";
import { SpreadCluster } from "../support/spread-cluster.js";
import { succeed } from "../support/process.js";
import { waitFor } from "../support/temp.js";

const MIB = 2 ** 20;
/** Longer than any grant, with room for a busy machine. */
const GRANTS_END_MS = 2_500;
const HEALTHY_MS = 90_000;
const sleep = (ms: number) => new Promise((done) => setTimeout(done, ms));

const cluster = await SpreadCluster.start(t, { osds: 3, clients: ["near", "far"] });
const { network } = cluster;
const load = await FaultLoad.start(t, {
  mount: cluster.mountOf("near"),
  serve: (volume, bytes) => cluster.serve(volume, bytes),
});
const farProber = () =>
  Prober.start(t, {
    folder: join(cluster.mountOf("far"), "far"),
    fileBytes: 64 * MIB,
    seed: 9,
  });

await t.test("between two OSDs", async (t) => {
  const options = { name: "cut OSD from OSD", goalMs: SILENCE_GOAL_MS };
  await measure(t, load, options, async () => network.cut(["osd0"], ["osd1"]));
  network.heal(["osd0"], ["osd1"]);
  await cluster.healthy(HEALTHY_MS);
});

await t.test("between one OSD and all others, while ZooKeeper hears all", async (t) => {
  const options = { name: "cut OSD from all OSDs", goalMs: SILENCE_GOAL_MS };
  network.cut(["osd2"], ["osd0", "osd1"]);
  try {
    await measure(t, load, options, async () => network.cut(["osd2"], ["near"]));
    await waitFor("health says so", async () => {
      const { health } = await cluster.json<{ health: { checks: { code: string }[] } }>(["status"]);
      return health.checks.some(({ code }) => code === "OSD_UNREACHABLE");
    });
  } finally {
    network.heal(["osd2"], ["osd0", "osd1", "near"]);
  }
  await cluster.healthy(HEALTHY_MS);
});

await t.test("between a client and one OSD: the client waits, others do not notice", async (t) => {
  const far = await farProber();
  await far.report();
  await load.prober.report();
  network.cut(["near"], ["osd2"]);
  await sleep(6_000);
  const others = await far.report();
  t.same(others.errors, []);
  for (const [lane, ms] of Object.entries(others.longest)) {
    t.ok(ms < 2_000, `the other client's ${lane}: ${ms} ms`);
  }
  const options = { name: "client's link is back", goalMs: SILENCE_GOAL_MS, settleMs: 3_000 };
  await measure(t, load, options, async () => network.heal(["near"], ["osd2"]));
  t.same((await far.stop()).errors, []);
  await cluster.healthy(HEALTHY_MS);
});

await t.test("a minority of servers, OSDs and clients", async (t) => {
  const minority = ["zk3", "osd2", "far"];
  const majority = ["zk1", "zk2", "mds0", "mds1", "osd0", "osd1", "near"];
  const far = await farProber();
  // The far client has the file open for writing, and a write on its way when the link is cut.
  const shared = "shared";
  const target = await open(
    join(cluster.mountOf("far"), shared),
    constants.O_RDWR | constants.O_CREAT | constants.O_DIRECT,
  );
  await target.write(Buffer.alloc(4096, 1), 0, 4096, 0);
  await far.report();
  const options = { name: "cut minority off", goalMs: SILENCE_GOAL_MS };
  let late: Promise<unknown> = Promise.resolve();
  try {
    await measure(t, load, options, async () => {
      network.cut(minority, majority);
      late = target.write(Buffer.alloc(4096, 2), 0, 4096, 0).catch((error: unknown) => error);
      await sleep(GRANTS_END_MS);
      await far.report();
    });
    const refused = await far.report();
    for (const lane of ["mount write", "mount read", "mount names"]) {
      t.ok((refused.count[lane] ?? 0) <= 1, `far ${lane}: ${refused.count[lane]} operations`);
      t.ok((refused.longest[lane] ?? 0) > 2_000, `far ${lane} waits`);
    }
    // Whoever wants the file next has its holder evicted and fenced before.
    const near = join(cluster.mountOf("near"), shared);
    const write = `printf 'near%4092s' '' | dd of=${near} conv=notrunc,fsync status=none`;
    await succeed(t, "bash", ["-c", write], { withinMs: 60_000 });
  } finally {
    network.heal(minority, majority);
  }
  await cluster.healthy(HEALTHY_MS);
  t.ok((await late) instanceof Error, "the late write of the evicted client fails");
  await target.close().catch(() => undefined); // May report the lost write once more.
  for (const machine of ["near", "far"]) {
    const path = join(cluster.mountOf(machine), shared);
    const text = await succeed(t, "head", ["-c", "5", path], { withinMs: 30_000 });
    t.equal(text, "near ", `${machine} sees what the successor wrote`);
  }
  const { errors } = await far.stop();
  // A name that it had made and not synced went with its session: it is not there any more.
  const wrong = errors.filter((error) => !/EIO|ESTALE|EBADF|mount names: ENOENT/.test(error));
  t.same(wrong, [], "an evicted client may be told so, but sees nothing old");
});

await t.test("no client of the majority saw an error or a wrong byte", async (t) => {
  await load.stop();
  t.ok(load.passes > 0, `${load.passes} passes of fio`);
});
