/**
 * Every znode of dss, as a table; no other file spells a path.
 * Data is JSON where people may want to read it, binary where it is large.
 */
import type { MdsId, OsdId } from "../base/ids.js";

export const SCHEMA_VERSION = 1;

interface Row {
  path: string;
  kind: "persistent" | "ephemeral" | "ephemeral sequential";
  writer: string;
  content: string;
}

/** The table of docs; `<…>` is a variable part. */
export const ZNODES: readonly Row[] = [
  {
    path: "/dss/cluster",
    kind: "persistent",
    writer: "first MDS",
    content: "JSON {clusterId, createdMs, schema}; written once",
  },
  {
    path: "/dss/map",
    kind: "persistent",
    writer: "MDS leader under its term",
    content: "the cluster map (map-codec.ts)",
  },
  {
    path: "/dss/term",
    kind: "persistent",
    writer: "a new MDS leader",
    content: "JSON {term, id, incarnation, address}; its version fences every write of a leader",
  },
  {
    path: "/dss/mds/election/n-<sequence>",
    kind: "ephemeral sequential",
    writer: "each MDS",
    content: "JSON {id, incarnation, address}; the lowest leads",
  },
  {
    path: "/dss/mds/leader",
    kind: "ephemeral",
    writer: "MDS leader",
    content: "JSON {term, id, incarnation, address}; absent while nobody leads",
  },
  {
    path: "/dss/mds/fault",
    kind: "persistent",
    writer: "an MDS leader that refuses the metadata, under its term; the next good one removes it",
    content: "JSON {mds, message, atMs}: why no metadata server serves",
  },
  {
    path: "/dss/mds/journal/<sequence>",
    kind: "persistent",
    writer: "MDS leader under its term",
    content: "one batch of metadata changes; 16 decimal digits",
  },
  {
    path: "/dss/mds/pages/<name>",
    kind: "persistent",
    writer: "MDS leader under its term",
    content: "a checkpointed page of metadata",
  },
  { path: "/dss/live/osd/<id>", kind: "ephemeral", writer: "OSD", content: "JSON OsdInfo" },
  { path: "/dss/live/mds/<id>", kind: "ephemeral", writer: "MDS", content: "JSON MdsInfo" },
  {
    path: "/dss/ids/client",
    kind: "persistent",
    writer: "whoever hands out client ids, by compare-and-set",
    content: "decimal: the first id not yet reserved",
  },
];

export const ROOT_PATH = "/dss";
export const CLUSTER_PATH = "/dss/cluster";
export const MAP_PATH = "/dss/map";
export const TERM_PATH = "/dss/term";
export const ELECTION_PATH = "/dss/mds/election";
export const LEADER_PATH = "/dss/mds/leader";
export const FAULT_PATH = "/dss/mds/fault";
export const JOURNAL_PATH = "/dss/mds/journal";
export const PAGES_PATH = "/dss/mds/pages";
export const LIVE_OSD_PATH = "/dss/live/osd";
export const LIVE_MDS_PATH = "/dss/live/mds";
export const CLIENT_IDS_PATH = "/dss/ids/client";

/** The folders that exist before anything else is written. */
export const FOLDERS: readonly string[] = [
  ELECTION_PATH,
  JOURNAL_PATH,
  PAGES_PATH,
  LIVE_OSD_PATH,
  LIVE_MDS_PATH,
  "/dss/ids",
];

const SEQUENCE_DIGITS = 16;

/** Names sort as their numbers do. */
export function journalPath(sequence: number): string {
  return `${JOURNAL_PATH}/${String(sequence).padStart(SEQUENCE_DIGITS, "0")}`;
}
export function journalSequence(name: string): number {
  return Number(name);
}
export function pagePath(name: string): string {
  return `${PAGES_PATH}/${name}`;
}
export function liveOsdPath(id: OsdId): string {
  return `${LIVE_OSD_PATH}/${id}`;
}
export function liveMdsPath(id: MdsId): string {
  return `${LIVE_MDS_PATH}/${id}`;
}
