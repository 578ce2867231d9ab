/** `dss pool ls`. */
import type { Command } from "commander";
import { examples, useCluster, withJson } from "./options.js";
import { printJson, printTable } from "./output.js";
import { formatSize } from "./sizes.js";

export function register(command: Command): void {
  const list = withJson(command.command("ls").alias("list").description("list the pools")).action(
    async (options: { json?: boolean }) => {
      const { pools } = await useCluster(list, (client) => client.needMap());
      if (options.json === true) {
        printJson(pools);
        return;
      }
      const head = ["POOL", "ID", "REPLICAS", "MINIMUM", "PGS", "OBJECT", "STRIPE"];
      const rows = pools.map((pool) => [
        pool.name,
        pool.id,
        pool.replicas,
        pool.minimum,
        pool.pgCount,
        formatSize(pool.objectSize),
        `${pool.stripeCount} x ${formatSize(pool.stripeUnit)}`,
      ]);
      printTable(head, rows);
    },
  );
  examples(list, "dss pool ls");
}
