/** How the programs of tests and benchmarks end. */
import { inspect } from "node:util";

/** A failed program may have left something open that would keep it alive. */
const LINGER_MS = 60_000;

/** A wrong call: told in one line, exit code 2. */
export class UsageError extends Error {}
/** Something else that the user can mend: told in one line, exit code 1. */
export class ReportError extends Error {}

/**
 * Runs `main`, whose value is the exit code (0 when it has none). What could not be cleaned up may
 * have set another code already. Errors of its own doing are told with their stack.
 */
export async function runProgram(name: string, main: () => Promise<number | void>): Promise<void> {
  try {
    const code = await main();
    process.exitCode ||= code ?? 0;
  } catch (error) {
    const isUsage = error instanceof UsageError || isParseError(error);
    const isPlain = isUsage || error instanceof ReportError;
    // With its stack, and the errors that caused it.
    const text = isPlain ? error.message : inspect(error);
    process.stderr.write(`${name}: ${text}\n`);
    process.exitCode = isUsage ? 2 : 1;
    setTimeout(() => process.exit(), LINGER_MS).unref();
  }
}

function isParseError(error: unknown): error is Error {
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  return typeof code === "string" && code.startsWith("ERR_PARSE_ARGS");
}
