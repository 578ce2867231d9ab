/** A volume opened by a command: its image, and streams in pieces that fit one request. */
import type { Command } from "commander";
import { hostname } from "node:os";
import { DssError } from "../../cluster/base/errors.js";
import { silentLogger } from "../../cluster/base/log.js";
import type { BlockImage } from "../../nbd/block-image.js";
import type { VolumeImage } from "../../nbd/image.js";
import type { VolumeOptions } from "../../nbd/main.js";
import { settingsOf, zookeeperOf } from "../options.js";

/** Bytes of one request to the image; also what a command keeps in memory at a time. */
export const PIECE_BYTES = 4 * 2 ** 20;

export async function withImage<T>(
  command: Command,
  wanted: Pick<VolumeOptions, "name" | "also" | "write" | "listed" | "instance">,
  action: (image: VolumeImage, other: VolumeImage | undefined) => Promise<T>,
): Promise<T> {
  const config = settingsOf(command);
  const zookeeper = zookeeperOf(command);
  const { openVolume } = await import("../../nbd/main.js");
  const opened = await openVolume({
    ...wanted,
    ...{ zookeeper, config, logger: silentLogger },
    ...{ type: "cli", host: hostname(), detail: `dss volume ${wanted.write ? "write" : "read"}` },
  });
  try {
    return await action(opened.image, opened.other);
  } finally {
    await opened.close();
  }
}

export function checkRange(image: BlockImage, offset: number, length: number): void {
  if (offset + length <= image.size) return;
  throw new DssError(
    "InvalidArgument",
    `${length} bytes at offset ${offset} reach beyond the end of ${image.name}`,
    { hint: `it has ${image.size} bytes` },
  );
}

/** The stream in pieces of PIECE_BYTES, the last one shorter. */
export async function* pieces(stream: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
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
