/** Which objects a volume has is asked once, and what is absent costs nothing more. */
import t from "tap";
import { AssertionFailure } from "../../../cluster/base/assert.js";
import { pgId, type PgId } from "../../../cluster/base/ids.js";
import { cloneName } from "../../../cluster/base/object-name.js";
import type { ClusterMap, MapSource } from "../../../cluster/map/cluster-map.js";
import { ListedObjects } from "../../../nbd/listed-objects.js";
import { NO_TRUNCATION } from "../../../osd/client/object-access.js";
import { MemoryObjects } from "./memory-objects.js";

const POOL = 3;
const GROUPS = 4;
const options = { truncation: NO_TRUNCATION, minEpoch: 42 };
const maps = {
  current: () => ({ pools: [{ id: POOL, pgCount: GROUPS }] }) as unknown as ClusterMap,
} as MapSource;

/** Objects in memory, spread over placement groups by hand, with what was asked about them. */
class Groups extends MemoryObjects {
  readonly names = new Map<PgId, string[]>();
  readonly asked: string[] = [];

  put(group: number, ...names: string[]): void {
    this.names.set(pgId(POOL, group), names.sort());
  }
  list(pg: PgId, after: string, { limit, minEpoch }: { limit: number; minEpoch: number }) {
    this.asked.push(`${pg} after ${after} from epoch ${minEpoch}`);
    const names = (this.names.get(pg) ?? []).filter((name) => name > after).slice(0, limit);
    return Promise.resolve(names.map((object) => ({ object })));
  }
  close(): void {
    this.asked.push("close");
  }
}

t.test("only objects that are there are asked about their extents", async (t) => {
  const objects = new Groups(65_536);
  objects.put(0, "v4.1", "v5.0", "v5.1f", "v50.2");
  objects.put(1, cloneName("v5.a", 7), "v6.b");
  objects.put(2, "v5.ffffffffff");
  for (const index of ["0", "1f", "ffffffffff"]) {
    objects.objects.set(`${POOL}/v5.${index}`, Buffer.alloc(4096, 1));
  }
  const listed = new ListedObjects(objects, maps);
  const extentsOf = (object: string) => listed.extents({ pool: POOL, object }, 0, 8192, options);
  const there = { exists: true, size: 4096, extents: [{ offset: 0, length: 4096 }] };
  for (const index of ["0", "1f", "ffffffffff"]) t.same(await extentsOf(`v5.${index}`), there);
  for (const index of ["1", "2", "b", "20", "fffffffffe"]) {
    t.same(await extentsOf(`v5.${index}`), { exists: false, size: 0, extents: [] }, index);
  }
  await extentsOf("v5.a");
  t.same(
    objects.calls,
    ["0", "1f", "ffffffffff", "a"].map((index) => `extents v5.${index}`),
  );
  t.equal(objects.asked.length, GROUPS, "every group once");
  t.ok(objects.asked.every((line) => line.endsWith("after v5. from epoch 42")));
  // A clone finds there what its parent has: nothing more has to be listed for it.
  await extentsOf("v5.1f$00000009");
  t.equal(objects.calls.at(-1), "extents v5.1f$00000009");
  t.match(await extentsOf("v5.20$00000009"), { exists: false });
  t.equal(objects.asked.length, GROUPS);
  // A volume of another family has a list of its own.
  t.match(await extentsOf("v4.0"), { exists: false });
  t.equal(objects.asked.length, 2 * GROUPS);
  t.throws(() => listed.write(), AssertionFailure);
  listed.close();
  t.equal(objects.asked.at(-1), "close");
});

t.test("long lists come in portions", async (t) => {
  const objects = new Groups(65_536);
  const names = Array.from({ length: 10_000 }, (_, index) => `v5.${(2 * index).toString(16)}`);
  objects.put(1, ...names, "v6.0");
  const listed = new ListedObjects(objects, maps);
  for (const index of [0, 1, 2, 4_095, 9_998, 19_997, 19_998, 20_000]) {
    await listed.extents({ pool: POOL, object: `v5.${index.toString(16)}` }, 0, 1, options);
  }
  const even = [0, 2, 9_998, 19_998].map((index) => `extents v5.${index.toString(16)}`);
  t.same(objects.calls, even);
  t.equal(objects.asked.length, GROUPS + 2);
});

t.test("a failure to list is a failure, never a hole", async (t) => {
  const objects = new Groups(65_536);
  objects.list = () => Promise.reject(new Error("no primary"));
  const listed = new ListedObjects(objects, maps);
  await t.rejects(listed.extents({ pool: POOL, object: "v5.0" }, 0, 1, options), /no primary/);
  await t.rejects(listed.extents({ pool: 9, object: "v5.0" }, 0, 1, options), { code: "NotFound" });
});
