/**
 * Compiles a struct's row to functions. A loop over the row stores every field of every message
 * under a computed name, which costs more than the rest of a small message; the same written out is
 * an object literal and reads at constant offsets. Fixed fields that follow one another are checked
 * for length at once.
 *
 * The text that is compiled consists of field names of our own rows and of numbers only.
 */
import { assert } from "../base/assert.js";
import type { Cursor, Field } from "./struct.js";

export interface StructCode<T> {
  sizeOf(value: T): number;
  put(buffer: Buffer, offset: number, value: T): number;
  get(cursor: Cursor): T;
}
type Row = readonly [name: string, field: Field<any>];

export function compileStruct<T>(name: string, rows: readonly Row[]): StructCode<T> {
  for (const [field] of rows) assert(/^[a-z]\w*$/i.test(field), `${name}: field "${field}"`);
  const text = `"use strict"; return {
    sizeOf(value) { return ${sizeText(rows)}; },
    put(buffer, offset, value) {
      let at = offset;
      ${rows.map(([field], i) => `at = f${i}.put(buffer, at, value.${field});`).join("\n")}
      return at;
    },
    get(cursor) {
      const buffer = cursor.buffer;
      ${getText(rows)}
      return { ${rows.map(([field], i) => `${field}: v${i}`).join(", ")} };
    },
  };`;
  const parameters = rows.map((_, i) => `f${i}`);
  // The text is of our own rows alone.
  const make = new Function(...parameters, text) as (...fields: Field<any>[]) => StructCode<T>;
  return make(...rows.map(([, field]) => field));
}

function sizeText(rows: readonly Row[]): string {
  const fixed = rows.reduce((sum, [, field]) => sum + Math.max(field.fixed, 0), 0);
  const variable = rows.flatMap(([field, { fixed: size }], i) =>
    size < 0 ? [`f${i}.sizeOf(value.${field})`] : [],
  );
  return [fixed, ...variable].join(" + ");
}

/** `const v0 = …;` for every field, in order. */
function getText(rows: readonly Row[]): string {
  const lines: string[] = [];
  for (let i = 0; i < rows.length;) {
    if (rows[i]![1].read === undefined) {
      lines.push(`const v${i} = f${i}.get(cursor);`);
      i++;
      continue;
    }
    let bytes = 0;
    const reads: string[] = [];
    const first = i;
    for (; i < rows.length && rows[i]![1].read !== undefined; i++) {
      reads.push(`const v${i} = f${i}.read(buffer, at${first} + ${bytes});`);
      bytes += rows[i]![1].fixed;
    }
    lines.push(`const at${first} = cursor.take(${bytes});`, ...reads);
  }
  return lines.join("\n");
}
