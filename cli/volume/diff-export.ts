/** `dss volume export-diff`: what has changed between two snapshots, to a file or a pipe. */
import type { Command } from "commander";
import { once } from "node:events";
import { existsSync, renameSync, rmSync } from "node:fs";
import { open } from "node:fs/promises";
import { DssError } from "../../cluster/base/errors.js";
import type { Volume, VolumeSnapshot } from "../../mds/proto.js";
import type { VolumeImage } from "../../nbd/image.js";
import { rangesOf } from "../../nbd/object-versions.js";
import { UsageError } from "../failure.js";
import { examples, withJson } from "../options.js";
import { note, printJson } from "../output.js";
import { formatSize } from "../sizes.js";
import { changedObjects } from "./diff-objects.js";
import { DiffWriter, type DiffState } from "./diff-stream.js";
import { contentOf } from "./export.js";
import { PIECE_BYTES, withImage } from "./image.js";
import { infoOf, inSession, snapshotOf } from "./session.js";
import { BLOCK, dataRuns, inOrder, isZero, TransferProgress } from "./transfer.js";

export interface Change {
  readonly offset: number;
  readonly length: number;
  /** Undefined: zeros. */
  readonly data?: Buffer;
}

/** Where and as what a snapshot was taken first: the same one has it after it was imported. */
export function originOf(clusterId: string, { id }: Volume, snapshot: VolumeSnapshot): string {
  return snapshot.origin === "" ? `${clusterId}/${id}/${snapshot.id}` : snapshot.origin;
}

/** All that is not zeros: the difference to nothing. */
export async function* changesFromNothing(image: VolumeImage): AsyncGenerator<Change> {
  for await (const { offset, length, pieces } of contentOf(image, 0)) {
    if (pieces === undefined) continue;
    const bytes = Buffer.concat(pieces, length);
    for (const { at, length: size } of dataRuns(bytes)) {
      yield { offset: offset + at, length: size, data: bytes.subarray(at, at + size) };
    }
  }
}

/** What `now` has that `then` has not, block by block. Both are of one volume. */
export async function* changesSince(
  command: Command,
  then: VolumeImage,
  now: VolumeImage,
): AsyncGenerator<Change> {
  const { layout, snapshot: to } = now.volume;
  const { size } = now;
  const indexes = changedObjects(command, now, { from: then.volume.snapshot, to, size });
  const ranges = async function* (): AsyncGenerator<{ offset: number; length: number }> {
    for await (const index of indexes) {
      for (const { offset, length } of rangesOf(layout, index, size)) {
        for (let at = 0; at < length; at += PIECE_BYTES) {
          yield { offset: offset + at, length: Math.min(PIECE_BYTES, length - at) };
        }
      }
    }
  };
  const compared = inOrder(ranges(), async ({ offset, length }) => {
    const common = Math.min(length, Math.max(0, then.size - offset));
    const [before, after] = await Promise.all([
      common > 0 ? then.read(offset, common) : [],
      now.read(offset, length),
    ]);
    const old = Buffer.alloc(length);
    Buffer.concat(before).copy(old);
    return [...changedRuns(old, Buffer.concat(after, length), offset)];
  });
  for await (const runs of compared) yield* runs;
}

function* changedRuns(before: Buffer, after: Buffer, offset: number): Generator<Change> {
  let start = 0;
  let kind: "same" | "zeros" | "data" = "same";
  const run = (end: number): Change[] => {
    if (kind === "same") return [];
    const what = { offset: offset + start, length: end - start };
    return [kind === "zeros" ? what : { ...what, data: after.subarray(start, end) }];
  };
  for (let at = 0; at < after.length; at += BLOCK) {
    const part = after.subarray(at, at + BLOCK);
    const isSame = part.equals(before.subarray(at, at + BLOCK));
    const next = isSame ? "same" : isZero(part) ? "zeros" : "data";
    if (next === kind) continue;
    yield* run(at);
    [start, kind] = [at, next];
  }
  yield* run(after.length);
}

// ---- The command -------------------------------------------------------------------------------

export function registerExportDiff(parent: Command): void {
  const command = withJson(
    parent
      .command("export-diff")
      .description("write what has changed since a snapshot to a file or to standard output")
      .argument("<name[@snapshot]>", "up to this snapshot, or up to now")
      .argument("<file>", "a file that does not exist yet, or - for standard output")
      .option("--from <snapshot>", "since this one (since nothing: all that is there)"),
  );
  command.action(async (text: string, path: string, flags: { from?: string; json?: boolean }) => {
    const [name, to, more] = text.split("@") as [string, string | undefined, string | undefined];
    if (name === "" || to === "" || more !== undefined) {
      throw new UsageError(`"${text}" names no volume`, "write NAME or NAME@SNAPSHOT");
    }
    if (path === "-" && flags.json === true) {
      throw new UsageError("--json needs a file, not standard output");
    }
    if (path !== "-" && existsSync(path)) {
      throw new DssError("Exists", `${path} exists`, { hint: "name another file, or remove it" });
    }
    const { volume, clusterId } = await inSession(command, async (mds, client) => {
      return { volume: await infoOf(mds, name), clusterId: client.needMap().clusterId };
    });
    const states = statesOf(volume, flags.from, to);
    const written = await exportDiff({ command, volume, clusterId, path }, states);
    if (flags.json === true) {
      printJson({ volume: name, from: flags.from ?? null, to: to ?? null, file: path, ...written });
    } else {
      const since = flags.from === undefined ? "" : ` since ${flags.from}`;
      note(`exported what has changed of ${text}${since}: ${formatSize(written.data)} of data`);
    }
  });
  examples(
    command,
    "dss volume export-diff mydevice@monday monday.diff",
    "dss volume export-diff mydevice@tuesday tuesday.diff --from monday",
    "dss volume export-diff mydevice@tuesday - --from monday | ssh other dss volume import-diff - mydevice",
  );
}

interface States {
  from: VolumeSnapshot | undefined;
  to: VolumeSnapshot | undefined;
}
function statesOf(volume: Volume, from: string | undefined, to: string | undefined): States {
  const named = (wanted: string | undefined): VolumeSnapshot | undefined => {
    return wanted === undefined ? undefined : snapshotOf(volume, wanted);
  };
  const states = { from: named(from), to: named(to) };
  if (states.from !== undefined && states.to !== undefined && states.from.id >= states.to.id) {
    throw new DssError("InvalidArgument", `snapshot ${from} is not older than ${to}`, {
      hint: "a difference goes from an older snapshot to a newer one",
    });
  }
  return states;
}

interface Source {
  command: Command;
  volume: Volume;
  clusterId: string;
  path: string;
}
async function exportDiff(
  { command, volume, clusterId, path }: Source,
  { from, to }: States,
): Promise<{ size: number; data: number; records: number }> {
  const { name } = volume;
  const isBusy = to === undefined && volume.owner !== "";
  if (isBusy) note(`warning: ${name} is in use by ${volume.owner}: the end is not of one moment`);
  const { objectSize, stripeUnit, stripeCount } = volume.layout;
  const stateOf = (snapshot: VolumeSnapshot): DiffState => ({
    ...{ name: snapshot.name, origin: originOf(clusterId, volume, snapshot) },
    size: snapshot.size,
  });
  const opened = {
    name: to === undefined ? name : `${name}@${to.name}`,
    write: false,
    // Of one that is looked at as a whole it is asked first which objects there are.
    ...(from === undefined ? { listed: true } : { also: `${name}@${from.name}` }),
  };
  return await withImage(command, opened, async (now, then) => {
    const { size } = now;
    const output = await outputTo(path);
    const writer = new DiffWriter((bytes) => output.put(bytes));
    const progress = new TransferProgress(`export-diff ${opened.name}`, size);
    const changes = then === undefined ? changesFromNothing(now) : changesSince(command, then, now);
    try {
      await writer.begin({
        ...{ version: 1, volume: name, from: from === undefined ? null : stateOf(from) },
        to: to === undefined ? { name: null, origin: "", size } : stateOf(to),
        layout: { objectSize, stripeUnit, stripeCount },
      });
      for await (const { offset, length, data } of changes) {
        if (data === undefined) await writer.zeros(offset, length);
        else await writer.data(offset, data);
        progress.update(offset + length, data?.length ?? 0);
      }
      await writer.end();
      await output.finish();
    } catch (error) {
      await output.abandon();
      throw error;
    } finally {
      progress.end();
    }
    return { size, data: writer.bytes, records: writer.records };
  });
}

/** A file has its name when it is whole and on the disk. */
async function outputTo(path: string) {
  if (path === "-") {
    const put = async (bytes: Buffer): Promise<void> => {
      if (!process.stdout.write(bytes)) await once(process.stdout, "drain");
    };
    return { put, finish: async () => undefined, abandon: async () => undefined };
  }
  const partial = `${path}.partial`;
  const file = await open(partial, "w").catch((cause: unknown) => {
    throw new DssError("Disk", `cannot write ${partial}`, { cause });
  });
  return {
    put: async (bytes: Buffer): Promise<void> => void (await file.appendFile(bytes)),
    finish: async (): Promise<void> => {
      await file.sync();
      await file.close();
      renameSync(partial, path);
    },
    abandon: async (): Promise<void> => {
      await file.close();
      rmSync(partial, { force: true });
    },
  };
}
