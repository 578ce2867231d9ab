/** Who is taken for gone on the word of its peers, and when it comes back. */
import t from "tap";
import type { ClusterMap } from "../../../cluster/map/cluster-map.js";
import { heartbeatPeers } from "../../../cluster/map/placement.js";
import { COORDINATOR_DEFAULTS, Coordinator, initialMap } from "../../../mds/core/coordinator.js";
import { SilenceBook } from "../../../mds/core/silence.js";

const BEAT_MS = 1_000;

function coordinatorWith(osds: number): Coordinator {
  const map = initialMap({
    clusterId: "c",
    pool: {
      ...{ name: "data", replicas: 3, minimum: 2, pgCount: 64 },
      ...{ objectSize: 4 << 20, stripeUnit: 4 << 20, stripeCount: 1 },
    },
    virtualNodes: 100,
  });
  const options = { ...COORDINATOR_DEFAULTS, expectedOsds: osds };
  const coordinator = new Coordinator(map, options);
  const events = Array.from({ length: osds }, (_, id) => ({
    on: "osdRegistered" as const,
    info: {
      ...{ id, uuid: `store${id}`, address: { host: "127.0.0.1", port: 9100 + id } },
      ...{ host: `host${id}`, weight: 1, incarnation: "first", capacity: 1e12, pid: 1 },
    },
  }));
  coordinator.committed(coordinator.propose(events, 0).map);
  return coordinator;
}
const mapWith = (osds: number): ClusterMap => coordinatorWith(osds).map;
const osd = (id: number, incarnation = "first") => ({ id, incarnation });
const ids = (found: { id: number }[]): number[] => found.map(({ id }) => id);

t.test("two reporters that are most of its peers outweigh an OSD's own word", (t) => {
  const map = mapWith(3);
  t.same(heartbeatPeers(map, 0), [1, 2]);
  const book = new SilenceBook(BEAT_MS);
  book.report(osd(0), 1, 0);
  book.report(osd(0), 1, 1_000);
  t.same(book.judge(map, 1_000), [], "one is not enough, however often");
  book.report(osd(0), 2, 1_500);
  t.same(book.judge(map, 1_500), [{ id: 0, incarnation: "first", reporters: [1, 2] }]);
  t.ok(book.isSilent(osd(0)));
  t.notOk(book.isSilent(osd(0, "second")), "a later start is another matter");
  t.same(book.judge(map, 1_500), [], "once");
  t.end();
});

t.test("of five, three say it; two do not", (t) => {
  const map = mapWith(5);
  const book = new SilenceBook(BEAT_MS);
  for (const reporter of [0, 1]) book.report(osd(4), reporter, 0);
  t.same(book.judge(map, 0), []);
  book.report(osd(4), 2, 0);
  t.same(ids(book.judge(map, 0)), [4]);
  t.end();
});

t.test("the smaller side of a partition goes, whoever reports first", (t) => {
  for (const order of [1, -1]) {
    const map = mapWith(5);
    const book = new SilenceBook(BEAT_MS);
    const reports: [of: number, by: number][] = [];
    for (const few of [0, 1]) for (const many of [2, 3, 4]) reports.push([few, many], [many, few]);
    if (order < 0) reports.reverse();
    const gone: number[] = [];
    for (const [of, by] of reports) {
      book.report(osd(of), by, 0);
      gone.push(...ids(book.judge(map, 0)));
    }
    t.same(gone.sort(), [0, 1]);
  }
  t.end();
});

t.test("old reports, reports of another start and those of the silent do not count", (t) => {
  const map = mapWith(3);
  const book = new SilenceBook(BEAT_MS);
  book.report(osd(0), 1, 0);
  book.report(osd(0), 2, 3_500);
  t.same(book.judge(map, 3_500), [], "the first report is too old");
  book.report(osd(0, "zeroth"), 1, 3_500);
  t.same(book.judge(map, 3_500), [], "about an earlier start");
  book.report(osd(0), 1, 3_600);
  t.same(ids(book.judge(map, 3_600)), [0]);
  book.report(osd(1), 0, 3_700);
  book.report(osd(1), 2, 3_700);
  t.same(book.judge(map, 3_700), [], "osd.0 has no say now");
  t.end();
});

t.test("it comes back on its word; again and again takes longer", (t) => {
  const map = mapWith(3);
  const book = new SilenceBook(BEAT_MS);
  let now = 0;
  const goDown = (): void => {
    for (const reporter of [1, 2]) book.report(osd(0), reporter, now);
    t.same(ids(book.judge(map, now)), [0]);
  };
  for (let time = 0; time < 2; time++) {
    goDown();
    t.match(book.warnings(now), [{ code: "OSD_UNREACHABLE" }]);
    t.ok(book.alive(0, "first", (now += 1_000)), "at once");
  }
  goDown();
  t.match(book.warnings(now), [{ code: "OSD_UNREACHABLE" }, { code: "OSD_FLAPPING" }]);
  t.notOk(book.alive(0, "first", now + 9_999));
  t.ok(book.alive(0, "first", (now += 10_000)));
  goDown();
  t.notOk(book.alive(0, "first", now + 19_999));
  t.ok(book.alive(0, "first", now + 20_000));
  t.same(book.warnings(now + 20_000), []);
  now += 1_000_000;
  goDown();
  t.ok(book.alive(0, "first", now), "long ago is forgotten");
  t.end();
});

t.test("a znode that is gone or of a later start needs no remark", (t) => {
  const map = mapWith(3);
  const book = new SilenceBook(BEAT_MS);
  for (const reporter of [1, 2]) book.report(osd(0), reporter, 0);
  book.judge(map, 0);
  book.onLive([]);
  t.notOk(book.isSilent(osd(0)));
  t.end();
});
