/**
 * An image that outlives its servers: the real server over a memory image behind connections that
 * are cut, also in the middle of requests, and what the client sees of it.
 */
import t from "tap";
import { DssError } from "../../../cluster/base/errors.js";
import { silentLogger } from "../../../cluster/base/log.js";
import { Prng } from "../../../cluster/base/prng.js";
import { nodeClock } from "../../../cluster/platform/node.js";
import type { BlockImage } from "../../../nbd/block-image.js";
import { ClientHandshake } from "../../../nbd/client-handshake.js";
import { ReplyDecoder } from "../../../nbd/client-replies.js";
import { RelayImage } from "../../../nbd/relay-image.js";
import { NbdServer } from "../../../nbd/server.js";
import { askFacts, Upstream } from "../../../nbd/upstream.js";
import { MemoryDirectory, MemoryImage } from "./memory-image.js";
import { PairedNetwork } from "./paired-network.js";

const MIB = 1024 * 1024;
const SIZE = 8 * MIB;
const BUFFERED = { fua: false };
const target = { address: { path: "/server" }, name: "disk" };
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
const turns = async (count: number): Promise<void> => {
  for (let i = 0; i < count; i++) await turn();
};

/** Servers of one image, one after the other, and the relay that uses them. */
class World {
  readonly disk = new MemoryImage({ name: "disk", size: SIZE });
  readonly network = new PairedNetwork();
  refusing = 0;
  broken: DssError[] = [];
  readonly relay = new RelayImage({ name: "disk", onRefusing: () => this.refusing++ });
  server: NbdServer | undefined;
  private upstream: Upstream | undefined;

  async begin(): Promise<void> {
    this.server = new NbdServer({
      ...{ network: this.network, clock: nodeClock, log: silentLogger },
      directory: new MemoryDirectory([this.disk]),
    });
    await this.server.listen({ path: "/server" });
    await new Promise<void>((resolve, reject) => {
      const opened = Upstream.connect(this.network, target, {
        ready: (facts) => {
          const upstream = this.upstream!;
          this.relay.connect({ send: (chunks) => upstream.send(chunks) }, facts);
          resolve();
        },
        reply: (chunk) => this.relay.onReply(chunk),
        broken: (error) => this.broken.push(error),
      });
      opened.then((upstream) => (this.upstream = upstream), reject);
    });
  }
  /** `kill -9`: what the server had taken may still take effect, and nobody hears of it. */
  kill(): void {
    this.relay.disconnect();
    this.upstream?.close();
    this.network.cut();
  }
}

async function bytesOf(image: BlockImage, offset: number, length: number): Promise<Buffer> {
  return Buffer.concat(await image.read(offset, length));
}

t.test("every operation goes through, with its flags and its failures", async (t) => {
  const world = new World();
  const { relay, disk } = world;
  t.throws(() => relay.size, { code: "Unreachable" });
  await world.begin();
  disk.recording = true;
  t.equal(relay.size, SIZE);
  t.same(relay.blockSize, disk.blockSize);
  const bytes = new Prng(1).bytes(3 * MIB);
  await relay.write(1000, bytes, { fua: true });
  t.ok((await bytesOf(relay, 1000, bytes.length)).equals(bytes));
  t.equal((await bytesOf(relay, 0, 1000)).length, 1000, "holes are zeros of the right length");
  await relay.zero(4096, 8192, { fua: false, mayTrim: false, fast: false });
  await relay.trim(65_536, 65_536, BUFFERED);
  await relay.cache(0, 10);
  await relay.flush();
  const extents = await relay.status(0, SIZE, 100);
  t.match(extents[0], { length: 65_536, hole: false });
  t.match(extents[1], { length: 65_536, hole: true, zero: true });
  t.equal((await relay.status(0, SIZE, 2)).length, 2);
  t.same(disk.calls.slice(0, 1), [`write 1000+${bytes.length} fua`]);
  for (const call of ["zero 4096+8192 no-hole", "trim 65536+65536", "cache 0+10", "flush"]) {
    t.ok(disk.calls.includes(call), call);
  }
  const slow = relay.zero(1, 4096, { fua: false, mayTrim: true, fast: true });
  await t.rejects(slow, { code: "NotSupported" });
  disk.badBlock = 2;
  const parts = await relay.readParts(MIB / 16, MIB / 4);
  t.same(
    parts.map((part) => [part.length, "failure" in part]),
    [
      [65_536, false],
      [65_536, true],
      [131_072, false],
    ],
  );
  disk.fault = new DssError("NoSpace", "full");
  await t.rejects(relay.write(0, Buffer.alloc(10), BUFFERED), { code: "NoSpace", message: "full" });
  disk.fault = new DssError("Corrupt", "bad");
  await t.rejects(relay.flush(), { code: "Disk", message: "bad" });
  t.same((await askFacts(world.network, target)).size, SIZE);
});

t.test(
  "what a killed server has not answered is sent to the next one, once, in order",
  async (t) => {
    const world = new World();
    const { relay, disk } = world;
    await world.begin();
    disk.recording = true;
    disk.gate = () => new Promise(() => undefined); // It hangs.
    const answered: string[] = [];
    const note = (name: string) => () => answered.push(name);
    const all = [
      relay.write(0, Buffer.alloc(4096, 1), BUFFERED).then(note("a")),
      relay.write(2048, Buffer.alloc(4096, 2), BUFFERED).then(note("b")),
      relay.read(100_000, 10).then(note("read")),
      relay.flush().then(note("flush")),
    ];
    await turns(20);
    t.same(disk.calls, ["write 0+4096", "read 100000+10", "flush"], "overlapping changes wait");
    world.kill();
    await turns(20);
    const later = relay.write(500_000, Buffer.alloc(10, 3), BUFFERED).then(note("later"));
    t.same(answered, []);
    t.equal(relay.waiting, 4);
    disk.calls.length = 0;
    disk.gate = undefined;
    await world.begin();
    await Promise.all([...all, later]);
    t.same(disk.calls.slice(0, 3), ["write 0+4096", "read 100000+10", "flush"]);
    t.ok(disk.calls.indexOf("write 2048+4096") > disk.calls.indexOf("write 0+4096"));
    t.equal(disk.bytes[2048], 2, "the later one won");
    t.equal(relay.waiting, 0);
  },
);

t.test("a server that is ending has answered nothing; after the end all fails", async (t) => {
  const world = new World();
  const { relay, disk } = world;
  await world.begin();
  disk.fault = new DssError("Fenced", "another one has it");
  let settled = false;
  const write = relay.write(0, Buffer.alloc(10, 7), BUFFERED).finally(() => (settled = true));
  await turns(30);
  t.equal(world.refusing, 1);
  t.notOk(settled, "it waits for the next server");
  world.kill();
  disk.fault = undefined;
  await world.begin();
  await write;
  t.equal(disk.bytes[0], 7);
  world.kill();
  const lost = relay.flush();
  relay.end(new DssError("Fenced", "lost"));
  await t.rejects(lost, { code: "Fenced" });
  await t.rejects(relay.read(0, 1), { code: "Fenced" });
  await world.begin();
  await t.rejects(relay.read(0, 1), { code: "Fenced" }, "for good");
});

t.test("random requests over servers that are killed all the time", async (t) => {
  const BLOCK = 4096;
  const BLOCKS = SIZE / BLOCK;
  for (let seed = 1; seed <= 3; seed++) {
    const prng = new Prng(seed);
    const world = new World();
    const { relay, disk } = world;
    await world.begin();
    // Answers come late and out of order, so that every cut finds some under way.
    disk.gate = async () => turns(prng.int(0, 6));
    const model = Buffer.alloc(SIZE);
    /** Blocks with a change under way: what they hold is not known. */
    const busy = new Set<number>();
    const work = new Set<Promise<void>>();
    const one = async (): Promise<void> => {
      const first = prng.int(0, BLOCKS - 32);
      const count = prng.int(1, 32);
      const blocks = Array.from({ length: count }, (_, i) => first + i);
      if (blocks.some((block) => busy.has(block))) return;
      const [offset, length] = [first * BLOCK, count * BLOCK];
      const kind = prng.int(0, 3);
      if (kind === 0) {
        const expected = Buffer.from(model.subarray(offset, offset + length));
        for (const block of blocks) busy.add(block); // Nobody may change it meanwhile.
        const found = await bytesOf(relay, offset, length);
        if (!found.equals(expected)) t.fail(`seed ${seed}: other bytes at ${offset}`);
      } else {
        for (const block of blocks) busy.add(block);
        const data = kind === 1 ? Buffer.alloc(length) : prng.bytes(length);
        if (kind === 1) await relay.trim(offset, length, BUFFERED);
        else await relay.write(offset, data, BUFFERED);
        data.copy(model, offset);
      }
      for (const block of blocks) busy.delete(block);
    };
    for (let i = 0; i < 400; i++) {
      const running: Promise<void> = one().finally(() => work.delete(running));
      work.add(running);
      if (work.size > 16) await turn();
      if (prng.int(0, 40) === 0) {
        world.kill();
        await turns(8); // Of the old one: it is dead, and what it did is done.
        await world.begin();
      }
    }
    await Promise.all(work);
    t.ok(disk.bytes.equals(model), `seed ${seed}`);
    t.equal(relay.waiting, 0);
  }
});

t.test("garbage from a server is refused, whatever it is", (t) => {
  for (let seed = 1; seed <= 2_000; seed++) {
    const prng = new Prng(seed);
    const decoder = new ReplyDecoder();
    const head = Buffer.alloc(32);
    head.writeUInt32BE(0x6e8a278c, 0);
    head.writeUInt16BE(prng.int(0, 1), 4);
    head.writeUInt16BE(prng.pick([0, 1, 2, 5, 6, 0x8001, 0x8002, 9]), 6);
    head.writeUInt32BE(prng.int(0, 4) === 0 ? prng.int(0, 2 ** 31) : 0, 24);
    head.writeUInt32BE(prng.int(0, 3) === 0 ? prng.int(0, 2 ** 31) : prng.int(0, 64), 28);
    const bytes = Buffer.concat([head, prng.bytes(64)]);
    try {
      for (let at = 0; at < bytes.length;) {
        const end = Math.min(bytes.length, at + 1 + prng.int(0, 40));
        decoder.push(bytes.subarray(at, end));
        while (decoder.next() !== undefined);
        at = end;
      }
      const handshake = new ClientHandshake("disk");
      handshake.push(prng.bytes(prng.int(0, 100)));
    } catch (error) {
      if (!(error instanceof DssError)) throw error;
    }
  }
  t.pass("2,000 seeds");
  t.end();
});
