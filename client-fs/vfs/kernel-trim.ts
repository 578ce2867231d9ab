/**
 * Bounds how many inodes are kept because the kernel knows names of them. It forgets these when the
 * machine is short of memory, and knows nothing of this process's: a walk over a million files
 * would stay here. So when there are too many, the kernel is asked to drop names of files, in the
 * directory of the file known longest first. What it forgets then is idle, and goes as any other
 * idle inode.
 *
 * One name at a time: the kernel takes the lock of the directory for it, which somebody may hold
 * who waits for an answer of ours. Left alone are open files, and directories: a process could not
 * say any more where it is when the kernel drops the name of its current one.
 */
import type { Ino } from "../../cluster/base/ids.js";
import type { Clock, Timer } from "../../cluster/platform/ports.js";
import type { KernelCache } from "./kernel-cache.js";
import type { Node } from "./node.js";
import type { NodeTable } from "./node-table.js";

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
  private timer: Timer | undefined;

  /** `inodesMax`: so many may be in the table. */
  constructor(
    private readonly table: Pick<NodeTable, "all" | "peek" | "size">,
    private readonly kernel: Pick<KernelCache, "canInvalidate" | "forgetName">,
    private readonly clock: Clock,
    private readonly inodesMax: number,
  ) {}

  /** There may be too many. */
  look(): void {
    if (this.running || this.stopped || this.table.size <= this.inodesMax) return;
    if (!this.kernel.canInvalidate) return;
    this.running = true;
    void this.run();
  }
  stop(): void {
    this.stopped = true;
    this.timer?.cancel();
  }

  private async run(): Promise<void> {
    const count = this.table.size - Math.floor(this.inodesMax * (1 - PART));
    const asked: Node[] = [];
    for (const { parent, name, node } of this.names()) {
      await this.kernel.forgetName(parent, name);
      if (this.stopped) return;
      if (asked.push(node) >= count) break;
    }
    this.timer = this.clock.setTimer(PAUSE_MS, () => {
      const kept = asked.filter((node) => node.lookups > 0).length;
      const isVain = asked.length < count || 2 * kept >= asked.length;
      this.timer = this.clock.setTimer(isVain ? REST_MS : 0, () => {
        this.running = false;
        this.look();
      });
    });
  }

  /** Of unused files. The table may change between two of them. */
  private *names(): Generator<Name> {
    const looked = new Set<Ino>();
    for (const file of this.table.all()) {
      const { parent } = file;
      if (!isUnused(file) || looked.has(parent)) continue;
      looked.add(parent);
      const directory = this.table.peek(parent);
      const names = directory?.names;
      for (const [key, ino] of names ?? []) {
        // What was known of the directory may have been thrown away meanwhile.
        if (directory?.names !== names) break;
        const node = ino === 0 ? undefined : this.table.peek(ino);
        if (node !== undefined && isUnused(node)) {
          yield { parent, name: Buffer.from(key, "latin1"), node };
        }
      }
    }
  }
}

/** A file that the kernel knows, and nobody works with. */
function isUnused(node: Node): boolean {
  if (node.lookups === 0 || node.inode === undefined || node.isDirectory) return false;
  return node.opens === 0 && node.pins === 0 && (node.data?.clean ?? true);
}
