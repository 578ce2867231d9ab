/**
 * A volume under supervision in this process: its server runs as a child that may die, and what is
 * connected here goes on with the next one (nbd/supervisor.ts).
 */
import { createHash, randomUUID } from "node:crypto";
import { mkdirSync, rmSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { DssError } from "../../cluster/base/errors.js";
import type { Logger } from "../../cluster/base/log.js";
import type { Config } from "../../cluster/config/options.js";
import { nodePlatform } from "../../cluster/platform/node.js";
import { formatAddress, type Address } from "../../cluster/platform/ports.js";
import type { ServerTls } from "../../nbd/connection.js";
import { inOrder, refuseTaken, type RunningNbd } from "../../nbd/main.js";
import { NbdServer } from "../../nbd/server.js";
import { Supervisor } from "../../nbd/supervisor.js";
import { mountFileSystem } from "../../client-fs/fuse/device.js";
import type { Mounted } from "../../client-fs/fuse/driver.js";
import { runtimeFolder } from "./folders.js";
import { forkServer } from "./server-process.js";
import { VolumeFileSystem } from "./volume-file.js";
import type { VolumeServerStart } from "./volume-server.js";

const SERVER = fileURLToPath(new URL("./volume-server.js", import.meta.url));
/** Larger would not fit the kernel's address of a unix socket. */
export const SOCKET_PATH_MAX = 107;

export interface SuperviseOptions {
  volume: string;
  zookeeper: string;
  config: Config;
  logger: Logger;
  readOnly: boolean;
  /** Takes the volume from its owner, once. */
  force: boolean;
  /**
   * What the supervisor is for, on this machine: of two for the same purpose the later one's server
   * has the earlier one's fenced.
   */
  purpose: string;
}

/** Not started. `onLost`: see Supervisor. */
export function supervisorOf(
  options: SuperviseOptions,
  onLost: (error: DssError) => void,
): { supervisor: Supervisor; socket: string } {
  const { volume, zookeeper, config, logger, readOnly, force, purpose } = options;
  const folder = join(runtimeFolder(), "servers");
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const hash = createHash("sha256").update(`${volume}\n${purpose}`).digest("hex").slice(0, 16);
  const socket = join(folder, `${hash}.sock`);
  if (Buffer.byteLength(socket) > SOCKET_PATH_MAX) {
    throw new DssError("NameTooLong", `${socket} is too long for a unix socket`, {
      hint: "set XDG_RUNTIME_DIR or DSS_DATA to a shorter path",
    });
  }
  const holder = randomUUID();
  const supervisor = new Supervisor({
    name: volume,
    ...{ network: nodePlatform.network, clock: nodePlatform.clock, log: logger, onLost },
    spawn: ({ continues }) => {
      const lock = { holder, continues, force: force && !continues };
      const start: VolumeServerStart = {
        ...{ volume, socket, zookeeper, config, host: hostname(), readOnly, lock },
      };
      return forkServer({ program: SERVER, start, title: [volume, socket] });
    },
  });
  return { supervisor, socket };
}

/**
 * The volume as the file FOLDER/NAME, for what takes files; ends when that is unmounted. Errors:
 * those of `runNbd`, and of mounting.
 */
export async function runVolumeFile(
  options: Omit<SuperviseOptions, "purpose"> & {
    folder: string;
    onReady: (path: string) => void;
  },
): Promise<RunningNbd> {
  const { volume, logger, folder, readOnly } = options;
  let finish: (error: Error | undefined) => void = () => undefined;
  const ended = new Promise<Error | undefined>((resolve) => (finish = resolve));
  const { supervisor, socket } = supervisorOf({ ...options, purpose: `file in ${folder}` }, finish);
  let mounted: Mounted | undefined;
  let stopping: Promise<void> | undefined;
  const stop = (): Promise<void> => {
    stopping ??= inOrder([
      () => mounted?.unmount({ lazy: true }),
      () => mounted?.done,
      () => supervisor.stop(),
      () => rmSync(socket, { force: true }),
    ]).finally(() => finish(undefined));
    return stopping;
  };
  try {
    await supervisor.start();
    if (!Number.isSafeInteger(supervisor.image.size)) {
      throw new DssError("FileTooLarge", `${volume} is larger than a file can be`, {
        hint: "use it by NBD: dss volume serve",
      });
    }
    const files = new VolumeFileSystem(supervisor.image, nodePlatform.clock.wallNs(), () =>
      supervisor.refresh(),
    );
    mounted = await mountFileSystem(files, {
      ...{ mountpoint: folder, logger, readOnly, allowOther: false },
      sourceName: `dss:${volume}`,
    });
    mounted.done.then(
      () => finish(undefined),
      (error: unknown) => finish(error as Error),
    );
    const path = join(folder, volume);
    logger.info({ volume, path, server: supervisor.figures.pid }, "the volume is a file");
    options.onReady(path);
    return { ended, stop };
  } catch (error) {
    await stop().catch(() => undefined); // The first failure is the one to tell.
    throw error;
  }
}

/** Errors: those of `runNbd`. */
export async function runSupervised(
  options: Omit<SuperviseOptions, "purpose"> & {
    listen: readonly Address[];
    tls?: ServerTls;
    onReady: (addresses: readonly Address[]) => void;
  },
): Promise<RunningNbd> {
  const { volume, config, logger, listen, tls } = options;
  let finish: (error: Error | undefined) => void = () => undefined;
  const ended = new Promise<Error | undefined>((resolve) => (finish = resolve));
  const [first] = listen;
  const isFree = first !== undefined && "port" in first && first.port === 0;
  const purpose = isFree ? `process ${process.pid}` : listen.map(formatAddress).join(", ");
  for (const address of listen) await refuseTaken(address);
  const { supervisor, socket } = supervisorOf({ ...options, purpose }, finish);
  const server = new NbdServer({
    network: nodePlatform.network,
    clock: nodePlatform.clock,
    log: logger,
    directory: supervisor,
    limits: config.nbd,
    defaultExport: volume,
    ...(tls !== undefined && { tls }),
  });
  let stopping: Promise<void> | undefined;
  const stop = (): Promise<void> => {
    stopping ??= inOrder([
      () => server.stop(),
      () => supervisor.stop(),
      () => rmSync(socket, { force: true }),
    ]).finally(() => finish(undefined));
    return stopping;
  };
  try {
    await supervisor.start();
    const addresses: Address[] = [];
    for (const address of listen) addresses.push(await server.listen(address));
    logger.info({ volume, server: supervisor.figures.pid }, "the volume can be used");
    options.onReady(addresses);
    return { ended, stop };
  } catch (error) {
    await stop().catch(() => undefined); // The first failure is the one to tell.
    throw error;
  }
}
