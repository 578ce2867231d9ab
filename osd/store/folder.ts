/**
 * A store's folder as a whole: laying it out, and giving up an index that cannot be read.
 */
import { formatUuid, type OsdId } from "../../cluster/base/ids.js";
import type { Logger } from "../../cluster/base/log.js";
import type { Disk, RandomSource } from "../../cluster/platform/ports.js";
import { DataFiles } from "./data-files.js";
import { storeOptions, type StoreOptions } from "./options.js";
import { SpaceGauge } from "./space.js";
import { newSuperblock, writeSuperblock, type Superblock } from "./superblock.js";
import { SALT_BYTES, Wal } from "./wal.js";

export interface FolderConfig {
  osdId: OsdId;
  clusterId?: string;
  options?: Partial<StoreOptions>;
  logger: Logger;
  random: RandomSource;
}

/** Makes an empty folder a store; the superblock comes last. */
export async function layOut(disk: Disk, config: FolderConfig): Promise<Superblock> {
  const options = storeOptions(config.options);
  const salt = config.random.bytes(SALT_BYTES);
  await DataFiles.format(disk);
  await Wal.format(disk, {
    segments: options.walSegments,
    segmentBytes: options.walSegmentBytes,
    salt,
  });
  await disk.makeDirectory("index");
  await SpaceGauge.format(disk, options.reserveBytes);
  await disk.syncDirectory(".");
  const superblock = newSuperblock({
    osd: config.osdId,
    uuid: formatUuid(config.random.bytes(16)),
    cluster: config.clusterId ?? "",
    walSalt: salt.toString("hex"),
    walSegments: options.walSegments,
    walSegmentBytes: options.walSegmentBytes,
    dataFileBytes: options.dataFileBytes,
  });
  await writeSuperblock(disk, superblock);
  config.logger.info({ osd: config.osdId, uuid: superblock.uuid }, "formatted a chunk store");
  return superblock;
}

/**
 * The index is useless, and without it so are log and data. It is put aside for people to look at,
 * the store begins with nothing, and says so (`mayLackPgs`) until the cluster knows what was lost.
 * It keeps its identity: it is still the member that the cluster map names, and its peers find that
 * it lacks everything.
 *
 * A crash in the middle is harmless: the superblock, written first, makes everything suspect, and a
 * new salt voids the log.
 */
export async function startOver(
  disk: Disk,
  superblock: Superblock,
  config: FolderConfig,
): Promise<Superblock> {
  const walSalt = config.random.bytes(SALT_BYTES).toString("hex");
  const fresh = { ...superblock, walSalt, mayLackPgs: true };
  await writeSuperblock(disk, fresh);
  let number = 1;
  while (await disk.exists(`index.damaged-${number}`)) number++;
  await disk.rename("index", `index.damaged-${number}`);
  await disk.makeDirectory("index");
  for (const name of await disk.list("data")) await disk.remove(`data/${name}`);
  await disk.syncDirectory("data");
  await disk.syncDirectory(".");
  config.logger.error(
    { osd: config.osdId, aside: `index.damaged-${number}` },
    "the index cannot be read; the store starts over and is filled from the other copies",
  );
  return fresh;
}
