/**
 * Which places of the data files are worth reading as a whole: those of which single blocks were
 * read several times lately. The kernel reads ahead for who reads in order; for random reads it
 * fetches only what was asked, and each costs a turn of the disk while the OSD waits. Databases
 * do the same with their extents (InnoDB's random read-ahead).
 *
 * What it costs is bounded: where reads are spread over more than is remembered, hardly any
 * comes to a place that was fetched, and each that does pays for `EARNED_BLOCKS` only.
 *
 * Owner of: which places were read, and which were fetched.
 */
import { LRUCache } from "lru-cache";

/** Places that are remembered (4 GiB, with places of 256 KiB). */
const PLACES_MAX = 16_384;
/** Reads of a place after which the rest of it is fetched, too. */
const READS_BEFORE = 2;
/** Blocks that may be fetched before reads show that it was worth it (1 GiB). */
const CREDIT_MAX = 262_144;
/** Blocks that a read of a fetched place allows to be fetched elsewhere. */
const EARNED_BLOCKS = 4;
const FETCHED = -1;

export class ReadAround {
  /** Of each place how often it was read, or that it was fetched. */
  private readonly places = new LRUCache<number, number>({ max: PLACES_MAX });
  private credit = CREDIT_MAX;

  constructor(private readonly blocksPerPlace: number) {}

  /** Something small of the place is read. True: the caller fetches all of it. */
  noteRead(place: number): boolean {
    const reads = this.places.get(place) ?? 0;
    if (reads === FETCHED) {
      this.credit = Math.min(CREDIT_MAX, this.credit + EARNED_BLOCKS);
      return false;
    }
    const isWanted = reads + 1 >= READS_BEFORE && this.credit >= this.blocksPerPlace;
    if (isWanted) this.credit -= this.blocksPerPlace;
    this.places.set(place, isWanted ? FETCHED : reads + 1);
    return isWanted;
  }
}
