/** Sizes and numbers as people type and read them. */
import t from "tap";
import { UsageError } from "../../../cli/failure.js";
import {
  formatDuration,
  formatSize,
  GIB,
  KIB,
  parseCount,
  parseSize,
  TIB,
  VOLUME_BYTES_MAX,
  VOLUME_SIZE,
} from "../../../cli/sizes.js";

const OFFSET = { what: "offset", bare: "bytes", min: 0, max: TIB } as const;

t.test("a bare number is GiB for a volume and bytes elsewhere", (t) => {
  t.equal(parseSize("10", VOLUME_SIZE), 10 * GIB);
  t.equal(parseSize("0.5", VOLUME_SIZE), GIB / 2);
  t.equal(parseSize("10", OFFSET), 10);
  t.equal(parseSize("0", OFFSET), 0);
  t.end();
});

t.test("suffixes are powers of 1024, with or without B, in either case", (t) => {
  for (const text of ["64K", "64k", "64KB", "64KiB", " 64K "]) {
    t.equal(parseSize(text, OFFSET), 64 * KIB, text);
  }
  t.equal(parseSize("1.5M", OFFSET), 1.5 * KIB * KIB);
  t.equal(parseSize("1024T", VOLUME_SIZE), 1024 * TIB);
  t.equal(parseSize("1.5P", VOLUME_SIZE), 1536 * TIB);
  t.equal(parseSize("16E", VOLUME_SIZE), VOLUME_BYTES_MAX);
  t.equal(BigInt(parseSize("8E", VOLUME_SIZE)), 2n ** 63n);
  t.equal(parseSize("1048576", VOLUME_SIZE), 1024 * TIB, "the most without a unit");
  t.throws(() => parseSize("1048577", VOLUME_SIZE), /is too large for GiB without a unit/);
  const far = { ...OFFSET, max: VOLUME_BYTES_MAX };
  t.equal(BigInt(parseSize("9223372036854775808", far)), 2n ** 63n);
  t.throws(() => parseSize("9223372036854775809", far), "not a number that is held exactly");
  t.equal(parseSize("512B", VOLUME_SIZE), 512);
  t.end();
});

t.test("every refusal says which value, why, and what is permitted", (t) => {
  const cases: readonly [text: string, why: RegExp][] = [
    ["-5", /"-5" is negative/],
    ["-1G", /is negative/],
    ["", /is not a size/],
    ["ten", /is not a size/],
    ["10Q", /is not a size/],
    ["1e9", /is not a size/],
    ["0x10", /is not a size/],
    ["10 20", /is not a size/],
    ["NaN", /is not a size/],
    ["Infinity", /is not a size/],
    ["0", /is too small/],
    ["0M", /is too small/],
    ["17E", /is too large/],
    ["16.5E", /is too large/],
    ["18446744073709551616", /is too large/],
    ["18446744073709551617B", /is not a whole number|too large/],
    ["99999999999999999999", /is too large/],
    ["9999999999T", /is too large/],
    ["1000B", /is not a multiple of 512 bytes/],
    ["1.0001K", /is not a whole number of bytes/],
  ];
  for (const [text, why] of cases) {
    try {
      parseSize(text, VOLUME_SIZE);
      t.fail(`${text} was accepted`);
    } catch (error) {
      t.ok(error instanceof UsageError, text);
      t.match((error as UsageError).message, why, text);
      t.match((error as UsageError).hint, /512 B to 16 EiB.*bare number is GiB/, text);
    }
  }
  t.end();
});

t.test("counts are whole numbers within bounds", (t) => {
  const rule = { what: "--osds", min: 1, max: 64 };
  t.equal(parseCount("64", rule), 64);
  for (const text of ["0", "65", "-1", "1.5", "x", "", "1e1", "0x1", "9".repeat(40)]) {
    t.throws(() => parseCount(text, rule), { message: /--osds/ }, text);
  }
  t.end();
});

t.test("sizes and times are short to read", (t) => {
  t.equal(formatSize(0), "0 B");
  t.equal(formatSize(512), "512 B");
  t.equal(formatSize(4096), "4 KiB");
  t.equal(formatSize(1.25 * GIB), "1.25 GiB");
  t.equal(formatSize(150 * TIB), "150 TiB");
  t.equal(formatDuration(1_500), "2 s");
  t.equal(formatDuration(180_000), "3 min");
  t.equal(formatDuration(-5), "0 s");
  t.end();
});
