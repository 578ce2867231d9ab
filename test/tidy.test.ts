/**
 * The house rules that a compiler does not check: who may import whom, who may touch the world,
 * names, comments, line lengths, links in the docs, and that every test file belongs to a part.
 * The tables below are the rules; a rule is changed here and in docs/architecture.md together.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize, relative } from "node:path";
import t from "tap";
import ts from "typescript";
import { allTestFiles, partOf, ROOT } from "../tools/test-parts.js";

/** Everything but what is installed or built; found without git, which a copy may lack. */
const FILES = readdirSync(ROOT, { withFileTypes: true })
  .filter(({ name }) => !/^(\.git|\.tap|node_modules|dist|build-.*)$/.test(name))
  .flatMap((entry) => (entry.isDirectory() ? filesBelow(entry.name) : [entry.name]))
  .sort();

function filesBelow(folder: string): string[] {
  return readdirSync(join(ROOT, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = `${folder}/${entry.name}`;
    return entry.isDirectory() ? filesBelow(path) : [path];
  });
}

// ---- Layers -----------------------------------------------------------------------------------

const BASE = "cluster/base/";
const PURE_CLUSTER = [BASE, "cluster/wire/"];
const CLUSTER_ROWS = [...PURE_CLUSTER, "cluster/platform/", "cluster/map/", "cluster/config/"];
const FILE_SYSTEM = "client-fs/file-system.ts"; // Types only: the contract of driver and vfs.
/** What stands above the daemons: their clients and the metadata protocol that these speak. */
const CLIENTS = ["osd/client/", "mds/client/", "mds/proto", "cluster/"];

/** The first row whose prefix a file has applies; a file may always import its own folder. */
const LAYERS: readonly (readonly [prefix: string, mayImport: readonly string[]])[] = [
  [BASE, [BASE]],
  ["cluster/wire/", PURE_CLUSTER],
  ["cluster/platform/", [BASE, "cluster/platform/"]],
  ["cluster/map/", [...PURE_CLUSTER, "cluster/map/"]],
  ["cluster/config/", [...PURE_CLUSTER, "cluster/config/"]],
  ["cluster/messenger/", [...CLUSTER_ROWS, "cluster/messenger/"]],
  ["cluster/zk/", [...CLUSTER_ROWS, "cluster/zk/"]],
  ["osd/proto", [...PURE_CLUSTER, "osd/proto"]],
  ["osd/core/", [...PURE_CLUSTER, "osd/core/", "osd/proto", "cluster/map/"]],
  ["osd/store/", ["osd/store/", "osd/core/", "cluster/"]],
  ["osd/client/", ["osd/client/", "osd/proto", "cluster/"]],
  ["osd/", ["osd/", "cluster/"]],
  ["mds/proto", [...PURE_CLUSTER, "mds/proto"]],
  ["mds/core/", [...PURE_CLUSTER, "mds/core/", "mds/proto", "cluster/map/"]],
  ["mds/store/", ["mds/store/", "mds/core/", "cluster/"]],
  ["mds/client/", ["mds/client/", "mds/proto", "cluster/"]],
  ["mds/", ["mds/", "osd/client/", "osd/proto", "cluster/"]],
  [FILE_SYSTEM, [BASE]],
  ["client-fs/fuse/", [BASE, "cluster/wire/", "cluster/platform/", "client-fs/fuse/", FILE_SYSTEM]],
  ["client-fs/vfs/", ["client-fs/vfs/", FILE_SYSTEM, ...CLIENTS]],
  ["client-fs/", ["client-fs/", ...CLIENTS]],
  ["nbd/", ["nbd/", ...CLIENTS]],
  ["cli/", ["cli/", "cluster/", "osd/", "mds/", "client-fs/", "nbd/"]],
  ["tools/", ["tools/", "cluster/"]],
  ["test/", [""]],
];
/** The daemons' shells do not use their own client side. */
const NEVER: readonly (readonly [prefix: RegExp, forbidden: RegExp, why: string])[] = [
  [/^osd\/[^/]+$/, /^osd\/client\//, "a daemon does not use its own client"],
  [/^mds\/[^/]+$/, /^mds\/client\//, "a daemon does not use its own client"],
  [/^(?!cli\/|test\/)/, /\/main\.ts$/, "only cli imports main.ts"],
  [/^(?!cli\/|test\/)/, /^cli\//, "nothing imports cli"],
  [/^(?!test\/)/, /^test\//, "only tests import tests"],
];

// ---- The world --------------------------------------------------------------------------------

/** Where sockets, files, child processes and timers of Node may appear. */
const WORLDLY = [
  /^cluster\/platform\/(node|node-[a-z-]+|lmdb|pino-log)\.ts$/,
  /^client-fs\/fuse\/(device|looker|fuse-native)\.ts$/,
  /^[a-z-]+\/main\.ts$/,
  /^(cli|tools|test)\//,
];
const EFFECT_MODULES = new Set(
  ["net", "tls", "dgram", "http", "https", "http2", "dns", "fs", "child_process", "cluster"].concat(
    ["worker_threads", "timers", "readline", "repl", "inspector", "v8", "vm"],
  ),
);
const TIMERS = new Set(["setTimeout", "setInterval", "setImmediate"]);

/** Decisions live here: no Node at all, no time, no chance, no waiting. */
const PURE = /^(osd|mds)\/core\//;
const PURE_FORBIDDEN = new Set([
  ...TIMERS,
  ...["Date", "performance", "process", "queueMicrotask", "fetch", "globalThis", "require"],
]);
/** Pure but for what these modules of Node compute. */
const ALMOST_PURE = /^(cluster\/(base|wire|map|config)\/|(osd|mds)\/proto)/;
const COMPUTING_MODULES = new Set(["node:zlib", "node:os", "node:buffer", "node:assert/strict"]);

/** Each npm package is used where docs/decisions/0002-dependencies.md says. */
const PACKAGES: Readonly<Record<string, RegExp>> = {
  "@node-rs/crc32": /^cluster\/base\/checksum\.ts$/,
  lmdb: /^cluster\/platform\/lmdb\.ts$/,
  "node-zookeeper-client": /^(cluster\/zk\/|test\/)/,
  "lru-cache": /^(cluster|osd|mds|client-fs|nbd)\//,
  commander: /^cli\//,
  pino: /^cluster\/platform\/pino-log\.ts$/,
  msgpackr: /^(cluster|osd|mds)\//,
  "cli-table3": /^cli\//,
  "cli-progress": /^cli\//,
  zod: /^(cluster|cli|mds)\//,
  "fuse-native": /^client-fs\/fuse\/fuse-native\.ts$/,
  tap: /^test\//,
  typescript: /^test\/tidy\.test\.ts$/,
};

// ---- Parsing ----------------------------------------------------------------------------------

const SOURCES = FILES.filter((file) => file.endsWith(".ts") && !file.endsWith(".d.ts"));
const FOLDERS = new Set(FILES.filter((file) => file.includes("/")).map((f) => f.split("/")[0]!));
interface Source {
  readonly file: string;
  readonly text: string;
  readonly tree: ts.SourceFile;
}
const parsed: readonly Source[] = SOURCES.map((file) => {
  const text = readFileSync(join(ROOT, file), "utf8");
  return { file, text, tree: ts.createSourceFile(file, text, ts.ScriptTarget.ES2022, true) };
});

function visit(node: ts.Node, action: (node: ts.Node) => void): void {
  action(node);
  ts.forEachChild(node, (child) => visit(child, action));
}

/** Every module that a file names in an import, an export or a dynamic import. */
function importsOf(tree: ts.SourceFile): string[] {
  const found: string[] = [];
  visit(tree, (node) => {
    let named: ts.Node | undefined;
    if (ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) named = node.moduleSpecifier;
    else if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword) {
      named = node.arguments[0];
    } else if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) {
      named = node.argument.literal;
    }
    if (named !== undefined && ts.isStringLiteralLike(named)) found.push(named.text);
  });
  return found;
}

/** True for an identifier that refers to a global, not to a property or a key of that name. */
function isReference(node: ts.Identifier): boolean {
  const { parent } = node;
  if (ts.isPropertyAccessExpression(parent)) return parent.expression === node;
  const named = parent as { name?: ts.Node; propertyName?: ts.Node };
  return named.name !== node && named.propertyName !== node && !ts.isTypeReferenceNode(parent);
}

interface Reporter {
  same(found: unknown, wanted: unknown, what: string): unknown;
  end(): unknown;
}
const report = (t: Reporter, what: string, offences: readonly string[]): void => {
  t.same(offences, [], what);
  t.end();
};

// ---- The rules --------------------------------------------------------------------------------

t.test("every import goes down", (t) => {
  const offences: string[] = [];
  for (const { file, tree } of parsed) {
    const row = LAYERS.find(([prefix]) => file.startsWith(prefix));
    if (row === undefined) {
      offences.push(`${file}: in no folder of the tree`);
      continue;
    }
    for (const specifier of importsOf(tree)) {
      if (!specifier.startsWith(".")) continue;
      const target = normalize(join(dirname(file), specifier)).replace(/\.js$/, ".ts");
      if (!specifier.endsWith(".js") || !existsSync(join(ROOT, target))) {
        offences.push(`${file}: ${specifier} is no source file`);
        continue;
      }
      if (!row[1].some((prefix) => target.startsWith(prefix))) {
        offences.push(`${file}: may not import ${target}`);
      }
      for (const [from, to, why] of NEVER) {
        if (from.test(file) && to.test(target)) offences.push(`${file}: ${target}: ${why}`);
      }
    }
  }
  report(t, "the import table holds", offences);
});

t.test("only shells touch the world", (t) => {
  const offences: string[] = [];
  for (const { file, tree } of parsed) {
    const worldly = WORLDLY.some((pattern) => pattern.test(file));
    for (const specifier of importsOf(tree)) {
      if (specifier.startsWith(".")) continue;
      const module = specifier.replace(/^node:/, "").split("/")[0]!;
      if (specifier.startsWith("node:")) {
        if (EFFECT_MODULES.has(module) && !worldly) offences.push(`${file}: ${specifier}`);
        if (PURE.test(file)) offences.push(`${file}: ${specifier} in a pure core`);
        if (ALMOST_PURE.test(file) && !COMPUTING_MODULES.has(specifier)) {
          offences.push(`${file}: ${specifier} in a pure folder`);
        }
      } else {
        const name = specifier.startsWith("@") ? specifier.split("/", 2).join("/") : module;
        const where = PACKAGES[name];
        if (where === undefined) offences.push(`${file}: ${name} is not a package of ours`);
        else if (!where.test(file)) offences.push(`${file}: ${name} is not used here`);
      }
    }
    if (worldly) continue;
    visit(tree, (node) => {
      if (!ts.isIdentifier(node) || !TIMERS.has(node.text) || !isReference(node)) return;
      offences.push(`${file}: ${node.text}: timers come from the platform`);
    });
  }
  report(t, "sockets, files, processes and timers are where they belong", offences);
});

t.test("cores decide and nothing else", (t) => {
  const offences: string[] = [];
  for (const { file, tree } of parsed) {
    if (!PURE.test(file)) continue;
    visit(tree, (node) => {
      if (ts.isAwaitExpression(node) || (ts.isForOfStatement(node) && node.awaitModifier)) {
        offences.push(`${file}: await`);
      }
      if (ts.isPropertyAccessExpression(node) && node.getText(tree) === "Math.random") {
        offences.push(`${file}: Math.random`);
      }
      if (ts.isIdentifier(node) && PURE_FORBIDDEN.has(node.text) && isReference(node)) {
        offences.push(`${file}: ${node.text}`);
      }
    });
  }
  report(t, "no waiting, clock or chance in a pure core", offences);
});

t.test("forms that the style rules out", (t) => {
  const offences: string[] = [];
  for (const { file, text, tree } of parsed) {
    visit(tree, (node) => {
      if (ts.isEnumDeclaration(node)) offences.push(`${file}: enum`);
      if (ts.isExportAssignment(node)) offences.push(`${file}: default export`);
      const modifiers = ts.canHaveModifiers(node) ? ts.getModifiers(node) : undefined;
      if (modifiers?.some((each) => each.kind === ts.SyntaxKind.DefaultKeyword)) {
        offences.push(`${file}: default export`);
      }
      if (ts.isExportDeclaration(node) && node.exportClause === undefined) {
        offences.push(`${file}: export *`);
      }
    });
    if (/(^|\/)index\.ts$/.test(file)) offences.push(`${file}: barrel file`);
    if (!/^(#!.*\n)?\/[/*]/.test(text)) offences.push(`${file}: does not open with a comment`);
    // In capitals and followed by a colon or an owner, as such notes are written.
    if (/\b(TODO|FIXME|XXX)\b *[:(]/.test(text)) offences.push(`${file}: unfinished business`);
  }
  report(t, "no enum, default export, barrel, bare opening or leftover note", offences);
});

t.test("names are kebab-case", (t) => {
  const offences = FILES.filter((file) => /\.(ts|js|md|json|sh|svg)$/.test(file)).filter((file) => {
    const parts = file.split("/");
    return !parts.every(
      (part) =>
        /^\.?[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9-]+)*$/.test(part) || /^[A-Z]+\.md$/.test(part),
    );
  });
  report(t, "file and folder names", offences);
});

t.test("lines have at most 100 columns and no trailing blanks", (t) => {
  const offences: string[] = [];
  // A text that people read or search for stays in one piece.
  const hasText = /(["'`])(?:(?!\1).){40,}\1/;
  for (const file of FILES.filter((each) => /\.(ts|js|sh)$/.test(each))) {
    readFileSync(join(ROOT, file), "utf8")
      .split("\n")
      .forEach((line, i) => {
        if ([...line].length > 100 && !hasText.test(line))
          offences.push(`${file}:${i + 1}: ${[...line].length} columns`);
        if (/[ \t\r]$/.test(line)) offences.push(`${file}:${i + 1}: blanks at the end`);
      });
  }
  report(t, "line lengths", offences);
});

t.test("nothing depends on one machine's paths", (t) => {
  const offences: string[] = [];
  const workshop = new RegExp(["", "work", ""].join("/"));
  for (const file of FILES) {
    if (!/\.(ts|js|md|json|sh)$|^bin\/|^\.ci\//.test(file)) continue;
    const text = readFileSync(join(ROOT, file), "utf8");
    if (workshop.test(text)) offences.push(`${file}: names a path of one machine`);
    if (/["'`\s(]\/tmp\//.test(text) && !file.startsWith("test/")) offences.push(`${file}: /tmp`);
    if (/["'`\s(]\/(home|Users)\/[a-z]/.test(text)) offences.push(`${file}: a home folder`);
  }
  report(t, "no machine paths", offences);
});

t.test("every link in the docs leads somewhere", (t) => {
  const offences: string[] = [];
  const anchors = (text: string): Set<string> =>
    new Set(
      text
        .split("\n")
        .filter((line) => /^#{1,6} /.test(line))
        .map((line) =>
          line
            .replace(/^#+ /, "")
            .toLowerCase()
            .replace(/[^\p{L}\p{N}\s_-]/gu, "")
            .trim()
            .replace(/\s/g, "-"),
        ),
    );
  for (const file of FILES.filter((each) => each.endsWith(".md"))) {
    const text = readFileSync(join(ROOT, file), "utf8").replace(/```[\s\S]*?```/g, "");
    for (const match of text.matchAll(/\[[^\]]*\]\(([^)\s]+)[^)]*\)/g)) {
      const [path = "", anchor] = match[1]!.split("#");
      if (/^[a-z]+:/.test(path)) continue;
      const target = path === "" ? join(ROOT, file) : join(ROOT, dirname(file), path);
      if (!existsSync(target)) offences.push(`${file}: ${match[1]}`);
      else if (anchor && !anchors(readFileSync(target, "utf8")).has(anchor)) {
        offences.push(`${file}: ${match[1]}: no such heading`);
      }
    }
    // Files of the tree that prose names in backquotes.
    for (const [, path] of text.matchAll(/`([a-z-]+\/[\w./-]+\.(?:ts|js|md))`/g)) {
      const ours = FOLDERS.has(path!.split("/")[0]!);
      if (ours && !existsSync(join(ROOT, path!))) offences.push(`${file}: no ${path}`);
    }
  }
  report(t, "links and named files", offences);
});

t.test("every test file belongs to exactly one part of npm test", (t) => {
  const offences = allTestFiles().filter((file) => partOf(file) === undefined);
  for (const file of SOURCES.filter((each) => each.startsWith("test/"))) {
    const usesTap = parsed.some((s) => s.file === file && importsOf(s.tree).includes("tap"));
    if (usesTap && !file.endsWith(".test.ts") && !isHelper(file)) {
      offences.push(`${file}: uses tap but is no *.test.ts`);
    }
  }
  report(t, "no test is left out", offences);
});

/** Suites that several test files share, and helpers. */
function isHelper(file: string): boolean {
  return file.startsWith("test/support/") || /(^|[-/])(suite|support)\.ts$/.test(file);
}

t.test("package.json's scripts name files that exist", (t) => {
  const { scripts } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")) as {
    scripts: Record<string, string>;
  };
  const missing = Object.values(scripts)
    .map((script) => /^node (\S+)/.exec(script)?.[1] ?? script)
    .filter((path) => !existsSync(join(ROOT, path)));
  t.same(missing, []);
  t.equal(relative(ROOT, join(ROOT, "tools")), "tools", "the checkout was found");
  t.end();
});
