/**
 * The state machine that the servers of the modelled ZooKeeper replicate: a tree of znodes, changed
 * by transactions in one order. `prepare` decides on the leader whether a request succeeds and what
 * exactly it does; `apply` does that on any replica. Pure.
 */
import type { ErrorCode } from "../../cluster/base/errors.js";
import {
  ANY_VERSION,
  type Children,
  type CoordinationOp,
  type OpResult,
  type Znode,
} from "../../cluster/zk/coordination.js";

interface TreeNode {
  data: Buffer;
  version: number;
  created: number;
  modified: number;
  /** Transaction of the last creation or removal of a child. */
  childrenModified: number;
  /** Creations of children: what numbers sequential nodes. */
  creations: number;
  owner: bigint;
  names: Set<string>;
}

/** One certain change; sequential names are already decided. */
export type Change =
  | { change: "create"; path: string; data: Buffer; owner: bigint }
  | { change: "set"; path: string; data: Buffer }
  | { change: "remove"; path: string };

export interface Transaction {
  zxid: number;
  changes: Change[];
}

/** What a change touches, as watches name it: "d" data and existence, "c" the list of children. */
export type Touched = `${"d" | "c"}:${string}`;

export interface Refusal {
  index: number;
  code: ErrorCode;
}

const SEQUENCE_DIGITS = 10;

export function parentOf(path: string): string {
  const end = path.lastIndexOf("/");
  return end <= 0 ? "/" : path.slice(0, end);
}
function isPath(path: string): boolean {
  return path === "/" || /^(\/[^/\0]+)+$/.test(path);
}

export class ZkTree {
  private readonly nodes = new Map<string, TreeNode>();

  constructor() {
    this.nodes.set("/", newNode(Buffer.alloc(0), 0, 0n));
  }

  znode(path: string): Znode | undefined {
    const node = this.nodes.get(path);
    return (
      node && {
        data: Buffer.from(node.data),
        version: node.version,
        created: BigInt(node.created),
        modified: BigInt(node.modified),
        ephemeralOwner: node.owner,
      }
    );
  }
  children(path: string): Children | undefined {
    const node = this.nodes.get(path);
    if (node === undefined) return undefined;
    // As ZooKeeper counts: creations and removals.
    return { names: [...node.names], version: node.creations * 2 - node.names.size };
  }
  /** Has what a watch of this kind stands for changed after the transaction? */
  changedSince(kind: "d" | "c", path: string, zxid: number): boolean {
    const node = this.nodes.get(path);
    if (node === undefined) return true;
    return (kind === "d" ? node.modified : node.childrenModified) > zxid;
  }
  has(path: string): boolean {
    return this.nodes.has(path);
  }
  /** Every path that the session owns. */
  ephemerals(session: bigint): string[] {
    return [...this.nodes].filter(([, node]) => node.owner === session).map(([path]) => path);
  }
  get size(): number {
    return this.nodes.size;
  }

  /** The changes and results, or the first operation that cannot be done. */
  prepare(
    ops: readonly CoordinationOp[],
    session: bigint,
  ): { changes: Change[]; results: OpResult[] } | Refusal {
    const plan = new Plan(this.nodes);
    const changes: Change[] = [];
    const results: OpResult[] = [];
    for (const [index, op] of ops.entries()) {
      const done = plan.run(op, session);
      if ("code" in done) return { index, code: done.code };
      if (done.change !== undefined) changes.push(done.change);
      results.push(done.result);
    }
    return { changes, results };
  }

  /** Returns what watches it fires, in order. */
  apply({ zxid, changes }: Transaction): Touched[] {
    const touched: Touched[] = [];
    for (const change of changes) {
      const { path } = change;
      const parent = this.nodes.get(parentOf(path));
      const name = path.slice(path.lastIndexOf("/") + 1);
      if (change.change === "set") {
        const node = this.nodes.get(path)!;
        node.data = change.data;
        node.version++;
        node.modified = zxid;
        touched.push(`d:${path}`);
        continue;
      }
      parent!.childrenModified = zxid;
      if (change.change === "create") {
        this.nodes.set(path, newNode(change.data, zxid, change.owner));
        parent!.names.add(name);
        parent!.creations++;
      } else {
        this.nodes.delete(path);
        parent!.names.delete(name);
        touched.push(`c:${path}`);
      }
      touched.push(`d:${path}`, `c:${parentOf(path)}`);
    }
    return touched;
  }
}

function newNode(data: Buffer, zxid: number, owner: bigint): TreeNode {
  return {
    data,
    version: 0,
    created: zxid,
    modified: zxid,
    childrenModified: zxid,
    creations: 0,
    owner,
    names: new Set(),
  };
}

interface Planned {
  version: number;
  ephemeral: boolean;
  children: number;
  creations: number;
}

/** The tree as the operations of one request leave it, without changing it. */
class Plan {
  private readonly planned = new Map<string, Planned | undefined>();
  constructor(private readonly nodes: ReadonlyMap<string, TreeNode>) {}

  private look(path: string): Planned | undefined {
    if (this.planned.has(path)) return this.planned.get(path);
    const node = this.nodes.get(path);
    const planned = node && {
      version: node.version,
      ephemeral: node.owner !== 0n,
      children: node.names.size,
      creations: node.creations,
    };
    this.planned.set(path, planned);
    return planned;
  }

  run(
    op: CoordinationOp,
    session: bigint,
  ): { change?: Change; result: OpResult } | { code: ErrorCode } {
    if (op.op === "create") return this.create(op, session);
    if (!isPath(op.path)) return { code: "InvalidArgument" };
    const node = this.look(op.path);
    if (node === undefined) return { code: "NotFound" };
    if (op.version !== ANY_VERSION && op.version !== node.version) return { code: "Conflict" };
    if (op.op === "check") return { result: {} };
    if (op.op === "set") {
      node.version++;
      const change: Change = { change: "set", path: op.path, data: Buffer.from(op.data) };
      return { change, result: { version: node.version } };
    }
    if (node.children > 0) return { code: "NotEmpty" };
    this.planned.set(op.path, undefined);
    this.look(parentOf(op.path))!.children--;
    return { change: { change: "remove", path: op.path }, result: {} };
  }

  private create(
    op: Extract<CoordinationOp, { op: "create" }>,
    session: bigint,
  ): { change: Change; result: OpResult } | { code: ErrorCode } {
    const parent = this.look(parentOf(op.path));
    if (parent === undefined) return { code: "NotFound" };
    const number = String(parent.creations).padStart(SEQUENCE_DIGITS, "0");
    const path = op.sequential === true ? op.path + number : op.path;
    if (!isPath(path)) return { code: "InvalidArgument" };
    if (this.look(path) !== undefined) return { code: "Exists" };
    if (parent.ephemeral) return { code: "InvalidArgument" };
    parent.children++;
    parent.creations++;
    const isEphemeral = op.ephemeral === true;
    this.planned.set(path, { version: 0, ephemeral: isEphemeral, children: 0, creations: 0 });
    const owner = isEphemeral ? session : 0n;
    const data = Buffer.from(op.data);
    return { change: { change: "create", path, data, owner }, result: { path } };
  }
}
