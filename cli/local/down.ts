/**
 * `dss cluster down`: unmounts (which writes everything back), then stops what `up` started, those
 * first that depend on the others. Every wait is bounded. A mount that is in use stops the command
 * before anything else is touched.
 */
import { rmSync } from "node:fs";
import { resolve } from "node:path";
import { DssError, isDssError } from "../../cluster/base/errors.js";
import { forgetCluster } from "./folders.js";
import { lockFolder } from "./lock.js";
import { allMounts, isMountAlive, stopMount } from "./mounts.js";
import { stop } from "./process.js";
import { readState, running, writeState, zookeeperAddress, type LocalCluster } from "./state.js";
import { allAttachments, detach } from "./attachments.js";

const LOCK_MS = 60_000;
/** A process that is about to end may hold the mount for a moment. */
const BUSY_MS = 3_000;
const GRACE_MS = { mount: 30_000, osd: 15_000, mds: 10_000, zookeeper: 10_000 } as const;

export interface DownRequest {
  folder: string;
  purge: boolean;
  force: boolean;
  say(line: string): void;
}

/** Names of what was stopped. */
export async function bringDown(request: DownRequest): Promise<string[]> {
  const folder = resolve(request.folder);
  if (readState(folder) === undefined) {
    throw new DssError("NotFound", `there is no cluster in ${folder}`, {
      hint: "name its folder with --data",
    });
  }
  const unlock = await lockFolder(folder, LOCK_MS);
  try {
    const state = readState(folder);
    if (state === undefined) return [];
    const stopped = await stopClients(state, request);
    for (const role of ["mount", "osd", "mds", "zookeeper"] as const) {
      stopped.push(...(await stopRole(state, role, request)));
    }
    state.processes = [];
    writeState(folder, state);
    forgetCluster(folder);
    // Only a folder that carries our marker gets here.
    if (request.purge) rmSync(folder, { recursive: true, force: true, maxRetries: 3 });
    return stopped;
  } finally {
    await unlock();
  }
}

/** Volumes and mounts that live on this cluster, whoever started them: they would only hang. */
async function stopClients(state: LocalCluster, request: DownRequest): Promise<string[]> {
  const zookeeper = zookeeperAddress(state);
  const stopped: string[] = [];
  for (const attachment of allAttachments().filter((each) => each.zookeeper === zookeeper)) {
    await detach(attachment);
    stopped.push(`volume ${attachment.volume}`);
  }
  for (const mount of allMounts().filter((each) => each.zookeeper === zookeeper)) {
    const wasAlive = isMountAlive(mount);
    try {
      await stopMount(mount.mountpoint, { force: request.force, busyMs: BUSY_MS });
    } catch (error) {
      // The mount is gone either way; what could not be written back is said, and the rest stops.
      if (!isDssError(error, "Disk")) throw error;
      request.say(`${error.message} (${error.hint ?? ""})`);
    }
    if (wasAlive) stopped.push(`mount ${mount.mountpoint}`);
  }
  return stopped;
}

async function stopRole(
  state: LocalCluster,
  role: keyof typeof GRACE_MS,
  request: DownRequest,
): Promise<string[]> {
  const ours = state.processes.filter((each) => each.role === role);
  const outcomes = await Promise.all(
    ours.map(async (each) => {
      if (running(state, each.name) === undefined) return undefined;
      const outcome = await stop(each, GRACE_MS[role]);
      if (outcome === "killed") {
        request.say(
          `${each.name} (${each.pid}) did not end within ${GRACE_MS[role] / 1000} s: killed`,
        );
      }
      return each.name;
    }),
  );
  return outcomes.filter((name) => name !== undefined);
}
