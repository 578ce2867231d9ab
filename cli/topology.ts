/** `dss topology`: the hosts and OSDs of the ring, their shares, and what each holds. */
import type { Command } from "commander";
import { allPgs, type ClusterMap } from "../cluster/map/cluster-map.js";
import { upSets } from "../cluster/map/placement.js";
import { pointCount } from "../cluster/map/ring.js";
import type { OsdReport } from "./context.js";
import { examples, useCluster, withJson } from "./options.js";
import { printJson, printLine, printTable } from "./output.js";
import { formatSize } from "./sizes.js";

interface OsdRow {
  id: number;
  host: string;
  address: string;
  up: boolean;
  in: boolean;
  weight: number;
  points: number;
  /** Placement groups that belong here, that are here, and that it leads. */
  wanted: number;
  held: number;
  primary: number;
  used: number | null;
  total: number | null;
}

export function register(command: Command): void {
  withJson(command).action(async (options: { json?: boolean }) => {
    const { map, reports } = await useCluster(command, async (client) => ({
      map: client.needMap(),
      reports: await client.osdReports(),
    }));
    const rows = rowsOf(map, reports);
    const hosts = [...new Set(rows.map((row) => row.host))].sort();
    if (options.json === true) {
      const ring = { virtualNodes: map.virtualNodes, points: total(rows, "points") };
      const osds = (host: string): OsdRow[] => rows.filter((row) => row.host === host);
      printJson({
        epoch: map.epoch,
        ring,
        hosts: hosts.map((host) => ({ host, osds: osds(host) })),
        pools: map.pools,
      });
      return;
    }
    printLine(
      `ring: ${total(rows, "points")} points (${map.virtualNodes} for an OSD of weight 1), ` +
        `${hosts.length} host${hosts.length === 1 ? "" : "s"}, map epoch ${map.epoch}`,
    );
    const wanted = total(rows, "wanted");
    const head = [
      "HOST",
      "OSD",
      "ADDRESS",
      "UP",
      "IN",
      "WEIGHT",
      "SHARE",
      "PGS",
      "PRIMARY",
      "USED",
    ];
    const cells = rows.map((row) => [
      row.host,
      `osd.${row.id}`,
      row.address,
      row.up ? "up" : "down",
      row.in ? "in" : "out",
      row.weight,
      wanted === 0 ? "-" : `${((100 * row.wanted) / wanted).toFixed(1)} %`,
      row.held,
      row.primary,
      row.used === null ? "?" : formatSize(row.used),
    ]);
    printTable(head, cells);
  });
  examples(command, "dss topology", "dss topology --json");
}

function total(rows: readonly OsdRow[], member: "points" | "wanted"): number {
  return rows.reduce((sum, row) => sum + row[member], 0);
}

function rowsOf(map: ClusterMap, reports: readonly OsdReport[]): OsdRow[] {
  const wanted = new Map<number, number>();
  const held = new Map<number, number>();
  const primary = new Map<number, number>();
  const add = (counts: Map<number, number>, id: number): void =>
    void counts.set(id, (counts.get(id) ?? 0) + 1);
  for (const pool of map.pools)
    for (const set of upSets(map, pool)) for (const id of set) add(wanted, id);
  for (const { entry } of allPgs(map)) {
    for (const id of entry.inSync) add(held, id);
    if (entry.primary >= 0) add(primary, entry.primary);
  }
  return reports
    .map(({ osd, status }) => ({
      id: osd.id,
      host: osd.host,
      address: `${osd.address.host}:${osd.address.port}`,
      up: osd.up,
      in: osd.in,
      weight: osd.weight,
      points: osd.in ? pointCount(osd.weight, map.virtualNodes) : 0,
      wanted: wanted.get(osd.id) ?? 0,
      held: held.get(osd.id) ?? 0,
      primary: primary.get(osd.id) ?? 0,
      used: status?.used ?? null,
      total: status?.total ?? null,
    }))
    .sort((a, b) => a.host.localeCompare(b.host) || a.id - b.id);
}
