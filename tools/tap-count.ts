/**
 * Counts the assertions of a TAP 14 stream as node-tap writes it (subtests indented by four,
 * announced by "# Subtest:" or opened by a brace, diagnostics as YAML between "---" and "...").
 * Pure: lines in, figures out. A subtest's closing line repeats what its assertions said, so it is
 * counted only when it fails although none of its assertions did.
 */
export interface TapFigures {
  passed: number;
  failed: number;
  skipped: number;
  /** Skips and todos that state no reason. */
  unexplained: number;
  /** True when the stream's own plan was seen: without it the file ended early. */
  planned: boolean;
  bailedOut: boolean;
}

const RESULT = /^( *)(not )?ok\b(?: +\d+)?(.*)$/;
const DIRECTIVE = / # (skip|todo)\b\S*(.*?)(?: \{)?$/i;

export function countTap(text: string): TapFigures {
  const figures: TapFigures = {
    passed: 0,
    failed: 0,
    skipped: 0,
    unexplained: 0,
    planned: false,
    bailedOut: false,
  };
  /** Indentation -> failures counted when the subtest now closing there was announced. */
  const announced = new Map<number, number>();
  let yamlIndent = -1;
  for (const line of text.split("\n")) {
    if (yamlIndent >= 0) {
      if (line.trim() === "..." && line.indexOf("...") === yamlIndent) yamlIndent = -1;
      continue;
    }
    const trimmed = line.trimStart();
    const indent = line.length - trimmed.length;
    if (trimmed === "---") {
      yamlIndent = indent;
      continue;
    }
    if (trimmed.startsWith("# Subtest")) {
      // Some producers indent the announcement to the subtest's own level.
      announced.set(indent, figures.failed);
      continue;
    }
    if (/^Bail out!/.test(trimmed)) figures.bailedOut = true;
    if (indent === 0 && /^1\.\.\d+/.test(trimmed)) figures.planned = true;
    // A file that skips itself as a whole.
    const whole = indent === 0 ? /^1\.\.0 # skip\S*(.*)$/i.exec(trimmed) : null;
    if (whole) {
      figures.skipped++;
      if ((whole[1] ?? "").trim() === "") figures.unexplained++;
    }
    const match = RESULT.exec(line);
    if (!match) continue;
    const failed = match[2] !== undefined;
    const rest = match[3] ?? "";
    const before = announced.get(indent);
    announced.delete(indent);
    const directive = DIRECTIVE.exec(rest);
    if (directive) {
      figures.skipped++;
      if ((directive[2] ?? "").replace(/#? *time=\S+/, "").trim() === "") figures.unexplained++;
    } else if (/ \{$/.test(rest)) {
      // A buffered subtest: its assertions follow.
    } else if (before !== undefined) {
      if (failed && figures.failed === before) figures.failed++;
    } else if (failed) figures.failed++;
    else figures.passed++;
  }
  return figures;
}

/** The failing assertions of a stream with their diagnostics, without the noise around them. */
export function failuresOf(text: string): string[] {
  const lines = text.split("\n");
  const out: string[] = [];
  for (let i = 0; i < lines.length; i++) {
    const line = lines[i]!;
    if (/^Bail out!/.test(line)) out.push(line);
    const match = /^( *)not ok\b/.exec(line);
    if (!match || / # (skip|todo)\b/i.test(line)) continue;
    out.push(line);
    const indent = `${match[1] ?? ""}  `;
    if (lines[i + 1] !== `${indent}---`) continue;
    for (i++; i < lines.length && lines[i] !== `${indent}...`; i++) out.push(lines[i]!);
  }
  return out;
}
