/** `dss cluster`: a cluster on this machine, as `npm run up` and `npm run down` run it. */
import type { Command } from "commander";
import { DssError, isDssError } from "../cluster/base/errors.js";
import { MDS_ID_MAX } from "../cluster/map/daemon-info.js";
import { registerFlags } from "./cluster-flags.js";
import type { ClusterClient } from "./context.js";
import { UsageError } from "./failure.js";
import type { StatusView } from "./gather.js";
import { dataFolder } from "./local/folders.js";
import { isAlive, servingPid } from "./local/process.js";
import { readState, zookeeperAddress, type LocalCluster } from "./local/state.js";
import { DAEMONS_MAX, type UpOptions } from "./local/plan.js";
import { checkEndpoints, examples } from "./options.js";
import { note, printJson, printLine, printTable } from "./output.js";
import { parseCount } from "./sizes.js";
import { currentStatus, describe } from "./status.js";

const ZOOKEEPERS_MAX = 7;

interface UpFlags {
  data?: string;
  osds?: string;
  mds?: string;
  zookeeper?: string;
  mount?: string;
  json?: boolean;
}

const withData = (command: Command): Command =>
  command.option("--data <dir>", "folder of the cluster (DSS_DATA; else the last one used)");

export function register(command: Command): void {
  const up = withData(
    command.command("up").description("start what is missing of a cluster on this machine"),
  )
    .option("--osds <n>", "storage daemons (3)")
    .option("--mds <n>", "metadata servers (2)")
    .option("--zookeeper <n|host:port,…>", "ZooKeeper servers to run here (1), or others to use")
    .option("--mount <path>", "where to mount it (/mnt/dss)")
    .option("--json", "print one JSON document");
  up.action(() => onUp(up));
  examples(up, "dss cluster up", "dss cluster up --data /srv/dss --osds 5 --mount /mnt/dss");

  const down = withData(
    command
      .command("down")
      .description("write everything back, unmount and stop what `up` started; data stays"),
  )
    .option("--purge", "delete the data folder with everything that was stored")
    .option("--force", "take the mount away even while it is in use");
  down.action(async (options: { data?: string; purge?: boolean; force?: boolean }) => {
    const folder = dataFolder(options.data);
    const { bringDown } = await import("./local/down.js");
    const stopped = await bringDown({
      folder,
      purge: options.purge === true,
      force: options.force === true,
      say: note,
    });
    printLine(stopped.length === 0 ? "nothing was running" : `stopped ${stopped.join(", ")}`);
    printLine(
      options.purge === true
        ? `deleted ${folder}`
        : `the data is in ${folder}; start again with: dss cluster up`,
    );
  });
  examples(down, "dss cluster down", "dss cluster down --purge");

  registerFlags(command);

  const status = withData(
    command.command("status").description("the processes of the cluster on this machine"),
  ).option("--json", "print one JSON document");
  status.action((options: { data?: string; json?: boolean }) => {
    const folder = dataFolder(options.data);
    const document = localStatus(folder, needState(folder));
    if (options.json === true) {
      printJson(document);
      return;
    }
    printLine(`data ${document.data}, mount ${document.mount}, ZooKeeper ${document.zookeeper}`);
    const head = ["NAME", "ROLE", "PID", "STATE", "LOG"];
    const rows = document.processes.map((each) => [
      each.name,
      each.role,
      each.pid ?? "-",
      each.running ? "running" : "not running",
      each.log,
    ]);
    printTable(head, rows);
    if (document.processes.some((each) => !each.running)) note("start it with: dss cluster up");
  });
  examples(status, "dss cluster status", "dss cluster status --json");
}

function needState(folder: string): LocalCluster {
  const state = readState(folder);
  if (state !== undefined) return state;
  throw new DssError("NotFound", `there is no cluster in ${folder}`, {
    hint: "make one with `dss cluster up`, or name its folder with --data",
  });
}

/** A process that was recorded and does not run has no pid: its number may be another's by now. */
function localStatus(folder: string, state: LocalCluster) {
  return {
    data: folder,
    mount: state.mount,
    zookeeper: zookeeperAddress(state),
    processes: state.processes.map((each) => {
      const running = isAlive(each);
      const { name, role, data, log } = each;
      const pid = running ? (role === "mount" ? servingPid(each) : each.pid) : null;
      // A mount's worker may be killed: the supervisor starts another one.
      const supervisor = role === "mount" && running ? { supervisor: each.pid } : {};
      return { name, role, pid, ...supervisor, running, data, log };
    }),
  };
}

// ---- up ----------------------------------------------------------------------------------------

async function onUp(command: Command): Promise<void> {
  const flags = command.opts<UpFlags>();
  const folder = dataFolder(flags.data);
  const start = performance.now();
  const { bringUp } = await import("./local/up.js");
  const { state, started } = await bringUp({ folder, ...parseUp(flags), say: note });
  const view = await settledStatus(zookeeperAddress(state));
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  if (flags.json === true) {
    printJson({ ...localStatus(folder, state), started, status: view });
    return;
  }
  printLine(
    started.length === 0 ? "everything was running already" : `started ${started.join(", ")}`,
  );
  printLine(describe(view));
  printLine();
  printLine(`The file system is mounted at ${state.mount} (${seconds} s). To go on:`);
  for (const [doing, line] of [
    [`cp -r /etc ${state.mount}/`, "use it as any directory"],
    ["dss volume create mydevice 10", "make a block device of 10 GiB"],
    ["dss status", "the state of the cluster"],
    ["dss cluster down", "stop everything; the data stays"],
  ] as const) {
    printLine(`  ${doing.padEnd(32)}${line}`);
  }
}

function parseUp(flags: UpFlags): UpOptions {
  const count = (text: string, what: string, max: number): number =>
    parseCount(text, { what, min: 1, max });
  const { osds, mds, zookeeper, mount } = flags;
  if (mount !== undefined && mount.trim() === "") {
    throw new UsageError("--mount needs a path", "such as --mount /mnt/dss");
  }
  return {
    ...(osds !== undefined && { osds: count(osds, "--osds", DAEMONS_MAX) }),
    ...(mds !== undefined && { mds: count(mds, "--mds", Math.min(DAEMONS_MAX, MDS_ID_MAX)) }),
    ...(zookeeper !== undefined && { zookeeper: parseZooKeeper(zookeeper) }),
    ...(mount !== undefined && { mount }),
  };
}

function parseZooKeeper(text: string): { servers: number } | { external: string } {
  if (!/^-?[\d.]+$/.test(text)) return { external: checkEndpoints(text, "--zookeeper") };
  const servers = parseCount(text, { what: "--zookeeper", min: 1, max: ZOOKEEPERS_MAX });
  if (servers % 2 === 0) {
    throw new UsageError(
      `--zookeeper ${servers}: an even number survives no more failures than one less`,
      "run 1, 3 or 5 servers",
    );
  }
  return { servers };
}

const SETTLE_MS = 3_000;

/** The state after a start: what settles by itself within moments is waited for. */
async function settledStatus(zookeeper: string): Promise<StatusView> {
  const { withClient } = await import("./context.js");
  return await withClient(zookeeper, async (client: ClusterClient) => {
    const start = performance.now();
    for (;;) {
      try {
        await client.refresh();
        client.needMap();
        const view = await currentStatus(client);
        const isOver = performance.now() - start > SETTLE_MS;
        if (view.health.status === "HEALTH_OK" || isOver) return view;
      } catch (error) {
        const isOver = performance.now() - start > SETTLE_MS;
        if (!isDssError(error) || error.retry !== "same" || isOver) throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  });
}
