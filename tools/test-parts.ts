/**
 * The parts of `npm test`: which test files belong to each, how long each may take, and what it
 * needs of the machine. Pure but for listing the tree. A test file belongs to the part with the
 * longest matching prefix; test/tidy.test.ts fails when a file belongs to none.
 */
import { existsSync, readdirSync } from "node:fs";
import { join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";

/** The checkout, from dist/tools (or another build folder of the same depth). */
export const ROOT = fileURLToPath(new URL("../..", import.meta.url));

export type Purpose = "up" | "test" | "guest";

export interface Part {
  readonly name: string;
  readonly title: string;
  /** Prefixes of source paths, relative to the checkout. */
  readonly prefixes: readonly string[];
  /** What the part should take; a note is printed beyond it. */
  readonly budgetSeconds: number;
  /** Beyond this the part is stopped and has failed. */
  readonly limitSeconds: number;
  /** Its files listen on fixed ports. */
  readonly startsClusters: boolean;
  /** Purposes of Debian packages (tools/packages.js). */
  readonly needs: readonly Purpose[];
}

export const PARTS: readonly Part[] = [
  {
    name: "unit",
    title: "unit",
    prefixes: ["test/tidy.test.ts", "test/unit/", "test/fuzz/"],
    budgetSeconds: 60,
    limitSeconds: 240,
    startsClusters: false,
    needs: [],
  },
  {
    name: "sim",
    title: "simulator",
    prefixes: ["test/sim/"],
    budgetSeconds: 90,
    limitSeconds: 450,
    startsClusters: false,
    needs: [],
  },
  {
    name: "crash",
    title: "crash and failover",
    prefixes: ["test/integration/"], // Whatever needs real processes and is not claimed below.
    budgetSeconds: 330,
    limitSeconds: 720,
    startsClusters: true,
    needs: ["up", "test"],
  },
  {
    name: "failures",
    title: "failures under load",
    prefixes: [
      "test/integration/crash-failover",
      "test/integration/crash-partition",
      "test/integration/health-codes",
    ],
    budgetSeconds: 240,
    limitSeconds: 720,
    startsClusters: true,
    needs: ["up", "test"],
  },
  {
    name: "recovery",
    title: "recovery, scrub, full disks, power",
    prefixes: [
      "test/integration/balance",
      "test/integration/bit-flips",
      "test/integration/fsck",
      "test/integration/full-disks",
      "test/integration/power",
    ],
    budgetSeconds: 300,
    limitSeconds: 720,
    startsClusters: true,
    needs: ["up", "test"],
  },
  {
    name: "files",
    title: "files and POSIX",
    prefixes: ["test/posix/", "test/integration/mount/"],
    budgetSeconds: 240,
    limitSeconds: 720,
    startsClusters: true,
    needs: ["up", "test"],
  },
  {
    name: "nbd",
    title: "NBD and qemu",
    prefixes: ["test/integration/nbd/"],
    budgetSeconds: 240,
    limitSeconds: 720,
    startsClusters: true,
    needs: ["up", "test", "guest"],
  },
];

/** The part of a test file (path relative to the checkout), or undefined. */
export function partOf(file: string): Part | undefined {
  let best: Part | undefined;
  let length = 0;
  for (const part of PARTS) {
    for (const prefix of part.prefixes) {
      if (!file.startsWith(prefix) || prefix.length <= length) continue;
      best = part;
      length = prefix.length;
    }
  }
  return best;
}

/** Every test file, relative to the checkout, sorted. */
export function allTestFiles(): string[] {
  const found: string[] = [];
  const visit = (folder: string): void => {
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      const path = join(folder, entry.name);
      if (entry.isDirectory()) visit(path);
      else if (entry.name.endsWith(".test.ts")) found.push(relative(ROOT, path));
    }
  };
  visit(join(ROOT, "test"));
  return found.sort();
}

/**
 * The test files that the arguments name: part names, files or folders; all of them without
 * arguments. `unknown` lists arguments that name nothing.
 */
export function selectTests(args: readonly string[]): { files: string[]; unknown: string[] } {
  const all = allTestFiles();
  if (args.length === 0) return { files: all, unknown: [] };
  const chosen = new Set<string>();
  const unknown: string[] = [];
  for (const arg of args) {
    const path = sourcePath(arg);
    const matches = all.filter(
      (file) => partOf(file)?.name === arg || file === path || file.startsWith(`${path}/`),
    );
    // A part that has no tests yet is known; what becomes of it is the runner's to say.
    if (matches.length === 0 && !PARTS.some((part) => part.name === arg)) unknown.push(arg);
    for (const file of matches) chosen.add(file);
  }
  return { files: all.filter((file) => chosen.has(file)), unknown };
}

/** A path as typed (source or built file, from here or from the checkout) to a source path. */
function sourcePath(arg: string): string {
  const direct = existsSync(resolve(arg)) ? relative(ROOT, resolve(arg)) : arg;
  return direct
    .replace(/^dist\//, "")
    .replace(/\.test\.js$/, ".test.ts")
    .replace(/\/+$/, "");
}

/** Purposes of the packages that the selected tests need. */
export function packagesNeeded(args: readonly string[]): Purpose[] {
  return [...new Set(selectTests(args).files.flatMap((file) => partOf(file)?.needs ?? []))];
}
