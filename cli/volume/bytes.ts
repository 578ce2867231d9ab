/** `dss volume read` and `write`: bytes in and out without attaching. */
import type { Command } from "commander";
import { once } from "node:events";
import { examples, withCluster } from "../options.js";
import { note } from "../output.js";
import { parseSize, VOLUME_BYTES_MAX } from "../sizes.js";
import { checkRange, PIECE_BYTES, pieces, withImage } from "./image.js";

const READ_DEFAULT = 4_096;

const OFFSET = { what: "offset", bare: "bytes", min: 0, max: VOLUME_BYTES_MAX } as const;
const LENGTH = { what: "length", bare: "bytes", min: 1, max: VOLUME_BYTES_MAX } as const;

export function registerRead(parent: Command): void {
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

export function registerWrite(parent: Command): void {
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
        await image.write(offset + done, piece);
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
