/**
 * The state file of a cluster on this machine: `DIR/cluster.json`. It is also the marker that says
 * that the folder is ours: only a folder that carries it is ever used again or deleted. Replaced as
 * a whole (write, rename), only by the holder of the lock `DIR/lock`.
 */
import { existsSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { DssError } from "../../cluster/base/errors.js";
import { isAlive, type ProcessIdentity } from "./process.js";

const FORMAT = 1;
const KIND = "dss cluster on one machine";

export type Role = "zookeeper" | "mds" | "osd" | "mount";
const ROLES: readonly string[] = ["zookeeper", "mds", "osd", "mount"] satisfies Role[];

export interface LocalProcess extends ProcessIdentity {
  name: string;
  role: Role;
  /** Folder of its data; of a mount its path. */
  data: string;
  log: string;
}

export interface LocalCluster {
  kind: typeof KIND;
  format: number;
  host: string;
  createdMs: number;
  mount: string;
  zookeeper:
    | { external: string } // Other people's servers: never started or stopped here.
    | { servers: { id: number; port: number; peerPort: number; electionPort: number }[] };
  mds: { id: number; port: number }[];
  osds: { id: number; port: number }[];
  processes: LocalProcess[];
}

const statePath = (folder: string): string => join(folder, "cluster.json");

/** A state that owns nothing yet. */
export function newState(mount: string): LocalCluster {
  return {
    kind: KIND,
    format: FORMAT,
    host: hostname(),
    createdMs: Date.now(),
    mount,
    zookeeper: { servers: [] },
    mds: [],
    osds: [],
    processes: [],
  };
}

/** Undefined when the folder carries no marker. Errors: Configuration, IncompatibleVersion. */
export function readState(folder: string): LocalCluster | undefined {
  const path = statePath(folder);
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw cause;
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new DssError("Configuration", `${path} is damaged`, {
      cause,
      hint: "restore it from a copy, or choose another folder with --data",
    });
  }
  const { kind, format } = (value ?? {}) as { kind?: unknown; format?: unknown };
  if (kind !== KIND) {
    throw new DssError("Configuration", `${path} does not describe a cluster of dss`, {
      hint: "choose another folder with --data",
    });
  }
  if (format !== FORMAT) {
    throw new DssError(
      "IncompatibleVersion",
      `${path} has format ${String(format)}, but this dss knows format ${FORMAT}`,
      { hint: "use the version of dss that made it, or another folder with --data" },
    );
  }
  const wrong = firstWrong(value as LocalCluster);
  if (wrong === undefined) return value as LocalCluster;
  throw new DssError("Configuration", `${path} is damaged: see "${wrong}"`, {
    hint: "restore it from a copy, or choose another folder with --data",
  });
}

/** The member that is not what LocalCluster says, or undefined. */
function firstWrong(state: LocalCluster): string | undefined {
  const isText = (value: unknown): boolean => typeof value === "string";
  const isCount = (value: unknown): boolean => Number.isSafeInteger(value) && Number(value) >= 0;
  const isPort = (value: unknown): boolean => isCount(value) && Number(value) <= 65_535;
  const all = <T>(list: readonly T[], holds: (each: T) => boolean): boolean =>
    Array.isArray(list) && list.every((each: T) => typeof each === "object" && holds(each));
  const isDaemon = (each: { id: number; port: number }): boolean =>
    isCount(each.id) && isPort(each.port);
  const checks: Record<string, () => boolean> = {
    mount: () => isText(state.mount),
    zookeeper: () =>
      "external" in state.zookeeper
        ? isText(state.zookeeper.external)
        : all(state.zookeeper.servers, (each) => isDaemon(each) && isPort(each.peerPort)),
    mds: () => all(state.mds, isDaemon),
    osds: () => all(state.osds, isDaemon),
    processes: () =>
      all(
        state.processes,
        (each) =>
          isCount(each.pid) &&
          each.pid > 1 && // 0 and 1 would mean a group and init.
          isCount(each.startTicks) &&
          [each.bootId, each.name, each.data, each.log].every(isText) &&
          ROLES.includes(each.role),
      ),
  };
  return Object.keys(checks).find((name) => {
    try {
      return !checks[name]!();
    } catch {
      return true; // A member of it is missing.
    }
  });
}

export function writeState(folder: string, state: LocalCluster): void {
  const path = statePath(folder);
  const next = `${path}.new`;
  writeFileSync(next, `${JSON.stringify(state, null, 2)}\n`, { mode: 0o644, flush: true });
  renameSync(next, path);
}

/** Refuses a folder that holds something else; an empty or missing one may become ours. */
export function checkUsable(folder: string): void {
  if (!existsSync(folder) || existsSync(statePath(folder))) return;
  let entries: string[];
  try {
    entries = readdirSync(folder);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== "ENOTDIR") throw cause;
    throw new DssError("NotDirectory", `data folder ${folder} is not a directory`, { cause });
  }
  // The lock file and the records of mounts may be there before the first state.
  const foreign = entries.filter((name) => !["lock", "run", "cluster.json.new"].includes(name));
  if (foreign.length === 0) return;
  throw new DssError(
    "NotEmpty",
    `data folder ${folder} holds files that are not of a dss cluster (${foreign[0]})`,
    { hint: "choose an empty or new folder with --data" },
  );
}

/** The recorded process of that name, if it still runs. */
export function running(state: LocalCluster, name: string): LocalProcess | undefined {
  return state.processes.find((each) => each.name === name && isAlive(each));
}

/** What to tell clients: `host:port,…`. */
export function zookeeperAddress(state: LocalCluster): string {
  if ("external" in state.zookeeper) return state.zookeeper.external;
  return state.zookeeper.servers.map((server) => `127.0.0.1:${server.port}`).join(",");
}
