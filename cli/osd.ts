/** `dss osd`: run a storage daemon; list the OSDs; change their place in the cluster. */
import type { Command } from "commander";
import { hostname } from "node:os";
import { join, resolve } from "node:path";
import { OSD_ID_MAX } from "../cluster/base/ids.js";
import { WEIGHT_MAX } from "../cluster/map/ring.js";
import type { AdminRequest } from "../mds/proto.js";
import { UsageError } from "./failure.js";
import { currentStatus } from "./status.js";
import { dataFolder } from "./local/folders.js";
import { preferredOsdPort } from "./local/plan.js";
import {
  examples,
  settingsOf,
  useCluster,
  withCluster,
  withJson,
  withSettings,
  zookeeperOf,
} from "./options.js";
import { printJson, printLine, printTable } from "./output.js";
import { formatSize, parseCount } from "./sizes.js";
import { version } from "./version.js";

export const parseOsdId = (text: string): number =>
  parseCount(text.replace(/^osd\./, ""), { what: "OSD", min: 0, max: OSD_ID_MAX });

export function parseWeight(text: string): number {
  const weight = /^\d+(\.\d+)?$/.test(text) ? Number(text) : Number.NaN;
  if (weight >= 0 && weight <= WEIGHT_MAX) return weight;
  throw new UsageError(
    `weight "${text}" is not permitted`,
    `give a number from 0 to ${WEIGHT_MAX}`,
  );
}

export const parsePort = (text: string): number =>
  parseCount(text, { what: "port", min: 1, max: 65_535 });

export function register(command: Command): void {
  registerStart(command);
  registerList(command);
  const change = (
    name: string,
    about: { description: string; done: string },
    request: (id: number) => AdminRequest,
  ): void => {
    const verb = withCluster(command.command(name).description(about.description));
    verb.argument("<id>", "number of the OSD").action(async (text: string) => {
      const id = parseOsdId(text);
      await ask(verb, id, request(id));
      printLine(`osd.${id} ${about.done}`);
    });
    examples(verb, `dss osd ${name} 2`);
  };
  change(
    "out",
    {
      description: "take an OSD out of placement: its data moves to the others",
      done: "is out: its data moves to the others while it serves what it has",
    },
    (id) => ({ op: "osdOut", id }),
  );
  change("in", { description: "put an OSD back into placement", done: "is in" }, (id) => ({
    op: "osdIn",
    id,
  }));
  change(
    "rm",
    {
      description: "remove an OSD that is out and down from the cluster map",
      done: "is removed",
    },
    (id) => ({ op: "osdRemove", id }),
  );
  const drain = withCluster(
    command
      .command("drain")
      .description("take an OSD out and wait until nothing is left on it")
      .argument("<id>", "number of the OSD")
      .option("--no-wait", "only begin: dss status shows how far it is"),
  );
  drain.action(async (text: string, options: { wait: boolean }) => {
    const id = parseOsdId(text);
    const { checkDrain, drain: run } = await import("./drain.js");
    await useCluster(drain, async (client) => {
      client.needOsd(id);
      if (options.wait) return await run(client, id);
      checkDrain(client.needMap(), id);
      await client.admin({ op: "osdOut", id });
    });
    if (!options.wait) printLine(`osd.${id} is out: its data moves to the others`);
    else {
      printLine(`osd.${id} is empty and safe to remove: stop its daemon, then: dss osd rm ${id}`);
    }
  });
  examples(drain, "dss osd drain 2", "dss osd drain 2 --no-wait");

  const reweight = withCluster(
    command
      .command("reweight")
      .description("change an OSD's share of the data")
      .argument("<id>", "number of the OSD")
      .argument("<weight>", `0 to ${WEIGHT_MAX}; 1 is the usual share`),
  );
  reweight.action(async (text: string, share: string) => {
    const id = parseOsdId(text);
    const weight = parseWeight(share);
    await ask(reweight, id, { op: "osdReweight", id, weight });
    printLine(`osd.${id} has weight ${weight}`);
  });
  examples(reweight, "dss osd reweight 2 0.5");
}

async function ask(command: Command, id: number, request: AdminRequest): Promise<void> {
  await useCluster(command, async (client) => {
    client.needOsd(id);
    await client.admin(request);
  });
}

function registerStart(command: Command): void {
  const start = withCluster(
    command
      .command("start")
      .description("run a storage daemon in the foreground until it is told to end (SIGTERM)")
      .argument("<id>", "number of the OSD; it belongs to the data folder for good")
      .option("--port <port>", "port to listen on (9100 + ID, from ID 10 on 9120 + ID - 10)")
      .option("--bind <address>", "address to listen on and to announce", "127.0.0.1")
      .option("--data <dir>", "data folder (osd.ID in the cluster's folder)")
      .option("--weight <weight>", "share of the data when it first joins", "1")
      .option("--host-name <name>", "host it counts for in placement (this machine's name)"),
  );
  withSettings(start, ["cluster", "osd"]);
  start.action(
    async (
      text: string,
      options: { port?: string; bind: string; data?: string; weight: string; hostName?: string },
    ) => {
      const id = parseOsdId(text);
      const port = options.port === undefined ? preferredOsdPort(id) : parsePort(options.port);
      const config = settingsOf(start);
      const zookeeper = zookeeperOf(start);
      const [{ runOsd }, { LeaderCoordinatorClient }, { daemonLogger, runToEnd }] =
        await Promise.all([
          import("../osd/main.js"),
          import("../mds/client/coordinator-client.js"),
          import("./daemon.js"),
        ]);
      const logger = daemonLogger(`osd.${id}`, config);
      const data = options.data ?? join(dataFolder(undefined), `osd.${id}`);
      const daemon = {
        id,
        data: resolve(data),
        listen: { host: options.bind, port },
        weight: parseWeight(options.weight),
        host: options.hostName ?? hostname(),
        ...{ zookeeper, config, logger, version: version() },
      };
      await runToEnd({ config, logger }, () =>
        runOsd({
          ...daemon,
          coordinator: (parts) =>
            new LeaderCoordinatorClient(parts.messenger, parts.coordination, parts.logger),
        }),
      );
    },
  );
  examples(start, "dss osd start 3 --port 9103 --data /srv/dss/osd.3");
}

function registerList(command: Command): void {
  const list = withJson(command.command("ls").alias("list").description("list the OSDs"));
  list.action(async (options: { json?: boolean }) => {
    const { osds } = await useCluster(list, async (client) => {
      client.needMap();
      return await currentStatus(client);
    });
    if (options.json === true) {
      printJson(osds);
      return;
    }
    const head = ["OSD", "HOST", "ADDRESS", "UP", "IN", "STATE", "WEIGHT", "PGS", "USED", "TOTAL"];
    const size = (bytes: number | null): string => (bytes === null ? "?" : formatSize(bytes));
    const rows = osds.map((osd) => [
      osd.id,
      osd.host,
      osd.address,
      osd.up ? "up" : "down",
      osd.in ? "in" : "out",
      osd.state,
      osd.weight,
      osd.pgs,
      size(osd.used),
      size(osd.total),
    ]);
    printTable(head, rows);
  });
  examples(list, "dss osd ls", "dss osd ls --json");
}
