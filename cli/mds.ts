/** `dss mds`: run a metadata server; list them. */
import type { Command } from "commander";
import { OSD_ID_MAX } from "../cluster/base/ids.js";
import { MDS_ID_MAX } from "../cluster/map/daemon-info.js";
import { leaderStatus } from "./gather.js";
import { PREFERRED } from "./local/plan.js";
import {
  examples,
  settingsOf,
  useCluster,
  withCluster,
  withJson,
  withSettings,
  zookeeperOf,
} from "./options.js";
import { parsePort } from "./osd.js";
import { printJson, printTable } from "./output.js";
import { parseCount } from "./sizes.js";

interface StartFlags {
  port?: string;
  bind: string;
  expectOsds?: string;
}

export function register(command: Command): void {
  const start = withCluster(
    command
      .command("start")
      .description("run a metadata server in the foreground until it is told to end (SIGTERM)")
      .argument("<id>", "number of the server")
      .option("--port <port>", "port to listen on (9110 + ID)")
      .option("--bind <address>", "address to listen on and to announce", "127.0.0.1")
      .option("--expect-osds <n>", "OSDs of a new cluster that are waited for before it is used"),
  );
  withSettings(start, ["cluster", "mds", "pool"]);
  start.action(async (text: string, options: StartFlags) => {
    const id = parseCount(text.replace(/^mds\./, ""), { what: "MDS", min: 0, max: MDS_ID_MAX });
    const port = parsePort(options.port ?? String(PREFERRED.mds + id));
    const { expectOsds } = options;
    const expected = { what: "--expect-osds", min: 0, max: OSD_ID_MAX + 1 };
    const expectedOsds = expectOsds === undefined ? 0 : parseCount(expectOsds, expected);
    const config = settingsOf(start);
    const zookeeper = zookeeperOf(start);
    const [{ runMds }, { daemonLogger, runToEnd }] = await Promise.all([
      import("../mds/main.js"),
      import("./daemon.js"),
    ]);
    const logger = daemonLogger(`mds.${id}`, config);
    const daemon = {
      id,
      listen: { host: options.bind, port },
      ...{ zookeeper, config, logger, expectedOsds },
    };
    await runToEnd({ config, logger }, () => runMds(daemon));
  });
  examples(start, "dss mds start 2 --port 9112");

  const list = withJson(
    command.command("ls").alias("list").description("list the metadata servers"),
  );
  list.action(async (options: { json?: boolean }) => {
    const found = await useCluster(list, async (client) => {
      const status = await leaderStatus(client);
      return client.mds.map((mds) => {
        const isLeader = mds.id === client.leader?.id;
        return {
          id: mds.id,
          role: isLeader ? "leader" : "standby",
          address: `${mds.address.host}:${mds.address.port}`,
          host: mds.host,
          pid: mds.pid,
          term: isLeader ? (client.leader?.term ?? null) : null,
          journal: isLeader ? (status?.journal ?? null) : null,
          sessions: isLeader ? (status?.sessions.length ?? null) : null,
        };
      });
    });
    if (options.json === true) {
      printJson(found);
      return;
    }
    const head = ["MDS", "ROLE", "ADDRESS", "HOST", "PID", "TERM", "JOURNAL", "SESSIONS"];
    printTable(
      head,
      found.map((mds) => Object.values(mds).map((value) => value ?? "-")),
    );
  });
  examples(list, "dss mds ls");
}
