/**
 * Runs one OSD as a process: store, ZooKeeper, messenger, daemon; and ends it in good order.
 */
import { hostname } from "node:os";
import { DssError, describeError } from "../cluster/base/errors.js";
import type { OsdId } from "../cluster/base/ids.js";
import type { Logger } from "../cluster/base/log.js";
import type { Config } from "../cluster/config/options.js";
import { RpcMessenger } from "../cluster/messenger/rpc.js";
import { nodePlatform } from "../cluster/platform/node.js";
import { formatAddress, type Platform } from "../cluster/platform/ports.js";
import type { Coordination } from "../cluster/zk/coordination.js";
import { MapWatch } from "../cluster/zk/map-watch.js";
import { newIncarnation, registerOsd } from "../cluster/zk/registration.js";
import { connectZooKeeper, type ConnectZooKeeper } from "../cluster/zk/session.js";
import { OsdDaemon, describeFatal } from "./daemon.js";
import type { CoordinatorClient } from "./membership.js";
import { UNKNOWN_META } from "./pg-record.js";
import type { ChunkStore } from "./store/chunk-store.js";
import { FileStore } from "./store/file-store.js";

export interface OsdProcessOptions {
  id: OsdId;
  /** Folder of the store; created when missing. */
  data: string;
  /** `host: "127.0.0.1", port: 0` picks a free port. */
  listen: { host: string; port: number };
  /** Failure domain; this machine's name when left out. */
  host?: string;
  weight: number;
  /** "host:port,…" */
  zookeeper: string;
  config: Config;
  logger: Logger;
  version: string;
  /** The way to the coordinator, made of this process's own parts. */
  coordinator: (parts: {
    messenger: RpcMessenger;
    coordination: Coordination;
    logger: Logger;
  }) => CoordinatorClient & { stop(): void };
  /** Called when clients can be served. */
  onReady?: (address: { host: string; port: number }) => void;
  /** The world that it runs in: this machine, unless the simulator gives another. */
  platform?: Platform;
  connect?: ConnectZooKeeper;
  /** The file store in `data`, unless the simulator gives another. */
  openStore?: (clusterId: string) => Promise<ChunkStore>;
}

export interface RunningOsd {
  /** Resolves when the process should end: undefined after `stop`, the error otherwise. */
  readonly ended: Promise<Error | undefined>;
  readonly daemon: OsdDaemon;
  readonly store: ChunkStore;
  stop(): Promise<void>;
}

/** A cluster that has no map yet is waited for in steps of this; each is logged. */
const MAP_WAIT_MS = 10_000;

export async function runOsd(options: OsdProcessOptions): Promise<RunningOsd> {
  const { id, logger, config, platform = nodePlatform, connect = connectZooKeeper } = options;
  const { clock, random, network } = platform;
  const coordination = await connect({
    servers: options.zookeeper,
    clock,
    log: logger,
    sessionTimeoutMs: config.cluster.zkSessionMs,
  });
  let finish: (error: Error | undefined) => void = () => undefined;
  const ended = new Promise<Error | undefined>((resolve) => (finish = resolve));
  const undo: (() => Promise<void> | void)[] = [() => coordination.close()];
  const unwind = async (): Promise<void> => {
    for (const step of undo.reverse()) await step();
    undo.length = 0;
  };
  const onFail = (error: Error): void => {
    logger.error({ error }, describeFatal(error));
    finish(error);
  };
  let store: ChunkStore;
  let daemon: OsdDaemon;
  try {
    const maps = new MapWatch(coordination, clock, logger);
    undo.push(() => maps.close());
    await firstMap(maps, logger);

    const { clusterId } = maps.current();
    store =
      options.openStore === undefined
        ? await openFileStore(options, platform, { clusterId, onFail })
        : await options.openStore(clusterId);
    undo.push(() => store.close());

    const messenger = new RpcMessenger({
      clock,
      network,
      random,
      logger,
      entity: id,
      role: "osd",
      clusterId: () => maps.current().clusterId,
      limits: { inFlightBytesMax: config.cluster.connectionInFlightBytesMax },
    });
    undo.push(() => messenger.close());
    const address = await messenger.listen(options.listen);
    if (!("port" in address)) throw new DssError("InvalidArgument", "an OSD listens on TCP");

    const coordinator = options.coordinator({ messenger, coordination, logger });
    undo.push(() => coordinator.stop());
    const incarnation = newIncarnation(random);
    daemon = new OsdDaemon({
      id,
      incarnation,
      version: options.version,
      clock,
      random,
      logger,
      messenger,
      maps,
      store,
      pid: process.pid,
      pgLogEntries: config.osd.pgLogEntries,
      readLeaseMs: config.cluster.readLeaseMs,
      replicaTimeoutMs: config.cluster.replicaTimeoutMs,
      heartbeatMs: config.cluster.heartbeatMs,
      heartbeatGraceMs: config.cluster.heartbeatGraceMs,
      workProfile: config.osd.workProfile,
      coordinator,
      scrub: {
        lightMs: config.osd.scrubIntervalMs,
        deepMs: config.osd.deepScrubIntervalMs,
        max: config.osd.scrubsMax,
        shownMs: config.osd.damageShownMs,
      },
      onFatal: onFail,
    });
    daemon.start();
    undo.push(() => daemon.stop());

    const registration = await registerOsd(
      coordination,
      {
        id,
        uuid: store.uuid,
        address,
        host: options.host ?? hostname(),
        weight: options.weight,
        incarnation,
        capacity: store.usage().total,
        pid: process.pid,
      },
      {
        onReplaced: () => {
          finish(new DssError("Conflict", `osd.${id} was started elsewhere with the same store`));
        },
      },
      logger,
    );
    undo.push(() => registration.close());
    logger.info({ address: formatAddress(address), store: store.uuid }, `osd.${id} is up`);
    options.onReady?.(address);
  } catch (error) {
    await unwind().catch((problem: unknown) => {
      logger.warn({ error: describeError(problem) }, "while giving up the start");
    });
    throw error;
  }
  return {
    ended,
    daemon,
    store,
    async stop() {
      await unwind();
      finish(undefined);
    },
  };
}

async function firstMap(maps: MapWatch, logger: Logger): Promise<void> {
  for (;;) {
    try {
      await maps.atLeast(1, MAP_WAIT_MS);
      return;
    } catch (error) {
      if (!(error instanceof DssError) || error.code !== "TimedOut") throw error;
      logger.warn({ error: describeError(error) }, "waiting for the first cluster map");
    }
  }
}

async function openFileStore(
  { id, data, config, logger }: OsdProcessOptions,
  { clock, random, disk }: Platform,
  cluster: { clusterId: string; onFail: (error: Error) => void },
): Promise<ChunkStore> {
  return FileStore.open(await disk(data), {
    osdId: id,
    ...cluster,
    damagedMeta: UNKNOWN_META,
    options: {
      walSegmentBytes: config.osd.walSegmentBytes,
      walSegments: config.osd.walSegments,
      directWriteBytes: config.osd.directWriteBytes,
      largeWrites: config.osd.largeWrites,
      overlayBytesMax: config.osd.overlayBytesMax,
      cacheBytes: config.osd.cacheBytes,
      reserveBytes: config.osd.reserveBytes,
    },
    logger,
    clock,
    random,
  });
}
