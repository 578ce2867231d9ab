/**
 * How a command ends: 0 success, 1 a failure, 2 a wrong call. A failure is one or two lines on
 * stderr: what happened and why, then what to do. A stack appears only for a bug (anything that is
 * not a DssError), because only then somebody has to read the program.
 */
import { DssError } from "../cluster/base/errors.js";

/** The command was called wrongly: exit code 2. */
export class UsageError extends DssError {
  constructor(message: string, hint?: string) {
    super("InvalidArgument", message, hint === undefined ? {} : { hint });
  }
}

/** The operating error that this is, or undefined for a bug. */
function operatingError(error: unknown): { message: string; hint?: string } | undefined {
  if (error instanceof DssError) {
    return { message: messageOf(error), ...(error.hint === undefined ? {} : { hint: error.hint }) };
  }
  // System calls of the command itself: a folder that cannot be written, a full disk.
  const { code, syscall, path } = error as NodeJS.ErrnoException;
  if (error instanceof Error && typeof code === "string" && typeof syscall === "string") {
    const reason = /^[A-Z0-9]+: (.+?), /.exec(error.message)?.[1] ?? code;
    return { message: `${reason}: ${path ?? syscall}` };
  }
  return undefined;
}

/** The message with the reasons behind it; each said once. */
function messageOf(error: Error): string {
  const parts: string[] = [];
  for (let each: unknown = error; each instanceof Error; each = each.cause) {
    const text = each.message.trim();
    if (text !== "" && !parts.some((part) => part.includes(text))) parts.push(text);
  }
  return parts.join(": ").replaceAll("\n", "; ");
}

/** Lines for stderr and the exit code. */
export function explain(error: unknown): { lines: string[]; exitCode: number } {
  const known = operatingError(error);
  if (known === undefined) {
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    return {
      lines: ["dss: internal error; please report it with these lines:", ...text.split("\n")],
      exitCode: 1,
    };
  }
  const lines = [`dss: ${known.message}`];
  if (known.hint !== undefined) lines.push(`     ${known.hint}`);
  return { lines, exitCode: error instanceof UsageError ? 2 : 1 };
}
