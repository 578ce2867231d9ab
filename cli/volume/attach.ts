/** `dss volume attach`, `detach`, `attached`: volumes as devices of this machine's kernel. */
import type { Command } from "commander";
import { DssError } from "../../cluster/base/errors.js";
import { examples, withJson, zookeeperOf } from "../options.js";
import { printJson, printLine, printTable } from "../output.js";
import { infoOf, inSession } from "./session.js";

export function registerAttach(parent: Command): void {
  const attach = withJson(
    parent
      .command("attach")
      .description("attach a volume to this machine's kernel; prints the device")
      .argument("<name>", "name of the volume")
      .argument("[device]", "such as /dev/nbd0 (the first that is free)")
      .option("--read-only", "refuse writes"),
  );
  attach.action(
    async (
      name: string,
      device: string | undefined,
      options: { readOnly?: boolean; json?: boolean },
    ) => {
      const local = await import("../local/attachments.js");
      local.requireKernelNbd(name);
      await inSession(attach, (mds) => infoOf(mds, name));
      const attachment = await local.attach({
        volume: name,
        zookeeper: zookeeperOf(attach),
        readOnly: options.readOnly === true,
        ...(device !== undefined && { device }),
      });
      if (options.json === true) printJson(attachment);
      else printLine(attachment.device);
    },
  );
  examples(attach, "dss volume attach mydevice", "dss volume attach mydevice /dev/nbd0");
}

export function registerDetach(parent: Command): void {
  const detach = parent
    .command("detach")
    .description("write everything back and detach a volume from this machine's kernel")
    .argument("<name|device>", "volume or device");
  detach.action(async (which: string) => {
    const local = await import("../local/attachments.js");
    const all = local.allAttachments();
    const found = all.find((each) => each.volume === which || each.device === which);
    if (found === undefined) {
      throw new DssError("NotFound", `${which} is not attached here`, {
        hint: "see dss volume attached",
      });
    }
    await local.detach(found);
    printLine(`detached ${found.volume} from ${found.device}`);
  });
  examples(detach, "dss volume detach mydevice", "dss volume detach /dev/nbd0");
}

export function registerAttached(parent: Command): void {
  const attached = parent
    .command("attached")
    .description("list the volumes attached to this machine's kernel")
    .option("--json", "print one JSON document");
  attached.action(async (options: { json?: boolean }) => {
    const { allAttachments, isServing } = await import("../local/attachments.js");
    const rows = allAttachments().map((each) => ({
      volume: each.volume,
      device: each.device,
      readOnly: each.readOnly,
      serving: isServing(each),
      pid: isServing(each) ? each.server.pid : null,
      log: each.log,
    }));
    if (options.json === true) {
      printJson(rows);
      return;
    }
    const cells = rows.map((row) => [
      row.volume,
      row.device,
      row.readOnly ? "read-only" : "read-write",
      row.serving ? "serving" : "server gone",
    ]);
    printTable(["VOLUME", "DEVICE", "ACCESS", "STATE"], cells);
  });
  examples(attached, "dss volume attached");
}
