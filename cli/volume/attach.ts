/** `dss volume attach`, `detach`, `attached`: volumes as devices of this machine's kernel. */
import type { Command } from "commander";
import { existsSync } from "node:fs";
import { DssError, describeError } from "../../cluster/base/errors.js";
import type { Attachment } from "../local/attachments.js";
import type { TableEntry } from "../local/attachment-table.js";
import { UsageError } from "../failure.js";
import { checkEndpoints, examples, withJson, zookeeperOf } from "../options.js";
import { note, printJson, printLine, printTable } from "../output.js";
import { infoOf, inSession } from "./session.js";

interface AttachFlags {
  all?: boolean;
  force?: boolean;
  json?: boolean;
  loop?: boolean;
  readOnly?: boolean;
  save?: boolean;
  table?: string;
}

export function registerAttach(parent: Command): void {
  const attach = withJson(
    parent
      .command("attach")
      .description("attach a volume to this machine's kernel; prints the device")
      .argument("[name]", "name of the volume")
      .argument("[device]", "such as /dev/nbd0 or /dev/loop0 (the first that is free)")
      .option("--read-only", "refuse writes; takes no lock, so there may be any number")
      .option("--force", "take the volume from its owner, who is fenced first")
      .option("--loop", "as a loop device over a file, where the kernel has no nbd")
      .option("--save", "also enter it into the table, for --all")
      .option("--all", "attach every volume of the table that is not attached")
      .option("--table <file>", "the table (/etc/dss/attachments)"),
  );
  attach.action(
    async (name: string | undefined, device: string | undefined, flags: AttachFlags) => {
      if (flags.all === true) {
        if (name !== undefined) throw new UsageError("--all takes no name", "the table has them");
        await attachAll(attach, flags);
        return;
      }
      if (name === undefined) throw new UsageError("which volume?", "name it, or give --all");
      const entry: TableEntry = {
        volume: name,
        readOnly: flags.readOnly === true,
        kind: flags.loop === true ? "loop" : "nbd",
        ...(device !== undefined && { device }),
      };
      const attachment = await attachOne(attach, entry, flags.force === true);
      if (flags.save === true) {
        const { changeTable, tablePath } = await import("../local/attachment-table.js");
        changeTable(flags.table ?? tablePath(), name, entry);
      }
      if (flags.json === true) printJson(attachment);
      else printLine(attachment.device);
    },
  );
  examples(
    attach,
    "dss volume attach mydevice",
    "dss volume attach mydevice /dev/nbd0 --save",
    "dss volume attach --loop mydevice",
    "dss volume attach --all",
  );
}

async function attachOne(command: Command, entry: TableEntry, force: boolean): Promise<Attachment> {
  const [local, { requireKernelNbd }] = await Promise.all([
    import("../local/attachments.js"),
    import("../local/kernel-nbd.js"),
  ]);
  const { volume, kind, readOnly, device } = entry;
  if (kind === "nbd") requireKernelNbd(volume);
  const zookeeper =
    entry.zookeeper === undefined
      ? zookeeperOf(command)
      : checkEndpoints(entry.zookeeper, `the table's line of ${volume}`);
  if (entry.zookeeper === undefined) await inSession(command, (mds) => infoOf(mds, volume));
  return await local.attach({
    ...{ volume, zookeeper, kind, readOnly, force },
    ...(device !== undefined && { device }),
  });
}

/** One that fails does not keep the others from being attached. */
async function attachAll(command: Command, flags: AttachFlags): Promise<void> {
  const [{ readTable, tablePath }, { allAttachments, isServing }] = await Promise.all([
    import("../local/attachment-table.js"),
    import("../local/attachments.js"),
  ]);
  const path = flags.table ?? tablePath();
  if (flags.table !== undefined && !existsSync(path)) {
    throw new DssError("NotFound", `there is no table ${path}`);
  }
  const entries = readTable(path);
  if (entries.length === 0) note(`nothing to attach: ${path} names no volume`);
  const attached = allAttachments().filter(isServing);
  const done: Attachment[] = [];
  const failed: string[] = [];
  for (const entry of entries) {
    const known = attached.find((each) => each.volume === entry.volume);
    try {
      done.push(known ?? (await attachOne(command, entry, flags.force === true)));
    } catch (error) {
      failed.push(entry.volume);
      note(`${entry.volume}: ${describeError(error)}`);
    }
  }
  if (flags.json === true) printJson(done);
  else for (const { volume, device } of done) printLine(`${volume} ${device}`);
  if (failed.length === 0) return;
  throw new DssError("Unreachable", `not attached: ${failed.join(", ")}`, {
    hint: `the reasons are above; the table is ${path}`,
  });
}

interface DetachFlags {
  all?: boolean;
  forget?: boolean;
  table?: string;
}

export function registerDetach(parent: Command): void {
  const detach = parent
    .command("detach")
    .description("write everything back and detach a volume from this machine's kernel")
    .argument("[name|device]", "volume or device")
    .option("--all", "every volume that is attached here")
    .option("--forget", "also take it out of the table")
    .option("--table <file>", "the table (/etc/dss/attachments)");
  detach.action(async (which: string | undefined, flags: DetachFlags) => {
    if ((which === undefined) === (flags.all !== true)) {
      throw new UsageError("which volume?", "name it or its device, or give --all");
    }
    const local = await import("../local/attachments.js");
    const found = local
      .allAttachments()
      .filter((each) => flags.all === true || each.volume === which || each.device === which);
    if (found.length === 0 && which !== undefined) {
      throw new DssError("NotFound", `${which} is not attached here`, {
        hint: "see dss volume attached",
      });
    }
    for (const each of found) {
      await local.detach(each);
      printLine(`detached ${each.volume} from ${each.device}`);
      if (flags.forget !== true) continue;
      const { changeTable, tablePath } = await import("../local/attachment-table.js");
      changeTable(flags.table ?? tablePath(), each.volume, undefined);
    }
  });
  examples(detach, "dss volume detach mydevice", "dss volume detach /dev/nbd0 --forget");
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
      kind: each.kind,
      readOnly: each.readOnly,
      serving: isServing(each),
      pid: isServing(each) ? each.supervisor.pid : null,
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
      row.serving ? "serving" : "supervisor gone: attach it again, or detach it",
    ]);
    printTable(["VOLUME", "DEVICE", "ACCESS", "STATE"], cells);
  });
  examples(attached, "dss volume attached");
}
