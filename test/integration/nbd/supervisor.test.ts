/**
 * A supervisor with real processes, sockets and clients, and a file in place of the cluster: its
 * servers are killed and frozen under load, and no client notices but for a delay.
 */
import { existsSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { silentLogger } from "../../../cluster/base/log.js";
import type { DssError } from "../../../cluster/base/errors.js";
import { Prng } from "../../../cluster/base/prng.js";
import { nodePlatform } from "../../../cluster/platform/node.js";
import { forkServer } from "../../../cli/local/server-process.js";
import { NbdServer } from "../../../nbd/server.js";
import { Supervisor } from "../../../nbd/supervisor.js";
import { NbdClient } from "../../support/nbd-client.js";
import { BUILD, run, succeed } from "../../support/process.js";
import { tempFolder, waitFor } from "../../support/temp.js";

const MIB = 2 ** 20;
const SIZE = 32 * MIB;
const SILENT_MS = 3_000;
/** The campaign "attach" has more. */
const DEATHS = Number(process.env["DSS_SERVER_DEATHS"] ?? 3);

async function supervised(t: Test) {
  const folder = tempFolder(t, "supervisor");
  const path = join(folder, "disk");
  writeFileSync(path, "");
  truncateSync(path, SIZE);
  const lost: DssError[] = [];
  const supervisor = new Supervisor({
    name: "disk",
    ...{ network: nodePlatform.network, clock: nodePlatform.clock, log: silentLogger },
    onLost: (error) => void lost.push(error),
    spawn: ({ continues }) =>
      forkServer({
        program: join(BUILD, "test/support/file-server.js"),
        start: { path, socket: join(folder, "server.sock"), continues },
        title: [path],
        silentMs: SILENT_MS,
      }),
  });
  const { network, clock } = nodePlatform;
  const server = new NbdServer({ network, clock, log: silentLogger, directory: supervisor });
  await supervisor.start();
  const socket = join(folder, "clients.sock");
  await server.listen({ path: socket });
  const stop = async (): Promise<void> => {
    await server.stop();
    await supervisor.stop();
  };
  // What is lost cannot be flushed any more.
  t.teardown(() => stop().catch((error: unknown) => void (lost.length || t.fail(String(error)))));
  const kill = (signal: NodeJS.Signals): number => {
    const { pid } = supervisor.figures;
    if (pid !== undefined) process.kill(pid, signal);
    return pid ?? 0;
  };
  const uri = `nbd+unix:///disk?socket=${socket}`;
  return { folder, path, supervisor, socket, uri, lost, kill, stop };
}

t.test("fio verifies what it writes while the server is killed again and again", async (t) => {
  const { folder, uri, supervisor, kill, path } = await supervised(t);
  const args = ["--name=verify", "--ioengine=nbd", `--uri=${uri}`, "--rw=randrw"];
  const sizes = ["--bsrange=512-128k", "--blockalign=512", "--size=12m", "--iodepth=32"];
  // Longer than ten deaths take, and then what was written is read again.
  const load = ["--verify=crc32c", "--verify_fatal=1", "--rate=12m,12m", "--randseed=3"];
  const fio = run(t, "fio", [...args, ...sizes, ...load], { cwd: folder, withinMs: 120_000 });
  for (let death = 1; death <= DEATHS; death++) {
    await waitFor("a server at work", () => supervisor.image.connected || undefined);
    await new Promise((resolve) => setTimeout(resolve, 150));
    kill("SIGKILL");
    await waitFor("its end is seen", () => supervisor.figures.restarts >= death || undefined);
  }
  const { code, stdout, stderr } = await fio;
  t.equal(code, 0, stderr);
  t.match(stdout, /err= 0/);
  t.equal(supervisor.figures.restarts, DEATHS);
  const starts = readFileSync(`${path}.starts`, "utf8").trim().split("\n");
  t.match(starts[0], /begins/);
  t.ok(
    starts.slice(1).every((line) => line.endsWith("continues")),
    "and the others continue",
  );
});

t.test("nbdcopy copies through deaths, with several connections", async (t) => {
  const { folder, uri, supervisor, kill } = await supervised(t);
  const source = join(folder, "source");
  const bytes = new Prng(5).bytes(SIZE);
  writeFileSync(source, bytes);
  const copy = async (from: string, to: string): Promise<void> => {
    const copying = succeed(t, "nbdcopy", ["--connections=4", "--request-size=65536", from, to]);
    const begin = supervisor.figures.restarts;
    kill("SIGKILL");
    await waitFor("its end", () => supervisor.figures.restarts > begin || undefined);
    await copying;
  };
  await copy(source, uri);
  const target = join(folder, "target");
  await copy(uri, target);
  t.ok((await readFile(target)).equals(bytes));
});

t.test("a frozen server is killed and succeeded", async (t) => {
  const { socket, supervisor, kill } = await supervised(t);
  const client = await NbdClient.connect(socket, "disk");
  t.teardown(() => client.close());
  await client.write(0, Buffer.alloc(4096, 1));
  const frozen = kill("SIGSTOP");
  const begin = performance.now();
  await client.write(0, Buffer.alloc(4096, 2));
  t.ok(performance.now() - begin > SILENT_MS / 2);
  t.not(supervisor.figures.pid, frozen);
  t.notOk(existsSync(`/proc/${frozen}/fd/0`), "it is gone, not merely set aside");
  t.equal((await client.read(0, 1))[0], 2);
  // One that ends in good order is a death like any other.
  const restarts = supervisor.figures.restarts;
  kill("SIGTERM");
  await client.write(4096, Buffer.alloc(4096, 3));
  await waitFor("its successor", () => supervisor.figures.restarts > restarts || undefined);
  t.equal((await client.read(4096, 1))[0], 3);
});

t.test("a volume that somebody else had meanwhile is lost, and says so", async (t) => {
  const { socket, supervisor, kill, path, lost } = await supervised(t);
  const client = await NbdClient.connect(socket, "disk");
  t.teardown(() => client.close());
  await client.write(0, Buffer.alloc(512, 1));
  writeFileSync(`${path}.refuse`, "StaleHandle");
  kill("SIGSTOP");
  const late = client.write(0, Buffer.alloc(512, 2));
  kill("SIGKILL");
  await t.rejects(late, /NBD error 108/, "ESHUTDOWN");
  await t.rejects(client.read(0, 512), /NBD error 108/);
  t.match(lost, [{ code: "Fenced", message: "disk is lost" }]);
  await t.rejects(supervisor.open("disk"), { code: "Fenced" });
  t.equal(readFileSync(path)[0], 1);
  t.equal(supervisor.figures.pid, undefined);
});
