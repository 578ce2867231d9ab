/**
 * A log that is full when the process dies, again and again: each opening finds all of it, and can
 * have it taken into the index, which is what makes room.
 */
import t from "tap";
import { silentLogger } from "../../../../cluster/base/log.js";
import { Prng } from "../../../../cluster/base/prng.js";
import { Overlay } from "../../../../osd/store/overlay.js";
import { putRecord, RecordType } from "../../../../osd/store/records.js";
import { Wal, WAL_START, type WalGeometry } from "../../../../osd/store/wal.js";
import { recoverWal } from "../../../../osd/store/wal-recovery.js";
import { SimClock } from "../../../sim/sim-clock.js";
import { SimDisk } from "../../../sim/sim-disk.js";

const GEOMETRY: WalGeometry = { segments: 2, segmentBytes: 256 * 1024, salt: Buffer.alloc(8, 7) };

class World {
  readonly clock = new SimClock();
  private readonly disk = new SimDisk({
    random: new Prng(1),
    schedule: (ms, run) => void this.clock.schedule(ms, run),
  });

  async wait<T>(work: Promise<T>): Promise<T> {
    let isOver = false;
    const watched = work.finally(() => (isOver = true));
    if (!(await this.clock.runUntil(() => isOver, 60_000))) throw new Error("it hangs");
    return watched;
  }
  format(): Promise<void> {
    return this.wait(Wal.format(this.disk.attach(), GEOMETRY));
  }
  /** Nothing of it ever came into the index. */
  async open(): Promise<{ wal: Wal; records: number; isFull: () => boolean }> {
    const files = await this.wait(Wal.openFiles(this.disk.attach(), GEOMETRY));
    let records = 0;
    let isFull = false;
    const found = await this.wait(
      recoverWal(files, GEOMETRY, WAL_START, {
        verifyDirect: () => Promise.resolve(true),
        apply: (group) => {
          records += group.records.length;
          return true;
        },
        logger: silentLogger,
      }),
    );
    const clock = this.clock.forNode(() => true);
    const wal = new Wal(files, GEOMETRY, { tail: WAL_START, ...found }, new Overlay(), clock, {
      syncData: () => Promise.resolve(),
      mayWrite: () => true,
      onDurable: () => undefined,
      onFull: () => (isFull = true),
      onError: (error) => {
        throw error;
      },
    });
    return { wal, records, isFull: () => isFull };
  }
}

t.test("a full log can be declared after any number of deaths", async (t) => {
  const world = new World();
  await world.format();
  const first = await world.open();
  let written = 0;
  while (!first.isFull()) {
    const { head } = first.wal.gather();
    putRecord(head, { type: RecordType.createPg, pg: 65_536, meta: Buffer.alloc(1_000) });
    first.wal.added(() => written++);
    await world.clock.advance(20);
  }
  t.ok(written > 50, `${written} groups`);
  for (let life = 2; life <= 5; life++) {
    const { wal, records } = await world.open();
    t.equal(records, written, `life ${life}`);
    // What a checkpoint waits for. Its index commit does not come before the process dies again.
    await world.wait(wal.declare(0));
  }
});
