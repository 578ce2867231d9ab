/** Identifiers: composition, ranges and their text forms. */
import t from "tap";
import {
  ANONYMOUS_ENTITY,
  CLIENT_ID_FIRST,
  formatEntity,
  formatPg,
  MDS_ENTITY_BASE,
  OSD_ID_MAX,
  parsePg,
  pgId,
  pgIndex,
  poolOfPg,
} from "../../../../cluster/base/ids.js";

t.test("a PG's number holds its pool and index", (t) => {
  for (const [pool, index] of [
    [1, 0],
    [1, 127],
    [3, 65_535],
    [60_000, 4_096],
  ] as const) {
    const pg = pgId(pool, index);
    t.same([poolOfPg(pg), pgIndex(pg)], [pool, index]);
    t.equal(parsePg(formatPg(pg)), pg, formatPg(pg));
  }
  t.equal(formatPg(pgId(1, 255)), "1.ff");
  for (const bad of ["", "1", "1.", ".1", "1.g", "1.FF", "1.10000", "-1.0", "1.0 "]) {
    t.equal(parsePg(bad), undefined, JSON.stringify(bad));
  }
  t.end();
});

t.test("entity numbers of OSDs, MDSs and clients do not overlap", (t) => {
  t.ok(OSD_ID_MAX < MDS_ENTITY_BASE);
  t.ok(MDS_ENTITY_BASE + 999 < ANONYMOUS_ENTITY);
  t.ok(ANONYMOUS_ENTITY < CLIENT_ID_FIRST);
  t.equal(formatEntity(3), "osd.3");
  t.equal(formatEntity(MDS_ENTITY_BASE + 1), "mds.1");
  t.equal(formatEntity(CLIENT_ID_FIRST), `client.${CLIENT_ID_FIRST}`);
  t.equal(formatEntity(ANONYMOUS_ENTITY), "anonymous");
  t.end();
});
