/**
 * The rows of the comparison with other systems: what is measured, in which unit, and what dss is
 * to reach as a multiple of the best peer of the same run. The workload (workload.ts) measures
 * them; the report (report.ts) judges them.
 */
import type { Unit } from "../report.js";

export interface Row {
  readonly id: string;
  readonly name: string;
  readonly unit: Unit;
  /** At least this multiple of the best peer (of its speed, where the unit is time). */
  readonly goal?: number;
  readonly aim?: number;
  /** At most this, whatever peers need. */
  readonly limit?: number;
  readonly limitAim?: number;
  readonly chart: "files" | "small-files" | "block" | "memory";
}

const row = <const Id extends string>(
  id: Id,
  name: string,
  unit: Unit,
  [goal, aim]: readonly [number, number],
  chart: Row["chart"],
): Row & { readonly id: Id } => ({ id, name, unit, goal, aim, chart });

export const ROWS = [
  row("seq-write", "file: sequential write 1 MiB, fsync at end", "MB/s", [1, 1.1], "files"),
  row("seq-read", "file: sequential read 1 MiB, cold", "MB/s", [1, 1.2], "files"),
  row("rand-write", "file: random write 4 KiB, 16 in flight, direct", "/s", [1.5, 1.8], "files"),
  row("rand-fsync", "file: random write 4 KiB, fsync each", "/s", [1.3, 1.5], "files"),
  row("rand-read", "file: random read 4 KiB, cold, 4 jobs", "/s", [1.4, 1.9], "files"),
  row("mixed", "file: mixed 16 KiB 70/30", "/s", [1.3, 1.8], "files"),
  row("create-1", "create + write 1 KiB, one process", "/s", [4, 6], "small-files"),
  row("stat", "stat, cold", "/s", [1.2, 2], "small-files"),
  row("list", "ls -l, cold", "/s", [1, 1.6], "small-files"),
  row("read-small", "read small files", "/s", [2, 4], "small-files"),
  row("delete", "delete small files", "/s", [1, 1.3], "small-files"),
  row("create-4", "create + write 1 KiB, four processes", "/s", [4, 6], "small-files"),
  row("untar", "untar 3,000 files", "s", [3, 4], "small-files"),
  row("copy", "cp -r of 3,000 files", "s", [2.5, 3], "small-files"),
  row("remove", "rm -r of 6,000 files", "s", [1, 1.7], "small-files"),
  row("dbench", "dbench 4", "MB/s", [2.5, 3.5], "small-files"),
  row("block-write", "block: sequential write 1 MiB, 8 in flight", "MB/s", [1, 1.1], "block"),
  row("block-read", "block: sequential read 1 MiB, 8 in flight, cold", "MB/s", [1, 1.2], "block"),
  row("block-rand-write", "block: random write 4 KiB, 16 in flight", "/s", [1.8, 2.1], "block"),
  row("block-flush", "block: write 4 KiB + flush, one at a time", "/s", [1.4, 1.8], "block"),
  row("block-rand-read", "block: random read 4 KiB, 16 in flight, cold", "/s", [1.8, 2.8], "block"),
  {
    id: "memory",
    name: "memory: the largest storage daemon, peak",
    unit: "MB",
    limit: 250,
    limitAim: 150,
    chart: "memory",
  },
] as const satisfies readonly Row[];

export type RowId = (typeof ROWS)[number]["id"];

/** Rows whose name contains the word; all for an empty one. */
export function chooseRows(word: string): readonly (Row & { readonly id: RowId })[] {
  return ROWS.filter(({ name }) => name.toLowerCase().includes(word.toLowerCase()));
}

export interface Turn {
  readonly run: number;
  readonly system: string;
}

/**
 * Systems take turns, A B C A B C: what changes slowly on a machine (heat, a neighbour, a disk
 * that fills up) then meets all of them alike.
 */
export function alternate(systems: readonly string[], runs: number): Turn[] {
  return Array.from({ length: runs }, (_, run) =>
    systems.map((system) => ({ run, system })),
  ).flat();
}
