/**
 * Entry of every `npm run` command: makes a fresh clone on a machine with only Node and npm able
 * to run the command, then hands over to the built program. Plain JavaScript without dependencies,
 * because nothing is installed or built yet when it starts.
 *
 * Each step does nothing when nothing has changed, so the common case costs a fraction of a second.
 * State: `node_modules/.dss-installed` (hash of the lock file that was installed),
 * `dist/.dss-built` (fingerprint of the sources that were built) and the guest's cache folder.
 */
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  accessSync,
  constants,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { homedir, constants as osConstants } from "node:os";
import { delimiter, dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { GUEST_PACKAGES, PACKAGES } from "./packages.js";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const NODE_MINIMUM = [20, 15]; // zlib.crc32
const MODULES = join(ROOT, "node_modules");
const DIST = join(ROOT, "dist");
const INSTALLED_STAMP = join(MODULES, ".dss-installed");
const BUILT_STAMP = join(DIST, ".dss-built");
/** Folders that tsconfig.json includes. */
const SOURCES = ["cli", "cluster", "osd", "mds", "client-fs", "nbd", "test", "tools"];

/** A failure that the user can act on: printed as it is, without a stack. */
class SetupError extends Error {}

const say = (/** @type {string} */ line) => process.stderr.write(`${line}\n`);

/** Programs of the commands that are not `up` and `down`; paths within dist. */
const PROGRAMS = {
  test: "tools/test.js",
  "test:sim": "test/sim/main.js",
  bench: "test/bench/main.js",
  "bench:parts": "test/bench/parts/main.js",
  "bench:growth": "test/bench/growth/main.js",
  "bench:peers": "test/bench/peers/main.js",
  campaign: "test/campaign/main.js",
};

async function main() {
  const [command = "", ...args] = process.argv.slice(2);
  checkNode();
  switch (command) {
    case "build":
      installModules();
      build();
      return 0;
    case "lint":
      installModules();
      return lint(args);
    case "up":
      // Two independent downloads, one after the other: npm first, as it needs no privilege.
      installModules();
      installPackages(["up"]);
      build();
      linkCommand();
      return run("cli/main.js", ["cluster", "up", ...args]);
    case "down":
      installModules();
      build();
      return run("cli/main.js", ["cluster", "down", ...args]);
    case "test":
      return test(args);
    case "check":
      installModules();
      return (await lint([])) || (await test(args));
    case "test:sim":
      installModules();
      build();
      return run(PROGRAMS[command], args);
    case "bench":
    case "bench:parts":
    case "bench:growth":
    case "campaign":
      installModules();
      installPackages(["up", "test"]);
      build();
      return run(PROGRAMS[command], args);
    case "bench:peers":
      installModules();
      installPackages(["up", "test", "bench"]);
      build();
      return run(PROGRAMS[command], args);
    default:
      throw new SetupError(`unknown command "${command}": see "scripts" in package.json`);
  }
}

function checkNode() {
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  if (major > NODE_MINIMUM[0] || (major === NODE_MINIMUM[0] && minor >= NODE_MINIMUM[1])) return;
  throw new SetupError(
    `dss needs Node ${NODE_MINIMUM.join(".")} or newer; this is ${process.versions.node}`,
  );
}

// ---- npm packages -----------------------------------------------------------------------------

/** Runs `npm ci` unless node_modules already is what package-lock.json describes. */
function installModules() {
  const lock = join(ROOT, "package-lock.json");
  const wanted = createHash("sha256").update(readFileSync(lock)).digest("hex");
  if (readIfExists(INSTALLED_STAMP)?.trim() === wanted) return;
  const installed = join(MODULES, ".package-lock.json");
  // A developer's own `npm ci` counts when it is newer than the lock file.
  const fresh = existsSync(installed) && statSync(installed).mtimeMs >= statSync(lock).mtimeMs;
  if (!fresh) {
    say("installing npm packages (npm ci)");
    const npm = process.env["npm_execpath"];
    const [program, first] = npm?.endsWith(".js") ? [process.execPath, [npm]] : ["npm", []];
    const options = ["ci", "--include=dev", "--no-audit", "--no-fund", "--loglevel=error"];
    const result = spawnSync(program, [...first, ...options], {
      cwd: ROOT,
      stdio: ["ignore", process.stderr, process.stderr],
      // `npm run --silent` and the like must not change what is installed.
      env: { ...process.env, NODE_ENV: "development" },
    });
    if (result.error) throw new SetupError(`cannot start npm: ${result.error.message}`);
    if (result.status !== 0) {
      throw new SetupError("npm ci failed (above): is the registry reachable? then try again");
    }
  }
  writeFileSync(INSTALLED_STAMP, `${wanted}\n`);
}

// ---- Debian packages --------------------------------------------------------------------------

/** Where a program is, or undefined; looks at the system folders that a user's PATH may lack. */
function which(/** @type {string} */ program) {
  const folders = [...(process.env["PATH"] ?? "").split(delimiter), "/usr/sbin", "/sbin"];
  for (const folder of folders) {
    const path = join(folder, program);
    try {
      accessSync(path, constants.X_OK);
      if (folder !== "") return path;
    } catch {
      // Not in this folder.
    }
  }
  return undefined;
}

const isPresent = (/** @type {string} */ what) =>
  what.startsWith("/") ? existsSync(what) : which(what) !== undefined;

/**
 * Installs what the purposes need and the machine lacks.
 * @param {readonly import("./packages.js").Purpose[]} purposes
 */
function installPackages(purposes) {
  const missing = PACKAGES.filter((p) => purposes.includes(p.purpose) && !isPresent(p.present));
  const guest = purposes.includes("guest") && !guestIsReady();
  if (missing.length === 0 && !guest) return;
  const list = missing.map((p) => `${p.name} (${p.why})`).join(", ");
  if (which("apt-get") === undefined) {
    throw new SetupError(
      `missing: ${list || "the guest's kernel"}; this machine has no apt-get, so install what ` +
        "provides them with its own package manager and run the command again",
    );
  }
  if (missing.length > 0) {
    const names = missing.map((p) => p.name);
    if (process.getuid?.() !== 0) {
      throw new SetupError(
        `missing: ${list}; run as root, or: ` +
          `sudo apt-get update && sudo apt-get install --no-install-recommends ${names.join(" ")}`,
      );
    }
    say(`installing Debian packages: ${list}`);
    withoutServices(() => {
      const install = () =>
        apt(["install", "-y", "--no-install-recommends", ...names], { tolerate: true });
      // The package lists are refreshed only when what they say does not suffice.
      if (install() !== "") {
        apt(["update"], { tolerate: true });
        const output = install();
        if (output !== "") throw new SetupError(`apt-get install failed:\n${output}`);
      }
    });
    const still = missing.filter((p) => !isPresent(p.present)).map((p) => p.name);
    if (still.length > 0) throw new SetupError(`installed, but still missing: ${still.join(", ")}`);
  }
  if (guest) prepareGuest();
}

/**
 * Runs apt-get; returns "" on success and the end of its output on a tolerated failure.
 * @param {string[]} args
 * @param {{ tolerate?: boolean, cwd?: string }} options
 */
function apt(args, options = {}) {
  const settings = ["-q", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300"];
  const result = spawnSync("apt-get", [...settings, ...args], {
    stdio: ["ignore", "pipe", "pipe"],
    encoding: "utf8",
    maxBuffer: 64 * 2 ** 20,
    cwd: options.cwd ?? "/",
    env: { ...process.env, DEBIAN_FRONTEND: "noninteractive" },
  });
  if (result.status === 0) return "";
  const output = `${result.stdout ?? ""}${result.stderr ?? ""}`.trim().split("\n").slice(-12);
  const text = result.error?.message ?? output.join("\n");
  if (options.tolerate !== true) throw new SetupError(`apt-get ${args[0]} failed:\n${text}`);
  return text || `status ${result.status}`;
}

/**
 * Debian starts a service when its package is installed unless /usr/sbin/policy-rc.d forbids it;
 * dss starts its own processes, so it forbids it for the time of the installation.
 * @param {() => void} action
 */
function withoutServices(action) {
  const policy = "/usr/sbin/policy-rc.d";
  const ours = !existsSync(policy);
  if (ours) writeFileSync(policy, "#!/bin/sh\nexit 101\n", { mode: 0o755 });
  const remove = () => ours && rmSync(policy, { force: true });
  const onSignal = () => {
    remove();
    process.exit(130);
  };
  process.once("SIGINT", onSignal).once("SIGTERM", onSignal);
  try {
    action();
  } finally {
    process.off("SIGINT", onSignal).off("SIGTERM", onSignal);
    remove();
  }
}

// ---- The guest that brings a kernel with nbd --------------------------------------------------

/** Folder of the unpacked guest packages; `packages` inside it exists once all are complete. */
function guestFolder() {
  const named = process.env["DSS_TEST_GUEST"];
  if (named) return resolve(named);
  return join(process.env["XDG_CACHE_HOME"] || join(homedir(), ".cache"), "dss", "guest");
}

const guestIsReady = () => existsSync(join(guestFolder(), "complete"));

/** Downloads and unpacks a kernel and busybox, whole or not at all. */
function prepareGuest() {
  const target = guestFolder();
  mkdirSync(dirname(target), { recursive: true });
  const work = mkdtempSync(`${target}.part-`);
  try {
    say("downloading the test guest's kernel");
    // apt drops its privileges for a download unless its user can write to the folder.
    const fetch = (/** @type {string} */ name) =>
      apt(["-o", "APT::Sandbox::User=root", "download", name], { cwd: work, tolerate: true });
    for (const wanted of GUEST_PACKAGES) {
      let failure = fetch(guestPackageName(wanted));
      if (failure !== "") {
        apt(["update"], { tolerate: true });
        failure = fetch(guestPackageName(wanted));
      }
      if (failure !== "") throw new SetupError(`cannot download ${wanted.name}:\n${failure}`);
    }
    for (const file of readdirSync(work).filter((name) => name.endsWith(".deb"))) {
      const result = spawnSync("dpkg-deb", ["-x", file, "."], { cwd: work, stdio: "inherit" });
      if (result.status !== 0) throw new SetupError(`cannot unpack ${file}`);
      unlinkSync(join(work, file));
    }
    writeFileSync(join(work, "complete"), "");
    rmSync(target, { recursive: true, force: true });
    renameSync(work, target);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** @param {typeof GUEST_PACKAGES[number]} wanted */
function guestPackageName(wanted) {
  if (wanted.depends === undefined || wanted.pattern === undefined) return wanted.name;
  const { pattern } = wanted;
  const result = spawnSync("apt-cache", ["depends", wanted.depends], { encoding: "utf8" });
  const names = (result.stdout ?? "").split("\n").map((line) => line.replace(/^.*Depends: /, ""));
  return names.map((name) => name.trim()).find((name) => pattern.test(name)) ?? wanted.depends;
}

// ---- Build ------------------------------------------------------------------------------------

/** Paths below `folder` (relative to the root), sorted, that pass the test. */
function walk(/** @type {string} */ folder, /** @type {(name: string) => boolean} */ wanted) {
  /** @type {string[]} */
  const found = [];
  const visit = (/** @type {string} */ path) => {
    for (const entry of readdirSync(path, { withFileTypes: true })) {
      const child = join(path, entry.name);
      if (entry.isDirectory()) visit(child);
      else if (wanted(entry.name)) found.push(child);
    }
  };
  if (existsSync(folder)) visit(folder);
  return found.sort();
}

/** Changes when a source is added, removed or touched, or when the compiler changes. */
function sourceFingerprint() {
  const hash = createHash("sha256");
  const files = SOURCES.flatMap((f) => walk(join(ROOT, f), (name) => name.endsWith(".ts")));
  for (const file of [...files, join(ROOT, "tsconfig.json"), INSTALLED_STAMP]) {
    const { mtimeMs, size } = statSync(file);
    hash.update(`${relative(ROOT, file)}\0${mtimeMs}\0${size}\n`);
  }
  return hash.digest("hex");
}

/** Compiles unless dist already is what the sources say. */
function build() {
  const wanted = sourceFingerprint();
  if (readIfExists(BUILT_STAMP)?.trim() === wanted) return;
  say("building");
  rmSync(BUILT_STAMP, { force: true });
  const result = spawnSync(process.execPath, [join(MODULES, "tsc7", "bin", "tsc"), "-p", ROOT], {
    cwd: ROOT,
    stdio: ["ignore", process.stderr, process.stderr],
  });
  if (result.status !== 0) throw new SetupError("the build failed (above)");
  removeOrphans();
  writeFileSync(BUILT_STAMP, `${wanted}\n`);
}

/** Output whose source is gone would still be found by imports and by file name. */
function removeOrphans() {
  for (const file of walk(DIST, (name) => /\.js(\.map)?$/.test(name))) {
    const source = join(ROOT, relative(DIST, file).replace(/\.js(\.map)?$/, ".ts"));
    if (!existsSync(source)) rmSync(file, { force: true });
  }
}

/** @param {string[]} args */
function lint(args) {
  const eslint = join(MODULES, "eslint", "bin", "eslint.js");
  const targets = args.length > 0 ? args : ["."];
  return handOver(process.execPath, [eslint, "--max-warnings=0", ...targets]);
}

// ---- Running ----------------------------------------------------------------------------------

/** @param {string[]} args */
async function test(args) {
  installModules();
  build();
  // The parts that were asked for say what they need; unit tests need nothing but Node.
  const parts = await import(join(DIST, "tools", "test-parts.js"));
  installPackages(parts.packagesNeeded(args));
  process.env["DSS_TEST_GUEST"] = guestFolder();
  return run(PROGRAMS.test, args);
}

/**
 * Runs a built program in place of this one.
 * @param {string} program path within dist
 * @param {string[]} args
 */
function run(program, args) {
  const path = join(DIST, program);
  if (!existsSync(path)) throw new SetupError(`there is no ${program.replace(/js$/, "ts")} here`);
  return handOver(process.execPath, ["--enable-source-maps", path, ...args]);
}

/**
 * Runs a program with our terminal; signals to us go to it, and its end is ours.
 * @param {string} program
 * @param {string[]} args
 * @returns {Promise<number>} exit code
 */
function handOver(program, args) {
  return new Promise((done, fail) => {
    const child = spawn(program, args, { stdio: "inherit", cwd: process.cwd() });
    const signals = /** @type {const} */ (["SIGINT", "SIGTERM", "SIGHUP"]);
    const forward = (/** @type {NodeJS.Signals} */ signal) => child.kill(signal);
    for (const signal of signals) process.on(signal, forward);
    child.on("error", fail);
    child.on("exit", (code, signal) => {
      for (const each of signals) process.off(each, forward);
      done(code ?? 128 + (signal ? (osConstants.signals[signal] ?? 0) : 0));
    });
  });
}

/**
 * Puts `dss` on the PATH, and its helper where mount(8) looks for it; never replaces a file that is
 * not a link to a checkout of dss.
 */
function linkCommand() {
  linkTo("/usr/local/bin/dss", join(ROOT, "bin", "dss"));
  if (process.getuid?.() === 0) linkTo("/sbin/mount.dss", join(ROOT, "bin", "mount-dss"));
}
function linkTo(/** @type {string} */ link, /** @type {string} */ target) {
  try {
    const found = lstatSync(link, { throwIfNoEntry: false });
    if (found !== undefined) {
      if (found.isSymbolicLink() && resolve(dirname(link), readlinkSync(link)) === target) return;
      if (!found.isSymbolicLink() || !pointsToDss(link)) {
        say(`note: ${link} is another program and was left alone; use npx dss in ${ROOT}`);
        return;
      }
      unlinkSync(link);
    }
    symlinkSync(target, link);
  } catch (error) {
    const why = error instanceof Error ? error.message : error;
    say(`note: cannot link ${link} (${why}); use npx dss in ${ROOT}`);
  }
}

/** True for a link into a checkout or installation of dss, also one that is gone since. */
function pointsToDss(/** @type {string} */ link) {
  const target = resolve(dirname(link), readlinkSync(link));
  if (!/\/bin\/(mount-)?dss$/.test(target)) return false;
  if (!existsSync(target)) return true;
  const description = readIfExists(join(dirname(dirname(realpathSync(target))), "package.json"));
  return description !== undefined && JSON.parse(description).name === "dss";
}

function readIfExists(/** @type {string} */ path) {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
    throw error;
  }
}

try {
  process.exitCode = await main();
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  say(`dss: ${error.message}`);
  process.exitCode = 1;
}
