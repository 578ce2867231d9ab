/**
 * What the metadata store must be true to, whatever happened: no journal batch is ever written
 * twice, the pages with the journal after the checkpoint are exactly what all batches ever written
 * come to, and directories have the recursive totals that a walk finds.
 */
import { strict as assert } from "node:assert";
import { isDeepStrictEqual } from "node:util";
import { silentLogger } from "../../cluster/base/log.js";
import { JOURNAL_PATH, journalSequence } from "../../cluster/zk/schema.js";
import type { Coordination } from "../../cluster/zk/coordination.js";
import type { Clock } from "../../cluster/platform/ports.js";
import { decodeBatch } from "../../mds/core/journal.js";
import type { PageBody } from "../../mds/core/page.js";
import { replayMetadata } from "../../mds/replay.js";
import { MemoryMetadata } from "../../mds/store/memory-store.js";
import { ZkReader } from "../../mds/store/zk-store.js";
import { wrongTotals } from "../support/totals-check.js";
import type { SimZooKeeper } from "./sim-zookeeper.js";
import type { Transaction } from "./zk-tree.js";

export class JournalCheck {
  /** When a name of this inode was first in the journal: before, no other session may see it. */
  readonly namedAt = new Map<number, number>();
  /** Its first name. */
  readonly firstName = new Map<number, string>();
  readonly batches = new Map<number, Buffer>();
  fault: string | undefined;

  constructor(private readonly zk: SimZooKeeper) {
    zk.listeners.push((transaction) => this.onCommit(transaction));
  }

  private onCommit({ changes }: Transaction): void {
    for (const change of changes) {
      if (change.change !== "create" || !change.path.startsWith(`${JOURNAL_PATH}/`)) continue;
      const seq = journalSequence(change.path.slice(JOURNAL_PATH.length + 1));
      if (this.batches.has(seq)) this.fault ??= `journal batch ${seq} was written twice`;
      const data = Buffer.from(change.data);
      this.batches.set(seq, data);
      for (const delta of decodeBatch(seq, data).records.flat()) {
        if (delta.d !== "dentryPut" || this.namedAt.has(delta.entry.ino)) continue;
        this.namedAt.set(delta.entry.ino, this.zk.clock.now);
        this.firstName.set(delta.entry.ino, delta.entry.name.toString());
      }
    }
  }

  /** With a quiet leader: what a new one would begin with is what was journaled. */
  async compare(coordination: Coordination, clock: Clock): Promise<void> {
    assert.equal(this.fault, undefined, this.fault);
    const options = { cacheBytes: 2 ** 30, tail: new Map<number, Buffer>(), logger: silentLogger };
    const stored = await replayMetadata(new ZkReader(coordination, clock), options);
    const memory = new MemoryMetadata();
    for (const [seq, data] of this.batches) if (seq <= stored.last) memory.batches.set(seq, data);
    const whole = await replayMetadata(memory.lead(), options);
    const keys = [...whole.metadata.cache.dirty.keys()];
    await stored.loader.load(keys);
    for (const key of keys) {
      const expected = plain(whole.metadata.cache.get(key).body);
      const found = plain(stored.metadata.cache.get(key).body);
      if (isDeepStrictEqual(found, expected)) continue;
      assert.deepEqual(found, expected, `page ${key} is not what the journal says`);
    }
    const { metadata, loader } = stored;
    const wrong = await wrongTotals(metadata, (read) => loader.run(read));
    assert.deepEqual(wrong, [], "recursive totals are not those of a walk");
  }
}

/** Without what is only derived. */
function plain(body: PageBody): object {
  const {
    sorted: _sorted,
    cookies: _cookies,
    dropped: _dropped,
    ...rest
  } = body as PageBody & {
    sorted?: unknown;
    cookies?: unknown;
    dropped?: unknown;
  };
  return rest;
}
