/** The error table: wire numbers are a published format, so they are unique and never change. */
import t from "tap";
import {
  codeFromWire,
  describeError,
  DssError,
  isDssError,
} from "../../../../cluster/base/errors.js";
import type { ErrorCode } from "../../../../cluster/base/errors.js";

/** Published numbers. A row is added here when it is added there; none is ever changed. */
const PUBLISHED: Record<ErrorCode, number> = {
  NotFound: 1,
  NoSpace: 2,
  Exists: 3,
  NotDirectory: 4,
  IsDirectory: 5,
  NotEmpty: 6,
  InvalidArgument: 7,
  NotPermitted: 8,
  AccessDenied: 9,
  NameTooLong: 10,
  TooManyLinks: 11,
  NoAttribute: 12,
  RangeTooLarge: 13,
  FileTooLarge: 14,
  NotSupported: 15,
  ReadOnly: 16,
  BadHandle: 17,
  StaleHandle: 18,
  Busy: 19,
  TooBig: 20,
  QuotaExceeded: 21,
  LoopDetected: 22,
  CrossDevice: 23,
  Interrupted: 24,
  WouldBlock: 30,
  Deadlock: 31,
  NoLocks: 32,
  Malformed: 40,
  Corrupt: 41,
  StaleEpoch: 42,
  NotPrimary: 43,
  NotActive: 44,
  Fenced: 45,
  StaleRequest: 46,
  NotLeader: 47,
  NoSession: 48,
  TooLarge: 49,
  Overloaded: 50,
  StaleSnapshots: 51,
  Unreachable: 60,
  ConnectionLost: 61,
  TimedOut: 62,
  ShuttingDown: 63,
  Disk: 64,
  Conflict: 65,
  IncompatibleVersion: 66,
  Configuration: 67,
};
const CODES = Object.keys(PUBLISHED) as ErrorCode[];
/** Error values of the NBD protocol document. */
const NBD_ERRORS = new Set([1, 5, 12, 22, 28, 75, 95, 108]);

t.test("every code has its published, unique wire number and valid error numbers", (t) => {
  t.equal(new Set(Object.values(PUBLISHED)).size, CODES.length, "unique");
  for (const code of CODES) {
    const error = new DssError(code, "x");
    t.equal(error.wire, PUBLISHED[code], `${code}: wire number`);
    t.equal(codeFromWire(error.wire), code, `${code}: and back`);
    t.ok(error.errno > 0 && error.errno < 134, `${code}: errno ${error.errno}`);
    t.ok(NBD_ERRORS.has(error.nbd), `${code}: NBD error ${error.nbd}`);
  }
  t.equal(codeFromWire(9_999), "Malformed", "a number from the future");
  t.end();
});

t.test("Linux's numbers are what the kernel expects", (t) => {
  const errno = (code: ErrorCode) => new DssError(code, "x").errno;
  t.equal(errno("NotFound"), 2);
  t.equal(errno("Exists"), 17);
  t.equal(errno("NotEmpty"), 39);
  t.equal(errno("NameTooLong"), 36);
  t.equal(errno("NoSpace"), 28);
  t.equal(errno("QuotaExceeded"), 122);
  t.equal(errno("NoAttribute"), 61);
  t.equal(new DssError("Fenced", "x").nbd, 108, "ESHUTDOWN");
  t.end();
});

t.test("context, description and recognition", (t) => {
  const cause = new DssError("Disk", "write failed", { cause: new Error("EIO") });
  const error = new DssError("NotPrimary", "pg 1.2", { cause, epoch: 7, hint: "wait" });
  t.match(error, { epoch: 7, hint: "wait", retry: "after-new-map", name: "DssError" });
  t.equal(describeError(error), "NotPrimary: pg 1.2: Disk: write failed: EIO");
  t.equal(describeError("text"), "text");
  t.equal(new DssError("NotFound", "x").epoch, 0);
  t.ok(isDssError(error) && isDssError(error, "NotPrimary"));
  t.notOk(isDssError(error, "NotFound") || isDssError(new Error("x")) || isDssError(undefined));
  t.end();
});
