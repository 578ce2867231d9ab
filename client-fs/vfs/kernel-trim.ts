/**
 * Bounds how many inodes are kept because the kernel knows names of them. It forgets these when the
 * machine is short of memory, and knows nothing of this process's: a walk over a million files
 * would stay here. So when there are too many, the kernel is asked to drop names of files, those
 * known longest first. What it forgets then is idle, and goes as any other idle inode.
 *
 * One name at a time: the kernel takes the lock of the directory for it, which somebody may hold
 * who waits for an answer of ours. Left alone are open files, and directories: a process could not
 * say any more where it is when the kernel drops the name of its current one.
 *
 * Owns: how far it has come in the table.
 */
import type { Ino } from "../../cluster/base/ids.js";
import type { Clock } from "../../cluster/platform/ports.js";
import type { KernelCache } from "./kernel-cache.js";
import { nameKey } from "./names.js";
import type { Node } from "./node.js";
import type { NodeTable } from "./node-table.js";

/** Names looked for at a time. */
const BATCH = 1_024;
/** So many of all go at once. */
const PART = 1 / 16;
/** What the kernel has forgotten, it says soon. */
const PAUSE_MS = 100;
/** When it does not: it has a use for them. */
const REST_MS = 30_000;

interface Name {
  readonly parent: Ino;
  readonly name: Buffer;
  readonly node: Node;
}

export class KernelTrim {
  private running = false;
  private stopped = false;
  /** The longest known first. */
  private rest: IterableIterator<Node> | undefined;

  /** `inodesMax`: so many may be in the table. */
  constructor(
    private readonly table: Pick<NodeTable, "all" | "peek" | "size">,
    private readonly kernel: Pick<KernelCache, "forgetName">,
    private readonly clock: Clock,
    private readonly inodesMax: number,
  ) {}

  /** There may be too many. */
  look(): void {
    if (this.running || this.stopped || this.table.size <= this.inodesMax) return;
    this.running = true;
    void this.run();
  }
  stop(): void {
    this.stopped = true;
  }

  private async run(): Promise<void> {
    this.rest = this.table.all();
    const asked: Node[] = [];
    const count = this.table.size - Math.floor(this.inodesMax * (1 - PART));
    while (!this.stopped && asked.length < count) {
      const names = this.next(Math.min(BATCH, count - asked.length));
      if (names.length === 0) break;
      for (const { parent, name, node } of names) {
        // While others were asked for, it may have become the name of something else.
        const isName = this.table.peek(parent)?.names?.get(nameKey(name)) === node.ino;
        if (!this.stopped && isName && isUnused(node)) await this.kernel.forgetName(parent, name);
        asked.push(node);
      }
    }
    this.rest = undefined;
    this.clock.setTimer(PAUSE_MS, () => this.pause(asked, asked.length < count));
  }
  /** Until it is worth asking again. */
  private pause(asked: readonly Node[], wereAll: boolean): void {
    const kept = asked.filter((node) => node.lookups > 0).length;
    this.clock.setTimer(wereAll || 2 * kept >= asked.length ? REST_MS : 0, () => {
      this.running = false;
      this.look();
    });
  }

  /** Names of that many unused files; fewer when there are no more. */
  private next(count: number): Name[] {
    const names: Name[] = [];
    const looked = new Set<Ino>();
    for (const node of this.rest!) {
      if (!isUnused(node) || looked.has(node.parent)) continue;
      looked.add(node.parent);
      for (const [key, ino] of this.table.peek(node.parent)?.names ?? []) {
        const child = ino === 0 ? undefined : this.table.peek(ino);
        if (child === undefined || !isUnused(child)) continue;
        names.push({ parent: node.parent, name: Buffer.from(key, "latin1"), node: child });
        if (names.length >= count) return names;
      }
    }
    return names;
  }
}

/** A file that the kernel knows, and nobody works with. */
function isUnused(node: Node): boolean {
  if (node.lookups === 0 || node.inode === undefined || node.isDirectory) return false;
  return node.opens === 0 && node.pins === 0 && (node.data?.clean ?? true);
}
