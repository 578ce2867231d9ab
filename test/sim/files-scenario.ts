/**
 * Mounts without a kernel (the real client-fs/vfs) that work on the same names and the same files,
 * while metadata servers, ZooKeeper, mounts and now and then OSDs fail. Checked: names and contents
 * are linearizable, as for processes on one machine, except that a mount that died or was evicted
 * may lose what it had not synced; what was synced survives, nothing is done twice; no mount sees
 * another one's change before it is in the journal; journal and pages agree.
 */
import { strict as assert } from "node:assert";
import { isDssError } from "../../cluster/base/errors.js";
import type { Ino } from "../../cluster/base/ids.js";
import type { Logger } from "../../cluster/base/log.js";
import type { RandomSource } from "../../cluster/platform/ports.js";
import type { Caller, KernelNotifier } from "../../client-fs/file-system.js";
import { Vfs } from "../../client-fs/vfs/vfs.js";
import { ROOT_INO } from "../../mds/proto.js";
import { ClusterWorld, ZK, type DiskFactory, type SimClient } from "./cluster-world.js";
import { JournalCheck } from "./journal-check.js";
import { namesFault, type NameOperation, type Names } from "./names.js";
import { linearizabilityFault, type Operation } from "./registers.js";
import { CLEAN_WITHIN_MS, ScenarioBase, WORK_WITHIN_MS } from "./scenario-base.js";

/**
 * mixed: everything at random times. sleep: rounds of leaders that sleep until they are deposed,
 * under requests. loss: rounds in which a leader dies together with a mount. handover: rounds of
 * mounts that sleep with unwritten data until they are evicted.
 */
export type FilesTrouble = "mixed" | "sleep" | "loss" | "handover";

export interface FilesOptions {
  seed: number;
  disk: DiskFactory;
  operations: number;
  trouble: FilesTrouble;
  logger?: Logger;
}
export interface FilesResult {
  simulatedMs: number;
  operations: number;
  faults: Record<string, number>;
  /** Histories of names with too many unknown outcomes to decide. */
  undecided: number;
}

const MOUNTS = 3;
const SLOTS = 5;
const FILES = 2;
const BLOCK = 4096;
const BLOCKS = 2;
const ROUNDS = 4;
const CALLER: Caller = { uid: 1000, gid: 1000, pid: 1, umask: 0o022 };
const READ_WRITE = 2;
/** What a mount answers when it lost its session, or data with it. */
const LOST = ["NoSession", "Fenced", "ShuttingDown", "TimedOut", "Io", "Disk", "StaleHandle"];

const NOTIFIER: KernelNotifier = {
  invalidateInode: () => Promise.resolve(),
  invalidateEntry: () => Promise.resolve(),
  invalidateAllEntries: () => Promise.resolve(true),
};

/** For names of looks, of which there are none. */
const NO_RANDOM: RandomSource = { u32: () => 0, bytes: (length) => Buffer.alloc(length) };

interface Mount {
  client: SimClient;
  vfs: Vfs;
  alive: boolean;
  session: number;
  /** Of each file, while it is open. */
  handles: Map<number, number>;
  /** Since the last sync: lost with the mount. */
  names: NameOperation[];
  writes: Operation[];
  reads: { history: Operation[]; read: Operation }[];
}

interface Unanswered {
  slot: number;
  operation: NameOperation;
}

export async function runFilesScenario(options: FilesOptions): Promise<FilesResult> {
  const scenario = new FilesScenario(options);
  try {
    return await scenario.run();
  } catch (error) {
    if (error instanceof Error) error.message += `\n${scenario.world.describe()}`;
    throw error;
  }
}

class FilesScenario extends ScenarioBase {
  private readonly mounts: Mount[] = [];
  private readonly names: NameOperation[] = [];
  private readonly registers = new Map<string, Operation[]>();
  private readonly files: Ino[] = [];
  private readonly counts: Record<string, number> = {};
  private readonly journal: JournalCheck;
  /** Who made an inode, by its number. */
  private readonly makers = new Map<number, Mount>();
  /** Answered, and perhaps lost with their mount before they were durable. */
  private readonly lostWrites = new Set<Operation>();
  private readonly unanswered: Unanswered[] = [];
  /** Longest pause of a mount after an operation: trouble at random needs time to come. */
  private readonly paceMs: number;
  private nextValue = 1;
  private done = 0;
  private working = 0;
  private isOver = false;

  constructor(private readonly options: FilesOptions) {
    super(
      new ClusterWorld({
        seed: options.seed,
        osds: 3,
        mdss: 3,
        disk: options.disk,
        settings: {
          "pool.pgs": 2,
          "mds.sessionLeaseMs": [3_000, 4_000, 6_000][options.seed % 3]!,
          zkSessionMs: [2_000, 3_000, 5_000][options.seed % 3]!,
          "client.requestDeadlineMs": 120_000,
          "mds.leftoversIntervalMs": [2_000, 10_000, 60_000][options.seed % 3]!,
        },
        ...(options.logger === undefined ? {} : { logger: options.logger }),
      }),
    );
    this.journal = new JournalCheck(this.world.zk);
    this.paceMs = options.trouble === "mixed" ? 600 : 60;
  }

  async run(): Promise<FilesResult> {
    const { world } = this;
    await this.begin();
    for (let i = 0; i < MOUNTS; i++) await this.settled(this.mount(), 60_000, "no mount");
    await this.settled(this.makeFiles(), 60_000, "no files");
    world.network.faults = {
      delayMs: { min: 0.05, max: this.random.pick([0.2, 1, 5]) },
      loss: this.random.pick([0, 0.0005, 0.003]),
      duplicate: this.random.pick([0, 0.005, 0.05]),
    };
    for (const mount of this.mounts) this.work(mount);
    this.guard(this.options.trouble === "mixed" ? this.strikeAtRandom() : this.strikeInRounds());
    await this.until(() => this.isOver, WORK_WITHIN_MS, "the work never ended");
    await this.heal();
    await this.lookAtEverything();
    await this.settled(this.compareJournal(), 60_000, "the journal could not be read");
    const undecided = this.checkHistories();
    const { counts } = this;
    return { simulatedMs: world.clock.now, operations: this.done, faults: counts, undecided };
  }

  // ——— Mounts ———

  private async mount(): Promise<void> {
    const client = await this.world.startClient();
    const { config } = this.world;
    const vfs = new Vfs({
      mds: client.mds,
      objects: client.objects,
      clock: client.clock,
      random: NO_RANDOM,
      logger: client.logger,
      cacheBytes: 2 ** 20,
      writeBackBytesMax: 2 ** 20,
      writeBackAgeMs: config.client.writeBackAgeMs,
      readAheadBytes: 0,
      attributeValidMs: 0,
      inodesMax: config.client.inodesMax,
    });
    vfs.init(NOTIFIER, { canInvalidateAllEntries: true });
    const mount: Mount = {
      client,
      vfs,
      alive: true,
      session: client.mds.client,
      handles: new Map(),
      names: [],
      writes: [],
      reads: [],
    };
    // A new session: the old one was evicted.
    client.mds.onSession((id) => {
      if (id !== mount.session) this.lost(mount);
      mount.session = id;
    });
    this.mounts.push(mount);
  }
  private async makeFiles(): Promise<void> {
    const { vfs } = this.mounts[0]!;
    for (let i = 0; i < FILES; i++) {
      const name = Buffer.from(`file${i}`);
      const made = await vfs.create(ROOT_INO, name, 0o100644, READ_WRITE, CALLER);
      this.files.push(made.attributes.ino);
      await vfs.release(made.attributes.ino, made.handle);
    }
    await vfs.syncfs();
  }
  /** What the mount had not synced may be gone, and what it saw of that says nothing. */
  private lost(mount: Mount): void {
    this.note("lost session");
    for (const operation of mount.names) operation.isLost = true;
    for (const write of mount.writes) this.lostWrites.add(write);
    for (const { history, read } of mount.reads) history.splice(history.indexOf(read), 1);
    // An operation that only looked is of no more use.
    for (const operation of mount.names) {
      if (operation.what.includes(" sees ")) this.names.splice(this.names.indexOf(operation), 1);
    }
    this.synced(mount);
    mount.handles.clear();
  }
  private synced(mount: Mount): void {
    mount.names = [];
    mount.writes = [];
    mount.reads = [];
  }
  private crash(mount: Mount): void {
    if (!mount.alive) return;
    this.note("crash of a mount");
    mount.alive = false;
    this.lost(mount);
    this.mounts.splice(this.mounts.indexOf(mount), 1);
    this.world.crashClient(mount.client);
    this.working--;
    const next = async (): Promise<void> => {
      this.working++;
      await this.mount();
      this.working--;
      this.work(this.mounts.at(-1)!);
    };
    this.guard(next());
  }
  private note(fault: string): void {
    this.counts[fault] = (this.counts[fault] ?? 0) + 1;
  }

  // ——— Work ———

  private now(): number {
    return this.world.clock.now;
  }
  private work(mount: Mount): void {
    this.working++;
    const loop = async (): Promise<void> => {
      while (!this.isOver && mount.alive) {
        await this.operate(mount);
        if (!mount.alive) return; // Its end was counted by whoever crashed it.
        this.done++;
        if (this.options.trouble === "mixed" && this.done >= this.options.operations) {
          this.isOver = true;
        }
        if (this.random.chance(0.6)) await this.rest(mount, this.random.float() * this.paceMs);
      }
      if (mount.alive) this.working--;
    };
    this.guard(loop());
  }
  /** On the mount's own clock: a frozen program rests on. */
  private rest(mount: Mount, ms: number): Promise<void> {
    return new Promise((resolve) => void mount.client.clock.setTimer(ms, resolve));
  }
  private async operate(mount: Mount): Promise<void> {
    const roll = this.random.float();
    const before = mount.session;
    try {
      if (roll < 0.08) await this.sync(mount);
      else if (roll < 0.5) await this.content(mount);
      else if (roll < 0.8) await this.name(mount);
      else await this.burst(mount);
    } catch (error) {
      if (!isDssError(error) || !LOST.includes(error.code)) throw error;
      if (!mount.alive) return;
      this.note(`lost: ${error.code}`);
      // Told by the error, or by the session before it.
      if (before === mount.session) this.lost(mount);
      await this.rest(mount, 200);
    }
  }
  private async sync(mount: Mount): Promise<void> {
    const { names, writes, reads } = mount;
    const [counts, session] = [[names.length, writes.length, reads.length], mount.session];
    await mount.vfs.syncfs();
    if (!mount.alive || session !== mount.session || names !== mount.names) return;
    names.splice(0, counts[0]);
    writes.splice(0, counts[1]);
    reads.splice(0, counts[2]);
  }

  private async content(mount: Mount): Promise<void> {
    const file = this.random.int(0, FILES - 1);
    const block = this.random.int(0, BLOCKS - 1);
    const ino = this.files[file]!;
    let handle = mount.handles.get(file);
    if (handle === undefined) {
      handle = (await mount.vfs.open(ino, READ_WRITE, CALLER)).handle;
      mount.handles.set(file, handle);
    }
    const key = `file${file}/${block}`;
    let history = this.registers.get(key);
    if (history === undefined) this.registers.set(key, (history = []));
    const start = this.now();
    if (this.random.chance(0.5)) {
      const value = this.nextValue++;
      const write: Operation = { kind: "write", value, start, end: Infinity };
      history.push(write);
      mount.writes.push(write);
      const data = Buffer.alloc(BLOCK);
      for (let at = 0; at < BLOCK; at += 4) data.writeUInt32LE(value, at);
      const { writes } = mount;
      await mount.vfs.write(ino, handle, block * BLOCK, data, {
        flags: READ_WRITE,
        killPrivileges: false,
        fromPageCache: false,
      });
      if (mount.writes === writes) write.end = this.now();
      return;
    }
    const { reads } = mount;
    const chunks = await mount.vfs.read(ino, handle, block * BLOCK, BLOCK);
    const data = Buffer.concat(chunks);
    const value = data.length === 0 ? 0 : data.readUInt32LE(0);
    for (let at = 0; at + 4 <= data.length; at += 4) {
      assert.equal(data.readUInt32LE(at), value, `a torn block of ${key}`);
    }
    if (mount.reads !== reads || !mount.alive) return; // The session ended under it.
    const read: Operation = { kind: "read", value, start, end: this.now() };
    history.push(read);
    mount.reads.push({ history, read });
  }

  /** Several in a row: from the second on the mount may hold the directory alone. */
  private async burst(mount: Mount): Promise<void> {
    for (let left = this.random.int(2, 6); left > 0 && mount.alive; left--) await this.name(mount);
  }
  private async name(mount: Mount): Promise<void> {
    const roll = this.random.float();
    const slot = this.random.int(0, SLOTS - 1);
    if (roll < 0.4) await this.lookup(mount, slot);
    else if (roll < 0.7) await this.create(mount, slot);
    else if (roll < 0.87) await this.unlink(mount, slot);
    else await this.rename(mount, slot, this.random.int(0, SLOTS - 1));
  }
  /** Records the operation before it is sent: it may take effect however it ends. */
  private begun(mount: Mount, what: string, run: NameOperation["run"]): NameOperation {
    const who = mount.client.host.name;
    const operation: NameOperation = {
      what: `${who} ${what}`,
      start: this.now(),
      end: Infinity,
      run,
    };
    this.names.push(operation);
    mount.names.push(operation);
    return operation;
  }
  /** The outcome is known, and counts unless the mount was lost meanwhile. */
  private ended(mount: Mount, operation: NameOperation, what: string, run: NameOperation["run"]) {
    if (!mount.names.includes(operation)) return;
    operation.what += ` ${what}`;
    operation.end = this.now();
    operation.run = run;
  }
  private async lookup(mount: Mount, slot: number): Promise<void> {
    const start = this.now();
    const ino = await found(mount.vfs.lookup(ROOT_INO, nameOf(slot)));
    if (ino !== 0) mount.vfs.forget(ino, 1);
    if (!mount.alive) return;
    this.saw(mount, ino);
    const what = `${mount.client.host.name} sees ${slot}=${ino}`;
    const run = (names: Names): Names | undefined => (names[slot] === ino ? names : undefined);
    const operation: NameOperation = { what, start, end: this.now(), run };
    this.names.push(operation);
    mount.names.push(operation);
  }
  private async create(mount: Mount, slot: number): Promise<void> {
    // Which inode it would have been is not known: it can be placed nowhere, and never is.
    const operation = this.begun(mount, `creates ${slot}`, () => undefined);
    const entry: Unanswered = { slot, operation };
    this.unanswered.push(entry);
    try {
      const flags = READ_WRITE | O_CREAT | O_EXCL;
      const made = await mount.vfs.create(ROOT_INO, nameOf(slot), 0o100644, flags, CALLER);
      const { ino } = made.attributes;
      this.makers.set(ino, mount);
      this.unanswered.splice(this.unanswered.indexOf(entry), 1);
      const run = (names: Names): Names | undefined => {
        return names[slot] === 0 ? names.with(slot, ino) : undefined;
      };
      if (mount.names.includes(operation)) this.ended(mount, operation, `=${ino}`, run);
      else operation.run = run;
      await mount.vfs.release(ino, made.handle);
    } catch (error) {
      if (!isDssError(error, "Exists")) throw error;
      this.ended(mount, operation, "which exists", (names) => {
        return names[slot] === 0 ? undefined : names;
      });
    }
  }
  private async unlink(mount: Mount, slot: number): Promise<void> {
    const operation = this.begun(mount, `unlinks ${slot}`, (names) => names.with(slot, 0));
    try {
      await mount.vfs.unlink(ROOT_INO, nameOf(slot), CALLER);
      this.ended(mount, operation, "done", (names) => {
        return names[slot] === 0 ? undefined : names.with(slot, 0);
      });
    } catch (error) {
      if (!isDssError(error, "NotFound")) throw error;
      this.ended(mount, operation, "which is absent", (names) => {
        return names[slot] === 0 ? names : undefined;
      });
    }
  }
  private async rename(mount: Mount, source: number, target: number): Promise<void> {
    const move = (names: Names): Names | undefined => {
      if (names[source] === 0) return undefined;
      return source === target ? names : names.with(target, names[source]!).with(source, 0);
    };
    const operation = this.begun(mount, `renames ${source} to ${target}`, move);
    try {
      const flags = { noReplace: false, exchange: false };
      const [from, to] = [nameOf(source), nameOf(target)];
      await mount.vfs.rename(ROOT_INO, from, ROOT_INO, to, flags, CALLER);
      this.ended(mount, operation, "done", move);
    } catch (error) {
      if (!isDssError(error, "NotFound")) throw error;
      this.ended(mount, operation, "which is absent", (names) => {
        return names[source] === 0 ? names : undefined;
      });
    }
  }
  /** Nobody but its maker may see an inode before its name is in the journal. */
  private saw(mount: Mount, ino: Ino): void {
    if (ino === 0 || this.makers.get(ino) === mount) return;
    if (!this.journal.namedAt.has(ino)) {
      this.fail(`${mount.client.host.name} sees inode ${ino}, which is in no journal batch`);
    }
  }

  // ——— Faults ———

  private async strikeAtRandom(): Promise<void> {
    const gapMs = this.random.pick([4_000, 8_000, 16_000]);
    while (!this.isOver) {
      await this.pause(this.random.float() * gapMs);
      if (!this.isOver) this.strike();
    }
  }
  private strike(): void {
    const { random, world } = this;
    const leader = world.leader?.id ?? 0;
    const mds = random.chance(0.8) ? leader : random.int(0, 2);
    const mount = random.pick(this.mounts);
    const roll = random.float();
    if (roll < 0.2) this.crashMds(mds);
    else if (roll < 0.3) this.sleepMds(mds);
    else if (roll < 0.37) this.cut(`mds.${mds}`, ZK, 10_000);
    else if (mount === undefined) return;
    else if (roll < 0.5) {
      this.note("freeze of a mount");
      world.freezeClient(mount.client, random.float() * 12_000);
    } else if (roll < 0.58) this.cut(mount.client.host.name, `mds.${mds}`, 8_000);
    else if (roll < 0.64) this.cut(mount.client.host.name, ZK, 8_000);
    else if (roll < 0.74) this.crash(mount);
    else if (roll < 0.8) {
      this.crashMds(leader);
      this.crash(mount);
    } else if (roll < 0.85) {
      this.note("outage of ZooKeeper");
      world.zk.outage(random.float() * 8_000);
    } else if (roll < 0.9) {
      this.note("ZooKeeper connections broken");
      for (const host of world.hostNames()) {
        if (random.chance(0.5)) world.zk.breakConnections(host);
      }
    } else if (roll < 0.95) {
      this.note("crash of an OSD");
      const osd = random.int(0, 2);
      world.crashOsd(osd);
      world.clock.schedule(random.float() * 3_000, () => world.startOsd(osd));
    } else this.cut(mount.client.host.name, `osd.${random.int(0, 2)}`, 8_000);
  }
  private crashMds(id: number): void {
    this.note("crash of an MDS");
    this.world.crashMds(id);
    const ms = 100 + this.random.float() * 4_000;
    this.world.clock.schedule(ms, () => this.world.startMds(id));
  }
  private sleepMds(id: number): void {
    this.note("freeze of an MDS");
    this.world.freeze(this.world.metadata.get(id)?.host, this.random.float() * 12_000);
  }
  private cut(name: string, other: string, msMax: number): void {
    this.note(`${name.replace(/\d+/, "")} cut off from ${other.replace(/\d+/, "")}`);
    const { random } = this;
    this.world.cut(name, other, random.float() * msMax, random.pick(["both", "from", "to"]));
  }

  private async strikeInRounds(): Promise<void> {
    const { random, world } = this;
    const { trouble } = this.options;
    for (let round = 0; round < ROUNDS; round++) {
      await this.pause(500 + random.float() * 1_500);
      const leader = world.leader?.id ?? 0;
      const mount = random.pick(this.mounts);
      if (trouble === "sleep") {
        this.note("freeze of an MDS");
        const ms = world.config.cluster.leaderGraceMs + random.float() * 4_000;
        world.freeze(world.metadata.get(leader)?.host, ms);
        await this.pause(ms + 1_000);
      } else if (trouble === "loss") {
        this.crashMds(leader);
        if (mount !== undefined) this.crash(mount);
        await this.pause(5_000);
      } else if (mount !== undefined) {
        this.note("freeze of a mount");
        const { recallTimeoutMs, sessionLeaseMs } = world.config.mds;
        const ms = Math.max(recallTimeoutMs, sessionLeaseMs) + random.float() * 4_000;
        world.freezeClient(mount.client, ms);
        await this.pause(ms + 1_000);
      }
    }
    this.isOver = true;
  }

  // ——— The end ———

  private async heal(): Promise<void> {
    const { world } = this;
    world.heal();
    world.network.faults = { delayMs: { min: 0.05, max: 0.2 }, loss: 0 };
    await this.until(() => this.working === 0, CLEAN_WITHIN_MS, "an operation never ended");
    for (let id = 0; id < 3; id++) world.startMds(id);
    for (let id = 0; id < 3; id++) world.startOsd(id);
    await this.until(() => world.allClean(), CLEAN_WITHIN_MS, "the PGs did not become clean");
  }
  /** Everybody syncs; then one mount after the other sees all names and all contents. */
  private async lookAtEverything(): Promise<void> {
    const all = async (): Promise<void> => {
      for (const mount of this.mounts) {
        await this.guarded(mount, () => this.sync(mount));
      }
      for (const mount of this.mounts) {
        for (let slot = 0; slot < SLOTS; slot++) {
          await this.guarded(mount, () => this.lookup(mount, slot));
        }
        for (let i = 0; i < 12; i++) await this.guarded(mount, () => this.content(mount));
        await this.guarded(mount, () => this.sync(mount));
      }
    };
    await this.settled(all(), CLEAN_WITHIN_MS, "the names and files could not be read at the end");
  }
  /** Losses of earlier trouble may be reported as late as now. */
  private async guarded(mount: Mount, work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (!isDssError(error) || !LOST.includes(error.code)) throw error;
      this.lost(mount);
      await work();
    }
  }
  private async compareJournal(): Promise<void> {
    const [mount] = this.mounts;
    if (mount === undefined) return;
    // Nobody writes while it is read.
    for (let id = 0; id < 3; id++) this.world.crashMds(id);
    await this.pause(1_000);
    await this.journal.compare(mount.client.coordination, mount.client.clock);
  }
  /** Creations that were never answered: the journal says which inode each may have made. */
  private placeUnanswered(): void {
    for (const [ino, name] of this.journal.firstName) {
      if (this.makers.has(ino)) continue;
      const namedAt = this.journal.namedAt.get(ino)!;
      const index = this.unanswered.findLastIndex(
        ({ slot, operation }) => `name${slot}` === name && operation.start <= namedAt,
      );
      if (index < 0) continue;
      const [{ slot, operation }] = this.unanswered.splice(index, 1) as [Unanswered];
      operation.what += `=${ino}`;
      operation.run = (names) => (names[slot] === 0 ? names.with(slot, ino) : undefined);
    }
  }
  private checkHistories(): number {
    for (const [register, history] of this.registers) {
      // A lost write that somebody read was not lost, and took effect when it was made.
      const read = new Set(history.map(({ kind, value }) => (kind === "read" ? value : 0)));
      const kept = history.filter((one) => !this.lostWrites.has(one) || read.has(one.value));
      const fault = linearizabilityFault(kept);
      assert.equal(fault, undefined, `${register}: ${fault}`);
    }
    this.placeUnanswered();
    const fault = namesFault(this.names, new Array<number>(SLOTS).fill(0));
    if (fault === "undecided") return 1;
    assert.equal(fault, undefined, `names: ${fault}`);
    return 0;
  }
}

const O_CREAT = 0o100;
const O_EXCL = 0o200;
const nameOf = (slot: number): Buffer => Buffer.from(`name${slot}`);

/** The inode number; 0 for a name that is not there. */
async function found(looking: Promise<{ attributes: { ino: Ino } }>): Promise<Ino> {
  try {
    return (await looking).attributes.ino;
  } catch (error) {
    if (!isDssError(error, "NotFound")) throw error;
    return 0;
  }
}
