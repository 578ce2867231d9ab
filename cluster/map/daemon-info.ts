/**
 * What a daemon says about itself in its liveness znode (JSON, so that people can read it). Written
 * by the daemon, read by the coordinator and the CLI; checked here, at the edge.
 */
import { DssError } from "../base/errors.js";
import { OSD_ID_MAX, type MdsId, type OsdId } from "../base/ids.js";
import { WEIGHT_MAX } from "./ring.js";

export interface OsdInfo {
  id: OsdId;
  /** Identity of its store. */
  uuid: string;
  address: { host: string; port: number };
  host: string;
  /** Wanted when it joins for the first time; later the map decides. */
  weight: number;
  /** Differs for every start of the daemon. */
  incarnation: string;
  /** Bytes of its disk, for people. */
  capacity: number;
  pid: number;
}

export interface MdsInfo {
  id: MdsId;
  address: { host: string; port: number };
  incarnation: string;
  host: string;
  pid: number;
}

export const MDS_ID_MAX = 999;
const TEXT_MAX = 255;

export function encodeInfo(info: OsdInfo | MdsInfo): Buffer {
  return Buffer.from(JSON.stringify(info), "utf8");
}

function parseObject(data: Buffer, what: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(data.toString("utf8"));
    if (typeof value === "object" && value !== null) return value as Record<string, unknown>;
  } catch (cause) {
    throw new DssError("Malformed", `${what} is not JSON`, { cause });
  }
  throw new DssError("Malformed", `${what} is not an object`);
}

class Fields {
  constructor(
    private readonly value: Record<string, unknown>,
    private readonly what: string,
  ) {}
  wrong(name: string): DssError {
    const value = JSON.stringify(this.value[name]);
    return new DssError("Malformed", `${this.what}: ${name} is ${value}`);
  }
  text(name: string): string {
    const value = this.value[name];
    if (typeof value === "string" && value !== "" && value.length <= TEXT_MAX) return value;
    throw this.wrong(name);
  }
  number(name: string, low: number, high: number): number {
    const value = this.value[name];
    if (typeof value !== "number" || !(value >= low && value <= high)) throw this.wrong(name);
    return value;
  }
  integer(name: string, high: number): number {
    const value = this.number(name, 0, high);
    if (!Number.isInteger(value)) throw this.wrong(name);
    return value;
  }
  address(): { host: string; port: number } {
    const value = this.value["address"];
    if (typeof value !== "object" || value === null) throw this.wrong("address");
    const fields = new Fields(value as Record<string, unknown>, `${this.what}: address`);
    return { host: fields.text("host"), port: fields.integer("port", 65_535) };
  }
}

/** Errors: Malformed. */
export function decodeOsdInfo(data: Buffer, what: string): OsdInfo {
  const fields = new Fields(parseObject(data, what), what);
  return {
    id: fields.integer("id", OSD_ID_MAX),
    uuid: fields.text("uuid"),
    address: fields.address(),
    host: fields.text("host"),
    weight: fields.number("weight", 0, WEIGHT_MAX),
    incarnation: fields.text("incarnation"),
    capacity: fields.integer("capacity", Number.MAX_SAFE_INTEGER),
    pid: fields.integer("pid", 2 ** 31),
  };
}

/** Errors: Malformed. */
export function decodeMdsInfo(data: Buffer, what: string): MdsInfo {
  const fields = new Fields(parseObject(data, what), what);
  return {
    id: fields.integer("id", MDS_ID_MAX),
    address: fields.address(),
    incarnation: fields.text("incarnation"),
    host: fields.text("host"),
    pid: fields.integer("pid", 2 ** 31),
  };
}
