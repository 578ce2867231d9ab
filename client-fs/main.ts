/**
 * Runs one mount as (part of) a process: ZooKeeper, the cluster map, the metadata session,
 * objects, the file system and its FUSE driver; and ends it in good order. Owns all of them.
 */
import { describeError, isDssError } from "../cluster/base/errors.js";
import type { Logger } from "../cluster/base/log.js";
import type { Config } from "../cluster/config/options.js";
import { nodePlatform } from "../cluster/platform/node.js";
import { FileRecord, type RecordFiles } from "../cluster/platform/node-record.js";
import { connectCluster } from "../mds/client/cluster-session.js";
import { Objecter } from "../osd/client/objecter.js";
import type { FileSystem } from "./file-system.js";
import type { Negotiated } from "./fuse/connection.js";
import type { MountFileSystem, Mounted } from "./fuse/driver.js";
import { parseMountOptions } from "./mount-options.js";
import { observe } from "./observed.js";
import { SessionObjects } from "./vfs/session-objects.js";
import { Vfs } from "./vfs/vfs.js";
import { WorkerRecord } from "./vfs/worker-record.js";

export interface MountProcessOptions {
  /** An existing, empty directory. */
  mountpoint: string;
  /** kernel: /dev/fuse itself; fuse-native: through libfuse 2. */
  driver: "kernel" | "fuse-native";
  readOnly?: boolean;
  allowNonEmpty?: boolean;
  /** As for `-o`: see OWN_OPTIONS and KERNEL_OPTIONS; anything else is refused. */
  mountOptions?: readonly string[];
  /** This machine's name. */
  host: string;
  /** "host:port,…" */
  zookeeper: string;
  config: Config;
  logger: Logger;
  version: string;
  /** Called when the mount is usable. */
  onReady?: () => void;
  /** Called with what has waited for `client.abortStuckMs`: the mount should end. */
  onStuck: (what: string) => void;
  /** This process is one of several that serve the mount one after the other (kernel driver). */
  worker?: {
    /** The supervisor's descriptor of /dev/fuse. */
    fd: number;
    /** What this worker leaves to the next one, and finds of the one before. */
    record: RecordFiles;
    /** The mount exists: with this outcome of its beginning. */
    negotiated?: Negotiated;
    onNegotiated: (outcome: Negotiated) => void;
    /** The record cannot be kept: no other worker may follow this one. */
    onBroken: () => void;
  };
}

export interface RunningMount {
  /** Resolves when the process should end: undefined after an unmount, the error otherwise. */
  readonly ended: Promise<Error | undefined>;
  /** Unmounts, flushes and ends the session; users of open files get a few seconds. */
  stop(): Promise<void>;
  /**
   * For another worker: no more requests are taken, everything written is durable. Then this
   * process ends without a word to anybody. When it fails the mount goes on.
   */
  handOver(): Promise<void>;
}

const SESSION_WAIT_MS = 20_000;
/** Programs wait in the kernel meanwhile: to give up would only begin again. */
const TAKEOVER_WAIT_MS = 60_000;
/** Users of open files after the mount was taken out of sight. */
const LAZY_WAIT_MS = 5_000;

function openRecord(
  { record, onBroken }: NonNullable<MountProcessOptions["worker"]>,
  logger: Logger,
): WorkerRecord {
  return new WorkerRecord(new FileRecord(record), (error) => {
    logger.error({ error: describeError(error) }, "the mount will not outlive its worker");
    onBroken();
  });
}

/** The kernel asks once, instead of with every file that is written to or listed. */
function withoutXattrs(fileSystem: FileSystem): FileSystem {
  const { getxattr: _, setxattr: _s, listxattr: _l, removexattr: _r, ...rest } = fileSystem;
  return rest;
}

async function driverOf(name: "kernel" | "fuse-native"): Promise<MountFileSystem> {
  const module =
    name === "kernel" ? await import("./fuse/device.js") : await import("./fuse/fuse-native.js");
  return module.mountFileSystem;
}

/**
 * Resolves when the mount is usable. Errors: Configuration (options, FUSE), those of the mount
 * point, TimedOut or Unreachable when the cluster does not answer.
 */
export async function runMount(options: MountProcessOptions): Promise<RunningMount> {
  const { logger, config, mountpoint } = options;
  const parsed = parseMountOptions(options.mountOptions ?? []);
  const readOnly = options.readOnly === true || parsed.readOnly;
  const { clock, random } = nodePlatform;
  const { worker } = options;
  const record = worker === undefined ? undefined : openRecord(worker, logger);
  const inherited = record?.inherited;
  const cluster = await connectCluster({
    platform: nodePlatform,
    zookeeper: options.zookeeper,
    config,
    logger,
    type: "mount",
    instance: `${options.host}:mount:${mountpoint}`,
    host: options.host,
    detail: mountpoint,
    ...(record !== undefined && {
      worker: {
        ...{ log: record, generation: record.generation },
        ...(inherited !== undefined && { inherited }),
      },
    }),
  });
  const { mds, maps, messenger } = cluster;
  // An object operation waits as long as it takes: it may carry data that exist nowhere else.
  const objects = new SessionObjects(
    (client) => new Objecter({ messenger, maps, clock, random, logger, client: () => client }),
  );
  // The file system has ended the session by then, or could not.
  const unwind = async (): Promise<void> => {
    objects.close();
    await cluster.close({ force: true });
  };
  try {
    mds.onSession((client) => objects.onSession(client));
    const vfs = new Vfs({
      mds,
      objects,
      clock,
      random,
      logger,
      cacheBytes: parsed.cacheBytes ?? config.client.cacheBytes,
      writeBackBytesMax: config.client.writeBackBytesMax,
      writeBackAgeMs: config.client.writeBackAgeMs,
      readAheadBytes: config.client.readAheadBytes,
      inodesMax: config.client.inodesMax,
      attributeValidMs: parsed.cacheBytes === 0 ? 0 : config.client.attributeLeaseMs,
      sync: parsed.sync,
      ...(record !== undefined && { record }),
      atime: { ...parsed.atime, ...(readOnly && { mode: "noatime" as const }) },
      owner: parsed.owner,
    });
    // Whatever is wrong below the root shows now, not with the first user's request.
    const begin = async (): Promise<void> => {
      if (inherited === undefined) await mds.open(SESSION_WAIT_MS);
      else await vfs.takeOver(inherited, TAKEOVER_WAIT_MS);
      await vfs.getattr(1);
    };
    if (worker?.negotiated === undefined) await begin();

    const mountFileSystem = await driverOf(options.driver);
    const { driver } = options;
    const about = (): Record<string, unknown> => ({
      ...{ mountpoint, driver, client: mds.client, options: options.mountOptions ?? [] },
      ...vfs.report(),
    });
    const { abortStuckMs } = config.client;
    const onStuck = (what: string): void => {
      logger.error({ what, abortStuckMs }, "the mount is stuck and ends");
      options.onStuck(what);
    };
    const dropCaches = (): Promise<void> => vfs.dropCaches();
    const parts = { clock, logger, about, dropCaches, abortStuckMs, onStuck };
    const observed = observe(vfs, parts);
    const fileSystem = parsed.xattrs ? observed.fileSystem : withoutXattrs(observed.fileSystem);
    const mounted = await mountFileSystem(fileSystem, {
      mountpoint,
      logger,
      allowOther: parsed.allowOther,
      readOnly,
      allowNonEmpty: options.allowNonEmpty === true || parsed.allowNonEmpty,
      extraOptions: parsed.extra,
      ...(record !== undefined && { record }),
      ...(worker !== undefined && { held: worker, beforeResume: begin }),
      ...(parsed.sourceName === undefined ? {} : { sourceName: parsed.sourceName }),
    });
    // Its failure is told to who waits for `done`.
    void mounted.done.finally(() => observed.stop()).catch(() => undefined);
    const generation = record?.generation ?? 0;
    logger.info({ mountpoint, client: mds.client, driver, worker: generation }, "mounted");
    options.onReady?.();
    return runningMount({ mounted, vfs, logger, unwind });
  } catch (error) {
    await unwind().catch((failure: unknown) => {
      logger.warn({ error: describeError(failure) }, "while giving up");
    });
    throw error;
  }
}

function runningMount(parts: {
  mounted: Mounted;
  vfs: Vfs;
  logger: Logger;
  unwind: () => Promise<void>;
}): RunningMount {
  const { mounted, vfs, logger, unwind } = parts;
  const ended = mounted.done.then(
    () => undefined,
    (error: unknown) => (error instanceof Error ? error : new Error(describeError(error))),
  );
  let stopping: Promise<void> | undefined;
  const stop = async (): Promise<void> => {
    try {
      await unmountAtLast(mounted, logger);
      await vfs.destroy();
    } finally {
      await unwind();
    }
  };
  const handOver = async (): Promise<void> => {
    const goOn = await mounted.pause?.();
    try {
      await vfs.handOver();
    } catch (error) {
      goOn?.();
      throw error;
    }
  };
  return { ended, stop: () => (stopping ??= stop()), handOver };
}

/** Out of sight in any case; whoever has files open may finish for a little while. */
async function unmountAtLast(mounted: Mounted, logger: Logger): Promise<void> {
  try {
    await mounted.unmount();
  } catch (error) {
    if (!isDssError(error, "Busy")) throw error;
    logger.warn({ mountpoint: mounted.mountpoint }, "files are open: unmounting lazily");
    await mounted.unmount({ lazy: true });
    const { clock } = nodePlatform;
    await Promise.race([
      mounted.done,
      new Promise<void>((resolve) => clock.setTimer(LAZY_WAIT_MS, resolve)),
    ]);
  }
}
