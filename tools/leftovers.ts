/**
 * What a run of tests left behind on this machine, and its removal. Everything that a run starts
 * inherits DSS_TEST_RUN=<id> and puts its files, mounts and sockets below the run's temporary
 * folder, so only what belongs to the run is found and touched.
 */
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";

export const RUN_VARIABLE = "DSS_TEST_RUN";
export const FILE_VARIABLE = "DSS_TEST_FILE";

export interface Leftover {
  /** One line for people. */
  readonly what: string;
  readonly remove: () => void;
}

interface MarkedProcess {
  readonly pid: number;
  readonly command: string;
  readonly file: string;
}

function attempt<T>(action: () => T): T | undefined {
  try {
    return action();
  } catch {
    return undefined; // A process or device that ends while it is looked at is not left over.
  }
}

/** Live processes that carry the run's mark. */
export function markedProcesses(runId: string): MarkedProcess[] {
  const mark = `${RUN_VARIABLE}=${runId}`;
  const found: MarkedProcess[] = [];
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name) || Number(name) === process.pid) continue;
    const environment = attempt(() => readFileSync(`/proc/${name}/environ`, "latin1"));
    if (environment === undefined) continue;
    const variables = environment.split("\0");
    if (!variables.includes(mark)) continue;
    const state = attempt(() => readFileSync(`/proc/${name}/stat`, "latin1"));
    if (state === undefined || /\) [ZX] /.test(state)) continue;
    const command = attempt(() => readFileSync(`/proc/${name}/cmdline`, "utf8")) ?? "";
    const file = variables.find((v) => v.startsWith(`${FILE_VARIABLE}=`)) ?? "";
    found.push({
      pid: Number(name),
      command: command.replaceAll("\0", " ").trim().slice(0, 160),
      file: file.slice(FILE_VARIABLE.length + 1),
    });
  }
  return found;
}

const unescapeMount = (path: string): string =>
  path.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8)));

/** Mount points below a folder, the deepest first. */
function mountsBelow(folder: string): { point: string; type: string }[] {
  return readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .flatMap((line) => {
      const [left, right] = line.split(" - ");
      const point = unescapeMount(left?.split(" ")[4] ?? "");
      return point.startsWith(`${folder}/`) ? [{ point, type: right?.split(" ")[0] ?? "" }] : [];
    })
    .reverse();
}

function loopDevicesBelow(folder: string): { device: string; file: string }[] {
  return (attempt(() => readdirSync("/sys/block")) ?? []).flatMap((name) => {
    if (!name.startsWith("loop")) return [];
    const file = attempt(() => readFileSync(`/sys/block/${name}/loop/backing_file`, "utf8"));
    return file?.startsWith(`${folder}/`) ? [{ device: `/dev/${name}`, file: file.trim() }] : [];
  });
}

/** Kernel NBD devices whose client process carries the run's mark. */
function nbdDevicesOf(pids: ReadonlySet<number>): string[] {
  return (attempt(() => readdirSync("/sys/block")) ?? []).flatMap((name) => {
    if (!name.startsWith("nbd")) return [];
    const pid = Number(attempt(() => readFileSync(`/sys/block/${name}/pid`, "utf8")));
    return pids.has(pid) ? [`/dev/${name}`] : [];
  });
}

const runQuietly = (program: string, ...args: string[]): void => {
  attempt(() => execFileSync(program, args, { stdio: "ignore", timeout: 10_000 }));
};

/** Everything of the run that is still there, in the order in which it must be removed. */
export function findLeftovers(runId: string, folder: string): Leftover[] {
  const processes = markedProcesses(runId);
  const pids = new Set(processes.map((p) => p.pid));
  const found: Leftover[] = [];
  for (const device of nbdDevicesOf(pids)) {
    found.push({
      what: `block device ${device} is attached`,
      remove: () => runQuietly("nbd-client", "-d", device),
    });
  }
  for (const { pid, command, file } of processes) {
    const by = file === "" ? "" : ` (started by ${file})`;
    found.push({
      what: `process ${pid} runs: ${command}${by}`,
      remove: () => attempt(() => process.kill(pid, "SIGKILL")),
    });
  }
  for (const { point, type } of mountsBelow(folder)) {
    found.push({
      what: `${type} is mounted at ${point}`,
      remove: () => runQuietly("umount", "-l", point),
    });
  }
  for (const { device, file } of loopDevicesBelow(folder)) {
    found.push({
      what: `loop device ${device} holds ${file}`,
      remove: () => runQuietly("losetup", "-d", device),
    });
  }
  for (const name of attempt(() => readdirSync(folder)) ?? []) {
    const path = join(folder, name);
    const kind = attempt(() => statSync(path).isDirectory()) === true ? "folder" : "file";
    found.push({
      what: `${kind} ${path}`,
      remove: () => attempt(() => rmSync(path, { recursive: true, force: true })),
    });
  }
  return found;
}
