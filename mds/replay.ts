/**
 * Metadata from the store: the pages, and the journal since the checkpoint applied to them. A batch
 * that is missing or damaged
 * stops it: going on would lose acknowledged changes silently.
 */
import { DssError, isDssError } from "../cluster/base/errors.js";
import type { Logger } from "../cluster/base/log.js";
import type { Delta } from "./core/delta.js";
import { decodeBatch, type Batch } from "./core/journal.js";
import { Metadata } from "./core/metadata.js";
import { PageFault } from "./core/page-cache.js";
import { SUPER_KEY } from "./core/page.js";
import { PageLoader } from "./page-loader.js";
import type { MetadataReader } from "./store/metadata-store.js";

/** Batches read ahead of the one that is applied. */
const READ_AHEAD = 32;

export interface Replayed {
  metadata: Metadata;
  loader: PageLoader;
  /** The newest batch. */
  last: number;
  checkpoint: number;
  /** Batches in the store. */
  batches: number[];
}

/** `tail`: batches that a standby has read already. */
export async function replayMetadata(
  store: MetadataReader,
  options: { cacheBytes: number; tail: ReadonlyMap<number, Buffer>; logger: Logger },
): Promise<Replayed> {
  await store.sync();
  const checkpoint = await store.checkpoint();
  const batches = await store.journal();
  const wanted = batches.filter((seq) => seq > checkpoint);
  wanted.forEach((seq, index) => {
    const expected = checkpoint + 1 + index;
    if (seq !== expected) {
      throw damaged(store, expected, `journal batch ${expected} is missing (the next is ${seq})`);
    }
  });
  const metadata = new Metadata(options.cacheBytes);
  const loader = new PageLoader(metadata.cache, store);
  await loadResident(metadata, loader);
  const reads = new Map<number, Promise<Buffer | undefined>>();
  const read = (seq: number): Promise<Buffer | undefined> => {
    const known = options.tail.get(seq);
    return known === undefined ? store.readBatch(seq) : Promise.resolve(known);
  };
  let term = 0;
  for (const [index, seq] of wanted.entries()) {
    for (const ahead of wanted.slice(index, index + READ_AHEAD)) {
      if (!reads.has(ahead)) {
        const reading = read(ahead);
        reading.catch(() => undefined); // Reported where it is awaited.
        reads.set(ahead, reading);
      }
    }
    const data = await reads.get(seq);
    reads.delete(seq);
    if (data === undefined) throw damaged(store, seq, `journal batch ${seq} is missing`);
    const batch = decoded(store, seq, data);
    if (batch.term < term) {
      throw damaged(store, seq, `journal batch ${seq} is of term ${batch.term} after ${term}`);
    }
    term = batch.term;
    await applyBatch(metadata, loader, batch);
  }
  await loadResident(metadata, loader);
  const last = wanted.at(-1) ?? checkpoint;
  options.logger.info({ checkpoint, last, batches: wanted.length }, "metadata replayed");
  return { metadata, loader, last, checkpoint, batches };
}

/** Going on without it would lose acknowledged changes, and every batch after it builds on it. */
function damaged(store: MetadataReader, seq: number, what: string, cause?: unknown): DssError {
  return new DssError("Corrupt", `${what}: ${store.placeOfBatch(seq)}`, {
    ...(cause === undefined ? {} : { cause }),
    hint: "metadata would be lost: restore ZooKeeper's data before starting a metadata server",
  });
}

function decoded(store: MetadataReader, seq: number, data: Buffer): Batch {
  try {
    return decodeBatch(seq, data);
  } catch (error) {
    if (!isDssError(error, "Corrupt") && !isDssError(error, "Malformed")) throw error;
    throw damaged(store, seq, error.message, error);
  }
}

async function applyBatch(metadata: Metadata, loader: PageLoader, batch: Batch): Promise<void> {
  const deltas: Delta[] = batch.records.flat();
  // Most pages that a batch needs are known before it is applied: ask for them together.
  const missing = new Set<string>();
  for (const delta of deltas) {
    try {
      metadata.require(delta);
    } catch (error) {
      if (!(error instanceof PageFault)) throw error;
      for (const key of error.keys) missing.add(key);
    }
  }
  await loader.load([...missing]);
  for (const delta of deltas) await loader.run(() => metadata.apply(delta, batch.seq));
}

/** Counters, sessions, volumes and the purge queue stay in memory. */
async function loadResident(metadata: Metadata, loader: PageLoader): Promise<void> {
  const { cache } = metadata;
  const pins = new Set<string>();
  await loader.load([SUPER_KEY], pins);
  await loader.load(metadata.residentKeys(), pins);
  for (const key of pins) cache.setResident(cache.get(key), true);
  loader.release(pins);
}
