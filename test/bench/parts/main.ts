/**
 * `npm run bench:parts [-- --only WORD] [--runs N] [--small] [--json FILE] [--markdown FILE]`: what
 * the parts of dss cost alone on this machine (a bare pipeline of three copies, the FUSE driver,
 * the chunk store, ZooKeeper, the messenger), and what whole operations of a cluster cost each of
 * its roles. docs/performance.md says how to read it.
 */
import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { ROOT } from "../../../tools/test-parts.js";
import { runProgram, UsageError } from "../../support/program.js";
import { endWithProcess, Scope } from "../../support/scope.js";
import { describeCommit, describeMachine } from "../measure.js";
import { fuse } from "./fuse.js";
import { log } from "./log.js";
import { messenger } from "./messenger.js";
import { MiB } from "./part.js";
import type { Measured, Part, Sizes } from "./part.js";
import { pipeline } from "./pipeline.js";
import { markdownOf } from "./report.js";
import type { PartsDocument } from "./report.js";
import { whole } from "./whole.js";
import { zookeeper } from "./zookeeper.js";

const PARTS: readonly Part[] = [pipeline, fuse, log, zookeeper, messenger];

const FULL: Sizes = {
  ...{ profile: "full", runs: 3, seconds: 3 },
  ...{ area: 256 * MiB, sequential: 512 * MiB },
};
/** Does it work here? Figures mean nothing. */
const SMALL: Sizes = {
  ...{ profile: "small", runs: 1, seconds: 0.4 },
  ...{ area: 32 * MiB, sequential: 32 * MiB },
};

/** The rows of a part whose name contains the word, in a scope of their own. */
async function measure(bench: Scope, part: Part, only: string, sizes: Sizes): Promise<Measured[]> {
  const rows = part.rows.filter(({ name }) => name.includes(only));
  if (rows.length === 0) return [];
  const results = await bench.within((scope) => part.measure(scope, rows, sizes));
  for (const { name, median, unit } of results)
    process.stderr.write(`${name}: ${median} ${unit}\n`);
  return results;
}

async function measureAll(bench: Scope, only: string, sizes: Sizes): Promise<PartsDocument> {
  const start = performance.now();
  const parts: Measured[] = [];
  for (const part of PARTS) parts.push(...(await measure(bench, part, only, sizes)));
  return {
    parts,
    whole: await measure(bench, whole, only, sizes),
    commit: describeCommit(ROOT),
    date: new Date().toISOString(),
    seconds: (performance.now() - start) / 1000,
    machine: describeMachine(),
    profile: sizes.profile,
  };
}

function sizesOf(small: boolean, runs: string | undefined): Sizes {
  const sizes = small ? SMALL : FULL;
  if (runs === undefined) return sizes;
  if (!/^[1-9]\d?$/.test(runs)) throw new UsageError(`--runs ${runs}: give a number from 1 to 99`);
  return { ...sizes, runs: Number(runs) };
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      json: { type: "string" },
      markdown: { type: "string" },
      only: { type: "string", default: "" },
      runs: { type: "string" },
      small: { type: "boolean", default: false },
    },
  });
  const sizes = sizesOf(values.small, values.runs);
  const known = [...PARTS, whole].some(({ rows }) => {
    return rows.some(({ name }) => name.includes(values.only));
  });
  if (!known) throw new UsageError(`no row is named "${values.only}"`);
  const bench = new Scope();
  endWithProcess(bench);
  try {
    const document = await measureAll(bench, values.only, sizes);
    const markdown = `${markdownOf(document)}\n`;
    process.stdout.write(markdown);
    if (values.markdown !== undefined) writeFileSync(values.markdown, markdown);
    if (values.json !== undefined) {
      writeFileSync(values.json, `${JSON.stringify(document, null, 2)}\n`);
    }
  } finally {
    await bench.end();
  }
}

await runProgram("bench:parts", main);
