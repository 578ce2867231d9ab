/**
 * What a member lacks of one PG: objects that its log names but whose bytes it has not received,
 * and how far backfill has come. The durable form is the PG's meta in the store.
 *
 * Invariant: the durable form names at least what is lacking. It is written before anything new is
 * lacking, and again when half of it has arrived, or all.
 *
 * Owner of the state: the PlacementGroup.
 */
import type { PgId } from "../cluster/base/ids.js";
import { msgpack } from "../cluster/wire/registry.js";
import { NEVER_SCRUBBED, type ScrubStamps } from "./core/scrub.js";
import { compareVersions, VERSION_ZERO, type Version } from "./core/version.js";
import type { ChunkStore, Durable } from "./store/chunk-store.js";

interface PgMeta {
  missing: string[];
  cursor?: string;
  base?: Version;
  scrub?: ScrubRecord;
}

/** When the PG was scrubbed, and where the scrub under way has come to. */
export interface ScrubRecord {
  stamps: ScrubStamps;
  progress?: {
    deep: boolean;
    startedMs: number;
    cursor: string;
    done: number;
    found: number;
    left: number;
  };
}
const metaCodec = msgpack<PgMeta>();
export const EMPTY_META = metaCodec.encode({ missing: [] });
/** Of a PG that begins with backfill. */
export const UNKNOWN_META = metaCodec.encode({ missing: [], cursor: "" });

export class PgRecord {
  /** Nothing lacks: what every entry that arrives looks at. */
  whole = true;
  readonly missing = new Set<string>();
  /** Objects with greater names are not there; undefined: backfill is done. */
  cursor: string | undefined;
  /**
   * Where the log ended before entries were taken over whose objects may be missing. For an in-sync
   * member: it had every acknowledged write then.
   */
  base: Version = VERSION_ZERO;
  scrub: ScrubRecord = { stamps: NEVER_SCRUBBED };
  private written = 0;

  constructor(
    private readonly id: PgId,
    private readonly store: ChunkStore,
  ) {
    this.load();
  }

  load(): void {
    const meta = this.store.pgInfo(this.id)?.meta;
    const known: PgMeta = meta ? metaCodec.decode(meta) : { missing: [] };
    const { missing, cursor, base, scrub } = known;
    this.missing.clear();
    for (const object of missing) this.missing.add(object);
    this.cursor = cursor;
    this.base = base ?? VERSION_ZERO;
    this.scrub = scrub ?? { stamps: NEVER_SCRUBBED };
    this.written = missing.length;
    this.refresh();
  }

  lacks(object: string): boolean {
    if (this.whole) return false;
    return this.missing.has(object) || (this.cursor !== undefined && object > this.cursor);
  }

  /** Takes effect at once; durable when `done` runs. */
  note(objects: readonly string[], base: Version, done: Durable): void {
    if (this.missing.size === 0 || compareVersions(base, this.base) < 0) this.base = base;
    for (const object of objects) this.missing.add(object);
    this.write(done);
  }
  startOver(done: Durable): void {
    this.missing.clear();
    this.cursor = "";
    this.write(done);
  }
  /** A step of backfill. */
  advance(cursor: string | undefined, missing: readonly string[], done: Durable): void {
    for (const object of missing) this.missing.add(object);
    this.cursor = cursor;
    this.write(done);
  }
  /** The object's bytes were handed to the store just now. */
  arrived(object: string, done: Durable): void {
    const isNews = this.missing.delete(object);
    if (isNews && this.missing.size * 2 <= this.written) this.write(done);
    else done();
  }

  noteScrub(scrub: ScrubRecord, done: Durable): void {
    this.scrub = scrub;
    this.write(done);
  }

  private write(done: Durable): void {
    this.refresh();
    this.written = this.missing.size;
    const meta: PgMeta = { missing: [...this.missing], base: this.base };
    if (this.scrub.stamps !== NEVER_SCRUBBED || this.scrub.progress) meta.scrub = this.scrub;
    if (this.cursor !== undefined) meta.cursor = this.cursor;
    this.store.setPgMeta(this.id, metaCodec.encode(meta), done);
  }
  private refresh(): void {
    this.whole = this.missing.size === 0 && this.cursor === undefined;
  }
}
