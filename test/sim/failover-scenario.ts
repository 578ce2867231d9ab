/**
 * Five OSDs, several clients that write and read the same blocks without any order between them,
 * and every fault that the world can make: crashes short, long and of all at once, freezes,
 * partitions both ways and one way, OSDs cut off from ZooKeeper, a disk destroyed, messages held up
 * beyond the leases. Checked: the history of every block is linearizable (so no acknowledged write
 * is lost, and no read is stale, across all failovers); in the end every PG is clean and its
 * replicas are equal; and everything is still there when one more disk is destroyed.
 */
import { strict as assert } from "node:assert";
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import { isDssError } from "../../cluster/base/errors.js";
import type { OsdId } from "../../cluster/base/ids.js";
import type { Logger } from "../../cluster/base/log.js";
import { allPgs, pgOf, type ClusterMap } from "../../cluster/map/cluster-map.js";
import { objectToPg } from "../../cluster/map/placement.js";
import { ClusterWorld, ZK, type DiskFactory, type SimClient } from "./cluster-world.js";
import { linearizabilityFault, type Operation } from "./registers.js";
import { CLEAN_WITHIN_MS, ScenarioBase, WORK_WITHIN_MS } from "./scenario-base.js";

/**
 * What strikes. mixed: everything, at random times. The others are rounds of one kind of trouble,
 * each where one promise is at stake, on one PG of three OSDs. power: power cuts of all of them.
 * lease: primaries that are deposed while a client still believes in them. deposed: the same while
 * they sleep. retry: connections that break under requests. learner: members that come back while
 * writes go on. rot: bits of one OSD's stored blocks flip. members: OSDs join, are emptied and
 * removed, go out and in and change their weight, on several PGs.
 */
export type Trouble =
  "mixed" | "power" | "lease" | "deposed" | "retry" | "learner" | "rot" | "members";

export interface FailoverOptions {
  seed: number;
  disk: DiskFactory;
  /** Operations in all, by all clients; the end of mixed trouble. */
  operations: number;
  /** Rounds of any other trouble. */
  rounds?: number;
  trouble?: Trouble;
  minimum?: number;
  logger?: Logger;
}
export interface FailoverResult {
  simulatedMs: number;
  operations: number;
  faults: Record<string, number>;
  intervals: number;
  recovered: number;
}

const BLOCKS = 2;
const CLIENTS = 3;
const POOL = 1;
const REPLICAS = 3;

export async function runFailoverScenario(options: FailoverOptions): Promise<FailoverResult> {
  const scenario = new FailoverScenario(options);
  try {
    return await scenario.run();
  } catch (error) {
    if (error instanceof Error) error.message += `\n${scenario.world.describe()}`;
    throw error;
  }
}

class FailoverScenario extends ScenarioBase {
  private readonly trouble: Trouble;
  private readonly rounds: number;
  private osds: OsdId[];
  private readonly objects: number;
  private readonly blocks: number = BLOCKS;
  /** Longest pause of a client after half of its operations. */
  private paceMs = 500;
  private isOver = false;
  private readonly operations: number;
  private readonly clients: SimClient[] = [];
  /** By register: "object/block". */
  private readonly histories = new Map<string, Operation[]>();
  private readonly destroyed = new Set<OsdId>();
  private readonly counts: Record<string, number> = {};
  /** Some seeds leave time to recover, others hardly any. */
  private readonly faultGapMs: number;
  private victim: OsdId | undefined;
  private nextValue = 1;
  private done = 0;
  private working = 0;
  private faultsOn = true;
  /** Trouble "members": nobody fails in this round. */
  private isQuiet = false;

  constructor(options: FailoverOptions) {
    const { trouble = "mixed", rounds = 4 } = options;
    const draw = options.seed % 3;
    const osds = trouble === "mixed" ? 5 : 3;
    super(
      new ClusterWorld({
        seed: options.seed,
        osds,
        disk: options.disk,
        settings: {
          "pool.minimum": options.minimum ?? 2,
          // Short logs make backfill of what would be a delta.
          "osd.pgLogEntries": [16, 60, 400][draw]!,
          readLeaseMs: [1_000, 400, 200][draw]!,
          downOutMs: [60_000, 8_000, 20_000][draw]!,
          ...(trouble === "mixed" ? {} : DIRECTED),
          ...(trouble === "members" ? { "pool.pgs": 8, downOutMs: 60_000 } : {}),
        },
        ...(options.logger === undefined ? {} : { logger: options.logger }),
      }),
    );
    this.trouble = trouble;
    this.rounds = rounds;
    this.osds = Array.from({ length: osds }, (_, id) => id);
    this.objects = { mixed: 8, power: 6, members: 12 }[trouble as string] ?? 2;
    // Enough at once to fill a log and an overlay between two power cuts.
    this.blocks = trouble === "power" ? 12 : BLOCKS;
    this.operations = options.operations;
    if (trouble === "members") this.world.onMap = (before, after) => this.checkSizes(before, after);
    if (trouble === "mixed") this.world.onMap = (before, after) => this.strikeAtJoin(before, after);
    else this.paceMs = trouble === "power" ? 4 : 40;
    this.faultGapMs = this.random.pick([2_500, 6_000, 15_000]);
  }

  async run(): Promise<FailoverResult> {
    const { world } = this;
    await this.begin();
    for (let i = 0; i < CLIENTS; i++) {
      this.clients.push(await this.settled(world.startClient(), 60_000, "no session"));
    }
    // Only where no message is late or lost can a planned change promise anything (checkSizes).
    const isReliable = this.trouble === "members" && this.random.chance(0.5);
    const often = (...chances: number[]): number => (isReliable ? 0 : this.random.pick(chances));
    world.network.faults = {
      delayMs: { min: 0.05, max: this.random.pick([0.2, 1, 5]) },
      loss: often(0, 0.0005, 0.002),
      stall: often(0, 0.001, 0.003),
      stallMs: 3_000,
      duplicate: this.random.pick([0, 0.005, 0.05]),
      mdsLoss: often(0, 0.005, 0.02),
    };
    const loops = this.trouble === "power" ? 6 : 1;
    for (const client of this.clients) for (let i = 0; i < loops; i++) this.work(client);
    if (this.trouble === "mixed") this.scheduleFault();
    else this.guard(this.strikeInRounds(this.trouble));
    await this.until(() => this.isOver, WORK_WITHIN_MS, "the work never ended");
    await this.heal();
    await this.readAll();
    this.checkReplicas();
    if (this.trouble !== "rot") {
      await this.settled(this.checkBlocks(), CLEAN_WITHIN_MS, "the blocks could not be checked");
    }
    await this.loseOneDisk();
    this.checkHistories();
    return {
      simulatedMs: world.clock.now,
      operations: this.done,
      faults: this.counts,
      intervals: Math.max(...[...allPgs(world.map)].map(({ entry }) => entry.interval)),
      recovered: this.recovered(),
    };
  }

  private recovered(): number {
    let sum = 0;
    for (const { daemon } of this.world.running.values()) {
      sum += daemon.status().counters["recoveryOps"] ?? 0;
    }
    return sum;
  }

  // ——— Faults ———

  private scheduleFault(): void {
    this.world.clock.schedule(this.random.float() * this.faultGapMs, () => {
      if (this.isOver) return;
      if (this.faultsOn) this.fault();
      this.scheduleFault();
    });
  }

  private fault(): void {
    const { random, world } = this;
    const osd = random.pick(this.osds);
    const name = `osd.${osd}`;
    const roll = random.float();
    if (roll < 0.2) this.crash("crash", [osd], 10 + random.float() * 2_000);
    else if (roll < 0.3) this.crash("long crash", [osd], 5_000 + random.float() * 40_000);
    else if (roll < 0.34) this.crash("power cut", this.osds, 10 + random.float() * 3_000);
    else if (roll < 0.5) {
      this.note("freeze");
      world.freezeOsd(osd, random.pick([200, 1_500, 5_000, 15_000]) * (0.5 + random.float()));
    } else if (roll < 0.54) {
      this.note("client freeze");
      world.freezeClient(random.pick(this.clients), random.float() * 10_000);
    } else if (roll < 0.72) {
      const other = random.pick(this.othersOf(osd));
      this.note("partition");
      world.cut(name, `osd.${other}`, random.float() * 12_000, random.pick(["both", "from", "to"]));
    } else if (roll < 0.76) {
      this.note("client partition");
      const { host } = random.pick(this.clients);
      world.cut(name, host.name, random.float() * 8_000, random.pick(["both", "from", "to"]));
    } else if (roll < 0.8) {
      this.note("cut off from ZooKeeper");
      world.cut(name, ZK, random.float() * 15_000, "both");
    } else if (roll < 0.88) this.metadataFault();
    else if (roll < 0.96) {
      const friend = random.pick(this.clients);
      this.cutOff(friend, osd, random.chance(0.5));
    } else if (this.destroyed.size === 0 && world.allClean()) this.destroy(osd);
  }
  /**
   * Both keep an old map and still see each other: the client would take what a deposed primary
   * gives it. On an island the primary sees no other OSD either.
   */
  private cutOff(friend: SimClient, osd: OsdId, isIsland: boolean): number {
    const { random, world } = this;
    this.note("cut off with a client");
    const { zkSessionMs } = world.config.cluster;
    const ms = zkSessionMs + 2_000 + random.float() * (this.trouble === "mixed" ? 6_000 : 1_000);
    // The session ends its time after the last ping, which may have been a while ago.
    world.clock.schedule(zkSessionMs * 0.8, () => this.stare(friend, osd));
    for (const one of [`osd.${osd}`, friend.host.name]) {
      world.cut(one, ZK, ms, "both");
      if (!isIsland) continue;
      for (const other of this.othersOf(osd)) world.cut(one, `osd.${other}`, ms, "both");
    }
    return ms;
  }
  private othersOf(osd: OsdId): OsdId[] {
    return this.osds.filter((id) => id !== osd);
  }
  private get primary(): OsdId {
    return pgOf(this.world.map, objectToPg(this.world.map, POOL, "r0"))!.primary;
  }

  /** Rounds of one trouble; after each the cluster becomes whole, within reason. */
  private async strikeInRounds(trouble: Exclude<Trouble, "mixed">): Promise<void> {
    const { random, world } = this;
    for (let round = 0; round < this.rounds; round++) {
      await this.pause(300 + random.float() * 1_000);
      if (trouble !== "rot") this.checkUndamaged();
      await this.strike(trouble);
      for (let i = 0; i < 300 && !world.allClean(); i++) await this.pause(100);
    }
    this.isOver = true;
  }
  /** Nothing rots here: a block that failed its checksum was torn by us. */
  private checkUndamaged(): void {
    for (const { id, daemon } of this.world.running.values()) {
      const bad = daemon.status().counters["corruptBlocks"] ?? 0;
      if (bad > 0) this.fail(`osd.${id} has met ${bad} damaged blocks`);
    }
  }
  private async strike(trouble: Exclude<Trouble, "mixed">): Promise<void> {
    const { random, world, primary } = this;
    switch (trouble) {
      case "power":
        this.crash("power cut", this.osds, 10 + random.float() * 300);
        return this.pause(500);
      case "lease":
        return this.pause(this.cutOff(random.pick(this.clients), primary, random.chance(0.4)));
      case "deposed": {
        this.note("freeze");
        const ms = world.config.cluster.zkSessionMs + 500 + random.float() * 2_000;
        world.freezeOsd(primary, ms);
        return this.pause(ms + 200);
      }
      case "retry": {
        for (let i = 0; i < 40; i++) {
          this.note("connection broken");
          world.network.breakBetween(random.pick(this.clients).host.name, `osd.${this.primary}`);
          await this.pause(random.float() * 60);
        }
        if (random.chance(0.5)) this.crash("crash", [this.primary], 100);
        return this.pause(200);
      }
      case "rot": {
        // Always of the first primary: the others keep good copies.
        for (let i = 0; i < 60; i++) {
          if (world.diskOf((this.victim ??= primary))?.rot?.("data") === true) {
            this.note("rotten bit");
          }
          await this.pause(random.float() * 60);
        }
        if (random.chance(0.5)) await this.rotWhileDown(this.victim!);
        return;
      }
      case "members":
        return this.changeMembers();
      case "learner": {
        const [member] = this.othersOf(primary);
        const ms = 100 + random.float() * 1_500;
        this.crash("crash", [random.chance(0.7) ? member! : primary], ms);
        return this.pause(ms);
      }
    }
  }

  /** What holds the objects together rots; it is met when the OSD starts. */
  private async rotWhileDown(victim: OsdId): Promise<void> {
    const { random, world } = this;
    world.crashOsd(victim);
    for (let i = random.int(1, 3); i > 0; i--) {
      const where = random.pick(["log", "index"] as const);
      if (world.diskOf(victim)?.rot?.(where) === true) this.note(`rotten bit in the ${where}`);
    }
    await this.pause(random.float() * 1_000);
    world.startOsd(victim);
    await this.pause(200);
  }
  /** By command; in half of the rounds somebody crashes meanwhile. */
  private async changeMembers(): Promise<void> {
    const { random, world } = this;
    const id = random.pick(this.osds);
    this.isQuiet = random.chance(0.5);
    if (!this.isQuiet) {
      const victim = random.pick(this.osds);
      world.clock.schedule(random.float() * 1_500, () => {
        this.crash("crash", [victim], 50 + random.float() * 1_500);
      });
    }
    const roll = random.float();
    if (this.osds.length <= REPLICAS || (roll < 0.3 && this.osds.length < 6)) {
      this.note("an OSD joins");
      const added = Math.max(...this.osds, ...this.destroyed) + 1;
      world.addDisk(added);
      world.startOsd(added);
      this.osds.push(added);
      await this.pause(random.float() * 2_000);
    } else if (roll < 0.6) await this.drain(id);
    else if (roll < 0.8) {
      this.note("an OSD is reweighted");
      await world.order({ op: "osdReweight", id, weight: random.pick([0.25, 0.5, 1, 2]) });
      await this.pause(random.float() * 2_000);
    } else {
      this.note("an OSD goes out and in");
      await world.order({ op: "osdOut", id });
      await this.pause(random.float() * 2_000);
      await world.order({ op: "osdIn", id });
    }
    if (!this.isQuiet) await this.pause(2_000); // Whoever is to crash has crashed.
    for (let i = 0; i < 600 && !world.allClean(); i++) await this.pause(100);
    this.isQuiet = false;
  }
  /** As `dss osd drain` and `dss osd rm` do it: when no set names it any more, it goes for good. */
  private async drain(id: OsdId): Promise<void> {
    const { world } = this;
    this.note("an OSD is drained");
    await world.order({ op: "osdOut", id });
    const isNamed = (): boolean => {
      return [...allPgs(world.map)].some(({ entry }) => entry.inSync.includes(id));
    };
    for (let i = 0; i < 3_000 && isNamed(); i++) await this.pause(100);
    if (isNamed()) return this.fail(`osd.${id} was not drained`);
    this.destroyed.add(id);
    this.osds = this.othersOf(id);
    world.destroyOsd(id);
    while (world.map.osds.some((osd) => osd.id === id && osd.up)) await this.pause(100);
    await world.order({ op: "osdRemove", id });
  }
  /** Where nobody fails, a planned change costs no PG a copy at any moment. */
  private checkSizes(before: ClusterMap, after: ClusterMap): void {
    const { loss, stall = 0, mdsLoss = 0 } = this.world.network.faults;
    if (!this.isQuiet || loss > 0 || stall > 0 || mdsLoss > 0) return;
    for (const { pg, entry } of allPgs(after)) {
      const had = pgOf(before, pg)?.inSync.length ?? 0;
      if (entry.inSync.length >= Math.min(had, REPLICAS)) continue;
      this.fail(`pg ${pg} went from ${had} to ${entry.inSync.length} copies without a failure`);
    }
  }

  /** What happens to those who decide: metadata servers and ZooKeeper. */
  private metadataFault(): void {
    const { random, world } = this;
    const id = random.chance(0.7) ? (world.leader?.id ?? 0) : random.int(0, 1);
    const name = `mds.${id}`;
    const roll = random.float();
    if (roll < 0.3) {
      this.note("crash of an MDS");
      world.crashMds(id);
      world.clock.schedule(100 + random.float() * 10_000, () => world.startMds(id));
    } else if (roll < 0.45) {
      this.note("freeze of an MDS");
      world.freeze(world.metadata.get(id)?.host, random.float() * 20_000);
    } else if (roll < 0.6) {
      this.note("MDS cut off from ZooKeeper");
      world.cut(name, ZK, random.float() * 15_000, random.pick(["both", "from", "to"]));
    } else if (roll < 0.7) {
      this.note("outage of ZooKeeper");
      world.zk.outage(random.float() * 20_000);
    } else if (roll < 0.85) {
      this.note("crash of a ZooKeeper server");
      world.zk.crashServer(random.int(0, 2), random.float() * 10_000);
    } else {
      this.note("ZooKeeper connections broken");
      for (const host of world.hostNames()) {
        if (random.chance(0.5)) world.zk.breakConnections(host);
      }
    }
  }
  private note(fault: string): void {
    this.counts[fault] = (this.counts[fault] ?? 0) + 1;
  }

  private crash(fault: string, ids: readonly OsdId[], downMs: number): void {
    this.note(fault);
    for (const id of ids) {
      if (!this.world.running.has(id)) continue;
      this.world.crashOsd(id);
      const ms = downMs * (0.5 + this.random.float());
      this.world.clock.schedule(ms, () => this.world.startOsd(id));
    }
  }

  /** A second member has just joined: what only the first one has is lost with it. */
  private strikeAtJoin(before: ClusterMap, after: ClusterMap): void {
    if (!this.faultsOn || this.working === 0) return;
    for (const { pg, entry } of allPgs(after)) {
      const old = pgOf(before, pg);
      if (old?.inSync.length !== 1 || entry.inSync.length !== 2) continue;
      const primary = entry.primary;
      if (!this.random.chance(0.5)) continue;
      this.world.clock.schedule(this.random.float() * 2, () => {
        this.crash("crash at a join", [primary], 3_000 + this.random.float() * 5_000);
      });
    }
  }

  /**
   * Everything was clean a moment ago; nothing else happens until the sets have gone on without it.
   */
  private destroy(id: OsdId): void {
    this.note("destroyed disk");
    this.destroyed.add(id);
    this.world.destroyOsd(id);
    this.faultsOn = false;
    const resume = (): void => {
      if (this.isOver) return; // Healing has begun.
      if ([...allPgs(this.world.map)].some(({ entry }) => entry.inSync.includes(id))) {
        this.world.clock.schedule(100, resume);
        return;
      }
      this.faultsOn = true;
    };
    resume();
  }

  // ——— Work ———

  private work(client: SimClient): void {
    this.working++;
    const next = async (): Promise<void> => {
      while (!this.isOver) {
        const register = this.pick();
        if (this.random.chance(0.5)) await this.write(client, register);
        else await this.read(client, register);
        this.done++;
        if (this.trouble === "mixed" && this.done >= this.operations) this.isOver = true;
        if (this.random.chance(0.5)) await this.pause(this.random.float() * this.paceMs);
      }
      this.working--;
    };
    this.guard(next());
  }
  /**
   * The OSD is about to be deposed: its old friend reads from it what everybody else goes on
   * changing.
   */
  private stare(friend: SimClient, osd: OsdId): void {
    const map = friend.maps.current();
    const registers: { object: number; block: number }[] = [];
    for (let object = 0; object < this.objects; object++) {
      const entry = pgOf(map, objectToPg(map, POOL, `r${object}`));
      if (entry?.primary === osd) registers.push({ object, block: 0 });
    }
    if (registers.length === 0 || !this.world.running.has(osd)) return;
    // In mixed trouble most of these find nothing: they are kept short.
    const ms = this.trouble === "mixed" ? 1_500 : 2_500;
    const until = this.world.clock.now + ms;
    const loop = async (work: () => Promise<void>): Promise<void> => {
      this.working++;
      while (this.world.clock.now < until && this.faultsOn) {
        await work();
        await this.pause(this.random.float() * 5);
      }
      this.working--;
    };
    const other = this.random.pick(this.clients.filter((client) => client !== friend));
    // Its writes to the deposed primary wait there, and its reads behind them: one or the other.
    const isWriter = this.random.chance(0.4);
    const ask = isWriter ? this.write.bind(this) : this.read.bind(this);
    this.guard(loop(() => ask(friend, this.random.pick(registers))));
    this.guard(loop(() => this.write(other, this.random.pick(registers))));
  }
  private pick(): { object: number; block: number } {
    const object = this.random.int(0, this.objects - 1);
    return { object, block: this.random.int(0, this.blocks - 1) };
  }
  private history({ object, block }: { object: number; block: number }): Operation[] {
    const key = `${object}/${block}`;
    let history = this.histories.get(key);
    if (history === undefined) this.histories.set(key, (history = []));
    return history;
  }

  private async write(
    client: SimClient,
    register: { object: number; block: number },
  ): Promise<void> {
    const value = this.nextValue++;
    const start = this.world.clock.now;
    const operation: Operation = { kind: "write", value, start, end: Infinity };
    this.history(register).push(operation);
    const data = Buffer.alloc(BLOCK_SIZE);
    for (let at = 0; at < BLOCK_SIZE; at += 4) data.writeUInt32LE(value, at);
    const address = { pool: POOL, object: `r${register.object}` };
    const offset = register.block * BLOCK_SIZE;
    const writing = client.objects.write(address, offset, [data], { ...ACCESS, mtimeNs: 1n });
    // Fenced or closed with its session: what became of the write is open for ever.
    if (await this.finished(writing)) operation.end = this.world.clock.now;
  }

  private async read(
    client: SimClient,
    register: { object: number; block: number },
  ): Promise<void> {
    const start = this.world.clock.now;
    const address = { pool: POOL, object: `r${register.object}` };
    const offset = register.block * BLOCK_SIZE;
    const found = await this.finished(client.objects.read(address, offset, BLOCK_SIZE, ACCESS));
    if (found === undefined) return;
    const { data } = found;
    const value = data.length === 0 ? 0 : data.readUInt32LE(0);
    for (let at = 0; at + 4 <= data.length; at += 4) {
      assert.equal(data.readUInt32LE(at), value, `a torn block of ${address.object}`);
    }
    this.history(register).push({ kind: "read", value, start, end: this.world.clock.now });
  }
  /** undefined when the client lost its session, and with it the right to what it asked. */
  private async finished<T>(work: Promise<T>): Promise<T | undefined> {
    try {
      return await work;
    } catch (error) {
      if (!isDssError(error) || !["Fenced", "NoSession", "ShuttingDown"].includes(error.code)) {
        throw error;
      }
      this.note("session lost");
      await this.pause(100);
      return undefined;
    }
  }

  // ——— Checks ———

  private async heal(): Promise<void> {
    const { world } = this;
    this.faultsOn = false;
    world.heal();
    world.network.faults = { delayMs: { min: 0.05, max: 0.2 }, loss: 0 };
    await this.until(() => this.working === 0, CLEAN_WITHIN_MS, "an operation never ended");
    await this.clean("the PGs did not become clean after healing");
  }
  private async clean(what: string): Promise<void> {
    const left = this.osds.filter((id) => !this.destroyed.has(id));
    const alive = (): boolean => left.every((id) => this.world.running.has(id));
    await this.until(() => alive() && this.world.allClean(), CLEAN_WITHIN_MS, what);
  }

  private async readAll(): Promise<void> {
    let left = this.objects * this.blocks;
    for (let object = 0; object < this.objects; object++) {
      for (let block = 0; block < this.blocks; block++) {
        this.guard(this.read(this.clients[0]!, { object, block }).then(() => void left--));
      }
    }
    await this.until(() => left === 0, 600_000, "an object could not be read at the end");
  }

  private async loseOneDisk(): Promise<void> {
    const ids = [...this.world.running.keys()];
    const id = this.random.pick(ids);
    this.destroyed.add(id);
    this.world.destroyOsd(id);
    await this.readAll();
  }

  private checkHistories(): void {
    for (const [register, history] of this.histories) {
      const fault = linearizabilityFault(history);
      assert.equal(fault, undefined, `register ${register}: ${fault}`);
    }
  }
}

/** Short sessions, so that a round is short; one PG, so that its primary is everybody's. */
const DIRECTED = { "pool.pgs": 1, zkSessionMs: 2_000, heartbeatGraceMs: 5_000, readLeaseMs: 1_000 };
const ACCESS = { truncation: { seq: 0, size: 0 }, minEpoch: 0 };
