/**
 * `dss volume import-diff`: makes a volume that is at the beginning of a difference what it was at
 * its end. A file is read through and checked before anything changes. What fails later, and a
 * stream that turns out to be damaged, returns the volume to where it was; when even that is not to
 * be had (the command was killed), the next attempt finds it changed and says how to go on.
 */
import type { Command } from "commander";
import { createReadStream } from "node:fs";
import { hostname } from "node:os";
import { DssError, isDssError } from "../../cluster/base/errors.js";
import type { MdsClient } from "../../mds/client/mds-client.js";
import type { Volume, VolumeSnapshot } from "../../mds/proto.js";
import type { VolumeImage } from "../../nbd/image.js";
import { examples, withJson } from "../options.js";
import { note, printJson } from "../output.js";
import { formatSize } from "../sizes.js";
import { changesSince, originOf } from "./diff-export.js";
import { DATA_BYTES_MAX, readDiff, type DiffHeader, type DiffRecord } from "./diff-stream.js";
import { withImage } from "./image.js";
import { createVolume } from "./layout.js";
import { purged } from "./purges.js";
import { actorOf, infoOf, inSession } from "./session.js";
import { inOrder, TransferProgress } from "./transfer.js";

interface ImportFlags {
  rollback?: boolean;
  anyBase?: boolean;
  pool: string;
  json?: boolean;
}

export function registerImportDiff(parent: Command): void {
  const command = withJson(
    parent
      .command("import-diff")
      .description("apply what export-diff has written; from nothing it makes a new volume")
      .argument("<file>", "a file, or - for standard input")
      .argument("<name>", "name of the volume")
      .option("--rollback", "return the volume to the beginning first, if it has changed since")
      .option("--any-base", "a snapshot of the right name will do as the beginning")
      .option("--pool <pool>", "pool of a new volume", "data"),
  );
  command.action(async (path: string, name: string, flags: ImportFlags) => {
    if (path !== "-") await check(path);
    const records = readDiff(path === "-" ? process.stdin : fileOf(path));
    const first = await records.next();
    if (first.done === true || first.value.is !== "header") throw new DssError("Corrupt", "empty");
    const { header } = first.value;
    const run = { command, name, flags, header, records };
    const data = await (header.from === null ? intoNew(run) : ontoBase(run));
    const end = header.to.name;
    if (flags.json === true) {
      printJson({ volume: name, file: path, from: header.from?.name ?? null, to: end, data });
    } else {
      note(`${name} is what ${header.volume}${end === null ? "" : `@${end}`} was`);
    }
  });
  examples(
    command,
    "dss volume import-diff monday.diff copy",
    "dss volume import-diff tuesday.diff copy",
  );
}

function fileOf(path: string): AsyncIterable<Buffer> {
  return createReadStream(path, { highWaterMark: DATA_BYTES_MAX }) as AsyncIterable<Buffer>;
}

/** The whole file, before anything is done. Errors: Corrupt. */
async function check(path: string): Promise<void> {
  const progress = new TransferProgress(`check ${path}`, 0);
  let done = 0;
  try {
    for await (const record of readDiff(fileOf(path))) {
      if (record.is === "data") progress.update((done += record.data.length), record.data.length);
    }
  } finally {
    progress.end();
  }
}

interface Run {
  command: Command;
  name: string;
  flags: ImportFlags;
  header: DiffHeader;
  records: AsyncIterable<DiffRecord>;
}

/** A command that was killed does not stand in the way of the next one. */
function instanceOf({ name }: Run): string {
  return `${hostname()}:import-diff:${name}`;
}

/** Bytes of data that were written. */
async function intoNew(run: Run): Promise<number> {
  const { command, name, header, flags } = run;
  await inSession(command, (mds, client) =>
    createVolume(mds, client, { ...header.layout, pool: flags.pool, name, size: header.to.size }),
  );
  try {
    const opened = { name, write: true, instance: instanceOf(run) };
    return await withImage(command, opened, (image) => apply(run, image));
  } catch (error) {
    await inSession(command, (mds) => mds.call({ op: "volumeRemove", name }, { wait: "safe" }))
      .then(() => note(`${name} is removed again`))
      .catch((failure: unknown) => {
        note(`volume ${name} is incomplete: remove it with dss volume rm ${name}`);
        if (!isDssError(failure)) throw failure;
      });
    throw error;
  }
}

async function ontoBase(run: Run): Promise<number> {
  const { command, name, header, flags } = run;
  const base = header.from!;
  const { volume, snapshot } = await inSession(command, async (mds, client) => {
    const found = await infoOf(mds, name);
    const known = baseOf(found, run, client.needMap().clusterId);
    if (flags.rollback === true) await rollback(mds, found, known);
    return { volume: flags.rollback === true ? await infoOf(mds, name) : found, snapshot: known };
  });
  const also = `${name}@${snapshot.name}`;
  const opened = { name, also, write: true, instance: instanceOf(run) };
  const isResized = header.to.size !== base.size;
  if (volume.size !== base.size) throw changed(run, snapshot);
  if (isResized) {
    await withImage(command, opened, (image, then) => refuseChanged(run, image, then!));
  }
  let isBegun = isResized;
  try {
    if (isResized) await resize(command, name, header.to.size);
    return await withImage(command, opened, async (image, then) => {
      if (!isResized) await refuseChanged(run, image, then!);
      isBegun = true;
      return await apply(run, image);
    });
  } catch (error) {
    if (!isBegun) throw error;
    await inSession(command, (mds) => rollback(mds, volume, snapshot))
      .then(() => note(`${name} is what it was at ${snapshot.name}`))
      .catch((failure: unknown) => {
        const back = `dss volume snap rollback ${name}@${snapshot.name}`;
        note(`${name} may be changed in part; when it can be, return it: ${back}`);
        if (!isDssError(failure)) throw failure;
      });
    throw error;
  }
}

/** The snapshot that the difference begins with. Errors: NotFound, Conflict, Exists. */
function baseOf(volume: Volume, { name, header, flags }: Run, clusterId: string): VolumeSnapshot {
  const { name: wanted, origin, size } = header.from!;
  const base = volume.snapshots.find((each) => each.name === wanted);
  if (base === undefined) {
    throw new DssError("NotFound", `the difference begins with snapshot ${name}@${wanted}`, {
      hint: "which is not there: apply what leads to it first",
    });
  }
  const found = originOf(clusterId, volume, base);
  if (found !== origin && flags.anyBase !== true) {
    const text = `snapshot ${name}@${wanted} is not the one that the difference begins with`;
    throw new DssError("Conflict", `${text} (${found}, not ${origin})`, {
      hint: "if you know that it has the same bytes, add --any-base",
    });
  }
  if (base.size !== size) {
    const text = `snapshot ${name}@${wanted} has ${base.size} bytes`;
    throw new DssError("Conflict", `${text}, and the difference begins with ${size}`);
  }
  const end = header.to.name;
  if (end !== null && volume.snapshots.some((each) => each.name === end)) {
    throw new DssError("Exists", `snapshot ${name}@${end} exists: the difference was applied`);
  }
  return base;
}

/** Byte by byte: a volume that was rolled back has other objects. Errors: Conflict. */
async function refuseChanged(run: Run, image: VolumeImage, base: VolumeImage): Promise<void> {
  const { done } = await changesSince(run.command, base, image).next();
  const { snapshot, snapshots } = base.volume;
  if (done !== true)
    throw changed(
      run,
      snapshots.find(({ id }) => id === snapshot)!,
    );
}
function changed({ name }: Run, { name: base }: VolumeSnapshot): DssError {
  return new DssError("Conflict", `volume ${name} has changed since its snapshot ${base}`, {
    hint: `add --rollback to lose that, or keep it: dss volume clone`,
  });
}

async function rollback(mds: MdsClient, { id, name }: Volume, to: VolumeSnapshot): Promise<void> {
  const request = { op: "volumeRollback", name, snapshot: to.name } as const;
  await mds.call(request, { wait: "safe" });
  await purged(mds, id, `roll ${name} back`);
}
async function resize(command: Command, name: string, size: number): Promise<void> {
  await inSession(command, async (mds) => {
    const request = { op: "volumeResize", name, size, shrink: true } as const;
    const { volume } = (await mds.call(request, { wait: "safe" })).answer;
    if (volume !== undefined && volume.shrinkTo > 0) await purged(mds, volume.id, `shrink ${name}`);
  });
}

/** Writes it all, and takes the snapshot that it ends with. */
async function apply({ command, name, header, records }: Run, image: VolumeImage): Promise<number> {
  const progress = new TransferProgress(`import-diff ${name}`, header.to.size);
  let [data, isWhole] = [0, false];
  try {
    const written = inOrder(records, async (record) => {
      if (record.is === "data") await image.write(record.offset, record.data);
      if (record.is === "zeros") await image.zero(record.offset, record.length, { mayTrim: true });
      return record;
    });
    for await (const record of written) {
      if (record.is === "end") isWhole = true;
      if (record.is !== "data") continue;
      data += record.data.length;
      progress.update(record.offset + record.data.length, record.data.length);
    }
  } finally {
    progress.end();
  }
  if (!isWhole) throw new DssError("Corrupt", "the difference is incomplete");
  await image.flush();
  const { name: snapshot, origin } = header.to;
  if (snapshot !== null) {
    const request = { op: "volumeSnapCreate", name, snapshot, origin, actor: actorOf() } as const;
    await inSession(command, (mds) => mds.call(request, { wait: "safe" }));
  }
  note(`${formatSize(data)} of data were written to ${name}`);
  return data;
}
