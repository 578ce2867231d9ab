/**
 * The stores under test behind one face: `wait` lets time pass until a promise settles (the
 * simulated disk needs its clock moved), `reopen` closes and opens again where that means
 * something.
 */
import { rmSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { blockChecksums } from "../../../../cluster/base/checksum.js";
import { silentLogger } from "../../../../cluster/base/log.js";
import { Prng } from "../../../../cluster/base/prng.js";
import { openNodeDisk } from "../../../../cluster/platform/node-disk.js";
import { nodeClock, nodeRandom } from "../../../../cluster/platform/node.js";
import type { RandomSource } from "../../../../cluster/platform/ports.js";
import {
  OpKind,
  type ChunkStore,
  type Durable,
  type Transaction,
} from "../../../../osd/store/chunk-store.js";
import { FileStore } from "../../../../osd/store/file-store.js";
import { MemoryStore } from "../../../../osd/store/memory-store.js";
import type { StoreOptions } from "../../../../osd/store/options.js";
import { SimClock } from "../../../sim/sim-clock.js";
import { SimDisk } from "../../../sim/sim-disk.js";

/** Small, so that segments wrap, overlays crowd and caches evict within a few operations. */
export const TINY: Partial<StoreOptions> = {
  walSegmentBytes: 256 * 1024,
  walSegments: 3,
  dataFileBytes: 1024 * 1024,
  directWriteBytes: 16 * 1024,
  overlayBytesMax: 128 * 1024,
  flushBytes: 32 * 1024,
  cacheBytes: 4 * 1024,
  checkpointObjects: 24,
  checkpointEntries: 100,
  checkpointMs: 40,
  syncReadBytes: 4096,
  reserveBytes: 64 * 1024,
};

export interface Harness {
  store: ChunkStore;
  wait<T>(promise: Promise<T>): Promise<T>;
  /** Closes and opens; the memory store stays as it is. */
  reopen(): Promise<void>;
  end(): Promise<void>;
}

export const prngSource = (random: Prng): RandomSource => ({
  u32: () => random.u32(),
  bytes: (length) => random.bytes(length),
});

export async function memoryHarness(): Promise<Harness> {
  const store = new MemoryStore(nodeClock);
  return {
    store,
    wait: (promise) => promise,
    reopen: async () => undefined,
    end: () => store.close(),
  };
}

export async function fileHarness(): Promise<Harness> {
  const directory = await mkdtemp(join(tmpdir(), "dss-store-"));
  const open = async (): Promise<FileStore> =>
    FileStore.open(await openNodeDisk(directory), {
      osdId: 3,
      options: TINY,
      logger: silentLogger,
      clock: nodeClock,
      random: nodeRandom,
    });
  const harness: Harness = {
    store: await open(),
    wait: (promise) => promise,
    reopen: async () => {
      await harness.store.close();
      harness.store = await open();
    },
    end: async () => {
      await harness.store.close();
      rmSync(directory, { recursive: true });
    },
  };
  return harness;
}

/** A store on a simulated disk; `crash` cuts the power and opens what is left. */
export class SimHarness implements Harness {
  readonly clock = new SimClock();
  readonly disk: SimDisk;
  store!: FileStore;
  /** Set: damage of the structure is tolerated, and marks its PGs. */
  damagedMeta: Buffer | undefined;
  private incarnation = 0;

  constructor(
    readonly random: Prng,
    readonly options: Partial<StoreOptions> = TINY,
    capacityBytes?: number,
  ) {
    const own = random.fork();
    const capacity = capacityBytes === undefined ? {} : { capacityBytes };
    this.disk = new SimDisk({
      random: own,
      schedule: (ms, run) => void this.clock.schedule(ms, run),
      delayMs: 0.4,
      ...capacity,
    });
  }

  async open(): Promise<FileStore> {
    const incarnation = ++this.incarnation;
    this.store = await this.wait(
      FileStore.open(this.disk.attach(), {
        osdId: 3,
        options: this.options,
        logger: silentLogger,
        clock: this.clock.forNode(() => this.incarnation === incarnation),
        random: prngSource(this.random.fork()),
        ...(this.damagedMeta && { damagedMeta: this.damagedMeta }),
      }),
    );
    return this.store;
  }

  async wait<T>(promise: Promise<T>): Promise<T> {
    let settled = false;
    promise.then(
      () => (settled = true),
      () => (settled = true),
    );
    if (!(await this.clock.runUntil(() => settled, 60_000))) throw new Error("the store is stuck");
    return promise;
  }

  /** The power is cut; nothing of the running store answers any more. */
  cut(): void {
    this.incarnation++;
    this.disk.crash();
  }
  /** The process is killed: what it wrote stays in the page cache, durable or not. */
  kill(): void {
    this.incarnation++;
    this.disk.kill();
  }
  async crash(): Promise<FileStore> {
    this.cut();
    return this.open();
  }
  async reopen(): Promise<void> {
    await this.wait(this.store.close());
    await this.open();
  }
  async end(): Promise<void> {
    await this.wait(this.store.close());
  }
}

export async function simHarness(seed = 1): Promise<Harness> {
  const harness = new SimHarness(new Prng(seed));
  await harness.open();
  return harness;
}

/** A promise of a call that reports through a callback. */
export function durable(call: (done: Durable) => void): Promise<void> {
  return new Promise((resolve, reject) => call((error) => (error ? reject(error) : resolve())));
}

export function transaction(
  fields: Partial<Transaction> & Pick<Transaction, "pg" | "version" | "object">,
): Transaction {
  const data = fields.data ?? [];
  const bytes = Buffer.concat(data);
  return {
    kind: OpKind.write,
    client: 0,
    sequence: 0,
    floor: 0,
    size: (fields.offset ?? 0) + bytes.length,
    offset: 0,
    length: 0,
    data,
    sums: blockChecksums(bytes),
    mtimeNs: 7n,
    truncateSeq: 0,
    snapSeq: 0,
    ...fields,
  };
}
