/**
 * A seeded model of what a store may hold after a crash: per PG the state after all durable
 * operations, and the operations that followed. After a crash the store must equal the state after
 * some prefix of those, PG by PG.
 */
import { isDeepStrictEqual } from "node:util";
import { BLOCK_SIZE, blockChecksums } from "../../../../cluster/base/checksum.js";
import { cloneName } from "../../../../cluster/base/object-name.js";
import type { PgId } from "../../../../cluster/base/ids.js";
import type { Prng } from "../../../../cluster/base/prng.js";
import { nodeClock } from "../../../../cluster/platform/node.js";
import {
  compareVersions,
  OpKind,
  type ChunkStore,
  type Durable,
  type LogEntry,
  type ObjectImage,
  type Version,
} from "../../../../osd/store/chunk-store.js";
import { MemoryStore } from "../../../../osd/store/memory-store.js";
import { transaction } from "./harness.js";

export interface Operation {
  name: string;
  run(store: ChunkStore, done: Durable): void;
}

/** Families of an object and its snapshot clones: copies are made within them. */
const FAMILIES = [
  ["10.1", cloneName("10.1", 1), cloneName("10.1", 2), cloneName("10.1", 0xabc)],
  ["10.10", cloneName("10.10", 7)],
];
const NAMES = ["10.0", "a/b c", "ünï-ço∂é", "z".repeat(200), "10.2", "😀", ...FAMILIES.flat()];
const CLIENTS = [70_001, 70_002, 70_003];
const OBJECT_BLOCKS = 24;

const ignore = (): void => undefined;

interface PgModel {
  id: PgId;
  /** Everything durable. */
  base: MemoryStore;
  /** Everything applied. */
  live: MemoryStore;
  later: Operation[];
  seq: number;
  interval: number;
  sequences: Map<number, { next: number; floor: number }>;
}

export class Model {
  readonly pgs: PgModel[];

  constructor(
    private readonly random: Prng,
    count: number,
  ) {
    this.pgs = Array.from({ length: count }, (_, i) => ({
      id: 65_536 + i * 3,
      base: new MemoryStore(nodeClock),
      live: new MemoryStore(nodeClock),
      later: [],
      seq: 0,
      interval: 1,
      sequences: new Map(CLIENTS.map((client) => [client, { next: 1, floor: 1 }])),
    }));
  }

  /** Chooses an operation, does it on the store and on the model. */
  step(store: ChunkStore): void {
    const pg = this.random.pick(this.pgs);
    const operation = this.choose(pg);
    operation.run(pg.live, ignore);
    pg.later.push(operation);
    operation.run(store, (error) => {
      if (error) return;
      // Durable in call order: with this operation, everything before it.
      const at = pg.later.indexOf(operation);
      for (const done of pg.later.splice(0, at + 1)) done.run(pg.base, ignore);
    });
  }

  private choose(pg: PgModel): Operation {
    if (!pg.live.hasPg(pg.id)) {
      const meta = this.random.bytes(10);
      return { name: "createPg", run: (s, done) => s.createPg(pg.id, meta, done) };
    }
    const dice = this.random.int(0, 99);
    if (dice < 12) return this.chooseCopy(pg) ?? this.chooseTransaction(pg);
    if (dice < 70) return this.chooseTransaction(pg);
    if (dice < 76) return this.chooseInstall(pg);
    if (dice < 79) {
      const object = this.random.pick(NAMES);
      return { name: "discard", run: (s, done) => s.discard(pg.id, object, done) };
    }
    if (dice < 84) {
      const meta = this.random.bytes(this.random.int(0, 300));
      return { name: "setPgMeta", run: (s, done) => s.setPgMeta(pg.id, meta, done) };
    }
    if (dice < 89) return this.chooseTrim(pg);
    if (dice < 95) return this.chooseRewrite(pg);
    if (dice < 98) {
      const client = this.random.pick(CLIENTS);
      const records = [
        {
          client,
          floor: pg.sequences.get(client)!.floor,
          answers: [
            {
              sequence: 1_000_000 + this.random.int(0, 9),
              version: { interval: 1, seq: 1 },
              size: 5,
            },
          ],
        },
      ];
      return {
        name: "mergeRetries",
        run: (s, done) => {
          s.mergeRetries(pg.id, records);
          s.setPgMeta(pg.id, Buffer.from("merged"), done);
        },
      };
    }
    if (dice < 99) return { name: "removePg", run: (s, done) => s.removePg(pg.id, done) };
    return { name: "createPg again", run: (s, done) => s.createPg(pg.id, Buffer.from("x"), done) };
  }

  private nextVersion(pg: PgModel): Version {
    if (this.random.chance(0.02)) pg.interval++;
    return { interval: pg.interval, seq: (pg.seq += this.random.int(1, 3)) };
  }

  private request(pg: PgModel): { client: number; sequence: number; floor: number } {
    if (this.random.chance(0.1)) return { client: 0, sequence: 0, floor: 0 };
    const client = this.random.pick(CLIENTS);
    const state = pg.sequences.get(client)!;
    const sequence = state.next++;
    state.floor = Math.max(state.floor, sequence - this.random.int(0, 6));
    return { client, sequence, floor: state.floor };
  }

  private chooseTransaction(pg: PgModel): Operation {
    const { random } = this;
    const object = random.pick(NAMES);
    const size = pg.live.stat(pg.id, object)?.size ?? 0;
    const base = {
      pg: pg.id,
      object,
      version: this.nextVersion(pg),
      ...this.request(pg),
      mtimeNs: BigInt(random.u32()) * 1_000_000_000n,
      truncateSeq: random.int(0, 5),
      snapSeq: random.int(0, 5),
    };
    const dice = random.int(0, 99);
    const start = random.int(0, OBJECT_BLOCKS - 1);
    let t = transaction({ ...base, kind: OpKind.remove, size: 0 });
    if (dice < 70) {
      const blocks = Math.min(
        random.chance(0.25) ? random.int(4, 12) : random.int(1, 3),
        OBJECT_BLOCKS - start,
      );
      const bytes = random.bytes(blocks * BLOCK_SIZE);
      // In two pieces that do not end at a block, as frames arrive.
      const split = random.int(0, bytes.length);
      const data = [bytes.subarray(0, split), bytes.subarray(split)].filter(
        (piece) => piece.length > 0,
      );
      const end = (start + blocks) * BLOCK_SIZE - random.int(0, 1) * 100;
      t = transaction({ ...base, offset: start * BLOCK_SIZE, data, size: Math.max(size, end) });
    } else if (dice < 78) {
      const length = random.int(1, OBJECT_BLOCKS - start) * BLOCK_SIZE;
      t = transaction({ ...base, kind: OpKind.zero, offset: start * BLOCK_SIZE, length, size });
    } else if (dice < 88) {
      const merged = random.chance(0.5);
      const data = merged ? [random.bytes(BLOCK_SIZE)] : [];
      const cut = start * BLOCK_SIZE + (merged ? 1000 : 0);
      t = transaction({
        ...base,
        kind: OpKind.truncate,
        offset: start * BLOCK_SIZE,
        data,
        size: cut,
      });
    } else if (dice < 94) {
      t = transaction({ ...base, kind: OpKind.touch, size: size + random.int(0, 10_000) });
    }
    return { name: `apply kind ${t.kind} ${object}`, run: (s, done) => s.apply(t, done) };
  }

  /** A snapshot (the clone takes the blocks of its head) or a return to one. */
  private chooseCopy(pg: PgModel): Operation | undefined {
    const { random } = this;
    const family = random.pick(FAMILIES);
    const [source, object] = [random.pick(family), random.pick(family)];
    const size = pg.live.stat(pg.id, source)?.size;
    if (size === undefined || source === object) return undefined;
    const version = this.nextVersion(pg);
    const change = { pg: pg.id, object, source, version, kind: OpKind.copy, size };
    const t = transaction({ ...change, snapSeq: random.int(0, 9), ...this.request(pg) });
    return { name: `copy ${source} to ${object}`, run: (s, done) => s.apply(t, done) };
  }

  private chooseInstall(pg: PgModel): Operation {
    const { random } = this;
    const object = random.pick(NAMES);
    const extents: ObjectImage["extents"] = [];
    let at = 0;
    for (let i = random.int(0, 3); i > 0; i--) {
      at += random.int(0, 2);
      const data = random.bytes(random.int(1, 4) * BLOCK_SIZE);
      extents.push({ offset: at * BLOCK_SIZE, data, sums: blockChecksums(data) });
      at += data.length / BLOCK_SIZE + 1;
    }
    const version = { interval: 1, seq: random.int(1, 50) };
    const seqs = { truncateSeq: 2, snapSeq: 1 };
    const info = { size: at * BLOCK_SIZE, version, mtimeNs: 9n, ...seqs, allocated: 0 };
    return { name: "install", run: (s, done) => s.install(pg.id, object, { info, extents }, done) };
  }

  private chooseTrim(pg: PgModel): Operation {
    const log = pg.live.log(pg.id, pg.live.pgInfo(pg.id)!.logTail, 1_000)!;
    const keep = this.random.int(5, 40);
    const tail = log[log.length - keep]?.version ?? { interval: 0, seq: 0 };
    return {
      name: "trimLog",
      run: (s, done) => {
        if (s.hasPg(pg.id)) s.trimLog(pg.id, tail);
        s.setPgMeta(pg.id, Buffer.from("trimmed"), done);
      },
    };
  }

  private chooseRewrite(pg: PgModel): Operation {
    const info = pg.live.pgInfo(pg.id)!;
    const log = pg.live.log(pg.id, info.logTail, 10_000)!;
    let common = info.last;
    // Mostly an append; sometimes a rollback within the log; seldom something else altogether.
    if (this.random.chance(0.4) && log.length > 0) common = this.random.pick(log).version;
    else if (this.random.chance(0.15)) common = this.nextVersion(pg);
    else if (this.random.chance(0.1)) common = { interval: 0, seq: 1 };
    pg.interval++;
    const entries: LogEntry[] = Array.from({ length: this.random.int(0, 4) }, () => {
      const { client, sequence } = this.request(pg);
      return {
        version: this.nextVersion(pg),
        kind: OpKind.write,
        object: this.random.pick(NAMES),
        client,
        sequence,
        size: 4096,
      };
    });
    const run: Operation["run"] = (s, done) => s.rewriteLog(pg.id, common, entries, done);
    return { name: `rewriteLog ${JSON.stringify(common)} +${entries.length}`, run };
  }

  /** Undefined when the store holds exactly what was applied, else what differs. */
  async checkLive(store: ChunkStore): Promise<string | undefined> {
    for (const pg of this.pgs) {
      const difference = await compareStores(store, pg.live, pg.id);
      if (difference) return `PG ${pg.id}: ${difference}`;
    }
    return undefined;
  }

  /** After a crash: finds the prefix that the store holds and goes on from it. */
  async adopt(store: ChunkStore): Promise<string | undefined> {
    for (const pg of this.pgs) {
      const differences: string[] = [];
      let found = false;
      for (let count = 0; !found; count++) {
        const difference = await compareStores(store, pg.base, pg.id);
        if (!difference) found = true;
        else {
          differences.push(difference);
          const next = pg.later.shift();
          if (!next) {
            return `PG ${pg.id} holds no prefix: ${differences.slice(-12).join(" | ")}`;
          }
          next.run(pg.base, ignore);
        }
      }
      pg.later = [];
      // A lost trim is no damage; from here on both have the same log again.
      const info = pg.base.pgInfo(pg.id);
      if (info) store.trimLog(pg.id, info.logTail);
      pg.live = await copyPg(pg.base, pg.id);
      pg.interval++;
      for (const state of pg.sequences.values()) state.next += 100;
    }
    return undefined;
  }
}

async function copyPg(source: MemoryStore, id: PgId): Promise<MemoryStore> {
  const copy = new MemoryStore(nodeClock);
  const info = source.pgInfo(id);
  if (!info) return copy;
  copy.createPg(id, info.meta, ignore);
  copy.rewriteLog(id, info.logTail, source.log(id, info.logTail, 1e9)!, ignore);
  for (const { object } of source.list(id, "", 1e9)) {
    copy.install(id, object, (await source.image(id, object))!, ignore);
  }
  // Answers of trimmed entries and floors are only in the records.
  for (const client of CLIENTS) copy.forgetClient(client);
  copy.mergeRetries(id, source.exportRetries(id));
  return copy;
}

const show = (value: unknown): string =>
  JSON.stringify(value, (_, v: unknown) => (typeof v === "bigint" ? `${v}n` : v));
const unlike = (what: string, a: unknown, b: unknown): string | undefined =>
  isDeepStrictEqual(a, b)
    ? undefined
    : `${what}: ${show(a).slice(0, 300)} instead of ${show(b).slice(0, 300)}`;

/**
 * What differs between a PG in a store and in the model; the log is compared from the later tail.
 */
export async function compareStores(
  store: ChunkStore,
  model: ChunkStore,
  id: PgId,
): Promise<string | undefined> {
  const a = store.pgInfo(id);
  const b = model.pgInfo(id);
  if (!a || !b) return a === b ? undefined : `the PG ${a ? "exists" : "is missing"}`;
  const tails = compareVersions(a.logTail, b.logTail) > 0 ? a.logTail : b.logTail;
  if (compareVersions(a.logTail, b.logTail) > 0) return "the log was trimmed too far";
  const difference =
    unlike("info", { ...a, logTail: 0 }, { ...b, logTail: 0 }) ??
    unlike("log", store.log(id, tails, 1e9), model.log(id, tails, 1e9)) ??
    unlike("list", store.list(id, "", 1e9), model.list(id, "", 1e9)) ??
    unlike("retries", store.exportRetries(id), model.exportRetries(id)) ??
    FAMILIES.map(([head]) =>
      unlike(`clones of ${head}`, store.clones(id, head!), model.clones(id, head!)),
    ).find((found) => found !== undefined);
  if (difference) return difference;
  for (const { object, info } of model.list(id, "", 1e9)) {
    const length = Math.max(info.size, 1);
    const [found, wanted] = await Promise.all([
      store.read(id, object, 0, length),
      model.read(id, object, 0, length),
    ]);
    if (!Buffer.concat(found!.data).equals(Buffer.concat(wanted!.data)))
      return `bytes of ${object}`;
    const sums = unlike(`sums of ${object}`, [...found!.sums], [...wanted!.sums]);
    const holes = unlike(
      `extents of ${object}`,
      store.extents(id, object, 0, length),
      model.extents(id, object, 0, length),
    );
    if (sums ?? holes) return sums ?? holes;
  }
  return undefined;
}
