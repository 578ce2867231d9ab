/** Many files, in directories of a fixed size or all in one; more are added as a table grows. */
import { join } from "node:path";
import { Prng } from "../../../cluster/base/prng.js";
import type { Growth } from "./growth.js";

/** Names that one program is given at once. */
const BATCH = 20_000;
const SEED = 20_261_122;

export interface TreeShape {
  readonly folder: string;
  readonly filesPerDirectory: number;
  /** Of each file. */
  readonly bytes: number;
}

export class FileTree {
  /** How many files there are: numbers from 0. */
  count = 0;
  private readonly random = new Prng(SEED);

  constructor(
    private readonly growth: Growth,
    private readonly shape: TreeShape,
  ) {}

  path(index: number): string {
    const { folder, filesPerDirectory } = this.shape;
    return join(folder, `d${Math.floor(index / filesPerDirectory)}`, `f${index}`);
  }

  paths(first: number, count: number): string[] {
    return Array.from({ length: count }, (_, i) => this.path(first + i));
  }

  /** Different files, drawn at random: so many, or all. */
  draw(count: number): string[] {
    const drawn = new Set<number>();
    while (drawn.size < Math.min(count, this.count)) {
      drawn.add(this.random.int(0, this.count - 1));
    }
    return [...drawn].map((index) => this.path(index));
  }

  /** Creates files until there are so many. */
  async fill(count: number): Promise<void> {
    while (this.count < count) {
      const next = Math.min(BATCH, count - this.count);
      const paths = this.paths(this.count, next);
      await this.growth.files({ do: "create", paths, bytes: this.shape.bytes });
      this.count += next;
    }
  }

  /** Creates so many more files and deletes them again; of both how many a second. */
  async createAndDelete(count: number): Promise<[number, number]> {
    const paths = this.paths(this.count, count);
    const create = await this.growth.fileMs({ do: "create", paths, bytes: this.shape.bytes });
    const remove = await this.growth.fileMs({ do: "delete", paths });
    return [perSecond(count, create), perSecond(count, remove)];
  }
}

export const perSecond = (count: number, ms: number): number => count / (ms / 1000);
