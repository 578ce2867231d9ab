/**
 * A program: serves a file as the export "disk" under a supervisor, as the server of a volume does
 * it, but without a cluster. What it has answered is in the file, whoever kills it. A start adds
 * a line to FILE.starts; a file FILE.refuse makes a server that continues end with its content as
 * the error code.
 */
import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { open } from "node:fs/promises";
import type { FileHandle } from "node:fs/promises";
import { DssError, type ErrorCode } from "../../cluster/base/errors.js";
import { silentLogger } from "../../cluster/base/log.js";
import { nodePlatform } from "../../cluster/platform/node.js";
import type {
  BlockImage,
  ExportDirectory,
  ExportEntry,
  ImageExtent,
  ImagePart,
} from "../../nbd/block-image.js";
import { NbdServer } from "../../nbd/server.js";
import { serveParent } from "../../cli/local/server-process.js";

export interface FileServerStart {
  path: string;
  socket: string;
  continues: boolean;
}

class FileImage implements BlockImage {
  readonly name = "disk";
  readonly description = "a file";
  readonly readOnly = false;
  readonly blockSize = { minimum: 1, preferred: 4096, maximum: 32 * 1024 * 1024 };
  constructor(
    private readonly file: FileHandle,
    readonly size: number,
  ) {}

  async read(offset: number, length: number): Promise<Buffer[]> {
    const bytes = Buffer.alloc(length);
    await this.file.read(bytes, 0, length, offset);
    return [bytes];
  }
  async readParts(offset: number, length: number): Promise<ImagePart[]> {
    return [{ length, pieces: await this.read(offset, length) }];
  }
  async write(offset: number, data: Buffer): Promise<void> {
    await this.file.write(data, 0, data.length, offset);
  }
  async zero(offset: number, length: number): Promise<void> {
    for (let at = 0; at < length; at += 2 ** 20) {
      await this.write(offset + at, Buffer.alloc(Math.min(2 ** 20, length - at)));
    }
  }
  async trim(offset: number, length: number): Promise<void> {
    await this.zero(offset, length);
  }
  async cache(): Promise<void> {
    // The kernel's page cache has it, or gets it.
  }
  async status(_offset: number, length: number): Promise<ImageExtent[]> {
    return [{ length, hole: false, zero: false }];
  }
  async flush(): Promise<void> {
    await this.file.datasync();
  }
}

class FileDirectory implements ExportDirectory {
  constructor(private readonly image: FileImage) {}
  async list(): Promise<ExportEntry[]> {
    return [this.image];
  }
  async open(): Promise<BlockImage> {
    return this.image;
  }
  async close(): Promise<void> {
    // The process ends soon.
  }
}

await serveParent<FileServerStart>(async ({ path, socket, continues }, ready) => {
  appendFileSync(`${path}.starts`, `${process.pid} ${continues ? "continues" : "begins"}\n`);
  if (continues && existsSync(`${path}.refuse`)) {
    const code = readFileSync(`${path}.refuse`, "utf8").trim() as ErrorCode;
    throw new DssError(code, "the test wants it so");
  }
  const file = await open(path, "r+");
  const { size } = await file.stat();
  const { network, clock } = nodePlatform;
  const directory = new FileDirectory(new FileImage(file, size));
  const server = new NbdServer({ network, clock, log: silentLogger, directory });
  ready(await server.listen({ path: socket }));
  await new Promise<void>((resolve) => process.once("SIGTERM", () => resolve()));
  await server.stop();
  await file.close();
});
