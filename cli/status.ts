/** `dss status`: the whole cluster on one screen, once or again every second. */
import type { Command } from "commander";
import { setTimeout as sleep } from "node:timers/promises";
import type { ClusterClient } from "./context.js";
import { leaderStatus, sample, viewOf, type Sample, type StatusView } from "./gather.js";
import { examples, useCluster, withJson } from "./options.js";
import { printJson, printLine } from "./output.js";
import { formatSize } from "./sizes.js";

/** Between the two looks from which a single answer has its rates. */
const SAMPLE_MS = 50;
const WATCH_MS = 1_000;

export function register(command: Command): void {
  withJson(command)
    .option("-w, --watch", "show it again every second until Ctrl-C")
    .action(async (options: { json?: boolean; watch?: boolean }) => {
      const print = (view: StatusView): void => {
        if (options.json === true) printJson(view);
        else printLine(describe(view));
      };
      await useCluster(command, async (client) => {
        let before = await sample(client);
        if (options.watch !== true) {
          print((await look(client, before, SAMPLE_MS)).view);
          return;
        }
        // Ends with the process: Ctrl-C, or the reader of a pipe going away.
        for (let first = true; ; first = false) {
          const { view, now } = await look(client, before, first ? SAMPLE_MS : WATCH_MS);
          before = now;
          if (process.stdout.isTTY && options.json !== true) process.stdout.write("\x1b[2J\x1b[H");
          print(view);
        }
      });
    });
  examples(command, "dss status", "dss status --json | jq .health.status", "dss status --watch");
}

async function look(
  client: ClusterClient,
  before: Sample,
  pauseMs: number,
): Promise<{ view: StatusView; now: Sample }> {
  const [leader] = await Promise.all([
    leaderStatus(client),
    sleep(Math.max(0, before.atMs + pauseMs - performance.now())),
  ]);
  if (pauseMs === WATCH_MS) await client.refresh();
  const now = await sample(client);
  return { view: viewOf(client, client.needMap(), leader, before, now), now };
}

/** Once, for other commands. */
export async function currentStatus(client: ClusterClient): Promise<StatusView> {
  const before = await sample(client);
  return (await look(client, before, 0)).view;
}

export function describe(view: StatusView): string {
  const { health, osds, mds, pgs, usage, io, clients, recovery, flags, workProfile } = view;
  const up = osds.filter((osd) => osd.up).length;
  const inside = osds.filter((osd) => osd.in).length;
  const standbys = mds.standbys.map((id) => `mds.${id}`).join(", ") || "none";
  const leader = mds.leader === null ? "no leader" : `mds.${mds.leader} leads`;
  const lines = [
    `cluster  ${view.clusterId}`,
    `health   ${health.status}`,
    ...health.checks.map((check) => `         ${check.code}: ${check.summary}`),
    `mds      ${leader}; standby: ${standbys}`,
    `osds     ${osds.length}: ${up} up, ${inside} in (map epoch ${view.epoch})`,
    `pgs      ${pgs.total} in ${view.pools} pool${view.pools === 1 ? "" : "s"}: ${pgLine(pgs)}`,
    ...(recovery.objectsLeft > 0 ? [`recovery ${recoveryLine(recovery)}`] : []),
    ...purgeLines(view.purges),
    ...(flags.length > 0 ? [`flags    ${flags.join(", ")}`] : []),
    ...(workProfile === null ? [] : [`profile  ${workProfile}`]),
    `usage    ${formatSize(usage.used)} used, ${formatSize(usage.available)} available of ` +
      `${formatSize(usage.total)} (all copies)`,
    `clients  ${clientLine(clients)}`,
    `io       read ${formatSize(io.readBytesPerSecond)}/s (${io.readOps}/s), ` +
      `write ${formatSize(io.writeBytesPerSecond)}/s (${io.writeOps}/s), ` +
      `recovery ${formatSize(io.recoveryBytesPerSecond)}/s`,
  ];
  return lines.join("\n");
}

const PG_STATES = [
  "clean",
  "degraded",
  "recovering",
  "backfilling",
  "misplaced",
  "inactive",
  "down",
  "inconsistent",
  "scrubbing",
] as const;

/** How much is left, how fast it goes and how long it takes. */
export function recoveryLine(recovery: StatusView["recovery"]): string {
  const { objectsLeft, bytesLeft, bytesPerSecond, secondsLeft } = recovery;
  const left = `${objectsLeft} object${objectsLeft === 1 ? "" : "s"} (${formatSize(bytesLeft)}) left`;
  if (secondsLeft === null) return `${left}, nothing moves`;
  return `${left}, ${formatSize(bytesPerSecond)}/s, about ${formatSeconds(secondsLeft)}`;
}
function formatSeconds(seconds: number): string {
  if (seconds < 120) return `${seconds} s`;
  return seconds < 7_200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

/** Deletes and rollbacks that go on in the background. */
export function purgeLines({ entries, bytes, volumes }: StatusView["purges"]): string[] {
  const lines = volumes.map(({ about, percent }) => `${about}: ${percent} % done`);
  const files = entries - volumes.length;
  if (files > 0) {
    const what = files === 1 ? "a deleted or cut file" : `${files} deleted or cut files`;
    lines.push(`freeing the space of ${what}: up to ${formatSize(bytes)}`);
  }
  return lines.map((line, index) => `${index === 0 ? "purges   " : "         "}${line}`);
}

function pgLine(pgs: StatusView["pgs"]): string {
  const parts = PG_STATES.filter((name) => name === "clean" || pgs[name] > 0).map(
    (name) => `${pgs[name]} ${name}`,
  );
  return parts.join(", ");
}

function clientLine(clients: StatusView["clients"]): string {
  if (clients.length === 0) return "none";
  const shown = clients
    .slice(0, 8)
    .map(({ type, mount }) => (mount === "" ? type : `${type} ${mount}`));
  if (clients.length > shown.length) shown.push(`${clients.length - shown.length} more`);
  return `${clients.length}: ${shown.join(", ")}`;
}
