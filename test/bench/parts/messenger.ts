/** The messenger alone: a request with 4 KiB of data and an empty answer, between two processes. */
import { silentLogger } from "../../../cluster/base/log.js";
import { RpcMessenger } from "../../../cluster/messenger/rpc.js";
import { nodePlatform } from "../../../cluster/platform/node.js";
import { defineCall } from "../../../cluster/wire/registry.js";
import { struct, u32 } from "../../../cluster/wire/struct.js";
import { start } from "../../support/process.js";
import { KiB, programOf, runLoad } from "./part.js";
import type { Part } from "./part.js";

const Number32 = struct("PartsNumber", { number: u32 });
/** As a write of an OSD's client: checksums of the blocks travel, and the receiver wants them. */
export const Take = defineCall(61_000, "PartsTake", {
  request: Number32,
  reply: Number32,
  sums: "request",
});

export interface MessengerPlace {
  readonly port: number;
}

export function newMessenger(entity: number): RpcMessenger {
  const { clock, network, random } = nodePlatform;
  const clusterId = (): string => "parts";
  return new RpcMessenger({
    ...{ clock, network, random, logger: silentLogger, entity, role: "test", clusterId },
  });
}

export const messenger: Part = {
  rows: [1, 16].map((depth) => {
    return { name: `messenger: call with 4 KiB, ${depth} in flight`, bytes: 4 * KiB, depth };
  }),
  async measure(scope, rows, sizes) {
    const server = start(scope, process.execPath, programOf("messenger-server"));
    const [, port] = await server.output(/port (\d+)/);
    const watched = [{ name: "server", role: "server", pid: server.pid }];
    const where = { port: Number(port) };
    return await runLoad(scope, "messenger-load", { where, rows, sizes, watched, role: "client" });
  },
};
