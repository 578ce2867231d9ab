/** When a server's process counts as ended. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import t from "tap";
import { isZombie } from "../../../cli/local/process.js";

t.test(
  "a process that nobody has reaped is a zombie, a living or unknown one is not",
  async (t) => {
    // The child of the shell becomes one of `sleep`, which does not wait for it.
    const parent = spawn("sh", ["-c", "sleep 0.2 & echo $!; exec sleep 20"]);
    const exited = once(parent, "exit");
    t.teardown(async () => {
      parent.kill("SIGKILL");
      await exited;
    });
    const [line] = (await once(parent.stdout, "data")) as [Buffer];
    const child = Number(line.toString());
    while (!isZombie(child)) await new Promise((resolve) => setTimeout(resolve, 10));
    t.notOk(isZombie(process.pid));
    t.notOk(isZombie(parent.pid!));
    t.notOk(isZombie(2 ** 22 + 1));
  },
);
