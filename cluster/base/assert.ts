/**
 * Assertions stay on in production: a violated one is a bug, and going on would put data at risk.
 */

/** Thrown only for bugs; nothing catches it but the process's last-resort handler. */
export class AssertionFailure extends Error {
  override readonly name = "AssertionFailure";
}

/** A message that takes work is a function: it is needed when the condition does not hold. */
export function assert(condition: unknown, message: string | (() => string)): asserts condition {
  if (condition) return;
  throw new AssertionFailure(typeof message === "string" ? message : message());
}

/** Marks a branch that exhausts a union; the compiler proves that it cannot be reached. */
export function unreachable(value: never, what: string): never {
  throw new AssertionFailure(`${what}: unexpected ${JSON.stringify(value)}`);
}
