/**
 * Tables of figures that are measured at growing sizes, and how the cost of one unit has grown from
 * the smallest size to the largest. Pure.
 */
import { formatSize } from "../../../cli/sizes.js";
import type { Machine } from "../measure.js";
import { lessIsBetter, markdownTable, shown, type Unit } from "../report.js";

export interface Column {
  readonly name: string;
  readonly unit: Unit;
  /** The figure is of all that is there: divided by the size it is the cost of one. */
  readonly whole?: boolean;
}

/** null: there is nothing to measure at this size. */
export type Figure = number | null;

export interface Row {
  readonly size: number;
  readonly figures: readonly Figure[];
}

export interface Heading {
  readonly title: string;
  /** What grows. */
  readonly what: string;
  /** Sizes are bytes. */
  readonly inBytes?: boolean;
  readonly columns: readonly Column[];
}

export interface GrowthTable extends Heading {
  readonly rows: readonly Row[];
}

export interface GrowthFailure {
  readonly theme: string;
  readonly message: string;
}

export interface GrowthDocument {
  readonly format: 1;
  readonly kind: "growth";
  readonly commit: string;
  readonly date: string;
  readonly seconds: number;
  readonly machine: Machine;
  /** Which sizes were measured. */
  readonly profile: string;
  readonly tables: readonly GrowthTable[];
  readonly failures: readonly GrowthFailure[];
}

const isRate = ({ unit }: Column): boolean => !lessIsBetter(unit);

/** How many times the cost at the smallest size that at the largest is. */
export interface CostGrowth {
  /** Of one unit: of the size where the figure is of all, else one operation. */
  readonly perUnit: number;
  /** Of all, where the figure is of all. */
  readonly whole?: number;
}

/** undefined: fewer than two sizes have a figure. */
export function growthOf({ columns, rows }: GrowthTable, index: number): CostGrowth | undefined {
  const column = columns[index]!;
  const known = rows.flatMap(({ size, figures }) => {
    const figure = figures[index] ?? null;
    return figure === null ? [] : { size, figure };
  });
  const [first, last] = [known[0], known.at(-1)];
  if (first === undefined || last === undefined || first === last) return undefined;
  const times = last.figure / first.figure;
  if (isRate(column)) return { perUnit: 1 / times };
  if (column.whole !== true) return { perUnit: times };
  return { perUnit: (times * first.size) / last.size, whole: times };
}

const growthText = (value: number): string => `× ${Number(value.toPrecision(2))}`;

export function growthLine(table: GrowthTable): string {
  const growths = table.columns.flatMap(({ name }, index) => {
    const growth = growthOf(table, index);
    if (growth === undefined) return [];
    const whole = growth.whole === undefined ? "" : ` (${growthText(growth.whole)} in all)`;
    return `${name} ${growthText(growth.perUnit)}${whole}`;
  });
  const [smallest, largest] = [table.rows[0], table.rows.at(-1)];
  if (smallest === undefined || largest === undefined || growths.length === 0) {
    return "largest / smallest: too few sizes were measured";
  }
  const sizes = `${sizeText(table, largest.size)} / ${sizeText(table, smallest.size)}`;
  return `largest / smallest (${sizes}): cost per unit: ${growths.join("; ")}`;
}

const grouped = (value: number): string => Math.round(value).toLocaleString("en-US");
const sizeText = ({ inBytes }: Heading, size: number): string =>
  inBytes === true ? formatSize(size) : grouped(size);
const figureText = (figure: Figure): string =>
  figure === null ? "–" : figure >= 1000 ? grouped(figure) : shown(figure);

/** One row in one line, for who waits. */
export function describeRow(heading: Heading, { size, figures }: Row): string {
  const each = heading.columns.map(
    ({ name, unit }, index) => `${name} ${figureText(figures[index] ?? null)} ${unit}`,
  );
  return `${heading.title}: ${sizeText(heading, size)}: ${each.join("; ")}`;
}

function tableText(table: GrowthTable): string {
  const head = [table.what, ...table.columns.map(({ name, unit }) => `${name} (${unit})`)];
  const rows = table.rows.map(({ size, figures }) => [
    sizeText(table, size),
    ...figures.map(figureText),
  ]);
  return [`### ${table.title}`, "", markdownTable(head, rows), "", growthLine(table)].join("\n");
}

/** The whole document for a page of the documentation. */
export function markdownOf(document: GrowthDocument): string {
  const { commit, date, seconds, machine, profile, tables, failures } = document;
  return [
    `Commit ${commit}, ${date}, ${Math.round(seconds)} s in all; ${machine.processors}, ` +
      `${formatSize(machine.memoryBytes)}, Linux ${machine.kernel}, Node ${machine.node}; ` +
      `sizes: ${profile}`,
    ...tables.map(tableText),
    ...failures.map(({ theme, message }) => `FAILED: ${theme}: ${message.split("\n", 1)[0]}`),
  ].join("\n\n");
}

/** Of figures that were measured together, each one's values of all runs. */
export function transpose(runs: readonly (readonly number[])[]): number[][] {
  return (runs[0] ?? []).map((_, index) => runs.map((run) => run[index]!));
}
