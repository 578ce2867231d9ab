/**
 * What happens to a cluster while two of its mounts are compared: the leading metadata server dies,
 * and a third mount dies that holds capabilities and locks. Its data that were synced must be
 * there afterwards, its other data be old or new, the same for both; its locks must be free.
 */
import { constants, mkdirSync } from "node:fs";
import { join } from "node:path";
import type { Prng } from "../../cluster/base/prng.js";
import {
  Agent,
  expectBytes,
  expectEqual,
  Incoherence,
  Trace,
  type Call,
} from "../posix/coherence/agent.js";
import { pairFolder } from "../posix/coherence/run.js";
import type { Cluster } from "../support/cluster.js";
import { succeed } from "../support/process.js";
import type { Teardown } from "../support/temp.js";

export interface Place {
  readonly cluster: Cluster;
  readonly mounts: readonly [string, string];
  readonly seed: number;
  readonly pairs: number;
  readonly random: Prng;
}
export type Violence = () => Promise<void>;

const { O_RDWR, O_WRONLY, O_CREAT } = constants;
const BLOCK = 4096;
const BLOCKS = 8;
const FILES = 20;

/** `kill -9` of the leader; it comes back as a standby. */
export function leaderKill({ cluster }: Place): Violence {
  return async () => {
    await cluster.kill([await cluster.leaderPid()]);
    await cluster.up();
  };
}

const block = (version: number): Buffer => Buffer.alloc(BLOCK, `third mount, version ${version};`);

/** The third mount is made now; what is returned puts it to work and kills it. */
export async function clientKill(t: Teardown, place: Place): Promise<Violence> {
  const { cluster, mounts, random } = place;
  const third = await cluster.mountAgain("third");
  mkdirSync(join(mounts[0], "violence"));
  const trace = new Trace();
  const agent = (name: string, mount: string): Agent =>
    new Agent(t, name, join(mount, "violence"), trace);
  return async () => {
    const victim = agent("C", third);
    const survivors = [agent("D", mounts[0]), agent("E", mounts[1])] as const;
    try {
      await holdThings(victim);
      const looking = lookAround(victim, place);
      const waiting = survivors.map((each, i) => waitForLock(each, i));
      await new Promise((done) => setTimeout(done, random.int(50, 300)));
      await killMount(t, cluster, third);
      victim.kill();
      await looking;
      await Promise.all(waiting);
      await lookAtRemains(survivors);
    } catch (error) {
      const { message } = error as Error;
      throw new Incoherence(`a client was killed: ${message}\n${trace.toString()}`, {
        cause: error,
      });
    }
    for (const each of survivors) each.kill();
  };
}

/** Synced and unsynced data, a directory of its own, locks. */
async function holdThings(victim: Agent): Promise<void> {
  await victim.call("open", "data", "data", O_RDWR | O_CREAT);
  for (let i = 0; i < BLOCKS; i++) await victim.pwrite("data", i * BLOCK, block(1));
  await victim.call("fsync", "data");
  for (let i = 0; i < BLOCKS; i += 2) await victim.pwrite("data", i * BLOCK, block(2));
  await victim.call("mkdir", "own");
  for (let i = 0; i < FILES; i++) {
    await victim.write(`own/f${i}`, `file ${i}`, O_WRONLY | O_CREAT);
    await victim.call("open", "one", `own/f${i}`, O_RDWR);
    await victim.call("fsync", "one");
    await victim.call("close", "one");
  }
  for (let i = FILES; i < 2 * FILES; i++) {
    await victim.write(`own/f${i}`, `file ${i}`, O_WRONLY | O_CREAT);
  }
  await victim.call("open", "lock", "lock", O_RDWR | O_CREAT);
  await victim.call("flock", "lock", "ex");
  await victim.call("lockf", "lock", "ex", 0, 10);
}

/** Reads what the pairs work with until the mount is dead, so that it holds much of it. */
async function lookAround(victim: Agent, { seed, pairs }: Place): Promise<void> {
  const NAMES = ["ping", "register", "log", "cut", "map0", "map1", "stat", "count-flock", "over"];
  const calls: Call[] = [];
  for (let pair = 0; pair < pairs; pair++) {
    const folder = `../${pairFolder(seed, pair)}`;
    for (const each of [".", "from", "to", "listed", "race"])
      calls.push(["list", `${folder}/${each}`]);
    for (const each of NAMES)
      calls.push(["stat", `${folder}/${each}`], ["read", `${folder}/${each}`]);
  }
  for (;;) {
    // Names come and go; a dead mount answers nothing more, or that it is not connected.
    const outcomes = await victim.many(calls).catch(() => undefined);
    if (outcomes === undefined) return;
    const isDead = outcomes.some(({ error }) => error === "ENOTCONN" || error === "ECONNABORTED");
    if (isDead) return;
  }
}

async function waitForLock(survivor: Agent, number: number): Promise<void> {
  await survivor.call("open", "lock", "lock", O_RDWR);
  const refused = await survivor.outcome("flock", "lock", "sh");
  expectEqual("error of a lock that the third mount holds", refused.error, "EAGAIN");
  if (number === 0) await survivor.call("flock", "lock", "ex", true);
  else await survivor.call("lockf", "lock", "ex", 5, 10, true);
}

async function killMount(t: Teardown, cluster: Cluster, path: string): Promise<void> {
  const whole = `mount(-supervisor-program.js)? ${path}( |$)`;
  const pids = (await succeed(t, "pgrep", ["-f", whole])).trim().split("\n").map(Number);
  expectEqual("processes of the third mount", pids.length, 2);
  await cluster.kill(pids);
  // A thread of the worker may wait in the kernel for a page, and who reads it for the worker.
  await cluster.ok(["umount", "--force", path]);
}

/** What was synced is there; the rest is old or new, and both say the same. */
async function lookAtRemains([one, other]: readonly [Agent, Agent]): Promise<void> {
  const data = await one.read("data");
  expectBytes(`${other.name} reads "data"`, await other.read("data"), data);
  expectEqual("size of what was synced", data.length, BLOCKS * BLOCK);
  for (let i = 0; i < BLOCKS; i++) {
    const found = data.subarray(i * BLOCK, (i + 1) * BLOCK);
    if (i % 2 === 1 || !found.equals(block(2))) expectBytes(`block ${i}`, found, block(1));
  }
  const names = (await one.call<string[]>("list", "own")).sort();
  expectEqual(`${other.name} lists`, (await other.call<string[]>("list", "own")).sort(), names);
  for (let i = 0; i < FILES; i++) {
    expectBytes(`own/f${i}`, await other.read(`own/f${i}`), Buffer.from(`file ${i}`));
  }
  for (const name of names) {
    const found = await one.read(`own/${name}`);
    expectBytes(`own/${name}`, await other.read(`own/${name}`), found);
    // Data that were not synced may be gone, and never be others.
    const wanted = Buffer.from(`file ${name.slice(1)}`);
    if (found.length > 0) expectBytes(`own/${name}`, found, wanted.subarray(0, found.length));
  }
}
