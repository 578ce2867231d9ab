/**
 * `npm run bench:peers -- --peers DIR [--systems dss,ceph,gluster,moosefs] [--runs 3] [--only WORD]
 * [--scale F] [--syncs] [--json FILE] [--markdown FILE] [--svg FOLDER]`: dss and other systems, one
 * up at a time, taking turns, under one workload; the medians beside each other and each row
 * against its goal. docs/performance.md says how to read it.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { ROOT } from "../../../tools/test-parts.js";
import { describeCommit, describeMachine } from "../measure.js";
import { runProgram, UsageError } from "../../support/program.js";
import { endWithProcess, Scope } from "../../support/scope.js";
import type { Memory } from "../report.js";
import { drawPeers } from "./charts.js";
import { DSS_SYSTEMS, OURS } from "./dss-system.js";
import { isInstalled, PEERS, peerSystem } from "./peer-system.js";
import { describePeers, markdownOf, mergeMemory, oursOf } from "./report.js";
import type { Failure, PeersDocument, ProcessMemory, Sample, SyncCount } from "./report.js";
import { alternate, chooseRows } from "./rows.js";
import type { RowId } from "./rows.js";
import { summarizeRow } from "./summary.js";
import { countSyncs } from "./syncs.js";
import type { System } from "./system.js";
import { makeTree } from "./tree.js";
import { rowNamed, sizesOf, Workload } from "./workload.js";
import type { Sizes } from "./workload.js";

const RUNS = 3;
const RUNS_MAX = 100;

interface Options {
  readonly systems: readonly System[];
  readonly runs: number;
  readonly rows: ReadonlySet<RowId>;
  readonly sizes: Sizes;
  readonly syncs: boolean;
}

interface Collected {
  readonly samples: Map<RowId, Sample[]>;
  readonly memory: (readonly ProcessMemory[])[];
  readonly failures: Failure[];
  syncs: readonly SyncCount[];
}

const note = (line: string): void => void process.stderr.write(`${line}\n`);

// ---- What is asked for ------------------------------------------------------------------------

const NO_PEERS =
  "bench:peers needs --peers DIR: a folder with NAME.sh for each system (ceph, gluster, moosefs), " +
  "as docs/performance.md describes; --systems dss measures dss alone";

function chooseSystems(asked: string | undefined, folder: string | undefined): System[] {
  const names = asked?.split(",").map((name) => name.trim());
  const ourNamed = (name: string): System | undefined =>
    DSS_SYSTEMS.find((each) => each.name === name);
  if (folder === undefined && names?.every((name) => ourNamed(name) !== undefined) !== true) {
    throw new UsageError(NO_PEERS);
  }
  const systemNamed = (name: string): System => {
    const our = ourNamed(name);
    if (our !== undefined) return our;
    const peer = PEERS.find((each) => each.name === name);
    if (peer !== undefined) return peerSystem(peer, resolve(folder ?? "."));
    const known = [...DSS_SYSTEMS, ...PEERS].map((each) => each.name).join(", ");
    throw new UsageError(`--systems: there is no "${name}"; known are ${known}`);
  };
  const installed = PEERS.filter(({ program, env }) => env === undefined && isInstalled(program));
  const chosen = names ?? [OURS, ...installed.map(({ name }) => name)];
  if (new Set(chosen).size < chosen.length) throw new UsageError("--systems names one twice");
  if (names === undefined && installed.length === 0) {
    note("note: no peer is installed; name one with --systems and its script installs it");
  }
  const systems = chosen.map(systemNamed);
  for (const { name, obstacle } of systems) {
    const why = obstacle();
    if (why !== undefined) throw new UsageError(`${name}: ${why}`);
  }
  return systems;
}

function wholeNumber(name: string, text: string, most: number): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 1 && value <= most) return value;
  throw new UsageError(`--${name} ${text}: give a whole number from 1 to ${most}`);
}

function scaleOf(text: string): number {
  const scale = Number(text);
  // The peers' block devices have 1 GiB.
  if (Number.isFinite(scale) && scale > 0 && scale <= 1) return scale;
  throw new UsageError(`--scale ${text}: give a number above 0, at most 1`);
}

// ---- The runs ---------------------------------------------------------------------------------

async function measureSystem(
  root: Scope,
  system: System,
  { run, tree, options, into }: { run: number; tree: string; options: Options; into: Collected },
): Promise<void> {
  await root.within(async (scope) => {
    const running = await system.up(scope);
    const workload = new Workload(scope, running, {
      rows: options.rows,
      sizes: options.sizes,
      seed: run + 1,
      tree,
      progress: (id, figure) => {
        const { name, unit } = rowNamed(id);
        note(`run ${run + 1}, ${system.name}: ${name}: ${figure.toPrecision(4)} ${unit}`);
      },
    });
    const { samples, failures, memory } = await workload.run();
    for (const [id, sample] of samples) {
      into.samples.set(id, [...(into.samples.get(id) ?? []), sample]);
    }
    for (const { row, message } of failures) {
      note(`run ${run + 1}, ${system.name}: ${rowNamed(row).name} FAILED: ${message}`);
      into.failures.push({ run, row: rowNamed(row).name, message });
    }
    into.memory.push(memory);
    if (options.syncs && into.syncs.length === 0) into.syncs = await countSyncs(scope, running);
  });
}

async function measure(root: Scope, options: Options): Promise<PeersDocument> {
  const start = performance.now();
  const collected = new Map<string, Collected>(
    options.systems.map(({ name }) => {
      return [name, { samples: new Map(), memory: [], failures: [], syncs: [] }];
    }),
  );
  const tree = await makeTree(root, options.sizes.treeFiles);
  const names = options.systems.map(({ name }) => name);
  for (const { run, system: name } of alternate(names, options.runs)) {
    const system = options.systems.find((each) => each.name === name)!;
    const into = collected.get(name)!;
    note(`run ${run + 1} of ${options.runs}: ${name}`);
    try {
      await measureSystem(root, system, { run, tree, options, into });
    } catch (error) {
      // Stopped by the user: everything fails, and nothing more is started.
      if (root.ended) throw error;
      const { message } = error as Error;
      note(`run ${run + 1}, ${name} FAILED: ${message}`);
      into.failures.push({ run, message: message.trim().slice(0, 1_000) });
    }
  }
  return documentOf(options, collected, (performance.now() - start) / 1000);
}

function documentOf(
  { systems, rows, sizes }: Options,
  collected: ReadonlyMap<string, Collected>,
  seconds: number,
): PeersDocument {
  const reports = systems.map(({ name, durability }) => {
    const { samples, memory, failures, syncs } = collected.get(name)!;
    const results = [...rows].flatMap(
      (id) => summarizeRow(rowNamed(id), samples.get(id) ?? []) ?? [],
    );
    return { name, durability, syncs, results, memory: mergeMemory(memory), failures };
  });
  const ours = oursOf(reports);
  const processes = (ours?.memory ?? []).map(({ name, resident }) => {
    return { name, role: name.replace(/\.\d+$/, ""), bytes: resident };
  });
  const total = processes
    .filter(({ role }) => !role.startsWith("zookeeper"))
    .reduce((sum, { bytes }) => sum + bytes, 0);
  const loaded: Memory = { processes, total };
  return {
    format: 1,
    kind: "peers",
    commit: describeCommit(ROOT),
    date: new Date().toISOString(),
    seconds,
    machine: describeMachine(),
    profile: sizes.scale === 1 ? "peers" : `peers, scaled by ${sizes.scale}`,
    idle: { processes: [], total: 0 },
    loaded,
    results: ours?.results ?? [],
    systems: reports,
  };
}

// ---- The program ------------------------------------------------------------------------------

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      peers: { type: "string" },
      systems: { type: "string" },
      runs: { type: "string", default: String(RUNS) },
      only: { type: "string", default: "" },
      scale: { type: "string", default: "1" },
      syncs: { type: "boolean", default: false },
      json: { type: "string" },
      markdown: { type: "string" },
      svg: { type: "string" },
    },
  });
  const rows = new Set(chooseRows(values.only).map(({ id }) => id));
  if (rows.size === 0) throw new UsageError(`--only: no row's name contains "${values.only}"`);
  const options: Options = {
    runs: wholeNumber("runs", values.runs, RUNS_MAX),
    sizes: sizesOf(scaleOf(values.scale)),
    systems: chooseSystems(values.systems, values.peers),
    rows,
    syncs: values.syncs,
  };
  if (process.getuid?.() !== 0) throw new UsageError("run it as root: it empties kernel caches");
  const root = new Scope();
  endWithProcess(root);
  try {
    const document = await measure(root, options);
    process.stdout.write(`${describePeers(document)}\n`);
    if (values.json !== undefined) {
      writeFileSync(values.json, `${JSON.stringify(document, null, 2)}\n`);
    }
    if (values.markdown !== undefined) writeFileSync(values.markdown, `${markdownOf(document)}\n`);
    if (values.svg !== undefined) {
      mkdirSync(values.svg, { recursive: true });
      for (const [name, picture] of drawPeers(document)) {
        writeFileSync(join(values.svg, name), picture);
      }
    }
    return document.systems.some(({ failures }) => failures.length > 0) ? 1 : 0;
  } catch (error) {
    if (!root.ended) throw error;
    // A signal has ended everything, which is why it failed; the signal's handler exits.
    return 1;
  } finally {
    await root.end();
  }
}

await runProgram("bench:peers", main);
