/** The disks under simulated OSDs. */
import { silentLogger } from "../../cluster/base/log.js";
import type { Prng } from "../../cluster/base/prng.js";
import { UNKNOWN_META } from "../../osd/pg-record.js";
import { FileStore } from "../../osd/store/file-store.js";
import { MemoryStore } from "../../osd/store/memory-store.js";
import type { StoreOptions } from "../../osd/store/options.js";
import type { DiskFactory } from "./cluster-world.js";
import { SimDisk } from "./sim-disk.js";

/** A store that forgets nothing in a crash: for faults of the protocol alone. */
export const memoryDisk: DiskFactory = (osd, _random, clock) => {
  const uuid = `00000000-0000-4000-8000-00000000000${osd}`;
  const store = new MemoryStore(
    clock.forNode(() => true),
    uuid,
  );
  // A program that ends in good order closes it; the next one finds it as it was.
  const handle = new Proxy(store, {
    get: (target, key): unknown => {
      if (key === "close") return () => Promise.resolve();
      const value: unknown = Reflect.get(target, key);
      return typeof value === "function" ? (value.bind(target) as unknown) : value;
    },
  });
  return {
    open: () => Promise.resolve(handle),
    crash: () => undefined, // What was applied is there after the restart.
  };
};

/** Where data-files.ts keeps the bytes of objects, and wal.ts its segments. */
const PREFIXES = { data: "data/", log: "wal/" };

/** Small enough that segments are recycled and checkpoints happen all the time. */
function smallStore(random: Prng): Partial<StoreOptions> {
  return {
    walSegmentBytes: 256 * 1024,
    walSegments: random.int(2, 4),
    dataFileBytes: 1024 * 1024,
    directWriteBytes: random.pick([4096, 16_384, 65_536]),
    overlayBytesMax: random.pick([64, 256]) * 1024,
    flushBytes: 16_384,
    cacheBytes: random.pick([0, 4096, 65_536]),
    checkpointObjects: random.int(4, 64),
    checkpointEntries: random.int(16, 256),
    checkpointMs: random.int(20, 2_000),
    reserveBytes: 65_536,
  };
}

/**
 * The file store on a simulated disk that loses and tears what was not synced when the power is
 * cut.
 */
export const simulatedDisk: DiskFactory = (osd, random, clock) => {
  const disk = new SimDisk({
    random: random.fork(),
    schedule: (ms, run) => void clock.schedule(ms, run),
    delayMs: random.pick([0.1, 0.5, 3]),
    // A slow index holds the log's segments back, until writers wait for it.
    ...(random.chance(0.5) ? { commitMs: 400 } : {}),
  });
  const options = smallStore(random);
  return {
    open: (nodeClock) => {
      const source = random.fork();
      return FileStore.open(disk.attach(), {
        osdId: osd,
        options,
        logger: silentLogger,
        damagedMeta: UNKNOWN_META, // As osd/main.ts opens it.
        clock: nodeClock,
        random: { u32: () => source.u32(), bytes: (length) => source.bytes(length) },
      });
    },
    crash: () => disk.crash(),
    rot: (where) => {
      return where === "index" ? disk.rotIndex(random) : disk.rot(PREFIXES[where], random);
    },
  };
};
