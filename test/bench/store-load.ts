/**
 * A load of the chunk store on a real directory: durable writes and reads, as an OSD asks for them,
 * of objects that exist.
 */
import { BLOCK_SIZE, blockChecksums } from "../../cluster/base/checksum.js";
import { silentLogger } from "../../cluster/base/log.js";
import { Prng } from "../../cluster/base/prng.js";
import { openNodeDisk } from "../../cluster/platform/node-disk.js";
import { nodeClock, nodeRandom } from "../../cluster/platform/node.js";
import { OpKind } from "../../osd/store/chunk-store.js";
import { FileStore } from "../../osd/store/file-store.js";

const MiB = 1024 * 1024;
const OBJECT = 4 * MiB;
const PGS = 16;
const PG_FIRST = 65_536;
/** Records of the PG log that are kept, and how often the older ones are let go. */
const LOG_KEPT = 2_000;
const TRIM_EVERY = 256;

export async function openStore(directory: string): Promise<FileStore> {
  return await FileStore.open(await openNodeDisk(directory), {
    osdId: 1,
    logger: silentLogger,
    clock: nodeClock,
    random: nodeRandom,
  });
}

const objectName = (object: number): string =>
  `10000000001.${object.toString(16).padStart(8, "0")}`;

export class StoreLoad {
  private readonly random = new Prng(1);
  private readonly sequences = new Uint32Array(PGS);
  private readonly large = this.random.bytes(MiB);
  private readonly largeSums = blockChecksums(this.large);
  private readonly small = this.random.bytes(BLOCK_SIZE);
  private readonly smallSums = blockChecksums(this.small);
  private position = 0;

  private constructor(
    readonly store: FileStore,
    private readonly objects: number,
  ) {}

  /** With that many objects, which are written, so that what follows overwrites and reads. */
  static async open(directory: string, objects: number): Promise<StoreLoad> {
    const load = new StoreLoad(await openStore(directory), objects);
    for (let pg = 0; pg < PGS; pg++) {
      await new Promise<void>((resolve) =>
        load.store.createPg(PG_FIRST + pg, Buffer.alloc(0), () => resolve()),
      );
    }
    await new Promise<void>((resolve) => {
      let left = objects * 4;
      for (let i = objects * 4; i > 0; i--) load.writeLarge(() => --left === 0 && resolve());
    });
    return load;
  }

  /** The next MiB of the objects. */
  writeLarge(done: () => void): void {
    const at = this.position++ % (this.objects * 4);
    this.write(Math.floor(at / 4), (at % 4) * MiB, this.large, this.largeSums, done);
  }

  /** A block at a random place. */
  writeSmall(done: () => void): void {
    const object = this.random.int(0, this.objects - 1);
    const offset = this.random.int(0, OBJECT / BLOCK_SIZE - 1) * BLOCK_SIZE;
    this.write(object, offset, this.small, this.smallSums, done);
  }

  /** That many bytes at a random multiple of them. */
  read(bytes: number, done: () => void): void {
    const object = this.random.int(0, this.objects - 1);
    const offset = this.random.int(0, OBJECT / bytes - 1) * bytes;
    this.store
      .read(PG_FIRST + (object % PGS), objectName(object), offset, bytes)
      .then(done, (error: unknown) => {
        throw error;
      });
  }

  private write(
    object: number,
    offset: number,
    data: Buffer,
    sums: Uint32Array,
    done: () => void,
  ): void {
    const pg = object % PGS;
    const seq = ++this.sequences[pg]!;
    if (seq % TRIM_EVERY === 0 && seq > LOG_KEPT) {
      this.store.trimLog(PG_FIRST + pg, { interval: 1, seq: seq - LOG_KEPT });
    }
    this.store.apply(
      {
        pg: PG_FIRST + pg,
        version: { interval: 1, seq },
        kind: OpKind.write,
        object: objectName(object),
        client: 70_000,
        sequence: seq,
        floor: Math.max(1, seq - 64),
        size: OBJECT,
        offset,
        length: 0,
        data: [data],
        sums,
        mtimeNs: 1_700_000_000_000_000_000n,
        truncateSeq: 0,
        snapSeq: 0,
      },
      (error) => {
        if (error) throw error;
        done();
      },
    );
  }
}
