/**
 * Another system, started by a script NAME.sh of a folder that the user names:
 * `NAME.sh up|down|cold|block-up|block-down`. The script keeps everything below PEERS_ROOT/NAME:
 * the mount `mnt`, the list of processes `run/pids` (lines `PID STARTTIME server|client NAME`);
 * block-up prints an NBD address. Nothing of it may outlive the scope: whatever `down` leaves is
 * found by the mark in its environment and ended.
 */
import {
  accessSync,
  constants,
  existsSync,
  readFileSync,
  statfsSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { findLeftovers, RUN_VARIABLE } from "../../../tools/leftovers.js";
import { run } from "../../support/process.js";
import { tempFolder, withDeadline } from "../../support/temp.js";
import { Scope } from "../../support/scope.js";
import { SetupError } from "./system.js";
import type { BlockDevice, Running, System, SystemProcess } from "./system.js";

/** The first start may install the packages. */
const UP_MS = 900_000;
/** How long a start may go on after the benchmark was told to stop. */
const UP_GRACE_MS = 180_000;
const DOWN_MS = 180_000;
const COLD_MS = 180_000;
const BLOCK_MS = 60_000;

interface Peer {
  readonly name: string;
  readonly script: string;
  readonly env?: Readonly<Record<string, string>>;
  /** There when the system is installed. */
  readonly program: string;
  readonly packages: string;
  /** Disk space that a run needs. */
  readonly gigabytes: number;
  readonly storage: RegExp;
  readonly durability: string;
  /** A way to its block device without NBD, where that is the faster one. */
  readonly direct?: (base: string) => BlockDevice;
}

export const PEERS: readonly Peer[] = [
  {
    name: "ceph",
    script: "ceph",
    program: "ceph-osd",
    packages: "ceph-mon ceph-osd ceph-mds ceph-mgr ceph-fuse",
    gigabytes: 32,
    storage: /^osd\./,
    durability:
      "a write that reaches an OSD is synced in the log of all three before it is answered; librbd's " +
      "cache answers a block write before that, a flush waits for all",
    // librbd in fio: half of its small writes are lost on the way through NBD.
    direct: (base) => ({
      engine: ["--ioengine=rbd", "--clientname=admin", "--pool=rbd", "--rbdname=img"],
      env: { CEPH_CONF: join(base, "ceph.conf") },
    }),
  },
  {
    name: "gluster",
    script: "gluster",
    program: "glusterd",
    packages: "glusterfs-server glusterfs-client",
    gigabytes: 16,
    storage: /^brick/,
    durability:
      "an fsync is one on all three bricks; without it nothing is synced, and write-behind answers " +
      "even direct writes before any brick has them",
  },
  {
    name: "moosefs",
    script: "moosefs",
    program: "mfsmaster",
    packages: "moosefs-master moosefs-chunkserver moosefs-client",
    gigabytes: 16,
    storage: /^cs\d/,
    durability:
      "an fsync means that three chunkservers have the data in memory; nothing is synced to a disk, " +
      "neither data nor the master's change log",
  },
  {
    name: "moosefs-fsync",
    script: "moosefs",
    env: { FSYNC: "1" },
    program: "mfsmaster",
    packages: "moosefs-master moosefs-chunkserver moosefs-client",
    gigabytes: 16,
    storage: /^cs\d/,
    durability:
      "as moosefs, but a chunk is synced when it is closed: that covers new files, not overwrites",
  },
];

export function peerSystem(peer: Peer, folder: string): System {
  return {
    name: peer.name,
    durability: peer.durability,
    obstacle: () => obstacleOf(peer, folder),
    up: (scope) => startPeer(peer, folder, scope),
  };
}

export function isInstalled(program: string): boolean {
  const folders = [...(process.env["PATH"] ?? "").split(delimiter), "/usr/sbin", "/sbin"];
  return folders.some((folder) => {
    try {
      accessSync(join(folder, program), constants.X_OK);
      return folder !== "";
    } catch {
      return false;
    }
  });
}

function obstacleOf(peer: Peer, folder: string): string | undefined {
  const script = join(folder, `${peer.script}.sh`);
  if (!existsSync(script)) return `there is no ${script}`;
  const free = statfsSync(tmpdir());
  const gigabytes = Math.floor((free.bavail * free.bsize) / 1e9);
  if (gigabytes < peer.gigabytes) {
    return `${tmpdir()} has ${gigabytes} GB free and a run needs ${peer.gigabytes}: set TMPDIR`;
  }
  return undefined;
}

let started = 0;

async function startPeer(peer: Peer, folder: string, scope: Scope): Promise<Running> {
  const root = tempFolder(scope, "peers");
  const mark = `peers-${process.pid}-${++started}`;
  const running = new RunningPeer(peer, folder, root, mark, scope);
  scope.teardown(() => running.down());
  // Not stopped halfway: it may be installing packages, or have started a daemon that it has not
  // recorded yet.
  const starter = new Scope();
  const starting = running.up(starter);
  scope.teardown(async () => {
    // How it ended is told where it is awaited; here only that it did.
    await withDeadline(UP_GRACE_MS, `${peer.name}: up`, starting).catch(() => undefined);
    await starter.end();
  });
  await starting;
  return running;
}

class RunningPeer implements Running {
  readonly mount: string;
  private readonly base: string;

  constructor(
    private readonly peer: Peer,
    private readonly folder: string,
    private readonly root: string,
    private readonly mark: string,
    private readonly scope: Scope,
  ) {
    this.base = join(root, peer.script);
    this.mount = join(this.base, "mnt");
  }

  async up(scope: Scope): Promise<void> {
    await this.script("up", UP_MS, scope);
    if ((await this.processes()).length > 0) return;
    throw new SetupError(
      `${this.peer.script}.sh up left no processes in ${this.base}/run/pids: it has to keep its ` +
        "files below PEERS_ROOT/NAME",
    );
  }

  /** Not part of the scope, whose end calls it; bounded by its deadline instead. */
  async down(): Promise<void> {
    const alone = { teardown: () => undefined };
    try {
      await this.script("down", DOWN_MS, alone);
    } finally {
      for (const { what, remove } of findLeftovers(this.mark, this.root)) {
        const expected = what.startsWith("folder ") || what.startsWith("file ");
        if (!expected) process.stderr.write(`bench: ${this.peer.name} left ${what}: ended\n`);
        remove();
      }
    }
  }

  processes(): Promise<SystemProcess[]> {
    const path = join(this.base, "run", "pids");
    if (!existsSync(path)) return Promise.resolve([]);
    const all = parsePids(readFileSync(path, "utf8")).filter(isAlive);
    return Promise.resolve(
      all.map(({ pid, role, name }) => {
        return { pid, role, name, storage: this.peer.storage.test(name) };
      }),
    );
  }

  async cold(): Promise<void> {
    await this.script("cold", COLD_MS, this.scope);
    writeFileSync("/proc/sys/vm/drop_caches", "3");
  }

  async block(): Promise<BlockDevice> {
    if (this.peer.direct !== undefined) return this.peer.direct(this.base);
    const printed = await this.script("block-up", BLOCK_MS, this.scope);
    const uri = /nbd\S*:\/\/\S+/.exec(printed)?.[0];
    if (uri === undefined) {
      throw new SetupError(`${this.peer.script}.sh block-up printed no NBD address: ${printed}`);
    }
    return { engine: ["--ioengine=nbd", `--uri=${uri}`], env: {} };
  }

  private async script(
    verb: string,
    withinMs: number,
    scope: Scope | { teardown: () => undefined },
  ): Promise<string> {
    const path = join(this.folder, `${this.peer.script}.sh`);
    const env = { ...this.peer.env, PEERS_ROOT: this.root, [RUN_VARIABLE]: this.mark };
    const result = await run(scope, "bash", [path, verb], { withinMs, env });
    if (result.code === 0) return result.stdout;
    const said = `${result.stdout}${result.stderr}`.trim().split("\n").slice(-5).join("\n");
    throw new SetupError(
      `${path} ${verb}: ${result.signal ?? `exit code ${result.code}`}\n${said}\n` +
        `its packages are ${this.peer.packages}`,
    );
  }
}

export interface RecordedProcess {
  readonly pid: number;
  /** Field 22 of /proc/PID/stat: tells a recycled process id. */
  readonly startTime: string;
  readonly role: "servers" | "client";
  readonly name: string;
}

/** Lines `PID STARTTIME server|client NAME`; other classes hold namespaces open and do no work. */
export function parsePids(text: string): RecordedProcess[] {
  return text.split("\n").flatMap((line) => {
    const found = /^(\d+) (\d+) (server|client) (\S+)$/.exec(line.trim());
    if (found === null) return [];
    const [, pid = "", startTime = "", kind = "", name = ""] = found;
    return [{ pid: Number(pid), startTime, role: kind === "client" ? "client" : "servers", name }];
  });
}

function isAlive({ pid, startTime }: RecordedProcess): boolean {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "latin1");
    const [state, ...fields] = text.slice(text.lastIndexOf(")") + 2).split(" ");
    return state !== "Z" && fields[18] === startTime;
  } catch {
    return false;
  }
}
