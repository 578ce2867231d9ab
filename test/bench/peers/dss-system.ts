/** dss as one of the systems: a cluster of its own, as the tests start it. */
import { Cluster } from "../../support/cluster.js";
import type { Program } from "../../support/process.js";
import { tempFolder } from "../../support/temp.js";
import type { BlockDevice, Running, System, SystemProcess } from "./system.js";

const VOLUME = "bench";
const VOLUME_BYTES = 2 ** 30;
const SOCKET = "bench.sock";

const dssSystem = (name: string, env: Readonly<Record<string, string>>): System => ({
  name,
  durability:
    "a direct write, an fsync and a flush are answered when the log record is synced on every " +
    "in-sync copy (3); a create is durable with fsync, or with the next metadata batch",
  obstacle: () => undefined,
  async up(scope) {
    const cluster = new Cluster(scope, { folder: tempFolder(scope, "peers-dss"), env });
    await cluster.up();
    await cluster.healthy();
    return new RunningDss(cluster);
  },
});

/** What is compared with the peers. */
export const OURS = "dss";
/** As it is, and with an option changed. */
export const DSS_SYSTEMS: readonly System[] = [
  dssSystem(OURS, {}),
  dssSystem("dss-plain-wakeups", { DSS_QUICK_WAKEUPS: "off" }),
];

class RunningDss implements Running {
  private server: Program | undefined;

  constructor(private readonly cluster: Cluster) {}

  get mount(): string {
    return this.cluster.mount;
  }

  async processes(): Promise<SystemProcess[]> {
    const { processes } = await this.cluster.status();
    const all = processes.map(({ name, role, pid }): SystemProcess => {
      return { name, pid, role: role === "mount" ? "client" : "servers", storage: role === "osd" };
    });
    if (this.server?.running === true) {
      all.push({ name: "nbd", pid: this.server.pid, role: "client", storage: false });
    }
    return all;
  }

  /** A volume's server keeps no data. */
  async cold(): Promise<void> {
    this.cluster.dropCaches();
  }

  async block(): Promise<BlockDevice> {
    const { server, socket } = await this.cluster.serve(VOLUME, VOLUME_BYTES, SOCKET);
    this.server = server;
    const uri = `nbd+unix:///${VOLUME}?socket=${socket}`;
    return { engine: ["--ioengine=nbd", `--uri=${uri}`], env: {} };
  }
}
