/** What operations hand back (see namespace.ts) and how most of them are put together. Pure. */
import type { Ino } from "../../cluster/base/ids.js";
import type { Answer, Volume } from "../proto.js";
import type { Delta } from "./delta.js";
import type { Draft } from "./draft.js";

/** What an operation will do, once nothing stands in its way. */
export interface Plan {
  /** Journal facts; empty: nothing changes. */
  record: Delta[];
  answer: Answer;
  notFound: boolean;
  /** The session may cache these, unless somebody waits for them. */
  shared: Ino[];
  /** A mount may have these for itself, if it is alone with them. */
  sole: Ino[];
  /**
   * The session gets (or has) the exclusive capability; its grant is in the record unless it had it
   * before.
   */
  exclusive?: { ino: Ino; maxSize: number };
  /** What others must not see before it is safe (inodes, or negative keys). */
  hides: number[];
  /** The answer waits until the change is safe. */
  durable: boolean;
  /** Inodes that are gone. */
  removed: Ino[];
  /** The session itself must give these back to shared: they are below a quota now. */
  lowered?: Ino[];
  /** Those who have it open are told when the change is safe. */
  volumeChanged?: Volume;
}

export function emptyPlan(): Plan {
  return {
    record: [],
    answer: {},
    notFound: false,
    shared: [],
    sole: [],
    hides: [],
    durable: false,
    removed: [],
  };
}

/** A change that the session may go on caching; others see it when it is safe. */
export function changing(
  draft: Draft,
  { answer, inodes, removed = [] }: { answer: Answer; inodes: Ino[]; removed?: Ino[] },
): Plan {
  const shared = inodes.filter((ino) => !removed.includes(ino));
  const record = draft.finish();
  return { ...emptyPlan(), record, answer, shared, sole: shared, hides: inodes, removed };
}
