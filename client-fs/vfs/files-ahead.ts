/**
 * Small files read before they are asked for: who reads one small file of a directory after the
 * other (cp -r, grep -r, a compiler, a mail reader) would wait for an OSD once for each. The files
 * that come next (neighbours.ts) are fetched beside each other into the cache.
 *
 * What is fetched obeys the rules of the read-ahead within a file: only what a capability covers,
 * and the cache forgets it, also on its way, before that is given back (extent-cache.ts).
 */
import type { Ino } from "../../cluster/base/ids.js";
import { covers } from "../../mds/proto.js";
import type { FileData } from "./file-data.js";
import { Neighbours } from "./neighbours.js";
import type { Node } from "./node.js";
import type { NodeTable } from "./node-table.js";

/** Larger files have a reader's own read-ahead. */
const SMALL_BYTES = 64 * 1024;

export class FilesAhead {
  private readonly neighbours: Neighbours;

  /** `enabled`: there is a cache, and reading ahead is wanted. */
  constructor(
    private readonly table: Pick<NodeTable, "peek" | "lasting" | "dataOf">,
    private readonly enabled: boolean,
  ) {
    this.neighbours = new Neighbours(
      table,
      () => true,
      (ino) => this.fetch(ino),
    );
  }

  /** A program reads the beginning of a file. */
  read(node: Node): void {
    if (this.enabled && node.size <= SMALL_BYTES) this.neighbours.visited(node);
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
