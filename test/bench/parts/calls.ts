/** Names of what calls-load.ts does to a mount, and where. */
export const LOOKUP = "stat of a missing name";
export const CREATE = "create, write 1 KiB, close";

export interface CallsPlace {
  readonly folder: string;
  /** Written to after each run, within what is counted: what is buffered goes out then. */
  readonly settle?: string;
}
