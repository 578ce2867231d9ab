/** `dss cluster set|unset FLAG` and `dss cluster profile`: switches for the whole cluster. */
import type { Command } from "commander";
import {
  CLUSTER_FLAGS,
  WORK_PROFILES,
  workProfileOf,
  type ClusterFlag,
} from "../cluster/map/cluster-map.js";
import { UsageError } from "./failure.js";
import { examples, useCluster, withCluster } from "./options.js";
import { printLine } from "./output.js";

const ABOUT =
  "noout: OSDs that are down do not become out; norebalance: data stays where it is " +
  "(lost copies are made again); pause: reads and writes of clients wait";

function parseFlag(text: string): ClusterFlag {
  const flag = CLUSTER_FLAGS.find((name) => name === text);
  if (flag !== undefined) return flag;
  throw new UsageError(`there is no flag "${text}"`, `flags are ${CLUSTER_FLAGS.join(", ")}`);
}

export function registerFlags(command: Command): void {
  for (const isSet of [true, false]) {
    const name = isSet ? "set" : "unset";
    const verb = withCluster(
      command
        .command(name)
        .description(`switch a flag ${isSet ? "on" : "off"} for the whole cluster`)
        .argument("<flag>", ABOUT),
    );
    verb.action(async (text: string) => {
      const flag = parseFlag(text);
      await useCluster(verb, (client) => client.admin({ op: "flag", flag, isSet }));
      printLine(`${flag} is ${isSet ? "set" : "not set"}`);
    });
    examples(verb, `dss cluster ${name} noout`);
  }

  const profile = withCluster(
    command
      .command("profile")
      .description("what comes first on a busy OSD: clients, or recovery; without a name, show it")
      .argument("[name]", `${WORK_PROFILES.join(", ")}; default: each OSD's own setting`),
  );
  profile.action(async (text: string | undefined) => {
    if (text === undefined) {
      const map = await useCluster(profile, (client) => client.needMap());
      printLine(workProfileOf(map) ?? "default");
      return;
    }
    const name = WORK_PROFILES.find((each) => each === text);
    if (name === undefined && text !== "default") {
      const known = [...WORK_PROFILES, "default"].join(", ");
      throw new UsageError(`there is no profile "${text}"`, `profiles are ${known}`);
    }
    const wanted = name === undefined ? {} : { profile: name };
    await useCluster(profile, (client) => client.admin({ op: "workProfile", ...wanted }));
    printLine(`profile ${text}`);
  });
  examples(profile, "dss cluster profile recovery", "dss cluster profile default");
}
