/** `dss volume` (also `dss device`): block devices in the cluster. */
import type { Command } from "commander";
import { once } from "node:events";
import { hostname } from "node:os";
import { resolve } from "node:path";
import { DssError, isDssError, type ErrorCode } from "../cluster/base/errors.js";
import { silentLogger } from "../cluster/base/log.js";
import { formatPg, pgId } from "../cluster/base/ids.js";
import { osdOf, poolOf } from "../cluster/map/cluster-map.js";
import type { Address } from "../cluster/platform/ports.js";
import type { BlockImage } from "../nbd/block-image.js";
import type { Volume } from "../mds/proto.js";
import type { MdsClient } from "../mds/client/mds-client.js";
import type { ClusterClient } from "./context.js";
import { UsageError } from "./failure.js";
import {
  examples,
  settingsOf,
  useCluster,
  withCluster,
  withJson,
  withSettings,
  zookeeperOf,
} from "./options.js";
import { note, printJson, printLine, printTable } from "./output.js";
import { parsePort } from "./osd.js";
import { formatSize, parseSize, VOLUME_BYTES_MAX, VOLUME_SIZE } from "./sizes.js";
import { version } from "./version.js";
import { tlsOf, withTls, type TlsFlags } from "./volume-tls.js";

const LIST_LIMIT = 10_000;
const NBD_PORT = 10_809;
const DEFAULT_POOL = "data";

export function register(command: Command): void {
  registerCreate(command);
  registerList(command);
  registerInfo(command);
  registerRemove(command);
  registerRead(command);
  registerWrite(command);
  registerServe(command);
  registerAttach(command);
  registerDetach(command);
  registerAttached(command);
}

/** Runs the action in a short session with the metadata leader. */
async function inSession<T>(
  command: Command,
  action: (mds: MdsClient, client: ClusterClient) => Promise<T>,
): Promise<T> {
  return await useCluster(command, async (client) => {
    client.needMap();
    try {
      return await client.withSession("dss volume", (mds) => action(mds, client));
    } catch (error) {
      throw withAdvice(error);
    }
  });
}

const ADVICE: Partial<Record<ErrorCode, string>> = {
  NotFound: "see dss volume ls",
  Exists: "choose another name, or remove it first: dss volume rm",
  Busy: "see dss volume ls for who uses it",
};

/** The leader's refusals come without advice. */
function withAdvice(error: unknown): unknown {
  if (!isDssError(error) || error.hint !== undefined) return error;
  const hint = ADVICE[error.code];
  return hint === undefined ? error : new DssError(error.code, error.message, { hint });
}

async function infoOf(mds: MdsClient, name: string): Promise<Volume> {
  const { answer, notFound } = await mds.call({ op: "volumeInfo", name });
  if (!notFound && answer.volume !== undefined) return answer.volume;
  throw new DssError("NotFound", `there is no volume ${name}`);
}

const viewOf = (volume: Volume): object => ({
  id: volume.id,
  name: volume.name,
  size: volume.size,
  pool: volume.layout.pool,
  objectSize: volume.layout.objectSize,
  stripeUnit: volume.layout.stripeUnit,
  stripeCount: volume.layout.stripeCount,
  objectPrefix: volume.objectPrefix,
  features: volume.features,
  created: new Date(Number(volume.createdNs / 1_000_000n)).toISOString(),
  owner: volume.owner,
});

// ---- Records -----------------------------------------------------------------------------------

function registerCreate(parent: Command): void {
  const create = withJson(
    parent
      .command("create")
      .description("create a volume; it takes space only for what is written")
      .argument("<name>", "name of the volume")
      .argument("<size>", "such as 512M, 10G or 1T; a bare number is GiB")
      .option("--pool <pool>", "pool that keeps its objects", DEFAULT_POOL),
  );
  create.action(async (name: string, text: string, options: { pool: string; json?: boolean }) => {
    const size = parseSize(text, VOLUME_SIZE);
    const volume = await inSession(create, async (mds, client) => {
      const pools = client.needMap().pools.map((pool) => pool.name);
      // The default name is a convention: in a cluster with one pool there is no choice to make.
      const only = pools.length === 1 && options.pool === DEFAULT_POOL ? pools[0]! : options.pool;
      if (!pools.includes(only)) {
        throw new DssError("NotFound", `there is no pool "${only}"`, {
          hint: `the cluster has: ${pools.join(", ")}`,
        });
      }
      const actor = {
        uid: process.getuid?.() ?? 0,
        gid: process.getgid?.() ?? 0,
        timeNs: BigInt(Date.now()) * 1_000_000n,
      };
      const request = { op: "volumeCreate", name, size, pool: only, actor } as const;
      const { answer } = await mds.call(request, { wait: "safe" });
      return answer.volume ?? (await infoOf(mds, name));
    });
    if (options.json === true) printJson(viewOf(volume));
    else printLine(`created volume ${volume.name} of ${formatSize(volume.size)}`);
  });
  examples(create, "dss volume create mydevice 10", "dss volume create small 512M");
}

function registerList(parent: Command): void {
  const list = withJson(parent.command("ls").alias("list").description("list the volumes"));
  list.action(async (options: { json?: boolean }) => {
    const volumes = await inSession(list, async (mds) => {
      const { answer } = await mds.call({ op: "volumeList" });
      return [...(answer.volumes ?? [])].sort((a, b) => a.name.localeCompare(b.name));
    });
    if (options.json === true) {
      printJson(volumes.map(viewOf));
      return;
    }
    const rows = volumes.map((volume) => [
      volume.name,
      formatSize(volume.size),
      volume.id,
      volume.owner || "-",
    ]);
    printTable(["VOLUME", "SIZE", "ID", "IN USE BY"], rows);
  });
  examples(list, "dss volume ls", "dss device list --json");
}

function registerInfo(parent: Command): void {
  const info = withJson(
    parent
      .command("info")
      .description("show a volume, and with --objects where its bytes are")
      .argument("<name>", "name of the volume")
      .option("--objects", "list the objects that exist and the OSDs that hold them"),
  );
  info.action(async (name: string, options: { objects?: boolean; json?: boolean }) => {
    const { volume, objects } = await inSession(info, async (mds, client) => {
      const found = await infoOf(mds, name);
      return {
        volume: found,
        objects: options.objects === true ? await objectsOf(client, found) : undefined,
      };
    });
    if (options.json === true) {
      printJson({ ...viewOf(volume), ...(objects !== undefined && { objects }) });
      return;
    }
    for (const [key, value] of Object.entries(viewOf(volume))) {
      const shown = Array.isArray(value) ? value.join(", ") : String(value);
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
  examples(info, "dss volume info mydevice", "dss volume info mydevice --objects --json");
}

interface ObjectRow {
  object: string;
  index: number;
  /** Where its first byte is in a volume without striping. */
  offset: number;
  pg: string;
  size: number;
  allocated: number;
  osds: readonly number[];
}

/** The volume's objects that exist, by asking the primary of every PG of its pool. */
async function objectsOf(client: ClusterClient, volume: Volume): Promise<ObjectRow[]> {
  const map = client.needMap();
  const pool = poolOf(map, volume.layout.pool);
  if (pool === undefined) throw new DssError("NotFound", `pool ${volume.layout.pool} is not there`);
  const prefix = `${volume.objectPrefix}.`;
  const found: ObjectRow[] = [];
  const entries = map.pgs[pool.id] ?? [];
  const list = async (index: number): Promise<void> => {
    const pg = pgId(pool.id, index);
    const entry = entries[index]!;
    const primary = osdOf(map, entry.primary);
    if (primary === undefined) {
      if (entry.inSync.length === 0) return; // Never created: it holds nothing.
      throw new DssError("NotActive", `placement group ${formatPg(pg)} has no primary`, {
        hint: "see dss health detail",
      });
    }
    for (let after = prefix; ;) {
      const objects = await client.listObjects(primary, { pg, after, limit: LIST_LIMIT });
      const own = objects.filter((each) => each.object.startsWith(prefix));
      for (const { object, size, allocated } of own) {
        const at = Number.parseInt(object.slice(prefix.length), 16);
        found.push({
          ...{ object, index: at, offset: at * volume.layout.objectSize },
          ...{ pg: formatPg(pg), size, allocated, osds: entry.inSync },
        });
      }
      // Names come in order: the first one of another prefix ends the list.
      const last = objects.at(-1);
      if (last === undefined || own.length < objects.length) return;
      if (objects.length < LIST_LIMIT) return;
      after = last.object;
    }
  };
  await Promise.all(entries.map((_, index) => list(index)));
  return found.sort((a, b) => a.index - b.index);
}

function registerRemove(parent: Command): void {
  const remove = withCluster(
    parent
      .command("rm")
      .alias("remove")
      .description("remove a volume and everything on it")
      .argument("<name>", "name of the volume"),
  );
  remove.action(async (name: string) => {
    await inSession(remove, async (mds) => {
      const { notFound } = await mds.call({ op: "volumeRemove", name }, { wait: "safe" });
      if (!notFound) return;
      throw new DssError("NotFound", `there is no volume ${name}`);
    });
    printLine(`removed volume ${name}`);
  });
  examples(remove, "dss volume rm mydevice");
}

// ---- Bytes -------------------------------------------------------------------------------------

/** Bytes of one request to the image; also what a command keeps in memory at a time. */
const PIECE_BYTES = 4 * 2 ** 20;
const READ_DEFAULT = 4_096;

const OFFSET = { what: "offset", bare: "bytes", min: 0, max: VOLUME_BYTES_MAX } as const;
const LENGTH = { what: "length", bare: "bytes", min: 1, max: VOLUME_BYTES_MAX } as const;

async function withImage<T>(
  command: Command,
  wanted: { name: string; write: boolean },
  action: (image: BlockImage) => Promise<T>,
): Promise<T> {
  const config = settingsOf(command);
  const zookeeper = zookeeperOf(command);
  const { openVolume } = await import("../nbd/main.js");
  const opened = await openVolume({
    ...wanted,
    ...{ zookeeper, config, logger: silentLogger },
    ...{ type: "cli", host: hostname(), detail: `dss volume ${wanted.write ? "write" : "read"}` },
  }).catch((error: unknown) => {
    throw withAdvice(error);
  });
  try {
    return await action(opened.image);
  } finally {
    await opened.close();
  }
}

function checkRange(image: BlockImage, offset: number, length: number): void {
  if (offset + length <= image.size) return;
  throw new DssError(
    "InvalidArgument",
    `${length} bytes at offset ${offset} reach beyond the end of ${image.name}`,
    { hint: `it has ${image.size} bytes` },
  );
}

function registerRead(parent: Command): void {
  const read = withCluster(
    parent
      .command("read")
      .description("write bytes of a volume to standard output")
      .argument("<name>", "name of the volume")
      .argument("<offset>", "such as 0, 4096 or 1G; a bare number is bytes")
      .argument("[length]", `bytes (${READ_DEFAULT}, or to the end if that is nearer)`),
  );
  read.action(async (name: string, from: string, count: string | undefined) => {
    const offset = parseSize(from, OFFSET);
    const wanted = count === undefined ? undefined : parseSize(count, LENGTH);
    await withImage(read, { name, write: false }, async (image) => {
      const length = wanted ?? Math.min(READ_DEFAULT, Math.max(1, image.size - offset));
      checkRange(image, offset, length);
      for (let at = 0; at < length; at += PIECE_BYTES) {
        const pieces = await image.read(offset + at, Math.min(PIECE_BYTES, length - at));
        for (const piece of pieces) {
          if (!process.stdout.write(piece)) await once(process.stdout, "drain");
        }
      }
    });
  });
  examples(read, "dss volume read mydevice 0 512 | xxd");
}

function registerWrite(parent: Command): void {
  const write = withCluster(
    parent
      .command("write")
      .description("write bytes to a volume; returns when they are on every replica's disk")
      .argument("<name>", "name of the volume")
      .argument("<offset>", "such as 0, 4096 or 1G; a bare number is bytes")
      .argument("<data>", "the text to write, or - for standard input"),
  );
  write.action(async (name: string, at: string, data: string) => {
    const offset = parseSize(at, OFFSET);
    const length = await withImage(write, { name, write: true }, async (image) => {
      let done = 0;
      const put = async (piece: Buffer): Promise<void> => {
        checkRange(image, offset + done, piece.length);
        await image.write(offset + done, piece, { fua: false });
        done += piece.length;
      };
      if (data !== "-") await put(Buffer.from(data, "utf8"));
      else for await (const piece of pieces(process.stdin)) await put(piece);
      await image.flush();
      return done;
    });
    note(`wrote ${length} bytes to ${name} at offset ${offset}`);
  });
  examples(write, "dss volume write mydevice 0 hello", "dss volume write mydevice 1M - < file");
}

/** The stream in pieces of PIECE_BYTES, the last one shorter. */
async function* pieces(stream: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let kept: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of stream) {
    kept.push(chunk);
    bytes += chunk.length;
    while (bytes >= PIECE_BYTES) {
      const all = Buffer.concat(kept);
      yield all.subarray(0, PIECE_BYTES);
      kept = [all.subarray(PIECE_BYTES)];
      bytes -= PIECE_BYTES;
    }
  }
  if (bytes > 0) yield Buffer.concat(kept);
}

// ---- Serving and attaching ---------------------------------------------------------------------

interface ServeFlags {
  listen?: string;
  unix?: string;
  readOnly?: boolean;
}
type AllServeFlags = ServeFlags & TlsFlags;

function parseListen(text: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+))?:(\d{1,5})$/.exec(text);
  if (match === null) {
    throw new UsageError(`--listen "${text}" is not an address`, "write HOST:PORT, such as :10809");
  }
  const port = match[3] === "0" ? 0 : parsePort(match[3]!);
  return { host: match[1] ?? match[2] ?? "127.0.0.1", port };
}

function registerServe(parent: Command): void {
  const serve = withCluster(
    parent
      .command("serve")
      .description("serve volumes by NBD in the foreground; prints where")
      .argument("[names...]", "volumes (every volume of the cluster)")
      .option("--listen <host:port>", `TCP address (127.0.0.1:${NBD_PORT} without --unix)`)
      .option("--unix <path>", "unix socket")
      .option("--read-only", "refuse writes"),
  );
  withTls(serve);
  withSettings(serve, ["cluster", "client", "nbd"]);
  serve.action(async (names: string[], flags: AllServeFlags) => {
    const config = settingsOf(serve);
    const tls = tlsOf(flags);
    const scheme = tls?.policy === "require" ? "nbds" : "nbd";
    const listen: Address[] = [];
    if (flags.unix !== undefined) listen.push({ path: resolve(flags.unix) });
    if (flags.listen !== undefined) listen.push(parseListen(flags.listen));
    if (listen.length === 0) listen.push({ host: "127.0.0.1", port: NBD_PORT });
    const zookeeper = zookeeperOf(serve);
    const [{ runNbd }, { daemonLogger, runToEnd }] = await Promise.all([
      import("../nbd/main.js"),
      import("./daemon.js"),
    ]);
    const logger = daemonLogger("nbd", config);
    await runToEnd(logger, () =>
      runNbd({
        ...{ names, listen, zookeeper, config, logger },
        readOnly: flags.readOnly === true,
        ...(tls !== undefined && { tls }),
        host: hostname(),
        version: version(),
        onReady: (addresses) => {
          for (const address of addresses) {
            for (const name of names.length === 0 ? [""] : names) {
              printLine(uriOf(address, name, scheme));
            }
          }
        },
      }),
    );
  });
  examples(
    serve,
    "dss volume serve mydevice --unix /run/mydevice.sock",
    "dss volume serve --listen 127.0.0.1:10809",
    "dss volume serve --listen 0.0.0.0:10809 --tls-cert cert.pem --tls-key key.pem",
  );
}

/** As the NBD URI specification says. */
export function uriOf(
  address: Address,
  name: string,
  scheme: "nbd" | "nbds" = "nbd",
): string {
  const path = name.split("/").map(encodeURIComponent).join("/");
  if ("path" in address) return `${scheme}+unix:///${path}?socket=${encodeURI(address.path)}`;
  const host = address.host.includes(":") ? `[${address.host}]` : address.host;
  return `${scheme}://${host}:${address.port}/${path}`;
}

function registerAttach(parent: Command): void {
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
      const local = await import("./local/attachments.js");
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

function registerDetach(parent: Command): void {
  const detach = parent
    .command("detach")
    .description("write everything back and detach a volume from this machine's kernel")
    .argument("<name|device>", "volume or device");
  detach.action(async (which: string) => {
    const local = await import("./local/attachments.js");
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

function registerAttached(parent: Command): void {
  const attached = parent
    .command("attached")
    .description("list the volumes attached to this machine's kernel")
    .option("--json", "print one JSON document");
  attached.action(async (options: { json?: boolean }) => {
    const { allAttachments, isServing } = await import("./local/attachments.js");
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
