/** Lines of `dss status` that are not simply figures. */
import t from "tap";
import { purgeLines } from "../../../cli/status.js";

t.test("work in the background has a line each, that on files one together", (t) => {
  t.same(purgeLines({ entries: 0, bytes: 0, volumes: [] }), []);
  const volumes = [
    { name: "a", about: "rolling a back", percent: 3 },
    { name: "b", about: "shrinking b", percent: 99 },
  ];
  t.same(purgeLines({ entries: 4, bytes: 3 * 2 ** 20, volumes }), [
    "purges   rolling a back: 3 % done",
    "         shrinking b: 99 % done",
    "         freeing the space of 2 deleted or cut files: up to 3 MiB",
  ]);
  t.same(purgeLines({ entries: 1, bytes: 4096, volumes: [] }), [
    "purges   freeing the space of a deleted or cut file: up to 4 KiB",
  ]);
  t.end();
});
