/** What commands print: JSON documents, tables and lines on stdout; notes on stderr. */
import type TableClass from "cli-table3";
import { createRequire } from "node:module";
export function printJson(document: unknown): void {
  process.stdout.write(`${JSON.stringify(document, null, 2)}\n`);
}

export function printLine(line = ""): void {
  process.stdout.write(`${line}\n`);
}

/** A message that is not the answer of the command. */
export function note(line: string): void {
  process.stderr.write(`${line}\n`);
}

const BARE = {
  top: "",
  "top-mid": "",
  "top-left": "",
  "top-right": "",
  bottom: "",
  "bottom-mid": "",
  "bottom-left": "",
  "bottom-right": "",
  left: "",
  "left-mid": "",
  mid: "",
  "mid-mid": "",
  right: "",
  "right-mid": "",
  middle: "  ",
};

// Loaded when a table is printed: answers in JSON do without.
const load = createRequire(import.meta.url);

/** Columns without borders: easy to read, and easy for awk. */
export function table(head: readonly string[], rows: readonly (readonly unknown[])[]): string {
  const Table = load("cli-table3") as typeof TableClass;
  const numeric = head.map(
    (_, column) =>
      rows.length > 0 && rows.every((row) => /^-?[\d.]+( [KMGT]?i?B)?$/.test(String(row[column]))),
  );
  const made = new Table({
    head: [...head],
    chars: BARE,
    colAligns: numeric.map((is) => (is ? "right" : "left")),
    style: { head: [], border: [], "padding-left": 0, "padding-right": 0, compact: true },
  });
  for (const row of rows) made.push(row.map((cell) => String(cell)));
  return made
    .toString()
    .split("\n")
    .map((line) => line.trimEnd())
    .join("\n");
}

export function printTable(head: readonly string[], rows: readonly (readonly unknown[])[]): void {
  printLine(table(head, rows));
}
