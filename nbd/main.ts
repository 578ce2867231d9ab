/**
 * Runs the NBD server over a cluster's volumes as a process, and opens single volumes for commands.
 *
 * Order of a start: no other server at the addresses, the metadata session, the volumes' locks, and
 * only then the addresses: whoever can connect finds its volume. The look at the addresses comes
 * first because the session fences an earlier server of the same address, which must not happen to
 * one that is running.
 */
import { DssError, describeError, isDssError } from "../cluster/base/errors.js";
import type { Logger } from "../cluster/base/log.js";
import type { Config } from "../cluster/config/options.js";
import { nodePlatform } from "../cluster/platform/node.js";
import { checkTlsIdentity } from "../cluster/platform/node-tls.js";
import { formatAddress, type Address } from "../cluster/platform/ports.js";
import { connectCluster, type ClusterSession } from "../mds/client/cluster-session.js";
import type { SessionType } from "../mds/proto.js";
import { Objecter } from "../osd/client/objecter.js";
import { ActivityReporter } from "./activity-reporter.js";
import type { VolumeImage } from "./image.js";
import type { ServerTls } from "./connection.js";
import { ListedObjects } from "./listed-objects.js";
import { NbdServer } from "./server.js";
import { VolumeDirectory, type VolumeLocking } from "./volume-directory.js";

/** How long a start waits for a metadata leader. */
const OPEN_MS = 20_000;
const PROBE_MS = 1_000;

interface ClusterAccess {
  /** "host:port,…" */
  zookeeper: string;
  config: Config;
  logger: Logger;
  /** This machine's name. */
  host: string;
}

export interface NbdProcessOptions extends ClusterAccess {
  /** Volumes to serve, which are locked from the start; empty: all, each locked while in use. */
  names: readonly string[];
  /** At least one; port 0 picks a free one. */
  listen: readonly Address[];
  readOnly: boolean;
  lock?: VolumeLocking;
  /** Without it nothing is encrypted. */
  tls?: ServerTls;
  version: string;
  /** Called when clients can be served, with the addresses in the order of `listen`. */
  onReady?: (addresses: readonly Address[]) => void;
}

export interface RunningNbd {
  /** Resolves when the process should end: undefined after `stop`, the error otherwise. */
  readonly ended: Promise<Error | undefined>;
  stop(): Promise<void>;
}

/**
 * Errors: Configuration (the certificate cannot be used), Busy (an address is in use; a volume has
 * another owner, who is named), NotFound (no such volume), Unreachable or TimedOut (no ZooKeeper,
 * no cluster, no leader).
 */
export async function runNbd(options: NbdProcessOptions): Promise<RunningNbd> {
  const { names, listen, logger, tls } = options;
  if (tls !== undefined) checkTlsIdentity(tls.identity);
  const serving = names.length === 0 ? "all volumes" : names.join(", ");
  const cluster = await connectCluster({
    ...options,
    platform: nodePlatform,
    type: "nbd",
    instance: instanceOf(options.host, listen),
    detail: `serving ${serving} at ${listen.map(formatAddress).join(", ")}`,
  });
  let finish: (error: Error | undefined) => void = () => undefined;
  const ended = new Promise<Error | undefined>((resolve) => (finish = resolve));
  const directory = directoryOf(cluster, options, (error) => {
    logger.error({ error: describeError(error) }, "stopping: volumes were lost");
    finish(error);
  });
  const server = new NbdServer({
    network: nodePlatform.network,
    clock: nodePlatform.clock,
    log: logger,
    directory,
    limits: options.config.nbd,
    ...(tls !== undefined && { tls }),
    ...(names.length === 1 && { defaultExport: names[0]! }),
  });
  const { clock } = nodePlatform;
  const { mds } = cluster;
  const reporter = new ActivityReporter({ clock, mds, activity: () => server.activity() });
  let stopping: Promise<void> | undefined;
  const stop = (): Promise<void> => {
    stopping ??= inOrder([
      () => reporter.stop(),
      () => server.stop(),
      () => directory.release(),
      () => directory.shutDown(),
      () => cluster.close(),
    ]).finally(() => finish(undefined));
    return stopping;
  };
  try {
    for (const address of listen) await refuseTaken(address);
    await cluster.mds.open(OPEN_MS);
    for (const name of new Set(names)) await directory.hold(name);
    const addresses: Address[] = [];
    for (const address of listen) addresses.push(await server.listen(address));
    logger.info({ version: options.version, names: serving }, "volumes can be used");
    reporter.start();
    options.onReady?.(addresses);
    return { ended, stop };
  } catch (error) {
    await stop().catch((reason: unknown) => {
      logger.warn({ error: describeError(reason) }, "while giving up");
    });
    throw error;
  }
}

export interface VolumeOptions extends ClusterAccess {
  name: string;
  /** Takes the exclusive lock. */
  write: boolean;
  type: SessionType;
  /** For people: what the volume is used for. */
  detail: string;
  /** Which objects there are is asked once: for who looks at the whole volume. */
  listed?: boolean;
  /** A snapshot that is read besides. */
  also?: string;
  /** An earlier opening under this name that is still registered is fenced first. */
  instance?: string;
}

export interface OpenVolume {
  image: VolumeImage;
  /** `also`. */
  other: VolumeImage | undefined;
  close(): Promise<void>;
}

/** One volume for a command; `close` gives it back. Errors: those of `runNbd`. */
export async function openVolume(options: VolumeOptions): Promise<OpenVolume> {
  const { name, also, write, logger } = options;
  // Two commands at a time do not succeed each other, unless they say so.
  const { instance = "" } = options;
  const cluster = await connectCluster({ ...options, platform: nodePlatform, instance });
  const names = also === undefined ? [name] : [name, also];
  const wanted = { ...options, names, readOnly: !write };
  const directory = directoryOf(cluster, wanted, (error) => {
    logger.error({ error: describeError(error) }, "the volume was lost");
  });
  const close = (): Promise<void> =>
    inOrder([() => directory.release(), () => directory.shutDown(), () => cluster.close()]);
  try {
    await cluster.mds.open(OPEN_MS);
    for (const each of names) await directory.hold(each);
    const other = also === undefined ? undefined : await directory.open(also);
    return { image: await directory.open(name), other, close };
  } catch (error) {
    await close().catch((reason: unknown) => {
      logger.warn({ error: describeError(reason) }, "while giving up");
    });
    throw error;
  }
}

function directoryOf(
  cluster: ClusterSession,
  options: ClusterAccess & {
    names: readonly string[];
    readOnly: boolean;
    lock?: VolumeLocking;
    listed?: boolean;
  },
  onLost: (error: DssError) => void,
): VolumeDirectory {
  const { clock, random } = nodePlatform;
  const { messenger, maps, mds } = cluster;
  const { logger, names, readOnly, config, lock } = options;
  return new VolumeDirectory({
    ...(lock !== undefined && { lock }),
    mds,
    clock,
    names,
    readOnly,
    onLost,
    accessAs: (id) => {
      const objecter = new Objecter({
        messenger,
        maps,
        clock,
        random,
        logger,
        client: () => id,
        operationDeadlineMs: config.client.requestDeadlineMs,
      });
      return options.listed === true ? new ListedObjects(objecter, maps) : objecter;
    },
  });
}

/** Errors: Busy when something answers at the address. Other obstacles show when it is bound. */
export async function refuseTaken(address: Address): Promise<void> {
  if ("port" in address && address.port === 0) return;
  let found;
  try {
    found = await nodePlatform.network.connect(address, { timeoutMs: PROBE_MS });
  } catch (error) {
    if (isDssError(error, "Unreachable") || isDssError(error, "TimedOut")) return;
    throw error;
  }
  found.destroy();
  throw new DssError("Busy", `address ${formatAddress(address)} is already in use`, {
    hint: "stop the server there, or choose another address",
  });
}

/** A later server of the same first address succeeds this one; a free port (0) has no successor. */
function instanceOf(host: string, listen: readonly Address[]): string {
  const [first] = listen;
  if (first === undefined) throw new DssError("InvalidArgument", "no address to serve at");
  if ("port" in first && first.port === 0) return "";
  return `${host}:nbd:${formatAddress(first)}`;
}

/** Every step runs, whatever became of those before; fails with the first failure. */
export async function inOrder(steps: readonly (() => Promise<void> | void)[]): Promise<void> {
  let failure: { error: unknown } | undefined;
  for (const step of steps) {
    try {
      await step();
    } catch (error) {
      failure ??= { error };
    }
  }
  if (failure) throw failure.error;
}
