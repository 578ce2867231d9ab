/**
 * Runs rounds of the coherence suite: kinds in an order that the seed decides, on one or more
 * pairs of processes at the same time, each pair in a folder of its own. The first result that is
 * stale or wrong ends it, told with its seed, round and the calls that led to it.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { Prng } from "../../../cluster/base/prng.js";
import type { Teardown } from "../../support/temp.js";
import { Agent, Trace, type Pair } from "./agent.js";
import * as data from "./data-rounds.js";
import type { Kind, Round } from "./data-rounds.js";
import * as locks from "./lock-rounds.js";
import * as names from "./name-rounds.js";

export const KINDS = {
  "write and read": data.pingPong,
  "writes beside reads": data.register,
  "append race": data.appends,
  "open, write, close": data.rewriting,
  "truncate while reading": data.truncation,
  mmap: data.mapping,
  "mmap of what grows": data.growing,
  "size and time": data.sizes,
  "rename over an open file": data.replacing,
  rename: names.renames,
  "negative entries": names.absence,
  "link and unlink": names.links,
  "mode, owner, xattr": names.attributes,
  "exclusive creation": names.exclusion,
  symlink: names.symlinks,
  directories: names.directories,
  "readdir while creating": names.listings,
  "flock counter": locks.countingByFlock,
  "fcntl counter": locks.countingByFcntl,
  "lock, refuse, wait": locks.locking,
} as const satisfies Record<string, Kind>;
export type KindName = keyof typeof KINDS;
const NAMES = Object.keys(KINDS) as KindName[];

export interface RunOptions {
  /** The same folder of one file system through two mounts. */
  readonly mounts: readonly [string, string];
  readonly seed: number;
  readonly rounds: number;
  readonly pairs?: number;
  /** Only this kind. */
  readonly only?: KindName;
  /** Of all pairs, after each round. */
  readonly onRound?: (done: number) => void;
}

export interface RunCounts {
  readonly rounds: Record<string, number>;
  readonly milliseconds: Record<string, number>;
  /** Milliseconds of the round that took longest, and which. */
  longestMs: number;
  longest: string;
}

export function describeCounts({ rounds, longest, longestMs }: RunCounts): string {
  const total = Object.values(rounds).reduce((sum, count) => sum + count, 0);
  return (
    `${total} rounds of ${Object.keys(rounds).length} kinds, no stale result; the longest ` +
    `(${longest}) took ${Math.round(longestMs)} ms`
  );
}

/** The folders in which the pairs of this run work. */
export const pairFolder = (seed: number, pair: number): string => `coherence-${seed}-${pair}`;

export async function runRounds(t: Teardown, options: RunOptions): Promise<RunCounts> {
  const { pairs = 1 } = options;
  const counts: RunCounts = { rounds: {}, milliseconds: {}, longestMs: 0, longest: "" };
  const progress = { done: 0, failed: false };
  const running = Array.from({ length: pairs }, (_, pair) =>
    runPair(t, options, { pair, counts, progress }),
  );
  // All of them have ended before anybody hears of the first failure.
  const ended = await Promise.allSettled(running);
  const failed = ended.find((each) => each.status === "rejected");
  if (failed !== undefined) throw failed.reason;
  return counts;
}

async function runPair(
  t: Teardown,
  { mounts, seed, rounds, pairs = 1, only, onRound }: RunOptions,
  shared: { pair: number; counts: RunCounts; progress: { done: number; failed: boolean } },
): Promise<void> {
  const { pair: number, counts, progress } = shared;
  const folder = pairFolder(seed, number);
  mkdirSync(join(mounts[0], folder));
  const random = new Prng(seed * 64 + number);
  const trace = new Trace();
  const agent = (name: string, mount: string): Agent =>
    new Agent(t, name, join(mount, folder), trace);
  const agents = [agent("A", mounts[0]), agent("B", mounts[1])] as const;
  const pair: Pair = { agents, random, trace, isOneCache: mounts[0] === mounts[1] };
  const made = new Map<KindName, Round>();
  const mine = Math.floor(rounds / pairs) + (number < rounds % pairs ? 1 : 0);
  for (let round = 1; round <= mine && !progress.failed; round++) {
    const kind = only ?? random.pick(NAMES);
    trace.mark(`round ${round}: ${kind}`);
    const begin = performance.now();
    try {
      const action = made.get(kind) ?? (await KINDS[kind](pair));
      made.set(kind, action);
      await action(...(random.chance(0.5) ? agents : ([agents[1], agents[0]] as const)));
    } catch (cause) {
      progress.failed = true;
      const at = `seed ${seed}, pair ${number}, round ${round} (${kind})`;
      throw new Error(`${at}: ${(cause as Error).message}\n${trace.toString()}`, { cause });
    }
    const tookMs = performance.now() - begin;
    if (tookMs > counts.longestMs) [counts.longestMs, counts.longest] = [tookMs, kind];
    counts.rounds[kind] = (counts.rounds[kind] ?? 0) + 1;
    counts.milliseconds[kind] = (counts.milliseconds[kind] ?? 0) + tookMs;
    onRound?.(++progress.done);
  }
  for (const each of agents) each.kill();
}
