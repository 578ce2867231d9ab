/** Listings as rows: what comes out is what went in, and what is cut is refused. */
import t from "tap";
import { DssError } from "../../../cluster/base/errors.js";
import { Prng } from "../../../cluster/base/prng.js";
import {
  MdsOperation,
  type DirectoryEntry,
  type Grant,
  type MdsReply,
} from "../../../mds/proto.js";

const { reply: codec } = MdsOperation;
const big = (random: Prng): bigint => BigInt(random.u32()) * 2_000_000_000n - 2n ** 62n;

function entryOf(random: Prng, layouts: number): DirectoryEntry {
  const ino = random.u32() * 2 ** 20 + 1;
  const name = random.bytes(1 + random.int(0, 254));
  const type = random.chance(0.5) ? 0o100000 : 0o120000;
  const listed: DirectoryEntry = { name, ino, type, cookie: random.u32() * 2 ** 21 };
  if (random.chance(0.1)) return listed;
  const inode: NonNullable<DirectoryEntry["inode"]> = {
    ...{ ino, mode: type | random.int(0, 4095), nlink: random.int(1, 3) },
    ...{ uid: random.u32(), gid: random.u32(), rdev: random.u32(), size: random.u32() * 2 ** 20 },
    ...{ atimeNs: big(random), mtimeNs: big(random), ctimeNs: big(random), btimeNs: -1n },
    ...{ truncateSeq: random.u32(), truncateSize: random.u32() * 8, allocated: random.u32() * 512 },
    ...{ recount: random.chance(0.5), xattrCount: random.int(0, 8) },
  };
  if (type === 0o120000) inode.target = random.bytes(random.int(0, 99));
  else {
    const objectSize = 4096 * random.int(1, layouts);
    inode.layout = { pool: 1, objectSize, stripeUnit: objectSize, stripeCount: 1 };
  }
  return { ...listed, inode };
}
function replyOf(random: Prng, count: number, layouts: number): MdsReply {
  const entries = Array.from({ length: count }, () => entryOf(random, layouts));
  const grants = entries.map(({ ino }, i): Grant => {
    const mode = (["shared", "sole", "exclusive"] as const)[i % 3]!;
    const maxSize = mode === "exclusive" ? 4096 : 0;
    return { ino, mode, seq: 2 ** 40 + i, maxSize, minEpoch: 7 };
  });
  return { id: 9, journal: 0, notFound: false, answer: { end: false, entries }, grants };
}
const byIno = (a: Grant, b: Grant): number => a.ino - b.ino;

t.test("entries, attributes and grants come back", (t) => {
  const random = new Prng(7);
  for (const [count, layouts] of [
    [0, 1],
    [1, 1],
    [200, 3],
    [600, 2 ** 30], // More layouts than rows can name: msgpack then.
  ] as const) {
    const reply = replyOf(random, count, layouts);
    const { grants, ...back } = codec.decode(codec.encode(reply));
    const { grants: given, ...sent } = reply;
    t.same(back, sent, `${count} entries`);
    t.same(grants.sort(byIno), [...given].sort(byIno), "grants");
  }
  t.end();
});

t.test("an answer without entries is as it was", (t) => {
  const reply: MdsReply = { id: 3, journal: 4, notFound: true, answer: {}, grants: [] };
  t.same(codec.decode(codec.encode(reply)), reply);
  t.end();
});

t.test("what is cut or wrong is refused", (t) => {
  const random = new Prng(11);
  const sent = replyOf(random, 40, 2);
  const whole = codec.encode(sent);
  const first = whole.indexOf(sent.answer.entries![0]!.name) - 200;
  let refused = 0;
  for (let i = 0; i < 200; i++) {
    const damaged = Buffer.from(whole);
    for (let k = 0; k < 4; k++) damaged[random.int(first, first + 2_000)] = random.u32();
    try {
      codec.decode(damaged);
    } catch (error) {
      if (!(error instanceof DssError) || error.code !== "Malformed") throw error;
      refused++;
    }
  }
  t.ok(refused > 10, `${refused} of 200 were refused`);
  t.end();
});
