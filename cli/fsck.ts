/**
 * `dss fsck`: has the metadata leader check metadata against itself and against all objects, shows
 * how far it is, and says what was found. Nothing is changed without `--repair`.
 */
import type { Command } from "commander";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";
import type CliProgress from "cli-progress";
import { DssError, isDssError } from "../cluster/base/errors.js";
import type { FsckFinding, FsckStatus } from "../mds/proto.js";
import type { ClusterClient } from "./context.js";
import { examples, useCluster, withJson } from "./options.js";
import { note, printJson, printLine } from "./output.js";

const POLL_MS = 200;
/** Where there is no terminal: a line so often. */
const LINE_MS = 10_000;
const ASK_MS = 10_000;

interface Options {
  repair?: boolean;
  /** --no-objects */
  objects: boolean;
  json?: boolean;
}
interface Outcome {
  status: FsckStatus;
  findings: FsckFinding[];
}

export function register(command: Command): void {
  withJson(command)
    .option("--repair", "put right what is wrong; without it nothing is changed")
    .option("--no-objects", "check the metadata only")
    .action(async (options: Options) => {
      const outcome = await useCluster(command, (client) => check(client, options));
      const { found, repaired } = outcome.status;
      if (options.json === true) printJson(documentOf(outcome));
      else describe(outcome);
      if (found === 0) return;
      throw new DssError("Corrupt", `${found} problems found, ${repaired} repaired`, {
        hint:
          found > repaired && options.repair !== true
            ? "dss fsck --repair puts right what can be; docs/operations.md says how"
            : "run it again: what is left is told",
      });
    });
  examples(command, "dss fsck", "dss fsck --repair", "dss fsck --no-objects --json");
}

async function ask(
  client: ClusterClient,
  request: Parameters<ClusterClient["admin"]>[0],
): Promise<FsckStatus> {
  const { fsck } = await client.admin(request, ASK_MS);
  if (fsck !== undefined) return fsck;
  throw new DssError("Malformed", "the leader answered without a state of the check");
}

async function check(client: ClusterClient, { repair, objects, json }: Options): Promise<Outcome> {
  const begin = { op: "fsck", repair: repair === true, objects } as const;
  let status = await ask(client, begin);
  const { run } = status;
  const findings: FsckFinding[] = [];
  const progress = showProgress(json === true);
  try {
    for (;;) {
      status = await ask(client, { op: "fsckStatus", run, after: findings.length });
      findings.push(...status.findings);
      progress.update(status);
      if (status.state !== "running" && status.findings.length === 0) break;
      if (status.findings.length === 0) await sleep(POLL_MS);
    }
  } catch (error) {
    if (!isDssError(error, "NotFound")) throw error;
    throw new DssError("NotLeader", "the metadata leader changed during the check", {
      hint: "run it again",
    });
  } finally {
    progress.stop();
  }
  if (status.state === "done") return { status, findings };
  throw new DssError("NotActive", `the check could not be finished: ${status.error}`, {
    hint: "see dss health, and run it again",
  });
}

function documentOf({ status, findings }: Outcome): object {
  const { repair, inodes, names, objects, pgs, found, repaired } = status;
  return { repair, inodes, names, objects, pgs, found, repaired, findings };
}

function describe({ status, findings }: Outcome): void {
  for (const { kind, what, repaired } of findings) {
    printLine(`${kind}: ${what}${repaired ? " (repaired)" : ""}`);
  }
  const more = status.found - findings.length;
  if (more > 0) printLine(`and ${more} more`);
  const { inodes, names, objects, pgs, found, repaired } = status;
  printLine(`${inodes} inodes, ${names} names, ${objects} objects in ${pgs} placement groups`);
  if (found === 0) printLine("nothing wrong");
  else printLine(`${found} problems found, ${repaired} repaired`);
}

// ---- Progress ----------------------------------------------------------------------------------

interface Progress {
  update(status: FsckStatus): void;
  stop(): void;
}
const SILENT: Progress = { update: () => undefined, stop: () => undefined };

// Loaded when a bar is shown: answers in JSON and logs do without.
const load = createRequire(import.meta.url);

function showProgress(json: boolean): Progress {
  if (json) return SILENT;
  if (process.stderr.isTTY) {
    const { SingleBar, Presets } = load("cli-progress") as typeof CliProgress;
    const format = "fsck {phase} {bar} {inodes} inodes, {names} names, {objects} objects";
    const bar = new SingleBar({ format, hideCursor: true }, Presets.shades_classic);
    bar.start(1, 0, { phase: "journal", inodes: 0, names: 0, objects: 0 });
    return {
      update({ phase, inodes, names, objects, pgs, pgsTotal }) {
        bar.setTotal(Math.max(1, pgsTotal));
        bar.update(pgs, { phase, inodes, names, objects });
      },
      stop: () => bar.stop(),
    };
  }
  let saidAt = performance.now();
  return {
    update({ phase, inodes, names, objects }) {
      if (performance.now() - saidAt < LINE_MS) return;
      saidAt = performance.now();
      note(`fsck: ${phase}, ${inodes} inodes, ${names} names, ${objects} objects`);
    },
    stop: () => undefined,
  };
}
