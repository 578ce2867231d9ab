/** `dss volume create`, `ls`, `info`, `rm`: the records of volumes. */
import type { Command } from "commander";
import { UsageError } from "../failure.js";
import { examples, withCluster, withJson } from "../options.js";
import { note, printJson, printLine, printTable } from "../output.js";
import { formatSize, parseSize, VOLUME_SIZE } from "../sizes.js";
import { createVolume, layoutOf, withLayout, type LayoutFlags } from "./layout.js";
import { objectsOf } from "./objects.js";
import { describePurge, percentOf, purged } from "./purges.js";
import { parseSnapshot } from "./snapshots.js";
import { infoOf, inSession, parentOf, snapshotOf, snapshotViewOf, viewOf } from "./session.js";

export function registerCreate(parent: Command): void {
  const create = withJson(
    parent
      .command("create")
      .description("create a volume; it takes space only for what is written")
      .argument("<name>", "name of the volume")
      .argument("<size>", "such as 512M, 10G or 1T; a bare number is GiB"),
  );
  withLayout(create);
  create.action(async (name: string, text: string, options: LayoutFlags & { json?: boolean }) => {
    const size = parseSize(text, VOLUME_SIZE);
    const layout = layoutOf(options);
    const volume = await inSession(create, (mds, client) =>
      createVolume(mds, client, { name, size, ...layout }),
    );
    if (options.json === true) printJson(viewOf(volume));
    else printLine(`created volume ${volume.name} of ${formatSize(volume.size)}`);
  });
  examples(
    create,
    "dss volume create mydevice 10",
    "dss volume create small 512M",
    "dss volume create wide 1T --stripe-unit 64K --stripe-count 8",
  );
}

export function registerList(parent: Command): void {
  const list = withJson(parent.command("ls").alias("list").description("list the volumes"));
  list.action(async (options: { json?: boolean }) => {
    const { volumes, purges } = await inSession(list, async (mds) => {
      const { answer } = await mds.call({ op: "volumeList" });
      const sorted = [...(answer.volumes ?? [])].sort((a, b) => a.name.localeCompare(b.name));
      return { volumes: sorted, purges: answer.volumePurges ?? [] };
    });
    if (options.json === true) {
      printJson(volumes.map(viewOf));
      return;
    }
    const rows = volumes.map((volume) => [
      volume.name,
      formatSize(volume.size),
      volume.id,
      parentOf(volume) ?? "-",
      volume.owner || "-",
    ]);
    printTable(["VOLUME", "SIZE", "ID", "PARENT", "IN USE BY"], rows);
    for (const purge of purges) note(`${describePurge(purge)}: ${percentOf(purge)} % done`);
  });
  examples(list, "dss volume ls", "dss device list --json");
}

export function registerInfo(parent: Command): void {
  const info = withJson(
    parent
      .command("info")
      .description("show a volume or snapshot, and with --objects where a volume's bytes are")
      .argument("<name>", "name of the volume, or NAME@SNAPSHOT")
      .option("--objects", "list the objects that exist and the OSDs that hold them"),
  );
  info.action(async (text: string, options: { objects?: boolean; json?: boolean }) => {
    const { name, snapshot } = text.includes("@") ? parseSnapshot(text) : { name: text };
    if (snapshot !== undefined && options.objects === true) {
      throw new UsageError(`${text} is a snapshot`, "--objects shows those of a volume");
    }
    const { view, objects } = await inSession(info, async (mds, client) => {
      const volume = await infoOf(mds, name);
      if (snapshot !== undefined) {
        return { view: { volume: name, ...snapshotViewOf(snapshotOf(volume, snapshot), volume) } };
      }
      const found = options.objects === true ? await objectsOf(client, volume) : undefined;
      return { view: viewOf(volume), objects: found };
    });
    if (options.json === true) {
      printJson({ ...view, ...(objects !== undefined && { objects }) });
      return;
    }
    for (const [key, value] of Object.entries(view)) {
      const shown = Array.isArray(value) ? value.join(", ") : String(value ?? "");
      printLine(`${key.padEnd(13)} ${shown || "-"}`);
    }
    if (objects === undefined) return;
    const rows = objects.map((each) => [
      each.object,
      formatSize(each.offset),
      each.pg,
      formatSize(each.allocated),
      each.osds.join(", "),
    ]);
    printTable(["OBJECT", "OFFSET", "PG", "ALLOCATED", "OSDS"], rows);
  });
  examples(
    info,
    "dss volume info mydevice",
    "dss volume info mydevice@monday",
    "dss volume info mydevice --objects --json",
  );
}

export function registerRemove(parent: Command): void {
  const remove = withCluster(
    parent
      .command("rm")
      .alias("remove")
      .description("remove a volume and everything on it; its space becomes free afterwards")
      .argument("<name>", "name of the volume")
      .option("--wait", "return when its space is free, and show the progress"),
  );
  remove.action(async (name: string, options: { wait?: boolean }) => {
    await inSession(remove, async (mds) => {
      const { id } = await infoOf(mds, name);
      await mds.call({ op: "volumeRemove", name }, { wait: "safe" });
      if (options.wait === true) await purged(mds, id, `remove ${name}`);
    });
    printLine(`removed volume ${name}`);
  });
  examples(remove, "dss volume rm mydevice", "dss volume rm mydevice --wait");
}
