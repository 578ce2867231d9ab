/**
 * An OSD killed under load: the volume goes on within seconds and without an error, the OSD returns
 * and catches up by the log, one that stays away is replaced by another, and everything written is
 * there.
 */
import t from "tap";
import { Prng } from "../../cluster/base/prng.js";
import { startCluster, type ClusterProcess } from "../support/cluster.js";
import { NbdClient } from "../support/nbd-client.js";
import { waitFor } from "../support/temp.js";

const BLOCK = 4096;
const BLOCKS = 2_048;
/** Generous: other tests share the machine. */
const STALL_MAX_MS = 8_000;

interface PgRow {
  inSync: number[];
}

const cluster = await startCluster(t, { osds: 4, mds: 2, env: { DSS_DOWN_OUT_MS: "5s" } });
const { server, socket } = await cluster.serve("load", BLOCK * BLOCKS);
const client = await NbdClient.connect(socket, "load");
const random = new Prng(11);
/** The newest acknowledged content of every block, as a number that fills it. */
const written = new Uint32Array(BLOCKS);
let running = true;
let value = 0;
let longestMs = 0;
let writes = 0;

function filled(number: number): Buffer {
  const data = Buffer.alloc(BLOCK);
  for (let at = 0; at < BLOCK; at += 4) data.writeUInt32LE(number, at);
  return data;
}
async function writer(first: number): Promise<void> {
  while (running) {
    // Each writer has blocks of its own.
    const block = first + 4 * random.int(0, BLOCKS / 4 - 1);
    const number = ++value;
    const begin = performance.now();
    await client.write(block * BLOCK, filled(number));
    longestMs = Math.max(longestMs, performance.now() - begin);
    written[block] = number;
    writes++;
  }
}
async function verify(): Promise<void> {
  for (let block = 0; block < BLOCKS; block++) {
    const data = await client.read(block * BLOCK, BLOCK);
    if (!data.equals(filled(written[block]!))) throw new Error(`block ${block} is wrong`);
  }
}
async function osd(id: number): Promise<ClusterProcess> {
  const found = (await cluster.processes("osd")).find(({ name }) => name === `osd.${id}`);
  if (found === undefined) throw new Error(`osd.${id} does not run`);
  return found;
}
const load = Promise.all([0, 1, 2, 3].map(writer));
load.catch(() => undefined);

await t.test("kill -9 of an OSD: a pause, no error", async (t) => {
  const before = writes;
  longestMs = 0;
  await cluster.kill([(await osd(1)).pid]);
  await waitFor("writes go on", () => writes > before + 500, { withinMs: 30_000 });
  t.comment(`longest write ${Math.round(longestMs)} ms`);
  t.ok(longestMs < STALL_MAX_MS);
});

await t.test("it returns and catches up while the load goes on", async (t) => {
  await cluster.up();
  await cluster.healthy();
  t.ok(writes > 0);
});

await t.test("SIGSTOP: the others go on, and the sleeper does no harm when it wakes", async (t) => {
  const { pid } = await osd(2);
  const before = writes;
  longestMs = 0;
  await cluster.kill([pid], "SIGSTOP");
  try {
    await waitFor("writes go on", () => writes > before + 500, { withinMs: 40_000 });
    t.comment(`longest write ${Math.round(longestMs)} ms`);
  } finally {
    await cluster.kill([pid], "SIGCONT");
  }
  await cluster.healthy();
});

await t.test("an OSD that stays away is replaced, and every PG is clean again", async (t) => {
  await cluster.kill([(await osd(3)).pid]);
  await waitFor(
    "all PGs are clean without osd.3",
    async () => {
      const pgs = await cluster.json<PgRow[]>(["pg", "ls"]);
      return pgs.every((pg) => pg.inSync.length === 3 && !pg.inSync.includes(3));
    },
    { withinMs: 60_000, everyMs: 250 },
  );
  t.pass("three copies of everything");
});

await t.test("every acknowledged write is there", async (t) => {
  running = false;
  await load;
  await verify();
  t.comment(`${writes} writes`);
  client.close();
  await server.stop();
});
