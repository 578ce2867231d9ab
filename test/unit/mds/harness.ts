/**
 * An MDS leader on metadata in memory, with links and objects that a test controls. Time moves only
 * when told.
 */
import { DssError } from "../../../cluster/base/errors.js";
import { silentLogger } from "../../../cluster/base/log.js";
import type {
  Answered,
  CallOptions,
  Incoming,
  Link,
} from "../../../cluster/messenger/messenger.js";
import type { Clock } from "../../../cluster/platform/ports.js";
import type { Call, Post } from "../../../cluster/wire/registry.js";
import { LEADER_DEFAULTS, MdsLeader, type LeaderOptions } from "../../../mds/leader.js";
import type {
  Actor,
  CapabilityMode,
  MdsCall,
  MdsReply,
  Recall,
  Request,
  SessionOpen,
  SessionOpened,
  KeptAlive,
  Volume,
} from "../../../mds/proto.js";
import { MdsRecall, MdsSafe, MdsVolumeChanged } from "../../../mds/proto.js";
import { replayMetadata } from "../../../mds/replay.js";
import { MemoryMetadata } from "../../../mds/store/memory-store.js";
import type { MetadataStore } from "../../../mds/store/metadata-store.js";

export class ManualClock implements Clock {
  private time = 1_000;
  private timers: { at: number; callback: () => void }[] = [];
  now(): number {
    return this.time;
  }
  wallNs(): bigint {
    return BigInt(Math.round(this.time)) * 1_000_000n;
  }
  setTimer(ms: number, callback: () => void): { cancel(): void } {
    const timer = { at: this.time + ms, callback };
    this.timers.push(timer);
    return { cancel: () => void (this.timers = this.timers.filter((other) => other !== timer)) };
  }
  defer(callback: () => void): void {
    setImmediate(callback);
  }
  /** Moves time on, running what is due and letting pending work finish in between. */
  async advance(ms: number): Promise<void> {
    const end = this.time + ms;
    for (;;) {
      await settle();
      const due = this.timers.filter((timer) => timer.at <= end).sort((a, b) => a.at - b.at)[0];
      if (due === undefined) break;
      this.timers = this.timers.filter((timer) => timer !== due);
      this.time = Math.max(this.time, due.at);
      due.callback();
    }
    this.time = end;
    await settle();
  }
}
/** Lets everything that needs no time happen. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 12; i++) await new Promise<void>((resolve) => setImmediate(resolve));
}

export class FakeLink implements Link {
  readonly entity = 65_535;
  readonly remote = "test";
  closed = false;
  readonly recalls: Recall[] = [];
  /** News of volumes. */
  readonly told: Volume[] = [];
  safe = 0;
  onRecall: ((recall: Recall) => void) | undefined;
  private readonly closers: (() => void)[] = [];
  call<Request, Reply>(
    _call: Call<Request, Reply>,
    _message: Request,
    _options: CallOptions,
  ): Promise<Answered<Reply>> {
    return Promise.reject(new DssError("NotSupported", "the leader calls nobody"));
  }
  post<Message>(post: Post<Message>, message: Message): void {
    if (this.closed) return;
    if (post.number === MdsSafe.number) this.safe = (message as { journal: number }).journal;
    if (post.number === MdsVolumeChanged.number) this.told.push(message as Volume);
    if (post.number === MdsRecall.number) {
      this.recalls.push(message as Recall);
      this.onRecall?.(message as Recall);
    }
  }
  onClose(callback: () => void): void {
    this.closers.push(callback);
  }
  destroy(): void {
    if (this.closed) return;
    this.closed = true;
    for (const close of this.closers) close();
  }
}

export class FakeObjects {
  readonly sizes = new Map<string, { size: number; mtimeNs: bigint }>();
  readonly removed: { object: string; seq: number }[] = [];
  readonly trimmed: { object: string; seq: number; size: number }[] = [];
  /** While set, trims wait for it. */
  held: Promise<void> | undefined;
  async stat(address: { object: string }) {
    const found = this.sizes.get(address.object);
    return {
      exists: found !== undefined,
      size: found?.size ?? 0,
      mtimeNs: found?.mtimeNs ?? 0n,
      truncateSeq: 0,
      allocated: found?.size ?? 0,
      ...{ clones: [], snapSeq: this.snapSeqs.get(address.object) ?? 0 },
    };
  }
  async trim(
    { object }: { object: string },
    { truncation }: { truncation: { seq: number; size: number } },
  ) {
    await this.held;
    this.trimmed.push({ object, ...truncation });
  }
  async truncate({ object }: { object: string }, size: number) {
    this.trimmed.push({ object, seq: 0, size });
    const found = this.sizes.get(object);
    if (found !== undefined) this.sizes.set(object, { ...found, size });
    return Promise.resolve();
  }
  /** Every object is in one placement group. */
  readonly listed: { after: string; minEpoch: number }[] = [];
  pools() {
    return [{ id: LAYOUT.pool, pgCount: 1 }];
  }
  listActive(_pg: number, after: string, options: { limit: number; minEpoch: number }) {
    this.listed.push({ after, minEpoch: options.minEpoch });
    const names = [...this.sizes.keys()].filter((object) => object > after).sort();
    return Promise.resolve(names.slice(0, options.limit).map((object) => ({ object })));
  }
  readonly rolledBack: { object: string; snap: number; seq: number | undefined }[] = [];
  async rollback(
    { object }: { object: string },
    snap: number,
    { snapshots }: { snapshots?: { seq: number } },
  ) {
    await this.heldRemovals;
    this.rolledBack.push({ object, snap, seq: snapshots?.seq });
  }
  readonly copiedUp: { object: string; parents: readonly string[] }[] = [];
  async copyUp(
    { object }: { object: string },
    { parents = [] }: { parents?: readonly { object: string; snap: number }[] },
  ) {
    await this.heldRemovals;
    const names = parents.map((each) => `${each.object}@${each.snap}`);
    this.copiedUp.push({ object, parents: names });
    this.sizes.set(object, { size: LAYOUT.objectSize, mtimeNs: 0n });
  }
  /** `snapSeq` of what has one: clones above all. */
  readonly snapSeqs = new Map<string, number>();
  /** While set, removals wait for it. */
  heldRemovals: Promise<void> | undefined;
  /** Objects that are not removed. */
  readonly failing = new Set<string>();
  /** Objects whose removal is never answered. */
  readonly silent = new Set<string>();
  async remove(address: { object: string }, options: { truncation: { seq: number } }) {
    await this.heldRemovals;
    if (this.failing.has(address.object)) throw new DssError("NotActive", "injected");
    if (this.silent.has(address.object)) await new Promise(() => undefined);
    this.removed.push({ object: address.object, seq: options.truncation.seq });
    this.sizes.delete(address.object);
  }
}

export const LAYOUT = {
  pool: 1,
  objectSize: 4 * 2 ** 20,
  stripeUnit: 4 * 2 ** 20,
  stripeCount: 1,
};

export class TestCluster {
  readonly clock = new ManualClock();
  readonly data = new MemoryMetadata();
  readonly objects = new FakeObjects();
  readonly fenced: number[] = [];
  epoch = 5;
  nextClient = 65_536;
  leader!: MdsLeader;
  store!: MetadataStore;
  failures: unknown[] = [];
  /** Runs before each access to the store. */
  pause: () => Promise<void> = () => Promise.resolve();
  /** Bytes of 1,000. */
  available = 500;

  constructor(
    private readonly options: Partial<LeaderOptions> = {},
    private readonly cacheBytes = 64 * 2 ** 20,
  ) {}

  /** A leader of a new term takes over; the old one, if any, is cut off from the store. */
  async lead(): Promise<MdsLeader> {
    const store = this.data.lead(() => this.pause());
    const replayed = await replayMetadata(store, {
      cacheBytes: this.cacheBytes,
      tail: new Map(),
      logger: silentLogger,
    });
    this.store = store;
    this.leader = new MdsLeader({
      clock: this.clock,
      logger: silentLogger,
      store,
      replayed,
      term: this.data.term,
      id: 0,
      cluster: {
        clusterId: "test",
        epoch: () => this.epoch,
        fence: (client) => {
          this.fenced.push(client);
          return Promise.resolve(++this.epoch);
        },
        isFenced: (client) => this.fenced.includes(client),
        allocateClient: () => Promise.resolve(this.nextClient++),
        layoutOf: (pool) => (pool === "none" ? undefined : LAYOUT),
        usage: () => ({ total: 1000, available: this.available }),
      },
      objects: this.objects,
      lister: this.objects,
      options: { ...LEADER_DEFAULTS, ...this.options },
      onFailure: (error) => this.failures.push(error),
    });
    await this.leader.start();
    return this.leader;
  }
  async client(options: Partial<SessionOpen> = {}): Promise<TestClient> {
    const client = new TestClient(this);
    await client.open(options);
    return client;
  }
}

type Op = Request["op"];
export class TestClient {
  link = new FakeLink();
  id = 0;
  opened!: SessionOpened;
  private request = 0;
  private inos: { next: number; end: number } = { next: 0, end: 0 };
  floor = 1;
  /** Answers recalls with Released at once. */
  polite = true;
  size: number | undefined;

  constructor(private readonly cluster: TestCluster) {}

  async open(options: Partial<SessionOpen> = {}): Promise<void> {
    this.link = new FakeLink();
    this.link.onRecall = (recall) => {
      if (!this.polite) return;
      this.release(recall.ino, recall.mode, recall.seq);
    };
    this.opened = await this.cluster.leader.openSession(
      {
        type: "library",
        instance: "",
        host: "test",
        pid: 1,
        detail: "",
        client: 0,
        held: [],
        orphans: [],
        floor: this.floor,
        ...options,
      },
      this.link,
    );
    this.id = this.opened.client;
  }
  /** As a client after it has sent its replays: there are no more. */
  keepAlive(): KeptAlive {
    return this.cluster.leader.keepAlive({ client: this.id, floor: this.floor }, this.link);
  }
  release(ino: number, mode: CapabilityMode, seq: number, open = false): void {
    const { size } = this;
    const word = { size: size ?? 0, mtimeNs: 7_000n, allocated: 0, recount: true };
    const last = size === undefined ? {} : { last: word };
    this.cluster.leader.onReleased({ ino, mode, seq, open, ...last }, this.link);
  }
  actor(extra: Partial<Actor> = {}): Actor {
    return { uid: 0, gid: 0, timeNs: 1_000n, ...extra };
  }
  send(
    request: Request,
    { wait = "unsafe", replay = false, id = ++this.request }: Partial<MdsCall> = {},
  ): Promise<MdsReply> {
    return new Promise((resolve, reject) => {
      const incoming: Incoming<MdsCall, MdsReply> = {
        message: { id, floor: this.floor, wait, replay, request },
        data: Buffer.alloc(0),
        sums: new Uint32Array(0),
        sender: this.id,
        epoch: 0,
        link: this.link,
        reply: (message) => resolve(message),
        fail: reject,
        recycle: () => undefined,
      };
      try {
        this.cluster.leader.onOperation(incoming);
      } catch (error) {
        reject(error);
      }
    });
  }
  /** Goes on as another client object did: the same numbers. */
  adopt(other: TestClient): void {
    this.request = other.request;
    this.inos = { ...other.inos };
    this.floor = other.floor;
    this.id = other.id;
  }
  get lastRequest(): number {
    return this.request;
  }
  async ino(): Promise<number> {
    if (this.inos.next === this.inos.end) {
      const { answer } = await this.send({ op: "inoRange" });
      const range = answer.inoRange!;
      this.inos = { next: range.first, end: range.first + range.count };
    }
    return this.inos.next++;
  }
  async create(
    parent: number,
    name: string,
    extra: Partial<Extract<Request, { op: "create" }>> = {},
  ): Promise<MdsReply> {
    const request: Request = {
      op: "create",
      parent,
      name: Buffer.from(name),
      ino: await this.ino(),
      mode: 0o100644,
      rdev: 0,
      exclusive: true,
      actor: this.actor(),
      ...extra,
    };
    return this.send(request);
  }
  mkdir(parent: number, name: string): Promise<MdsReply> {
    return this.create(parent, name, { mode: 0o040755 });
  }
}
export type { Op };
