/**
 * `npm run campaign [NAME] [-- --minutes M --suite-dir DIR --state-dir DIR --restart]`: the long
 * proofs. Without a name it lists them. `--suite-dir` has the published suites that dss does not
 * bring along (docs/posix.md), each in a folder of its own. A campaign is a sequence of numbered
 * steps, each with its own seed; which of them are done is written to a state file after each
 * step, so that a campaign that was stopped, or that ran out of its minutes, goes on where it was.
 * A step that fails stops it, and is the first one when it is run again. Exit code 0: complete;
 * 1: a step failed; 3: minutes used up.
 */
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  writeFileSync,
} from "node:fs";
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { spawn } from "node:child_process";
import { ROOT } from "../../tools/test-parts.js";
import { BUILD } from "../support/process.js";
import { runProgram, UsageError } from "../support/program.js";
import { COHERENCE_STEPS, coherenceStep, coherenceSummary } from "./coherence-steps.js";
import { failuresStep, failuresSummary, REPEATS } from "./failures.js";
import { POSIX_STEPS, posixStep, posixSummary } from "./posix-steps.js";
import {
  FSX_STEPS,
  fsxStep,
  fsxSummary,
  STRESSOR_STEPS,
  stressorStep,
  stressorSummary,
} from "./stressor-steps.js";

const MINUTES_MAX = 60;
/** Seeds that no test uses. */
const SIMULATOR_FIRST = 10_000;
const EXIT_UNFINISHED = 3;
const FORMAT = 1;

interface Campaign {
  readonly name: string;
  readonly about: string;
  /** How many steps are the whole campaign. */
  readonly steps: number;
  /** A step takes about this long; it is stopped after four times as much. */
  readonly stepSeconds: number;
  /** Built program, and its arguments and environment for one step (from 1 on). */
  step(number: number, folder: string, suites: string): Step;
  /** What all steps so far have measured. */
  summary?(folder: string): { lines: string[]; good: boolean };
}

interface Step {
  program: string;
  args?: string[];
  env?: Record<string, string>;
}

const INTEROP_STEPS = ["clients", "transfers", "figures"];
const BALANCE_STEPS = ["away", "random", "join", "drain", "lost", "shares"];

const CAMPAIGNS: readonly Campaign[] = [
  {
    name: "crash-all",
    about: "kill -9 of all daemons and clients at once under load: 4 clusters, 5 crashes each",
    steps: 4,
    stepSeconds: 150,
    step: (number) => ({
      program: "test/integration/crash-all.test.js",
      env: { DSS_CRASH_ROUNDS: "5", DSS_CRASH_SEED: String(1_000 + number) },
    }),
  },
  {
    name: "crash-mds",
    about: "kill -9 of the leading metadata server under metadata load",
    steps: 10,
    stepSeconds: 60,
    step: () => ({ program: "test/integration/crash-mds.test.js" }),
  },
  {
    name: "zookeeper",
    about: "sessions expire, ZooKeeper (one server, then three) is frozen and dead for a minute",
    steps: 4,
    stepSeconds: 300,
    step: (number) => ({
      program: "test/integration/crash-zookeeper.test.js",
      env: { DSS_ZK_OUTAGE_SECONDS: "60", DSS_ZK_SERVERS: number % 2 === 0 ? "3" : "1" },
    }),
  },
  {
    name: "power",
    about: "power cuts of OSDs on disks that forget and tear what was not synced: 3 cuts a step",
    steps: 34,
    stepSeconds: 200,
    step: (number) => ({
      program: "test/integration/power.test.js",
      env: { DSS_POWER_ROUNDS: "3", DSS_POWER_SEED: String(number) },
    }),
  },
  {
    name: "failures",
    about: "fio verifies while processes are killed or stopped and links are cut: 10 times each",
    steps: 2 * REPEATS,
    stepSeconds: 240,
    step: failuresStep,
    summary: failuresSummary,
  },
  {
    name: "balance",
    about: "an OSD away, joining, drained and lost: bytes moved, client's share, copies kept",
    steps: BALANCE_STEPS.length,
    stepSeconds: 180,
    step: (number) => ({
      program: "test/campaign/balance.js",
      args: [BALANCE_STEPS[number - 1] ?? ""],
    }),
  },
  {
    name: "posix-suite",
    about: "pjdfstest of --suite-dir on the mount, as root",
    steps: POSIX_STEPS,
    stepSeconds: 600,
    step: posixStep,
    summary: posixSummary,
  },
  {
    name: "stressors",
    about: "stress-ng, dbench, PostgreSQL, SQLite, git, a C build, fio; five of --suite-dir",
    steps: STRESSOR_STEPS,
    stepSeconds: 300,
    step: stressorStep,
    summary: stressorSummary,
  },
  {
    name: "fsx",
    about: "an hour of xfstests' fsx of --suite-dir, another seed every 75 s",
    steps: FSX_STEPS,
    stepSeconds: 300,
    step: fsxStep,
    summary: fsxSummary,
  },
  {
    name: "differential",
    about: "100,000 random operations through two mounts beside a local file system",
    steps: 10,
    stepSeconds: 300,
    step: (number) => ({
      program: "test/campaign/differential.js",
      args: ["--seed", String(1_000 + number * 100), "--seeds", "20", "--length", "500"],
    }),
  },
  {
    name: "coherence",
    about: "100,000 rounds of two mounts; a leader and a third mount are killed in each step",
    steps: COHERENCE_STEPS,
    stepSeconds: 300,
    step: coherenceStep,
    summary: coherenceSummary,
  },
  {
    name: "random-operations",
    about: "random operations on the mount beside a local file, with cold reads between",
    steps: 20,
    stepSeconds: 120,
    step: (number) => ({
      program: "test/campaign/soak.js",
      args: ["random", String(number)],
    }),
  },
  {
    name: "worker-kill",
    about:
      "kill -9 of the mount's worker during cp -r, git commit, pgbench and saves, 20 times each",
    steps: 20,
    stepSeconds: 240,
    step: (number) => ({ program: "test/campaign/worker-kill.js", args: [String(number)] }),
  },
  {
    name: "fio-verify",
    about: "fio writes and verifies on mount and volume while OSDs are killed and restarted",
    steps: 12,
    stepSeconds: 150,
    step: (number) => ({ program: "test/campaign/soak.js", args: ["fio", String(number)] }),
  },
  {
    name: "soak",
    about: "fio on mount and volume, small files, an OSD restarted every five minutes; flat memory",
    steps: 1,
    stepSeconds: 3_500,
    step: (number, folder) => ({
      program: "test/campaign/hour.js",
      args: [String(number), "55", join(folder, "soak.memory.json")],
    }),
  },
  {
    name: "volume-model",
    about: "20,000 random operations on volumes, snapshots, clones and differences over NBD",
    steps: 10,
    stepSeconds: 300,
    step: (number) => ({
      program: "test/integration/nbd/volume-model.test.js",
      env: {
        DSS_MODEL_SEED: String(100 + number),
        DSS_MODEL_OPERATIONS: "2000",
        DSS_MODEL_KILL_EVERY: "400",
      },
    }),
  },
  {
    name: "nbd-fuzz",
    about: "1,000,000 mutated frames of NBD negotiation and transmission, memory flat",
    steps: 4,
    stepSeconds: 120,
    step: (number) => ({
      program: "test/fuzz/nbd.test.js",
      env: { FUZZ_SEED: String(number), FUZZ_FRAMES: "125000", TAP_TIMEOUT: "480" },
    }),
  },
  {
    name: "nbd-interop",
    about: "libnbd, qemu, nbdkit, fio on a cluster; killed transfers; figures; Linux, in memory",
    steps: INTEROP_STEPS.length + 1,
    stepSeconds: 420,
    step: (number) => {
      const name = INTEROP_STEPS[number - 1];
      if (name === undefined) return { program: "test/campaign/nbd-kernel-suite.js" };
      return { program: "test/campaign/nbd-interop-suite.js", env: { DSS_INTEROP: name } };
    },
  },
  {
    name: "guest-root",
    about: "a machine on a volume as its root, while servers and OSDs are killed; then fsck",
    steps: 4,
    stepSeconds: 180,
    step: (number) => ({
      program: "test/campaign/guest-root.js",
      env: { GUEST_ROOT_SEED: String(number) },
    }),
  },
  {
    name: "attach",
    about: "a supervised server is killed 10 times under fio; loop device and takeover: 5 rounds",
    steps: 10,
    stepSeconds: 90,
    step: (number) =>
      number % 2 === 1
        ? { program: "test/integration/nbd/supervisor.test.js", env: { DSS_SERVER_DEATHS: "10" } }
        : {
            program: "test/integration/nbd/volumes.test.js",
            env: { DSS_SUITE: "attach", DSS_SERVER_DEATHS: "3" },
          },
  },
  {
    name: "bit-flips",
    about: "200 random bits flip in data, index and log of one OSD at a time: 10 clusters",
    steps: 10,
    stepSeconds: 150,
    step: (number) => ({
      program: "test/integration/bit-flips.test.js",
      env: { DSS_FLIPS: "20", DSS_FLIPS_AT_ONCE: "10", DSS_FLIP_SEED: String(100 + number) },
    }),
  },
  {
    name: "simulator",
    about: "1,000 seeds of the deterministic simulator, 50 a step, all scenarios in turn",
    steps: 20,
    stepSeconds: 300,
    step: (number) => ({
      program: "test/sim/main.js",
      args: ["--rotate", "--seed", String(SIMULATOR_FIRST + (number - 1) * 50), "--seeds", "50"],
    }),
  },
];

interface State {
  format: typeof FORMAT;
  done: number;
  /** Seconds of each finished step. */
  seconds: number[];
  failed?: { step: number; at: string; log: string };
}

interface Folders {
  /** State and logs. */
  folder: string;
  /** Published suites; empty when none was named. */
  suites: string;
}

function readState(path: string): State {
  if (!existsSync(path)) return { format: FORMAT, done: 0, seconds: [] };
  try {
    const state = JSON.parse(readFileSync(path, "utf8")) as State;
    if (state.format === FORMAT && Number.isInteger(state.done) && state.done >= 0) return state;
  } catch (cause) {
    if (!(cause instanceof SyntaxError)) throw cause;
  }
  throw new UsageError(`${path} is no state of a campaign: remove it, or start with --restart`);
}

/** Whole or not at all: a campaign may be stopped at any moment. */
function writeState(path: string, state: State): void {
  writeFileSync(`${path}.new`, `${JSON.stringify(state, null, 2)}\n`);
  renameSync(`${path}.new`, path);
}

const children = new Set<number>();

/** Runs a built program; its output goes to the terminal and to a log. */
async function runStep(
  campaign: Campaign,
  number: number,
  { folder, suites }: Folders,
  log: string,
): Promise<boolean> {
  const { program, args = [], env = {} } = campaign.step(number, folder, suites);
  const path = join(BUILD, program);
  if (!existsSync(path)) throw new UsageError(`${program} is not built: run npm run build`);
  const limitMs = campaign.stepSeconds * 4_000;
  const child = spawn(process.execPath, ["--enable-source-maps", path, ...args], {
    cwd: ROOT,
    detached: true, // Its own group, so that a step that hangs ends with its children.
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, TAP_TIMEOUT: String(Math.ceil(limitMs / 1000)), ...env },
  });
  const pid = child.pid ?? 0;
  children.add(pid);
  writeFileSync(log, ""); // Grows with the step, so that one may look.
  for (const stream of [child.stdout, child.stderr]) {
    stream.on("data", (chunk: Buffer) => appendFileSync(log, chunk));
  }
  // Asked first, so that a cluster is taken down; made to after a while.
  const timers = [
    setTimeout(() => toGroup(pid, "SIGTERM"), limitMs),
    setTimeout(() => toGroup(pid, "SIGKILL"), limitMs + 30_000),
  ];
  const code = await new Promise<number | null>((done, fail) => {
    child.once("error", fail);
    child.once("close", done);
  });
  for (const timer of timers) clearTimeout(timer);
  children.delete(pid);
  return code === 0;
}

function toGroup(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(-pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

async function run(campaign: Campaign, folders: Folders, minutes: number): Promise<number> {
  const { folder } = folders;
  const path = join(folder, `${campaign.name}.json`);
  const state = readState(path);
  const start = performance.now();
  const deadline = start + minutes * 60_000;
  console.log(`${campaign.name}: ${state.done} of ${campaign.steps} steps are done; ${path}`);
  while (state.done < campaign.steps) {
    const number = state.done + 1;
    // A step that cannot end in time is left for the next part.
    const expected = Math.max(campaign.stepSeconds, state.seconds.at(-1) ?? 0) * 1000;
    if (performance.now() + expected > deadline && performance.now() > start + 1_000) {
      for (const line of campaign.summary?.(folder).lines ?? []) console.log(line);
      console.log(`${minutes} minutes are used up; run it again to go on with step ${number}`);
      return EXIT_UNFINISHED;
    }
    const log = join(folder, `${campaign.name}-${number}.log`);
    const begin = performance.now();
    const good = await runStep(campaign, number, folders, log);
    const seconds = (performance.now() - begin) / 1000;
    console.log(
      `${good ? "ok" : "FAILED"} ${campaign.name} step ${number} of ${campaign.steps}: ` +
        `${seconds.toFixed(1)} s, ${log}`,
    );
    if (!good) {
      state.failed = { step: number, at: new Date().toISOString(), log };
      writeState(path, state);
      const end = readFileSync(log, "utf8").trim().split("\n").slice(-60);
      console.log(end.map((line) => `  | ${line}`).join("\n"));
      return 1;
    }
    delete state.failed;
    state.done = number;
    state.seconds.push(Math.round(seconds * 10) / 10);
    writeState(path, state);
  }
  console.log(`${campaign.name}: complete, ${campaign.steps} steps`);
  const summary = campaign.summary?.(folder);
  for (const line of summary?.lines ?? []) console.log(line);
  return summary?.good === false ? 1 : 0;
}

function defaultFolder(): string {
  return join(process.env["XDG_STATE_HOME"] || join(homedir(), ".local", "state"), "dss-campaign");
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      minutes: { type: "string", default: String(MINUTES_MAX) },
      "suite-dir": { type: "string" },
      "state-dir": { type: "string" },
      restart: { type: "boolean", default: false },
    },
  });
  const folder = resolve(values["state-dir"] ?? defaultFolder());
  const named = values["suite-dir"] ?? process.env["DSS_SUITE_DIR"] ?? "";
  const suites = named === "" ? "" : resolve(named);
  const minutes = Number(values.minutes);
  if (!(minutes > 0 && minutes <= MINUTES_MAX)) {
    throw new UsageError(`--minutes ${values.minutes}: give a number up to ${MINUTES_MAX}`);
  }
  const [name] = positionals;
  if (positionals.length > 1) throw new UsageError("one campaign at a time");
  if (name === undefined) {
    for (const campaign of CAMPAIGNS) {
      const { done, failed } = readState(join(folder, `${campaign.name}.json`));
      const state = failed === undefined ? `${done} of ${campaign.steps} done` : "FAILED";
      console.log(`${campaign.name.padEnd(20)} ${state.padEnd(16)} ${campaign.about}`);
    }
    return 0;
  }
  const campaign = CAMPAIGNS.find((each) => each.name === name);
  if (campaign === undefined) {
    const names = CAMPAIGNS.map((each) => each.name).join(", ");
    throw new UsageError(`there is no campaign "${name}"; there are: ${names}`);
  }
  mkdirSync(folder, { recursive: true });
  if (values.restart) {
    writeState(join(folder, `${name}.json`), { format: FORMAT, done: 0, seconds: [] });
  }
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.once(signal, () => {
      for (const pid of children) toGroup(pid, "SIGTERM");
    });
  }
  return await run(campaign, { folder, suites }, minutes);
}

await runProgram("campaign", main);
