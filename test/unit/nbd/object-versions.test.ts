/** Which objects may differ between snapshots, and where their bytes are. */
import t from "tap";
import { isSameAt, rangesOf } from "../../../nbd/object-versions.js";
import { extentsOf } from "../../../osd/client/striper.js";

const stat = (exists: boolean, snapSeq: number, ...clones: [id: number, from: number][]) => ({
  ...{ exists, snapSeq },
  clones: clones.map(([id, from]) => ({ id, from })),
});

t.test("snapshots with one clone, or with none and one head, are the same", (t) => {
  // Made before 1, changed between 2 and 3, and after 5.
  const changed = stat(true, 5, [2, 0], [5, 2]);
  t.same(
    [1, 2, 3, 4, 5, 0].map((to) => isSameAt(changed, 1, to)),
    [true, true, false, false, false, false],
  );
  t.same(
    [3, 4, 5, 0].map((to) => isSameAt(changed, 3, to)),
    [true, true, true, false],
  );
  const untouched = stat(true, 0);
  t.ok(isSameAt(untouched, 1, 0));
  const later = stat(true, 3);
  t.same(
    [isSameAt(later, 1, 3), isSameAt(later, 3, 0), isSameAt(later, 4, 0)],
    [true, false, true],
  );
  const never = stat(false, 0);
  t.ok(isSameAt(never, 1, 0), "a parent's does not change");
  const gone = stat(false, 0, [4, 1]);
  t.same([isSameAt(gone, 1, 4), isSameAt(gone, 2, 4), isSameAt(gone, 4, 0)], [false, true, false]);
  t.end();
});

t.test("the ranges of all objects are the volume", (t) => {
  for (const layout of [
    { objectSize: 65_536, stripeUnit: 65_536, stripeCount: 1 },
    { objectSize: 65_536, stripeUnit: 4_096, stripeCount: 1 },
    { objectSize: 65_536, stripeUnit: 16_384, stripeCount: 3 },
  ]) {
    const size = 65_536 * 7 + 20_480;
    const owner = new Int32Array(size / 4096).fill(-1);
    for (let index = 0; index < 12; index++) {
      for (const { offset, length } of rangesOf(layout, index, size)) {
        for (let at = offset; at < offset + length; at += 4096) {
          if (owner[at / 4096] !== -1) t.fail(`${at} is in two objects`);
          owner[at / 4096] = index;
        }
      }
    }
    for (const { index, at, length } of extentsOf(layout, 0, size)) {
      if (owner.subarray(at / 4096, (at + length) / 4096).some((found) => found !== index)) {
        t.fail(`${at} is not in object ${index}`);
      }
    }
    t.notOk(owner.includes(-1));
  }
  t.end();
});
