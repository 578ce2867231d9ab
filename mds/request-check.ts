/**
 * The shape of requests, checked once where they come in: below this, members are what their types
 * say.
 */
import { DssError } from "../cluster/base/errors.js";
import {
  ACCESSED_MAX,
  FILE_SIZE_MAX,
  type Held,
  LOCK_END,
  type LastWord,
  type Layout,
  type MdsCall,
  type Request,
  type SessionOpen,
} from "./proto.js";

type Kind =
  | "activity"
  | "reads"
  | "int"
  | "size"
  | "bytes"
  | "text"
  | "bool"
  | "actor"
  | "attributes"
  | "mode"
  | "time"
  | "capability"
  | "layout"
  | "lockKind"
  | "lockMode"
  | "lockOwner"
  | "lockByte";
const OPTIONAL = "?";
const LOCK_RANGE: Record<string, Kind> = {
  kind: "lockKind",
  ino: "int",
  owner: "lockOwner",
  start: "lockByte",
  end: "lockByte",
};
const LOCK: Record<string, Kind> = { ...LOCK_RANGE, mode: "lockMode", pid: "mode" };

/** Members of each operation; a trailing ? marks those that may be absent. */
const SHAPES: Record<Request["op"], Record<string, Kind>> = {
  lookup: { parent: "int", name: "bytes" },
  getattr: { ino: "int" },
  acquire: { ino: "int", mode: "capability" },
  readdir: { ino: "int", cookie: "int", limit: "int", plus: "bool", "alone?": "bool" },
  create: {
    parent: "int",
    name: "bytes",
    ino: "int",
    mode: "mode",
    rdev: "int",
    "target?": "bytes",
    "unmasked?": "mode",
    exclusive: "bool",
    "layout?": "layout",
    "attributes?": "attributes",
    actor: "actor",
  },
  tmpfile: { parent: "int", ino: "int", mode: "mode", "unmasked?": "mode", actor: "actor" },
  link: { ino: "int", parent: "int", name: "bytes", actor: "actor" },
  unlink: { parent: "int", name: "bytes", stillOpen: "bool", actor: "actor" },
  rmdir: { parent: "int", name: "bytes", actor: "actor" },
  rename: {
    parent: "int",
    name: "bytes",
    newParent: "int",
    newName: "bytes",
    noReplace: "bool",
    exchange: "bool",
    stillOpen: "bool",
    actor: "actor",
  },
  setattr: {
    ino: "int",
    "mode?": "mode",
    "uid?": "mode",
    "gid?": "mode",
    "size?": "int",
    "atimeNs?": "time",
    "mtimeNs?": "time",
    "clearSuid?": "bool",
    actor: "actor",
  },
  publish: { ino: "int", size: "int", mtimeNs: "time", allocated: "int", recount: "bool" },
  accessed: { reads: "reads" },
  extend: { ino: "int", size: "int" },
  orphanRelease: { ino: "int" },
  getxattrs: { ino: "int" },
  setxattr: {
    ino: "int",
    name: "bytes",
    value: "bytes",
    create: "bool",
    replace: "bool",
    "clearSgid?": "bool",
    actor: "actor",
  },
  removexattr: { ino: "int", name: "bytes", actor: "actor" },
  totals: { ino: "int" },
  quotaSet: { ino: "int", "maxBytes?": "int", "maxInodes?": "int" },
  statfs: {},
  inoRange: {},
  volumeCreate: {
    name: "text",
    size: "size",
    pool: "text",
    "objectSize?": "int",
    "stripeUnit?": "int",
    "stripeCount?": "int",
    actor: "actor",
  },
  volumeList: {},
  volumeInfo: { name: "text" },
  volumeRemove: { name: "text" },
  volumeResize: { name: "text", size: "size", shrink: "bool" },
  volumeRename: { name: "text", newName: "text" },
  volumeLimit: { name: "text", "iops?": "int", "bandwidth?": "int" },
  volumeOpen: {
    name: "text",
    write: "bool",
    "force?": "bool",
    "holder?": "text",
    "continues?": "bool",
  },
  volumeClose: { id: "int" },
  volumeReport: { volumes: "activity" },
  volumeTop: {},
  volumeSnapCreate: { name: "text", snapshot: "text", "origin?": "text", actor: "actor" },
  volumeSnapRemove: { name: "text", snapshot: "text" },
  volumeSnapProtect: { name: "text", snapshot: "text", isProtected: "bool" },
  volumeRollback: { name: "text", snapshot: "text" },
  volumeContext: { id: "int" },
  volumeClone: { name: "text", snapshot: "text", newName: "text", actor: "actor" },
  volumeFlatten: { name: "text" },
  lock: { ...LOCK, waiter: "int" },
  unlock: LOCK_RANGE,
  lockTest: LOCK,
  lockCancel: { waiter: "int" },
  sync: {},
};

const TEXT_MAX = 1024;
/** Volumes in one report. */
const REPORT_MAX = 4_096;
const ACTIVITY_FIGURES = [
  ...["volume", "spanMs", "reads", "writes", "others", "readBytes", "writeBytes"],
  ...["failures", "heldMs"],
];
const LATENCY_FIGURES = ["p50Us", "p99Us", "maxUs"];
const INT64_LIMIT = 2n ** 63n;
const LOCK_OWNER = /^[0-9a-f]{1,16}$/;

/** SHAPES, taken apart once. */
const MEMBERS = new Map(
  Object.entries(SHAPES).map(([op, members]) => [
    op,
    Object.entries(members).map(([member, kind]) => {
      const optional = member.endsWith(OPTIONAL);
      return { name: optional ? member.slice(0, -1) : member, kind, optional };
    }),
  ]),
);

function isOf(kind: Kind, value: unknown): boolean {
  switch (kind) {
    case "int":
      return Number.isSafeInteger(value) && (value as number) >= 0;
    // Of a volume: exact above 2^53 too, where it is a multiple of 4,096.
    case "size":
      return Number.isInteger(value) && (value as number) >= 0 && (value as number) < 2 ** 64;
    case "mode":
      return Number.isInteger(value) && (value as number) >= 0 && (value as number) < 2 ** 32;
    case "bytes":
      return Buffer.isBuffer(value);
    case "text":
      return typeof value === "string" && value.length <= TEXT_MAX;
    case "bool":
      return typeof value === "boolean";
    case "time":
      return typeof value === "bigint" && value < INT64_LIMIT && value >= -INT64_LIMIT;
    case "activity":
      return Array.isArray(value) && value.length <= REPORT_MAX && value.every(isActivity);
    case "reads":
      return Array.isArray(value) && value.length <= ACCESSED_MAX && value.every(isRead);
    case "capability":
    case "lockMode":
      return value === "shared" || value === "exclusive";
    case "lockKind":
      return value === "flock" || value === "posix";
    case "lockOwner":
      return typeof value === "string" && LOCK_OWNER.test(value);
    case "lockByte":
      return typeof value === "bigint" && value >= 0n && value <= LOCK_END;
    case "layout": {
      const layout = value as Partial<Layout> | null;
      if (typeof layout !== "object" || layout === null) return false;
      const { pool, objectSize = 0, stripeUnit = 0, stripeCount = 0 } = layout;
      // Objects of whole stripe units, as pools are made.
      const isSound = stripeUnit > 0 && stripeCount > 0 && objectSize % stripeUnit === 0;
      return [pool, objectSize, stripeUnit, stripeCount].every((n) => isOf("int", n)) && isSound;
    }
    case "attributes": {
      const made = value as Record<string, unknown> | null;
      if (typeof made !== "object" || made === null) return false;
      const { size, allocated, recount, mode, uid, gid } = made;
      const times = [made["atimeNs"], made["mtimeNs"], made["ctimeNs"]];
      return (
        isOf("int", size) &&
        (size as number) <= FILE_SIZE_MAX &&
        isOf("int", allocated) &&
        isOf("bool", recount) &&
        [mode, uid, gid].every((each) => isOf("mode", each)) &&
        times.every((each) => isOf("time", each))
      );
    }
    case "actor": {
      const actor = value as Record<string, unknown> | null;
      if (typeof actor !== "object" || actor === null) return false;
      return (
        isOf("mode", actor["uid"]) && isOf("mode", actor["gid"]) && isOf("time", actor["timeNs"])
      );
    }
  }
}

function hasFigures(value: unknown, names: readonly string[]): boolean {
  if (typeof value !== "object" || value === null) return false;
  return names.every((name) => {
    const figure = (value as Record<string, unknown>)[name];
    return typeof figure === "number" && figure >= 0 && figure < Infinity;
  });
}
function isActivity(value: unknown): boolean {
  if (!hasFigures(value, ACTIVITY_FIGURES)) return false;
  const parts = value as Record<string, unknown>;
  return ["read", "write", "other"].every((part) => hasFigures(parts[part], LATENCY_FIGURES));
}

function isRead(value: unknown): boolean {
  const { ino, atimeNs } = (value ?? {}) as Record<string, unknown>;
  return isOf("int", ino) && isOf("time", atimeNs);
}

/** The last word of a released grant; undefined: it is none. */
export function checkLast(last: LastWord | null | undefined): LastWord | undefined {
  if (last === undefined || last === null) return undefined;
  const { size, mtimeNs, allocated, recount } = last;
  const isSound = isOf("int", size) && size <= FILE_SIZE_MAX && isOf("int", allocated);
  if (!isSound || !isOf("time", mtimeNs)) return undefined;
  return { size, mtimeNs, allocated, recount: recount !== false };
}

/** Malformed unless the call is one of the protocol. */
export function checkCall(call: MdsCall): void {
  const request = call?.request as unknown as Record<string, unknown> | undefined;
  const op = request?.["op"];
  if (request === undefined || typeof op !== "string" || !MEMBERS.has(op)) {
    throw new DssError("Malformed", `no such metadata operation: ${String(op)}`);
  }
  if (!isOf("int", call.id) || !isOf("int", call.floor)) {
    throw new DssError("Malformed", `${op}: request id and floor are numbers`);
  }
  for (const { name, kind, optional } of MEMBERS.get(op)!) {
    const value = request[name];
    if (optional && (value === undefined || value === null)) {
      delete request[name]; // msgpack may carry an absent member as nil.
      continue;
    }
    if (!isOf(kind, value)) throw new DssError("Malformed", `${op}: ${name} is no ${kind}`);
  }
  for (const member of ["name", "newName", "target", "value"]) {
    // Views of the message would keep it in memory as long as the metadata.
    const value = request[member];
    if (Buffer.isBuffer(value)) request[member] = Buffer.from(value);
  }
}

const HELD_MODES: ReadonlySet<unknown> = new Set(["none", "shared", "sole", "exclusive"]);

/** What a session says that it holds. */
export function checkHeld(held: unknown): asserts held is Held[] {
  if (!Array.isArray(held)) throw new DssError("Malformed", "session: what it holds is no list");
  for (const each of held as (Partial<Held> | null)[]) {
    // Numbers below 0 are those of volumes.
    const isHeld = Number.isSafeInteger(each?.ino) && isOf("int", each?.seq);
    if (!isHeld || !HELD_MODES.has(each?.mode)) {
      throw new DssError("Malformed", "session: a capability that it holds");
    }
  }
}

export function checkOpen(open: SessionOpen): void {
  for (const member of ["instance", "host", "detail"] as const) {
    if (!isOf("text", open[member])) throw new DssError("Malformed", `session: ${member}`);
  }
  for (const member of ["client", "floor", "pid"] as const) {
    if (!isOf("int", open[member])) throw new DssError("Malformed", `session: ${member}`);
  }
  if (!isOf("int", open.generation ?? 0) || !isOf("bool", open.restoring ?? false)) {
    throw new DssError("Malformed", "session: which worker asks");
  }
  if (!["mount", "nbd", "cli", "library"].includes(open.type)) {
    throw new DssError("Malformed", `session: type ${String(open.type)}`);
  }
  checkHeld(open.held);
  if (!isOf("int", open.claimed ?? 0) || !Array.isArray(open.orphans)) {
    throw new DssError("Malformed", "session: lists of what it holds");
  }
  for (const claim of open.locks ?? []) {
    for (const [member, kind] of Object.entries(LOCK)) {
      if (!isOf(kind, (claim as unknown as Record<string, unknown> | null)?.[member])) {
        throw new DssError("Malformed", `session: a lock's ${member}`);
      }
    }
  }
}
