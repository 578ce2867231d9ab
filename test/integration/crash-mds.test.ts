/**
 * The leading metadata server is killed while programs make, rename and remove files: they notice a
 * pause of at most 5 s and no error, and nothing that was acknowledged is lost.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { BUILD, start, succeed } from "../support/process.js";
import { startCluster } from "../support/cluster.js";
import { waitFor } from "../support/temp.js";

const STALL_MS = 5_000;
const ROUNDS = 2;

/** Makes names until it is told to stop; prints what is durable, and the longest pause last. */
const PROGRAM = `
import * as fs from "node:fs";
import { join } from "node:path";
const [folder, prefix] = process.argv.slice(1);
let stopping = false, longest = 0, count = 0;
process.on("SIGTERM", () => (stopping = true));
const timed = async (action) => {
  const start = performance.now();
  const result = await action();
  longest = Math.max(longest, performance.now() - start);
  return result;
};
const directory = await fs.promises.open(folder, "r");
while (!stopping) {
  const name = prefix + "-" + count++;
  const handle = await timed(() => fs.promises.open(join(folder, name + ".new"), "wx"));
  await timed(() => handle.write(name));
  await timed(() => handle.sync());
  await timed(() => handle.close());
  await timed(() => fs.promises.rename(join(folder, name + ".new"), join(folder, name)));
  if (count % 3 === 0) {
    await timed(() => fs.promises.unlink(join(folder, name)));
    await timed(() => directory.sync());
    fs.writeSync(1, "gone " + name + "\\n");
  } else {
    await timed(() => directory.sync());
    fs.writeSync(1, "made " + name + "\\n");
  }
}
await directory.close();
fs.writeSync(1, "longest " + Math.round(longest) + " of " + count + "\\n");
`;

const cluster = await startCluster(t);
const expected = new Map<string, boolean>();

for (let round = 1; round <= ROUNDS; round++) {
  await t.test(`round ${round}: kill -9 of the leader`, async (t) => {
    const folder = join(cluster.mount, `round-${round}`);
    mkdirSync(folder);
    const loads = ["a", "b", "c"].map((prefix) =>
      start(t, process.execPath, ["--input-type=module", "-e", PROGRAM, folder, prefix]),
    );
    const working = (): number =>
      loads.reduce((sum, load) => sum + load.stdout.split("\n").length, 0);
    await waitFor("names are made", () => working() > 30, { withinMs: 20_000 });
    const leader = await cluster.leaderPid();
    await cluster.kill([leader]);
    const killed = performance.now();
    const before = working();
    await waitFor("work goes on", () => working() > before + 10, { withinMs: 30_000 });
    const pause = performance.now() - killed;
    t.ok(pause < STALL_MS, `work goes on ${Math.round(pause)} ms after the kill`);
    await new Promise((done) => setTimeout(done, 1_500));
    for (const load of loads) {
      load.signal("SIGTERM");
      const [, longest = "", count = ""] = await load.output(/longest (\d+) of (\d+)/, 20_000);
      t.equal((await load.exited).code, 0, load.stderr);
      t.ok(Number(longest) < STALL_MS, `longest call: ${longest} ms of ${count} names`);
      for (const line of load.stdout.split("\n")) {
        const [what, name = ""] = line.split(" ");
        if (what === "made" || what === "gone") expected.set(join(folder, name), what === "made");
      }
    }
    t.not(await cluster.leaderPid(), leader);
    // The one that died comes back as the standby, for the next round.
    const ms = await cluster.up();
    t.ok(ms < 15_000, `up in ${Math.round(ms)} ms`);
    await cluster.healthy();
    await check(t, "after the failover");
  });
}

await t.test("all of it is there after a new start and a new mount", async (t) => {
  await cluster.down();
  await cluster.up();
  await check(t, "after the restart");
});

async function check(t: Parameters<typeof succeed>[0] & Pick<Tap, "same">, when: string) {
  const script =
    "const fs=require('fs');const wanted=JSON.parse(fs.readFileSync(0,'utf8'));" +
    "console.log(JSON.stringify(wanted.filter(([p,is])=>fs.existsSync(p)!==is||" +
    "(is&&fs.readFileSync(p,'utf8')!==p.split('/').pop()))))";
  const out = await succeed(t, process.execPath, ["-e", script], {
    input: JSON.stringify([...expected]),
    withinMs: 60_000,
    cwd: BUILD,
  });
  t.same(JSON.parse(out), [], `${expected.size} names are as acknowledged ${when}`);
}
type Tap = typeof t;
