/**
 * Metadata in ZooKeeper (cluster/zk/schema.ts names the znodes). Every write is a `multi` that
 * begins with a check of the term znode's version, so a leader that has been succeeded changes
 * nothing.
 */
import { DssError, isDssError } from "../../cluster/base/errors.js";
import { faults } from "../../cluster/base/faults.js";
import type { Clock } from "../../cluster/platform/ports.js";
import {
  ANY_VERSION,
  MultiError,
  type Coordination,
  type CoordinationOp,
} from "../../cluster/zk/coordination.js";
import {
  JOURNAL_PATH,
  TERM_PATH,
  journalPath,
  journalSequence,
  pagePath,
} from "../../cluster/zk/schema.js";
import type { MetadataReader, MetadataStore, PageChange } from "./metadata-store.js";

/** The page-like znode that holds the checkpoint mark. */
const CHECKPOINT = "checkpoint";
/** Pause before a write whose outcome is unknown is looked up or tried again. */
const RETRY_MS = 100;
/** Operations of one multi that trims the journal. */
const TRIM_OPS = 200;

export class ZkReader implements MetadataReader {
  constructor(
    protected readonly zk: Coordination,
    protected readonly clock: Clock,
  ) {}
  async loadPage(key: string): Promise<Buffer | undefined> {
    return (await this.again(() => this.zk.get(pagePath(key))))?.data;
  }
  async journal(): Promise<number[]> {
    const children = await this.again(() => this.zk.children(JOURNAL_PATH));
    return (children?.names ?? []).map(journalSequence).sort((a, b) => a - b);
  }
  async readBatch(seq: number): Promise<Buffer | undefined> {
    return (await this.again(() => this.zk.get(journalPath(seq))))?.data;
  }
  placeOfBatch(seq: number): string {
    return `znode ${journalPath(seq)}`;
  }
  async checkpoint(): Promise<number> {
    const text = (await this.loadPage(CHECKPOINT))?.toString("latin1") ?? "0";
    const seq = Number(text);
    if (!Number.isSafeInteger(seq) || seq < 0) {
      throw new DssError("Corrupt", `the checkpoint mark reads ${JSON.stringify(text)}`);
    }
    return seq;
  }
  sync(): Promise<void> {
    return this.again(() => this.zk.sync());
  }
  /** Reads are harmless to repeat: they wait through lost connections until the session ends. */
  protected async again<T>(read: () => Promise<T>): Promise<T> {
    for (;;) {
      try {
        return await read();
      } catch (error) {
        if (!isDssError(error) || error.retry !== "same" || error.code === "ShuttingDown") {
          throw error;
        }
        await this.pause();
      }
    }
  }
  protected pause(): Promise<void> {
    return new Promise((resolve) => void this.clock.setTimer(RETRY_MS, resolve));
  }
}

export class ZkStore extends ZkReader implements MetadataStore {
  /** Pages known to exist (true) or not, so that a write knows whether to create or to set. */
  private readonly present = new Map<string, boolean>();

  /** `termVersion`: version of the term znode that this leader wrote. */
  constructor(
    zk: Coordination,
    clock: Clock,
    private readonly termVersion: number,
  ) {
    super(zk, clock);
  }

  override async loadPage(key: string): Promise<Buffer | undefined> {
    const data = await super.loadPage(key);
    this.remember(key, data !== undefined);
    return data;
  }

  async appendBatch(seq: number, data: Buffer): Promise<void> {
    const path = journalPath(seq);
    const outcome = await this.write([{ op: "create", path, data }], async () => {
      await this.sync();
      const found = await this.readBatch(seq);
      if (found === undefined) return "absent";
      if (found.equals(data)) return "done"; // An earlier try of ours.
      throw new DssError("Fenced", `journal batch ${seq} was written by another leader`);
    });
    if (outcome === "changed") throw new DssError("Disk", `ZooKeeper refuses ${path}`);
  }

  async writePages(changes: readonly PageChange[]): Promise<void> {
    for (;;) {
      const ops: CoordinationOp[] = [];
      for (const { key, data } of changes) {
        const path = pagePath(key);
        const exists = this.present.get(key) ?? (await this.look(key));
        if (data === undefined) {
          if (exists) ops.push({ op: "remove", path, version: ANY_VERSION });
        } else if (exists) ops.push({ op: "set", path, data, version: ANY_VERSION });
        else ops.push({ op: "create", path, data });
      }
      // Pages are written whole and only by this leader: doing it twice is harmless.
      const outcome = await this.write(ops, () => Promise.resolve("absent"));
      for (const { key, data } of changes) {
        if (outcome === "done") this.remember(key, data !== undefined);
        else this.present.delete(key);
      }
      if (outcome === "done") return;
    }
  }
  private async look(key: string): Promise<boolean> {
    await this.loadPage(key);
    return this.present.get(key) ?? false;
  }
  private remember(key: string, exists: boolean): void {
    // A bound on memory; what is forgotten is looked up.
    if (this.present.size > PRESENT_MAX) this.present.clear();
    this.present.set(key, exists);
  }

  async writeCheckpoint(seq: number): Promise<void> {
    await this.writePages([{ key: CHECKPOINT, data: Buffer.from(String(seq), "latin1") }]);
  }

  async trim(seqs: readonly number[]): Promise<void> {
    const wanted = [...new Set(seqs)];
    for (let at = 0; at < wanted.length; at += TRIM_OPS) {
      const part = wanted.slice(at, at + TRIM_OPS);
      for (;;) {
        const there = new Set(await this.journal());
        const ops = part
          .filter((seq) => there.has(seq))
          .map((seq): CoordinationOp => ({
            op: "remove",
            path: journalPath(seq),
            version: ANY_VERSION,
          }));
        if (ops.length === 0) break;
        if ((await this.write(ops, () => Promise.resolve("absent"))) === "done") break;
      }
    }
  }

  async confirm(): Promise<void> {
    await this.write([], () => Promise.resolve("absent"));
  }

  /**
   * Runs the operations under the term. `lookUp` tells, after a lost connection, whether they took
   * effect; "absent" tries again. Resolves to "changed" when an operation met a znode state other
   * than assumed.
   */
  private async write(
    ops: readonly CoordinationOp[],
    lookUp: () => Promise<"done" | "absent">,
  ): Promise<"done" | "changed"> {
    const version = faults.skipTermCheck ? ANY_VERSION : this.termVersion;
    const check: CoordinationOp = { op: "check", path: TERM_PATH, version };
    for (;;) {
      try {
        await this.zk.multi([check, ...ops]);
        return "done";
      } catch (error) {
        if (error instanceof MultiError) {
          if (error.index === 0) {
            throw new DssError("Fenced", "another metadata server leads now", { cause: error });
          }
          return (await lookUp()) === "done" ? "done" : "changed";
        }
        if (!isDssError(error) || error.retry !== "same" || error.code === "ShuttingDown") {
          throw error;
        }
        await this.pause();
        if ((await lookUp()) === "done") return "done";
      }
    }
  }
}
const PRESENT_MAX = 200_000;
