/** Clones on a real cluster: what they show, what they keep, and that they become independent. */
import t from "tap";
import { cluster } from "./volumes-support.js";

const MIB = 1024 * 1024;

const volume = (...args: string[]): Promise<string> => cluster.ok(["volume", ...args]);
const read = (name: string, at: number, length = 6): Promise<string> =>
  volume("read", name, String(at), String(length));
const write = (name: string, at: number, text: string): Promise<string> =>
  volume("write", name, String(at), text);
const ZEROS = "\0".repeat(6);

t.test("a clone is its own from the first write on, and nothing of its parent's", async (t) => {
  await volume("create", "golden", "24M");
  for (const at of [0, 5 * MIB, 17 * MIB]) await write("golden", at, "golden");
  await volume("snap", "create", "golden@base");
  await write("golden", 0, "newer!");
  await volume("clone", "golden@base", "child");
  t.equal(await read("child", 0), "golden");
  await write("child", 5 * MIB + 2, "XX");
  t.equal(await read("child", 5 * MIB), "goXXen");
  t.equal(await read("golden", 5 * MIB), "golden");
  await volume("snap", "create", "child@then");
  await volume("clone", "child@then", "grandchild");
  await write("child", 17 * MIB, "child!");
  t.equal(await read("grandchild", 17 * MIB), "golden");
  t.equal(await read("grandchild", 5 * MIB), "goXXen");
  await volume("resize", "grandchild", "16M", "--allow-shrink");
  await volume("resize", "grandchild", "24M");
  t.equal(await read("grandchild", 17 * MIB), ZEROS, "what was cut off does not come back");

  const refused = await cluster.dss(["volume", "snap", "rm", "golden@base"]);
  t.match(refused, { code: 1, stderr: /golden@base has clones: child\n.*flatten/ });
  t.match(await cluster.dss(["volume", "rm", "child"]), { code: 1, stderr: /1 snapshot/ });
  t.match(await cluster.json(["volume", "info", "grandchild"]), {
    ...{ parent: "child@then", overlap: 16 * MIB, size: 24 * MIB, clones: [] },
  });
  t.match(await cluster.json(["volume", "info", "golden"]), { parent: null, clones: ["child"] });
  t.match(await cluster.json(["volume", "snap", "ls", "child"]), [{ clones: ["grandchild"] }]);
  t.match(await volume("ls"), /grandchild +24 MiB +\d+ +child@then/);

  const checked = await cluster.dss(["fsck"]);
  t.equal(checked.code, 0, checked.stdout + checked.stderr);

  await volume("flatten", "child");
  await volume("flatten", "grandchild");
  const again = await cluster.dss(["volume", "flatten", "child"]);
  t.match(again, { code: 1, stderr: /no parent/ });
  await volume("snap", "rm", "golden@base", "--wait");
  await volume("rm", "golden", "--wait");
  t.equal(await read("child", 0), "golden");
  t.equal(await read("child@then", 17 * MIB), "golden");
  t.equal(await read("grandchild", 5 * MIB), "goXXen");
  t.equal(await read("grandchild", 17 * MIB), ZEROS);
  for (const name of ["grandchild", "child"]) {
    await volume("snap", "rm", "--all", name, "--wait");
    await volume("rm", name, "--wait");
  }
  const end = await cluster.dss(["fsck"]);
  t.equal(end.code, 0, end.stdout + end.stderr);
});
