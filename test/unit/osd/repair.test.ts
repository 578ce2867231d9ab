/**
 * Damage under a cluster: a bad block is never returned; it is repaired from another member, in
 * place, wherever it is met; when every copy is damaged the client gets an error, never garbage.
 */
import t from "tap";
import { BLOCK_SIZE } from "../../../cluster/base/checksum.js";
import { DamageWorld } from "../../support/damage-world.js";

const OBJECT = "1.0";
const bytes = (fill: number, blocks = 1): Buffer => Buffer.alloc(blocks * BLOCK_SIZE, fill);

async function worldWith(data: Buffer, osds = 3): Promise<DamageWorld> {
  const world = new DamageWorld({ osds });
  await world.start();
  await world.write(OBJECT, 0, data);
  return world;
}

t.test("a read that meets damage on the primary answers right bytes and repairs it", async (t) => {
  const data = Buffer.concat([bytes(1), bytes(2), bytes(3, 4)]);
  const world = await worldWith(data);
  const { primary } = world.entry(OBJECT);
  world.damage(OBJECT, BLOCK_SIZE, [primary]);
  world.damage(OBJECT, 4 * BLOCK_SIZE, [primary]);
  t.same(await world.read(OBJECT, 0, data.length), data);
  t.same(await world.badBlocks(OBJECT, primary), [], "repaired in place");
  t.equal(world.counter(primary, "damagedBlocks"), 2, "counted once");
  t.equal(world.counter(primary, "repairedBlocks"), 2);
  t.same(world.damagedObjects(OBJECT, primary), []);
  t.same(await world.read(OBJECT, BLOCK_SIZE, 1), bytes(2).subarray(0, 1));
  t.equal(world.counter(primary, "damagedBlocks"), 2);
});

t.test("every copy has other blocks damaged: each helps the others", async (t) => {
  const data = Buffer.concat([bytes(1), bytes(2), bytes(3), bytes(4)]);
  const world = await worldWith(data);
  const { inSync } = world.entry(OBJECT);
  inSync.forEach((osd, i) => world.damage(OBJECT, i * BLOCK_SIZE, [osd]));
  inSync.forEach((osd, i) => world.damage(OBJECT, ((i + 1) % 3) * BLOCK_SIZE, [osd]));
  t.same(await world.read(OBJECT, 0, data.length), data);
});

t.test("a partial write repairs the block it must read; a whole one needs nothing", async (t) => {
  const world = await worldWith(bytes(1, 3));
  const { primary } = world.entry(OBJECT);
  world.damage(OBJECT, BLOCK_SIZE, [primary]);
  await world.write(OBJECT, BLOCK_SIZE + 10, Buffer.from("new"));
  const expected = bytes(1, 3);
  expected.write("new", BLOCK_SIZE + 10);
  t.same(await world.read(OBJECT, 0, 3 * BLOCK_SIZE), expected);
  t.equal(world.counter(primary, "repairedBlocks"), 1);
  world.damage(OBJECT, 0, world.entry(OBJECT).inSync);
  await world.write(OBJECT, 0, bytes(7));
  t.same(await world.read(OBJECT, 0, BLOCK_SIZE), bytes(7));
  t.equal(world.counter(primary, "damagedBlocks"), 1, "nobody read the damaged one");
});

t.test("all copies damaged: an error with the object named, until it is overwritten", async (t) => {
  const world = await worldWith(bytes(1, 3));
  const { inSync, primary } = world.entry(OBJECT);
  world.damage(OBJECT, BLOCK_SIZE, inSync);
  await t.rejects(world.read(OBJECT, 0, 3 * BLOCK_SIZE), { code: "Corrupt", message: /1\.0/ });
  await t.rejects(world.write(OBJECT, BLOCK_SIZE + 1, Buffer.from("x")), { code: "Corrupt" });
  t.same(await world.read(OBJECT, 0, BLOCK_SIZE), bytes(1), "its other blocks are served");
  t.same(world.damagedObjects(OBJECT, primary), [OBJECT]);
  await world.write(OBJECT, BLOCK_SIZE, bytes(9));
  t.same(await world.read(OBJECT, BLOCK_SIZE, BLOCK_SIZE), bytes(9));
});

t.test("a good copy on a member that is away is waited for", async (t) => {
  const world = await worldWith(bytes(1, 2));
  const { primary } = world.entry(OBJECT);
  const [second, third] = world.replicas(OBJECT) as [number, number];
  world.damage(OBJECT, 0, [primary, second]);
  world.world.crashOsd(third);
  const found = world.read(OBJECT, 0, BLOCK_SIZE);
  let isSettled = false;
  found.then(
    () => (isSettled = true),
    () => (isSettled = true),
  );
  await world.world.clock.advance(1_000);
  t.equal(isSettled, false, "neither garbage nor an error as long as it may come back");
  world.world.startOsd(third);
  t.same(await found, bytes(1));
});

t.test("recovery of a new member takes right bytes from wherever they are", async (t) => {
  const world = new DamageWorld({ osds: 4 });
  await world.start([0, 1, 2]);
  const data = Buffer.concat([bytes(1), bytes(2), bytes(3)]);
  for (let i = 0; i < 6; i++) await world.write(`${i}.0`, 0, data);
  for (let i = 0; i < 6; i++) {
    const { primary, inSync } = world.entry(`${i}.0`);
    world.damage(`${i}.0`, BLOCK_SIZE, [primary]);
    world.damage(`${i}.0`, 2 * BLOCK_SIZE, inSync);
  }
  world.world.startOsd(3);
  await world.until("PGs moved to it", () => world.world.allClean());
  for (let i = 0; i < 6; i++) {
    const object = `${i}.0`;
    t.same(await world.read(object, 0, 2 * BLOCK_SIZE), data.subarray(0, 2 * BLOCK_SIZE));
    await t.rejects(world.read(object, 2 * BLOCK_SIZE, 1), { code: "Corrupt" }, object);
    for (const osd of world.entry(object).inSync) {
      const bad = await world.badBlocks(object, osd);
      t.notOk(bad.includes(BLOCK_SIZE) && osd === 3, `${object} on osd.${osd}`);
      t.ok(bad.includes(2 * BLOCK_SIZE), "what nobody has is damaged there, too");
    }
  }
});
