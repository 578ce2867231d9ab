/**
 * ZooKeeper alone: one server, and the client library that dss uses. What a leader of the metadata
 * waits for is the last row: a journal batch is a check of its term and a new znode.
 */
import { startZooKeeper } from "../../support/zookeeper.js";
import { runLoad } from "./part.js";
import type { Part } from "./part.js";

export const BATCH = "check and create 1 KiB";

export interface ZooKeeperPlace {
  readonly servers: string;
}

const row = (what: string, depth: number) => {
  return { name: `zookeeper: multi, ${what}, ${depth} in flight`, depth };
};

export const zookeeper: Part = {
  rows: [row("set 1 KiB", 1), row("set 1 KiB", 16), row(BATCH, 1)],
  async measure(scope, rows, sizes) {
    const server = await startZooKeeper(scope);
    const watched = [{ name: "zookeeper", role: "server", pid: server.process.pid }];
    const where = { servers: server.address };
    return await runLoad(scope, "zookeeper-load", { where, rows, sizes, watched, role: "client" });
  },
};
