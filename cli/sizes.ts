/**
 * Sizes, offsets and numbers as people type them, and as they read them. Pure. The syntax of a size
 * is the option table's (cluster/config): `K M G T` are powers of 1024. Every refusal says what was
 * given, what is wrong with it and what is permitted; all of them are wrong calls (exit code 2).
 */
import { parseNumber } from "../cluster/config/load.js";
import type { NumberOption } from "../cluster/config/options.js";
import { UsageError } from "./failure.js";

export const KIB = 2 ** 10;
export const MIB = 2 ** 20;
export const GIB = 2 ** 30;
export const TIB = 2 ** 40;
export const PIB = 2 ** 50;
export const EIB = 2 ** 60;

/** Devices are made of sectors of this many bytes. */
export const SECTOR_BYTES = 512;
/** The address space of 64 bits less its last 4 KiB; "16E" means that. */
export const VOLUME_BYTES_MAX = 16 * EIB - 4 * KIB;
/**
 * More is taken only with a unit: that somebody typed a digit too many is more likely than that
 * many GiB on purpose.
 */
const BARE_GIB_MAX = PIB;
/** Above 2^53 a number holds only these exactly, which suits whole blocks. */
const EXACT_MULTIPLE = 4 * KIB;

export interface SizeRule {
  /** What is measured, for messages: "size", "offset". */
  what: string;
  /** What a number without a suffix counts. */
  bare: "bytes" | "GiB";
  min: number;
  max: number;
  /** The size is a multiple of this (default 1). */
  multiple?: number;
}

export const VOLUME_SIZE: SizeRule = {
  what: "volume size",
  bare: "GiB",
  min: SECTOR_BYTES,
  max: VOLUME_BYTES_MAX,
  multiple: SECTOR_BYTES,
};

/** Bytes. Throws UsageError. */
export function parseSize(text: string, rule: SizeRule): number {
  const written = text.trim();
  if (written.startsWith("-")) {
    throw new UsageError(`${rule.what} "${text}" is negative`, permitted(rule));
  }
  const isBare = /^\d+(\.\d+)?$/.test(written);
  if (!isBare && !/^\d+(\.\d+)?\s*[KMGTPE]?(i?B)?$/i.test(written)) {
    throw new UsageError(`${rule.what} "${text}" is not a size`, permitted(rule));
  }
  const bareGib = isBare && rule.bare === "GiB";
  const bytes = bytesOf(bareGib ? `${written}G` : written, rule.max);
  if (bytes === undefined) {
    // The syntax is right, so it is out of range or a fraction of a byte.
    const why =
      /^[\d.]{16,}|[TPE]/i.test(written) || isBare ? "too large" : "not a whole number of bytes";
    throw new UsageError(`${rule.what} "${text}" is ${why}`, permitted(rule));
  }
  if (bareGib && bytes > BARE_GIB_MAX) {
    const meant = "if you mean it, write it with its unit, such as 2048T or 2P";
    throw new UsageError(`${rule.what} "${text}" is too large for GiB without a unit`, meant);
  }
  if (bytes < rule.min)
    throw new UsageError(`${rule.what} "${text}" is too small`, permitted(rule));
  if (bytes > rule.max)
    throw new UsageError(`${rule.what} "${text}" is too large`, permitted(rule));
  const multiple = rule.multiple ?? 1;
  if (bytes % multiple !== 0) {
    throw new UsageError(
      `${rule.what} "${text}" is not a multiple of ${multiple} bytes`,
      permitted(rule),
    );
  }
  return bytes;
}

/** Undefined: no whole number of bytes, or one that a number cannot hold. */
function bytesOf(written: string, max: number): number | undefined {
  const option: NumberOption = {
    kind: "number",
    unit: "bytes",
    default: 0,
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
    simulate: [0, 0],
    powerOfTwo: false,
    help: "",
  };
  const large = /^(\d+(?:\.\d+)?)\s*([TPE])(?:i?B)?$/i.exec(written);
  if (large !== null) {
    const unit = { T: TIB, P: PIB, E: EIB }[large[2]!.toUpperCase()]!;
    return exact(Number(large[1]) * unit, max);
  }
  if (/^\d{16,20}$/.test(written)) {
    const value = BigInt(written);
    return value === BigInt(Number(value)) ? exact(Number(value), max) : undefined;
  }
  return parseNumber(option, written);
}

function exact(bytes: number, max: number): number | undefined {
  if (bytes === 16 * EIB && max === VOLUME_BYTES_MAX) return VOLUME_BYTES_MAX;
  if (Number.isSafeInteger(bytes)) return bytes;
  return Number.isInteger(bytes) && bytes % EXACT_MULTIPLE === 0 ? bytes : undefined;
}

function permitted(rule: SizeRule): string {
  const bare = rule.bare === "GiB" ? "a bare number is GiB" : "a bare number is bytes";
  const range = `${formatSize(rule.min)} to ${formatSize(rule.max)}`;
  return `give ${range}, such as 512M, 10G or 1T; ${bare}`;
}

/** A whole number within bounds. Throws UsageError. */
export function parseCount(text: string, rule: { what: string; min: number; max: number }): number {
  const value = /^\d{1,15}$/.test(text.trim()) ? Number(text) : Number.NaN;
  if (value >= rule.min && value <= rule.max) return value;
  throw new UsageError(
    `${rule.what} "${text}" is not permitted`,
    `give a whole number from ${rule.min} to ${rule.max}`,
  );
}

const UNITS: readonly (readonly [number, string])[] = [
  [EIB, "EiB"],
  [PIB, "PiB"],
  [TIB, "TiB"],
  [GIB, "GiB"],
  [MIB, "MiB"],
  [KIB, "KiB"],
];

/** Three digits and a unit: "4 KiB", "1.25 GiB". */
export function formatSize(bytes: number): string {
  for (const [unit, name] of UNITS) {
    if (bytes < unit) continue;
    const amount = bytes / unit;
    const digits = amount >= 100 ? 0 : amount >= 10 ? 1 : 2;
    return `${Number(amount.toFixed(digits))} ${name}`;
  }
  return `${bytes} B`;
}

/** "2 s", "3 min", "5 h", "12 d". */
export function formatDuration(ms: number): string {
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7_200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.round(seconds / 3_600)} h`;
  return `${Math.round(seconds / 86_400)} d`;
}
