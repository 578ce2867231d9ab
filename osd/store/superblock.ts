/**
 * The file that says what a folder is: one line of JSON and its crc32, replaced atomically
 * (docs/on-disk.md, "Superblock"). It holds what must not change while the store lives.
 */
import { crc32 } from "../../cluster/base/checksum.js";
import { DssError } from "../../cluster/base/errors.js";
import type { OsdId } from "../../cluster/base/ids.js";
import type { Disk } from "../../cluster/platform/ports.js";

const PATH = "superblock";
const TEMPORARY = "superblock.new";
const FORMAT = "dss-osd-store";
export const STORE_VERSION = 1;

export interface Superblock {
  format: string;
  version: number;
  osd: OsdId;
  uuid: string;
  /** "" until the OSD has joined a cluster. */
  cluster: string;
  /** Hexadecimal secret in the WAL's group headers. */
  walSalt: string;
  walSegments: number;
  walSegmentBytes: number;
  dataFileBytes: number;
  /** Damage was found that may have taken whole PGs; until it is known which ones. */
  mayLackPgs?: boolean;
}

export async function writeSuperblock(disk: Disk, superblock: Superblock): Promise<void> {
  const text = `${JSON.stringify(superblock)}\n`;
  const sum = crc32(Buffer.from(text)).toString(16).padStart(8, "0");
  const file = await disk.open(TEMPORARY, { create: true });
  await file.truncate(0);
  await file.write([Buffer.from(`${text}${sum}\n`)], 0);
  await file.sync();
  await file.close();
  await disk.rename(TEMPORARY, PATH);
  await disk.syncDirectory(".");
}

function parse(text: string): Superblock {
  const [json = "", sum = ""] = text.split("\n");
  if (
    crc32(Buffer.from(`${json}\n`))
      .toString(16)
      .padStart(8, "0") !== sum
  ) {
    throw new DssError("Corrupt", "the store's superblock fails its checksum", {
      hint: "the disk is damaged; format the folder anew and let recovery fill it",
    });
  }
  return JSON.parse(json) as Superblock;
}

const LEFTOVERS = new Set(["lock", "lost+found", TEMPORARY, "data", "wal", "index", "reserve"]);
/** Beside the index: that it is open, and earlier ones that were damaged. */
const INDEX_SIDE = /^index\.(open|damaged-\d+)$/;

/**
 * The superblock, or undefined when the folder is empty (a format that a crash interrupted counts
 * as empty: its superblock is written last). Fails with Conflict, Corrupt or IncompatibleVersion.
 */
export async function readSuperblock(disk: Disk): Promise<Superblock | undefined> {
  if (!(await disk.exists(PATH))) {
    const strangers = (await disk.list(".")).filter(
      (name) => !LEFTOVERS.has(name) && !INDEX_SIDE.test(name),
    );
    if (strangers.length === 0) return undefined;
    throw new DssError(
      "Conflict",
      `the folder is not empty and holds no chunk store (it contains ${strangers.slice(0, 3).join(", ")})`,
      { hint: "choose an empty folder for this OSD" },
    );
  }
  const superblock = parse((await disk.readFile(PATH)).toString("utf8"));
  if (superblock.format !== FORMAT) {
    throw new DssError("Conflict", `the folder holds "${superblock.format}", not a chunk store`, {
      hint: "choose another folder for this OSD",
    });
  }
  if (superblock.version > STORE_VERSION) {
    throw new DssError(
      "IncompatibleVersion",
      `the store has format version ${superblock.version}; this dss knows up to ${STORE_VERSION}`,
      { hint: "install the dss that wrote it, or a newer one" },
    );
  }
  return superblock;
}

export function newSuperblock(fields: Omit<Superblock, "format" | "version">): Superblock {
  return { format: FORMAT, version: STORE_VERSION, ...fields };
}

/** Conflict when the folder belongs to another OSD or another cluster. */
export function checkOwner(superblock: Superblock, osd: OsdId, cluster: string | undefined): void {
  if (superblock.osd !== osd) {
    throw new DssError("Conflict", `the folder belongs to osd.${superblock.osd}, not osd.${osd}`, {
      hint: `start OSD ${superblock.osd} with it, or choose another folder`,
    });
  }
  if (cluster && superblock.cluster !== "" && superblock.cluster !== cluster) {
    throw new DssError(
      "Conflict",
      `the folder belongs to cluster ${superblock.cluster}, not ${cluster}`,
      { hint: "connect to that cluster's ZooKeeper, or choose an empty folder" },
    );
  }
}
