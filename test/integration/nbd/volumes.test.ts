/**
 * Volumes of one real cluster, suite by suite: what changes them, their snapshots and clones, what
 * has changed between snapshots, and attachments whose servers die. DSS_SUITE names one of them to
 * run it alone.
 */
const SUITES = ["changes", "snapshots", "clones", "diffs", "attach"];
const only = process.env["DSS_SUITE"];
if (only !== undefined && !SUITES.includes(only)) {
  throw new Error(`DSS_SUITE=${only}: there are ${SUITES.join(", ")}`);
}
for (const suite of SUITES) {
  if (only === undefined || only === suite) await import(`./${suite}-suite.js`);
}
export {};
