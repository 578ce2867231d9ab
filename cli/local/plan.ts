/**
 * What `dss cluster up` makes of its options and of what is recorded: a pure decision on how many
 * daemons there are, where, and whether the options contradict a cluster that exists.
 */
import { UsageError } from "../failure.js";
import type { LocalCluster } from "./state.js";

export const DAEMONS_MAX = 64;
export const DEFAULT_OSDS = 3;
export const DEFAULT_MDS = 2;
export const DEFAULT_MOUNT = "/mnt/dss";

/** Where the search for a port starts. */
export const PREFERRED = {
  zookeeper: 2181,
  zookeeperPeer: 2888,
  zookeeperElection: 3888,
  mds: 9110,
  /** OSDs 0 … 9; the others go on at `osdMore`, behind the metadata servers. */
  osd: 9100,
  osdMore: 9120,
} as const;

export interface UpOptions {
  osds?: number;
  mds?: number;
  /** A number of servers to run here, or the addresses of others. */
  zookeeper?: { servers: number } | { external: string };
  mount?: string;
}

export const preferredOsdPort = (id: number): number =>
  id < 10 ? PREFERRED.osd + id : PREFERRED.osdMore + id - 10;

/** The wanted counts and places. Throws UsageError when the options contradict what exists. */
export function plan(
  state: LocalCluster,
  options: UpOptions,
  isNew: boolean,
): {
  zookeeper: { servers: number } | { external: string };
  mds: number;
  osds: number;
  mount: string;
} {
  const zookeeper =
    "external" in state.zookeeper
      ? { external: state.zookeeper.external }
      : { servers: state.zookeeper.servers.length };
  if (isNew) {
    return {
      zookeeper: options.zookeeper ?? { servers: 1 },
      mds: options.mds ?? DEFAULT_MDS,
      osds: options.osds ?? DEFAULT_OSDS,
      mount: options.mount ?? DEFAULT_MOUNT,
    };
  }
  const wanted = options.zookeeper;
  const same =
    wanted === undefined ||
    ("external" in wanted
      ? "external" in zookeeper && zookeeper.external === wanted.external
      : "servers" in zookeeper && zookeeper.servers === wanted.servers);
  if (!same) {
    throw new UsageError(
      "the cluster exists, and its ZooKeeper servers cannot be changed",
      "leave out --zookeeper, or choose another folder with --data",
    );
  }
  return {
    zookeeper,
    mds: grown("mds", state.mds.length, options.mds),
    osds: grown("osds", state.osds.length, options.osds),
    mount: options.mount ?? state.mount,
  };
}

function grown(what: "osds" | "mds", now: number, wanted: number | undefined): number {
  if (wanted === undefined || wanted === now) return now;
  if (wanted > now) return wanted;
  throw new UsageError(
    `--${what} ${wanted}: the cluster has ${now}, and \`up\` takes none away`,
    what === "osds" ? "take an OSD out with `dss osd out ID`" : "leave out --mds",
  );
}
