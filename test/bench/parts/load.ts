/** What the programs that make a load have in common: the order they are given, and the runs. */
import { quantile } from "../closed-loop.js";
import type { Loop } from "../closed-loop.js";
import { withCpu, withCpuAndRest } from "../measure.js";
import { measureRow, perOperation } from "./part.js";
import type { Measured, Order, Row } from "./part.js";

export const readOrder = <Where>(): Order<Where> =>
  JSON.parse(process.argv[2] ?? "") as Order<Where>;

/** Measures every row and prints what came of it; `operate` keeps on for so many seconds. */
export async function measureRows<Where>(
  { rows, sizes, watched, role }: Order<Where>,
  operate: (row: Row, seconds: number) => Promise<Loop> | Loop,
): Promise<void> {
  const all = role === undefined ? watched : [...watched, { name: role, role, pid: process.pid }];
  const measure = role === undefined ? withCpuAndRest : withCpu;
  const results: Measured[] = [];
  for (const row of rows) {
    const once = async () => {
      const { value, cpu } = await measure(all, async () => await operate(row, sizes.seconds));
      return {
        figure: value.operations / value.seconds,
        cpu: perOperation(cpu, value.operations),
        p50: quantile(value, 0.5),
        p99: quantile(value, 0.99),
      };
    };
    results.push(await measureRow(row, sizes.runs, once));
  }
  process.stdout.write(`${JSON.stringify(results)}\n`);
}
