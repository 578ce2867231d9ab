/** What a mount holds at this moment, for people (`.dss/status`). */
import type { NodeTable } from "./node-table.js";

/** Open files that are named. */
const FILES_MAX = 200;

export interface MountReport {
  inodes: number;
  capabilities: Record<string, number>;
  open: { ino: number; opens: number; writers: number; size: number; capability: string }[];
  openFiles: number;
  recalls: number;
}

export function mountReport(table: NodeTable): MountReport {
  const report: MountReport = {
    inodes: table.size,
    capabilities: { none: 0, shared: 0, sole: 0, exclusive: 0 },
    open: [],
    openFiles: 0,
    recalls: 0,
  };
  for (const node of table.all()) {
    report.capabilities[node.mode]!++;
    if (node.recall !== undefined) report.recalls++;
    if (node.opens === 0) continue;
    report.openFiles++;
    if (report.open.length >= FILES_MAX) continue;
    const { ino, opens, writers, size, mode } = node;
    report.open.push({ ino, opens, writers, size, capability: mode });
  }
  return report;
}
