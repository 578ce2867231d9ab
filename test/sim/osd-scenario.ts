/**
 * Random work on objects under faults, checked against a model: no acknowledged change is lost, no
 * read is wrong, replicas are equal in the end. Each object has one writer at a time, so its
 * content is known exactly; after a client crash the change it had under way may or may not have
 * happened, block by block.
 */
import { strict as assert } from "node:assert";
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import type { Logger } from "../../cluster/base/log.js";
import { ClusterWorld, type DiskFactory, type SimClient } from "./cluster-world.js";
import { ScenarioBase, WORK_WITHIN_MS } from "./scenario-base.js";

export interface ScenarioOptions {
  seed: number;
  disk: DiskFactory;
  /** Operations in all. */
  operations: number;
  logger?: Logger;
}
export interface ScenarioResult {
  simulatedMs: number;
  events: number;
  operations: number;
  osdCrashes: number;
  clientCrashes: number;
  brokenConnections: number;
}

const OBJECT_BYTES_MAX = 12 * BLOCK_SIZE;
const OBJECTS = 8;
const OSDS = 3;
const POOL = 1;

interface Content {
  exists: boolean;
  data: Buffer;
}

/** What one object must hold, and the truncation its writer knows. */
class ModelObject {
  content: Content = { exists: false, data: Buffer.alloc(0) };
  /** The content if the change under way takes effect. */
  pending: Content | undefined;
  /** Sizes that parts of the change may leave behind. */
  pendingSizes: number[] = [];
  truncation = { seq: 0, size: 0 };
  constructor(readonly name: string) {}
}

export async function runOsdScenario(options: ScenarioOptions): Promise<ScenarioResult> {
  const world = new ClusterWorld({
    seed: options.seed,
    osds: OSDS,
    disk: options.disk,
    ...(options.logger === undefined ? {} : { logger: options.logger }),
  });
  const scenario = new Scenario(world, options.operations);
  return scenario.run();
}

class Scenario extends ScenarioBase {
  private readonly objects: ModelObject[] = [];
  /** Undefined while the successor of a dead one has no session yet. */
  private client: SimClient | undefined;
  private minEpoch = 0;
  private done = 0;
  private running = 0;
  private osdCrashes = 0;
  private clientCrashes = 0;
  private faultsOn = true;

  constructor(
    world: ClusterWorld,
    private readonly operations: number,
  ) {
    super(world);
    for (let i = 0; i < OBJECTS; i++) this.objects.push(new ModelObject(`f${i}.0`));
  }

  async run(): Promise<ScenarioResult> {
    const { world } = this;
    await this.begin();
    this.client = await this.settled(world.startClient(), 60_000, "no session");
    world.network.faults = {
      delayMs: { min: 0.05, max: this.random.pick([0.2, 1, 5]) },
      loss: this.random.pick([0, 0.0005, 0.002]),
      duplicate: this.random.pick([0, 0.005, 0.05]),
    };
    for (const object of this.objects) this.work(object);
    this.scheduleFault();
    await this.until(() => this.done >= this.operations, WORK_WITHIN_MS, "the work never ended");
    await this.heal();
    await this.checkContents();
    this.checkReplicas();
    return {
      simulatedMs: world.clock.now,
      events: world.clock.events,
      operations: this.done,
      osdCrashes: this.osdCrashes,
      clientCrashes: this.clientCrashes,
      brokenConnections: world.network.broken,
    };
  }

  // ——— Faults ———

  private scheduleFault(): void {
    this.world.clock.schedule(this.random.float() * 4_000, () => {
      if (!this.faultsOn) return;
      const kind = this.random.float();
      if (kind < 0.5) this.bounce([this.random.int(0, OSDS - 1)]);
      else if (kind < 0.65) this.bounce([0, 1, 2]);
      else if (kind < 0.8) this.guard(this.replaceClient());
      this.scheduleFault();
    });
  }

  private bounce(ids: number[]): void {
    for (const id of ids) {
      if (!this.world.running.has(id)) continue;
      this.osdCrashes++;
      this.world.crashOsd(id);
      const ms = 10 + this.random.float() * 2_000;
      this.world.clock.schedule(ms, () => this.world.startOsd(id));
    }
  }

  /** The client dies; its successor has it fenced before it touches anything. */
  private async replaceClient(): Promise<void> {
    const dead = this.client;
    if (dead === undefined) return;
    this.clientCrashes++;
    this.client = undefined;
    const id = dead.mds.client;
    this.world.crashClient(dead);
    this.running = 1; // Itself: nothing is over before every object is settled.
    const [epoch, client] = await Promise.all([this.world.fence(id), this.world.startClient()]);
    this.minEpoch = epoch;
    this.client = client;
    await Promise.all(
      this.objects.map(async (object) => {
        const found = await this.fetch(client, object);
        if (client !== this.client) return;
        this.settle(object, found);
        this.work(object);
      }),
    );
    if (client === this.client) this.running--;
  }

  /** Decides what became of the change that the dead client had under way. */
  private settle(object: ModelObject, found: Content): void {
    if (object.pending === undefined) {
      this.compare(object, found, "after a client crash");
      return;
    }
    const before = object.content;
    const after = object.pending;
    const sizes = [before.data.length, after.data.length, ...object.pendingSizes];
    assert.ok(
      sizes.includes(found.data.length),
      `${object.name}: ${found.data.length} bytes, neither of ${sizes.join(", ")}`,
    );
    for (let at = 0; at < found.data.length; at += BLOCK_SIZE) {
      const end = Math.min(at + BLOCK_SIZE, found.data.length);
      const block = found.data.subarray(at, end);
      const old = blockOf(before.data, at, end);
      const new_ = blockOf(after.data, at, end);
      assert.ok(
        block.equals(old) || block.equals(new_),
        `${object.name}: the block at ${at} is neither old nor new`,
      );
    }
    object.content = found;
    object.pending = undefined;
    object.pendingSizes = [];
  }

  // ——— Work ———

  private work(object: ModelObject): void {
    const { client } = this;
    if (client === undefined) return;
    this.running++;
    const next = async (): Promise<void> => {
      while (client === this.client && this.done < this.operations && this.faultsOn) {
        await this.operate(client, object);
        this.done++;
        if (this.random.chance(0.3)) await this.pause(this.random.float() * 300);
      }
      if (client === this.client) this.running--;
    };
    this.guard(next());
  }

  private async operate(client: SimClient, object: ModelObject): Promise<void> {
    const kind = this.random.float();
    if (kind < 0.35) {
      const found = await this.fetch(client, object);
      if (client === this.client) this.compare(object, found, "read");
    } else if (kind < 0.65) await this.write(client, object);
    else if (kind < 0.75) await this.writeSeveral(client, object);
    else if (kind < 0.85) await this.zero(client, object);
    else if (kind < 0.95) await this.truncate(client, object);
    else await this.remove(client, object);
  }

  private async write(client: SimClient, object: ModelObject): Promise<void> {
    const aligned = this.random.chance(0.4);
    let offset = this.random.int(0, OBJECT_BYTES_MAX - 1);
    let length = this.random.int(1, Math.min(OBJECT_BYTES_MAX - offset, 6 * BLOCK_SIZE));
    if (aligned) {
      offset -= offset % BLOCK_SIZE;
      length = Math.min(Math.ceil(length / BLOCK_SIZE) * BLOCK_SIZE, OBJECT_BYTES_MAX - offset);
    }
    const bytes = this.random.bytes(length);
    const data = Buffer.alloc(Math.max(object.content.data.length, offset + length));
    object.content.data.copy(data);
    bytes.copy(data, offset);
    await this.change(client, object, { exists: true, data }, () =>
      client.objects.write(address(object), offset, [bytes], {
        ...this.access(object),
        mtimeNs: 1n,
      }),
    );
  }

  /** At once, each within blocks of its own: only the object's size is common to them. */
  private async writeSeveral(client: SimClient, object: ModelObject): Promise<void> {
    const writes: { offset: number; bytes: Buffer }[] = [];
    let data = object.content.data;
    object.pendingSizes = [];
    for (let block = this.random.int(0, 2); block < OBJECT_BYTES_MAX / BLOCK_SIZE;) {
      const blocks = Math.min(this.random.int(1, 3), OBJECT_BYTES_MAX / BLOCK_SIZE - block);
      const from = this.random.int(0, BLOCK_SIZE - 1);
      const bytes = this.random.bytes(this.random.int(1, blocks * BLOCK_SIZE - from));
      const offset = block * BLOCK_SIZE + from;
      writes.push({ offset, bytes });
      const grown = Buffer.alloc(Math.max(data.length, offset + bytes.length));
      data.copy(grown);
      bytes.copy(grown, offset);
      data = grown;
      object.pendingSizes.push(offset + bytes.length);
      block += blocks + this.random.int(0, 2);
    }
    const access = { ...this.access(object), mtimeNs: 1n };
    await this.change(client, object, { exists: true, data }, () =>
      Promise.all(
        writes.map(({ offset, bytes }) =>
          client.objects.write(address(object), offset, [bytes], access),
        ),
      ),
    );
  }

  private async zero(client: SimClient, object: ModelObject): Promise<void> {
    const offset = this.random.int(0, OBJECT_BYTES_MAX - 1);
    const length = this.random.int(1, OBJECT_BYTES_MAX - offset);
    const data = Buffer.from(object.content.data);
    data.fill(0, Math.min(offset, data.length), Math.min(offset + length, data.length));
    await this.change(client, object, { exists: object.content.exists, data }, () =>
      client.objects.zero(address(object), offset, length, {
        ...this.access(object),
        mtimeNs: 1n,
      }),
    );
  }

  /** The inode shrinks: later operations say so, and no one sees the bytes behind. */
  private async truncate(client: SimClient, object: ModelObject): Promise<void> {
    const { exists, data } = object.content;
    const size = this.random.int(0, OBJECT_BYTES_MAX);
    if (size >= data.length) return;
    // What the last truncation cut must be gone before a larger size could show it again.
    if (size > object.truncation.size)
      await client.objects.trim(address(object), this.access(object));
    if (client !== this.client) return;
    object.truncation = { seq: object.truncation.seq + 1, size };
    object.content = { exists, data: data.subarray(0, size) };
  }

  private async remove(client: SimClient, object: ModelObject): Promise<void> {
    await this.change(client, object, { exists: false, data: Buffer.alloc(0) }, () =>
      client.objects.remove(address(object), { ...this.access(object), unconditional: true }),
    );
  }

  private async change(
    client: SimClient,
    object: ModelObject,
    after: Content,
    work: () => Promise<unknown>,
  ): Promise<void> {
    object.pending = after;
    await work();
    if (client !== this.client) return; // It died meanwhile; `settle` decides.
    object.content = after;
    object.pending = undefined;
    object.pendingSizes = [];
  }

  private async fetch(client: SimClient, object: ModelObject): Promise<Content> {
    const { objects } = client;
    const read = await objects.read(address(object), 0, OBJECT_BYTES_MAX, this.access(object));
    return { exists: read.exists, data: Buffer.from(read.data) };
  }
  private access(object: ModelObject): {
    truncation: { seq: number; size: number };
    minEpoch: number;
  } {
    return { truncation: object.truncation, minEpoch: this.minEpoch };
  }

  // ——— Checks ———

  private compare(object: ModelObject, found: Content, when: string): void {
    const { data } = object.content;
    const where = firstDifference(found.data, data);
    assert.ok(
      where < 0,
      `${object.name} ${when}: ${found.data.length} bytes, ${data.length} expected, ` +
        `first difference at ${where}`,
    );
  }

  private async heal(): Promise<void> {
    this.faultsOn = false;
    this.world.network.faults = { delayMs: { min: 0.05, max: 0.2 }, loss: 0 };
    const all = (): boolean => this.world.running.size === OSDS && this.world.allActive();
    await this.until(all, 600_000, "the PGs did not become active again after healing");
    await this.until(() => this.running === 0, 600_000, "an operation never ended");
  }

  private async checkContents(): Promise<void> {
    let left = this.objects.length;
    for (const object of this.objects) {
      const check = async (): Promise<void> => {
        const found = await this.fetch(this.client!, object);
        this.compare(object, found, "at the end");
        left--;
      };
      this.guard(check());
    }
    await this.until(() => left === 0, 600_000, "an object could not be read at the end");
  }
}

function address(object: ModelObject): { pool: number; object: string } {
  return { pool: POOL, object: object.name };
}
function blockOf(data: Buffer, start: number, end: number): Buffer {
  const block = Buffer.alloc(end - start);
  data.copy(block, 0, Math.min(start, data.length), Math.min(end, data.length));
  return block;
}
function firstDifference(a: Buffer, b: Buffer): number {
  if (a.length === b.length && a.equals(b)) return -1;
  for (let i = 0; i < Math.max(a.length, b.length); i++) if (a[i] !== b[i]) return i;
  return -1;
}
