/** From the samples of all runs to one system's report: medians of figures and of costs. */
import { median } from "../measure.js";
import { round, summarize } from "../report.js";
import type { Cost, Result } from "../report.js";
import { workOf } from "./report.js";
import type { Sample } from "./report.js";
import type { Row } from "./rows.js";

/** Undefined when no run has measured the row. */
export function summarizeRow(row: Row, samples: readonly Sample[]): Result | undefined {
  if (samples.length === 0) return undefined;
  const result = summarize(row.name, row.unit, samples);
  const cost = costOf(row, samples);
  return { ...result, ...(cost !== undefined && { cost }) };
}

function costOf({ unit }: Row, samples: readonly Sample[]): Cost | undefined {
  const pieces = samples.flatMap((sample) => {
    const work = workOf(unit, sample);
    return work === undefined ? [] : [{ ...work, cpu: sample.cpu }];
  });
  const [first] = pieces;
  if (first === undefined) return undefined;
  const of = (who: keyof Sample["cpu"]): number =>
    round(median(pieces.map(({ cpu, amount }) => cpu[who] / amount)));
  return { per: first.per, servers: of("servers"), client: of("client"), host: of("host") };
}
