/** `dss volume resize`, `rename`, `limit`: changes of a volume's record. */
import type { Command } from "commander";
import { DssError } from "../../cluster/base/errors.js";
import type { Request, Volume } from "../../mds/proto.js";
import type { MdsClient } from "../../mds/client/mds-client.js";
import { UsageError } from "../failure.js";
import { examples, withJson } from "../options.js";
import { printJson, printLine } from "../output.js";
import { formatSize, GIB, parseCount, parseSize, VOLUME_SIZE } from "../sizes.js";
import { purged } from "./purges.js";
import { infoOf, inSession, viewOf } from "./session.js";

const IOPS = { what: "--iops", min: 0, max: 1_000_000_000 };
const BANDWIDTH = { what: "--bandwidth", bare: "bytes", min: 0, max: 1024 * GIB } as const;

async function change(mds: MdsClient, request: Request & { name: string }): Promise<Volume> {
  const { answer } = await mds.call(request, { wait: "safe" });
  // A new leader that knows the request answers without the record.
  const name = request.op === "volumeRename" ? request.newName : request.name;
  return answer.volume ?? (await infoOf(mds, name));
}

export function registerResize(parent: Command): void {
  const resize = withJson(
    parent
      .command("resize")
      .description("grow a volume, also while it is in use; or shrink one that nobody uses")
      .argument("<name>", "name of the volume")
      .argument("<size>", "its new size, such as 512M, 10G or 1T; a bare number is GiB")
      .option("--allow-shrink", "lose what is beyond the new size"),
  );
  resize.action(
    async (name: string, text: string, options: { allowShrink?: boolean; json?: boolean }) => {
      const size = parseSize(text, VOLUME_SIZE);
      const shrink = options.allowShrink === true;
      const volume = await inSession(resize, async (mds) => {
        const { size: before } = await infoOf(mds, name);
        if (size < before && !shrink) {
          const text = `volume ${name} has ${formatSize(before)} and would be smaller`;
          throw new DssError("InvalidArgument", text, {
            hint: "what is beyond the new size would be lost; if you mean it, add --allow-shrink",
          });
        }
        const changed = await change(mds, { op: "volumeResize", name, size, shrink });
        if (changed.shrinkTo === 0) return changed;
        await purged(mds, changed.id, `shrink ${name}`);
        const { answer } = await mds.call({ op: "volumeList" });
        const found = answer.volumes?.find((each) => each.id === changed.id);
        if (found !== undefined) return found;
        throw new DssError("NotFound", `volume ${name} was removed while it was being shrunk`);
      });
      if (options.json === true) printJson(viewOf(volume));
      else printLine(`volume ${volume.name} has ${formatSize(volume.size)}`);
    },
  );
  examples(resize, "dss volume resize mydevice 20", "dss volume resize mydevice 5 --allow-shrink");
}

export function registerRename(parent: Command): void {
  const rename = withJson(
    parent
      .command("rename")
      .alias("mv")
      .description("give a volume another name; who uses it goes on")
      .argument("<name>", "name of the volume")
      .argument("<new-name>", "its new name"),
  );
  rename.action(async (name: string, newName: string, options: { json?: boolean }) => {
    const volume = await inSession(rename, (mds) =>
      change(mds, { op: "volumeRename", name, newName }),
    );
    if (options.json === true) printJson(viewOf(volume));
    else printLine(`renamed volume ${name} to ${volume.name}`);
  });
  examples(rename, "dss volume rename mydevice database");
}

export function registerLimit(parent: Command): void {
  const limit = withJson(
    parent
      .command("limit")
      .description("show or set how much a second the users of a volume may do; at once")
      .argument("<name>", "name of the volume")
      .option("--iops <count>", "operations a second; 0: no limit")
      .option("--bandwidth <size>", "bytes a second, such as 50M; 0: no limit"),
  );
  limit.action(
    async (name: string, options: { iops?: string; bandwidth?: string; json?: boolean }) => {
      const iops = options.iops === undefined ? undefined : parseCount(options.iops, IOPS);
      const bandwidth =
        options.bandwidth === undefined ? undefined : parseSize(options.bandwidth, BANDWIDTH);
      if (bandwidth !== undefined && bandwidth > 0 && bandwidth < 4096) {
        throw new UsageError(`--bandwidth "${options.bandwidth}" is too small`, "give 4K or more");
      }
      const volume = await inSession(limit, async (mds) => {
        if (iops === undefined && bandwidth === undefined) return await infoOf(mds, name);
        return await change(mds, {
          ...{ op: "volumeLimit", name },
          ...(iops !== undefined && { iops }),
          ...(bandwidth !== undefined && { bandwidth }),
        });
      });
      const { iopsLimit, bandwidthLimit } = volume;
      if (options.json === true) printJson({ name, iops: iopsLimit, bandwidth: bandwidthLimit });
      else {
        const operations = iopsLimit === 0 ? "any number of operations" : `${iopsLimit} operations`;
        const bytes = bandwidthLimit === 0 ? "any number of bytes" : formatSize(bandwidthLimit);
        printLine(`volume ${name}: ${operations} and ${bytes} a second`);
      }
    },
  );
  examples(
    limit,
    "dss volume limit mydevice --iops 500 --bandwidth 50M",
    "dss volume limit mydevice --iops 0 --bandwidth 0",
  );
}
