/**
 * `dss scrub`: has placement groups scrubbed by their primaries, waits, shows how far it is, and
 * says what was found. A primary that goes away is asked anew where the next one is.
 */
import type { Command } from "commander";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";
import type CliProgress from "cli-progress";
import { DssError, isDssError } from "../cluster/base/errors.js";
import { formatPg, parsePg, type OsdId, type PgId } from "../cluster/base/ids.js";
import { allPgs, pgOf } from "../cluster/map/cluster-map.js";
import type { ScrubStatus } from "../osd/proto.js";
import type { ClusterClient } from "./context.js";
import { UsageError } from "./failure.js";
import { examples, useCluster, withJson } from "./options.js";
import { parseOsdId } from "./osd.js";
import { note, printJson, printLine } from "./output.js";
import { FIGURES_MS } from "./gather.js";

const POLL_MS = 250;
/** Where there is no terminal: a line so often. */
const LINE_MS = 10_000;
/** Without any progress for this long the command gives up; the scrubs go on. */
const STUCK_MS = 120_000;

interface Options {
  deep?: boolean;
  json?: boolean;
}
interface Target {
  readonly pg: PgId;
  /** Of the primary's answer; undefined: it must be asked (again). */
  sinceMs: number | undefined;
  askedOsd: OsdId;
  status: ScrubStatus | undefined;
  objects: number;
  isDone: boolean;
}
interface Outcome {
  deep: boolean;
  pgs: number;
  objects: number;
  /** Errors found, and those that could not be repaired. */
  found: number;
  left: number;
  inconsistent: string[];
}

export function register(command: Command): void {
  withJson(command)
    .argument("[what]", "all, osd ID (PGs it is primary of), or pg PG", "all")
    .argument("[which]", "the OSD or the placement group")
    .option("--deep", "also read and verify all bytes of every copy")
    .action(async (what: string, which: string | undefined, options: Options) => {
      const outcome = await useCluster(command, (client) =>
        scrub(client, choose(client, what, which), options),
      );
      if (options.json === true) printJson(outcome);
      else describe(outcome);
      if (outcome.left > 0) {
        throw new DssError("Corrupt", `${outcome.left} errors could not be repaired`, {
          hint: "dss health detail names the objects",
        });
      }
    });
  examples(command, "dss scrub", "dss scrub --deep all", "dss scrub --deep pg 1.7f");
}

function choose(client: ClusterClient, what: string, which: string | undefined): PgId[] {
  const all = [...allPgs(client.needMap())];
  if (what === "all" && which === undefined) return all.map(({ pg }) => pg);
  if (what === "osd" && which !== undefined) {
    const id = parseOsdId(which);
    client.needOsd(id);
    return all.filter(({ entry }) => entry.primary === id).map(({ pg }) => pg);
  }
  if (what === "pg" && which !== undefined) {
    const pg = parsePg(which);
    if (pg === undefined) {
      throw new UsageError(`"${which}" does not name a placement group`, "write POOL.INDEX: 1.7f");
    }
    if (!all.some((each) => each.pg === pg)) {
      throw new DssError("NotFound", `there is no placement group ${which}`, {
        hint: "see dss pg ls",
      });
    }
    return [pg];
  }
  const words = which === undefined ? what : `${what} ${which}`;
  throw new UsageError(`"${words}" is nothing to scrub`, "say all, osd ID or pg PG");
}

async function scrub(
  client: ClusterClient,
  pgs: readonly PgId[],
  options: Options,
): Promise<Outcome> {
  const deep = options.deep === true;
  const targets = pgs.map(
    (pg): Target => ({
      ...{ pg, sinceMs: undefined, askedOsd: -1, status: undefined },
      objects: 0,
      isDone: false,
    }),
  );
  const progress = showProgress(targets, options);
  let movedAt = performance.now();
  let before = "";
  try {
    for (;;) {
      await client.refresh();
      await look(client, targets, deep);
      await Promise.all(targets.filter(mustBeAsked).map((target) => ask(client, target, deep)));
      progress.update();
      if (targets.every(({ isDone }) => isDone)) break;
      const now = targets.map(({ isDone, status }) => `${isDone} ${status?.done}`).join();
      if (now !== before) movedAt = performance.now();
      before = now;
      if (performance.now() - movedAt > STUCK_MS) throw stuck(client, targets);
      await sleep(POLL_MS);
    }
  } finally {
    progress.stop();
  }
  return outcomeOf(targets, deep);
}

const mustBeAsked = ({ sinceMs, isDone }: Target): boolean => sinceMs === undefined && !isDone;

async function ask(client: ClusterClient, target: Target, deep: boolean): Promise<void> {
  const map = client.needMap();
  const primary = pgOf(map, target.pg)?.primary ?? -1;
  const osd = map.osds.find(({ id, up }) => id === primary && up);
  if (osd === undefined) return; // Asked again when there is one.
  try {
    target.sinceMs = await client.startScrub(osd, { pg: target.pg, deep }, FIGURES_MS * 4);
    target.askedOsd = primary;
  } catch (error) {
    if (!isDssError(error)) throw error;
  }
}

async function look(
  client: ClusterClient,
  targets: readonly Target[],
  deep: boolean,
): Promise<void> {
  const reports = await client.osdReports();
  const map = client.needMap();
  for (const target of targets) {
    if (target.isDone || target.sinceMs === undefined) continue;
    const primary = pgOf(map, target.pg)?.primary;
    const report = reports.find(({ osd }) => osd.id === primary)?.status;
    const row = report?.pgs.find(({ pg }) => pg === target.pg);
    if (row?.scrub === undefined) {
      if (primary !== target.askedOsd) target.sinceMs = undefined;
      continue;
    }
    target.status = row.scrub;
    target.objects = row.objects;
    const stamp = deep ? row.scrub.deepMs : row.scrub.lightMs;
    if (stamp >= target.sinceMs) target.isDone = true;
    // Its daemon was started anew, or another one has taken over.
    else if (row.scrub.state === "idle" || primary !== target.askedOsd) target.sinceMs = undefined;
  }
}

function stuck(client: ClusterClient, targets: readonly Target[]): DssError {
  const waiting = targets.filter(({ isDone }) => !isDone).map(({ pg }) => formatPg(pg));
  const shown = waiting.slice(0, 5).join(", ");
  const { epoch } = client.needMap();
  const text = `no progress for ${STUCK_MS / 1000} s (map epoch ${epoch}); not done: ${shown}`;
  return new DssError("TimedOut", text, { hint: "see dss health detail and dss pg ls" });
}

function outcomeOf(targets: readonly Target[], deep: boolean): Outcome {
  const sum = (amount: (status: ScrubStatus) => number): number =>
    targets.reduce((total, { status }) => total + (status === undefined ? 0 : amount(status)), 0);
  return {
    deep,
    pgs: targets.length,
    objects: targets.reduce((total, { objects }) => total + objects, 0),
    found: sum(({ found }) => found),
    left: sum(({ left }) => left),
    inconsistent: targets
      .filter(({ status }) => (status?.left ?? 0) > 0)
      .map(({ pg }) => formatPg(pg)),
  };
}

function describe({ deep, pgs, objects, found, left, inconsistent }: Outcome): void {
  const how = deep ? "read through and verified" : "compared";
  printLine(`${pgs} placement groups with ${objects} objects ${how}`);
  if (found === 0) printLine("nothing wrong");
  else printLine(`${found} errors found, ${found - left} repaired, ${left} left`);
  for (const pg of inconsistent) printLine(`pg ${pg} is inconsistent`);
}

// ---- Progress ----------------------------------------------------------------------------------

interface Progress {
  update(): void;
  stop(): void;
}

// Loaded when a bar is shown: answers in JSON and logs do without.
const load = createRequire(import.meta.url);

function showProgress(targets: readonly Target[], options: Options): Progress {
  const done = (): number => targets.filter(({ isDone }) => isDone).length;
  const objects = (): number =>
    targets.reduce((sum, { isDone, objects: all, status }) => {
      return sum + (isDone ? all : (status?.done ?? 0));
    }, 0);
  if (options.json === true) return { update: () => undefined, stop: () => undefined };
  if (process.stderr.isTTY) {
    const { SingleBar, Presets } = load("cli-progress") as typeof CliProgress;
    const format = "scrub {bar} {value} of {total} PGs, {objects} objects";
    const bar = new SingleBar({ format, hideCursor: true }, Presets.shades_classic);
    bar.start(targets.length, 0, { objects: 0 });
    return {
      update: () => bar.update(done(), { objects: objects() }),
      stop: () => bar.stop(),
    };
  }
  let saidAt = performance.now();
  return {
    update() {
      if (performance.now() - saidAt < LINE_MS) return;
      saidAt = performance.now();
      note(`scrub: ${done()} of ${targets.length} PGs, ${objects()} objects`);
    },
    stop: () => undefined,
  };
}
