/**
 * The table of volumes to attach when the machine starts, in the manner of crypttab: a line each,
 * `NAME [DEVICE|-] [OPTIONS]`, with the options `ro` and `loop` and `zookeeper=HOST:PORT;…`,
 * separated by commas. Pure but for reading and writing the file as a whole.
 */
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { DssError } from "../../cluster/base/errors.js";

export interface TableEntry {
  volume: string;
  device?: string;
  readOnly: boolean;
  kind: "nbd" | "loop";
  zookeeper?: string;
}

const HEADER = `# Volumes that "dss volume attach --all" attaches: NAME [DEVICE|-] [ro,loop,zookeeper=H:P]\n`;

/** With DSS_DATA set it is in that folder, so that such a cluster is apart from all others. */
export function tablePath(env: Readonly<Record<string, string | undefined>> = process.env): string {
  if (env["DSS_ATTACHMENTS"]) return resolve(env["DSS_ATTACHMENTS"]);
  return env["DSS_DATA"] ? join(resolve(env["DSS_DATA"]), "attachments") : "/etc/dss/attachments";
}

/** Errors: Configuration, with the line. */
export function parseTable(text: string, path: string): TableEntry[] {
  const entries: TableEntry[] = [];
  for (const [i, raw] of text.split("\n").entries()) {
    const line = raw.replace(/#.*/, "").trim();
    if (line === "") continue;
    const [volume = "", device = "-", options = "", ...more] = line.split(/\s+/);
    const entry: TableEntry = { volume, readOnly: false, kind: "nbd" };
    const wrong = (what: string): DssError =>
      new DssError("Configuration", `${path}:${i + 1}: ${what}`, {
        hint: "a line is NAME [DEVICE|-] [ro,loop,zookeeper=HOST:PORT]",
      });
    if (more.length > 0) throw wrong(`"${more[0]}" is one word too many`);
    if (device !== "-") {
      if (!device.startsWith("/dev/")) throw wrong(`"${device}" is not a device`);
      entry.device = device;
    }
    for (const option of options.split(",").filter((each) => each !== "" && each !== "-")) {
      if (option === "ro") entry.readOnly = true;
      else if (option === "loop") entry.kind = "loop";
      else if (option.startsWith("zookeeper=")) {
        entry.zookeeper = option.slice("zookeeper=".length).replaceAll(";", ",");
      } else throw wrong(`"${option}" is no option`);
    }
    if (entries.some((each) => each.volume === volume)) throw wrong(`${volume} is named twice`);
    entries.push(entry);
  }
  return entries;
}

export function formatEntry(entry: TableEntry): string {
  const { volume, device = "-", readOnly, kind, zookeeper } = entry;
  const options = [
    ...(readOnly ? ["ro"] : []),
    ...(kind === "loop" ? ["loop"] : []),
    ...(zookeeper === undefined ? [] : [`zookeeper=${zookeeper.replaceAll(",", ";")}`]),
  ];
  return [volume, device, ...(options.length > 0 ? [options.join(",")] : [])].join(" ");
}

/** The text with the entry in place of the volume's earlier one, if any; undefined takes it out. */
export function withEntry(text: string, volume: string, entry: TableEntry | undefined): string {
  const isIts = (line: string): boolean =>
    line.replace(/#.*/, "").trim().split(/\s+/)[0] === volume;
  const lines = (text === "" ? HEADER : text).replace(/\n*$/, "\n").split("\n").slice(0, -1);
  const at = lines.findIndex(isIts);
  const kept = lines.filter((line) => !isIts(line));
  if (entry !== undefined) kept.splice(at < 0 ? kept.length : at, 0, formatEntry(entry));
  return `${kept.join("\n")}\n`;
}

/** Empty when there is no table. */
export function readTable(path: string): TableEntry[] {
  return existsSync(path) ? parseTable(readFileSync(path, "utf8"), path) : [];
}

/** Whole or not at all. */
export function changeTable(path: string, volume: string, entry: TableEntry | undefined): void {
  const text = existsSync(path) ? readFileSync(path, "utf8") : "";
  parseTable(text, path);
  if (text === "" && entry === undefined) return;
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.new`, withEntry(text, volume, entry), { mode: 0o644 });
  renameSync(`${path}.new`, path);
}
