/**
 * Runs one scenario in a process of its own: `worker.js JSON`. Exit code 0 when it holds; otherwise
 * what was wrong is on stderr.
 */
import { rmSync } from "node:fs";
import { makeScene } from "./checks.js";
import type { Scenarios } from "./checks.js";
import { DATA } from "./data.js";
import { NAMES } from "./names.js";
import { OWNERS } from "./owners.js";
import { compareWithTwin, randomOperations } from "./random-operations.js";

export interface WorkerRequest {
  scenario: string;
  root: string;
  local: string;
  seed: number;
  scale: number;
  /** Of random operations. */
  count?: number;
  /** Remove what the scenario made when it holds. */
  clean: boolean;
}

const ALL: Scenarios = { ...NAMES, ...OWNERS, ...DATA };

const request = JSON.parse(process.argv[2] ?? "{}") as WorkerRequest;
const scene = makeScene(request);
process.umask(0o022);
try {
  if (request.scenario === "random operations") randomOperations(scene, request.count ?? 1_000);
  else if (request.scenario === "compare with twin") compareWithTwin(scene);
  else {
    const scenario = ALL[request.scenario];
    if (scenario === undefined) throw new Error(`no scenario ${request.scenario}`);
    // Other users get there through the working folder: folders above may be closed to them.
    process.chdir(request.root);
    await scenario(request.scenario in OWNERS ? makeScene({ ...request, root: "." }) : scene);
  }
  process.chdir("/");
  if (request.clean) rmSync(request.root, { recursive: true, force: true });
} catch (error) {
  process.stderr.write(`${error instanceof Error ? (error.stack ?? error.message) : error}\n`);
  process.exitCode = 1;
}
