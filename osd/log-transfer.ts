/**
 * Logs and retry memories on their way between OSDs, in pages: a frame has a limit, a log of tens
 * of thousands of entries may exceed it.
 *
 * A log that is handed over in pages is safe at every page: each one names what its entries leave
 * missing, and what is missing whatever the log says goes ahead of the first entry.
 */
import type { PgId } from "../cluster/base/ids.js";
import type { Version } from "./core/version.js";
import type {
  PgAdoptRequest,
  PgLogReply,
  PgLogRequest,
  WireLogEntry,
  WireRetry,
} from "./proto.js";
import type { ChunkStore } from "./store/chunk-store.js";

/** Of up to about 300 bytes each. */
const PAGE_ENTRIES = 4_096;
const PAGE_NAMES = 4_096;
/** Answers in retry records, of about 50 bytes each. */
const PAGE_ANSWERS = 16_384;

export type WholeLog = { entries: WireLogEntry[]; retries: WireRetry[] };

/** One page of a store's log; undefined when it does not reach back so far. */
export function readLogPage(
  store: ChunkStore,
  pg: PgId,
  request: Pick<PgLogRequest, "after" | "retriesAfter">,
): PgLogReply | undefined {
  const entries = store.log(pg, request.after, PAGE_ENTRIES + 1);
  if (entries === undefined) return undefined;
  const { retriesAfter } = request;
  const [retries = [], ...rest] =
    retriesAfter === undefined
      ? []
      : retryPages(store.exportRetries(pg).filter(({ client }) => client > retriesAfter));
  return {
    entries: entries.slice(0, PAGE_ENTRIES),
    more: entries.length > PAGE_ENTRIES,
    retries,
    moreRetries: rest.length > 0,
  };
}

/** All pages, one after another; retry records only on request. */
export async function fetchLog(
  first: { after: Version; withRetries: boolean },
  ask: (page: Pick<PgLogRequest, "after" | "retriesAfter">) => Promise<PgLogReply>,
): Promise<WholeLog> {
  const whole: WholeLog = { entries: [], retries: [] };
  let { after } = first;
  let retriesAfter: number | undefined = first.withRetries ? 0 : undefined;
  let isWhole = false;
  while (!isWhole || retriesAfter !== undefined) {
    const page: PgLogReply = await ask(
      retriesAfter === undefined ? { after } : { after, retriesAfter },
    );
    whole.entries.push(...page.entries);
    whole.retries.push(...page.retries);
    after = page.entries.at(-1)?.version ?? after;
    isWhole = !page.more;
    retriesAfter = page.moreRetries ? page.retries.at(-1)?.client : undefined;
  }
  return whole;
}

/**
 * The messages that together have a member take over a log. Errors of a later one leave a state
 * that the next peering or attempt understands.
 */
export function adoptionPages(whole: PgAdoptRequest): PgAdoptRequest[] {
  const { entries, missing, startOver, common } = whole;
  const retries = retryPages(whole.retries);
  if (startOver) {
    // Whatever comes before the log is forgotten with it: answers follow.
    const head = { ...whole, retries: retries[0] ?? [] };
    const rest = retries.slice(1).map((page) => ({
      ...whole,
      ...{ create: false, startOver: false, missing: [], entries: [], retries: page },
      common: entries.at(-1)?.version ?? common,
    }));
    return [head, ...rest];
  }
  const named = new Set(entries.map(({ object }) => object));
  const missingSet = new Set(missing);
  const ahead = chunks(
    missing.filter((object) => !named.has(object)),
    PAGE_NAMES,
  );
  const bodies = entries.length === 0 ? [[]] : chunks(entries, PAGE_ENTRIES);
  const pages: PgAdoptRequest[] = [];
  // The last chunk of either travels with the first entries.
  const notes = Math.max(ahead.length, retries.length, 1) - 1;
  for (let i = 0; i < notes; i++) {
    const chunk = ahead[i - (notes - (ahead.length - 1))] ?? [];
    const answers = retries[i - (notes - (retries.length - 1))] ?? [];
    pages.push({ ...whole, entries: [], missing: chunk, retries: answers, noteOnly: true });
  }
  bodies.forEach((body, i) => {
    const isFirst = i === 0;
    const touched = new Set(body.map(({ object }) => object));
    const ofBody = [...touched].filter((object) => missingSet.has(object));
    pages.push({
      ...whole,
      common: isFirst ? common : bodies[i - 1]!.at(-1)!.version,
      entries: body,
      missing: isFirst ? [...(ahead.at(-1) ?? []), ...ofBody] : ofBody,
      retries: isFirst ? (retries.at(-1) ?? []) : [],
    });
  });
  return pages;
}

function chunks<T>(items: readonly T[], size: number): T[][] {
  const out: T[][] = [];
  for (let at = 0; at < items.length; at += size) out.push(items.slice(at, at + size));
  return out;
}

/** By clients in order, so that a page ends where the next one begins. */
function retryPages(records: readonly WireRetry[]): WireRetry[][] {
  const pages: WireRetry[][] = [];
  let answers = PAGE_ANSWERS;
  for (const record of records) {
    if (answers + record.answers.length + 1 > PAGE_ANSWERS) {
      pages.push([]);
      answers = 0;
    }
    pages.at(-1)!.push(record);
    answers += record.answers.length + 1;
  }
  return pages;
}
