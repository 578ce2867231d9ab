/** What a disk's failures become. */
import { DssError, type ErrorCode } from "../base/errors.js";

const CODES: Record<string, ErrorCode> = {
  ENOENT: "NotFound",
  EEXIST: "Exists",
  ENOSPC: "NoSpace",
  EDQUOT: "NoSpace",
};

export const codeOfDisk = (error: NodeJS.ErrnoException): ErrorCode | undefined =>
  CODES[error.code ?? ""];

/** A DssError (Disk, NotFound, Exists, NoSpace) that says what was tried on which path. */
export function diskError(doing: string, path: string, cause: unknown): DssError {
  const code = codeOfDisk(cause as NodeJS.ErrnoException) ?? "Disk";
  return new DssError(code, `cannot ${doing} ${path}`, { cause });
}
