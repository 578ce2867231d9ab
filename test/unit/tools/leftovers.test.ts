/** What a run leaves behind is found by its mark or its folder, and nothing else is. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { findLeftovers, markedProcesses, RUN_VARIABLE } from "../../../tools/leftovers.js";
import { tempFolder } from "../../support/temp.js";

t.test("marked processes and files of the run's folder", async (t) => {
  const id = `leftovers-${process.pid}`;
  const folder = tempFolder(t);
  t.same(findLeftovers(id, folder), []);
  mkdirSync(join(folder, "sub"));
  writeFileSync(join(folder, "sub", "file"), "x");
  const child = spawn("sleep", ["60"], { env: { ...process.env, [RUN_VARIABLE]: id } });
  t.teardown(() => child.kill("SIGKILL"));
  const exit = once(child, "exit");
  const found = findLeftovers(id, folder);
  t.match(
    found.map((each) => each.what),
    [/^process \d+ runs: /, `folder ${join(folder, "sub")}`],
  );
  t.equal(markedProcesses(id)[0]?.pid, child.pid);
  for (const { remove } of found) remove();
  await exit;
  t.same(findLeftovers(id, folder), []);
});

t.test("another run's processes are left alone", (t) => {
  const id = `other-${process.pid}`;
  const child = spawn("sleep", ["60"], { env: { ...process.env, [RUN_VARIABLE]: id } });
  t.teardown(() => child.kill("SIGKILL"));
  t.same(markedProcesses(`${id}0`), []);
  t.same(markedProcesses(id.slice(0, -1)), []);
  t.end();
});
