/** Volumes over objects: a model of plain bytes, every layout, and many requests at once. */
import t from "tap";
import { DssError } from "../../../cluster/base/errors.js";
import { Prng } from "../../../cluster/base/prng.js";
import type { Clock } from "../../../cluster/platform/ports.js";
import type { Volume } from "../../../mds/proto.js";
import { VolumeImage } from "../../../nbd/image.js";
import { RangeOrder } from "../../../nbd/range-order.js";
import type { StripeLayout } from "../../../osd/client/striper.js";
import { MemoryObjects } from "./memory-objects.js";

const KIB = 1024;
const clock = { wallNs: () => 7n } as Clock;
const LAYOUTS: Record<string, StripeLayout> = {
  plain: { objectSize: 64 * KIB, stripeUnit: 64 * KIB, stripeCount: 1 },
  striped: { objectSize: 64 * KIB, stripeUnit: 8 * KIB, stripeCount: 3 },
  "units in one object": { objectSize: 32 * KIB, stripeUnit: 4 * KIB, stripeCount: 1 },
};
// Not a multiple of the object size, of a set of objects, nor of a stripe.
const SIZE = 500 * KIB + 4096;

function volumeOf(layout: StripeLayout, size = SIZE): Volume {
  return {
    id: 5,
    name: "disk",
    size,
    layout: { pool: 3, ...layout },
    createdNs: 0n,
    objectPrefix: "v5",
    features: [],
    ...{ snapSeq: 0, snapshots: [], rollbackTo: 0, snapshot: 0 },
    ...{ parent: null, ancestors: [], children: [], isFlattening: false },
    owner: "",
    ownerClient: 0,
    revision: 1,
    shrinkTo: 0,
    iopsLimit: 0,
    bandwidthLimit: 0,
    ownerSinceNs: 0n,
    writer: { client: 0, sinceNs: 0n, holder: "" },
  };
}
function imageOf(layout: StripeLayout, size = SIZE) {
  const access = new MemoryObjects(layout.objectSize);
  const volume = volumeOf(layout, size);
  const image = new VolumeImage({ volume, access, clock, readOnly: false, minEpoch: 42 });
  return { access, image };
}
const plain = LAYOUTS["plain"]!;
/** Lets everything that can go on without help go on. */
const settle = () => new Promise((resolve) => setImmediate(resolve));

for (const [name, layout] of Object.entries(LAYOUTS)) {
  t.test(`${name}: equals plain bytes under random requests of any alignment`, async (t) => {
    const seed = Number(process.env["DSS_SEED"] ?? 11);
    const random = new Prng(seed);
    const { access, image } = imageOf(layout);
    const model = Buffer.alloc(SIZE);
    for (let step = 0; step < 600; step++) {
      const long = random.int(0, 9) === 0;
      const length = random.int(0, 9) === 0 ? 1 : random.int(1, long ? SIZE : 40 * KIB);
      const offset = random.int(0, SIZE - length);
      const end = offset + length;
      switch (random.int(0, 5)) {
        case 0: {
          await image.zero(offset, length, { mayTrim: random.int(0, 1) === 0 });
          model.fill(0, offset, end);
          break;
        }
        case 1: {
          await image.trim(offset, length);
          // Undefined by the protocol: whatever it is now, it stays.
          const now = Buffer.concat(await image.read(offset, length));
          const fault = now.findIndex((byte, at) => byte !== 0 && byte !== model[offset + at]);
          t.equal(fault, -1, "trimmed bytes are old or zero");
          now.copy(model, offset);
          break;
        }
        case 2:
        case 3: {
          const data = random.bytes(length);
          await image.write(offset, data);
          data.copy(model, offset);
          break;
        }
        default: {
          const bytes = Buffer.concat(await image.read(offset, length));
          if (!bytes.equals(model.subarray(offset, end))) {
            t.fail(`step ${step} of seed ${seed}: read ${offset}+${length} differs`);
            return;
          }
        }
      }
    }
    t.ok(Buffer.concat(await image.read(0, SIZE)).equals(model), `seed ${seed}`);
    t.equal(access.minEpoch, 42, "fences are seen");
    await image.trim(0, SIZE);
    t.equal(access.objects.size, 0, "a volume that is trimmed whole keeps no object");
  });

  t.test(`${name}: requests at the same time`, async (t) => {
    const random = new Prng(5);
    const { access, image } = imageOf(layout);
    access.gate = async () => {
      for (let turns = random.int(0, 5); turns > 0; turns--) await settle();
    };
    const model = Buffer.alloc(SIZE);
    const running: Promise<void>[] = [];
    for (let step = 0; step < 200; step++) {
      const length = random.int(1, 50 * KIB);
      const offset = random.int(0, SIZE - length);
      // Overlapping changes take effect in the order of their arrival.
      if (random.int(0, 3) === 0) {
        running.push(image.zero(offset, length, { mayTrim: true }));
        model.fill(0, offset, offset + length);
      } else {
        const data = random.bytes(length);
        running.push(image.write(offset, data));
        data.copy(model, offset);
      }
      if (step % 7 === 0) await settle();
    }
    t.ok(access.runningMax > 4, `${access.runningMax} operations at once`);
    await Promise.all(running);
    t.equal(access.running, 0);
    t.ok(Buffer.concat(await image.read(0, SIZE)).equals(model));
  });
}

t.test("one operation per object, however it is striped", async (t) => {
  const { access, image } = imageOf(LAYOUTS["striped"]!);
  await image.write(4 * KIB, Buffer.alloc(100 * KIB, 1));
  t.same(access.calls, ["write v5.0 4096+36864", "write v5.1 0+32768", "write v5.2 0+32768"]);
  access.calls.length = 0;
  await image.read(4 * KIB, 100 * KIB);
  t.same(access.calls, ["read v5.0 4096+36864", "read v5.1 0+32768", "read v5.2 0+32768"]);
});

t.test("holes are zeros, and cost no memory", async (t) => {
  const layout = { objectSize: 4096 * KIB, stripeUnit: 4096 * KIB, stripeCount: 1 };
  const { image } = imageOf(layout, 64 * 1024 * KIB);
  const pieces = await image.read(0, 32 * 1024 * KIB);
  t.equal(
    pieces.reduce((sum, piece) => sum + piece.length, 0),
    32 * 1024 * KIB,
  );
  t.equal(new Set(pieces.map((piece) => piece.buffer)).size, 1, "one buffer for all of them");
  t.ok(pieces.every((piece) => piece.every((byte) => byte === 0)));
});

t.test("trim and zero give back whole objects and blocks", async (t) => {
  const { access, image } = imageOf(plain);
  await image.write(0, Buffer.alloc(SIZE, 1));
  access.calls.length = 0;
  await image.trim(64 * KIB - 1000, 128 * KIB + 2000);
  t.same(access.calls, ["remove v5.1", "remove v5.2"], "less than a block is left alone");
  access.calls.length = 0;
  await image.trim(1000, 10_000);
  t.same(access.calls, ["zero v5.0 4096+4096"]);
  access.calls.length = 0;
  await image.zero(1000, 10_000, { mayTrim: true });
  t.same(access.calls, ["zero v5.0 1000+10000"], "zeros are exact");
  access.calls.length = 0;
  await image.zero(448 * KIB, SIZE - 448 * KIB, { mayTrim: true });
  t.same(access.calls, ["remove v5.7"], "the last object is short");
  access.calls.length = 0;
  await image.zero(0, 65 * KIB, { mayTrim: false });
  t.same(access.calls, ["write v5.0 0+65536", "write v5.1 0+1024"], "no hole: written out");
});

t.test("a trim of gigabytes runs a bounded number of operations", async (t) => {
  const size = 4 * 1024 * 1024 * KIB - 4096;
  const layout = { objectSize: 4096 * KIB, stripeUnit: 4096 * KIB, stripeCount: 1 };
  const { access, image } = imageOf(layout, size);
  access.gate = settle as () => Promise<void>;
  await image.trim(0, size);
  t.equal(access.calls.length, 1024);
  t.ok(access.runningMax <= 32, `${access.runningMax} at once`);
});

t.test("a failure is answered when nothing of the request is under way any more", async (t) => {
  const { access, image } = imageOf(plain);
  let release = (): void => undefined;
  access.gate = (call) => {
    if (call.startsWith("write v5.0")) return Promise.reject(new DssError("NoSpace", "full"));
    return new Promise((resolve) => (release = resolve));
  };
  let answered = false;
  const writing = image.write(60 * KIB, Buffer.alloc(8 * KIB)).finally(() => (answered = true));
  await settle();
  t.equal(answered, false, "the other object still uses the buffer");
  release();
  await t.rejects(writing, { code: "NoSpace" });
  access.gate = () => Promise.reject(new DssError("Fenced", "fenced"));
  await t.rejects(image.zero(0, SIZE, { mayTrim: true }), { code: "Fenced" });
  access.gate = undefined;
  await t.resolves(image.write(60 * KIB, Buffer.alloc(8 * KIB, 1)), "the range is free again");
});

t.test("overlapping writes wait for each other, others do not", async (t) => {
  const { access, image } = imageOf(plain);
  const gates: (() => void)[] = [];
  access.gate = () => new Promise((resolve) => gates.push(resolve));
  const first = image.write(0, Buffer.alloc(8 * KIB, 1));
  const second = image.write(4 * KIB, Buffer.alloc(8 * KIB, 2));
  const apart = image.write(32 * KIB, Buffer.alloc(KIB, 3));
  await settle();
  t.same(access.calls, ["write v5.0 0+8192", "write v5.0 32768+1024"]);
  gates[0]!();
  await first;
  await settle();
  t.equal(access.calls[2], "write v5.0 4096+8192");
  gates[1]!();
  gates[2]!();
  await Promise.all([second, apart]);
  access.gate = undefined;
  const bytes = Buffer.concat(await image.read(0, 12 * KIB));
  t.ok(bytes.equals(Buffer.concat([Buffer.alloc(4 * KIB, 1), Buffer.alloc(8 * KIB, 2)])));
});

t.test("a lost volume answers nothing, not even what was under way", async (t) => {
  const { access, image } = imageOf(plain);
  await image.write(0, Buffer.alloc(KIB, 1));
  const gates: (() => void)[] = [];
  access.gate = () => new Promise((resolve) => gates.push(resolve));
  const reading = image.read(0, KIB);
  const writing = image.write(0, Buffer.alloc(KIB, 2));
  const waiting = image.write(0, Buffer.alloc(KIB, 3));
  await settle();
  image.lose(new DssError("NoSession", "evicted"));
  for (const open of gates) open();
  const lost = { code: "Fenced", nbd: 108, message: /disk is no longer ours/ };
  await t.rejects(reading, lost);
  await t.resolves(writing, "it had taken effect before");
  await t.rejects(waiting, lost);
  await t.rejects(image.read(0, 1), lost);
  await t.rejects(image.write(0, Buffer.alloc(1)), lost);
  await t.rejects(image.zero(0, 1, { mayTrim: false }), lost);
  await t.rejects(image.trim(0, 1), lost);
  await t.rejects(image.flush(), lost);
});

t.test("range order forgets what has ended", async (t) => {
  const order = new RangeOrder();
  await t.rejects(order.run(0, 10, () => Promise.reject(new Error("no"))));
  t.equal(await order.run(5, 10, () => Promise.resolve(3)), 3);
  await settle();
  t.equal(order.size, 0);
});

for (const [name, layout] of Object.entries(LAYOUTS)) {
  t.test(`${name}: block status covers every range, and holes read as zeros`, async (t) => {
    const random = new Prng(5);
    const { image } = imageOf(layout);
    for (let i = 0; i < 12; i++) {
      const length = random.int(1, 30 * KIB);
      await image.write(random.int(0, SIZE - length), Buffer.alloc(length, 1));
    }
    const model = Buffer.concat(await image.read(0, SIZE));
    for (let round = 0; round < 20; round++) {
      const length = random.int(1, SIZE);
      const offset = random.int(0, SIZE - length);
      const extents = await image.status(offset, length, 1000);
      let at = offset;
      let before: boolean | undefined;
      for (const { length: bytes, hole, zero } of extents) {
        t.ok(bytes > 0 && hole === zero && hole !== before);
        const data = model.subarray(at, at + bytes);
        if (zero && data.some((byte) => byte !== 0)) t.fail(`data in a hole at ${at}`);
        if (!zero && !data.some((byte) => byte !== 0)) t.fail(`a hole taken for data at ${at}`);
        before = hole;
        at += bytes;
      }
      t.equal(at, offset + length, "to its end");
      const few = await image.status(offset, length, 2);
      t.same(few, extents.slice(0, 2), "or as far as asked");
    }
  });
}

t.test("block status of a huge volume looks at a bounded number of objects", async (t) => {
  const { access, image } = imageOf(plain, 2 ** 50);
  await image.write(100 * KIB, Buffer.alloc(4096, 1));
  access.calls.length = 0;
  const extents = await image.status(64 * KIB, 2 ** 49, 1000);
  t.equal(access.calls.length, 1024);
  t.ok(access.runningMax <= 16);
  t.match(extents, [
    { length: 36 * KIB, hole: true },
    { length: 4 * KIB, hole: false },
    { hole: true, zero: true },
  ]);
  const { access: thin, image: striped } = imageOf(
    { objectSize: 4096 * KIB, stripeUnit: 4 * KIB, stripeCount: 2 },
    2 ** 50,
  );
  const [hole] = await striped.status(0, 2 ** 40, 1000);
  t.equal(hole!.length, 65_536 * 4 * KIB, "nor at more pieces than fit into memory");
  t.ok(thin.calls.length <= 1024);
});

t.test("objects that cannot be read spoil their own parts only", async (t) => {
  const { access, image } = imageOf(plain);
  await image.write(0, Buffer.alloc(192 * KIB, 3));
  const fail = (error: Error, which: RegExp) => {
    access.gate = (call) => (which.test(call) ? Promise.reject(error) : Promise.resolve());
  };
  const corrupt = new DssError("Corrupt", "no good copy");
  fail(corrupt, /read v5\.0*1 /);
  const parts = await image.readParts(1000, 150 * KIB);
  t.match(parts, [
    { length: 64 * KIB - 1000 },
    { length: 64 * KIB, failure: corrupt },
    { length: 22 * KIB + 1000 },
  ]);
  t.ok("pieces" in parts[0]! && "pieces" in parts[2]!);
  await t.rejects(image.read(1000, 150 * KIB), { code: "Corrupt" }, "a plain read fails");
  fail(corrupt, /read/);
  await t.rejects(image.readParts(0, 128 * KIB), { code: "Corrupt" }, "nothing is to be had");
  fail(new DssError("Fenced", "another owner"), /read v5\.0*1 /);
  await t.rejects(image.readParts(0, 128 * KIB), { code: "Fenced" }, "nothing is to be believed");
});

t.test("zeros are fast where whole blocks become holes, and else refused at once", async (t) => {
  const { access, image } = imageOf(plain);
  await image.zero(4096, 8192, { mayTrim: true, fast: true });
  await image.zero(SIZE - 4096, 4096, { mayTrim: true, fast: true });
  access.calls.length = 0;
  const slow = { code: "NotSupported" };
  await t.rejects(image.zero(1, 8192, { mayTrim: true, fast: true }), slow);
  await t.rejects(image.zero(0, 100, { mayTrim: true, fast: true }), slow);
  await t.rejects(image.zero(0, 4096, { mayTrim: false, fast: true }), slow);
  t.same(access.calls, [], "nothing has been changed");
});

t.test("cache reads a bounded part, piece by piece", async (t) => {
  const large = { objectSize: 4096 * KIB, stripeUnit: 4096 * KIB, stripeCount: 1 };
  const { access, image } = imageOf(large, 2 ** 40);
  await image.write(0, Buffer.alloc(4096 * KIB, 1));
  access.calls.length = 0;
  access.runningMax = 0;
  await image.cache(0, 2 ** 39);
  t.equal(access.calls.length, 4 + 7, "a missing object takes one question");
  t.equal(access.runningMax, 1);
});

t.test("the end of 16 EiB is as good as the beginning", async (t) => {
  const size = 2 ** 64 - 4096;
  for (const layout of Object.values(LAYOUTS)) {
    const { access, image } = imageOf(layout, size);
    t.equal(image.blockSize.minimum, 4096, "such offsets are exact only as blocks");
    const length = 40 * KIB;
    const offset = size - length;
    const data = Buffer.from(Array.from({ length }, (_, index) => index % 251));
    await image.write(offset, data);
    t.same(Buffer.concat(await image.read(offset, length)), data);
    const before = Buffer.concat(await image.read(offset - length, length));
    t.ok(before.equals(Buffer.alloc(length)), "nothing else was written");
    const highest = BigInt(size) / BigInt(layout.objectSize);
    for (const object of access.objects.keys()) {
      const index = BigInt(`0x${object.split(".")[1]!}`);
      t.ok(highest - index < 16n && index - highest < 16n, object);
    }
    const [hole, end] = await image.status(offset - 8192, 8192 + length, 2);
    t.match(
      [hole, end],
      [
        { length: 8192, hole: true },
        { length, hole: false },
      ],
    );
    await image.trim(offset, length);
    t.ok(Buffer.concat(await image.read(offset, length)).equals(Buffer.alloc(length)));
  }
  t.equal(imageOf(plain, 2 ** 53 - 4096).image.blockSize.minimum, 1);
});
