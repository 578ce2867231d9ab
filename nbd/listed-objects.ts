/**
 * Objects for a look at a whole volume: which of them there are is asked of the placement groups
 * once, when the first object of a volume is asked about; one of which nothing was there then has
 * no extents, and nobody is asked. A huge volume that is mostly holes is seen in seconds.
 *
 * Only for reading, and only where the state of that moment will do: what is created later is not
 * seen by `extents`. Owner of the lists, 8 bytes an object.
 */
import { assert } from "../cluster/base/assert.js";
import { DssError } from "../cluster/base/errors.js";
import { pgId, type Epoch, type PgId, type PoolId } from "../cluster/base/ids.js";
import { listedFrom, objectIndex } from "../cluster/base/object-name.js";
import { inParallel } from "../cluster/base/parallel.js";
import { poolOf, type MapSource } from "../cluster/map/cluster-map.js";
import type {
  AccessOptions,
  ObjectAccess,
  ObjectAddress,
  ObjectContent,
  ObjectListing,
  ObjectStat,
} from "../osd/client/object-access.js";

/** Placement groups asked at a time, and objects in one answer. */
const PARALLEL = 16;
const STEP = 4_096;

type Objects = ObjectAccess & ObjectListing & { close(): void };
type Extents = Awaited<ReturnType<ObjectAccess["extents"]>>;
const ABSENT: Extents = Object.freeze({ exists: false, size: 0, extents: [] });

export class ListedObjects implements ObjectAccess {
  /**
   * Indexes at which there is anything of a family of volumes, ascending: of a volume, of what it
   * was at snapshots, of those that it was cloned from, in which the OSD looks for what is missing.
   */
  private readonly present = new Map<string, Promise<Float64Array>>();

  constructor(
    private readonly objects: Objects,
    private readonly maps: MapSource,
  ) {}

  async extents(
    address: ObjectAddress,
    offset: number,
    length: number,
    options: AccessOptions,
  ): Promise<Extents> {
    const { pool, object } = address;
    const dot = object.indexOf(".");
    assert(dot > 0, `${object} is no object of a volume`);
    const family = object.slice(0, dot);
    const key = `${pool}/${family}`;
    let listing = this.present.get(key);
    if (listing === undefined) {
      listing = this.list(pool, listedFrom(family), options.minEpoch);
      this.present.set(key, listing);
    }
    if (!includes(await listing, objectIndex(object))) return ABSENT;
    return await this.objects.extents(address, offset, length, options);
  }

  private async list(pool: PoolId, from: string, minEpoch: Epoch): Promise<Float64Array> {
    const known = poolOf(this.maps.current(), pool);
    if (known === undefined) throw new DssError("NotFound", `pool ${pool} is not there any more`);
    const groups = Array.from({ length: known.pgCount }, (_, index) => pgId(pool, index));
    const found = new Set<number>();
    await inParallel(groups, PARALLEL, async (pg) => {
      for await (const name of this.namesIn(pg, from, minEpoch)) found.add(objectIndex(name));
    });
    return Float64Array.from(found).sort();
  }

  private async *namesIn(pg: PgId, from: string, minEpoch: Epoch): AsyncGenerator<string> {
    for (let after = from; ;) {
      const listed = await this.objects.list(pg, after, { limit: STEP, minEpoch });
      for (const { object } of listed) {
        // Names come in order: the first one of another family of volumes ends the list.
        if (!object.startsWith(from)) return;
        yield object;
      }
      const last = listed.at(-1);
      if (last === undefined || listed.length < STEP) return;
      after = last.object;
    }
  }

  read(
    address: ObjectAddress,
    offset: number,
    length: number,
    options: AccessOptions,
  ): Promise<ObjectContent> {
    return this.objects.read(address, offset, length, options);
  }
  stat(address: ObjectAddress, options: AccessOptions): Promise<ObjectStat> {
    return this.objects.stat(address, options);
  }
  close(): void {
    this.objects.close();
  }

  write(): Promise<number> {
    return refuse();
  }
  zero(): Promise<void> {
    return refuse();
  }
  trim(): Promise<void> {
    return refuse();
  }
  truncate(): Promise<void> {
    return refuse();
  }
  remove(): Promise<void> {
    return refuse();
  }
}

function refuse(): never {
  assert(false, "a volume whose objects were listed is only read");
}

function includes(ascending: Float64Array, value: number): boolean {
  let low = 0;
  let high = ascending.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (ascending[middle]! < value) low = middle + 1;
    else high = middle;
  }
  return ascending[low] === value;
}
