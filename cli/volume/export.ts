/** `dss volume export`: a volume's bytes to a file with holes, or to a pipe as a full stream. */
import type { Command } from "commander";
import { createHash, type Hash } from "node:crypto";
import { once } from "node:events";
import { existsSync, statSync } from "node:fs";
import { open, type FileHandle } from "node:fs/promises";
import { DssError } from "../../cluster/base/errors.js";
import type { MdsClient } from "../../mds/client/mds-client.js";
import type { BlockImage } from "../../nbd/block-image.js";
import { examples, withJson } from "../options.js";
import { note, printJson, printLine } from "../output.js";
import { formatSize } from "../sizes.js";
import { PIECE_BYTES, withImage } from "./image.js";
import { infoOf, inSession, snapshotOf } from "./session.js";
import {
  inOrder,
  readNote,
  removeNote,
  TransferProgress,
  writeNote,
  type TransferNote,
} from "./transfer.js";

/** Questions about extents go over this much at a time. */
const SPAN_BYTES = 64 * 2 ** 30;
const EXTENTS_MAX = 1_024;
/** The file is synced and the progress noted after so many bytes of data, or so long. */
const SYNC_BYTES = 256 * 2 ** 20;
const SYNC_MS = 5_000;
const ZEROS = Buffer.alloc(PIECE_BYTES);

interface Stretch {
  offset: number;
  length: number;
  /** Undefined: a hole. */
  pieces?: Buffer[];
}
export type Source = Pick<BlockImage, "size" | "read" | "status">;
interface Target {
  put(stretch: Stretch): Promise<void>;
  close(): Promise<void>;
}

/** Holes as long as they are known, data in pieces. */
export async function* stretchesOf(image: Source, from: number): AsyncGenerator<Stretch> {
  for (let at = from; at < image.size;) {
    const span = Math.min(SPAN_BYTES, image.size - at);
    for (const extent of await image.status(at, span, EXTENTS_MAX)) {
      const end = at + extent.length;
      const step = extent.zero ? extent.length : PIECE_BYTES;
      for (; at < end; at += step) {
        const length = Math.min(step, end - at);
        yield { offset: at, length, ...(!extent.zero && { pieces: [] }) };
      }
      at = end;
    }
  }
}

/** The volume's bytes in order from `from` on, read ahead. */
export function contentOf(image: Source, from: number): AsyncGenerator<Stretch> {
  return inOrder(stretchesOf(image, from), async (stretch) => {
    const { offset, length, pieces } = stretch;
    if (pieces === undefined) return stretch;
    return { offset, length, pieces: await image.read(offset, length) };
  });
}

export function hashStretch(hash: Hash, { length, pieces }: Stretch): void {
  if (pieces !== undefined) for (const piece of pieces) hash.update(piece);
  else {
    for (let left = length; left > 0; left -= ZEROS.length) {
      hash.update(left >= ZEROS.length ? ZEROS : ZEROS.subarray(0, left));
    }
  }
}

// ---- Where it goes -----------------------------------------------------------------------------

class StreamTarget implements Target {
  async put({ length, pieces }: Stretch): Promise<void> {
    for (const piece of pieces ?? []) await this.write(piece);
    if (pieces !== undefined) return;
    for (let left = length; left > 0; left -= ZEROS.length) {
      await this.write(left >= ZEROS.length ? ZEROS : ZEROS.subarray(0, left));
    }
  }
  close(): Promise<void> {
    return Promise.resolve();
  }
  private async write(bytes: Buffer): Promise<void> {
    if (!process.stdout.write(bytes)) await once(process.stdout, "drain");
  }
}

class FileTarget implements Target {
  private unsynced = 0;
  private syncedMs = performance.now();

  private constructor(
    private readonly file: FileHandle,
    private readonly path: string,
    private readonly about: Omit<TransferNote, "next">,
  ) {}

  static async open(path: string, about: Omit<TransferNote, "next">, next: number) {
    const file = await open(path, existsSync(path) ? "r+" : "wx").catch((cause: unknown) => {
      throw new DssError("Disk", `cannot write ${path}`, { cause });
    });
    // What was written beyond the note may be older than the volume is now.
    await file.truncate(next);
    await file.truncate(about.size);
    writeNote(path, { ...about, next });
    return new FileTarget(file, path, about);
  }

  async put({ offset, pieces }: Stretch): Promise<void> {
    let at = offset;
    for (const piece of pieces ?? []) {
      for (let done = 0; done < piece.length;) {
        const left = piece.length - done;
        done += (await this.file.write(piece, done, left, at + done)).bytesWritten;
      }
      at += piece.length;
      this.unsynced += piece.length;
    }
  }
  /** Everything before `next` was put. */
  async reached(next: number): Promise<void> {
    const due = this.unsynced >= SYNC_BYTES || performance.now() - this.syncedMs >= SYNC_MS;
    if (!due) return;
    await this.file.datasync();
    writeNote(this.path, { ...this.about, next });
    this.unsynced = 0;
    this.syncedMs = performance.now();
  }
  async finish(): Promise<void> {
    await this.file.sync();
    removeNote(this.path);
  }
  /** Hashes what an earlier run has written. */
  async hashUpTo(end: number, hash: Hash): Promise<void> {
    const buffer = Buffer.allocUnsafe(PIECE_BYTES);
    for (let at = 0; at < end;) {
      const wanted = Math.min(buffer.length, end - at);
      const { bytesRead } = await this.file.read(buffer, 0, wanted, at);
      if (bytesRead === 0) throw new DssError("Disk", `${this.path} is shorter than it was`);
      hash.update(buffer.subarray(0, bytesRead));
      at += bytesRead;
    }
  }
  close(): Promise<void> {
    return this.file.close();
  }
}

// ---- The command -------------------------------------------------------------------------------

interface ExportFlags {
  resume?: boolean;
  checksum?: boolean;
  json?: boolean;
}

interface Exported {
  id: number;
  /** 0: the volume as it is. */
  snapshot: number;
  size: number;
  /** Who may change it meanwhile. */
  owner: string;
}

/** Of NAME or NAME@SNAPSHOT. Errors: NotFound. */
async function sourceOf(mds: MdsClient, name: string): Promise<Exported> {
  const at = name.indexOf("@");
  const volume = await infoOf(mds, at < 0 ? name : name.slice(0, at));
  const { id, size, owner } = volume;
  if (at < 0) return { id, snapshot: 0, size, owner };
  const found = snapshotOf(volume, name.slice(at + 1));
  return { id, snapshot: found.id, size: found.size, owner: "" };
}

/** Where an earlier run has come to. Errors: Exists, InvalidArgument. */
function beginningOf(path: string, about: Omit<TransferNote, "next">, resume: boolean): number {
  const known = readNote(path);
  if (!resume) {
    if (!existsSync(path)) return 0;
    throw new DssError("Exists", `${path} exists`, {
      hint: known === undefined ? "name another file, or remove it" : "go on with --resume",
    });
  }
  if (!existsSync(path)) return 0;
  if (!statSync(path).isFile()) throw new DssError("InvalidArgument", `${path} is no file`);
  if (known === undefined) {
    throw new DssError("InvalidArgument", `${path} is no unfinished export`, {
      hint: "without its .dss-progress file nobody knows how far it is: begin anew",
    });
  }
  const isSame = (["direction", "volume", "snapshot", "size"] as const).every(
    (field) => known[field] === about[field],
  );
  if (isSame) return known.next;
  throw new DssError("InvalidArgument", `${path} was begun from another volume or another size`, {
    hint: "name another file, or remove it and begin anew",
  });
}

export function registerExport(parent: Command): void {
  const command = withJson(
    parent
      .command("export")
      .description("write a volume to a file, holes as holes, or to standard output as a stream")
      .argument("<name>", "a volume, or NAME@SNAPSHOT")
      .argument("<file>", "a file that does not exist yet, or - for standard output")
      .option("--resume", "go on with an export that was interrupted")
      .option("--checksum", "print the SHA-256 of the whole, as sha256sum would"),
  );
  command.action(async (name: string, path: string, flags: ExportFlags) => {
    const toStream = path === "-";
    if (toStream && (flags.resume === true || flags.json === true)) {
      throw new DssError("InvalidArgument", "--resume and --json need a file, not a stream");
    }
    const { id, snapshot, size, owner } = await inSession(command, (mds) => sourceOf(mds, name));
    if (owner !== "") {
      note(`warning: ${name} is in use by ${owner}: the export is not of one moment`);
    }
    const about = { direction: "export" as const, volume: id, snapshot, size, modifiedMs: 0 };
    const begin = toStream ? 0 : beginningOf(path, about, flags.resume === true);
    const hash = flags.checksum === true ? createHash("sha256") : undefined;
    const progress = new TransferProgress(`export ${name}`, size);
    let data = 0;
    await withImage(command, { name, write: false, listed: true }, async (image) => {
      const file = toStream ? undefined : await FileTarget.open(path, about, begin);
      const target = file ?? new StreamTarget();
      try {
        if (hash !== undefined) await file?.hashUpTo(begin, hash);
        for await (const stretch of contentOf(image, begin)) {
          await target.put(stretch);
          if (hash !== undefined) hashStretch(hash, stretch);
          const { offset, length, pieces } = stretch;
          if (pieces !== undefined) data += length;
          await file?.reached(offset + length);
          progress.update(offset + length, pieces === undefined ? 0 : length);
        }
        await file?.finish();
      } finally {
        progress.end();
        await target.close();
      }
    });
    const checksum = hash?.digest("hex");
    if (flags.json === true) {
      printJson({ volume: name, file: path, size, data, ...(checksum && { sha256: checksum }) });
      return;
    }
    note(`exported ${name}: ${formatSize(size)}, ${formatSize(data)} of data`);
    if (checksum !== undefined) (toStream ? note : printLine)(`${checksum}  ${path}`);
  });
  examples(
    command,
    "dss volume export mydevice backup.raw --checksum",
    "dss volume export mydevice@monday monday.raw",
    "dss volume export mydevice backup.raw --resume",
    "dss volume export mydevice - | zstd > backup.zst",
  );
}
