/**
 * Rounds about names and attributes: what one mount makes, renames, removes or sets, the other
 * sees at its next look, whatever it had cached. See data-rounds.ts.
 */
import { constants } from "node:fs";
import { expectBytes, expectEqual, expectError, Incoherence } from "./agent.js";
import type { Agent, Attributes, Call } from "./agent.js";
import type { Kind } from "./data-rounds.js";

const { O_RDWR, O_WRONLY, O_CREAT, O_EXCL, O_TRUNC } = constants;
/** As uapi/linux/fs.h. */
const [RENAME_NOREPLACE, RENAME_EXCHANGE] = [1, 2];
const PERMISSIONS = 0o7777;

/** Renames within and between two directories; the other had looked at both names before. */
export const renames: Kind = async ({ agents, random }) => {
  const folders = ["from", "to"];
  for (const folder of folders) await agents[0].call("mkdir", folder);
  const paths = folders.flatMap((folder) => ["a", "b", "c"].map((name) => `${folder}/${name}`));
  const model = new Map<string, string>();
  let made = 0;
  const look = async (agent: Agent, path: string): Promise<void> => {
    const wanted = model.get(path);
    if (wanted === undefined) return await expectError(agent, "ENOENT", "stat", path);
    expectBytes(`${agent.name} reads "${path}"`, await agent.read(path), Buffer.from(wanted));
  };
  const list = async (agent: Agent, folder: string): Promise<void> => {
    const names = [...model.keys()].filter((path) => path.startsWith(`${folder}/`));
    const wanted = names.map((path) => path.slice(folder.length + 1)).sort();
    expectEqual(
      `${agent.name} lists ${folder}`,
      (await agent.call<string[]>("list", folder)).sort(),
      wanted,
    );
  };
  return async (x, y) => {
    if (model.size < 2) {
      const path = random.pick(paths.filter((each) => !model.has(each)));
      model.set(path, `file ${++made}`);
      await x.write(path, model.get(path)!, O_WRONLY | O_CREAT | O_EXCL);
      await look(y, path);
    }
    const source = random.pick([...model.keys()]);
    const target = random.pick(paths.filter((path) => path !== source));
    // What it caches now must not outlive the rename.
    if (random.chance(0.7)) for (const path of [source, target]) await look(y, path);
    const kept = model.get(source)!;
    const replaced = model.get(target);
    const which = random.float();
    if (which < 0.2 && replaced !== undefined) {
      await x.call("rename", source, target, RENAME_EXCHANGE);
      model.set(target, kept).set(source, replaced);
    } else if (which < 0.4 && replaced !== undefined) {
      await expectError(x, "EEXIST", "rename", source, target, RENAME_NOREPLACE);
    } else {
      await x.call("rename", source, target);
      model.delete(source);
      model.set(target, kept);
    }
    for (const path of random.chance(0.5) ? [source, target] : [target, source])
      await look(y, path);
    await list(y, random.pick(folders));
    if (random.chance(0.2)) await list(x, random.pick(folders));
  };
};

/** A name looked for in vain is there once it is made, and gone once it is removed. */
export const absence: Kind = async ({ agents, random }) => {
  await agents[0].call("mkdir", "absent");
  const makers: Record<string, (path: string) => Call> = {
    file: (path) => ["write", path, "", O_WRONLY | O_CREAT | O_EXCL],
    directory: (path) => ["mkdir", path],
    symlink: (path) => ["symlink", "target", path],
    rename: (path) => ["rename", "absent/source", path],
    link: (path) => ["link", "absent/source", path],
  };
  return async (x, y) => {
    const path = `absent/n${random.int(0, 5)}`;
    const kind = random.pick(Object.keys(makers));
    if (kind === "rename" || kind === "link")
      await x.write("absent/source", "", O_WRONLY | O_CREAT);
    if (random.chance(0.8)) await expectError(y, "ENOENT", "stat", path);
    await x.call(...makers[kind]!(path));
    const seen = await y.stat(path);
    expectEqual(`inode of ${path}`, seen.ino, (await x.stat(path)).ino);
    // Whoever removes it, the other must not find it.
    const [remover, other] = random.chance(0.5) ? [x, y] : [y, x];
    await remover.call(kind === "directory" ? "rmdir" : "unlink", path);
    await expectError(other, "ENOENT", "stat", path);
    await expectError(remover, "ENOENT", "stat", path);
    if (kind === "link") await remover.call("unlink", "absent/source");
    if (kind === "rename") await expectError(other, "ENOENT", "stat", "absent/source");
  };
};

/** Hard links come and go; the last one leaves a file that is open, and only that. */
export const links: Kind = async ({ random }) => {
  let version = 0;
  return async (x, y) => {
    const text = `linked ${++version}`;
    await x.write("one", text, O_WRONLY | O_CREAT | O_EXCL);
    expectEqual(`${y.name}: links`, (await y.stat("one")).nlink, 1);
    const count = random.int(1, 3);
    for (let i = 1; i <= count; i++) {
      const by = random.pick([x, y]);
      await by.call("link", "one", `also${i}`);
      for (const agent of [y, x]) {
        const { nlink, ino } = await agent.stat("one");
        expectEqual(`${agent.name}: links`, nlink, i + 1);
        expectEqual(`${agent.name}: inode`, (await agent.stat(`also${i}`)).ino, ino);
      }
    }
    await y.call("open", "last", "one", O_RDWR);
    await x.call("unlink", "one");
    await expectError(y, "ENOENT", "stat", "one");
    for (let i = 1; i <= count; i++) {
      const by = random.pick([x, y]);
      await by.call("unlink", `also${i}`);
      await expectError(by === x ? y : x, "ENOENT", "stat", `also${i}`);
      const { nlink } = await y.call<Attributes>("fstat", "last");
      expectEqual(`${y.name}: links of the open file`, nlink, count - i);
    }
    const held = await y.pread("last", 0, 100);
    expectBytes("a file without a name", held, Buffer.from(text));
    await y.pwrite("last", 0, Buffer.from("LINKED"));
    const rewritten = text.replace("linked", "LINKED");
    expectBytes("a file without a name", await y.pread("last", 0, 100), Buffer.from(rewritten));
    await y.call("close", "last");
  };
};

/** Mode, owner, times and extended attributes of files and directories. */
export const attributes: Kind = async ({ agents, random }) => {
  const models: Record<string, { mode: number; uid: number; gid: number; mtimeMs?: number }> = {};
  const xattrs: Record<string, Record<string, string>> = {};
  for (const name of ["owned-file", "owned-other", "owned-directory"]) {
    if (name === "owned-directory") await agents[0].call("mkdir", name);
    else await agents[0].write(name, "text", O_WRONLY | O_CREAT);
    await agents[0].call("chmod", name, 0o700);
    await agents[0].call("chown", name, 0, 0);
    models[name] = { mode: 0o700, uid: 0, gid: 0 };
    xattrs[name] = {};
  }
  const names = Object.keys(models);
  const look = async (agent: Agent, name: string): Promise<void> => {
    const { mode, uid, gid, mtimeMs } = await agent.stat(name);
    const wanted = models[name]!;
    const found = { mode: mode & PERMISSIONS, uid, gid };
    const shown = wanted.mtimeMs === undefined ? found : { ...found, mtimeMs };
    expectEqual(`${agent.name}: attributes of ${name}`, shown, wanted);
  };
  const lookAtExtended = async (agent: Agent, name: string): Promise<void> => {
    const found = Object.entries(await agent.call<object>("xattrs", name)).sort();
    const wanted = Object.entries(xattrs[name]!).sort();
    expectEqual(`${agent.name}: extended attributes of ${name}`, found, wanted);
  };
  const change = async (x: Agent, name: string): Promise<void> => {
    const model = models[name]!;
    const key = `user.k${random.int(0, 3)}`;
    const which = random.int(0, 4);
    if (which === 0) {
      // Without set-id bits, which a change of owner takes away.
      model.mode = random.int(0, 0o777);
      await x.call("chmod", name, model.mode);
    } else if (which === 1) {
      [model.uid, model.gid] = [random.int(0, 3), random.int(0, 3)];
      await x.call("chown", name, model.uid, model.gid);
    } else if (which === 2) {
      model.mtimeMs = random.int(1, 2_000_000_000) * 1_000;
      await x.call("utime", name, model.mtimeMs);
    } else if (which === 3 || xattrs[name]![key] === undefined) {
      xattrs[name]![key] = "v".repeat(random.int(0, 40)) + String(random.u32());
      await x.call("setxattr", name, key, xattrs[name]![key]);
    } else {
      delete xattrs[name]![key];
      await x.call("removexattr", name, key);
    }
  };
  return async (x, y) => {
    const name = random.pick(names);
    for (let i = random.int(1, 3); i > 0; i--) await change(x, name);
    await look(y, name);
    await lookAtExtended(y, name);
    if (random.chance(0.3)) {
      await look(x, name);
      await lookAtExtended(x, name);
    }
  };
};

/** Both make, move or remove one name at the same moment: exactly one does. */
export const exclusion: Kind = async ({ agents, random }) => {
  await agents[0].call("mkdir", "race");
  for (const { name } of agents) await agents[0].write(`race/${name}`, name, O_WRONLY | O_CREAT);
  const contests: Record<string, (agent: Agent, path: string) => Call> = {
    create: (_, path) => ["write", path, "", O_WRONLY | O_CREAT | O_EXCL],
    mkdir: (_, path) => ["mkdir", path],
    symlink: ({ name }, path) => ["symlink", name, path],
    link: ({ name }, path) => ["link", `race/${name}`, path],
    rename: ({ name }, path) => ["rename", `race/moving-${name}`, path, RENAME_NOREPLACE],
  };
  const race = async (calls: readonly Call[]): Promise<(string | null)[]> => {
    // Both begin at one moment, if the machine lets them.
    const until = Math.floor(Number(process.hrtime.bigint() / 1_000n)) + 600;
    const outcomes = await Promise.all(
      agents.map((agent, side) => agent.many([["wait", until], calls[side]!])),
    );
    return outcomes.map((each) => each[1]!.error);
  };
  const oneWins = (what: string, errors: readonly (string | null)[], lost: string): number => {
    expectEqual(what, [...errors].sort(), [lost, null].sort());
    return errors.indexOf(null);
  };
  return async (x) => {
    const kind = random.pick(Object.keys(contests));
    const path = `race/n${random.int(0, 3)}`;
    if (kind === "rename") {
      for (const { name } of agents) await x.write(`race/moving-${name}`, name, O_WRONLY | O_CREAT);
    }
    const errors = await race(agents.map((agent) => contests[kind]!(agent, path)));
    const winner = agents[oneWins(`${kind} of ${path} by both`, errors, "EEXIST")]!;
    const seen = await Promise.all(agents.map((agent) => agent.stat(path)));
    expectEqual("inode of what was made", seen[0]!.ino, seen[1]!.ino);
    if (kind === "rename") {
      for (const agent of agents) {
        expectBytes(
          `${agent.name} reads ${path}`,
          await agent.read(path),
          Buffer.from(winner.name),
        );
      }
      const loser = agents.find((agent) => agent !== winner)!;
      await expectError(random.pick(agents), "ENOENT", "stat", `race/moving-${winner.name}`);
      await random.pick(agents).call("unlink", `race/moving-${loser.name}`);
    }
    const removal: Call = [kind === "mkdir" ? "rmdir" : "unlink", path];
    oneWins(`removal of ${path} by both`, await race([removal, removal]), "ENOENT");
    for (const agent of agents) await expectError(agent, "ENOENT", "stat", path);
  };
};

/** Symbolic links are replaced; the other follows the new one. */
export const symlinks: Kind = async ({ random }) => {
  let version = 0;
  let target = "";
  return async (x, y) => {
    if (target !== "") expectEqual("link", await y.call("readlink", "symbolic"), target);
    target = `${"t".repeat(random.int(1, 200))}${++version}`;
    if (random.chance(0.5)) {
      await x.call("symlink", target, "symbolic.new");
      await x.call("rename", "symbolic.new", "symbolic");
    } else {
      if (version > 1) await x.call("unlink", "symbolic");
      await x.call("symlink", target, "symbolic");
    }
    expectEqual(`${y.name}: link`, await y.call("readlink", "symbolic"), target);
    expectEqual(`${y.name}: size`, (await y.stat("symbolic")).size, target.length);
  };
};

/** Directories are made, filled by either side, and removed only when they are empty. */
export const directories: Kind = async ({ random }) => {
  let version = 0;
  return async (x, y) => {
    const path = `tree${random.int(0, 3)}`;
    await x.call("mkdir", path);
    expectEqual(`${y.name} lists ${path}`, await y.call("list", path), []);
    const inside = `${path}/f${++version}`;
    await y.write(inside, inside, O_WRONLY | O_CREAT | O_EXCL);
    expectBytes(`${x.name} reads ${inside}`, await x.read(inside), Buffer.from(inside));
    if (random.chance(0.5)) {
      await y.call("mkdir", `${path}/sub`);
      expectEqual(`${x.name}: links of ${path}`, (await x.stat(path)).nlink, 3);
      await x.call("rmdir", `${path}/sub`);
      expectEqual(`${y.name}: links of ${path}`, (await y.stat(path)).nlink, 2);
    }
    await expectError(x, "ENOTEMPTY", "rmdir", path);
    await y.call("unlink", inside);
    await x.call("rmdir", path);
    await expectError(y, "ENOENT", "stat", path);
    await expectError(y, "ENOENT", "write", inside, "", O_WRONLY | O_CREAT | O_TRUNC);
  };
};

interface Spell {
  /** It was certainly there from `made` until `removing`, and certainly not before and after. */
  making: number;
  made: number;
  removing: number;
  removed: number;
}

/**
 * One makes and removes names while the other lists, anew or by a directory that it keeps open and
 * perhaps has read a part of: what was there all the time is listed once, what was never there is
 * not.
 */
export const listings: Kind = async ({ agents, random }) => {
  await agents[0].call("mkdir", "listed");
  const stable = new Set<string>();
  const holders = new Set<Agent>();
  let version = 0;
  const listingBy = (agent: Agent): Call =>
    holders.has(agent) && random.chance(0.5) ? ["relist", "held"] : ["list", "listed"];
  const hold = async (agent: Agent): Promise<void> => {
    if (!holders.has(agent)) await agent.call("opendir", "held", "listed");
    else if (random.chance(0.3)) {
      holders.delete(agent);
      return await agent.call("closedir", "held");
    }
    holders.add(agent);
    if (random.chance(0.5)) await agent.call("readsome", "held", random.int(1, 20));
  };
  return async (x, y) => {
    if (random.chance(0.5)) await hold(random.pick(agents));
    const spells = new Map<string, Spell>();
    for (const name of stable) {
      spells.set(name, { making: 0, made: 0, removing: Infinity, removed: Infinity });
    }
    const calls: Call[] = [];
    for (let i = random.int(2, 10); i > 0; i--) {
      if (stable.size > 8 && random.chance(stable.size > 150 ? 0.9 : 0.4)) {
        const name = random.pick([...stable]);
        stable.delete(name);
        calls.push(["unlink", `listed/${name}`]);
      } else {
        const name = `n${++version}${"-".repeat(random.int(0, 30))}`;
        stable.add(name);
        calls.push(["write", `listed/${name}`, "", O_WRONLY | O_CREAT | O_EXCL]);
      }
    }
    const listing = Array.from({ length: random.int(1, 4) }, () => listingBy(y));
    const [changes, lists] = await Promise.all([x.all(calls), y.all(listing)]);
    for (const [i, { begin, end }] of changes.entries()) {
      const [operation, path] = calls[i] as [string, string];
      const name = path.slice("listed/".length);
      const spell = spells.get(name);
      if (operation === "unlink") spells.set(name, { ...spell!, removing: begin, removed: end });
      else spells.set(name, { making: begin, made: end, removing: Infinity, removed: Infinity });
    }
    for (const { begin, end, value } of lists) {
      const names = value as string[];
      const found = new Set(names);
      expectEqual(`${y.name}: names listed twice`, names.length - found.size, 0);
      for (const [name, { making, made, removing, removed }] of spells) {
        const must = made < begin && removing > end;
        const mustNot = making > end || removed < begin;
        if ((must && !found.has(name)) || (mustNot && found.has(name))) {
          throw new Incoherence(
            `${y.name} lists from ${begin} to ${end}: ${name} is ${must ? "missing" : "there"}; ` +
              `made ${making} to ${made}, removed ${removing} to ${removed}`,
          );
        }
        found.delete(name);
      }
      expectEqual(`${y.name}: names that nobody made`, [...found], []);
    }
    for (const agent of random.chance(0.3) ? agents : [y, y]) {
      const names = await agent.call<string[]>(...listingBy(agent));
      expectEqual(`${agent.name} lists`, names.sort(), [...stable].sort());
    }
  };
};
