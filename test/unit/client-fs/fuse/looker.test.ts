/** A shell that looks at a folder, here at one that no mount serves. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import t from "tap";
import { Looker } from "../../../../client-fs/fuse/looker.js";

const base = mkdtempSync(path.join(os.tmpdir(), "dss-looker-"));
// A shell does not keep its process alive.
const alive = setInterval(() => undefined, 1_000);
t.teardown(() => {
  clearInterval(alive);
  rmSync(base, { recursive: true });
});

t.test("names that are there are seen, in any folder", async (t) => {
  for (const name of ["plain", " a b ", "a\\nb\nc", "$(exit)'\"*"]) {
    const folder = path.join(base, name);
    mkdirSync(folder);
    writeFileSync(path.join(folder, "seen"), "");
    const looker = new Looker(folder);
    const looks = [looker.look("seen"), looker.look("other"), looker.look("seen")];
    looks[1]!.catch(() => undefined);
    await looks[0];
    await t.rejects(looks[1]!, { code: "Disk", message: `the names in ${folder} cannot be seen` });
    await looks[2];
    looker.stop();
  }
});

t.test(
  "without the folder nothing is seen; another shell follows one that has ended",
  async (t) => {
    const folder = path.join(base, "later");
    const looker = new Looker(folder);
    await t.rejects(looker.look("seen"), { code: "Disk" });
    mkdirSync(folder);
    writeFileSync(path.join(folder, "seen"), "");
    await looker.look("seen");
    const { pid } = looker;
    t.ok(pid !== undefined);
    process.kill(pid!, "SIGSTOP");
    const looks = [looker.look("seen"), looker.look("seen")];
    process.kill(pid!, "SIGKILL");
    for (const look of looks) await t.rejects(look, { code: "Disk", message: /no look at/ });
    await looker.look("seen");
    t.not(looker.pid, pid);
    looker.stop();
  },
);

t.test("the shell ends with the looker", async (t) => {
  const looker = new Looker(base);
  await looker.look(".");
  const { pid } = looker;
  const under = looker.look(".");
  looker.stop();
  await t.rejects(under, { code: "Disk", message: /no look at/ });
  const isThere = (): boolean => {
    try {
      return process.kill(pid!, 0);
    } catch {
      return false;
    }
  };
  for (let i = 0; i < 500 && isThere(); i++) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  t.notOk(isThere());
});
