/**
 * A bare pipeline: what three copies cost without anything of dss. A client, a primary and two
 * replicas are four processes over sockets of Node's `net`; each of the three that store checks
 * the crc32 of the data, writes them to a file made beforehand, in groups, and answers once
 * `fdatasync` of the group is done. Reads come from the primary's file, so from the page cache.
 */
import { join } from "node:path";
import { start } from "../../support/process.js";
import type { Program } from "../../support/process.js";
import type { Scope } from "../../support/scope.js";
import { tempFolder } from "../../support/temp.js";
import { KiB, MiB, programOf, runLoad } from "./part.js";
import type { Part, Row, Sizes } from "./part.js";

const row = (what: string, bytes: number, depth: number): Row => {
  const size = bytes < MiB ? `${bytes / KiB} KiB` : `${bytes / MiB} MiB`;
  return { name: `pipeline: ${what} ${size}, ${depth} in flight`, bytes, depth };
};

export const pipeline: Part = {
  rows: [
    row("write", 4 * KiB, 1),
    row("write", 4 * KiB, 16),
    row("write", MiB, 4),
    row("read", 4 * KiB, 16),
    row("read", MiB, 4),
  ],
  async measure(scope, rows, sizes) {
    const replicas = [await startNode(scope, sizes), await startNode(scope, sizes)];
    const ports = replicas.map(({ port }) => String(port));
    const primary = await startNode(scope, sizes, ports);
    const watched = [
      { name: "primary", role: "primary", pid: primary.program.pid },
      ...replicas.map(({ program }, i) => {
        return { name: `replica ${i}`, role: "replicas", pid: program.pid };
      }),
    ];
    const where = { port: primary.port };
    return await runLoad(scope, "pipeline-client", { where, rows, sizes, watched, role: "client" });
  },
};

export interface ClientPlace {
  readonly port: number;
}

/** With the ports of replicas it is a primary. */
async function startNode(
  scope: Scope,
  { sequential }: Sizes,
  replicas: readonly string[] = [],
): Promise<{ program: Program; port: number }> {
  const file = join(tempFolder(scope, "pipeline"), "log");
  const args = [...programOf("pipeline-node"), file, String(sequential), ...replicas];
  const program = start(scope, process.execPath, args);
  const [, port] = await program.output(/port (\d+)/, 60_000);
  return { program, port: Number(port) };
}
