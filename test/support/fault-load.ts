/**
 * The load under which failures are made: fio writes and verifies on the mount and on a served
 * volume, one pass after another, while the prober (prober.ts) measures single operations on both
 * paths. None of them may see an error or a wrong byte; what a failure may cost is a delay.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { appendFileSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { BUILD, run } from "./process.js";
import type { ProberReport, ProberRequest } from "./prober.js";
import { waitFor, withDeadline, type Teardown } from "./temp.js";

const MIB = 2 ** 20;
/** Of the volume: fio's bytes come first, the prober's behind them. */
const FIO_BYTES = 64 * MIB;
const PROBE_BYTES = 64 * MIB;
export const VOLUME_BYTES = FIO_BYTES + PROBE_BYTES;
/** One pass of fio; the failures come at any point of it. */
const PASS_SECONDS = 6;
const PASS_LIMIT_MS = 180_000;
const REPORT_MS = 10_000;

/** fio's arguments for both paths: what is written is read back and compared, all the time. */
function fioArguments(seed: number): string[] {
  return [
    "--name=load",
    "--rw=randrw",
    "--rwmixwrite=70",
    "--bsrange=4k-64k",
    "--minimal",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--verify_state_save=0",
    "--verify_backlog=64",
    "--time_based",
    `--runtime=${PASS_SECONDS}`,
    `--randseed=${seed}`,
    // Enough to meet every failure, little enough to leave the processors to the recovery.
    "--rate_iops=150",
  ];
}

/** Passes of fio, one after the other, until it is stopped. */
class FioPasses {
  passes = 0;
  readonly done: Promise<void>;
  private stopping = false;

  constructor(
    private readonly t: Teardown,
    private readonly what: string,
    private readonly args: (pass: number) => string[],
  ) {
    this.done = this.repeat();
    this.done.catch(() => undefined); // Thrown to whoever stops it.
  }
  private async repeat(): Promise<void> {
    while (!this.stopping) {
      const args = [...fioArguments(this.passes + 1), ...this.args(this.passes)];
      const { code, signal, stdout, stderr } = await run(this.t, "fio", args, {
        withinMs: PASS_LIMIT_MS,
      });
      if (code !== 0) {
        const end = signal ?? `exit code ${code}`;
        throw new Error(`fio on the ${this.what}, pass ${this.passes}: ${end}\n${stdout}${stderr}`);
      }
      this.passes++;
    }
  }
  /** Waits for the pass under way. Fails when any pass failed. */
  async stop(): Promise<void> {
    this.stopping = true;
    await this.done;
  }
}

/** The prober as a child process. */
export class Prober {
  private readonly child: ChildProcess;
  private readonly waiting: ((report: ProberReport) => void)[] = [];
  private stderr = "";

  private constructor(t: Teardown, request: ProberRequest) {
    const program = `${BUILD}test/support/prober.js`;
    this.child = spawn(
      process.execPath,
      ["--enable-source-maps", program, JSON.stringify(request)],
      { stdio: ["pipe", "pipe", "pipe"], detached: true },
    );
    t.teardown(() => this.child.kill("SIGKILL"));
    this.child.stderr?.on("data", (chunk: Buffer) => (this.stderr += chunk.toString("utf8")));
    if (this.child.stdout === null) throw new Error("the prober has no output");
    createInterface({ input: this.child.stdout }).on("line", (line) => {
      this.waiting.shift()?.(JSON.parse(line) as ProberReport);
    });
    this.child.stdin?.on("error", () => undefined); // Its end is told by the missing report.
  }
  static async start(t: Teardown, request: ProberRequest): Promise<Prober> {
    const prober = new Prober(t, request);
    await prober.answer(30_000);
    return prober;
  }
  /** What happened since the last report. */
  async report(): Promise<ProberReport> {
    this.child.stdin?.write("report\n");
    return await this.answer(REPORT_MS);
  }
  private async answer(withinMs: number): Promise<ProberReport> {
    const report = new Promise<ProberReport>((done) => this.waiting.push(done));
    return await withDeadline(withinMs, "a report of the prober", report).catch(
      (cause: unknown) => {
        throw new Error(`${String(cause)}\n${this.stderr}`, { cause });
      },
    );
  }
  async stop(): Promise<ProberReport> {
    const last = await this.report();
    const ended = new Promise((done) => this.child.once("exit", done));
    this.child.stdin?.end();
    await withDeadline(20_000, "the end of the prober", ended);
    return last;
  }
}

export interface Measured {
  /** Milliseconds of the longest single operation, and which it was. */
  readonly longestMs: number;
  readonly lane: string;
  readonly lanes: Readonly<Record<string, number>>;
}

/** Where the loads run. */
export interface LoadPlace {
  readonly mount: string;
  serve(
    volume: string,
    bytes: number,
  ): Promise<{ server: { stop(): Promise<void> }; socket: string }>;
}

/** Both loads on one cluster. */
export class FaultLoad {
  private constructor(
    private readonly fio: readonly FioPasses[],
    readonly prober: Prober,
    private readonly server: { stop(): Promise<void> },
  ) {}

  static async start(t: Teardown, cluster: LoadPlace): Promise<FaultLoad> {
    const { server, socket } = await cluster.serve("load", VOLUME_BYTES);
    const folder = join(cluster.mount, "load");
    mkdirSync(folder);
    const prober = await Prober.start(t, {
      folder: join(cluster.mount, "probe"),
      nbd: { socket, volume: "load", from: FIO_BYTES, to: VOLUME_BYTES },
      fileBytes: PROBE_BYTES,
      seed: 5,
    });
    const size = `--size=${FIO_BYTES / MIB}M`;
    const fio = [
      // O_DIRECT and buffered with fsync in turn.
      new FioPasses(t, "mount", (pass) => [
        size,
        `--directory=${folder}`,
        "--ioengine=psync",
        ...(pass % 2 === 0 ? ["--direct=1"] : ["--fsync=32"]),
      ]),
      new FioPasses(t, "volume", () => [
        size,
        "--ioengine=nbd",
        `--uri=nbd+unix:///load?socket=${socket}`,
        "--iodepth=8",
      ]),
    ];
    return new FaultLoad(fio, prober, server);
  }

  /**
   * Does `action` (the failure) and measures from it until every kind of operation ended at least
   * `operations` times more. Fails on any error that a client saw.
   */
  async during(
    action: () => Promise<void>,
    { settleMs = 3_000, withinMs = 60_000 } = {},
  ): Promise<Measured> {
    await this.prober.report();
    await action();
    // A lane that waits has not ended its operation; one that goes on ends many.
    const lanes: Record<string, number> = {};
    const begin = performance.now();
    await waitFor(
      "every kind of operation goes on",
      async () => {
        const report = await this.prober.report();
        this.refuse(report);
        for (const [name, ms] of Object.entries(report.longest)) {
          lanes[name] = Math.max(lanes[name] ?? 0, ms);
        }
        const isGoing = Object.values(report.count).every((count) => count >= 3);
        return isGoing && performance.now() - begin >= settleMs;
      },
      { withinMs, everyMs: 500 },
    ).catch((cause: unknown) => {
      throw new Error(`${String(cause)}: ${JSON.stringify(lanes)}`, { cause });
    });
    const [lane, longestMs] = Object.entries(lanes).sort((a, b) => b[1] - a[1])[0]!;
    return { longestMs, lane, lanes };
  }

  private refuse(report: ProberReport): void {
    if (report.errors.length > 0) throw new ClientError(report.errors.join("; "));
  }

  /** How many passes of fio are through, of the slower one. */
  get passes(): number {
    return Math.min(...this.fio.map((each) => each.passes));
  }

  /** Ends everything in good order. Fails when any client saw an error or a wrong byte. */
  async stop(): Promise<void> {
    this.refuse(await this.prober.stop());
    for (const each of this.fio) await each.stop();
    await this.server.stop();
  }
}

class ClientError extends Error {}

/** With DSS_FAILURES_RECORD: one line of JSON a measured failure, for the campaign's medians. */
export function recordStall(name: string, limitMs: number, measured: Measured): void {
  const path = process.env["DSS_FAILURES_RECORD"];
  if (path === undefined) return;
  const load = Number(readFileSync("/proc/loadavg", "utf8").split(" ")[0]);
  const at = new Date().toISOString();
  appendFileSync(path, `${JSON.stringify({ name, limitMs, ...measured, load, at })}\n`);
}
