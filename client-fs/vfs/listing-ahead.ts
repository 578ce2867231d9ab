/**
 * Whole directories asked for at once: who looks up one name after the other in a directory (stat,
 * ls -l, tar, rm -r) soon needs all of them, and a listing brings a thousand names with attributes
 * and capabilities for the price of a few look-ups. And who lists one directory after the other
 * (find, cp -r, rm -r) soon lists those beside them: they are asked for together; so are those of
 * which something is to be removed, each for this mount alone.
 *
 * A directory is listed when the look-ups that had to be asked are a fair share of its entries, and
 * again only after as many as it has entries (what others hold is not in a listing), so that
 * listings cost a bounded part of what was asked for anyway. Owns: the count of look-ups per
 * directory, and which listings are under way.
 */
import { describeError, isDssError } from "../../cluster/base/errors.js";
import type { Ino } from "../../cluster/base/ids.js";
import type { Logger } from "../../cluster/base/log.js";
import type { MdsClient } from "../../mds/client/mds-client.js";
import { Neighbours } from "./neighbours.js";
import type { Node } from "./node.js";
import type { NodeTable } from "./node-table.js";

/** Entries that a listing asks for at a time. */
const PAGE = 1_024;
/** From the second look-up on, one in so many entries asked for one by one is worth a listing. */
const MISSES_MIN = 2;
const ENTRIES_PER_MISS = 64;
/** A listing this short is waited for; look-ups beside a longer one are asked one by one. */
const WAIT_ENTRIES = 2 * PAGE;
/** Larger directories would push everything else out of the table. */
const ENTRIES_MAX = 32_768;
/** Directories whose look-ups are counted. */
const COUNTED_MAX = 4_096;

interface Listing {
  readonly done: Promise<void>;
  readonly entries: number;
  /** It asks for the directory and what is in it to be held alone. */
  readonly alone: boolean;
}

export class ListingAhead {
  private readonly counts = new Map<Node, { misses: number; wanted: number }>();
  private readonly listings = new Map<Node, Listing>();
  private readonly neighbours: Neighbours;
  /** Of directories that are emptied one after the other. */
  private readonly emptied: Neighbours;
  /** The directory of which something was removed last. */
  private emptiedLast: Ino | undefined;

  constructor(
    private readonly mds: MdsClient,
    private readonly table: NodeTable,
    private readonly logger: Logger,
  ) {
    const isDirectory = (ino: Ino): boolean => table.peek(ino)?.isDirectory === true;
    this.neighbours = new Neighbours(table, isDirectory, (ino) => this.expected(ino));
    this.emptied = new Neighbours(table, isDirectory, (ino) => this.expectedEmptied(ino));
  }

  /**
   * A program begins to list the directory. The promise, if any, settles when a listing that was
   * begun for it before is over, and never fails.
   */
  listed(directory: Node): Promise<void> | undefined {
    if (directory.parent !== directory.ino) this.neighbours.visited(directory);
    const running = this.listings.get(directory);
    return running !== undefined && running.entries <= WAIT_ENTRIES ? running.done : undefined;
  }
  /** A program that lists one directory after the other will come here soon. */
  private expected(ino: Ino): void {
    const directory = this.table.peek(ino);
    if (directory === undefined || directory.complete || this.listings.has(directory)) return;
    if (directory.size > PAGE || !this.table.lasting(directory)) return;
    void this.begin(directory, false);
  }

  /**
   * A name of the directory has to be asked for. The promise, if any, settles when a listing that
   * may bring it is over, and never fails.
   */
  missed(directory: Node): Promise<void> | undefined {
    const running = this.listings.get(directory);
    if (running !== undefined) return running.entries <= WAIT_ENTRIES ? running.done : undefined;
    if (!this.table.lasting(directory)) return undefined; // Its attributes come with this look-up.
    const entries = directory.size;
    let count = this.counts.get(directory);
    if (count === undefined) {
      if (this.counts.size >= COUNTED_MAX) this.counts.clear();
      count = { misses: 0, wanted: MISSES_MIN };
      this.counts.set(directory, count);
    }
    count.misses++;
    const { misses, wanted } = count;
    if (misses < wanted || misses * ENTRIES_PER_MISS < entries || entries > ENTRIES_MAX) {
      return undefined;
    }
    count.misses = 0;
    count.wanted = Math.max(entries, MISSES_MIN);
    const done = this.begin(directory, false);
    return entries <= WAIT_ENTRIES ? done : undefined;
  }

  /** Something is removed from the directory. */
  noteRemoval(ino: Ino): void {
    if (ino === this.emptiedLast) return;
    this.emptiedLast = ino;
    const directory = this.table.peek(ino);
    if (directory !== undefined && directory.parent !== ino) this.emptied.visited(directory);
  }
  /** A program that empties one directory after the other will come here soon. */
  private expectedEmptied(ino: Ino): void {
    const directory = this.table.peek(ino);
    if (directory === undefined || this.listings.has(directory)) return;
    const { local } = this.table;
    const first = directory.names?.values().next().value;
    const child = first === undefined ? undefined : this.table.peek(first);
    const lacksChild = child !== undefined && local.lacksChild(ino, child);
    if (local.lacksDirectory(ino) || lacksChild) void this.adopt(directory);
  }

  /**
   * Something is to be removed from a directory that this mount does not hold alone. The promise,
   * if any, settles when the mount does, or cannot; it is tried once for each grant.
   */
  adopt(directory: Node): Promise<void> | undefined {
    const running = this.listings.get(directory);
    if (running?.alone === true) return running.done;
    const isTried = directory.aloneAsked === directory.seq;
    if (isTried || directory.size > PAGE || !this.table.lasting(directory)) return undefined;
    if (running !== undefined) return running.done.then(() => this.adopt(directory));
    directory.aloneAsked = directory.seq;
    return this.begin(directory, true);
  }

  private begin(directory: Node, alone: boolean): Promise<void> {
    const done = this.list(directory, alone).finally(() => this.listings.delete(directory));
    this.listings.set(directory, { done, entries: directory.size, alone });
    return done;
  }
  private async list(directory: Node, alone: boolean): Promise<void> {
    const { ino, namesEpoch } = directory;
    try {
      for (let cookie = 0; ;) {
        const request = { op: "readdir" as const, ino, cookie, limit: PAGE, plus: true };
        const { answer } = await this.mds.call(alone ? { ...request, alone } : request);
        // Somebody else changes it: what is left of the listing would not be kept.
        if (directory.namesEpoch !== namesEpoch || !this.table.lasting(directory)) return;
        const entries = answer.entries ?? [];
        if (answer.end === true || entries.length === 0) break;
        cookie = entries[entries.length - 1]!.cookie;
      }
      this.table.names.noteComplete(directory);
    } catch (error) {
      if (!isDssError(error)) throw error;
      // Whoever waits asks for its own name now, and reports what is wrong with that.
      this.logger.debug({ ino, error: describeError(error) }, "a directory was not listed ahead");
    }
  }
}
