/**
 * What opening a store does with the write-ahead log: finds the groups that the index does not
 * contain, tells a torn tail from damage, and replays (docs/on-disk.md, "Recovery").
 */
import { BLOCK_SIZE, crc32 } from "../../cluster/base/checksum.js";
import { DssError } from "../../cluster/base/errors.js";
import type { Logger } from "../../cluster/base/log.js";
import type { DiskFile } from "../../cluster/platform/ports.js";
import { ByteReader } from "./bytes.js";
import { getRecord, RecordType, type Placement, type WalRecord } from "./records.js";
import {
  HEADER_BYTES,
  pages,
  SALT_BYTES,
  WAL_MAGIC,
  WAL_VERSION,
  type WalGeometry,
  type WalPoint,
} from "./wal.js";

interface Header {
  number: number;
  position: number;
  previous: number;
  declared: number;
  headBytes: number;
  blocks: number;
  records: number;
  recordsCrc: number;
}

/** A group found by recovery, verified. */
export interface ReplayGroup {
  number: number;
  records: { record: WalRecord; data: Buffer }[];
  /** Blocks of data that fail their checksum in a group known to have been durable. */
  damaged: number;
}

export interface RecoveredWal {
  /** Where the log goes on. */
  end: WalPoint;
  groups: number;
  /** A torn tail was cut off, or damage. */
  cut: boolean;
  /**
   * The last group is an empty one: all that has records is declared by it already. An empty group
   * more could be one too many, because a full log has room for one.
   */
  isDeclared: boolean;
}

function parseHeader(page: Buffer, geometry: WalGeometry, position: number): Header | undefined {
  if (page.readUInt32LE(0) !== WAL_MAGIC) return undefined;
  if (page.compare(geometry.salt, 0, SALT_BYTES, 8, 8 + SALT_BYTES) !== 0) return undefined;
  if (crc32(page.subarray(0, 64)) !== page.readUInt32LE(64)) return undefined;
  if (page.readUInt16LE(4) !== WAL_VERSION) {
    throw new DssError("IncompatibleVersion", `the WAL has version ${page.readUInt16LE(4)}`, {
      hint: "run a newer dss",
    });
  }
  const from = new ByteReader(page, 16, 64);
  const number = from.u53();
  const found = from.u53();
  const previous = from.u53();
  const declared = from.u53();
  const [headBytes, blocks, records, recordsCrc] = [from.u32(), from.u32(), from.u32(), from.u32()];
  // A stale group of an earlier round lies where it was written then, under an older position.
  const { segmentBytes, segments } = geometry;
  const slot = (p: number): number => p % (segmentBytes * segments);
  if (slot(found) !== slot(position) || headBytes < HEADER_BYTES) return undefined;
  if ((found % segmentBytes) + pages(headBytes) + blocks * BLOCK_SIZE > segmentBytes)
    return undefined;
  return { number, position: found, previous, declared, headBytes, blocks, records, recordsCrc };
}

/** Every group header in the log that is newer than the index. */
async function scanHeaders(
  files: readonly DiskFile[],
  geometry: WalGeometry,
  from: WalPoint,
): Promise<Map<number, Header>> {
  const found = new Map<number, Header>();
  const chunk = Buffer.allocUnsafeSlow(Math.min(1024 * 1024, geometry.segmentBytes));
  for (let segment = 0; segment < files.length; segment++) {
    for (let at = 0; at < geometry.segmentBytes; at += chunk.length) {
      const got = await files[segment]!.read(chunk, at);
      for (let page = 0; page + BLOCK_SIZE <= got; page += BLOCK_SIZE) {
        const position = segment * geometry.segmentBytes + at + page;
        const header = parseHeader(chunk.subarray(page, page + BLOCK_SIZE), geometry, position);
        if (header && header.number > from.number) found.set(header.position, header);
      }
    }
  }
  return found;
}

/**
 * Replays what the index does not contain, in order, through `apply`; returns where the log ends.
 * `verifyDirect` says whether the data files hold what the last group wrote directly. Fails with
 * Corrupt when a group that was declared durable is missing or unreadable: opening without it
 * would silently drop acknowledged writes.
 */
export async function recoverWal(
  files: readonly DiskFile[],
  geometry: WalGeometry,
  from: WalPoint,
  hooks: {
    verifyDirect(placement: Placement): Promise<boolean>;
    /** False: what the group says cannot be, and what follows is given up. */
    apply(group: ReplayGroup): boolean;
    /** Without it such damage fails with Corrupt; with it what follows is given up. */
    onDamage?: (what: string) => void;
    logger: Logger;
  },
): Promise<RecoveredWal> {
  const headers = await scanHeaders(files, geometry, from);
  let declared = from.number;
  for (const header of headers.values()) declared = Math.max(declared, header.declared);
  let end = from;
  let groups = 0;
  let cut = false;
  let isDeclared = false;
  for (;;) {
    const nextSegment =
      (Math.floor(end.position / geometry.segmentBytes) + 1) * geometry.segmentBytes;
    const number = end.number + 1;
    const header = [end.position, nextSegment]
      .map((position) => headers.get(position))
      .find((h) => h?.number === number && h.previous === end.position);
    const mustExist = number <= declared;
    const group = header && (await readGroup(files, geometry, header, mustExist));
    if (!header || !group) {
      if (!mustExist) {
        cut = header !== undefined;
        break;
      }
      const what =
        `the write-ahead log is damaged at position ${end.position}: group ${number} was durable ` +
        `and is not readable`;
      if (!hooks.onDamage) {
        const hint =
          "format this OSD's folder anew and let recovery fill it from the other copies";
        throw new DssError("Corrupt", what, { hint });
      }
      hooks.onDamage(what);
      // The log goes on where it had really come to: nothing of it is ever read again.
      return { end: endOf(headers, end), groups, cut: true, isDeclared: false };
    }
    if (!mustExist && !(await directsAreThere(group, hooks.verifyDirect))) {
      cut = true;
      break;
    }
    if (group.damaged > 0) {
      hooks.logger.error(
        { group: number, blocks: group.damaged },
        "blocks in the write-ahead log fail their checksums; reads will report them",
      );
    }
    if (!hooks.apply(group)) {
      return { end: endOf(headers, end), groups, cut: true, isDeclared: false };
    }
    groups++;
    isDeclared = header.records === 0;
    end = {
      number,
      position: header.position + pages(header.headBytes) + header.blocks * BLOCK_SIZE,
    };
  }
  return { end, groups, cut, isDeclared };
}

/** Where the newest group ends. */
function endOf(headers: ReadonlyMap<number, Header>, atLeast: WalPoint): WalPoint {
  let end = atLeast;
  for (const { number, position, headBytes, blocks } of headers.values()) {
    if (number <= end.number) continue;
    end = { number, position: position + pages(headBytes) + blocks * BLOCK_SIZE };
  }
  return end;
}

function placementsOf(record: WalRecord): Placement[] {
  if (record.type === RecordType.apply) return [record.placement];
  const many = record.type === RecordType.install || record.type === RecordType.repair;
  return many ? record.placements : [];
}

async function directsAreThere(
  group: ReplayGroup,
  verifyDirect: (placement: Placement) => Promise<boolean>,
): Promise<boolean> {
  for (const { record } of group.records) {
    for (const placement of placementsOf(record)) {
      if (placement.direct && !(await verifyDirect(placement))) return false;
    }
  }
  return true;
}

/**
 * Undefined when the group is torn; a `mustExist` one may have damaged data blocks, which it
 * counts.
 */
async function readGroup(
  files: readonly DiskFile[],
  geometry: WalGeometry,
  header: Header,
  mustExist: boolean,
): Promise<ReplayGroup | undefined> {
  const { segmentBytes, segments } = geometry;
  const headPages = pages(header.headBytes);
  const bytes = Buffer.allocUnsafeSlow(headPages + header.blocks * BLOCK_SIZE);
  const file = files[Math.floor(header.position / segmentBytes) % segments]!;
  const got = await file.read(bytes, header.position % segmentBytes);
  if (got !== bytes.length) return undefined;
  if (crc32(bytes.subarray(HEADER_BYTES, header.headBytes)) !== header.recordsCrc) return undefined;
  const group: ReplayGroup = { number: header.number, records: [], damaged: 0 };
  const reader = new ByteReader(bytes, HEADER_BYTES, header.headBytes);
  let at = headPages;
  for (let i = 0; i < header.records; i++) {
    const record = getRecord(reader);
    const start = at;
    for (const placement of placementsOf(record)) {
      if (placement.direct) continue;
      for (const sum of placement.sums) {
        if (crc32(bytes.subarray(at, at + BLOCK_SIZE)) !== sum) group.damaged++;
        at += BLOCK_SIZE;
      }
    }
    group.records.push({ record, data: bytes.subarray(start, at) });
  }
  if (at !== bytes.length)
    throw new DssError("Malformed", "a WAL group's records do not fit its data");
  return group.damaged > 0 && !mustExist ? undefined : group;
}
