/**
 * Small files read before they are asked for: who reads one small file of a directory after the
 * other (cp -r, grep -r, a compiler, a mail reader) would wait for an OSD once for each. When two
 * reads in a row follow an order that programs go by (that of the listing, of the inode numbers,
 * of the names), the next files in it are fetched beside each other into the cache.
 *
 * What is fetched obeys the rules of the read-ahead within a file: only what a capability covers,
 * and the cache forgets it, also on its way, before that is given back (extent-cache.ts).
 *
 * Owns: for a few directories where their reader is.
 */
import type { Ino } from "../../cluster/base/ids.js";
import type { FileData } from "./file-data.js";
import { covers } from "../../mds/proto.js";
import type { Node } from "./node.js";
import type { NodeTable } from "./node-table.js";

/** Larger files have a reader's own read-ahead. */
const SMALL_BYTES = 64 * 1024;
/** Files under way or unread before the reader; the first time so many, then twice as many. */
const WINDOW_MIN = 4;
const WINDOW_MAX = 32;
/** So many files further on in an order still follow the one before: some may not be small. */
const STEP_MAX = 3;
/** Putting the names of larger directories in order costs more than it brings. */
const ENTRIES_MAX = 8_192;
const DIRECTORIES_MAX = 32;

interface Order {
  readonly inos: readonly Ino[];
  readonly places: ReadonlyMap<Ino, number>;
}
interface Reader {
  /** Of the directory when the orders were made. */
  readonly namesEpoch: number;
  readonly entries: number;
  readonly orders: readonly Order[];
  /** The file read last. */
  last: Ino;
  /** The order that the reader follows, and up to where files were fetched. */
  order: Order | undefined;
  until: number;
  window: number;
}

type Table = Pick<NodeTable, "peek" | "lasting" | "dataOf">;

export class FilesAhead {
  /** The longest unused first. */
  private readonly readers = new Map<Ino, Reader>();
  /** The file read last of directories without a reader yet. */
  private readonly first = new Map<Ino, Ino>();

  /** `enabled`: there is a cache, and reading ahead is wanted. */
  constructor(
    private readonly table: Table,
    private readonly enabled: boolean,
  ) {}

  /** A program reads the beginning of a file. */
  read(node: Node): void {
    if (!this.enabled || node.size > SMALL_BYTES) return;
    const reader = this.readerOf(node);
    if (reader === undefined || reader.last === node.ino) return;
    const { order } = reader;
    const place = order?.places.get(node.ino);
    if (order !== undefined && place !== undefined && follows(order, reader.last, place)) {
      reader.last = node.ino;
      this.advance(reader, order, place);
      return;
    }
    reader.order = reader.orders.find(({ places }, at) => {
      const here = places.get(node.ino);
      return here !== undefined && follows(reader.orders[at]!, reader.last, here);
    });
    reader.last = node.ino;
    reader.until = 0;
    reader.window = WINDOW_MIN;
    const begun = reader.order;
    if (begun !== undefined) this.advance(reader, begun, begun.places.get(node.ino)!);
  }

  private readerOf(node: Node): Reader | undefined {
    const directory = this.table.peek(node.parent);
    const names = directory?.names;
    if (directory === undefined || names === undefined || !directory.complete) return undefined;
    if (names.size < 2 || names.size > ENTRIES_MAX || !this.table.lasting(directory)) {
      return undefined;
    }
    const known = this.readers.get(directory.ino);
    // Small changes are not worth another look: a file that is not there is not fetched.
    const isOld =
      known === undefined ||
      known.namesEpoch !== directory.namesEpoch ||
      Math.abs(known.entries - names.size) * 8 > names.size;
    if (!isOld) {
      this.readers.delete(directory.ino);
      this.readers.set(directory.ino, known);
      return known;
    }
    this.readers.delete(directory.ino);
    // One file of a directory says nothing.
    const last = this.first.get(directory.ino);
    if (this.first.size >= DIRECTORIES_MAX) this.first.clear();
    if (last === undefined || last === node.ino) {
      this.first.set(directory.ino, node.ino);
      return undefined;
    }
    this.first.delete(directory.ino);
    const reader: Reader = {
      ...{ namesEpoch: directory.namesEpoch, entries: names.size, orders: ordersOf(names), last },
      ...{ order: undefined, until: 0, window: WINDOW_MIN },
    };
    this.readers.set(directory.ino, reader);
    if (this.readers.size > DIRECTORIES_MAX) {
      this.readers.delete(this.readers.keys().next().value!);
    }
    return reader;
  }

  private advance(reader: Reader, { inos }: Order, place: number): void {
    const from = Math.max(reader.until, place + 1);
    // In bursts: half a window at a time shares frames and wake-ups.
    if (from - place > reader.window / 2) return;
    const until = Math.min(place + 1 + reader.window, inos.length);
    for (let at = from; at < until; at++) this.fetch(inos[at]!);
    reader.until = until;
    reader.window = Math.min(2 * reader.window, WINDOW_MAX);
  }
  private fetch(ino: Ino): void {
    const node = this.table.peek(ino);
    if (node?.inode?.layout === undefined || node.size === 0 || node.size > SMALL_BYTES) return;
    if (!covers(node.mode, "shared") || !this.table.lasting(node)) return;
    if (node.barrier !== undefined || node.resizing > 0 || node.orphan || node.stale) return;
    const data: FileData = this.table.dataOf(node);
    if (data.clean) data.fetchAhead();
  }
}

/** The listing's first: it is the one that costs its reader nothing. */
function ordersOf(names: ReadonlyMap<string, Ino>): Order[] {
  const listed = [...names].filter(([, ino]) => ino !== 0);
  const inos = listed.map(([, ino]) => ino);
  const numbered = [...inos].sort((a, b) => a - b);
  const named = listed.sort(([a], [b]) => (a < b ? -1 : 1)).map(([, ino]) => ino);
  return [inos, numbered, named].map((order) => {
    return { inos: order, places: new Map(order.map((ino, place) => [ino, place])) };
  });
}
function follows({ places }: Order, last: Ino, place: number): boolean {
  const before = places.get(last);
  return before !== undefined && place > before && place - before <= STEP_MAX;
}
