/** `dss health`: OK, or what is wrong by named code; `detail` says where. */
import { Argument, type Command } from "commander";
import { healthFrom, leaderStatus } from "./gather.js";
import { examples, useCluster, withJson } from "./options.js";
import { printJson, printLine } from "./output.js";

export function register(command: Command): void {
  withJson(command)
    .addArgument(new Argument("[detail]", "also list what each check is about").choices(["detail"]))
    .action(async (detail: string | undefined, options: { json?: boolean }) => {
      const health = await useCluster(command, async (client) => {
        const map = client.needMap();
        const [leader, reports] = await Promise.all([leaderStatus(client), client.osdReports()]);
        return healthFrom(client, map, leader, reports);
      });
      if (options.json === true) {
        printJson(health);
        return;
      }
      printLine(health.status);
      for (const check of health.checks) {
        printLine(`${check.code} (${check.severity}): ${check.summary}`);
        if (detail !== undefined) for (const line of check.detail) printLine(`    ${line}`);
      }
    });
  examples(command, "dss health", "dss health detail", "dss health --json");
}
