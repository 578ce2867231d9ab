/** A wrong call of a campaign: told in one line, exit code 2. */
export class UsageError extends Error {}
