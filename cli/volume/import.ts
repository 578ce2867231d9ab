/** `dss volume import`: a raw file or a stream to a new volume; blocks of zeros take no space. */
import type { Command } from "commander";
import { createHash, type Hash } from "node:crypto";
import { statSync } from "node:fs";
import { open, readFile, type FileHandle } from "node:fs/promises";
import { hostname } from "node:os";
import { DssError } from "../../cluster/base/errors.js";
import type { Volume } from "../../mds/proto.js";
import type { BlockImage } from "../../nbd/block-image.js";
import { examples, withJson } from "../options.js";
import { note, printJson, printLine } from "../output.js";
import { formatSize, parseSize, VOLUME_SIZE } from "../sizes.js";
import { PIECE_BYTES, pieces, withImage } from "./image.js";
import { createVolume, layoutOf, withLayout, type LayoutFlags } from "./layout.js";
import { purged } from "./purges.js";
import { infoOf, inSession } from "./session.js";
import {
  dataRuns,
  inOrder,
  readNote,
  removeNote,
  TransferProgress,
  writeNote,
  type TransferNote,
} from "./transfer.js";

/** The progress is noted after so many bytes, or so long. */
const NOTE_BYTES = 256 * 2 ** 20;
const NOTE_MS = 2_000;
/** What a volume grows by while a stream of unknown length goes on; at least an eighth. */
const GROWTH_BYTES = 2 ** 30;
const UNIT = 4096;

interface ImportFlags extends LayoutFlags {
  size?: string;
  resume?: boolean;
  checksum?: boolean;
  json?: boolean;
}
interface Piece {
  offset: number;
  bytes: Buffer;
}

const inUnits = (bytes: number): number => Math.max(UNIT, Math.ceil(bytes / UNIT) * UNIT);

export function registerImport(parent: Command): void {
  const command = withJson(
    parent
      .command("import")
      .description("make a volume of a raw file or of standard input")
      .argument("<file>", "a file or block device, or - for standard input")
      .argument("<name>", "name of the new volume")
      .option("--size <size>", "the volume's size, if it is to be larger than the content")
      .option("--resume", "go on with an import that was interrupted")
      .option("--checksum", "print the SHA-256 of the content, as sha256sum would"),
  );
  withLayout(command);
  command.action(async (path: string, name: string, flags: ImportFlags) => {
    const least = flags.size === undefined ? 0 : parseSize(flags.size, VOLUME_SIZE);
    const run = { command, path, name, flags, least };
    const { volume, size, data, sha256 } = await (path === "-"
      ? importStream(run)
      : importFile(run));
    if (flags.json === true) {
      printJson({ volume: name, file: path, size: volume.size, content: size, data, sha256 });
      return;
    }
    note(`imported ${path} as ${name}: ${formatSize(size)}, ${formatSize(data)} of data`);
    if (size < volume.size) note(`the volume has ${volume.size} bytes, the content ${size}`);
    if (sha256 !== undefined) printLine(`${sha256}  ${path}`);
  });
  examples(
    command,
    "dss volume import debian.raw mydevice",
    "zstd -dc backup.zst | dss volume import - mydevice",
    "dss volume import debian.raw mydevice --resume",
  );
}

interface Run {
  command: Command;
  path: string;
  name: string;
  flags: ImportFlags;
  /** The volume has at least so many bytes. */
  least: number;
}
interface Imported {
  volume: Volume;
  /** Of the content. */
  size: number;
  data: number;
  sha256?: string;
}

/** Writes what is not zeros; the volume is new, so that the rest reads as zeros. */
async function put(image: BlockImage, { offset, bytes }: Piece): Promise<number> {
  let data = 0;
  for (const { at, length } of dataRuns(bytes)) {
    await image.write(offset + at, bytes.subarray(at, at + length), { fua: false });
    data += length;
  }
  return data;
}

// ---- From a file -------------------------------------------------------------------------------

async function importFile({ command, path, name, flags, least }: Run): Promise<Imported> {
  const file = await open(path, "r").catch((cause: unknown) => {
    throw new DssError("NotFound", `cannot read ${path}`, { cause });
  });
  try {
    const size = await sizeOf(file, path);
    if (size === 0) throw new DssError("InvalidArgument", `${path} is empty`);
    const { mtimeMs: modifiedMs } = statSync(path);
    const { volume, begin } = await beginning(
      { command, path, name, flags, least: Math.max(least, size) },
      { direction: "import", size, modifiedMs },
    );
    const id = volume.id;
    const about = { direction: "import" as const, volume: id, snapshot: 0, size, modifiedMs };
    const hash = flags.checksum === true ? createHash("sha256") : undefined;
    if (hash !== undefined) {
      for await (const { bytes } of piecesOf(file, 0, begin)) hash.update(bytes);
    }
    const progress = new TransferProgress(`import ${name}`, size);
    writeNote(path, { ...about, next: begin });
    let data = 0;
    // An earlier run that was killed may still have the volume's lock: this one succeeds it.
    const instance = `${hostname()}:import:${volume.id}`;
    await withImage(command, { name, write: true, instance }, async (image) => {
      if (image.size !== volume.size) throw new DssError("StaleHandle", `${name} was changed`);
      let noted = { at: begin, ms: performance.now() };
      const written = inOrder(piecesOf(file, begin, size), async (piece) => ({
        data: await put(image, piece),
        piece,
      }));
      try {
        for await (const { piece, data: bytes } of written) {
          hash?.update(piece.bytes);
          data += bytes;
          const next = piece.offset + piece.bytes.length;
          progress.update(next, bytes);
          // What was answered is on every copy's disk.
          if (next - noted.at < NOTE_BYTES && performance.now() - noted.ms < NOTE_MS) continue;
          writeNote(path, { ...about, next });
          noted = { at: next, ms: performance.now() };
        }
        await image.flush();
      } finally {
        progress.end();
      }
    });
    removeNote(path);
    return { volume, size, data, ...(hash && { sha256: hash.digest("hex") }) };
  } finally {
    await file.close();
  }
}

/** Of a block device too, whose length its end tells. */
async function sizeOf(file: FileHandle, path: string): Promise<number> {
  const found = await file.stat();
  if (found.isFile()) return found.size;
  if (found.isBlockDevice()) {
    const major = (found.rdev >> 8) & 0xfff;
    const minor = (found.rdev & 0xff) | ((found.rdev >> 12) & 0xfff00);
    const sectors = await readFile(`/sys/dev/block/${major}:${minor}/size`, "utf8");
    return Number(sectors) * 512;
  }
  throw new DssError("InvalidArgument", `${path} is neither a file nor a block device`, {
    hint: "give - as file to import a stream",
  });
}

async function* piecesOf(file: FileHandle, from: number, to: number): AsyncGenerator<Piece> {
  for (let at = from; at < to;) {
    const buffer = Buffer.allocUnsafeSlow(Math.min(PIECE_BYTES, to - at));
    const { bytesRead } = await file.read(buffer, 0, buffer.length, at);
    if (bytesRead === 0) throw new DssError("Disk", "the file became shorter while it was read");
    yield { offset: at, bytes: buffer.subarray(0, bytesRead) };
    at += bytesRead;
  }
}

/**
 * The new volume, or with --resume the one that an earlier run has begun. Errors: Exists, NotFound,
 * InvalidArgument, Busy (the earlier run goes on).
 */
async function beginning(
  { command, path, name, flags, least }: Run,
  source: Pick<TransferNote, "direction" | "size" | "modifiedMs">,
): Promise<{ volume: Volume; begin: number }> {
  const known = flags.resume === true ? readNote(path) : undefined;
  return await inSession(command, async (mds, client) => {
    if (flags.resume !== true) {
      const wanted = { ...layoutOf(flags), name, size: inUnits(least) };
      return { volume: await createVolume(mds, client, wanted), begin: 0 };
    }
    const volume = await infoOf(mds, name);
    const { direction, size, modifiedMs } = source;
    const isSame = known?.direction === direction && known.volume === volume.id;
    if (known !== undefined && isSame && known.size === size && known.modifiedMs === modifiedMs) {
      return { volume, begin: known.next };
    }
    const why = !isSame
      ? `no import of ${path} into ${name} has been interrupted`
      : `${path} has changed since its import began`;
    throw new DssError("InvalidArgument", why, {
      hint: `remove the volume (dss volume rm ${name}) and import it anew`,
    });
  });
}

// ---- From a stream -----------------------------------------------------------------------------

async function importStream({ command, name, flags, least }: Run): Promise<Imported> {
  if (flags.resume === true) {
    throw new DssError("InvalidArgument", "a stream cannot go on where it was interrupted", {
      hint: "import a file, or remove the volume and begin anew",
    });
  }
  const hash = flags.checksum === true ? createHash("sha256") : undefined;
  const first = inUnits(Math.max(least, least === 0 ? GROWTH_BYTES : 0));
  const volume = await inSession(command, (mds, client) =>
    createVolume(mds, client, { ...layoutOf(flags), name, size: first }),
  );
  const progress = new TransferProgress(`import ${name}`, 0);
  let data = 0;
  let size = 0;
  let provisioned = volume.size;
  try {
    const room = async (end: number): Promise<void> => {
      if (end <= provisioned) return;
      provisioned = inUnits(end + Math.max(GROWTH_BYTES, end / 8));
      await resize(command, name, provisioned);
    };
    await withImage(command, { name, write: true }, async (image) => {
      const written = inOrder(streamPieces(hash, room), async (piece) => ({
        data: await put(image, piece),
        end: piece.offset + piece.bytes.length,
      }));
      for await (const each of written) {
        data += each.data;
        size = each.end;
        progress.update(size, each.data);
      }
      await image.flush();
    });
    if (size === 0) throw new DssError("InvalidArgument", "standard input was empty");
    const wanted = inUnits(Math.max(size, least));
    if (wanted !== provisioned) await resize(command, name, wanted);
  } catch (error) {
    note(`volume ${name} is incomplete: remove it with dss volume rm ${name}`);
    throw error;
  } finally {
    progress.end();
  }
  const final = await inSession(command, (mds) => infoOf(mds, name));
  return { volume: final, size, data, ...(hash && { sha256: hash.digest("hex") }) };
}

async function* streamPieces(
  hash: Hash | undefined,
  room: (end: number) => Promise<void>,
): AsyncGenerator<Piece> {
  let offset = 0;
  for await (const bytes of pieces(process.stdin)) {
    hash?.update(bytes);
    await room(offset + bytes.length);
    yield { offset, bytes };
    offset += bytes.length;
  }
}

async function resize(command: Command, name: string, size: number): Promise<void> {
  await inSession(command, async (mds) => {
    const request = { op: "volumeResize", name, size, shrink: true } as const;
    const { answer } = await mds.call(request, { wait: "safe" });
    const { volume } = answer;
    if (volume !== undefined && volume.shrinkTo > 0) await purged(mds, volume.id, `shrink ${name}`);
  });
}
