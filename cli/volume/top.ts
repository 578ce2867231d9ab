/** `dss volume top`: what volumes do just now, as their servers tell the metadata leader. */
import type { Command } from "commander";
import type { VolumeTop } from "../../mds/proto.js";
import { examples, withJson } from "../options.js";
import { note, printJson, printLine, table } from "../output.js";
import { formatSize, parseCount } from "../sizes.js";
import { inSession } from "./session.js";

const INTERVAL = { what: "--interval", min: 1, max: 3_600 };
const CLEAR_SCREEN = "\x1b[H\x1b[J";

export interface TopRow {
  volume: string;
  server: string;
  readsPerSecond: number;
  writesPerSecond: number;
  othersPerSecond: number;
  readBytesPerSecond: number;
  writeBytesPerSecond: number;
  /** Microseconds. */
  read: { p50Us: number; p99Us: number; maxUs: number };
  write: { p50Us: number; p99Us: number; maxUs: number };
  failures: number;
  /** Share of the time in which its limits held back a connection; above 1: several of them. */
  limited: number;
}

export function topRow({ name, server, activity }: VolumeTop): TopRow {
  const seconds = Math.max(activity.spanMs, 1) / 1_000;
  const rate = (count: number): number => Math.round(count / seconds);
  return {
    ...{ volume: name, server },
    readsPerSecond: rate(activity.reads),
    writesPerSecond: rate(activity.writes),
    othersPerSecond: rate(activity.others),
    readBytesPerSecond: rate(activity.readBytes),
    writeBytesPerSecond: rate(activity.writeBytes),
    ...{ read: activity.read, write: activity.write, failures: activity.failures },
    limited: Number((activity.heldMs / Math.max(activity.spanMs, 1)).toFixed(2)),
  };
}

function rowsOf(found: readonly VolumeTop[]): TopRow[] {
  const busy = (row: TopRow): number => row.readBytesPerSecond + row.writeBytesPerSecond;
  return found.map(topRow).sort((a, b) => busy(b) - busy(a) || a.volume.localeCompare(b.volume));
}

const milliseconds = (us: number): string => (us === 0 ? "-" : (us / 1_000).toFixed(2));

function tableOf(rows: readonly TopRow[]): string {
  if (rows.length === 0) return "no volume is in use";
  const head = ["VOLUME", "READ/S", "WRITE/S", "READ B/S", "WRITE B/S"];
  const latencies = ["READ MS", "99%", "WRITE MS", "99%", "LIMITED", "SERVER"];
  const cells = rows.map((row) => [
    ...[row.volume, row.readsPerSecond, row.writesPerSecond],
    ...[formatSize(row.readBytesPerSecond), formatSize(row.writeBytesPerSecond)],
    ...[milliseconds(row.read.p50Us), milliseconds(row.read.p99Us)],
    ...[milliseconds(row.write.p50Us), milliseconds(row.write.p99Us)],
    ...[row.limited === 0 ? "-" : `${Math.round(row.limited * 100)} %`, row.server],
  ]);
  return table([...head, ...latencies], cells);
}

export function registerTop(parent: Command): void {
  const top = withJson(
    parent
      .command("top")
      .description("show what volumes in use do, again and again; --json and --once: one time")
      .option("--interval <seconds>", "between two looks", "1")
      .option("--once", "look one time"),
  );
  top.action(async (options: { interval: string; once?: boolean; json?: boolean }) => {
    const intervalMs = parseCount(options.interval, INTERVAL) * 1_000;
    await inSession(top, async (mds) => {
      let stop: () => void = () => undefined;
      const stopped = new Promise<"stopped">((resolve) => (stop = () => resolve("stopped")));
      // The session ends in good order.
      for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, stop);
      for (;;) {
        const { answer } = await mds.call({ op: "volumeTop" });
        const rows = rowsOf(answer.volumeTop ?? []);
        if (options.json === true) return printJson(rows);
        if (process.stdout.isTTY && options.once !== true) process.stdout.write(CLEAR_SCREEN);
        printLine(tableOf(rows));
        if (options.once === true) return;
        if (process.stdout.isTTY) note("Ctrl-C ends it");
        const pause = new Promise((resolve) => setTimeout(resolve, intervalMs).unref());
        if ((await Promise.race([pause, stopped])) === "stopped") return;
      }
    });
  });
  examples(top, "dss volume top", "dss volume top --json");
}
