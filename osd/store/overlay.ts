/**
 * The overlay: bytes of small writes that are in the WAL but not yet in the data files. Each block
 * sits in a slot of a recycled slab; the WAL writes from the slot, reads copy from it, and the
 * flush to the data file uses it, so a small write is copied once.
 *
 * A slot is free again when nobody refers to its entry: not the object, not the WAL group that is
 * being written, not a flush.
 */
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import type { ObjectState } from "./object-state.js";

const SLOTS_PER_SLAB = 256;

/** One block of a small write. */
export interface OverlayEntry {
  /** Whose block it is: several have it after a snapshot. */
  owners: ObjectState[];
  /** Number of the block in the objects. */
  at: number;
  slot: number;
  bytes: Buffer;
  /** Order of the WAL group that carries it. */
  order: number;
  /** The block on disk that it belongs to. */
  block: number;
  /** Who keeps the slot: the objects (as one), the WAL group, a flush. */
  holders: number;
  /** It is the newest content of its block. */
  current: boolean;
}

export class Overlay {
  private slots: Buffer[] = [];
  private free: number[] = [];
  private entries: OverlayEntry[] = [];
  /** Bytes in use. */
  bytes = 0;

  private grow(): void {
    const slab = Buffer.allocUnsafeSlow(SLOTS_PER_SLAB * BLOCK_SIZE);
    const base = this.slots.length;
    for (let i = 0; i < SLOTS_PER_SLAB; i++) {
      this.slots.push(slab.subarray(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE));
    }
    // Popped from the end: ascending slots, which the WAL can write as one piece.
    for (let i = SLOTS_PER_SLAB - 1; i >= 0; i--) this.free.push(base + i);
  }

  /** A new entry held by its object and its WAL group; the caller fills `bytes` at once. */
  add(object: ObjectState, at: number, block: number, order: number): OverlayEntry {
    if (this.free.length === 0) this.grow();
    const slot = this.free.pop()!;
    const bytes = this.slots[slot]!;
    const entry = { owners: [object], at, slot, bytes, order, block, holders: 2, current: true };
    (object.overlay ??= new Map()).set(at, entry);
    this.entries.push(entry);
    this.bytes += BLOCK_SIZE;
    return entry;
  }

  /** The object's block has other content now. */
  forget(object: ObjectState, entry: OverlayEntry): void {
    object.overlay!.delete(entry.at);
    if (entry.owners.length > 1) {
      entry.owners = entry.owners.filter((owner) => owner !== object);
      return;
    }
    entry.current = false;
    this.drop(entry);
  }
  /** Its content is in the data file. */
  retire(entry: OverlayEntry): void {
    entry.current = false;
    for (const owner of entry.owners) owner.overlay!.delete(entry.at);
    this.drop(entry);
  }

  drop(entry: OverlayEntry): void {
    if (--entry.holders > 0) return;
    this.bytes -= BLOCK_SIZE;
    this.free.push(entry.slot);
  }

  /** The current entries of groups up to `order`, each held for the caller. */
  select(order: number): OverlayEntry[] {
    const out: OverlayEntry[] = [];
    const rest: OverlayEntry[] = [];
    for (const entry of this.entries) {
      if (!entry.current) continue;
      if (entry.order <= order) {
        entry.holders++;
        out.push(entry);
      }
      // It stays listed until it is no longer current: a flush ends that.
      rest.push(entry);
    }
    this.entries = rest;
    return out;
  }

  /** Sorts the free slots now and then, so that neighbours in time are neighbours in memory. */
  tidy(): void {
    this.free.sort((a, b) => b - a);
  }

  /** The bytes of consecutive slots as few pieces as possible. */
  gather(entries: readonly OverlayEntry[], out: Buffer[]): void {
    for (let i = 0; i < entries.length;) {
      const first = entries[i]!;
      let count = 1;
      while (
        i + count < entries.length &&
        entries[i + count]!.slot === first.slot + count &&
        (first.slot + count) % SLOTS_PER_SLAB !== 0
      ) {
        count++;
      }
      out.push(
        count === 1
          ? first.bytes
          : Buffer.from(
              first.bytes.buffer as ArrayBuffer,
              first.bytes.byteOffset,
              count * BLOCK_SIZE,
            ),
      );
      i += count;
    }
  }
}
