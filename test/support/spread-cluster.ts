/**
 * A cluster whose programs each have a machine of their own (a network namespace): three ZooKeeper
 * servers, two metadata servers, OSDs, and client machines with a mount and a volume server. Ends
 * with the test.
 */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { TestNetwork } from "./namespaces.js";
import { dss, run, start, type Program } from "./process.js";
import { tempFolder, waitFor, type Teardown } from "./temp.js";
import { launchServer } from "./zookeeper.js";

const ZOOKEEPER_PORT = 2181;
const PORT = 9100;
const COMMAND_MS = 30_000;
const READY_MS = 60_000;
const SERVERS = [1, 2, 3];
const MDS = [0, 1];

export interface SpreadOptions {
  readonly osds: number;
  /** Machines with a mount. */
  readonly clients: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
}

export class SpreadCluster {
  readonly folder: string;
  readonly network: TestNetwork;
  readonly daemons = new Map<string, Program>();
  private readonly env: Record<string, string>;

  private constructor(
    private readonly t: Teardown,
    private readonly options: SpreadOptions,
  ) {
    const { osds, clients } = options;
    this.network = TestNetwork.create(t, [
      ...SERVERS.map((id) => `zk${id}`),
      ...MDS.map((id) => `mds${id}`),
      ...Array.from({ length: osds }, (_, id) => `osd${id}`),
      ...clients,
    ]);
    this.folder = tempFolder(t, "s");
    const servers = SERVERS.map((id) => `${this.network.address(`zk${id}`)}:${ZOOKEEPER_PORT}`);
    this.env = {
      DSS_ZOOKEEPER: servers.join(","),
      DSS_DATA: join(this.folder, "run"),
      ...options.env,
    };
  }

  /** Up and healthy, with a mount on each client machine. */
  static async start(t: Teardown, options: SpreadOptions): Promise<SpreadCluster> {
    const cluster = new SpreadCluster(t, options);
    await cluster.startServers();
    for (const id of MDS) cluster.startDaemon(`mds${id}`, ["mds", "start", String(id)]);
    for (let id = 0; id < options.osds; id++) {
      const data = join(cluster.folder, `osd.${id}`);
      const args = ["osd", "start", String(id), "--data", data, "--host-name", `machine${id}`];
      cluster.startDaemon(`osd${id}`, args);
    }
    await cluster.healthy();
    for (const machine of options.clients) await cluster.mount(machine);
    return cluster;
  }

  private async startServers(): Promise<void> {
    const hosts = SERVERS.map((id) => ({ id, host: this.network.address(`zk${id}`) }));
    await Promise.all(
      hosts.map(async ({ id, host }) => {
        const folder = join(this.folder, `zk${id}`);
        mkdirSync(folder);
        const server = { folder, host, port: ZOOKEEPER_PORT, id, ensemble: hosts };
        const on = (program: string, args: readonly string[]): [string, string[]] =>
          this.network.on(`zk${id}`, program, args);
        this.daemons.set(`zk${id}`, await launchServer(this.t, { ...server, on }));
      }),
    );
  }

  private startDaemon(machine: string, args: readonly string[]): void {
    const where = ["--bind", this.network.address(machine), "--port", String(PORT)];
    const program = this.start(machine, [...args, ...where], join(this.folder, `${machine}.log`));
    this.daemons.set(machine, program);
  }

  /** Starts `dss ARGS` on a machine. */
  start(machine: string, args: readonly string[], logFile?: string): Program {
    const [program, all] = this.network.on(machine, ...dss(...args));
    const log = logFile === undefined ? {} : { logFile };
    return start(this.t, program, all, { env: this.env, ...log });
  }

  /** Runs `dss ARGS` on a machine (the first client), which must succeed. */
  async ok(args: readonly string[], machine = this.options.clients[0]!): Promise<string> {
    const [program, all] = this.network.on(machine, ...dss(...args));
    const result = await run(this.t, program, all, { withinMs: COMMAND_MS, env: this.env });
    if (result.code === 0) return result.stdout;
    throw new Error(`dss ${args.join(" ")}: exit code ${result.code}\n${result.stderr}`);
  }
  async json<T>(args: readonly string[], machine?: string): Promise<T> {
    return JSON.parse(await this.ok([...args, "--json"], machine)) as T;
  }

  async healthy(withinMs = READY_MS): Promise<void> {
    let last = "no answer";
    await waitFor(
      "HEALTH_OK",
      async () => {
        const status = await this.json<{ health: { status: string } }>(["status"]);
        last = JSON.stringify(status.health);
        return status.health.status === "HEALTH_OK";
      },
      { withinMs, everyMs: 250 },
    ).catch((cause: unknown) => {
      throw new Error(`${String(cause)}: ${last}\n${this.logTails()}`, { cause });
    });
  }

  /** Where the machine's mount is. */
  mountOf(machine: string): string {
    return join(this.folder, `mount-${machine}`);
  }
  private async mount(machine: string): Promise<void> {
    const path = this.mountOf(machine);
    mkdirSync(path);
    this.t.teardown(async () => {
      await this.ok(["umount", "--force", path], machine).catch(() => undefined);
      if (!readFileSync("/proc/self/mountinfo", "utf8").includes(` ${path} `)) return;
      execFileSync("umount", ["-l", path], { stdio: "ignore", timeout: COMMAND_MS });
    });
    await this.ok(["mount", path], machine);
  }

  /** Creates the volume when it is not there, and serves it from a client machine. */
  async serve(
    volume: string,
    bytes: number,
    machine = this.options.clients[0]!,
  ): Promise<{ server: Program; socket: string }> {
    await this.ok(["volume", "create", volume, `${bytes / 1024}K`]);
    const socket = join(this.folder, `${volume}.sock`);
    const server = this.start(machine, ["volume", "serve", volume, "--unix", socket]);
    await server.output(/nbd(\+unix)?:\/\/\S+/, 30_000);
    return { server, socket };
  }

  private logTails(lines = 8): string {
    return [...this.daemons.keys()]
      .map((name) => join(this.folder, `${name}.log`))
      .filter((path) => existsSync(path))
      .map((path) => {
        const text = readFileSync(path, "utf8").trim().split("\n");
        return `--- ${path}\n${text.slice(-lines).join("\n")}`;
      })
      .join("\n");
  }
}
