/**
 * Runs one mount as (part of) a process: ZooKeeper, the cluster map, the metadata session,
 * objects, the file system and its FUSE driver; and ends it in good order. Owns all of them.
 */
import { DssError, describeError, isDssError } from "../cluster/base/errors.js";
import { ANONYMOUS_ENTITY } from "../cluster/base/ids.js";
import type { Logger } from "../cluster/base/log.js";
import type { Config } from "../cluster/config/options.js";
import { RpcMessenger } from "../cluster/messenger/rpc.js";
import { nodePlatform } from "../cluster/platform/node.js";
import type { Address } from "../cluster/platform/ports.js";
import type { Coordination } from "../cluster/zk/coordination.js";
import { watchLeader } from "../cluster/zk/election.js";
import { MapWatch } from "../cluster/zk/map-watch.js";
import { connectZooKeeper } from "../cluster/zk/session.js";
import { MdsClient, type LeaderSource } from "../mds/client/mds-client.js";
import { Objecter } from "../osd/client/objecter.js";
import type { MountFileSystem, Mounted } from "./fuse/driver.js";
import { SessionObjects } from "./vfs/session-objects.js";
import { Vfs } from "./vfs/vfs.js";

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
}

export interface RunningMount {
  /** Resolves when the process should end: undefined after an unmount, the error otherwise. */
  readonly ended: Promise<Error | undefined>;
  /** Unmounts, flushes and ends the session; users of open files get a few seconds. */
  stop(): Promise<void>;
}

/** Handed to mount(8) as they are. */
const KERNEL_OPTIONS: ReadonlySet<string> = new Set([
  "suid",
  "nosuid",
  "dev",
  "nodev",
  "exec",
  "noexec",
  "atime",
  "noatime",
  "nodiratime",
  "relatime",
  "strictatime",
  "dirsync",
]);
/** Accepted without effect: fstab and mount(8) write them, and they are how dss works anyway. */
const SILENT_OPTIONS: ReadonlySet<string> = new Set([
  "rw",
  "async",
  "auto",
  "noauto",
  "nofail",
  "_netdev",
  "defaults",
  "allow_other",
  "default_permissions",
]);

const MAP_WAIT_MS = 10_000;
const SESSION_WAIT_MS = 20_000;
/** Users of open files after the mount was taken out of sight. */
const LAZY_WAIT_MS = 5_000;

interface ParsedOptions {
  sync: boolean;
  readOnly: boolean;
  allowNonEmpty: boolean;
  allowOther: boolean;
  sourceName: string | undefined;
  extra: string[];
}

function parseOptions(list: readonly string[]): ParsedOptions {
  const parsed: ParsedOptions = {
    sync: false,
    readOnly: false,
    allowNonEmpty: false,
    allowOther: true,
    sourceName: undefined,
    extra: [],
  };
  for (const option of list) {
    if (KERNEL_OPTIONS.has(option)) parsed.extra.push(option);
    else if (option === "sync") parsed.sync = true;
    else if (option === "ro") parsed.readOnly = true;
    else if (option === "nonempty") parsed.allowNonEmpty = true;
    else if (option === "noallow_other") parsed.allowOther = false;
    else if (option.startsWith("fsname=")) parsed.sourceName = option.slice("fsname=".length);
    else if (!SILENT_OPTIONS.has(option) && !option.startsWith("x-")) {
      const known = ["ro", "sync", "nonempty", "noallow_other", "fsname=NAME", ...KERNEL_OPTIONS];
      throw new DssError("Configuration", `mount option "${option}" is not known`, {
        hint: `known are ${known.join(", ")}`,
      });
    }
  }
  return parsed;
}

/** The MDS leader as ZooKeeper names it. */
export class ZooKeeperLeader implements LeaderSource {
  private leader: { address: Address; term: number } | undefined;
  private readonly listeners = new Set<() => void>();
  private readonly watch: { stop(): void };

  constructor(coordination: Coordination, logger: Logger) {
    this.watch = watchLeader(coordination, logger, (leader) => {
      this.leader = leader && { address: leader.address, term: leader.term };
      for (const listener of [...this.listeners]) listener();
    });
  }
  current(): { address: Address; term: number } | undefined {
    return this.leader;
  }
  onChange(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => void this.listeners.delete(listener);
  }
  close(): void {
    this.watch.stop();
  }
}

async function driverOf(name: "kernel" | "fuse-native"): Promise<MountFileSystem> {
  const module =
    name === "kernel"
      ? await import("./fuse/device.js")
      : await import("./fuse/fuse-native.js");
  return module.mountFileSystem;
}

/**
 * Resolves when the mount is usable. Errors: Configuration (options, FUSE), those of the mount
 * point, TimedOut or Unreachable when the cluster does not answer.
 */
export async function runMount(options: MountProcessOptions): Promise<RunningMount> {
  const { logger, config, mountpoint } = options;
  const parsed = parseOptions(options.mountOptions ?? []);
  const { clock, random, network } = nodePlatform;
  const undo: (() => Promise<void> | void)[] = [];
  const unwind = async (): Promise<void> => {
    for (const step of undo.reverse()) await step();
    undo.length = 0;
  };
  try {
    const coordination = await connectZooKeeper({
      servers: options.zookeeper,
      clock,
      log: logger,
      sessionTimeoutMs: config.cluster.zkSessionMs,
    });
    undo.push(() => coordination.close());
    const maps = new MapWatch(coordination, clock, logger);
    undo.push(() => maps.close());
    await maps.atLeast(1, MAP_WAIT_MS);
    const leader = new ZooKeeperLeader(coordination, logger);
    undo.push(() => leader.close());

    const messenger = new RpcMessenger({
      clock,
      network,
      random,
      logger,
      entity: ANONYMOUS_ENTITY,
      role: "mount",
      clusterId: () => maps.current().clusterId,
      limits: { inFlightBytesMax: config.cluster.connectionInFlightBytesMax },
    });
    undo.push(() => messenger.close());
    messenger.setEpoch(maps.current().epoch);
    undo.push(maps.onChange((map) => messenger.setEpoch(map.epoch)));

    const mds = new MdsClient({
      messenger,
      clock,
      random,
      leader,
      logger,
      type: "mount",
      instance: `${options.host}:mount:${mountpoint}`,
      host: options.host,
      pid: process.pid,
      detail: mountpoint,
      operationDeadlineMs: config.client.requestDeadlineMs,
    });
    // An object operation waits as long as it takes: it may carry data that exist nowhere else.
    const objects = new SessionObjects(
      (client) => new Objecter({ messenger, maps, clock, random, logger, client: () => client }),
    );
    mds.onSession((client) => objects.onSession(client));
    const vfs = new Vfs({
      mds,
      objects,
      clock,
      logger,
      cacheBytes: config.client.cacheBytes,
      writeBackBytesMax: config.client.writeBackBytesMax,
      writeBackAgeMs: config.client.writeBackAgeMs,
      readAheadBytes: config.client.readAheadBytes,
      attributeValidMs: config.client.attributeLeaseMs,
      sync: parsed.sync,
    });
    undo.push(() => objects.close());
    undo.push(() => mds.close({ force: true }));
    await mds.open(SESSION_WAIT_MS);
    // Whatever is wrong below the root shows now, not with the first user's request.
    await vfs.getattr(1);

    const mountFileSystem = await driverOf(options.driver);
    const mounted = await mountFileSystem(vfs, {
      mountpoint,
      logger,
      allowOther: parsed.allowOther,
      readOnly: options.readOnly === true || parsed.readOnly,
      allowNonEmpty: options.allowNonEmpty === true || parsed.allowNonEmpty,
      extraOptions: parsed.extra,
      ...(parsed.sourceName === undefined ? {} : { sourceName: parsed.sourceName }),
    });
    logger.info({ mountpoint, client: mds.client, driver: options.driver }, "mounted");
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
  return { ended, stop: () => (stopping ??= stop()) };
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
