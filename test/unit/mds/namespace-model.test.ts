/**
 * The namespace against a simple model: seeded random operations, page caches so small that every
 * operation faults, directories that split, checkpoints at random moments, and new leaders that
 * begin from the pages and the journal. After each new leader the whole tree, its link counts,
 * times and orphans must equal the model's, and the recursive totals those of a walk.
 */
import t from "tap";
import { isDssError } from "../../../cluster/base/errors.js";
import { Prng } from "../../../cluster/base/prng.js";
import { ROOT_INO, type Answer, type Inode, type Request } from "../../../mds/proto.js";
import { wrongTotals } from "../../support/totals-check.js";
import { TestClient, TestCluster, settle } from "./harness.js";

interface Node {
  ino: number;
  directory: boolean;
  nlink: number;
  mtimeNs: bigint;
  size: number;
  parent: number;
  names: Map<string, number>;
  xattrs: Map<string, string>;
}

class Model {
  readonly nodes = new Map<number, Node>();
  constructor() {
    this.nodes.set(ROOT_INO, this.node(ROOT_INO, true, ROOT_INO, 0n));
  }
  node(ino: number, directory: boolean, parent: number, mtimeNs: bigint): Node {
    return {
      ...{ ino, directory, nlink: directory ? 2 : 1, mtimeNs, size: 0, parent },
      names: new Map(),
      xattrs: new Map(),
    };
  }
  get(ino: number): Node {
    return this.nodes.get(ino)!;
  }
  private touch(ino: number, timeNs: bigint, nlink = 0): void {
    const node = this.get(ino);
    node.mtimeNs = timeNs;
    node.nlink += nlink;
  }
  private isBelow(directory: number, top: number): boolean {
    for (let at = directory; ; at = this.get(at).parent) {
      if (at === top) return true;
      if (at === ROOT_INO) return false;
    }
  }
  private drop(ino: number): void {
    const node = this.get(ino);
    node.nlink = node.directory ? 0 : node.nlink - 1;
    if (node.nlink === 0) this.nodes.delete(ino);
  }

  /** The error code, or undefined for success. */
  apply(request: Request): string | undefined {
    switch (request.op) {
      case "create": {
        const names = this.get(request.parent).names;
        const name = request.name.toString();
        if (names.has(name)) return "Exists";
        const directory = (request.mode & 0o170000) === 0o040000;
        const { timeNs } = request.actor;
        names.set(name, request.ino);
        this.nodes.set(request.ino, this.node(request.ino, directory, request.parent, timeNs));
        this.touch(request.parent, timeNs, directory ? 1 : 0);
        return undefined;
      }
      case "unlink":
      case "rmdir": {
        const names = this.get(request.parent).names;
        const ino = names.get(request.name.toString());
        if (ino === undefined) return "NotFound";
        const node = this.get(ino);
        if (request.op === "unlink" && node.directory) return "IsDirectory";
        if (request.op === "rmdir" && !node.directory) return "NotDirectory";
        if (node.names.size > 0) return "NotEmpty";
        names.delete(request.name.toString());
        this.touch(request.parent, request.actor.timeNs, node.directory ? -1 : 0);
        this.drop(ino);
        return undefined;
      }
      case "link": {
        const node = this.get(request.ino);
        const names = this.get(request.parent).names;
        if (node.directory) return "NotPermitted";
        if (names.has(request.name.toString())) return "Exists";
        names.set(request.name.toString(), request.ino);
        node.nlink++;
        this.touch(request.parent, request.actor.timeNs);
        return undefined;
      }
      case "rename":
        return this.rename(request);
      case "setxattr": {
        this.get(request.ino).xattrs.set(request.name.toString(), request.value.toString());
        return undefined;
      }
      case "removexattr":
        return this.get(request.ino).xattrs.delete(request.name.toString())
          ? undefined
          : "NoAttribute";
      case "setattr": {
        const node = this.get(request.ino);
        if (node.directory) return "IsDirectory";
        node.size = request.size!;
        node.mtimeNs = request.actor.timeNs;
        return undefined;
      }
      default:
        throw new Error(`the model knows no ${request.op}`);
    }
  }
  private rename(request: Extract<Request, { op: "rename" }>): string | undefined {
    const { parent, newParent, actor } = request;
    const [name, newName] = [request.name.toString(), request.newName.toString()];
    const source = this.get(parent).names;
    const target = this.get(newParent).names;
    const ino = source.get(name);
    if (ino === undefined) return "NotFound";
    const node = this.get(ino);
    if (node.directory && this.isBelow(newParent, ino)) return "InvalidArgument";
    const other = target.get(newName);
    if (other === undefined && request.exchange) return "NotFound";
    if (other !== undefined && request.noReplace) return "Exists";
    if (other === ino) return undefined;
    const replaced = other === undefined ? undefined : this.get(other);
    if (request.exchange) {
      if (replaced!.directory && this.isBelow(parent, other!)) return "InvalidArgument";
      source.set(name, other!);
      target.set(newName, ino);
      const gain = (node.directory ? 1 : 0) - (replaced!.directory ? 1 : 0);
      this.touch(parent, actor.timeNs, -gain);
      this.touch(newParent, actor.timeNs, gain);
      node.parent = newParent;
      replaced!.parent = parent;
      return undefined;
    }
    if (replaced?.directory === true && !node.directory) return "IsDirectory";
    if (replaced?.directory === false && node.directory) return "NotDirectory";
    if (replaced !== undefined && replaced.names.size > 0) return "NotEmpty";
    source.delete(name);
    target.set(newName, ino);
    this.touch(parent, actor.timeNs, node.directory ? -1 : 0);
    this.touch(newParent, actor.timeNs, node.directory && replaced === undefined ? 1 : 0);
    node.parent = newParent;
    if (replaced !== undefined) this.drop(other!);
    return undefined;
  }
}

const REST = { rdev: 0, exclusive: true } as const;
const seeds = process.env["DSS_SEED"] === undefined ? [1, 2, 3] : [Number(process.env["DSS_SEED"])];
for (const seed of seeds) {
  t.test(`random operations, seed ${seed}`, async (t) => {
    const prng = new Prng(seed);
    // 20 kB of clean pages: a few pages at most.
    const cluster = new TestCluster({ leaseMs: 1_000 }, 20_000);
    await cluster.lead();
    await cluster.clock.advance(1);
    let client = await cluster.client();
    const model = new Model();
    let time = 10n;

    const pickNode = (directory: boolean): number => {
      const list = [...model.nodes.values()].filter((node) => node.directory === directory);
      return list.length === 0 ? ROOT_INO : prng.pick(list).ino;
    };
    const pickName = (parent: number): Buffer => {
      const names = [...model.get(parent).names.keys()];
      if (names.length > 0 && prng.chance(0.6)) return Buffer.from(prng.pick(names));
      return Buffer.from(`n${prng.int(0, 40)}`.padEnd(prng.int(3, 200), "x"));
    };
    const random = async (): Promise<Request> => {
      const actor = client.actor({ timeNs: time++ });
      const parent = pickNode(true);
      const name = pickName(parent);
      const roll = prng.int(0, 99);
      if (roll < 35) {
        const directory = prng.chance(0.3);
        const mode = directory ? 0o040755 : 0o100644;
        const ino = await client.ino();
        return { op: "create", parent, name, ino, mode, rdev: 0, exclusive: true, actor };
      }
      if (roll < 50) return { op: "unlink", parent, name, stillOpen: false, actor };
      if (roll < 58) return { op: "rmdir", parent, name, actor };
      if (roll < 68) return { op: "link", ino: pickNode(false), parent, name, actor };
      if (roll < 85) {
        const newParent = pickNode(true);
        const flag = prng.int(0, 5);
        return {
          ...{ op: "rename", parent, name, newParent, newName: pickName(newParent) },
          ...{ noReplace: flag === 0, exchange: flag === 1, stillOpen: false, actor },
        };
      }
      const ino = pickNode(false);
      const attribute = Buffer.from(`user.${prng.int(0, 3)}`);
      if (roll < 90) {
        const value = Buffer.from(`v${prng.u32()}`);
        return {
          op: "setxattr",
          ino,
          name: attribute,
          value,
          create: false,
          replace: false,
          actor,
        };
      }
      if (roll < 94) return { op: "removexattr", ino, name: attribute, actor };
      return { op: "setattr", ino, size: prng.int(0, 10_000), actor };
    };

    const check = async (): Promise<void> => {
      const seen = new Set<number>();
      const walk = async (ino: number): Promise<void> => {
        seen.add(ino);
        const node = model.get(ino);
        const { answer } = await client.send({ op: "getattr", ino });
        compare(answer.inode!, node);
        const names = new Map<string, number>();
        let cookie = 0;
        for (;;) {
          const page: Answer = (
            await client.send({ op: "readdir", ino, cookie, limit: 7, plus: prng.chance(0.5) })
          ).answer;
          for (const entry of page.entries!) {
            if (entry.cookie <= cookie) throw new Error("cookies must rise");
            cookie = entry.cookie;
            names.set(entry.name.toString(), entry.ino);
          }
          if (page.end === true) break;
        }
        t.same([...names].sort(), [...node.names].sort(), `names in ${ino}`);
        for (const child of new Set(node.names.values())) {
          if (model.get(child).directory) await walk(child);
          else if (!seen.has(child)) await file(child);
        }
      };
      const file = async (ino: number): Promise<void> => {
        seen.add(ino);
        const node = model.get(ino);
        const { answer } = await client.send({ op: "getxattrs", ino });
        compare(answer.inode!, node);
        const found = answer.xattrs!.map(({ name, value }) => [name.toString(), value.toString()]);
        t.same(found.sort(), [...node.xattrs].sort(), `attributes of ${ino}`);
      };
      await walk(ROOT_INO);
      t.equal(seen.size, model.nodes.size);
      t.equal(cluster.leader.status().inodes, model.nodes.size);
      const { metadata, loader } = cluster.leader.inside();
      t.same(await wrongTotals(metadata, (read) => loader.run(read)), [], "totals");
    };
    const compare = (inode: Inode, node: Node): void => {
      const size = node.directory ? node.names.size : node.size;
      if (inode.nlink !== node.nlink || inode.size !== size || inode.mtimeNs !== node.mtimeNs) {
        t.match(inode, { ino: node.ino, nlink: node.nlink, size, mtimeNs: node.mtimeNs });
      }
    };

    /** Sizes that a writer tells; files that get their first name when they have data already. */
    const special = async (): Promise<void> => {
      const actor = client.actor({ timeNs: time++ });
      const parent = pickNode(true);
      if (prng.chance(0.3)) {
        const ino = await client.ino();
        const name = Buffer.from(`t${ino}`);
        await client.send({ op: "tmpfile", parent: ROOT_INO, ino, mode: 0o100600, actor });
        await publish(ino, time++);
        await client.send({ op: "link", ino, parent, name, actor });
        const made: Request = { op: "create", parent, name, ino, mode: 0o100600, ...REST, actor };
        model.apply(made);
        const { answer } = await client.send({ op: "getattr", ino });
        Object.assign(model.get(ino), { size: answer.inode!.size, mtimeNs: answer.inode!.mtimeNs });
      } else {
        const ino = pickNode(false);
        if (ino === ROOT_INO) return;
        await client.send({ op: "acquire", ino, mode: "exclusive" });
        Object.assign(model.get(ino), await publish(ino, time++));
      }
    };
    const publish = async (ino: number, mtimeNs: bigint) => {
      // Sums of these pass 2^53.
      const size = prng.chance(0.3) ? 2 ** 52 - prng.int(0, 9) : prng.int(0, 100_000);
      const allocated = prng.int(0, 20) * 4096;
      await client.send({ op: "publish", ino, size, mtimeNs, allocated, recount: false });
      return { size, mtimeNs };
    };

    for (let step = 1; step <= 1_500; step++) {
      if (prng.chance(0.1)) await special();
      const request = await random();
      const expected = model.apply(request);
      const outcome = await client.send(request).then(
        () => undefined,
        (error: unknown) => (isDssError(error) ? error.code : String(error)),
      );
      client.floor = client.lastRequest;
      if (outcome !== expected) {
        t.equal(outcome, expected, `step ${step} (DSS_SEED=${seed}): ${request.op}`);
        break;
      }
      if (prng.chance(0.02)) {
        const checkpoint = cluster.leader.checkpoint();
        if (prng.chance(0.5)) await checkpoint; // Else it runs beside the operations.
      }
      if (prng.chance(0.01)) {
        await client.send({ op: "sync" });
        cluster.leader.stop();
        await cluster.lead();
        const { id, floor } = client;
        const next = new TestClient(cluster);
        next.adopt(client);
        await next.open({ client: id, floor });
        cluster.leader.keepAlive({ client: id, floor }, next.link);
        client = next;
        await check();
      }
    }
    await settle();
    t.same(cluster.failures, []);
    await check();
    cluster.leader.stop();
  });
}
