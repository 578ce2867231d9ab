/**
 * What people do with many files, in a folder of any file system: small files one by one, a tree
 * unpacked, copied and removed, a large directory listed. For `npm run bench`, which does it on
 * mounts of dss and on the local disk beside them.
 */
import { mkdirSync, mkdtempSync } from "node:fs";
import { join } from "node:path";
import { succeed } from "../support/process.js";
import type { Scope } from "../support/scope.js";
import { withCpu, type Watched } from "./measure.js";
import { makeTree } from "./peers/tree.js";
import { summarize, type Result, type Run, type Unit } from "./report.js";
import { runSmallFiles } from "./run-small-files.js";

const WORKERS = 4;
const PROGRAM_MS = 600_000;

export interface FileSizes {
  readonly smallFiles: number;
  /** Files of the tree; 0: none is unpacked. */
  readonly treeFiles: number;
  /** Entries of the large directory; 0: there is none. */
  readonly entries: number;
}

/** Where files are made. */
export interface Place {
  /** Begins the name of each test. */
  readonly prefix: string;
  readonly folder: string;
  /** Processes whose time counts. */
  processes(): Promise<readonly Watched[]>;
  /** Nothing stays in any cache. */
  cold(): void;
}

export class FileTests {
  private readonly done = new Map<string, { unit: Unit; runs: Run[] }>();
  /** Two places may be one folder, mounted in two ways. */
  private readonly folder: string;

  constructor(
    private readonly scope: Scope,
    private readonly place: Place,
    private readonly isWanted: (name: string) => boolean,
  ) {
    this.folder = mkdtempSync(join(place.folder, "files-"));
  }

  async run(runs: number, sizes: FileSizes): Promise<Result[]> {
    for (const workers of [1, WORKERS]) {
      for (let run = 0; run < runs; run++) await this.smallFiles(sizes.smallFiles, workers, run);
    }
    if (sizes.treeFiles > 0) await this.trees(sizes.treeFiles, runs);
    if (sizes.entries > 0) await this.largeDirectory(sizes.entries, runs);
    return [...this.done].map(([name, { unit, runs: list }]) => summarize(name, unit, list));
  }

  private async measure(name: string, unit: Unit, work: () => Promise<number>): Promise<void> {
    const { value: figure, cpu } = await withCpu(await this.place.processes(), work);
    if (!this.isWanted(name)) return; // Others need what it has made.
    const runs = this.done.get(name)?.runs ?? [];
    this.done.set(name, { unit, runs: [...runs, { figure, cpu }] });
  }
  private async seconds(program: string, ...args: string[]): Promise<number> {
    const start = performance.now();
    await succeed(this.scope, program, args, { withinMs: PROGRAM_MS });
    return (performance.now() - start) / 1000;
  }

  private async smallFiles(count: number, workers: number, run: number): Promise<void> {
    const name = (phase: string): string => {
      const cold = phase === "stat" || phase === "read" ? ", cold" : "";
      return `${this.place.prefix}small files: ${phase}${cold}, ${workers} at a time`;
    };
    const phases = ["create", "stat", "read", "delete"];
    if (!phases.some((phase) => this.isWanted(name(phase)))) return;
    const folder = join(this.folder, `small-${workers}-${run}`);
    mkdirSync(folder);
    for (const phase of phases) {
      if (phase === "stat") this.place.cold();
      await this.measure(name(phase), "/s", async () => {
        const request = { folder, phase, count, workers };
        const { operations, seconds } = await runSmallFiles(this.scope, request, PROGRAM_MS);
        return operations / seconds;
      });
    }
  }

  private async trees(files: number, runs: number): Promise<void> {
    const name = (what: string): string => `${this.place.prefix}tree of ${files} files: ${what}`;
    if (!["tar -x", "cp -r", "rm -r of both"].some((what) => this.isWanted(name(what)))) return;
    const tar = await makeTree(this.scope, files);
    for (let run = 0; run < runs; run++) {
      const [unpacked, copied] = ["t", "c"].map((each) => join(this.folder, `${each}${run}`));
      mkdirSync(unpacked!);
      await this.measure(name("tar -x"), "s", () =>
        this.seconds("tar", "-C", unpacked!, "-xf", tar),
      );
      await this.measure(name("cp -r"), "s", () => this.seconds("cp", "-r", unpacked!, copied!));
      await this.measure(name("rm -r of both"), "s", () =>
        this.seconds("rm", "-r", unpacked!, copied!),
      );
    }
  }

  private async largeDirectory(entries: number, runs: number): Promise<void> {
    const name = (what: string): string =>
      `${this.place.prefix}directory of ${entries} entries: ${what}`;
    if (!["ls -l", "ls -l, cold"].some((what) => this.isWanted(name(what)))) return;
    const folder = join(this.folder, "large");
    mkdirSync(folder);
    const make = ["-c", 'cd "$1" && seq "$2" | xargs touch', "-", folder, String(entries)];
    await succeed(this.scope, "sh", make, { withinMs: PROGRAM_MS });
    const list = (): Promise<number> => this.seconds("ls", "-l", folder);
    for (let run = 0; run < runs; run++) {
      this.place.cold();
      await this.measure(name("ls -l, cold"), "s", list);
      await this.measure(name("ls -l"), "s", list);
    }
    await succeed(this.scope, "rm", ["-r", folder], { withinMs: PROGRAM_MS });
  }
}
