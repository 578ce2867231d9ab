/** What `dss mount -o` and the fourth field of fstab may say. Pure. */
import { DssError } from "../cluster/base/errors.js";
import type { AccessTimeMode } from "./vfs/access-times.js";

/** Handed to mount(8) as they are. */
const KERNEL_OPTIONS: ReadonlySet<string> = new Set([
  "suid",
  "nosuid",
  "dev",
  "nodev",
  "exec",
  "noexec",
  "dirsync",
]);
/** The kernel leaves times of access to the file system, and shows what it is told. */
const ACCESS_TIMES: Readonly<Record<string, AccessTimeMode>> = {
  atime: "relatime",
  relatime: "relatime",
  noatime: "noatime",
  strictatime: "strictatime",
};
/** Accepted without effect: fstab and mount(8) write them, and they are how dss works anyway. */
const SILENT_OPTIONS: ReadonlySet<string> = new Set([
  "rw",
  "async",
  "auto",
  "noauto",
  "nofail",
  "_netdev",
  "defaults",
  "allow_other",
  "default_permissions",
  "diratime",
  "lazytime",
  "nolazytime",
  "user",
  "nouser",
  "users",
  "owner",
]);
const OWN = [
  "ro",
  "sync",
  "nonempty",
  "noallow_other",
  "nodiratime",
  "noxattr",
  "uid=N",
  "gid=N",
  "cache=SIZE|none",
  "fsname=NAME",
];

export interface MountOptions {
  sync: boolean;
  readOnly: boolean;
  allowNonEmpty: boolean;
  allowOther: boolean;
  sourceName: string | undefined;
  atime: { mode: AccessTimeMode; directories: boolean };
  /** Extended attributes, access lists among them. */
  xattrs: boolean;
  /** Whose every file is shown to be. */
  owner: { uid?: number; gid?: number };
  /** Memory for file data that was read; 0: nothing is kept, here or by the kernel. */
  cacheBytes: number | undefined;
  /** For mount(8). */
  extra: string[];
}

/** Configuration unless every option is known. Later ones win. */
export function parseMountOptions(list: readonly string[]): MountOptions {
  const parsed: MountOptions = {
    sync: false,
    readOnly: false,
    allowNonEmpty: false,
    allowOther: true,
    sourceName: undefined,
    atime: { mode: "relatime", directories: true },
    xattrs: true,
    owner: {},
    cacheBytes: undefined,
    extra: [],
  };
  for (const option of list) if (!take(parsed, option)) throw unknown(option);
  return parsed;
}

/** False when the option is not known. */
function take(parsed: MountOptions, option: string): boolean {
  const mode = ACCESS_TIMES[option];
  const [name = "", ...rest] = option.split("=");
  const value = rest.join("=");
  if (KERNEL_OPTIONS.has(option)) parsed.extra.push(option);
  else if (mode !== undefined) {
    parsed.atime.mode = mode;
    parsed.extra.push(option);
  } else if (option === "nodiratime") {
    parsed.atime.directories = false;
    parsed.extra.push(option);
  } else if (option === "sync") parsed.sync = true;
  else if (option === "ro") parsed.readOnly = true;
  else if (option === "noxattr") parsed.xattrs = false;
  else if (option === "nonempty") parsed.allowNonEmpty = true;
  else if (option === "noallow_other") parsed.allowOther = false;
  else if (name === "fsname" && value !== "") parsed.sourceName = value;
  else if (name === "uid" || name === "gid") parsed.owner[name] = idOf(option, value);
  else if (name === "cache") parsed.cacheBytes = bytesOf(option, value);
  else return SILENT_OPTIONS.has(option) || option.startsWith("x-");
  return true;
}

function idOf(option: string, value: string): number {
  const id = Number(value);
  if (/^\d{1,10}$/.test(value) && id < 2 ** 32 - 1) return id;
  throw new DssError("Configuration", `mount option "${option}": not a number of a user or group`, {
    hint: "give the number, as `id -u NAME` prints it",
  });
}
const SUFFIX: Readonly<Record<string, number>> = { "": 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30 };
const CACHE_MAX = 64 * 2 ** 30;
function bytesOf(option: string, value: string): number {
  if (value === "none") return 0;
  const match = /^(\d{1,12})([KMG]?)$/.exec(value);
  const bytes = match === null ? NaN : Number(match[1]) * SUFFIX[match[2]!]!;
  if (bytes <= CACHE_MAX) return bytes;
  throw new DssError("Configuration", `mount option "${option}": not a size up to 64G`, {
    hint: "for example cache=256M, or cache=none",
  });
}

function unknown(option: string): DssError {
  const known = [...OWN, ...Object.keys(ACCESS_TIMES), ...KERNEL_OPTIONS].join(", ");
  return new DssError("Configuration", `mount option "${option}" is not known`, {
    hint: `known are ${known}`,
  });
}
