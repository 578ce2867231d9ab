/**
 * `stressors.js NAME [--suite DIR] [--record FILE] [--folder PLACE] [--seed N]`: one of other
 * people's programs that try a file system hard, on the mount of a cluster of its own, or in PLACE.
 * Prints what it counted. Exit code 0: it found nothing wrong. `--seed`: the first that fsx uses.
 */
import { execFileSync, spawnSync } from "node:child_process";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { ROOT } from "../../tools/test-parts.js";
import { startCluster } from "../support/cluster.js";
import { Scope } from "../support/scope.js";
import { STRESSORS, type StressorName, type StressorResult } from "./stressor-steps.js";

interface Job {
  /** On the file system under test; empty. */
  folder: string;
  /** On the machine's own. */
  local: string;
  suite: string;
  seed: number;
}

interface Ran {
  code: number | null;
  output: string;
}
function sh(script: string, env: Readonly<Record<string, string>>, withinMs: number): Ran {
  const { status, stdout, stderr, signal } = spawnSync("sh", ["-eu", "-c", script], {
    encoding: "utf8",
    timeout: withinMs,
    killSignal: "SIGKILL",
    maxBuffer: 2 ** 26,
    env: { ...process.env, LC_ALL: "C", ...env },
  });
  const output = `${stdout}${stderr}`;
  return { code: status, output: signal === null ? output : `${output}\nkilled by ${signal}` };
}
const MINUTES = 60_000;
const last = (text: string, lines: number): string =>
  text.trim().split("\n").slice(-lines).join("\n");
const result = ({ code, output }: Ran, counts: string): StressorResult => ({
  good: code === 0,
  counts: code === 0 ? counts : `exit code ${code ?? "none"}: ${last(output, 15)}`,
});
/** There are more in every version; fewer means that it did not run. */
const STRESS_NG_LEAST = 20;

/**
 * Every stressor of the class that stress-ng's check of its own results is switched on for, but
 * binderfs, which mounts a file system of its own and counts as a failure where there is none.
 */
function stressNg({ folder }: Job): StressorResult {
  const script =
    `stress-ng --class filesystem --sequential 1 --verify --timeout 3 --metrics-brief ` +
    `--exclude binderfs --temp-path "$PLACE"`;
  const ran = sh(script, { PLACE: folder }, 18 * MINUTES);
  const rows = [...ran.output.matchAll(/ metrc: \[\d+\] ([a-z][a-z0-9-]*) +\d+ /g)];
  const passed = new Set(rows.map((row) => row[1])).size;
  const skipped = ran.output.split("\n").filter((line) => /skipping stress/.test(line)).length;
  const bad = ran.output.split("\n").filter((line) => / (fail|error): /.test(line));
  const counts = `${passed} stressors, ${skipped} of them skipped, ${bad.length} complaints`;
  const good = ran.code === 0 && passed >= STRESS_NG_LEAST && bad.length === 0;
  const shown = bad.length > 0 ? bad.slice(0, 20).join("\n") : last(ran.output, 5);
  return { good, counts: good ? counts : `${counts}\n${shown}` };
}

function dbench({ folder }: Job): StressorResult {
  const ran = sh(`dbench -D "$PLACE" -t 60 4`, { PLACE: folder }, 5 * MINUTES);
  const failures = ran.output.split("\n").filter((line) => /failed|expected/i.test(line));
  const { good, counts } = result(ran, last(ran.output, 1));
  if (failures.length === 0) return { good, counts };
  return { good: false, counts: failures.slice(0, 10).join("\n") };
}

/**
 * Made, filled, killed under load, restarted, and then the sums must agree. `-n`: or each round
 * begins with an empty history.
 */
function postgres({ folder, local }: Job): StressorResult {
  chmodSync(folder, 0o777);
  chmodSync(local, 0o777);
  const script = String.raw`
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
as() { setpriv --reuid=65534 --regid=65534 --clear-groups env HOME="$SOCKET" "$@"; }
sql() { as psql -h "$SOCKET" -U postgres -qAtc "$1" postgres; }
start() { as "$bin/pg_ctl" -s -w -t 120 -D "$PLACE/pg" -l "$SOCKET/log" \
  -o "-k $SOCKET -c listen_addresses=" start; }
as "$bin/initdb" -U postgres -D "$PLACE/pg" > /dev/null
start
as "$bin/pgbench" -h "$SOCKET" -U postgres -q -i -s 3 postgres 2> /dev/null
for round in 1 2 3; do
  as "$bin/pgbench" -h "$SOCKET" -U postgres -n -c 4 -T 20 postgres > "$SOCKET/bench" 2>&1 &
  bench=$!
  sleep 12
  kill -9 $(head -1 "$PLACE/pg/postmaster.pid")
  wait $bench || true
  rm -f "$PLACE/pg/postmaster.pid"
  sleep 2
  start
  sql "select 'round $round', (select count(*) from pgbench_history)"
  test "$(sql 'select (select sum(abalance) from pgbench_accounts) =
    (select sum(tbalance) from pgbench_tellers) and (select sum(tbalance) from pgbench_tellers) =
    (select coalesce(sum(delta), 0) from pgbench_history)')" = t
done
sql 'create extension amcheck'
as "$bin/pg_amcheck" -h "$SOCKET" -U postgres postgres
as "$bin/pg_ctl" -s -w -D "$PLACE/pg" stop`;
  const ran = sh(script, { PLACE: folder, SOCKET: local }, 10 * MINUTES);
  const rounds =
    ran.output
      .match(/round \d\|\d+/g)
      ?.join(", ")
      .replace(/\|/g, ": ") ?? "none";
  return result(ran, `transactions after crashes: ${rounds}`);
}

function sqlite({ folder }: Job): StressorResult {
  const script = String.raw`
cd "$PLACE"
for mode in delete wal; do
  db=$mode.db
  sqlite3 $db "pragma journal_mode=$mode; create table t(id integer primary key, a, b);
    create index i on t(a);" > /dev/null
  for round in 1 2 3 4 5; do
    setsid sh -c 'i=0; while :; do i=$((i+1))
      echo "begin; insert into t(a,b) values($i, randomblob(500));
      update t set b=randomblob(300) where id=abs(random()) % 500; commit;"; done |
      sqlite3 "$0"' $db > /dev/null 2>&1 &
    sleep 4
    env kill -9 -- -$!
    wait $! 2> /dev/null || true
    sleep 0.5
    test "$(sqlite3 $db '.timeout 5000' 'pragma integrity_check')" = ok
  done
  echo "$mode: $(sqlite3 $db '.timeout 5000' 'select count(*) from t') rows"
done`;
  const ran = sh(script, { PLACE: folder }, 5 * MINUTES);
  return result(ran, ran.output.trim().replace(/\n/g, ", "));
}

function git({ folder }: Job): StressorResult {
  const script = String.raw`
cd "$PLACE"
git init -q r; cd r
i=0; { while [ $i -lt 10000 ]; do i=$((i+1)); m="commit $i"
  printf 'commit refs/heads/main\ncommitter A <a@b> %d +0000\ndata %d\n%s\n' \
    $((1000000000+i)) $(printf %s "$m" | wc -c) "$m"
  printf 'M 644 inline d%d/f%d\ndata %d\n%s\n\n' $((i%20)) $((i%700)) \
    $(printf %s "content $i" | wc -c) "content $i"
done; } | git fast-import --quiet
git checkout -q main
git -c gc.auto=0 fsck --full --strict
git gc -q; git fsck --full --strict
git clone -q --no-local . ../clone
test "$(git rev-parse HEAD)" = "$(git -C ../clone rev-parse HEAD)"
git -C ../clone fsck --full; test -z "$(git -C ../clone status --porcelain)"
git -C ../clone rev-list --count HEAD`;
  const ran = sh(script, { PLACE: folder }, 20 * MINUTES);
  return result(ran, `${last(ran.output, 1)} commits, fsck before and after gc, clone equal`);
}

/** The C that lmdb brings, built by make -j2 there and here: the objects must be the same. */
function build({ folder, local }: Job): StressorResult {
  const sources = join(ROOT, "node_modules/lmdb/dependencies");
  for (const place of [folder, local]) {
    for (let copy = 0; copy < 12; copy++)
      cpSync(sources, join(place, `c${copy}`), { recursive: true });
    const flags = "-O2 -w -ffile-prefix-map=$(CURDIR)=. -Wa,--debug-prefix-map=$(CURDIR)=.";
    writeFileSync(
      join(place, "Makefile"),
      "C := $(sort $(shell find . -name 'mdb.c' -o -name 'midl.c' -o -name 'lz4*.c'))\n" +
        `all.a: $(C:.c=.o)\n\tar rcsD all.a $^\n%.o: %.c\n\tgcc ${flags} -c $< -o $@\n`,
    );
  }
  const script = String.raw`
for p in "$LOCAL" "$PLACE"; do make -s -j2 -C "$p"; done
cmp "$LOCAL/all.a" "$PLACE/all.a"
find "$PLACE" -name '*.o' | wc -l; make -s -C "$PLACE" -q`;
  const ran = sh(script, { PLACE: folder, LOCAL: local }, 20 * MINUTES);
  return result(ran, `${last(ran.output, 1)} objects as those of the local build`);
}

function fio({ folder }: Job): StressorResult {
  const common =
    `--directory="$PLACE" --size=48M --numjobs=2 --verify=crc32c --verify_fatal=1 --do_verify=1 ` +
    `--verify_backlog=256 --end_fsync=1 --minimal`;
  const script =
    `fio --name=buffered --rw=randrw --bsrange=4k-64k --ioengine=psync ${common} > /dev/null\n` +
    `fio --name=direct --rw=randrw --bs=4k --direct=1 --iodepth=16 --ioengine=libaio ` +
    `${common} > /dev/null\n` +
    `fio --name=mapped --rw=randwrite --bs=4k --ioengine=mmap ${common} > /dev/null`;
  return result(sh(script, { PLACE: folder }, 8 * MINUTES), "3 jobs of 2 files, verified");
}

function suiteProgram(suite: string, name: string): string {
  const path = join(suite, name);
  if (!existsSync(path)) throw new Error(`${path} is not there: see docs/posix.md`);
  return path;
}
function fsx({ folder, suite, seed: first }: Job): StressorResult {
  const program = suiteProgram(suite, "fsx");
  // Four files by turns, so that one slow machine does not end with none.
  const script = String.raw`
for seed in $SEEDS; do
  rm -f "$PLACE"/f*
  code=0; timeout -s INT 75 "$PROGRAM" -q -N 1000000 -S $seed "$PLACE/f" || code=$?
  test $code = 124 -o $code = 0
done`;
  const seeds = [0, 1, 2, 3].map((each) => first + each).join(" ");
  const ran = sh(script, { PLACE: folder, PROGRAM: program, SEEDS: seeds }, 8 * MINUTES);
  const calls = [...ran.output.matchAll(/testcalls = (\d+)/g)].reduce(
    (n, m) => n + Number(m[1]),
    0,
  );
  return result(ran, `${calls} operations of 4 seeds`);
}
function fsstress({ folder, suite }: Job): StressorResult {
  const program = suiteProgram(suite, "fsstress");
  const script = `"$PROGRAM" -d "$PLACE" -p 4 -n 1500 -s 7 -w > /dev/null; find "$PLACE" | wc -l`;
  const ran = sh(script, { PLACE: folder, PROGRAM: program }, 8 * MINUTES);
  return result(ran, `4 processes, 6,000 operations, ${last(ran.output, 1)} names left`);
}
/** Of the fuse3 source: once with the names, once with what was unlinked while open. */
function syscalls({ folder, suite }: Job): StressorResult {
  const program = suiteProgram(suite, "test_syscalls");
  const script = `"$PROGRAM" "$PLACE"; "$PROGRAM" "$PLACE" -u`;
  const ran = sh(script, { PLACE: folder, PROGRAM: program }, 8 * MINUTES);
  return result(ran, `${ran.output.match(/\] OK$/gm)?.length ?? 0} checks`);
}
/** LTP's rwtest: what one program orders, another does and compares, alone and as four. */
function rwtest({ folder, suite }: Job): StressorResult {
  const [orders, does] = [suiteProgram(suite, "iogen"), suiteProgram(suite, "doio")];
  const calls = "read,write,pread,pwrite,readv,writev,mmread,mmwrite,fsync2,fdatasync";
  // The pipe has the exit code of doio alone; iogen's is in a file.
  const script = `
cd "$PLACE"
for kind in "-a -v" "-a -v -k -n 4"; do
  { code=0; "$ORDERS" -i 15000 -q -f buffered,sync -m random -s ${calls} -t 1b -T 64k \
      8m:one 16m:two || code=$?; echo $code > ended; } | timeout 200 "$DOES" $kind
  test "$(cat ended)" = 0
done`;
  const ran = sh(script, { PLACE: folder, ORDERS: orders, DOES: does }, 8 * MINUTES);
  return result(ran, "2 times 15,000 operations, compared, by one process and by four");
}
/** LTP's aio-stress: random and sequential, compared. */
function aioStress({ folder, suite }: Job): StressorResult {
  const program = suiteProgram(suite, "aio-stress");
  const script = `cd "$PLACE"; "$PROGRAM" -v -s 128m -r 16k -d 32 -t 2 one two`;
  const ran = sh(script, { PLACE: folder, PROGRAM: program }, 8 * MINUTES);
  return result(ran, `${ran.output.match(/totals/g)?.length ?? 0} stages of 128 MiB`);
}

const RUNS: Readonly<Record<StressorName, (job: Job) => StressorResult>> = {
  "stress-ng": stressNg,
  dbench,
  postgres,
  sqlite,
  git,
  build,
  fio,
  fsx,
  fsstress,
  syscalls,
  rwtest,
  "aio-stress": aioStress,
};

const scope = new Scope();
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    suite: { type: "string", default: "" },
    folder: { type: "string" },
    record: { type: "string" },
    seed: { type: "string", default: "1" },
  },
});
const name = positionals[0] as StressorName;
const { program } = STRESSORS[name];
if (program !== "") execFileSync("sh", ["-c", `command -v ${program} || ls ${program}`]);
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => void scope.end().finally(() => process.exit(130)));
}
try {
  const local = mkdtempSync(join(tmpdir(), "stressor-"));
  scope.teardown(() => rmSync(local, { recursive: true, force: true }));
  let place = values.folder;
  if (place === undefined) {
    const cluster = await startCluster(scope);
    // Some of them give up their rights.
    for (const each of [cluster.folder, dirname(cluster.mount)]) chmodSync(each, 0o755);
    place = cluster.mount;
  }
  const folder = join(resolve(place), `${name}-${process.pid}`);
  mkdirSync(folder);
  const seed = Number(values.seed);
  const found = RUNS[name]({ folder, local, suite: resolve(values.suite), seed });
  console.log(`${found.good ? "ok" : "FAILED"} ${name}: ${found.counts}`);
  if (values.record !== undefined) writeFileSync(values.record, JSON.stringify(found));
  if (!found.good) process.exitCode = 1;
  else rmSync(folder, { recursive: true });
  if (found.good && readdirSync(resolve(place)).includes(`${name}-${process.pid}`)) {
    console.log("FAILED: what was removed is still there");
    process.exitCode = 1;
  }
} finally {
  await scope.end();
}
