/**
 * Random bits flip in the files of one OSD under a running cluster, and while that OSD is down: in
 * object data, in the index (LMDB's file) and in the write-ahead log. Whatever is read is right, a
 * deep scrub finds and repairs the rest, health tells and clears. When every copy of a block is
 * damaged the reader gets EIO. DSS_FLIPS (6; the campaign makes 200), DSS_FLIPS_AT_ONCE (1; the
 * campaign 10, on one OSD, before anything is read) and DSS_FLIP_SEED.
 */
import { closeSync, fstatSync, mkdirSync, openSync } from "node:fs";
import { readdirSync, readSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import { Prng } from "../../cluster/base/prng.js";
import { startCluster } from "../support/cluster.js";
import { run, succeed } from "../support/process.js";
import { tempFolder, waitFor } from "../support/temp.js";

const FLIPS = Number(process.env["DSS_FLIPS"] ?? 6);
const AT_ONCE = Number(process.env["DSS_FLIPS_AT_ONCE"] ?? 1);
const SEED = Number(process.env["DSS_FLIP_SEED"] ?? 1);
const BLOCK = 4096;
const FILES = 24;
/** After this health forgets damage that was repaired. */
const SHOWN_MS = 30_000;
const PATIENT = { withinMs: 120_000 };

const cluster = await startCluster(t, {
  env: {
    DSS_OSD_DAMAGE_SHOWN_MS: `${SHOWN_MS}ms`,
    DSS_OSD_CACHE_BYTES: "64K", // The index is read, not remembered.
    DSS_CLIENT_CACHE_BYTES: "0",
  },
});
const random = new Prng(SEED);
const local = tempFolder(t, "local");
const folder = join(cluster.mount, "flips");
mkdirSync(folder);

type Kind = "data" | "index" | "wal";
interface Health {
  status: string;
  checks: { code: string; severity: string; detail: string[] }[];
}

/** Small ones go through the log, large ones straight to the data files. */
async function writeFiles(round: number): Promise<void> {
  for (let i = 0; i < FILES; i++) {
    if (round > 0 && !random.chance(0.3)) continue;
    const bytes = i % 3 === 0 ? random.int(100_000, 3_000_000) : random.int(1, 60_000);
    writeFileSync(join(local, `f${i}`), random.bytes(bytes));
  }
  await succeed(t, "sh", ["-c", `cp ${local}/f* ${folder}/ && sync -f ${folder}`], PATIENT);
}

/** Past every cache: what the OSDs have. */
async function readAll(): Promise<string> {
  const one = `dd if=$f iflag=direct bs=1M status=none | cmp - ${local}/$f || exit 1`;
  const read = `for f in *; do ${one}; done`;
  const { code, stdout, stderr } = await run(t, "sh", ["-c", read], { ...PATIENT, cwd: folder });
  return code === 0 ? "" : `${code}: ${stdout}${stderr}`;
}

const filesOf = (osd: number, kind: Kind): string[] => {
  const base = join(cluster.data, `osd.${osd}`);
  if (kind === "index") return [join(base, "index/data.mdb")];
  return readdirSync(join(base, kind)).map((name) => join(base, kind, name));
};

/** Calls back for every block that is not empty; stops when it answers true. */
function eachBlock(path: string, found: (block: Buffer, position: number) => boolean): void {
  const fd = openSync(path, "r");
  try {
    const chunk = Buffer.alloc(1 << 20);
    const { size } = fstatSync(fd);
    for (let at = 0; at < size; at += chunk.length) {
      const got = readSync(fd, chunk, 0, chunk.length, at);
      for (let i = 0; i + BLOCK <= got; i += BLOCK) {
        const block = chunk.subarray(i, i + BLOCK);
        if (block.some((byte) => byte !== 0) && found(block, at + i)) return;
      }
      // Data files are sparse, and used from the front.
      if (at > 256 << 20) return;
    }
  } finally {
    closeSync(fd);
  }
}

function flipBit(path: string, position: number, bit: number): void {
  const fd = openSync(path, "r+");
  try {
    const byte = Buffer.alloc(1);
    readSync(fd, byte, 0, 1, position);
    byte[0]! ^= 1 << bit;
    writeSync(fd, byte, 0, 1, position);
  } finally {
    closeSync(fd);
  }
}

function flipSomewhere(osd: number, kind: Kind): string {
  const places: { path: string; position: number }[] = [];
  for (const path of filesOf(osd, kind)) {
    eachBlock(path, (_, position) => {
      places.push({ path, position });
      return false;
    });
  }
  const { path, position } = random.pick(places);
  const at = position + random.int(0, BLOCK - 1);
  const bit = random.int(0, 7);
  flipBit(path, at, bit);
  return `bit ${bit} of byte ${at} in ${path.slice(cluster.data.length + 1)}`;
}

const health = (): Promise<Health> => cluster.json<Health>(["health", "detail"]);
/** Errors that the OSDs have met since they were started, by what health tells of it. */
async function errorsMet(): Promise<number> {
  const told = (await health()).checks.find(({ code }) => code === "OSD_DAMAGE_FOUND");
  const counts = (told?.detail ?? []).map((line) => Number(/: (\d+) errors/.exec(line)?.[1] ?? 0));
  return counts.reduce((sum, count) => sum + count, 0);
}
/** All is well but for the memory of damage that was repaired. */
async function settled(): Promise<void> {
  let last = "";
  await waitFor(
    "health",
    async () => {
      const { checks } = await health();
      last = JSON.stringify(checks);
      return checks.every(({ code }) => code === "OSD_DAMAGE_FOUND");
    },
    { withinMs: 120_000, everyMs: 500 },
  ).catch((cause: unknown) => {
    throw new Error(`${String(cause)}: ${last}`, { cause });
  });
}
interface Scrubbed {
  found: number;
  left: number;
}
async function deepScrub(): Promise<Scrubbed> {
  return await cluster.json<Scrubbed>(["scrub", "--deep"], { withinMs: 300_000 });
}

/** A damaged index may have ended its OSD, as a power cut would: it starts again. */
async function startEnded(t: Test): Promise<boolean> {
  if ((await cluster.processes("osd")).length === 3) return false;
  restarts++;
  t.comment("an OSD has ended; it is started again");
  t.comment(cluster.logTails(5));
  await cluster.up();
  return true;
}

let metByReads = 0;
let foundByScrub = 0;
let restarts = 0;

const KINDS = ["data", "index", "wal"] as const;
for (let flip = 0; flip < FLIPS; flip += AT_ONCE) {
  const kinds = Array.from({ length: AT_ONCE }, (_, i) => KINDS[(flip + i) % KINDS.length]!);
  const isStopped = Math.floor(flip / (AT_ONCE > 1 ? AT_ONCE : 3)) % 2 === 1;
  const osd = random.int(0, 2);
  const what = [...new Set(kinds)].join(", ");
  const about = `flip ${flip + 1} of ${FLIPS}: ${what} of osd.${osd}, ${isStopped ? "down" : "up"}`;
  await t.test(about, async (t) => {
    await writeFiles(flip);
    const name = `osd.${osd}`;
    const process = (await cluster.processes("osd")).find((each) => each.name === name)!;
    if (isStopped) await cluster.kill([process.pid]);
    const before = await errorsMet();
    for (const kind of kinds) t.comment(flipSomewhere(osd, kind));
    if (isStopped) await cluster.up();
    t.equal(await readAll(), "", "what is read is right");
    const met = (await errorsMet()) > before;
    if (met) metByReads++;
    await startEnded(t);
    let first = await deepScrub();
    if (await startEnded(t)) first = await deepScrub();
    t.equal(first.left, 0, "scrub has repaired what it found");
    if (first.found > 0) foundByScrub++;
    if (met || first.found > 0) t.comment(`met by reads: ${met}; found by scrub: ${first.found}`);
    if (first.found > 0) {
      const codes = (await health()).checks.map(({ code }) => code);
      t.ok(codes.includes("OSD_DAMAGE_FOUND"), `health tells: ${codes.join()}`);
    }
    await settled();
    const second = await deepScrub();
    t.same([second.found, second.left], [0, 0], "nothing is left to find");
    t.equal(await readAll(), "", "and all is right");
    if (!t.passing()) {
      t.comment(`DSS_FLIP_SEED=${SEED}`);
      t.comment(cluster.logTails(30));
    }
  });
}
t.comment(
  `${FLIPS} flips: ${metByReads} met by reads, ${foundByScrub} found by scrub, ` +
    `${restarts} ended their OSD`,
);

await t.test("every copy of a block is damaged: EIO, and health names the object", async (t) => {
  const marker = random.bytes(BLOCK);
  const data = Buffer.concat([random.bytes(20 * BLOCK), marker, random.bytes(20 * BLOCK)]);
  writeFileSync(join(local, "lost"), data);
  const path = join(folder, "lost");
  await succeed(t, "sh", ["-c", `cp ${local}/lost ${path} && sync -f ${path}`], PATIENT);
  for (const osd of [0, 1, 2]) {
    const place = await waitFor(
      `the block on osd.${osd}`,
      () => {
        let found: { path: string; position: number } | undefined;
        for (const file of filesOf(osd, "data")) {
          eachBlock(file, (block, position) => {
            if (!block.equals(marker)) return false;
            found = { path: file, position };
            return true;
          });
        }
        return found;
      },
      { withinMs: 20_000, everyMs: 500 },
    );
    flipBit(place.path, place.position + 100 + osd, 3);
  }
  const dd = ["if=" + path, "iflag=direct", "bs=4k", "of=/dev/null", "status=none"];
  const bad = await run(t, "dd", [...dd, "skip=20", "count=1"], PATIENT);
  t.not(bad.code, 0);
  t.match(bad.stderr, /Input\/output error/);
  t.equal((await run(t, "dd", [...dd, "count=20"], PATIENT)).code, 0, "its neighbours are read");
  const inode = (await succeed(t, "stat", ["-c", "%i", path])).trim();
  const object = `${BigInt(inode).toString(16)}.0`;
  const { status, checks } = await health();
  t.equal(status, "HEALTH_ERR");
  const found = checks.find(({ code }) => code === "PG_INCONSISTENT");
  t.ok(
    found?.detail.some((line) => line.includes(object)),
    JSON.stringify(found),
  );
  const scrub = await cluster.dss(["scrub", "--deep"], { withinMs: 300_000 });
  t.not(scrub.code, 0);
  t.match(scrub.stdout, /inconsistent/);
  const over = ["if=/dev/urandom", `of=${path}`, "oflag=direct", "conv=notrunc", "bs=4k"];
  await succeed(t, "dd", [...over, "seek=20", "count=1", "status=none"], PATIENT);
  t.equal((await run(t, "dd", dd, PATIENT)).code, 0, "what is overwritten is whole again");
  await cluster.healthy(120_000);
  const again = await deepScrub();
  t.same([again.found, again.left], [0, 0]);
});
