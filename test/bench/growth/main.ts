/**
 * `npm run bench:growth [-- --only WORD] [--small | --large] [--json FILE] [--markdown FILE]`: how
 * cost grows with the size of a file, the number of files, volumes, processes, OSDs and so on. One
 * theme after the other, each on a cluster of its own; a theme that fails is reported, and the next
 * one goes on. docs/performance.md says how to read it.
 */
import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { ROOT } from "../../../tools/test-parts.js";
import { runProgram, UsageError } from "../../support/program.js";
import { endWithProcess, Scope } from "../../support/scope.js";
import { describeCommit, describeMachine } from "../measure.js";
import { clientProcesses } from "./clients.js";
import { osds, placementGroups } from "./cluster-size.js";
import { directoryEntries, filesInAll } from "./file-count.js";
import { fileSize } from "./file-size.js";
import { Growth, type Profile, type Theme } from "./growth.js";
import { markdownOf } from "./table.js";
import type { GrowthDocument, GrowthFailure, GrowthTable } from "./table.js";
import { takeover } from "./takeover.js";
import { snapshots, volumes } from "./volumes.js";

const THEMES: readonly Theme[] = [
  ...[fileSize, filesInAll, directoryEntries, volumes, clientProcesses],
  ...[osds, placementGroups, takeover, snapshots],
];

const note = (line: string): void => void process.stderr.write(`${line}\n`);

interface Options {
  readonly themes: readonly Theme[];
  readonly profile: Profile;
}

async function measure(root: Scope, { themes, profile }: Options): Promise<GrowthDocument> {
  const start = performance.now();
  const tables: GrowthTable[] = [];
  const failures: GrowthFailure[] = [];
  for (const theme of themes) {
    note(`${theme.name} …`);
    await root.within(async (scope) => {
      const growth = new Growth(scope, profile);
      try {
        await theme.measure(growth);
      } catch (error) {
        // Stopped by the user: everything fails, and nothing more is started.
        if (root.ended) throw error;
        const message = (error as Error).message.trim().slice(0, 4_000);
        note(`${theme.name} FAILED: ${message}`);
        failures.push({ theme: theme.name, message });
      }
      tables.push(...growth.tables);
    });
  }
  return {
    ...{ format: 1, kind: "growth", commit: describeCommit(ROOT), date: new Date().toISOString() },
    seconds: (performance.now() - start) / 1000,
    machine: describeMachine(),
    ...{ profile, tables, failures },
  };
}

function chooseThemes(word: string): Theme[] {
  const chosen = THEMES.filter(({ name }) => name.toLowerCase().includes(word.toLowerCase()));
  if (chosen.length > 0) return chosen;
  const known = THEMES.map(({ name }) => `"${name}"`).join(", ");
  throw new UsageError(`--only: no theme's name contains "${word}"; there are ${known}`);
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      only: { type: "string", default: "" },
      small: { type: "boolean", default: false },
      large: { type: "boolean", default: false },
      json: { type: "string" },
      markdown: { type: "string" },
    },
  });
  if (values.small && values.large) throw new UsageError("--small and --large: give one of them");
  const profile = values.small ? "small" : values.large ? "large" : "usual";
  const themes = chooseThemes(values.only);
  if (process.getuid?.() !== 0) throw new UsageError("run it as root: it empties kernel caches");
  const root = new Scope();
  endWithProcess(root);
  try {
    const document = await measure(root, { themes, profile });
    const markdown = markdownOf(document);
    process.stdout.write(`${markdown}\n`);
    if (values.json !== undefined) {
      writeFileSync(values.json, `${JSON.stringify(document, null, 2)}\n`);
    }
    if (values.markdown !== undefined) writeFileSync(values.markdown, `${markdown}\n`);
    return document.failures.length > 0 ? 1 : 0;
  } catch (error) {
    if (!root.ended) throw error;
    // A signal has ended everything, which is why it failed; the signal's handler exits.
    return 1;
  } finally {
    await root.end();
  }
}

await runProgram("bench:growth", main);
