/**
 * Whole operations on a cluster of its own (3 OSDs, 3 copies, 2 metadata servers): what each role
 * pays for one, to be held against what the parts cost alone. "rest" is what else the machine was
 * busy with meanwhile: the load, the kernel's own threads, and whatever does not belong here.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { Cluster } from "../../support/cluster.js";
import type { Scope } from "../../support/scope.js";
import { tempFolder } from "../../support/temp.js";
import { runFio } from "../fio.js";
import type { Watched } from "../measure.js";
import { CREATE } from "./calls.js";
import { sequential } from "./fuse.js";
import { KiB, measureFio, MiB, runLoad, timed } from "./part.js";
import type { FioRow, Measured, Part, Row, Sizes } from "./part.js";

const FILL_MS = 120_000;

function onVolume(
  what: string,
  kind: "read" | "write" | "randread" | "randwrite",
  { bytes, depth }: { bytes: number; depth: number },
  more: readonly string[] = [],
): FioRow {
  const args = [`--rw=${kind}`, `--bs=${bytes}`, `--iodepth=${depth}`, ...more];
  return {
    name: `volume: ${what}, ${depth} in flight`,
    direction: kind.endsWith("read") ? "read" : "write",
    ...{ depth, bytes },
    args: (sizes) => [...args, ...timed(sizes)],
  };
}

const VOLUME: readonly FioRow[] = [
  onVolume("write 4 KiB", "randwrite", { bytes: 4 * KiB, depth: 16 }),
  onVolume("write 4 KiB and flush", "randwrite", { bytes: 4 * KiB, depth: 1 }, ["--fsync=1"]),
  onVolume("read 4 KiB", "randread", { bytes: 4 * KiB, depth: 16 }),
  onVolume("write 1 MiB", "write", { bytes: MiB, depth: 8 }),
  onVolume("read 1 MiB", "read", { bytes: MiB, depth: 8 }),
];
const MOUNT: readonly FioRow[] = [
  sequential("mount", "write", ["--end_fsync=1"]),
  sequential("mount", "read"),
];
const CREATION: Row = { name: `mount: ${CREATE}`, depth: 1 };

export const whole: Part = {
  rows: [...VOLUME, ...MOUNT, CREATION],
  async measure(scope, rows, sizes) {
    const cluster = new Cluster(scope, { folder: tempFolder(scope, "parts") });
    await cluster.up();
    await cluster.healthy();
    const wanted = <T extends Row>(each: readonly T[]): T[] => each.filter((r) => rows.includes(r));
    return [
      ...(await measureVolume(scope, cluster, wanted(VOLUME), sizes)),
      ...(await measureMount(scope, cluster, wanted(MOUNT), sizes)),
      ...(await measureCreation(scope, cluster, wanted([CREATION]), sizes)),
    ];
  },
};

const processesOf = async (cluster: Cluster): Promise<readonly Watched[]> =>
  (await cluster.status()).processes;

/** On objects that exist: the area is written first. */
async function measureVolume(
  scope: Scope,
  cluster: Cluster,
  rows: readonly FioRow[],
  sizes: Sizes,
): Promise<Measured[]> {
  if (rows.length === 0) return [];
  const { server, socket } = await cluster.serve("parts", sizes.area);
  const place = ["--ioengine=nbd", `--uri=nbd+unix:///parts?socket=${socket}`];
  const fill = ["--rw=write", "--bs=1M", "--iodepth=4", `--size=${sizes.area}`];
  await runFio(scope, [...place, ...fill], { withinMs: FILL_MS });
  const nbd: Watched = { name: "nbd", role: "nbd", pid: server.pid };
  const watched = [...(await processesOf(cluster)), nbd];
  const results: Measured[] = [];
  for (const row of rows) results.push(await measureFio(scope, row, sizes, { place, watched }));
  return results;
}

/** Through the page cache; a read after all caches were emptied. */
async function measureMount(
  scope: Scope,
  cluster: Cluster,
  rows: readonly FioRow[],
  sizes: Sizes,
): Promise<Measured[]> {
  const place = [`--filename=${join(cluster.mount, "parts-file")}`];
  const watched = await processesOf(cluster);
  const before = (): void => cluster.dropCaches();
  const results: Measured[] = [];
  for (const row of rows) {
    results.push(await measureFio(scope, row, sizes, { place, watched, before }));
  }
  return results;
}

/** What was created is written to the OSDs within what is counted, after the rate was taken. */
async function measureCreation(
  scope: Scope,
  cluster: Cluster,
  rows: readonly Row[],
  sizes: Sizes,
): Promise<Measured[]> {
  const folder = join(cluster.mount, "parts");
  mkdirSync(folder);
  const where = { folder, settle: join(cluster.mount, ".dss", "drop_caches") };
  const watched = await processesOf(cluster);
  return await runLoad(scope, "calls-load", { where, rows, sizes, watched });
}
