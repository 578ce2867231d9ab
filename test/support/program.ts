/** How the programs of tests and benchmarks end. */

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
    const { code, message, stack } = error as NodeJS.ErrnoException;
    const isUsage = error instanceof UsageError || code?.startsWith("ERR_PARSE_ARGS") === true;
    const text = isUsage || error instanceof ReportError ? message : (stack ?? message);
    process.stderr.write(`${name}: ${text}\n`);
    process.exitCode = isUsage ? 2 : 1;
  }
}
