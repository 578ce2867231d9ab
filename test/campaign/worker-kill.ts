/**
 * One step of the campaign `worker-kill`, as a program: `worker-kill.js SEED
 * [copy|commit|database|saves]` on a cluster of its own. The worker of the mount is killed
 * (`kill -9`) while `cp -r`, `git commit`, `pgbench` and programs that sync or close every file
 * (saver.ts) run on it, at random moments. A program may fail only when data that it had not synced
 * died with the worker (the mount's log says so); it is then run again. In the end everything that
 * was synced must be there, and small files that were closed: the copy is the same, the repository
 * is whole, the database has every transaction that it confirmed. Prints what happened. Exit code
 * 0: it holds.
 */
import { mkdirSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Prng } from "../../cluster/base/prng.js";
import { ROOT } from "../../tools/test-parts.js";
import { startCluster, type Cluster } from "../support/cluster.js";
import { BUILD, start, succeed, type Program } from "../support/process.js";
import { tempFolder, waitFor } from "../support/temp.js";
import { Scope } from "../support/scope.js";
import type { SaverResult } from "./saver.js";

const PROGRAM_MS = 240_000;
const COMMITS = 12;
const PGBENCH_SECONDS = 12;
const SAVERS = 4;
const SAVER_SECONDS = 40;
/** A worker lives half as long on average. */
const SAVER_LIFE_MS = 1_500;
/** A try without a death follows each that failed. */
const TRIES_MAX = 4;
const LOST = /Input\/output error|I\/O error/;

const teardown = new Scope();
const counts = { kills: 0, programs: 0, lost: 0 };
/** Lost files that some program failed for. Of later ones a program may hear that began later. */
let excused = 0;

async function killWorker(cluster: Cluster): Promise<void> {
  const [mount] = await cluster.processes("mount");
  await cluster.kill([mount!.pid]);
  counts.kills++;
  await waitFor(
    "another worker",
    async () => {
      const [next] = await cluster.processes("mount");
      return next!.pid !== mount!.pid && next!.pid !== next!.supervisor ? true : undefined;
    },
    { withinMs: 60_000 },
  );
}

/** Files whose unsynced data died with a worker so far, as the mount's log has it. */
async function filesLost(cluster: Cluster): Promise<number> {
  const [mount] = await cluster.processes("mount");
  const found = readFileSync(mount!.log, "utf8").matchAll(/"lost":(\d+),"message":"going on/g);
  return [...found].reduce((sum, [, lost]) => sum + Number(lost), 0);
}

/** Runs the program while workers die; true when it had no error, false when data were lost. */
async function underDeaths(
  cluster: Cluster,
  random: Prng,
  options: { make: () => Program; deaths: number; aboutMs: number },
): Promise<boolean> {
  const program = options.make();
  counts.programs++;
  let isOver = false;
  const ended = program.exited.finally(() => (isOver = true));
  for (let death = 0; death < options.deaths; death++) {
    await sleep(random.float() * options.aboutMs);
    if (isOver) break;
    await killWorker(cluster);
  }
  const { code } = await ended;
  if (code === 0) return true;
  const isTold = LOST.test(program.stderr + program.stdout);
  const isTwice = /File exists|No such file/.test(program.stderr);
  const lost = await filesLost(cluster);
  if (isTwice || (!isTold && lost === excused)) {
    throw new Error(`it failed, and nothing was lost (${String(code)}):\n${program.tail()}`);
  }
  counts.lost++;
  excused = lost;
  return false;
}

/** Every file is synced, and lost data were reported: true when there was nothing to report. */
async function synced(folder: string): Promise<boolean> {
  const command = `find ${folder} -type f -exec sync {} +`;
  const program = start(teardown, "sh", ["-c", command]);
  const { code } = await program.exited;
  if (code === 0) return true;
  if (!LOST.test(program.stderr)) throw new Error(`sync: ${program.tail()}`);
  return false;
}

async function copy(cluster: Cluster, random: Prng): Promise<void> {
  const source = join(tempFolder(teardown, "source"), "tree");
  mkdirSync(source);
  for (const name of ["cli", "client-fs", "cluster", "mds", "nbd", "osd", "docs", "test"]) {
    await succeed(teardown, "cp", ["-r", join(ROOT, name), source]);
  }
  const target = join(cluster.mount, "copy");
  for (let round = 1; ; round++) {
    const make = (): Program => start(teardown, "cp", ["-r", `${source}/.`, target]);
    const deaths = round === 1 ? 2 : 0;
    const good = await underDeaths(cluster, random, { make, deaths, aboutMs: 600 });
    const whole = await synced(target);
    if (!whole) counts.lost++;
    if (good && whole) break;
    if (round === TRIES_MAX) throw new Error("cp fails without a death");
  }
  await succeed(teardown, "diff", ["-r", source, target], { withinMs: PROGRAM_MS });
}

async function commit(cluster: Cluster, random: Prng): Promise<void> {
  const folder = join(cluster.mount, "repository");
  mkdirSync(folder);
  const settings = ["user.name=a", "user.email=a@b", "core.fsync=all", "gc.auto=0"];
  const git = (...args: string[]): string[] => [
    ...settings.flatMap((each) => ["-c", each]),
    ...["-C", folder, ...args],
  ];
  await succeed(teardown, "git", git("init", "-q"));
  const script = (number: number): string =>
    `cd ${folder} && mkdir -p d${number % 4} && for i in 1 2 3 4 5; do
       seq ${number} $((${number} + 100 * i)) > d${number % 4}/f$i || exit 1; done &&
     rm -f .git/index.lock .git/HEAD.lock .git/refs/heads/*.lock &&
     git ${settings.map((each) => `-c ${each}`).join(" ")} add -A &&
     git ${settings.map((each) => `-c ${each}`).join(" ")} commit -q --allow-empty -m c${number}`;
  let made = 0;
  for (let number = 1; number <= COMMITS; number++) {
    for (let round = 1; ; round++) {
      const make = (): Program => start(teardown, "sh", ["-c", script(number)]);
      const deaths = round === 1 && number % 4 === 0 ? 1 : 0;
      if (await underDeaths(cluster, random, { make, deaths, aboutMs: 400 })) break;
      if (round === TRIES_MAX) throw new Error("git fails without a death");
    }
    made++;
  }
  await succeed(teardown, "git", git("fsck", "--full", "--strict"), { withinMs: PROGRAM_MS });
  const log = await succeed(teardown, "git", git("log", "--format=%s"));
  for (let number = 1; number <= made; number++) {
    if (!log.includes(`c${number}\n`)) throw new Error(`commit ${number} is missing:\n${log}`);
  }
}

async function database(cluster: Cluster, random: Prng): Promise<void> {
  const programs = "/usr/lib/postgresql";
  const [release] = readdirSync(programs);
  const bin = join(programs, release ?? "none", "bin");
  const data = join(cluster.mount, "database");
  const socket = tempFolder(teardown, "pg");
  // Its user has to get there: folders of tests are root's alone.
  const open = `chmod a+x ${dirname(cluster.mount)} ${dirname(socket)}`;
  const make = `mkdir ${data} && chown postgres ${data} ${socket}`;
  await succeed(teardown, "sh", ["-c", `${open} && ${make}`]);
  const as = (...command: string[]): string[] => ["-u", "postgres", "--", ...command];
  const within = { withinMs: PROGRAM_MS };
  await succeed(teardown, "runuser", as(`${bin}/initdb`, "-D", data, "-A", "trust"), within);
  const server = `-k ${socket} -c listen_addresses= -c shared_buffers=16MB -c restart_after_crash=on`;
  const control = (...args: string[]): string[] =>
    as(`${bin}/pg_ctl`, "-D", data, "-w", "-t", "120", "-l", join(socket, "log"), ...args);
  await succeed(teardown, "runuser", control("-o", server, "start"), within);
  const stop = (): Promise<string> =>
    succeed(teardown, "runuser", control("-m", "fast", "stop"), within);
  const bench = (...args: string[]): string[] =>
    as(`${bin}/pgbench`, "-h", socket, ...args, "postgres");
  try {
    await succeed(teardown, "runuser", bench("-i", "-q"), within);
    let confirmed = 0;
    const args = bench("-c", "2", "-T", String(PGBENCH_SECONDS), "--max-tries=1", "-n");
    let program: Program | undefined;
    const run = (): Program => (program = start(teardown, "runuser", args));
    try {
      await underDeaths(cluster, random, { make: run, deaths: 2, aboutMs: 4_000 });
    } catch (error) {
      // A server that was told of lost data stops and recovers: its clients are disconnected.
      if (!/server closed the connection|recovery mode|PANIC/.test(String(error))) throw error;
      counts.lost++;
    }
    // What was written and not synced may be gone while the server runs: its log has all of it.
    await succeed(teardown, "runuser", control("-m", "immediate", "stop"), within).catch(() => "");
    await succeed(teardown, "runuser", control("-o", server, "start"), within);
    confirmed = Number(/actually processed: (\d+)/.exec(program!.stdout)?.[1] ?? 0);
    const query = `select (select sum(abalance) from pgbench_accounts) =
      (select sum(delta) from pgbench_history) and (select sum(tbalance) from pgbench_tellers) =
      (select sum(bbalance) from pgbench_branches), count(*) from pgbench_history`;
    const ask = as(`${bin}/psql`, "-h", socket, "-At", "-c", query, "postgres");
    const answer = await waitFor(
      "the database",
      async () => {
        const asked = start(teardown, "runuser", ask);
        return (await asked.exited).code === 0 ? asked.stdout.trim() : undefined;
      },
      { withinMs: 120_000 },
    );
    const [isBalanced, rows] = answer.split("|");
    console.log(`pgbench: ${confirmed} transactions confirmed, ${rows} found`);
    if (isBalanced !== "t" || Number(rows) < confirmed) throw new Error(`database: ${answer}`);
    // Again, from the disk alone.
    await stop();
    await cluster.remount().catch(async (error: unknown) => {
      // It says what was lost if nobody else has heard.
      if (!String(error).includes("written data were lost")) throw error;
      await cluster.up();
    });
    await succeed(teardown, "runuser", control("-o", server, "start"), within);
    const check = as(`${bin}/pg_amcheck`, "-h", socket, "--install-missing", "postgres");
    await succeed(teardown, "runuser", check, within);
  } finally {
    await stop().catch((error: unknown) => console.log(`pg_ctl stop: ${String(error)}`));
  }
  rmSync(socket, { recursive: true, force: true });
}

/** Many deaths in a row, some before the worker before has been replaced altogether. */
async function saves(cluster: Cluster, random: Prng): Promise<void> {
  const program = join(BUILD, "test/campaign/saver.js");
  const savers = Array.from({ length: SAVERS }, (_, at) => {
    const seed = random.int(1, 1_000_000);
    const args = [program, join(cluster.mount, `saver${at}`), `${seed}`, `${SAVER_SECONDS}`];
    return start(teardown, process.execPath, args);
  });
  let left = savers.length;
  for (const { exited } of savers) void exited.then(() => left--);
  while (left > 0) {
    await sleep(random.float() * SAVER_LIFE_MS);
    if (left > 0) await killWorker(cluster);
  }
  const total: SaverResult = { saves: 0, closed: 0, files: 0, again: 0 };
  for (const saver of savers) {
    counts.programs++;
    if ((await saver.exited).code !== 0) throw new Error(`a saved file: ${saver.tail()}`);
    const result = JSON.parse(saver.stdout) as SaverResult;
    total.saves += result.saves;
    total.closed += result.closed;
    total.files += result.files;
    total.again += result.again;
  }
  counts.lost += total.again;
  const { saves, closed, files } = total;
  console.log(`${saves} saves of ${files} files, ${closed} of them closed and not synced`);
}

try {
  const [seed, only] = [Number(process.argv[2] ?? 1), process.argv[3]];
  const random = new Prng(seed);
  const cluster = await startCluster(teardown);
  const loads = [copy, commit, database, saves].filter(({ name }) => !only || only === name);
  for (const load of loads) {
    const before = { ...counts };
    const begin = performance.now();
    await load(cluster, random);
    const seconds = ((performance.now() - begin) / 1000).toFixed(1);
    const kills = counts.kills - before.kills;
    console.log(
      `${load.name}: ${kills} workers killed, ${counts.lost - before.lost} losses told, ` +
        `${seconds} s`,
    );
  }
  const { kills, programs, lost } = counts;
  console.log(`seed ${seed}: ${kills} workers killed, ${programs} programs, ${lost} losses told`);
} finally {
  await teardown.end();
}
