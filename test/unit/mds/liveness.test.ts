/** When a missing liveness node means a dead OSD. */
import t from "tap";
import { LivenessGrace } from "../../../mds/core/liveness.js";

const osd = { id: 3, incarnation: "a" };

t.test("without anything special a missing node says that its OSD is gone", (t) => {
  t.ok(new LivenessGrace(6_000).isGone(osd, 0));
  t.end();
});

t.test("after ZooKeeper was away, nodes may be late; who refuses connections is gone", (t) => {
  const grace = new LivenessGrace(6_000);
  grace.begin(1_000);
  t.notOk(grace.isGone(osd, 1_000));
  t.notOk(grace.isGone(osd, 6_999));
  grace.refused(osd);
  t.ok(grace.isGone(osd, 1_000));
  t.notOk(grace.isGone({ id: 3, incarnation: "b" }, 1_000), "a later start is another");
  t.notOk(grace.isGone({ id: 4, incarnation: "a" }, 1_000));
  t.ok(grace.isGone({ id: 4, incarnation: "a" }, 7_000), "time is up");
  grace.begin(9_000);
  t.notOk(grace.isGone({ id: 4, incarnation: "a" }, 14_000), "every return begins it anew");
  t.end();
});
