/**
 * `dss fsck`: has the metadata leader check metadata against itself and against all objects, shows
 * how far it is, and says what was found. Nothing is changed without `--repair`.
 */
import type { Command } from "commander";
import { setTimeout as sleep } from "node:timers/promises";
import { DssError, isDssError } from "../cluster/base/errors.js";
import type { FsckFinding, FsckStatus } from "../mds/proto-fsck.js";
import type { ClusterClient } from "./context.js";
import { examples, useCluster, withJson } from "./options.js";
import { printJson, printLine } from "./output.js";
import { Progress } from "./progress.js";

const POLL_MS = 200;
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
  const progress = json === true ? undefined : new Progress("fsck");
  try {
    for (;;) {
      status = await ask(client, { op: "fsckStatus", run, after: findings.length });
      findings.push(...status.findings);
      const { phase, inodes, names, pgs, pgsTotal } = status;
      const text = `${phase}: ${inodes} inodes, ${names} names, ${status.objects} objects`;
      progress?.update(pgs, Math.max(1, pgsTotal), text);
      if (status.state !== "running" && status.findings.length === 0) break;
      if (status.findings.length === 0) await sleep(POLL_MS);
    }
  } catch (error) {
    if (!isDssError(error, "NotFound")) throw error;
    throw new DssError("NotLeader", "the metadata leader changed during the check", {
      hint: "run it again",
    });
  } finally {
    progress?.end();
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
