/**
 * Grouped horizontal bars as an SVG document: one group for each row of a benchmark, one bar for
 * each system, scaled to the best of the group, with its own figure beside it, and a tick where
 * the goal is. Text in, text out; with a background of its own, so that it reads on any page.
 */
export interface Bar {
  readonly series: string;
  /** Length relative to the others of the group. */
  readonly value: number;
  readonly label: string;
}

export interface BarGroup {
  readonly name: string;
  readonly bars: readonly Bar[];
  /** On the scale of the values. */
  readonly goal?: number;
}

export interface Chart {
  readonly title: string;
  readonly groups: readonly BarGroup[];
  readonly series: readonly string[];
}

/** Told apart also by people who do not see red and green as different (Okabe and Ito). */
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"];
const WIDTH = 860;
const NAMES = 300;
const LABELS = 90;
const BAR = 14;
const GAP = 14;
const TOP = 64;

const escape = (text: string): string =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function text(x: number, y: number, content: string, attributes = ""): string {
  return `<text x="${x}" y="${y}"${attributes === "" ? "" : ` ${attributes}`}>${escape(content)}</text>`;
}

function legend(series: readonly string[]): string[] {
  return series.flatMap((name, i) => {
    const x = 16 + i * 130;
    return [
      `<rect x="${x}" y="38" width="12" height="12" fill="${COLOURS[i % COLOURS.length]}"/>`,
      text(x + 18, 48, name),
    ];
  });
}

function group(chart: Chart, { name, bars, goal }: BarGroup, top: number): string[] {
  const space = WIDTH - NAMES - LABELS;
  const largest = Math.max(goal ?? 0, ...bars.map(({ value }) => value), Number.MIN_VALUE);
  const lengthOf = (value: number): number => Math.round((value / largest) * space * 10) / 10;
  const lines = [text(16, top + BAR - 3, name)];
  bars.forEach(({ series, value, label }, i) => {
    const colour = COLOURS[Math.max(0, chart.series.indexOf(series)) % COLOURS.length];
    const y = top + i * BAR;
    const length = lengthOf(value);
    lines.push(
      `<rect x="${NAMES}" y="${y}" width="${length}" height="${BAR - 2}" fill="${colour}"/>`,
      text(NAMES + length + 5, y + BAR - 4, label, 'font-size="10"'),
    );
  });
  if (goal !== undefined) {
    const x = NAMES + lengthOf(goal);
    lines.push(
      `<line x1="${x}" y1="${top - 3}" x2="${x}" y2="${top + bars.length * BAR + 1}" ` +
        'stroke="#222" stroke-width="1.5" stroke-dasharray="3 2"/>',
    );
  }
  return lines;
}

export function renderChart(chart: Chart): string {
  let top = TOP;
  const body: string[] = [];
  for (const each of chart.groups) {
    body.push(...group(chart, each, top));
    top += each.bars.length * BAR + GAP;
  }
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${top}" ` +
      `viewBox="0 0 ${WIDTH} ${top}" font-family="sans-serif" font-size="12" fill="#222">`,
    `<title>${escape(chart.title)}</title>`,
    `<rect width="${WIDTH}" height="${top}" fill="#fff"/>`,
    text(16, 24, chart.title, 'font-size="15" font-weight="bold"'),
    ...legend(chart.series),
    ...body,
    "</svg>",
    "",
  ].join("\n");
}
