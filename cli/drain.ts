/** `dss osd drain`: moves everything off an OSD, shows how far it is, and says when it is safe. */
import { setTimeout as sleep } from "node:timers/promises";
import { DssError } from "../cluster/base/errors.js";
import type { OsdId } from "../cluster/base/ids.js";
import { allPgs, hasFlag, type ClusterMap } from "../cluster/map/cluster-map.js";
import type { ClusterClient, OsdReport } from "./context.js";
import { recoveryOf } from "./gather.js";
import { Progress } from "./progress.js";
import { formatSize } from "./sizes.js";
import { recoveryLine } from "./status.js";

const LOOK_MS = 500;

/** Refuses what could never end. Errors: Busy. */
export function checkDrain(map: ClusterMap, id: OsdId): void {
  if (hasFlag(map, "norebalance")) {
    throw new DssError("Busy", "nothing would move: norebalance is set", {
      hint: "dss cluster unset norebalance",
    });
  }
  const rest = map.osds.filter((osd) => osd.id !== id && osd.in && osd.weight > 0);
  const pool = [...map.pools].sort((a, b) => b.replicas - a.replicas)[0];
  if (pool === undefined || rest.length >= pool.replicas) return;
  const text =
    `without osd.${id} only ${rest.length} OSDs are in, ` +
    `and pool ${pool.name} keeps ${pool.replicas} copies`;
  throw new DssError("Busy", text, { hint: "add an OSD first: dss osd start ID" });
}

/** Returns when no placement group counts on the OSD and its own copies are gone. */
export async function drain(client: ClusterClient, id: OsdId): Promise<void> {
  checkDrain(client.needMap(), id);
  await client.admin({ op: "osdOut", id });
  const progress = new Progress(`osd.${id}`);
  let most = 0;
  try {
    for (;;) {
      await client.refresh();
      const map = client.needMap();
      const osd = client.needOsd(id);
      if (osd.in) {
        throw new DssError("Conflict", `osd.${id} was put in again: it is not drained`);
      }
      const reports = await client.osdReports();
      const left = leftOn(map, reports, id);
      if (left.pgs === 0) return;
      most = Math.max(most, left.pgs);
      const recovery = recoveryOf(map, reports);
      const moving = recovery.objectsLeft > 0 ? `; ${recoveryLine(recovery)}` : "";
      const held = `${formatSize(left.bytes)} in ${left.objects} objects`;
      const text = `${left.pgs} placement groups are left with ${held}${moving}`;
      progress.update(most - left.pgs, most, text);
      await sleep(LOOK_MS);
    }
  } finally {
    progress.end();
  }
}

/** What depends on the OSD or is still on its disk. */
function leftOn(
  map: ClusterMap,
  reports: readonly OsdReport[],
  id: OsdId,
): { pgs: number; objects: number; bytes: number } {
  const left = new Map<number, { objects: number; bytes: number }>();
  for (const { pg, entry } of allPgs(map)) {
    if (entry.inSync.includes(id)) left.set(pg, { objects: 0, bytes: 0 });
  }
  const own = reports.find(({ osd }) => osd.id === id)?.status?.pgs ?? [];
  for (const { pg, objects, bytes } of own) {
    if (left.has(pg) || objects > 0) left.set(pg, { objects, bytes });
  }
  const sum = (of: (each: { objects: number; bytes: number }) => number): number =>
    [...left.values()].reduce((total, each) => total + of(each), 0);
  return { pgs: left.size, objects: sum((each) => each.objects), bytes: sum((each) => each.bytes) };
}
