/**
 * A lossy test disk for real programs. As a program (`lossy-disk.js MOUNTPOINT`) it mounts a
 * LossyFileSystem with our own FUSE driver and obeys lines on its standard input:
 *
 *     fail N        the power fails after N more changes and syncs, or 2 s:
 *                   nothing is answered from then on                      → failing
 *     cut SEED [LUCK]  what waits gets an error, the mount goes, and the
 *                   seed decides what of the unsynced survives            → cut JSON
 *     return        the disk is mounted again with what survived          → ready
 *     settle        everything written so far is durable                  → settled
 *     ignore-syncs  from now on syncs do nothing                          → ignoring
 *
 * Between `fail` and `cut` whoever uses the disk is killed: a process whose request is never
 * answered cannot die, and one that lives must not see the error. DSS_LOSSY_IGNORE_SYNCS=1 ignores
 * syncs from the start. `LossyDisk` is the test's side of it.
 */
import { execFileSync, spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { silentLogger } from "../../cluster/base/log.js";
import { Prng } from "../../cluster/base/prng.js";
import type { FileSystem } from "../../client-fs/file-system.js";
import { mountFileSystem } from "../../client-fs/fuse/device.js";
import type { Mounted } from "../../client-fs/fuse/driver.js";
import { LossyFileSystem, LUCK, Power } from "./lossy-fs.js";
import type { CutReport, Luck, Survivor } from "./lossy-fs.js";
import { waitFor } from "./temp.js";
import type { Teardown } from "./temp.js";

const PROGRAM = fileURLToPath(import.meta.url);
const ANSWER_MS = 30_000;
const UNMOUNT_MS = 20_000;
const FAIL_MS_MAX = 2_000;

// ---- The test's side ---------------------------------------------------------------------------

export interface CutOptions {
  /** Instead of what the seed would choose. */
  readonly luck?: Luck;
}

export class LossyDisk {
  private readonly child: ChildProcess;
  private readonly exited: Promise<void>;
  private output = "";
  private errors = "";

  private constructor(
    t: Teardown,
    readonly path: string,
  ) {
    this.child = spawn(process.execPath, ["--enable-source-maps", PROGRAM, path], {
      stdio: ["pipe", "pipe", "pipe"],
    });
    this.child.stdout?.on("data", (chunk: Buffer) => (this.output += chunk.toString()));
    this.child.stderr?.on("data", (chunk: Buffer) => (this.errors += chunk.toString()));
    this.child.stdin?.on("error", () => undefined); // It ended: `ask` says so.
    this.exited = new Promise((done) => this.child.once("exit", () => done()));
    t.teardown(() => this.stop());
  }

  /** An empty disk at `path`, an existing empty folder. */
  static async start(t: Teardown, path: string): Promise<LossyDisk> {
    const disk = new LossyDisk(t, path);
    await disk.answer("start", /ready/);
    return disk;
  }

  /**
   * Nothing that the disk has not answered then will be answered. Counting changes finds moments
   * that a clock seldom does, such as between the writes of one index commit.
   */
  async fail({ afterChanges = 0 } = {}): Promise<void> {
    await this.ask(`fail ${afterChanges}`, /failing/);
  }
  /** Whoever used the disk has been killed. */
  async cut(seed: number, { luck }: CutOptions = {}): Promise<CutReport> {
    const match = await this.ask(`cut ${seed} ${luck ?? ""}`, /cut (\{.*\})/);
    return JSON.parse(match[1] ?? "{}") as CutReport;
  }
  async return(): Promise<void> {
    await this.ask("return", /ready/);
  }
  async settle(): Promise<void> {
    await this.ask("settle", /settled/);
  }
  async ignoreSyncs(): Promise<void> {
    await this.ask("ignore-syncs", /ignoring/);
  }

  async stop(): Promise<void> {
    if (this.child.exitCode === null && this.child.signalCode === null) {
      this.child.kill("SIGKILL");
      await this.exited;
    }
    if (!readFileSync("/proc/self/mountinfo", "utf8").includes(` ${this.path} `)) return;
    execFileSync("umount", ["-l", this.path], { stdio: "ignore", timeout: 10_000 });
  }

  private async ask(line: string, pattern: RegExp): Promise<RegExpExecArray> {
    this.output = "";
    this.child.stdin?.write(`${line}\n`);
    return await this.answer(line, pattern);
  }
  private async answer(line: string, pattern: RegExp): Promise<RegExpExecArray> {
    return await waitFor(
      `the lossy disk's answer to "${line}"`,
      () => {
        if (this.child.exitCode === null && this.child.signalCode === null) {
          return pattern.exec(this.output) ?? undefined;
        }
        throw new Error(`the lossy disk ended: ${this.output}${this.errors}`);
      },
      { withinMs: ANSWER_MS, everyMs: 2 },
    );
  }
}

// ---- The program -------------------------------------------------------------------------------

/** Calls without an answer: they need no power. */
const SILENT: ReadonlySet<string> = new Set(["init", "destroy", "forget", "entriesTaken"]);

/** The file system as long as there is power; what it has not answered by then waits. */
function powered(files: LossyFileSystem, power: Power): FileSystem {
  return new Proxy<FileSystem>(files, {
    get(target, property) {
      const member: unknown = Reflect.get(target, property);
      if (typeof member !== "function") return member;
      const method = member as (...args: unknown[]) => unknown;
      if (SILENT.has(String(property))) return method.bind(target);
      return async (...args: unknown[]) => {
        if (!power.on) return await power.hold();
        const answer = await method.apply(target, args);
        return power.on ? answer : await power.hold();
      };
    },
  });
}

class Host {
  private power = new Power();
  private random = new Prng(1);
  private files: LossyFileSystem | undefined;
  private mounted: Mounted | undefined;
  private survivor: Survivor | undefined;

  constructor(private readonly path: string) {}

  async mount(): Promise<string> {
    this.power = new Power();
    this.files = await LossyFileSystem.open(this.power, this.random, this.survivor);
    this.files.ignoreSyncs = process.env["DSS_LOSSY_IGNORE_SYNCS"] === "1";
    this.mounted = await mountFileSystem(powered(this.files, this.power), {
      mountpoint: this.path,
      logger: silentLogger,
      sourceName: "lossy",
    });
    // The host outlives its mounts; how one ended does not matter to the next.
    this.mounted.done.catch(() => undefined);
    return "ready";
  }

  async obey(line: string): Promise<string> {
    const [command, argument, ...rest] = line.trim().split(" ");
    switch (command) {
      case "fail":
        await this.fail(Number(argument));
        return "failing";
      case "cut":
        return `cut ${JSON.stringify(await this.cut(Number(argument), rest.join(" ")))}`;
      case "return":
        return await this.mount();
      case "settle":
        this.files?.makeAllDurable();
        return "settled";
      case "ignore-syncs":
        if (this.files !== undefined) this.files.ignoreSyncs = true;
        return "ignoring";
      default:
        throw new Error(`lossy disk: no command "${line}"`);
    }
  }

  private async fail(afterChanges: number): Promise<void> {
    const { power, files } = this;
    await new Promise<void>((failing) => {
      power.onFailing = failing;
      setTimeout(() => power.fail(), afterChanges === 0 ? 0 : FAIL_MS_MAX);
      if (files !== undefined && afterChanges > 0) files.failsAfter = afterChanges;
    });
  }

  private async cut(seed: number, wanted: string): Promise<CutReport> {
    if (this.files === undefined || this.mounted === undefined) throw new Error("not mounted");
    this.random = new Prng(seed);
    const luck = LUCK.find((each) => each === wanted) ?? this.random.pick(LUCK);
    this.power.cut();
    const { root, report } = this.files.survivors(this.random, luck);
    this.survivor = root;
    await this.mounted.unmount({ lazy: true });
    const late = setTimeout(() => {
      process.stderr.write("lossy disk: somebody still uses it\n");
      process.exit(1);
    }, UNMOUNT_MS);
    await this.mounted.done.catch(() => undefined);
    clearTimeout(late);
    return report;
  }
}

async function main(path: string): Promise<void> {
  const host = new Host(path);
  process.stdout.write(`${await host.mount()}\n`);
  for await (const line of createInterface({ input: process.stdin })) {
    process.stdout.write(`${await host.obey(line)}\n`);
  }
  process.exit(0); // Its test has ended, and unmounts.
}

if (process.argv[1] === PROGRAM) await main(process.argv[2] ?? "");
