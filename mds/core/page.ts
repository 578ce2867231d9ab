/**
 * Pages: the unit in which metadata is cached, checkpointed and loaded. Pure.
 *
 * A key's first letter tells the kind; the rest is hexadecimal (directory pages: inode, a dot,
 * the hash prefix): `i` 128 inodes with consecutive numbers, and the totals of the directories
 * among them, `d` part of a directory, `x` extended attributes of one inode, `l` where the names of
 * a file with several are, `c` a session, `v` 16 volumes, `p` 256 entries of the purge queue, `q`
 * the quotas, `s` the counters. Every stored page says up to which journal batch it is complete, so
 * that replay skips what it has.
 */
import { assert } from "../../cluster/base/assert.js";
import { DssError } from "../../cluster/base/errors.js";
import type { ClientId, Ino } from "../../cluster/base/ids.js";
import type { Layout, SessionType, Volume, VolumeSnapshot, VolumeWriter } from "../proto.js";
import { Reader, Writer, unseal } from "./binary.js";
import { nameKey, readDentry, writeDentry, type Dentry } from "./dentry.js";
import { readInode, readLayout, writeInode, writeLayout, type InodeRecord } from "./inode.js";
import { readQuota, writeQuota, type Quota } from "./quota.js";
import { readTotals, writeTotals, type Totals } from "./totals.js";

const PAGE_FORMAT = 3;
export const INODES_PER_PAGE = 128;
export const VOLUMES_PER_PAGE = 16;
export const PURGES_PER_PAGE = 256;

export interface InodesBody {
  kind: "i";
  inodes: Map<Ino, InodeRecord>;
  /** Of those directories that have something below them. */
  totals: Map<Ino, Totals>;
}
export interface DirectoryBody {
  kind: "d";
  /** True: the entries are in the 16 pages whose prefix has one digit more. */
  split: boolean;
  /** The directory is gone, and this page with it. */
  dropped: boolean;
  entries: Map<string, Dentry>;
  /** Sum of dentryBytes. */
  bytes: number;
  /** The entries in cookie order, made when a listing asks for it. */
  sorted: Dentry[] | undefined;
  /** All cookies, made when a new name must find a free one. */
  cookies: Set<number> | undefined;
}
export interface XattrsBody {
  kind: "x";
  /** By nameKey. */
  values: Map<string, Buffer>;
}
/** Of one file with several names. */
export interface LinksBody {
  kind: "l";
  /** How many of them are in each directory. */
  directories: Map<Ino, number>;
}
export interface QuotasBody {
  kind: "q";
  /** By directory. */
  quotas: Map<Ino, Quota>;
}
export interface InoRange {
  first: Ino;
  count: number;
}
/** What the journal knows of a session. */
export interface SessionBody {
  kind: "c";
  /** False: no such session (never was, or ended). */
  live: boolean;
  id: ClientId;
  type: SessionType;
  instance: string;
  host: string;
  pid: number;
  detail: string;
  /** Whose object operations count: those of the session's present worker. */
  worker: ClientId;
  /** Which worker of its mount that is, from 0. */
  generation: number;
  floor: number;
  /** Executed requests at or above the floor. */
  completed: Set<number>;
  ranges: InoRange[];
  orphans: Set<Ino>;
  /** Exclusive grants with their maxSize. */
  exclusive: Map<Ino, number>;
  /** Open volumes; true: with the exclusive lock. */
  volumes: Map<number, boolean>;
}
export type VolumeRecord = Omit<
  Volume,
  "owner" | "ownerClient" | "ownerSinceNs" | "snapshot" | "ancestors" | "children"
>;
export interface VolumesBody {
  kind: "v";
  volumes: Map<number, VolumeRecord>;
}
/** The places are the numbers in the journal. */
const PURGES = ["objects", "directory", "clones", "rollback", "flatten"] as const;
/** Objects of a file or volume (or the pages of a directory) to be removed. */
export interface PurgeEntry {
  id: number;
  /**
   * objects: those wholly beyond `from`, below `bound`. directory: pages of the directory `ino`.
   * clones: what no snapshot of the volume needs any more. rollback: the volume's objects become
   * what they were at its snapshot `snap`. flatten: the volume gets those of its parent.
   */
  what: (typeof PURGES)[number];
  ino: Ino;
  prefix: string;
  layout: Layout;
  /** Bytes of the file that stay; 0 removes all. */
  from: number;
  /** Below this offset objects are likely; between it and `bound` they may exist. */
  likely: number;
  bound: number;
  truncateSeq: number;
  unconditional: boolean;
  /** Of a volume: its number and, for people, its name. */
  volume: number;
  name: string;
  /** The volume's size becomes `from` when the work is done. */
  shrinks: boolean;
  /** rollback: a snapshot id; else 0. */
  snap: number;
  /** Objects below this index are gone; with lists (purger.ts) those of placement groups below. */
  next: number;
}
export interface PurgesBody {
  kind: "p";
  entries: Map<number, PurgeEntry>;
}
/** Next unused numbers, and totals. */
export const COUNTERS = ["formatted", "nextIno", "nextVolume", "nextPurge", "inodes"] as const;
export type Counter = (typeof COUNTERS)[number];
export interface SuperBody {
  kind: "s";
  counters: Record<Counter, number>;
  sessions: Set<ClientId>;
  /** Numbers of purge pages that have entries. */
  purgePages: Set<number>;
}
export type PageBody =
  | InodesBody
  | DirectoryBody
  | XattrsBody
  | LinksBody
  | QuotasBody
  | SessionBody
  | VolumesBody
  | PurgesBody
  | SuperBody;
export type PageKind = PageBody["kind"];

export const SUPER_KEY = "s";
export const QUOTAS_KEY = "q";
export function inodePageKey(ino: Ino): string {
  return `i${Math.floor(ino / INODES_PER_PAGE).toString(16)}`;
}
export function directoryPageKey(ino: Ino, prefix: string): string {
  return `d${ino.toString(16)}.${prefix}`;
}
export function xattrPageKey(ino: Ino): string {
  return `x${ino.toString(16)}`;
}
export function linksPageKey(ino: Ino): string {
  return `l${ino.toString(16)}`;
}
export function sessionPageKey(id: ClientId): string {
  return `c${id.toString(16)}`;
}
export function volumePageKey(id: number): string {
  return `v${Math.floor(id / VOLUMES_PER_PAGE).toString(16)}`;
}
export function purgePageNumber(id: number): number {
  return Math.floor(id / PURGES_PER_PAGE);
}
export function purgePageKey(page: number): string {
  return `p${page.toString(16)}`;
}

/**
 * An inode table, a directory part and so on, with what the cache and the checkpoint need to know.
 */
export class Page<B extends PageBody = PageBody> {
  /** Last journal batch applied, in memory. */
  applied: number;
  /** Last journal batch applied in the stored form that was loaded: replay skips up to it. */
  readonly storedApplied: number;
  /** First batch that the stored form lacks; 0: none, the page is clean. */
  dirtyFrom = 0;
  /** As dirtyFrom, for the form that is being written. */
  flushingFrom = 0;
  /** A stored form exists. */
  stored: boolean;
  pins = 0;
  /** Always in memory (counters, live sessions, volumes, purge queue). */
  resident = false;

  constructor(
    readonly key: string,
    readonly body: B,
    applied: number,
    stored: boolean,
  ) {
    this.applied = applied;
    this.storedApplied = applied;
    this.stored = stored;
  }
  /** Nothing in it: the stored form is removed instead of written. */
  get empty(): boolean {
    const body = this.body;
    switch (body.kind) {
      case "i":
        return body.inodes.size === 0;
      case "d":
        return body.dropped || (!body.split && body.entries.size === 0 && this.key.endsWith("."));
      case "x":
        return body.values.size === 0;
      case "l":
        return body.directories.size === 0;
      case "q":
        return body.quotas.size === 0;
      case "c":
        return !body.live;
      case "v":
        return body.volumes.size === 0;
      case "p":
        return body.entries.size === 0;
      case "s":
        return false;
    }
  }
  /** Rough bytes in memory, for the cache's limit. */
  get weight(): number {
    const body = this.body;
    switch (body.kind) {
      case "i":
        return 200 + body.inodes.size * 400 + body.totals.size * 150;
      case "l":
        return 200 + body.directories.size * 40;
      case "q":
        return 200 + body.quotas.size * 100;
      case "d":
        return 200 + body.entries.size * 220;
      case "x":
        return [...body.values.values()].reduce((sum, value) => sum + value.length + 100, 200);
      default:
        return 1000;
    }
  }
}

function newBody(key: string): PageBody {
  switch (key.charAt(0) as PageKind) {
    case "i":
      return { kind: "i", inodes: new Map(), totals: new Map() };
    case "l":
      return { kind: "l", directories: new Map() };
    case "q":
      return { kind: "q", quotas: new Map() };
    case "d":
      return {
        kind: "d",
        split: false,
        dropped: false,
        entries: new Map(),
        bytes: 0,
        sorted: undefined,
        cookies: undefined,
      };
    case "x":
      return { kind: "x", values: new Map() };
    case "c":
      return emptySession(Number.parseInt(key.slice(1), 16));
    case "v":
      return { kind: "v", volumes: new Map() };
    case "p":
      return { kind: "p", entries: new Map() };
    case "s":
      return {
        kind: "s",
        counters: {
          formatted: 0,
          nextIno: 0,
          nextVolume: 0,
          nextPurge: 0,
          inodes: 0,
        },
        sessions: new Set(),
        purgePages: new Set(),
      };
  }
  assert(false, `page key ${key}`);
}
export function emptySession(id: ClientId): SessionBody {
  return {
    kind: "c",
    live: false,
    id,
    type: "cli",
    instance: "",
    host: "",
    pid: 0,
    detail: "",
    worker: id,
    generation: 0,
    floor: 0,
    completed: new Set(),
    ranges: [],
    orphans: new Set(),
    exclusive: new Map(),
    volumes: new Map(),
  };
}

export function encodePage(page: Page): Buffer {
  const out = new Writer(4096);
  out.u8(PAGE_FORMAT);
  out.text(page.key);
  out.uint(page.applied);
  const body = page.body;
  switch (body.kind) {
    case "i":
      out.uint(body.inodes.size);
      for (const inode of body.inodes.values()) writeInode(out, inode);
      out.uint(body.totals.size);
      for (const [ino, totals] of body.totals) {
        out.uint(ino);
        writeTotals(out, totals);
      }
      break;
    case "l":
      out.uint(body.directories.size);
      for (const [directory, count] of body.directories) {
        out.uint(directory);
        out.uint(count);
      }
      break;
    case "q":
      out.uint(body.quotas.size);
      for (const [ino, quota] of body.quotas) {
        out.uint(ino);
        writeQuota(out, quota);
      }
      break;
    case "d":
      out.bool(body.split);
      out.uint(body.entries.size);
      for (const entry of body.entries.values()) writeDentry(out, entry);
      break;
    case "x":
      out.uint(body.values.size);
      for (const [name, value] of body.values) {
        out.bytes(Buffer.from(name, "latin1"));
        out.bytes(value);
      }
      break;
    case "c":
      writeSession(out, body);
      break;
    case "v":
      out.uint(body.volumes.size);
      for (const volume of body.volumes.values()) writeVolume(out, volume);
      break;
    case "p":
      out.uint(body.entries.size);
      for (const entry of body.entries.values()) writePurge(out, entry);
      break;
    case "s":
      out.uint(COUNTERS.length);
      for (const name of COUNTERS) out.uint(body.counters[name]);
      writeNumbers(out, body.sessions);
      writeNumbers(out, body.purgePages);
      break;
  }
  return out.seal();
}

/**
 * The page with this key; `data` undefined: there is no stored form. Corrupt when it is damaged or
 * another page.
 */
export function decodePage(key: string, data: Buffer | undefined): Page {
  if (data === undefined) return new Page(key, newBody(key), 0, false);
  const from = new Reader(unseal(data, `metadata page ${key}`));
  const format = from.u8();
  if (format !== PAGE_FORMAT) {
    throw new DssError("IncompatibleVersion", `metadata page ${key} has format ${format}`);
  }
  const stored = from.text();
  if (stored !== key) throw new DssError("Corrupt", `metadata page ${key} holds page ${stored}`);
  const applied = from.uint();
  const body = newBody(key);
  readBody(from, body);
  if (!from.end) throw new DssError("Corrupt", `metadata page ${key} has bytes too many`);
  return new Page(key, body, applied, true);
}

function readBody(from: Reader, body: PageBody): void {
  switch (body.kind) {
    case "i":
      for (let left = from.uint(); left > 0; left--) {
        const inode = readInode(from);
        body.inodes.set(inode.ino, inode);
      }
      for (let left = from.uint(); left > 0; left--) {
        const ino = from.uint();
        body.totals.set(ino, readTotals(from));
      }
      break;
    case "l":
      for (let left = from.uint(); left > 0; left--) {
        const directory = from.uint();
        body.directories.set(directory, from.uint());
      }
      break;
    case "q":
      for (let left = from.uint(); left > 0; left--) {
        const ino = from.uint();
        body.quotas.set(ino, readQuota(from));
      }
      break;
    case "d":
      body.split = from.bool();
      for (let left = from.uint(); left > 0; left--) {
        const entry = readDentry(from);
        body.entries.set(nameKey(entry.name), entry);
        body.bytes += entry.name.length + 14;
      }
      break;
    case "x":
      for (let left = from.uint(); left > 0; left--) {
        const name = from.bytes().toString("latin1");
        body.values.set(name, from.bytes());
      }
      break;
    case "c":
      readSession(from, body);
      break;
    case "v":
      for (let left = from.uint(); left > 0; left--) {
        const volume = readVolume(from);
        body.volumes.set(volume.id, volume);
      }
      break;
    case "p":
      for (let left = from.uint(); left > 0; left--) {
        const entry = readPurge(from);
        body.entries.set(entry.id, entry);
      }
      break;
    case "s": {
      const count = from.uint();
      for (let i = 0; i < count; i++) {
        const value = from.uint();
        const name = COUNTERS[i];
        if (name !== undefined) body.counters[name] = value;
      }
      body.sessions = new Set(readNumbers(from));
      body.purgePages = new Set(readNumbers(from));
    }
  }
}

function writeNumbers(out: Writer, numbers: Set<number>): void {
  out.uint(numbers.size);
  for (const number of numbers) out.uint(number);
}
function readNumbers(from: Reader): number[] {
  const numbers: number[] = [];
  for (let left = from.uint(); left > 0; left--) numbers.push(from.uint());
  return numbers;
}

function writeSession(out: Writer, session: SessionBody): void {
  out.bool(session.live);
  out.uint(session.id);
  for (const text of [session.type, session.instance, session.host, session.detail]) out.text(text);
  out.uint(session.pid);
  out.uint(session.worker);
  out.uint(session.generation);
  out.uint(session.floor);
  writeNumbers(out, session.completed);
  out.uint(session.ranges.length);
  for (const range of session.ranges) {
    out.uint(range.first);
    out.uint(range.count);
  }
  writeNumbers(out, session.orphans);
  out.uint(session.exclusive.size);
  for (const [ino, maxSize] of session.exclusive) {
    out.uint(ino);
    out.uint(maxSize);
  }
  out.uint(session.volumes.size);
  for (const [id, write] of session.volumes) {
    out.uint(id);
    out.bool(write);
  }
}
function readSession(from: Reader, session: SessionBody): void {
  session.live = from.bool();
  session.id = from.uint();
  session.type = from.text() as SessionType;
  session.instance = from.text();
  session.host = from.text();
  session.detail = from.text();
  session.pid = from.uint();
  session.worker = from.uint();
  session.generation = from.uint();
  session.floor = from.uint();
  session.completed = new Set(readNumbers(from));
  for (let left = from.uint(); left > 0; left--) {
    session.ranges.push({ first: from.uint(), count: from.uint() });
  }
  session.orphans = new Set(readNumbers(from));
  for (let left = from.uint(); left > 0; left--) {
    const ino = from.uint();
    session.exclusive.set(ino, from.uint());
  }
  for (let left = from.uint(); left > 0; left--) {
    const id = from.uint();
    session.volumes.set(id, from.bool());
  }
}

export const NO_WRITER: VolumeWriter = { client: 0, sinceNs: 0n, holder: "" };

export function writeVolume(out: Writer, volume: VolumeRecord): void {
  out.uint(volume.id);
  out.text(volume.name);
  out.size(volume.size);
  writeLayout(out, volume.layout);
  out.time(volume.createdNs);
  out.text(volume.objectPrefix);
  out.uint(volume.features.length);
  for (const feature of volume.features) out.text(feature);
  out.uint(volume.revision);
  out.size(volume.shrinkTo);
  out.uint(volume.iopsLimit);
  out.uint(volume.bandwidthLimit);
  out.uint(volume.writer.client);
  out.time(volume.writer.sinceNs);
  out.text(volume.writer.holder);
  out.uint(volume.snapSeq);
  out.uint(volume.rollbackTo);
  out.bool(volume.isFlattening);
  out.uint(volume.parent?.volume ?? 0);
  out.uint(volume.parent?.snap ?? 0);
  out.size(volume.parent?.overlap ?? 0);
  out.uint(volume.snapshots.length);
  for (const { id, name, size, createdNs, isProtected, origin } of volume.snapshots) {
    out.uint(id);
    out.text(name);
    out.size(size);
    out.time(createdNs);
    out.bool(isProtected);
    out.text(origin);
  }
}
export function readVolume(from: Reader): VolumeRecord {
  const volume: VolumeRecord = {
    id: from.uint(),
    name: from.text(),
    size: from.size(),
    layout: readLayout(from),
    createdNs: from.time(),
    objectPrefix: from.text(),
    features: [],
    ...{ revision: 0, shrinkTo: 0, iopsLimit: 0, bandwidthLimit: 0 },
    writer: NO_WRITER,
    ...{ snapSeq: 0, rollbackTo: 0, snapshots: [] as VolumeSnapshot[] },
    ...{ isFlattening: false, parent: null },
  };
  for (let left = from.uint(); left > 0; left--) volume.features.push(from.text());
  volume.revision = from.uint();
  volume.shrinkTo = from.size();
  volume.iopsLimit = from.uint();
  volume.bandwidthLimit = from.uint();
  volume.writer = { client: from.uint(), sinceNs: from.time(), holder: from.text() };
  volume.snapSeq = from.uint();
  volume.rollbackTo = from.uint();
  volume.isFlattening = from.bool();
  const parent = { volume: from.uint(), snap: from.uint(), overlap: from.size() };
  if (parent.volume !== 0) volume.parent = parent;
  for (let left = from.uint(); left > 0; left--) {
    volume.snapshots.push({
      id: from.uint(),
      name: from.text(),
      size: from.size(),
      createdNs: from.time(),
      isProtected: from.bool(),
      origin: from.text(),
    });
  }
  return volume;
}

export function writePurge(out: Writer, entry: PurgeEntry): void {
  out.uint(entry.id);
  out.u8(PURGES.indexOf(entry.what));
  out.uint(entry.ino);
  out.text(entry.prefix);
  writeLayout(out, entry.layout);
  for (const value of [entry.from, entry.likely, entry.bound]) out.size(value);
  const { truncateSeq, next, volume, snap } = entry;
  for (const value of [truncateSeq, next, volume, snap]) out.uint(value);
  out.text(entry.name);
  out.bool(entry.shrinks);
  out.bool(entry.unconditional);
}
export function readPurge(from: Reader): PurgeEntry {
  const id = from.uint();
  const what = PURGES[from.u8()];
  if (what === undefined) throw new DssError("Malformed", "an unknown kind of purge");
  const ino = from.uint();
  const prefix = from.text();
  const layout = readLayout(from);
  const [start, likely, bound] = [from.size(), from.size(), from.size()];
  const [truncateSeq, next, volume, snap] = [from.uint(), from.uint(), from.uint(), from.uint()];
  const name = from.text();
  const shrinks = from.bool();
  const unconditional = from.bool();
  return {
    id,
    what,
    ino,
    prefix,
    layout,
    from: start,
    likely,
    bound,
    truncateSeq,
    unconditional,
    ...{ volume, name, shrinks, snap, next },
  };
}
