/** `dss volume clone` and `flatten`: volumes that begin as what another one was at a snapshot. */
import type { Command } from "commander";
import { DssError } from "../../cluster/base/errors.js";
import type { MdsClient } from "../../mds/client/mds-client.js";
import type { Volume } from "../../mds/proto.js";
import { UsageError } from "../failure.js";
import { examples, withCluster, withJson } from "../options.js";
import { note, printJson, printLine } from "../output.js";
import { formatSize } from "../sizes.js";
import { purged } from "./purges.js";
import { actorOf, infoOf, inSession, viewOf } from "./session.js";
import { parseSnapshot } from "./snapshots.js";

export function registerClone(parent: Command): void {
  const clone = withJson(
    parent
      .command("clone")
      .description("a new volume that begins as what another one was at a snapshot, at once")
      .argument("<name@snapshot>", "volume and snapshot to begin with")
      .argument("<new>", "name of the new volume"),
  );
  clone.action(async (text: string, newName: string, options: { json?: boolean }) => {
    const { name, snapshot } = parseSnapshot(text);
    if (newName.includes("@")) {
      const advice = `clone it to a volume: dss volume clone ${text} NAME`;
      throw new UsageError(`"${newName}" is no name for a volume`, advice);
    }
    const volume = await inSession(clone, async (mds) => {
      const request = { op: "volumeClone", name, snapshot, newName, actor: actorOf() } as const;
      const { answer, notFound } = await mds.call(request, { wait: "safe" });
      if (notFound) throw new DssError("NotFound", `there is no volume ${name}`);
      return answer.volume ?? (await infoOf(mds, newName));
    });
    if (options.json === true) printJson(viewOf(volume));
    else printLine(`created volume ${newName} of ${formatSize(volume.size)} from ${text}`);
  });
  examples(clone, "dss volume clone golden@base machine7");
}

export function registerFlatten(parent: Command): void {
  const flatten = withCluster(
    parent
      .command("flatten")
      .description("make a clone independent of its parent; also while it is in use")
      .argument("<name>", "name of the volume")
      .option("--background", "return at once: it goes on by itself (see dss volume ls)"),
  );
  flatten.action(async (name: string, options: { background?: boolean }) => {
    const isDone = await inSession(flatten, async (mds) => {
      const { id } = await begin(mds, name);
      if (options.background === true) return false;
      await purged(mds, id, `flatten ${name}`);
      return true;
    });
    if (isDone) printLine(`volume ${name} is independent`);
    else note(`volume ${name} is being made independent of its parent`);
  });
  examples(flatten, "dss volume flatten machine7", "dss volume flatten machine7 --background");
}

async function begin(mds: MdsClient, name: string): Promise<Volume> {
  const { answer, notFound } = await mds.call({ op: "volumeFlatten", name }, { wait: "safe" });
  if (notFound) throw new DssError("NotFound", `there is no volume ${name}`);
  return answer.volume ?? (await infoOf(mds, name));
}
