/**
 * Every operating error of dss is a `DssError` whose code is a row of this table. The table is the
 * only place that chooses an errno, an NBD error number or a retry policy; callers act on
 * `retry`, never on message text. Bugs are not here: they fail an assertion (assert.ts).
 */
import { constants } from "node:os";

const errno = constants.errno;
/** Linux's values where Node has no constant for them. */
const ENOATTR = 61; // ENODATA
const EDQUOT = 122;
/** The NBD protocol's own, where platforms differ (its document, section "Error values"). */
const ESHUTDOWN = 108;
const EOVERFLOW = 75;
const ENOTSUP = 95;

/**
 * never: the answer is final. after-new-map: fetch a map at least as new as the error says, then
 * send again. other-replica: another copy may have it. same: send again to the same place after a
 * pause (the failure was of the path, not of the request).
 */
export type RetryPolicy = "never" | "after-new-map" | "other-replica" | "same";

interface Row {
  readonly wire: number;
  readonly errno: number;
  readonly nbd: number;
  readonly retry: RetryPolicy;
}

const row = (wire: number, fileErrno: number, nbd: number, retry: RetryPolicy): Row => ({
  wire,
  errno: fileErrno,
  nbd,
  retry,
});
const { EIO, EINVAL, EPERM, ENOSPC } = errno;

const TABLE = {
  // Outcomes of operations on files, volumes and objects.
  NotFound: row(1, errno.ENOENT, EIO, "never"),
  NoSpace: row(2, ENOSPC, ENOSPC, "never"),
  Exists: row(3, errno.EEXIST, EIO, "never"),
  NotDirectory: row(4, errno.ENOTDIR, EIO, "never"),
  IsDirectory: row(5, errno.EISDIR, EIO, "never"),
  NotEmpty: row(6, errno.ENOTEMPTY, EIO, "never"),
  InvalidArgument: row(7, EINVAL, EINVAL, "never"),
  NotPermitted: row(8, EPERM, EPERM, "never"),
  AccessDenied: row(9, errno.EACCES, EPERM, "never"),
  NameTooLong: row(10, errno.ENAMETOOLONG, EINVAL, "never"),
  TooManyLinks: row(11, errno.EMLINK, EIO, "never"),
  NoAttribute: row(12, ENOATTR, EIO, "never"),
  RangeTooLarge: row(13, errno.ERANGE, EOVERFLOW, "never"),
  FileTooLarge: row(14, errno.EFBIG, ENOSPC, "never"),
  NotSupported: row(15, errno.EOPNOTSUPP, ENOTSUP, "never"),
  ReadOnly: row(16, errno.EROFS, EPERM, "never"),
  BadHandle: row(17, errno.EBADF, EIO, "never"),
  StaleHandle: row(18, errno.ESTALE, EIO, "never"),
  Busy: row(19, errno.EBUSY, EIO, "never"),
  TooBig: row(20, errno.E2BIG, EINVAL, "never"),
  QuotaExceeded: row(21, EDQUOT, ENOSPC, "never"),
  LoopDetected: row(22, errno.ELOOP, EIO, "never"),
  CrossDevice: row(23, errno.EXDEV, EIO, "never"),
  Interrupted: row(24, errno.EINTR, EIO, "never"),
  WouldBlock: row(30, errno.EAGAIN, EIO, "never"),
  Deadlock: row(31, errno.EDEADLK, EIO, "never"),
  NoLocks: row(32, errno.ENOLCK, EIO, "never"),
  // The cluster's own answers.
  Malformed: row(40, EIO, EINVAL, "never"),
  Corrupt: row(41, EIO, EIO, "other-replica"),
  StaleEpoch: row(42, EIO, EIO, "after-new-map"),
  NotPrimary: row(43, EIO, EIO, "after-new-map"),
  NotActive: row(44, EIO, EIO, "same"),
  Fenced: row(45, EIO, ESHUTDOWN, "never"),
  StaleRequest: row(46, EIO, EIO, "never"),
  NotLeader: row(47, EIO, EIO, "same"),
  NoSession: row(48, EIO, EIO, "never"),
  TooLarge: row(49, errno.EMSGSIZE, EINVAL, "never"),
  Overloaded: row(50, errno.EAGAIN, EIO, "same"),
  StaleSnapshots: row(51, EIO, EIO, "never"),
  // The path between two programs, and this process's surroundings.
  Unreachable: row(60, EIO, EIO, "same"),
  ConnectionLost: row(61, EIO, EIO, "same"),
  TimedOut: row(62, errno.ETIMEDOUT, EIO, "same"),
  ShuttingDown: row(63, EIO, ESHUTDOWN, "same"),
  Disk: row(64, EIO, EIO, "never"),
  Conflict: row(65, EIO, EIO, "never"),
  IncompatibleVersion: row(66, EIO, EIO, "never"),
  Configuration: row(67, EINVAL, EINVAL, "never"),
} as const satisfies Record<string, Row>;

export type ErrorCode = keyof typeof TABLE;

const BY_WIRE = new Map<number, ErrorCode>(
  Object.entries(TABLE).map(([code, r]) => [r.wire, code as ErrorCode]),
);

/** Context of an error that the receiver acts on. */
export interface ErrorDetails {
  cause?: unknown;
  /** StaleEpoch, NotPrimary: the map epoch that the receiver needs at least. */
  epoch?: number;
  /** What the user can do about it: the last clause of a command's message. */
  hint?: string;
}

export class DssError extends Error {
  override readonly name = "DssError";
  readonly code: ErrorCode;
  readonly epoch: number;
  readonly hint: string | undefined;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.epoch = details.epoch ?? 0;
    this.hint = details.hint;
  }

  /** Positive errno for a file system reply. */
  get errno(): number {
    return TABLE[this.code].errno;
  }
  /** Error value for an NBD reply. */
  get nbd(): number {
    return TABLE[this.code].nbd;
  }
  get retry(): RetryPolicy {
    return TABLE[this.code].retry;
  }
  get wire(): number {
    return TABLE[this.code].wire;
  }
}

/**
 * The code behind a wire number; an unknown one (a newer peer) is an operating error of the path.
 */
export function codeFromWire(wire: number): ErrorCode {
  return BY_WIRE.get(wire) ?? "Malformed";
}

export function isDssError(error: unknown, code?: ErrorCode): error is DssError {
  return error instanceof DssError && (code === undefined || error.code === code);
}

/** One line for a log or a terminal, with the causes. */
export function describeError(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const cause = error.cause === undefined ? "" : `: ${describeError(error.cause)}`;
  const code = error instanceof DssError ? `${error.code}: ` : "";
  return `${code}${error.message}${cause}`;
}
