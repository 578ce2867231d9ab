/**
 * A real cluster for tests: `dss cluster up` in a folder of its own, with its own runtime folder
 * (DSS_DATA), ports and mount point, so that it disturbs no other cluster of the machine. It ends
 * with the test, also when the test fails: asked first, then by process id, then the mount lazily.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { dss, run, start } from "./process.js";
import type { Program, RunResult } from "./process.js";
import { tempFolder, waitFor } from "./temp.js";
import type { Teardown } from "./temp.js";

export type Role = "zookeeper" | "mds" | "osd" | "mount";

export interface ClusterProcess {
  readonly name: string;
  readonly role: Role;
  readonly pid: number;
  /** Of a mount: the process that starts another worker (`pid`) when one dies. */
  readonly supervisor?: number;
  readonly data: string;
  readonly log: string;
}

export interface ClusterStatus {
  readonly data: string;
  readonly mount: string;
  readonly zookeeper: string;
  readonly processes: readonly ClusterProcess[];
}

export interface ClusterOptions {
  readonly osds?: number;
  readonly mds?: number;
  /** Servers of the ensemble. */
  readonly zookeeper?: number;
  /** Mount point; one in the cluster's own folder when left out. */
  readonly mount?: string;
  /** The whole cluster below this existing folder instead of a temporary one. */
  readonly folder?: string;
  /** Added to the environment of every command and so of every daemon. */
  readonly env?: Readonly<Record<string, string>>;
}

export interface CommandOptions {
  readonly withinMs?: number;
  readonly input?: string | Buffer;
  readonly env?: Readonly<Record<string, string>>;
}

const UP_MS = 120_000;
const DOWN_MS = 60_000;
const COMMAND_MS = 30_000;

/** Commands of the teardown itself end by their deadline: a teardown adds no teardown. */
const NOBODY: Teardown = { teardown: () => undefined };

export const isGone = (pid: number): boolean => {
  try {
    // A zombie waits for its parent, which may be this process; it runs no more.
    return /\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, "latin1"));
  } catch {
    return true;
  }
};

export class Cluster {
  readonly folder: string;
  readonly data: string;
  readonly mount: string;
  readonly env: Record<string, string>;
  private readonly extraMounts = new Set<string>();

  constructor(
    private readonly t: Teardown,
    private readonly options: ClusterOptions = {},
  ) {
    this.folder = options.folder ?? tempFolder(t, "c");
    this.data = join(this.folder, "data");
    this.mount = options.mount ?? join(this.folder, "mnt");
    this.env = { DSS_DATA: this.data, DSS_ZOOKEEPER: "", ...options.env };
    // Now and not before each `up`: on a mount whose process was killed even this fails.
    mkdirSync(this.mount, { recursive: true });
    t.teardown(() => this.end());
  }

  // ---- Commands --------------------------------------------------------------------------------

  /** Runs `dss ARGS` against this cluster; its exit code is for the caller to judge. */
  async dss(args: readonly string[], options: CommandOptions = {}): Promise<RunResult> {
    const [program, all] = dss(...args);
    return await run(this.t, program, all, {
      withinMs: options.withinMs ?? COMMAND_MS,
      env: { ...this.env, ...options.env },
      ...(options.input === undefined ? {} : { input: options.input }),
    });
  }

  /** Runs `dss ARGS`, which must succeed, and returns its standard output. */
  async ok(args: readonly string[], options: CommandOptions = {}): Promise<string> {
    const { code, signal, stdout, stderr } = await this.dss(args, options);
    if (code === 0) return stdout;
    throw new Error(`dss ${args.join(" ")}: ${signal ?? `exit code ${code}`}\n${stdout}${stderr}`);
  }

  async json<T>(args: readonly string[], options: CommandOptions = {}): Promise<T> {
    return JSON.parse(await this.ok([...args, "--json"], options)) as T;
  }

  /** Starts `dss ARGS` in the foreground, for example `volume serve`. */
  start(args: readonly string[]): Program {
    const [program, all] = dss(...args);
    return start(this.t, program, all, { env: this.env });
  }

  /** `dss cluster up`; returns how long it took, in milliseconds. */
  async up(args: readonly string[] = []): Promise<number> {
    const { osds, mds, zookeeper } = this.options;
    const counts = existsSync(join(this.data, "cluster.json"))
      ? []
      : [
          ...(osds === undefined ? [] : ["--osds", String(osds)]),
          ...(mds === undefined ? [] : ["--mds", String(mds)]),
          ...(zookeeper === undefined ? [] : ["--zookeeper", String(zookeeper)]),
        ];
    const begin = performance.now();
    const up = async (): Promise<string> =>
      await this.ok(
        ["cluster", "up", "--data", this.data, "--mount", this.mount, ...counts, ...args],
        { withinMs: UP_MS },
      );
    // The port of a killed daemon is anybody's: another cluster of this machine may have taken it
    // between the look and the start. The second look chooses another one.
    await up()
      .catch(async (error: unknown) => {
        if (/already in use|zookeeper.* did not start/.test(String(error))) return await up();
        throw error;
      })
      .catch((cause: unknown) => {
        throw new Error(`${String(cause)}\n${this.logTails()}`, { cause });
      });
    return performance.now() - begin;
  }

  async down(args: readonly string[] = []): Promise<void> {
    await this.ok(["cluster", "down", "--data", this.data, ...args], { withinMs: DOWN_MS });
  }

  /** What runs of the cluster; a process that was recorded and is gone is left out. */
  async status(): Promise<ClusterStatus> {
    const status = await this.json<ClusterStatus>(["cluster", "status", "--data", this.data]);
    const known = status.processes as readonly (ClusterProcess & { pid: number | null })[];
    return { ...status, processes: known.filter(({ pid }) => pid !== null) };
  }

  async processes(role: Role): Promise<ClusterProcess[]> {
    return (await this.status()).processes.filter((each) => each.role === role);
  }

  /** Waits until `dss status` says HEALTH_OK. */
  async healthy(withinMs = 60_000): Promise<void> {
    interface Health {
      health: { status: string; checks: { summary: string }[] };
    }
    let last = "no answer";
    await waitFor(
      "HEALTH_OK",
      async () => {
        const { health } = await this.json<Health>(["status"]);
        last = JSON.stringify(health);
        return health.status === "HEALTH_OK";
      },
      { withinMs, everyMs: 250 },
    ).catch((cause: unknown) => {
      throw new Error(`${String(cause)}: ${last}`, { cause });
    });
  }

  // ---- Mounts and volumes ----------------------------------------------------------------------

  /** Mounts the file system once more, at a new place; ends with the cluster. */
  async mountAgain(name: string): Promise<string> {
    const path = join(this.folder, name);
    mkdirSync(path, { recursive: true });
    this.extraMounts.add(path);
    await this.ok(["mount", path], { withinMs: 60_000 });
    return path;
  }

  /** Unmounts and mounts the cluster's mount point: nothing of the client's cache survives. */
  async remount(path = this.mount): Promise<void> {
    await this.ok(["umount", path], { withinMs: 120_000 });
    if (path === this.mount) await this.up();
    else await this.ok(["mount", path], { withinMs: 60_000 });
  }

  /** Nothing that the mount or the kernel can ask for again stays in memory. */
  dropCaches(mount = this.mount): void {
    writeFileSync(join(mount, ".dss", "drop_caches"), "1");
    writeFileSync("/proc/sys/vm/drop_caches", "3");
  }

  /**
   * Creates a volume of that size in bytes when it does not exist, and serves it. A server at the
   * `socket` of one that was killed succeeds it; without a name each has a socket of its own.
   */
  async serve(
    volume: string,
    bytes: number,
    socketName = `${volume}-${process.pid}-${Date.now() % 1e6}.sock`,
  ): Promise<{ server: Program; socket: string }> {
    const known = await this.dss(["volume", "info", volume, "--json"]);
    if (known.code !== 0) await this.ok(["volume", "create", volume, `${bytes / 1024}K`]);
    return await this.serveExisting(volume, socketName);
  }

  /** Serves a volume, or a snapshot of one, that there is. */
  async serveExisting(
    volume: string,
    socketName: string,
  ): Promise<{ server: Program; socket: string }> {
    const socket = join(this.folder, socketName);
    const server = this.start(["volume", "serve", volume, "--unix", socket]);
    await server.output(/nbd(\+unix)?:\/\/\S+/, 30_000);
    return { server, socket };
  }

  /** Objects of a volume (which has some) whose copies are not three that are there and equal. */
  async unequalCopies(volume: string): Promise<string[]> {
    interface Listed {
      pool: number;
      objects: { object: string }[];
    }
    const info = await this.json<Listed>(["volume", "info", volume, "--objects"]);
    if (info.objects.length === 0) throw new Error(`volume ${volume} has no objects`);
    const names = info.objects.map(({ object }) => object);
    return await this.unequalObjects(info.pool, names);
  }

  /** Of these objects of a pool, those whose copies are not three that are there and equal. */
  async unequalObjects(poolId: number, objects: readonly string[]): Promise<string[]> {
    interface Located {
      equal: boolean;
      copies: { exists: boolean }[];
    }
    const pools = await this.json<{ id: number; name: string }[]>(["pool", "ls"]);
    const pool = pools.find(({ id }) => id === poolId)?.name ?? "";
    const unequal: string[] = [];
    for (const object of objects) {
      const located = await this.json<Located>(["pg", "locate", pool, object, "--verify"]);
      const whole = located.copies.length === 3 && located.copies.every(({ exists }) => exists);
      if (!located.equal || !whole) unequal.push(`${object}: ${JSON.stringify(located)}`);
    }
    return unequal;
  }

  // ---- Violence --------------------------------------------------------------------------------

  /** `kill -9` of these processes, all of them before the first is waited for. */
  async kill(pids: readonly number[], signal: NodeJS.Signals = "SIGKILL"): Promise<void> {
    for (const pid of pids) {
      try {
        process.kill(pid, signal);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
      }
    }
    if (signal !== "SIGKILL") return;
    await waitFor(`the end of ${pids.join(", ")}`, () => pids.every(isGone), { withinMs: 20_000 });
  }

  /** All that run of these roles at the same instant; returns what they were. */
  async killRoles(...roles: Role[]): Promise<ClusterProcess[]> {
    const chosen = (await this.status()).processes.filter((each) => roles.includes(each.role));
    await this.kill(chosen.flatMap(({ pid, supervisor = pid }) => [supervisor, pid]));
    return chosen;
  }

  /** Process id of the leading metadata server. */
  async leaderPid(): Promise<number> {
    const { mds } = await this.json<{ mds: { leader: number | null } }>(["status"]);
    const name = `mds.${mds.leader ?? "none"}`;
    const found = (await this.processes("mds")).find((each) => each.name === name);
    if (found === undefined) throw new Error(`no process ${name}`);
    return found.pid;
  }

  // ---- The end ---------------------------------------------------------------------------------

  /** The last lines of every log, for messages. */
  logTails(lines = 12): string {
    const folder = join(this.data, "log");
    if (!existsSync(folder)) return "no logs";
    return readdirSync(folder)
      .map((name) => {
        const text = readFileSync(join(folder, name), "utf8").trim().split("\n");
        return `--- ${name}\n${text.slice(-lines).join("\n")}`;
      })
      .join("\n");
  }

  private async end(): Promise<void> {
    if (existsSync(join(this.data, "cluster.json"))) {
      const pids = this.recordedPids();
      const [program, args] = dss("cluster", "down", "--data", this.data, "--purge", "--force");
      const result = await run(NOBODY, program, args, {
        withinMs: DOWN_MS,
        env: this.env,
      }).catch(() => undefined);
      if (result?.code !== 0) await this.kill(pids).catch(() => undefined);
    }
    for (const path of [this.mount, ...this.extraMounts]) this.takeAway(path);
  }

  private recordedPids(): number[] {
    try {
      const text = readFileSync(join(this.data, "cluster.json"), "utf8");
      const { processes } = JSON.parse(text) as { processes: { pid: number }[] };
      return processes.map(({ pid }) => pid).filter((pid) => pid > 1);
    } catch {
      return []; // It was purged meanwhile, or never written whole.
    }
  }

  private takeAway(path: string): void {
    if (!readFileSync("/proc/self/mountinfo", "utf8").includes(` ${path} `)) return;
    try {
      execFileSync("umount", ["-l", path], { stdio: "ignore", timeout: 10_000 });
    } catch {
      // The runner reports a mount that stays.
    }
  }
}

/** A cluster that is up and healthy. */
export async function startCluster(t: Teardown, options: ClusterOptions = {}): Promise<Cluster> {
  const cluster = new Cluster(t, options);
  await cluster.up();
  await cluster.healthy();
  return cluster;
}
