/** Objects in memory for tests of what is built on them, with delays and faults on request. */
import { assert } from "../../../cluster/base/assert.js";
import type {
  AccessOptions,
  ObjectAccess,
  ObjectAddress,
  ObjectContent,
  ObjectStat,
  SnapContext,
} from "../../../osd/client/object-access.js";

export class MemoryObjects implements ObjectAccess {
  readonly objects = new Map<string, Buffer>();
  /** One line per call, in the order of arrival. */
  readonly calls: string[] = [];
  /** When set, an operation takes effect only when the promise it returns is settled. */
  gate: ((call: string) => Promise<void>) | undefined;
  /** Operations under way. */
  running = 0;
  runningMax = 0;
  /** Of the newest operation. */
  minEpoch = -1;
  /** Of changes, in the order of arrival. */
  readonly contexts: (SnapContext | undefined)[] = [];

  constructor(private readonly objectSize: number) {}

  read(
    address: ObjectAddress,
    offset: number,
    length: number,
    options: AccessOptions,
  ): Promise<ObjectContent> {
    this.bound(offset, length);
    return this.enter(`read ${address.object} ${offset}+${length}`, options, () => {
      const bytes = this.objects.get(this.key(address));
      // A copy, so that a later write cannot reach the reader; short where the object ends.
      const data = Buffer.from(bytes?.subarray(offset, offset + length) ?? []);
      return { exists: bytes !== undefined, size: bytes?.length ?? 0, data, mtimeNs: 0n };
    });
  }
  stat(address: ObjectAddress, options: AccessOptions): Promise<ObjectStat> {
    return this.enter(`stat ${address.object}`, options, () => {
      const bytes = this.objects.get(this.key(address));
      const size = bytes?.length ?? 0;
      const zeros = { mtimeNs: 0n, truncateSeq: 0, snapSeq: 0 };
      return { exists: bytes !== undefined, size, ...zeros, allocated: size, clones: [] };
    });
  }
  extents(
    address: ObjectAddress,
    offset: number,
    length: number,
    options: AccessOptions,
  ): Promise<{ exists: boolean; size: number; extents: { offset: number; length: number }[] }> {
    return this.enter(`extents ${address.object}`, options, () => {
      const bytes = this.objects.get(this.key(address));
      const size = bytes?.length ?? 0;
      const end = Math.min(size, offset + length);
      const extents: { offset: number; length: number }[] = [];
      // Blocks of zeros are holes.
      for (let at = offset; at < end;) {
        const next = Math.min(end, (Math.floor(at / 4096) + 1) * 4096);
        const last = extents.at(-1);
        if (bytes!.subarray(at, next).some((byte) => byte !== 0)) {
          if (last && last.offset + last.length === at) last.length += next - at;
          else extents.push({ offset: at, length: next - at });
        }
        at = next;
      }
      return { exists: bytes !== undefined, size, extents };
    });
  }
  write(
    address: ObjectAddress,
    offset: number,
    data: readonly Buffer[],
    options: AccessOptions,
  ): Promise<number> {
    const length = data.reduce((sum, piece) => sum + piece.length, 0);
    this.bound(offset, length);
    return this.enter(`write ${address.object} ${offset}+${length}`, options, () => {
      const old = this.objects.get(this.key(address)) ?? Buffer.alloc(0);
      const bytes = Buffer.alloc(Math.max(old.length, offset + length));
      old.copy(bytes);
      Buffer.concat(data).copy(bytes, offset);
      this.objects.set(this.key(address), bytes);
      return bytes.length;
    });
  }
  zero(
    address: ObjectAddress,
    offset: number,
    length: number,
    options: AccessOptions,
  ): Promise<void> {
    this.bound(offset, length);
    return this.enter(`zero ${address.object} ${offset}+${length}`, options, () => {
      const bytes = this.objects.get(this.key(address));
      bytes?.fill(0, Math.min(offset, bytes.length), Math.min(offset + length, bytes.length));
    });
  }
  truncate(address: ObjectAddress, size: number, options: AccessOptions): Promise<void> {
    return this.enter(`truncate ${address.object} ${size}`, options, () => {
      const old = this.objects.get(this.key(address)) ?? Buffer.alloc(0);
      const bytes = Buffer.alloc(size);
      old.copy(bytes);
      this.objects.set(this.key(address), bytes);
    });
  }
  trim(): Promise<void> {
    return Promise.reject(new Error("volumes know no truncation"));
  }
  remove(
    address: ObjectAddress,
    options: AccessOptions & { unconditional: boolean },
  ): Promise<void> {
    assert(options.unconditional, "volumes know no truncation");
    return this.enter(`remove ${address.object}`, options, () => {
      this.objects.delete(this.key(address));
    });
  }

  private key({ pool, object }: ObjectAddress): string {
    return `${pool}/${object}`;
  }
  private bound(offset: number, length: number): void {
    assert(length > 0 && offset >= 0 && offset + length <= this.objectSize, "outside the object");
  }
  private async enter<T>(call: string, options: AccessOptions, act: () => T): Promise<T> {
    this.calls.push(call);
    this.minEpoch = options.minEpoch;
    if (options.snapshots !== undefined) this.contexts.push(options.snapshots);
    this.runningMax = Math.max(this.runningMax, ++this.running);
    try {
      await this.gate?.(call);
      return act();
    } finally {
      this.running--;
    }
  }
}
