/** `dss volume snap`: what a volume was, to be read, and to return to. */
import type { Command } from "commander";
import type { Request, Volume } from "../../mds/proto.js";
import type { MdsClient } from "../../mds/client/mds-client.js";
import { UsageError } from "../failure.js";
import { examples, withCluster, withJson } from "../options.js";
import { printJson, printLine, printTable } from "../output.js";
import { formatSize } from "../sizes.js";
import { purged } from "./purges.js";
import { clonesOf, dateOf, infoOf, inSession, snapshotViewOf } from "./session.js";

export function registerSnapshots(parent: Command): void {
  const snap = parent.command("snap").description("snapshots of volumes: NAME@SNAPSHOT");
  registerCreate(snap);
  registerList(snap);
  registerRemove(snap);
  registerRollback(snap);
  registerProtect(snap, true);
  registerProtect(snap, false);
  examples(snap, "dss volume snap create mydevice@monday", "dss volume snap ls mydevice");
}

interface Named {
  name: string;
  snapshot: string;
}
export function parseSnapshot(text: string): Named {
  const at = text.indexOf("@");
  if (at > 0 && at < text.length - 1 && text.indexOf("@", at + 1) < 0) {
    return { name: text.slice(0, at), snapshot: text.slice(at + 1) };
  }
  throw new UsageError(
    `"${text}" names no snapshot`,
    "write NAME@SNAPSHOT, such as mydevice@monday",
  );
}

async function change(mds: MdsClient, request: Request & { name: string }): Promise<Volume> {
  const { answer } = await mds.call(request, { wait: "safe" });
  // A new leader that knows the request answers without the record.
  return answer.volume ?? (await infoOf(mds, request.name));
}

function registerCreate(parent: Command): void {
  const create = withJson(
    parent
      .command("create")
      .description("keep what a volume is now; also while it is in use")
      .argument("<name@snapshot>", "volume and name of the snapshot"),
  );
  create.action(async (text: string, options: { json?: boolean }) => {
    const { name, snapshot } = parseSnapshot(text);
    const volume = await inSession(create, async (mds) => {
      const timeNs = BigInt(Date.now()) * 1_000_000n;
      const actor = { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0, timeNs };
      return await change(mds, { op: "volumeSnapCreate", name, snapshot, actor });
    });
    const taken = volume.snapshots.find((each) => each.name === snapshot);
    if (options.json === true && taken !== undefined) printJson(snapshotViewOf(taken, volume));
    else printLine(`created snapshot ${name}@${snapshot}`);
  });
  examples(create, "dss volume snap create mydevice@monday");
}

function registerList(parent: Command): void {
  const list = withJson(
    parent
      .command("ls")
      .alias("list")
      .description("list the snapshots of a volume")
      .argument("<name>", "name of the volume"),
  );
  list.action(async (name: string, options: { json?: boolean }) => {
    const volume = await inSession(list, (mds) => infoOf(mds, name));
    const { snapshots } = volume;
    if (options.json === true) {
      printJson(snapshots.map((each) => snapshotViewOf(each, volume)));
      return;
    }
    const rows = snapshots.map((each) => [
      `${name}@${each.name}`,
      formatSize(each.size),
      dateOf(each.createdNs),
      each.isProtected ? "yes" : "-",
      clonesOf(volume, each).join(", ") || "-",
    ]);
    printTable(["SNAPSHOT", "SIZE", "CREATED", "PROTECTED", "CLONES"], rows);
  });
  examples(list, "dss volume snap ls mydevice");
}

function registerRemove(parent: Command): void {
  const remove = withCluster(
    parent
      .command("rm")
      .alias("remove")
      .description("remove a snapshot; its space is freed in the background")
      .argument("<name@snapshot>", "volume and snapshot; with --all the volume")
      .option("--all", "all snapshots of the volume that are not protected")
      .option("--wait", "return when the space is free"),
  );
  remove.action(async (text: string, options: { all?: boolean; wait?: boolean }) => {
    const removed = await inSession(remove, async (mds) => {
      const wanted = options.all === true ? await allOf(mds, text) : [parseSnapshot(text)];
      for (const each of wanted) {
        const { id } = await change(mds, { op: "volumeSnapRemove", ...each });
        if (options.wait === true) await purged(mds, id, `remove ${each.name}@${each.snapshot}`);
      }
      return wanted;
    });
    for (const { name, snapshot } of removed) printLine(`removed snapshot ${name}@${snapshot}`);
  });
  examples(remove, "dss volume snap rm mydevice@monday", "dss volume snap rm --all mydevice");
}
async function allOf(mds: MdsClient, name: string): Promise<Named[]> {
  const { snapshots } = await infoOf(mds, name);
  const free = snapshots.filter(({ isProtected }) => !isProtected);
  return free.map(({ name: snapshot }) => ({ name, snapshot }));
}

function registerRollback(parent: Command): void {
  const rollback = withCluster(
    parent
      .command("rollback")
      .description("make a volume that nobody uses what it was; later snapshots stay")
      .argument("<name@snapshot>", "volume and snapshot"),
  );
  rollback.action(async (text: string) => {
    const { name, snapshot } = parseSnapshot(text);
    await inSession(rollback, async (mds) => {
      const { id } = await change(mds, { op: "volumeRollback", name, snapshot });
      await purged(mds, id, `roll ${name} back`);
    });
    printLine(`volume ${name} is what it was at ${snapshot}`);
  });
  examples(rollback, "dss volume snap rollback mydevice@monday");
}

function registerProtect(parent: Command, isProtected: boolean): void {
  const verb = isProtected ? "protect" : "unprotect";
  const protect = withCluster(
    parent
      .command(verb)
      .description(isProtected ? "refuse to remove a snapshot" : "let a snapshot be removed")
      .argument("<name@snapshot>", "volume and snapshot"),
  );
  protect.action(async (text: string) => {
    const named = parseSnapshot(text);
    await inSession(protect, (mds) =>
      change(mds, { op: "volumeSnapProtect", ...named, isProtected }),
    );
    printLine(`snapshot ${text} is ${isProtected ? "protected" : "not protected any more"}`);
  });
  examples(protect, `dss volume snap ${verb} mydevice@monday`);
}
