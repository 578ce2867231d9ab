/**
 * Mounts without a kernel on simulated time: real clients and a real MDS leader over a simulated
 * network, metadata and objects in memory. A run is a pure function of its seed.
 */
import { DssError, isDssError, type ErrorCode } from "../../../../cluster/base/errors.js";
import { ANONYMOUS_ENTITY, MDS_ENTITY_BASE, type ClientId } from "../../../../cluster/base/ids.js";
import { silentLogger, type Logger } from "../../../../cluster/base/log.js";
import { Prng } from "../../../../cluster/base/prng.js";
import { RpcMessenger } from "../../../../cluster/messenger/rpc.js";
import type { Address, RandomSource } from "../../../../cluster/platform/ports.js";
import { Vfs, type VfsOptions } from "../../../../client-fs/vfs/vfs.js";
import type { WorkerRecord } from "../../../../client-fs/vfs/worker-record.js";
import { SessionObjects, type ClosableObjects } from "../../../../client-fs/vfs/session-objects.js";
import { OWN_FOLDER } from "../../../../client-fs/file-system.js";
import type { Caller, KernelNotifier } from "../../../../client-fs/file-system.js";
import {
  MdsClient,
  type LeaderSource,
  type MdsClientOptions,
} from "../../../../mds/client/mds-client.js";
import { LEADER_DEFAULTS, MdsLeader } from "../../../../mds/leader.js";
import {
  CloseMdsSession,
  MdsKeepAlive,
  MdsOperation,
  MdsOperations,
  MdsReleased,
  MdsTakenOver,
  MdsClaim,
  OpenMdsSession,
  type SessionOpened,
} from "../../../../mds/proto.js";
import { replayMetadata } from "../../../../mds/replay.js";
import { MemoryMetadata } from "../../../../mds/store/memory-store.js";
import type {
  AccessOptions,
  ObjectAddress,
  ObjectContent,
} from "../../../../osd/client/object-access.js";
import { SimClock } from "../../../sim/sim-clock.js";
import { SimHost, SimNetwork } from "../../../sim/sim-network.js";

export const CALLER: Caller = { uid: 1000, gid: 1000, pid: 1, umask: 0o022 };
/** Looks at the mount for itself. */
export const LOOKER: Caller = { ...CALLER, pid: 2 };
export const OBJECT_SIZE = 64 * 1024;
const BLOCK = 4_096;

interface StoredObject {
  data: Buffer;
  /** Numbers of the blocks that hold data. */
  blocks: Set<number>;
  size: number;
  mtimeNs: bigint;
  truncateSeq: number;
  truncateSize: number;
}

/** All objects of the world, with the truncation rules of the OSDs. */
export class MemoryObjects {
  readonly objects = new Map<string, StoredObject>();
  readonly fenced = new Set<ClientId>();
  /** Probability that a write is refused with `failure` before it did anything. */
  failureRate = 0;
  failure: ErrorCode = "TimedOut";
  /** Refuses a write to this object. */
  failing = (_address: ObjectAddress): boolean => this.random.chance(this.failureRate);
  delayMs = { min: 0.1, max: 3 };
  writes = 0;
  reads = 0;
  /** Nothing is answered while set. */
  stalled: Promise<void> | undefined;

  constructor(
    private readonly clock: SimClock,
    private readonly random: Prng,
    private readonly objectSize: number,
  ) {}

  for(client: ClientId): ClosableObjects {
    let closed = false;
    const arrive = async (options: AccessOptions): Promise<void> => {
      const { min, max } = this.delayMs;
      await this.pause(min + this.random.float() * (max - min));
      while (this.stalled !== undefined) await this.stalled;
      if (closed) throw new DssError("ShuttingDown", "the session is over");
      if (this.fenced.has(client)) throw new DssError("Fenced", `client.${client}`);
      void options;
    };
    const leave = (): Promise<void> => this.pause(this.delayMs.min);
    const change = async (address: ObjectAddress, options: AccessOptions): Promise<void> => {
      await arrive(options);
      this.writes++;
      if (this.failing(address)) throw new DssError(this.failure, "injected");
    };
    return {
      close: () => (closed = true),
      read: async (address, offset, length, options): Promise<ObjectContent> => {
        await arrive(options);
        this.reads++;
        const object = this.look(address, options);
        if (object === undefined) {
          await leave();
          return { exists: false, size: 0, data: Buffer.alloc(0), mtimeNs: 0n };
        }
        const { size, mtimeNs } = object;
        const end = Math.min(offset + length, size);
        const data = Buffer.from(object.data.subarray(offset, Math.max(end, offset)));
        await leave();
        // Who looks at bytes that were given back sees at once that they are not his any more.
        const recycle = (): void => void data.fill(0xdd);
        return { exists: true, size, data, mtimeNs, recycle };
      },
      stat: async (address, options) => {
        await arrive(options);
        const object = this.look(address, options);
        return {
          exists: object !== undefined,
          size: object?.size ?? 0,
          mtimeNs: object?.mtimeNs ?? 0n,
          truncateSeq: object?.truncateSeq ?? 0,
          allocated: (object?.blocks.size ?? 0) * BLOCK,
          ...{ clones: [], snapSeq: 0 },
        };
      },
      extents: async (address, offset, length, options) => {
        await arrive(options);
        const object = this.look(address, options);
        if (object === undefined) return { exists: false, size: 0, extents: [] };
        const extents: { offset: number; length: number }[] = [];
        const last = Math.min(offset + length, object.size);
        for (let block = Math.floor(offset / BLOCK); block * BLOCK < last; block++) {
          const at = Math.max(block * BLOCK, offset);
          const end = Math.min((block + 1) * BLOCK, last);
          if (object.blocks.has(block)) extents.push({ offset: at, length: end - at });
        }
        return { exists: true, size: object.size, extents };
      },
      write: async (address, offset, data, options) => {
        const bytes = Buffer.concat(data);
        await change(address, options);
        const object = this.open(address, options);
        let end = offset + bytes.length;
        if (options.truncation.seq < object.truncateSeq) end = Math.min(end, object.truncateSize);
        if (end > offset) {
          bytes.copy(object.data, offset, 0, end - offset);
          for (let block = Math.floor(offset / BLOCK); block * BLOCK < end; block++) {
            object.blocks.add(block);
          }
          object.size = Math.max(object.size, end);
          if (options.mtimeNs > object.mtimeNs) object.mtimeNs = options.mtimeNs;
        }
        await leave();
        return object.size;
      },
      zero: async (address, offset, length, options) => {
        await change(address, options);
        const object = this.look(address, options);
        if (object !== undefined) punch(object, offset, Math.min(offset + length, object.size));
        await leave();
      },
      trim: async (address, options) => {
        await change(address, options);
        this.look(address, options);
      },
      truncate: async (address, size, options) => {
        await change(address, options);
        this.cut(this.open(address, options), size);
      },
      remove: async (address, options) => {
        await change(address, options);
        const object = this.objects.get(key(address));
        if (object === undefined) return;
        if (options.unconditional || object.truncateSeq < options.truncation.seq) {
          this.objects.delete(key(address));
        }
      },
    };
  }

  /** What the objects of a file have. */
  allocatedOf(ino: number): number {
    let blocks = 0;
    for (const [name, object] of this.objects) {
      if (name.startsWith(`1/${ino.toString(16)}.`)) blocks += object.blocks.size;
    }
    return blocks * BLOCK;
  }
  private pause(ms: number): Promise<void> {
    return new Promise((resolve) => void this.clock.schedule(ms, resolve));
  }
  private look(address: ObjectAddress, options: AccessOptions): StoredObject | undefined {
    const object = this.objects.get(key(address));
    if (object !== undefined && options.truncation.seq > object.truncateSeq) {
      this.cut(object, options.truncation.size);
      object.truncateSeq = options.truncation.seq;
      object.truncateSize = options.truncation.size;
    }
    return object;
  }
  private open(address: ObjectAddress, options: AccessOptions): StoredObject {
    let object = this.look(address, options);
    if (object === undefined) {
      object = {
        data: Buffer.alloc(this.objectSize),
        blocks: new Set(),
        size: 0,
        mtimeNs: 0n,
        truncateSeq: options.truncation.seq,
        truncateSize: options.truncation.size,
      };
      this.objects.set(key(address), object);
    }
    return object;
  }
  private cut(object: StoredObject, size: number): void {
    if (size >= object.size) return;
    object.data.fill(0, size, object.size);
    for (const block of object.blocks) if (block * BLOCK >= size) object.blocks.delete(block);
    object.size = size;
  }
}
/** As an OSD does it: whole blocks go, also the last one when it is covered to the end. */
function punch(object: StoredObject, start: number, end: number): void {
  object.data.fill(0, start, end);
  for (const block of object.blocks) {
    const isTail = end === object.size && block * BLOCK < end;
    const isWhole = block * BLOCK >= start && ((block + 1) * BLOCK <= end || isTail);
    if (isWhole) object.blocks.delete(block);
  }
}
function key(address: ObjectAddress): string {
  return `${address.pool}/${address.object}`;
}

class World {
  readonly clock = new SimClock();
  readonly random: Prng;
  readonly network: SimNetwork;
  readonly objects: MemoryObjects;
  readonly metadata = new MemoryMetadata();
  readonly failures: unknown[] = [];
  logger: Logger = silentLogger;
  private epoch = 5;
  private nextClient = 65_536;
  private leaderHost: SimHost | undefined;
  private leaderNow: { address: Address; term: number } | undefined;
  private readonly leaderListeners = new Set<() => void>();
  private terms = 0;
  private mounts = 0;

  constructor(
    readonly seed: number,
    readonly objectSize: number,
  ) {
    this.random = new Prng(seed);
    this.network = new SimNetwork(this.clock, this.random.fork());
    this.objects = new MemoryObjects(this.clock, this.random.fork(), objectSize);
  }

  readonly leaderSource: LeaderSource = {
    current: () => this.leaderNow,
    onChange: (listener) => {
      this.leaderListeners.add(listener);
      return () => void this.leaderListeners.delete(listener);
    },
  };
  get randomSource(): RandomSource {
    return { u32: () => this.random.u32(), bytes: (length) => this.random.bytes(length) };
  }

  /** Lets the world go on until the promise settles. */
  async run<T>(promise: Promise<T>, withinMs = 300_000): Promise<T> {
    let settled = false;
    const outcome = promise.finally(() => (settled = true));
    outcome.catch(() => undefined);
    if (!(await this.clock.runUntil(() => settled, withinMs))) {
      throw new Error(`seed ${this.seed}: nothing settled it within ${withinMs} ms`);
    }
    return outcome;
  }
  async fails(promise: Promise<unknown>): Promise<ErrorCode | undefined> {
    try {
      await this.run(promise);
      return undefined;
    } catch (error) {
      if (!isDssError(error)) throw error;
      return error.code;
    }
  }

  /** What happens while the message that opens a session is on its way. */
  onOpening: (() => Promise<void>) | undefined;

  /** The leader, if any, dies; another takes over. */
  async lead(options: Partial<typeof LEADER_DEFAULTS> = {}): Promise<void> {
    this.leaderHost?.crash();
    const host = new SimHost(`mds${++this.terms}`, this.network);
    this.leaderHost = host;
    const clock = this.clock.forNode(() => host.alive);
    const messenger = new RpcMessenger({
      clock,
      network: host,
      random: this.randomSource,
      logger: this.logger,
      entity: MDS_ENTITY_BASE,
      role: "mds",
      clusterId: () => "test",
    });
    const store = this.metadata.lead();
    const leading = (async () => {
      const replayed = await replayMetadata(store, {
        cacheBytes: 2 ** 26,
        tail: new Map(),
        logger: this.logger,
      });
      const leader = new MdsLeader({
        clock,
        logger: this.logger,
        store,
        replayed,
        term: this.metadata.term,
        id: 0,
        cluster: {
          clusterId: "test",
          epoch: () => this.epoch,
          fence: (client) => {
            this.objects.fenced.add(client);
            return Promise.resolve(++this.epoch);
          },
          isFenced: (client) => this.objects.fenced.has(client),
          allocateClient: () => Promise.resolve(this.nextClient++),
          layoutOf: () => ({
            pool: 1,
            objectSize: this.objectSize,
            stripeUnit: this.objectSize,
            stripeCount: 1,
          }),
          usage: () => ({ total: 2 ** 30, available: 2 ** 29 }),
        },
        objects: {
          ...this.objects.for(0),
          rollback: () => Promise.reject(new Error("there are no volumes")),
          copyUp: () => Promise.reject(new Error("there are no volumes")),
        },
        lister: { pools: () => [], listActive: () => Promise.resolve([]) },
        options: { ...LEADER_DEFAULTS, ...options },
        onFailure: (error) => this.failures.push(error),
      });
      messenger.handle(OpenMdsSession, (incoming) => {
        const { message, link } = incoming;
        const opening = this.onOpening?.();
        const open = (): Promise<SessionOpened> => leader.openSession(message, link);
        (opening?.then(open) ?? open()).then(
          (opened) => incoming.reply(opened),
          (error: unknown) => incoming.fail(error),
        );
      });
      messenger.handle(MdsClaim, (incoming) => {
        leader.claim(incoming.message, incoming.link);
        incoming.reply({});
      });
      messenger.handle(CloseMdsSession, (incoming) => {
        leader.closeSession(incoming.message, incoming.link).then(
          () => incoming.reply({}),
          (error: unknown) => incoming.fail(error),
        );
      });
      messenger.handle(MdsTakenOver, (incoming) => {
        leader.endTakeover(incoming.message, incoming.link).then(
          (taken) => incoming.reply(taken),
          (error: unknown) => incoming.fail(error),
        );
      });
      messenger.handle(MdsOperation, (incoming) => leader.onOperation(incoming));
      messenger.handle(MdsOperations, (incoming) => leader.onOperations(incoming));
      messenger.handle(MdsKeepAlive, (incoming) => {
        incoming.reply(leader.keepAlive(incoming.message, incoming.link));
      });
      messenger.handlePost(MdsReleased, (message, link) => leader.onReleased(message, link));
      await leader.start();
      const address = await messenger.listen({ host: "mds", port: 0 });
      this.leaderNow = { address, term: this.metadata.term };
    })();
    await this.run(leading);
    for (const listener of [...this.leaderListeners]) listener();
  }
  /** Nobody answers for the metadata until `lead`. */
  crashLeader(): void {
    this.leaderHost?.crash();
  }

  async mount(options: Partial<VfsOptions> = {}, instance = ""): Promise<TestMount> {
    const mount = new TestMount(this, `mount${++this.mounts}`, options, instance);
    await this.run(mount.mds.open(30_000));
    return mount;
  }
  /** The next worker of a mount, or its first, with what the record says. */
  async worker(record: WorkerRecord, instance: string): Promise<TestMount> {
    const mount = new TestMount(this, `mount${++this.mounts}`, { record }, instance);
    const { inherited } = record;
    await this.run(
      inherited === undefined ? mount.mds.open(30_000) : mount.vfs.takeOver(inherited, 30_000),
    );
    return mount;
  }
  /** A messenger of its own host. */
  messenger(host: SimHost): RpcMessenger {
    return new RpcMessenger({
      clock: this.clock.forNode(() => host.alive),
      network: host,
      random: this.randomSource,
      logger: this.logger,
      entity: ANONYMOUS_ENTITY,
      role: "mount",
      clusterId: () => "test",
    });
  }
  mdsClient(host: SimHost, instance: string, extra: Partial<MdsClientOptions> = {}): MdsClient {
    return new MdsClient({
      messenger: this.messenger(host),
      clock: this.clock.forNode(() => host.alive),
      random: this.randomSource,
      leader: this.leaderSource,
      logger: this.logger,
      type: "mount",
      instance,
      host: host.name,
      pid: 1,
      detail: "",
      operationDeadlineMs: 120_000,
      ...extra,
    });
  }
}
export type { World };

/** A world with a leader. */
export async function newWorld(
  seed: number,
  options: Partial<typeof LEADER_DEFAULTS> & { objectSize?: number } = {},
): Promise<World> {
  const { objectSize = OBJECT_SIZE, ...leader } = options;
  const world = new World(seed, objectSize);
  await world.lead(leader);
  return world;
}

export class TestMount implements KernelNotifier {
  readonly host: SimHost;
  readonly mds: MdsClient;
  readonly vfs: Vfs;
  readonly invalidated: number[] = [];
  /** Sizes that looks of the mount at itself brought to the kernel. */
  readonly looked: number[] = [];
  /** What happens between the question of a look and its end. */
  onLook: (() => Promise<void>) | undefined;
  nameEpoch = 0;
  /** What the kernel does while it drops pages, e.g. writes mapped ones back. */
  onInvalidate: ((ino: number, offset: number, length: number) => Promise<void>) | undefined;

  constructor(
    readonly world: World,
    name: string,
    options: Partial<VfsOptions>,
    instance: string,
  ) {
    this.host = new SimHost(name, world.network);
    const clock = world.clock.forNode(() => this.host.alive);
    const { record } = options;
    this.mds = world.mdsClient(this.host, instance, {
      ...(record === undefined ? {} : { log: record, generation: record.generation }),
      ...(record?.inherited === undefined ? {} : { inherited: record.inherited }),
    });
    const objects = new SessionObjects((client) => world.objects.for(client));
    this.mds.onSession((client) => objects.onSession(client));
    this.vfs = new Vfs({
      mds: this.mds,
      objects,
      clock,
      random: world.randomSource,
      logger: world.logger,
      cacheBytes: 2 ** 24,
      writeBackBytesMax: 2 ** 22,
      writeBackAgeMs: 5_000,
      readAheadBytes: 2 ** 20,
      attributeValidMs: 1_000,
      inodesMax: 131_072,
      atime: { mode: "noatime", directories: true },
      ...options,
    });
    this.vfs.init(this, { canInvalidateAllEntries: true });
  }

  async invalidateInode(ino: number, offset: number, length: number): Promise<void> {
    this.invalidated.push(ino);
    await this.onInvalidate?.(ino, offset, length);
  }
  async lookForOwn(name: string): Promise<void> {
    const { attributes } = await this.vfs.lookup(OWN_FOLDER, Buffer.from(name), LOOKER);
    this.vfs.forget(attributes.ino, 1);
    await this.onLook?.();
    this.looked.push(attributes.size);
  }
  /** What the kernel does when it is to drop a name. */
  onForgetName: ((parent: number, name: string) => void) | undefined;
  invalidateEntry(parent: number, name: Buffer): Promise<void> {
    this.onForgetName?.(parent, name.toString());
    return Promise.resolve();
  }
  invalidateAllEntries(): Promise<boolean> {
    this.nameEpoch++;
    return Promise.resolve(true);
  }

  // Short forms for tests.
  run<T>(promise: Promise<T>): Promise<T> {
    return this.world.run(promise);
  }
  async create(parent: number, name: string, flags = 2): Promise<{ ino: number; handle: number }> {
    const made = await this.run(
      this.vfs.create(parent, Buffer.from(name), 0o100644, flags, CALLER),
    );
    return { ino: made.attributes.ino, handle: made.handle };
  }
  async lookup(parent: number, name: string): Promise<number> {
    return (await this.run(this.vfs.lookup(parent, Buffer.from(name)))).attributes.ino;
  }
  async open(ino: number, flags = 2): Promise<number> {
    return (await this.run(this.vfs.open(ino, flags, CALLER))).handle;
  }
  async write(
    file: { ino: number; handle: number },
    offset: number,
    data: Buffer | string,
    flags = 2,
  ): Promise<number> {
    const bytes = typeof data === "string" ? Buffer.from(data) : data;
    return this.run(
      this.vfs.write(file.ino, file.handle, offset, bytes, {
        flags,
        killPrivileges: false,
        fromPageCache: false,
      }),
    );
  }
  async read(
    file: { ino: number; handle: number },
    offset: number,
    length: number,
  ): Promise<Buffer> {
    const pieces = await this.run(this.vfs.read(file.ino, file.handle, offset, length));
    const bytes = Buffer.concat(pieces);
    this.vfs.readDone(pieces);
    return bytes;
  }
  async size(ino: number): Promise<number> {
    return (await this.run(this.vfs.getattr(ino))).attributes.size;
  }
  /** As stat(2) tells: bytes of blocks that hold data. */
  async allocated(ino: number): Promise<number> {
    return (await this.run(this.vfs.getattr(ino))).attributes.blocks * 512;
  }
  async names(ino: number): Promise<string[]> {
    const { handle } = await this.run(this.vfs.opendir(ino));
    const names: string[] = [];
    for (let cookie = 0; ;) {
      const page = [
        ...(await this.run(this.vfs.readdir(ino, handle, cookie, { maxEntries: 100, plus: true }))),
      ];
      if (page.length === 0) break;
      for (const entry of page) names.push(entry.name.toString());
      cookie = page.at(-1)!.cookie;
    }
    await this.run(this.vfs.releasedir(ino, handle));
    return names.filter((name) => name !== "." && name !== "..").sort();
  }
}
