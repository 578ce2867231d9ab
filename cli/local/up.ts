/**
 * `dss cluster up`: brings every part of a cluster on this machine to run and waits until it is
 * usable. Starts only what is missing; a part that runs is never touched. Order: ZooKeeper, then
 * metadata servers and OSDs together, then the mount. Every start is recorded before the next.
 */
import { existsSync, mkdirSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { DssError, isDssError } from "../../cluster/base/errors.js";
import { loadConfig } from "../../cluster/config/load.js";
import { allPgs } from "../../cluster/map/cluster-map.js";
import { ClusterClient } from "../context.js";
import { UsageError } from "../failure.js";
import { rememberCluster } from "./folders.js";
import { lockFolder } from "./lock.js";
import {
  MAIN,
  checkMountpoint,
  isMountAlive,
  probe,
  readRecord,
  startMount,
  stopMount,
  takeAway,
} from "./mounts.js";
import { plan, preferredOsdPort, PREFERRED, type UpOptions } from "./plan.js";
import { isFree, pickPort } from "./ports.js";
import { failureIn, startDetached, stop, type Started } from "./process.js";
import {
  checkUsable,
  newState,
  readState,
  running,
  writeState,
  zookeeperAddress,
  type LocalCluster,
  type LocalProcess,
} from "./state.js";
import { servesRequests, startZooKeeper } from "./zookeeper.js";

const LOCK_MS = 60_000;
const ZOOKEEPER_MS = 40_000;
const READY_MS = 60_000;
const STOP_MS = 5_000;

export interface UpRequest extends UpOptions {
  folder: string;
  say(line: string): void;
}
export interface UpResult {
  state: LocalCluster;
  /** Names of what was started; empty when everything ran. */
  started: string[];
}

interface Work {
  folder: string;
  state: LocalCluster;
  /** Started by this command, to notice when one ends. */
  children: { name: string; log: string; process: Started }[];
  started: string[];
  say(line: string): void;
}

export async function bringUp(request: UpRequest): Promise<UpResult> {
  const folder = resolve(request.folder);
  checkUsable(folder);
  const unlock = await lockFolder(folder, LOCK_MS);
  try {
    checkUsable(folder);
    const found = readState(folder);
    const state = found ?? newState("");
    const work: Work = { folder, state, children: [], started: [], say: request.say };
    await settle(work, request, found === undefined);
    try {
      await startMissing(work);
    } catch (error) {
      // A cluster that exists may be recovering from a crash: what was started goes on with that.
      if (found === undefined) await stopStarted(work);
      throw error;
    }
    return { state, started: work.started };
  } finally {
    await unlock();
  }
}

async function startMissing(work: Work): Promise<void> {
  mkdirSync(join(work.folder, "log"), { recursive: true, mode: 0o755 });
  rememberCluster(work.folder);
  await startServers(work);
  await Promise.all([startAll(work, "mds"), startAll(work, "osd")]);
  await untilReady(work);
  await ensureMount(work);
}

/** A first start that failed leaves nothing but logs. */
async function stopStarted(work: Work): Promise<void> {
  for (const role of ["osd", "mds", "zookeeper"]) {
    const ours = work.children.filter(({ name }) => name.startsWith(role));
    await Promise.all(ours.map(({ process }) => stop(process, STOP_MS)));
  }
}

// ---- What there shall be -----------------------------------------------------------------------

/** Brings the recorded daemons and ports to what is wanted, and writes the record. */
async function settle(work: Work, request: UpRequest, isNew: boolean): Promise<void> {
  const { state } = work;
  const wanted = plan(state, request, isNew);
  const mount = resolve(wanted.mount);
  if (mount !== state.mount && readMountOf(state) !== undefined) {
    throw new UsageError(
      `the cluster is mounted at ${state.mount}`,
      `mount it at a second place with: dss mount ${mount}`,
    );
  }
  state.mount = mount;
  await checkMountTarget(mount);
  const taken = new Set<number>();
  if ("external" in wanted.zookeeper) state.zookeeper = wanted.zookeeper;
  else await settleZooKeeper(work, wanted.zookeeper.servers, taken);
  for (const [kind, list, count] of [
    ["mds", state.mds, wanted.mds],
    ["osd", state.osds, wanted.osds],
  ] as const) {
    for (let id = 0; id < count; id++) {
      const preferred = kind === "mds" ? PREFERRED.mds + id : preferredOsdPort(id);
      const daemon = list.find((each) => each.id === id);
      if (daemon === undefined) list.push({ id, port: await pickPort(preferred, taken) });
      else if (running(state, `${kind}.${id}`) !== undefined) taken.add(daemon.port);
      else if (!taken.has(daemon.port) && (await isFree(daemon.port))) taken.add(daemon.port);
      // Another program has the port now: daemons announce their addresses, so any other will do.
      else daemon.port = await pickPort(preferred, taken);
    }
  }
  writeState(work.folder, state);
}

/**
 * The address of a server is known to every program that runs, so it changes only when none does.
 */
async function settleZooKeeper(work: Work, count: number, taken: Set<number>): Promise<void> {
  const { state } = work;
  if ("external" in state.zookeeper) return;
  const { servers } = state.zookeeper;
  const idle = !state.processes.some((each) => running(state, each.name) !== undefined);
  for (let id = 1; id <= count; id++) {
    const server = servers.find((each) => each.id === id);
    const isRunning = running(state, `zookeeper.${id}`) !== undefined;
    if (server !== undefined && (isRunning || (await isFree(server.port)))) {
      for (const port of [server.port, server.peerPort, server.electionPort]) taken.add(port);
      continue;
    }
    if (server !== undefined && !idle) {
      throw new DssError("Busy", `port ${server.port} of ZooKeeper is taken by another program`, {
        hint: "stop that program; or `dss cluster down`, then `up`, to use another port",
      });
    }
    const next = {
      id,
      port: await pickPort(PREFERRED.zookeeper + id - 1, taken),
      peerPort: await pickPort(PREFERRED.zookeeperPeer + id - 1, taken),
      electionPort: await pickPort(PREFERRED.zookeeperElection + id - 1, taken),
    };
    if (server === undefined) servers.push(next);
    else Object.assign(server, next);
  }
}

// ---- Starting ----------------------------------------------------------------------------------

const logOf = (folder: string, name: string): string => join(folder, "log", `${name}.log`);

function record(work: Work, entry: LocalProcess): void {
  const { processes } = work.state;
  const index = processes.findIndex((each) => each.name === entry.name);
  if (index < 0) processes.push(entry);
  else processes[index] = entry;
  writeState(work.folder, work.state);
}

function onStarted(
  work: Work,
  process: Started,
  about: Pick<LocalProcess, "name" | "role" | "data" | "log">,
): void {
  const { pid, startTicks, bootId } = process;
  record(work, { ...about, pid, startTicks, bootId });
  work.children.push({ name: about.name, log: about.log, process });
  work.started.push(about.name);
}

async function startServers(work: Work): Promise<void> {
  const { state, folder } = work;
  if ("external" in state.zookeeper) return;
  const { servers } = state.zookeeper;
  for (const server of servers) {
    const name = `zookeeper.${server.id}`;
    if (running(state, name) !== undefined) continue;
    const data = join(folder, name);
    const log = logOf(folder, name);
    const process = await startZooKeeper(server, servers, { folder: data, log });
    onStarted(work, process, { name, role: "zookeeper", data, log });
  }
  // A majority is enough to go on; the others join on their own.
  const start = performance.now();
  for (;;) {
    const serving = await Promise.all(servers.map((server) => servesRequests(server.port)));
    if (serving.filter(Boolean).length * 2 > servers.length) return;
    throwIfEnded(work);
    if (performance.now() - start > ZOOKEEPER_MS) {
      throw new DssError("TimedOut", `ZooKeeper did not start within ${ZOOKEEPER_MS / 1000} s`, {
        hint: `see ${logOf(folder, "zookeeper.1")}`,
      });
    }
    await sleep(40);
  }
}

async function startAll(work: Work, role: "mds" | "osd"): Promise<void> {
  const { state, folder } = work;
  for (const { id, port } of role === "mds" ? state.mds : state.osds) {
    const name = `${role}.${id}`;
    if (running(state, name) !== undefined) continue;
    const data = join(folder, name);
    const log = logOf(folder, name);
    const args = [MAIN, role, "start", String(id), "--port", String(port)];
    if (role === "osd") args.push("--data", data);
    else args.push("--expect-osds", String(state.osds.length));
    args.push("--zookeeper", zookeeperAddress(state));
    const process = await startDetached({ program: globalThis.process.execPath, args, log });
    onStarted(work, process, { name, role, data: role === "osd" ? data : "", log });
  }
}

function throwIfEnded(work: Work): void {
  for (const { name, log, process } of work.children) {
    const ended = process.ended();
    if (ended !== undefined) throw failureIn(log, process.logStart, `${name} did not start`, ended);
  }
}

// ---- Ready -------------------------------------------------------------------------------------

/** Waits until there is a leader, every OSD of ours is up and every PG has an active primary. */
async function untilReady(work: Work): Promise<void> {
  const start = performance.now();
  const client = await ClusterClient.open(zookeeperAddress(work.state));
  try {
    for (;;) {
      const missing = await whatIsMissing(work, client);
      if (missing === undefined) return;
      throwIfEnded(work);
      if (performance.now() - start > READY_MS) {
        throw new DssError("TimedOut", `not ready after ${READY_MS / 1000} s: ${missing}`, {
          hint: `see dss health detail and the logs in ${join(work.folder, "log")}`,
        });
      }
      await sleep(40);
    }
  } finally {
    await client.close();
  }
}

async function whatIsMissing(work: Work, client: ClusterClient): Promise<string | undefined> {
  try {
    await client.refresh();
    const { map, leader } = client;
    if (leader === undefined) return "no metadata server leads";
    if (map === undefined) return "there is no cluster map";
    for (const { id } of work.state.osds) {
      const entry = map.osds.find((osd) => osd.id === id);
      if (entry === undefined || !entry.up) return `osd.${id} is not up`;
    }
    if (map.pools.length === 0) return "there is no pool";
    const reports = await client.osdReports();
    const active = new Set(
      reports.flatMap(({ status }) =>
        (status?.pgs ?? []).filter((pg) => pg.state === "active").map((pg) => pg.pg),
      ),
    );
    // A PG that waits for an OSD that was lost is for health to tell, not a reason not to start.
    const waiting = [...allPgs(map)].filter(
      ({ pg, entry }) =>
        !active.has(pg) && map.osds.some((osd) => osd.id === entry.primary && osd.up),
    );
    const created = [...allPgs(map)].some(({ entry }) => entry.primary >= 0);
    if (!created) return "no placement group has a primary";
    return waiting.length === 0 ? undefined : `${waiting.length} placement groups are not active`;
  } catch (error) {
    if (isDssError(error) && error.retry === "same") return error.message;
    throw error;
  }
}

// ---- The mount ---------------------------------------------------------------------------------

/** The mount of the cluster, if its process runs. */
function readMountOf(state: LocalCluster): LocalProcess | undefined {
  return state.mount === "" ? undefined : running(state, "mount");
}

/** Said before anything is started. Errors: NotDirectory, NotEmpty, Busy. */
async function checkMountTarget(path: string): Promise<void> {
  const condition = await probe(path);
  if (condition === "dead") return;
  if (condition === "none") {
    // Only now: a look at a mount that waits for what this command is to start would wait too.
    if (existsSync(path)) await checkMountpoint(path);
    return;
  }
  const record = readRecord(path);
  if (record !== undefined && isMountAlive(record)) return;
  throw new DssError("Busy", `${path} is a mount that this command did not make`, {
    hint: `unmount it (umount ${path}), or choose another one with --mount`,
  });
}

/** A mount that waited for servers answers soon after they are back. */
async function untilAnswers(mountpoint: string): ReturnType<typeof probe> {
  const start = performance.now();
  for (;;) {
    const condition = await probe(mountpoint);
    if (condition !== "hung" || performance.now() - start > READY_MS) return condition;
  }
}

async function ensureMount(work: Work): Promise<void> {
  const { state, folder } = work;
  const condition = await untilAnswers(state.mount);
  const known = readRecord(state.mount);
  if (condition === "usable" && known !== undefined && isMountAlive(known)) {
    const { pid, startTicks, bootId, log } = known;
    if (readMountOf(state) === undefined) {
      record(work, {
        name: "mount",
        role: "mount",
        pid,
        startTicks,
        bootId,
        data: state.mount,
        log,
      });
    }
    return;
  }
  if (condition === "dead") await takeAway(state.mount);
  if (known !== undefined && !isMountAlive(known)) {
    // Its worker was killed; what that lost is reported once, here.
    await stopMount(state.mount, { force: true });
    work.say(`the process of ${state.mount} had died: mounting it again`);
  }
  if (condition === "none") makeMountpoint(state.mount);
  const log = logOf(folder, "mount");
  // What the cluster's daemons are told they are told by the environment, and so is the mount.
  const survival = loadConfig({ environment: process.env }).client;
  const zookeeper = zookeeperAddress(state);
  const mounted = await startMount({ path: state.mount, zookeeper, log, survival });
  const { pid, startTicks, bootId } = mounted;
  record(work, { name: "mount", role: "mount", pid, startTicks, bootId, data: state.mount, log });
  work.started.push("mount");
}

function makeMountpoint(path: string): void {
  try {
    mkdirSync(path, { recursive: true });
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === "EEXIST" || code === "ENOTDIR") {
      throw new DssError("NotDirectory", `mount point ${path} is not a directory`, { cause });
    }
    throw new DssError("AccessDenied", `cannot create mount point ${path} in ${dirname(path)}`, {
      cause,
      hint: "create it as root, or choose another one with --mount",
    });
  }
}
