/**
 * Who visits one child of a directory after the other, and in which order: that of the listing, of
 * the inode numbers, of the names; these are what programs go by. When two visits in a row follow
 * one of them, the next children in it are named, for what is worth having before it is asked for.
 *
 * Owns: for a few directories where their visitor is.
 */
import type { Ino } from "../../cluster/base/ids.js";
import type { Node } from "./node.js";
import type { NodeTable } from "./node-table.js";

/** Children named and not visited yet; the first time so many, then twice as many. */
const WINDOW_MIN = 4;
const WINDOW_MAX = 32;
/** So many children further on in an order still follow the one before: some are passed by. */
const STEP_MAX = 3;
/** Putting the names of larger directories in order costs more than it brings. */
const ENTRIES_MAX = 8_192;
const DIRECTORIES_MAX = 32;

interface Order {
  readonly inos: readonly Ino[];
  readonly places: ReadonlyMap<Ino, number>;
}
interface Visitor {
  /** Of the directory when the orders were made. */
  readonly namesEpoch: number;
  readonly entries: number;
  readonly orders: readonly Order[];
  /** The child visited last. */
  last: Ino;
  /** The order that the visitor follows, and up to where children were named. */
  order: Order | undefined;
  until: number;
  window: number;
}

type Table = Pick<NodeTable, "peek" | "lasting">;

export class Neighbours {
  /** The longest unused first. */
  private readonly visitors = new Map<Ino, Visitor>();
  /** The child visited last of directories without a visitor yet. */
  private readonly first = new Map<Ino, Ino>();

  /**
   * `isOne`: visits can be expected of it. `next` is told of children that may be visited soon;
   * some have been, or are not there any more.
   */
  constructor(
    private readonly table: Table,
    private readonly isOne: (ino: Ino) => boolean,
    private readonly next: (ino: Ino) => void,
  ) {}

  visited(node: Node): void {
    const visitor = this.visitorOf(node);
    if (visitor === undefined || visitor.last === node.ino) return;
    const { order } = visitor;
    const place = order?.places.get(node.ino);
    if (order !== undefined && place !== undefined && follows(order, visitor.last, place)) {
      visitor.last = node.ino;
      this.advance(visitor, order, place);
      return;
    }
    visitor.order = visitor.orders.find(({ places }, at) => {
      const here = places.get(node.ino);
      return here !== undefined && follows(visitor.orders[at]!, visitor.last, here);
    });
    visitor.last = node.ino;
    visitor.until = 0;
    visitor.window = WINDOW_MIN;
    const begun = visitor.order;
    if (begun !== undefined) this.advance(visitor, begun, begun.places.get(node.ino)!);
  }

  private visitorOf(node: Node): Visitor | undefined {
    const directory = this.table.peek(node.parent);
    const names = directory?.names;
    if (directory === undefined || names === undefined || !directory.complete) return undefined;
    if (names.size < 2 || names.size > ENTRIES_MAX || !this.table.lasting(directory)) {
      return undefined;
    }
    const known = this.visitors.get(directory.ino);
    // Small changes are not worth another look, nor is what went: it is named in vain.
    const isOld =
      known === undefined ||
      known.namesEpoch !== directory.namesEpoch ||
      (names.size - known.entries) * 8 > names.size;
    if (!isOld) {
      this.visitors.delete(directory.ino);
      this.visitors.set(directory.ino, known);
      return known;
    }
    this.visitors.delete(directory.ino);
    // One child of a directory says nothing.
    const last = this.first.get(directory.ino);
    if (this.first.size >= DIRECTORIES_MAX) this.first.clear();
    if (last === undefined || last === node.ino) {
      this.first.set(directory.ino, node.ino);
      return undefined;
    }
    this.first.delete(directory.ino);
    const visitor: Visitor = {
      ...{
        namesEpoch: directory.namesEpoch,
        entries: names.size,
        orders: this.ordersOf(names),
        last,
      },
      ...{ order: undefined, until: 0, window: WINDOW_MIN },
    };
    this.visitors.set(directory.ino, visitor);
    if (this.visitors.size > DIRECTORIES_MAX) {
      this.visitors.delete(this.visitors.keys().next().value!);
    }
    return visitor;
  }

  private advance(visitor: Visitor, { inos }: Order, place: number): void {
    const from = Math.max(visitor.until, place + 1);
    // In bursts: half a window at a time shares frames and wake-ups.
    if (from - place > visitor.window / 2) return;
    const until = Math.min(place + 1 + visitor.window, inos.length);
    for (let at = from; at < until; at++) this.next(inos[at]!);
    visitor.until = until;
    visitor.window = Math.min(2 * visitor.window, WINDOW_MAX);
  }

  /** The listing's first: it is the one that costs its visitor nothing. */
  private ordersOf(names: ReadonlyMap<string, Ino>): Order[] {
    const listed = [...names].filter(([, ino]) => ino !== 0 && this.isOne(ino));
    const inos = listed.map(([, ino]) => ino);
    const numbered = [...inos].sort((a, b) => a - b);
    const named = listed.sort(([a], [b]) => (a < b ? -1 : 1)).map(([, ino]) => ino);
    return [inos, numbered, named].map((order) => {
      return { inos: order, places: new Map(order.map((ino, place) => [ino, place])) };
    });
  }
}

function follows({ places }: Order, last: Ino, place: number): boolean {
  const before = places.get(last);
  return before !== undefined && place > before && place - before <= STEP_MAX;
}
