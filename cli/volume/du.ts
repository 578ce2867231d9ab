/** `dss volume du`: what volumes really take, as the OSDs know it. */
import type { Command } from "commander";
import { DssError } from "../../cluster/base/errors.js";
import { formatPg, pgId } from "../../cluster/base/ids.js";
import { osdOf, poolOf } from "../../cluster/map/cluster-map.js";
import type { Volume } from "../../mds/proto.js";
import type { ClusterClient } from "../context.js";
import { examples, withJson } from "../options.js";
import { printJson, printTable } from "../output.js";
import { formatSize } from "../sizes.js";
import { infoOf, inSession } from "./session.js";

/** Volumes asked about at a time: each question goes to every placement group of a pool. */
const AT_ONCE = 2;

export interface VolumeUsage {
  name: string;
  /** Bytes. `used`: what one copy takes; `stored`: all of them. */
  provisioned: number;
  used: number;
  stored: number;
  objects: number;
  replicas: number;
}

export function registerUsage(parent: Command): void {
  const usage = withJson(
    parent
      .command("du")
      .description("show how much space volumes really take")
      .argument("[names...]", "volumes (all of them)"),
  );
  usage.action(async (names: string[], options: { json?: boolean }) => {
    const rows = await inSession(usage, async (mds, client) => {
      const volumes =
        names.length > 0
          ? await Promise.all([...new Set(names)].map((name) => infoOf(mds, name)))
          : ((await mds.call({ op: "volumeList" })).answer.volumes ?? []);
      const { inParallel } = await import("../../cluster/base/parallel.js");
      const found: VolumeUsage[] = [];
      await inParallel(volumes, AT_ONCE, async (volume) => {
        found.push(await usageOf(client, volume));
      });
      return found.sort((a, b) => a.name.localeCompare(b.name));
    });
    if (options.json === true) {
      printJson(rows);
      return;
    }
    const cells = rows.map((row) => [
      row.name,
      formatSize(row.provisioned),
      formatSize(row.used),
      formatSize(row.stored),
      row.objects,
    ]);
    printTable(["VOLUME", "PROVISIONED", "USED", "ON ALL COPIES", "OBJECTS"], cells);
  });
  examples(usage, "dss volume du", "dss volume du mydevice --json");
}

/** Errors: NotActive, when a placement group has nobody to ask. */
export async function usageOf(client: ClusterClient, volume: Volume): Promise<VolumeUsage> {
  const map = client.needMap();
  const pool = poolOf(map, volume.layout.pool);
  if (pool === undefined) throw new DssError("NotFound", `pool ${volume.layout.pool} is not there`);
  const { name, size, objectPrefix } = volume;
  const sum = { name, provisioned: size, used: 0, stored: 0, objects: 0, replicas: pool.replicas };
  const ask = async (index: number): Promise<void> => {
    const pg = pgId(pool.id, index);
    const { primary, interval, inSync } = map.pgs[pool.id]![index]!;
    const osd = osdOf(map, primary);
    if (osd === undefined) {
      if (inSync.length === 0) return; // Never created: it holds nothing.
      throw new DssError("NotActive", `placement group ${formatPg(pg)} has no primary`, {
        hint: "see dss health detail",
      });
    }
    const request = { pg, interval, prefix: objectPrefix };
    const { objects, allocated } = await client.measureObjects(osd, request);
    sum.used += allocated;
    sum.stored += allocated * inSync.length;
    sum.objects += objects;
  };
  await Promise.all((map.pgs[pool.id] ?? []).map((_, index) => ask(index)));
  return sum;
}
