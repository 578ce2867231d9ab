/**
 * Every fault that can be provoked on one machine is shown by `dss status` under its code while it
 * lasts, and not after it is over; and the code is explained in docs/operations.md.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { ROOT } from "../../tools/test-parts.js";
import { dss, start, succeed, type Program } from "../support/process.js";
import { freePort, tempFolder, waitFor } from "../support/temp.js";
import { startZooKeeper } from "../support/zookeeper.js";

const SHOWN_MS = 30_000;
const OPERATIONS = readFileSync(join(ROOT, "docs/operations.md"), "utf8");

const zookeeper = await startZooKeeper(t);
const folder = tempFolder(t, "health");
const env = { DSS_ZOOKEEPER: zookeeper.address, DSS_DATA: folder, DSS_POOL_PGS: "16" };
const daemons = new Map<string, Program>();
const ports = new Map<string, number>();

async function startDaemon(name: string, data = name): Promise<void> {
  const [role = "", id = ""] = name.split(".");
  const port = ports.get(name) ?? (await freePort());
  ports.set(name, port);
  const own = role === "osd" ? ["--data", join(folder, data)] : ["--expect-osds", "3"];
  const args = dss(role, "start", id, "--port", String(port), ...own);
  daemons.set(name, start(t, ...args, { env }));
}
const startAll = async (...names: string[]): Promise<void> => {
  for (const name of names) await startDaemon(name);
};
const killAll = async (...names: string[]): Promise<void> => {
  for (const name of names) await daemons.get(name)!.kill();
};

interface View {
  health: { status: string; checks: { code: string; summary: string }[] };
  mds: { leader: number | null };
}
async function look(): Promise<View> {
  const args = dss("status", "--json");
  return JSON.parse(await succeed(t, ...args, { env, withinMs: 20_000 })) as View;
}
const leader = async (): Promise<string> => `mds.${(await look()).mds.leader}`;
const others = (name: string): string[] => ["mds.0", "mds.1"].filter((each) => each !== name);

/** Each begins where the one before it ended; what is not named in `codes` may be shown as well. */
const FAULTS: readonly {
  fault: string;
  codes: readonly string[];
  provoke(): Promise<unknown>;
  repair?(): Promise<unknown>;
}[] = [
  {
    fault: "nothing but a metadata server",
    codes: ["NO_OSDS", "POOL_WAITING", "MDS_NO_STANDBY"],
    provoke: () => startAll("mds.0"),
  },
  {
    fault: "fewer OSDs than replicas",
    codes: ["TOO_FEW_OSDS"],
    provoke: () => startAll("osd.0"),
    repair: () => startAll("osd.1", "osd.2", "mds.1"),
  },
  {
    fault: "an OSD died",
    codes: ["OSD_DOWN", "PG_DEGRADED"],
    provoke: () => killAll("osd.0"),
  },
  {
    fault: "another one died",
    codes: ["OSD_DOWN", "PG_INACTIVE"],
    provoke: () => killAll("osd.1"),
    repair: () => startAll("osd.0", "osd.1"),
  },
  {
    fault: "an OSD was started with an empty disk",
    codes: ["OSD_WRONG_STORE"],
    provoke: async () => {
      // In good order: while its registration lasts, another store is refused at the start.
      await daemons.get("osd.2")!.stop();
      await startDaemon("osd.2", "empty");
    },
    repair: async () => {
      await daemons.get("osd.2")!.stop();
      await startAll("osd.2");
    },
  },
  {
    fault: "an OSD stands still",
    codes: ["OSD_NOT_ANSWERING"],
    provoke: async () => daemons.get("osd.1")!.signal("SIGSTOP"),
    repair: async () => daemons.get("osd.1")!.signal("SIGCONT"),
  },
  {
    fault: "the only metadata server stands still",
    codes: ["MDS_NOT_ANSWERING"],
    provoke: async () => {
      const leading = await leader();
      await killAll(...others(leading));
      // Until its session is over it is the leader for everybody.
      daemons.get(leading)!.signal("SIGSTOP");
    },
    repair: async () => {
      for (const name of ["mds.0", "mds.1"]) {
        if (daemons.get(name)!.running) daemons.get(name)!.signal("SIGCONT");
        else await startAll(name);
      }
    },
  },
  {
    fault: "no metadata server is left",
    codes: ["MDS_NO_LEADER"],
    provoke: () => killAll("mds.0", "mds.1"),
    repair: () => startAll("mds.0", "mds.1"),
  },
];

for (const { fault, codes, provoke, repair } of FAULTS) {
  await t.test(`${fault}: ${codes.join(", ")}`, async (t) => {
    await provoke();
    let last: View | undefined;
    await waitFor(
      `status shows ${codes.join(", ")}`,
      async () => {
        last = await look();
        const shown = last.health.checks.map(({ code }) => code);
        return codes.every((code) => shown.includes(code));
      },
      { withinMs: SHOWN_MS, everyMs: 100 },
    ).catch((cause: unknown) => {
      throw new Error(`${String(cause)}: ${JSON.stringify(last?.health)}`, { cause });
    });
    for (const code of codes) {
      const row = OPERATIONS.split("\n").find((line) => line.startsWith(`| \`${code}\` |`));
      const [, , severity = "", meaning = "", whatToDo = ""] = row?.split("|") ?? [];
      const isError = last!.health.checks.some(
        (check) => check.code === code && "severity" in check && check.severity === "HEALTH_ERR",
      );
      t.equal(severity.trim(), isError ? "ERR" : "WARN", `${code} is documented`);
      t.ok(meaning.trim().length > 20 && whatToDo.trim().length > 5, `${code} has cause and fix`);
    }
    if (repair === undefined) return;
    await repair();
    await waitFor("HEALTH_OK", async () => (await look()).health.status === "HEALTH_OK", {
      withinMs: 60_000,
      everyMs: 150,
    }).catch(async (cause: unknown) => {
      throw new Error(`${String(cause)}: ${JSON.stringify((await look()).health)}`, { cause });
    });
  });
}
