/**
 * Metadata in memory: the twin of zk-store.ts for tests and the simulator. Handles of several terms
 * share one `MemoryMetadata`.
 */
import { DssError } from "../../cluster/base/errors.js";
import type { MetadataStore, PageChange } from "./metadata-store.js";

/** What survives the crash of a leader. */
export class MemoryMetadata {
  readonly pages = new Map<string, Buffer>();
  readonly batches = new Map<number, Buffer>();
  checkpoint = 0;
  term = 0;

  /** Begins a term: handles of earlier ones can write no more. */
  lead(pause: () => Promise<void> = () => Promise.resolve()): MetadataStore {
    return new MemoryStore(this, ++this.term, pause);
  }
}

class MemoryStore implements MetadataStore {
  constructor(
    private readonly data: MemoryMetadata,
    private readonly term: number,
    private readonly pause: () => Promise<void>,
  ) {}

  async loadPage(key: string): Promise<Buffer | undefined> {
    await this.pause();
    return this.data.pages.get(key);
  }
  async journal(): Promise<number[]> {
    await this.pause();
    return [...this.data.batches.keys()].sort((a, b) => a - b);
  }
  async readBatch(seq: number): Promise<Buffer | undefined> {
    await this.pause();
    return this.data.batches.get(seq);
  }
  placeOfBatch(): string {
    return "memory";
  }
  async checkpoint(): Promise<number> {
    await this.pause();
    return this.data.checkpoint;
  }
  sync(): Promise<void> {
    return this.pause();
  }

  async appendBatch(seq: number, data: Buffer): Promise<void> {
    await this.begin();
    const known = this.data.batches.get(seq);
    if (known !== undefined && !known.equals(data)) {
      throw new DssError("Fenced", `journal batch ${seq} was written by another leader`);
    }
    this.data.batches.set(seq, Buffer.from(data));
  }
  async writePages(changes: readonly PageChange[]): Promise<void> {
    await this.begin();
    for (const { key, data } of changes) {
      if (data === undefined) this.data.pages.delete(key);
      else this.data.pages.set(key, Buffer.from(data));
    }
  }
  async writeCheckpoint(seq: number): Promise<void> {
    await this.begin();
    this.data.checkpoint = seq;
  }
  async trim(seqs: readonly number[]): Promise<void> {
    await this.begin();
    for (const seq of seqs) this.data.batches.delete(seq);
  }
  confirm(): Promise<void> {
    return this.begin();
  }

  private async begin(): Promise<void> {
    await this.pause();
    if (this.data.term !== this.term) {
      throw new DssError("Fenced", `term ${this.term} is over: term ${this.data.term} leads`);
    }
  }
}
