/**
 * Where metadata is durable: journal batches, pages and the checkpoint mark. zk-store.ts keeps them
 * in ZooKeeper, memory-store.ts in memory (tests, simulator); one test suite runs over both.
 *
 * Writes belong to a leader's term: once a later term has begun they fail with Fenced and change
 * nothing. Writes resolve when they are durable; after a lost connection the store reads back what
 * came of them before it answers, so an outcome is never unknown.
 */
export interface PageChange {
  key: string;
  /** undefined removes the page; one that is not there is no error. */
  data: Buffer | undefined;
}

/**
 * Bytes of one page at most, and of all pages of one `writePages`: below ZooKeeper's limit of a
 * request.
 */
export const WRITE_BYTES_MAX = 900_000;

export interface MetadataReader {
  loadPage(key: string): Promise<Buffer | undefined>;
  /** Numbers of the batches there are, ascending. */
  journal(): Promise<number[]>;
  readBatch(seq: number): Promise<Buffer | undefined>;
  /** Where the batch is, for people. */
  placeOfBatch(seq: number): string;
  /** Batches up to here are in the pages; 0 at first. */
  checkpoint(): Promise<number>;
  /** A round trip through the store; reads that follow see everything written before. */
  sync(): Promise<void>;
}

export interface MetadataStore extends MetadataReader {
  /** Adds batch `seq`; Fenced too when it exists with other bytes. */
  appendBatch(seq: number, data: Buffer): Promise<void>;
  /** All or nothing. */
  writePages(changes: readonly PageChange[]): Promise<void>;
  writeCheckpoint(seq: number): Promise<void>;
  /** Removes these batches; those already gone are no error. */
  trim(seqs: readonly number[]): Promise<void>;
  /** Proves that this term still leads: Fenced when it does not. */
  confirm(): Promise<void>;
}
