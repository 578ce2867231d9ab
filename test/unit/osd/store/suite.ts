/** Every sentence of the chunk store's contract, for any implementation. */
import t, { type Test } from "tap";
import {
  BLOCK_SIZE,
  blockChecksums,
  crc32,
  ZERO_BLOCK_CRC,
} from "../../../../cluster/base/checksum.js";
import { cloneName } from "../../../../cluster/base/object-name.js";
import {
  OpKind,
  VERSION_ZERO,
  type ChunkStore,
  type LogEntry,
  type Transaction,
  type Version,
} from "../../../../osd/store/chunk-store.js";
import { durable, transaction, type Harness } from "./harness.js";

const PG = 65_536 * 2 + 5;
const CLIENT = 70_000;
const block = (fill: number, count = 1): Buffer => Buffer.alloc(count * BLOCK_SIZE, fill);
const v = (seq: number, interval = 1): Version => ({ interval, seq });

export function runSuite(name: string, make: () => Promise<Harness>): void {
  /** A test on a fresh store that holds one PG. */
  const test = (
    title: string,
    body: (t: Test, store: () => ChunkStore, harness: Harness, apply: Apply) => Promise<void>,
  ): void => {
    void t.test(`${name}: ${title}`, async (t) => {
      const h = await make();
      await h.wait(durable((done) => h.store.createPg(PG, Buffer.from("meta"), done)));
      const apply: Apply = (seq, object, fields = {}) => {
        const change = transaction({ pg: PG, version: v(seq), object, ...fields });
        return h.wait(durable((done) => h.store.apply(change, done)));
      };
      await body(t, () => h.store, h, apply);
      await h.end();
    });
  };
  type Apply = (seq: number, object: string, fields?: Partial<Transaction>) => Promise<void>;

  const bytes = async (h: Harness, object: string, offset = 0, length = 1 << 20): Promise<Buffer> =>
    Buffer.concat((await h.wait(h.store.read(PG, object, offset, length)))?.data ?? []);

  test("PGs are created once, described, and removed with all they hold", async (t, store, h, apply) => {
    t.same(store().listPgs(), [PG]);
    t.ok(store().hasPg(PG));
    t.notOk(store().hasPg(PG + 1));
    t.equal(store().pgInfo(PG + 1), undefined);
    await apply(1, "o", { data: [block(1)], client: CLIENT, sequence: 4 });
    await h.wait(durable((done) => store().createPg(PG, Buffer.from("other"), done)));
    t.equal(store().pgInfo(PG)!.meta.toString(), "meta", "creating again is a no-op");
    t.match(store().pgInfo(PG), {
      last: v(1),
      logTail: VERSION_ZERO,
      objects: 1,
      bytes: BLOCK_SIZE,
    });
    await h.wait(durable((done) => store().setPgMeta(PG, Buffer.from("second"), done)));
    await h.reopen();
    t.equal(store().pgInfo(PG)!.meta.toString(), "second");
    await h.wait(durable((done) => store().removePg(PG, done)));
    t.notOk(store().hasPg(PG));
    await h.wait(durable((done) => store().createPg(PG, Buffer.alloc(0), done)));
    for (const when of ["at once", "after reopening"]) {
      t.match(store().pgInfo(PG), { last: VERSION_ZERO, objects: 0, bytes: 0 }, when);
      t.equal(store().stat(PG, "o"), undefined, when);
      t.same(store().log(PG, VERSION_ZERO, 9), [], when);
      t.equal(store().answered(PG, CLIENT, 4), undefined, when);
      await h.reopen();
    }
    t.equal(store().usage().objects, 0);
    t.equal(store().usage().used, 0);
  });

  test("a write is visible at once, replaces whole blocks, and survives", async (t, store, h, apply) => {
    const change = transaction({
      pg: PG,
      version: v(1),
      object: "o",
      offset: 2 * BLOCK_SIZE,
      data: [block(1).subarray(0, 1000), block(1).subarray(1000), block(2)],
      size: 4 * BLOCK_SIZE - 100,
      mtimeNs: 12_345_678_901_234n,
      truncateSeq: 3,
    });
    const written = durable((done) => store().apply(change, done));
    const expected = Buffer.concat([block(0, 2), block(1), block(2)]);
    t.same(await bytes(h, "o"), expected, "before it is durable");
    await h.wait(written);
    await apply(2, "o", {
      offset: 3 * BLOCK_SIZE,
      data: [block(7)],
      size: 4 * BLOCK_SIZE,
      truncateSeq: 3,
    });
    block(7).copy(expected, 3 * BLOCK_SIZE);
    for (const when of ["at once", "after reopening"]) {
      t.same(await bytes(h, "o"), expected, when);
      const read = (await h.wait(store().read(PG, "o", 5000, 5000)))!;
      t.same(
        Buffer.concat(read.data),
        expected.subarray(BLOCK_SIZE, 3 * BLOCK_SIZE),
        "rounded outward",
      );
      t.same([...read.sums], [ZERO_BLOCK_CRC, crc32(block(1))]);
      t.match(read.info, {
        size: 4 * BLOCK_SIZE,
        version: v(2),
        truncateSeq: 3,
        allocated: 2 * BLOCK_SIZE,
      });
      t.same(store().extents(PG, "o", 0, 1 << 20), [
        { offset: 2 * BLOCK_SIZE, length: 2 * BLOCK_SIZE },
      ]);
      t.same(store().extents(PG, "o", 0, 3 * BLOCK_SIZE), [
        { offset: 2 * BLOCK_SIZE, length: BLOCK_SIZE },
      ]);
      await h.reopen();
    }
    t.equal(await h.wait(store().read(PG, "none", 0, 10)), undefined);
    t.equal((await h.wait(store().read(PG, "o", 1 << 20, 10)))!.data.length, 0, "beyond the end");
  });

  test("small and large writes mix, and pieces read stay as they were", async (t, store, h, apply) => {
    const large = Buffer.concat([block(1, 20), block(2, 20)]);
    await apply(1, "o", { data: [large] });
    const before = (await h.wait(store().read(PG, "o", 0, large.length)))!.data;
    await apply(2, "o", { offset: 5 * BLOCK_SIZE, data: [block(9)], size: large.length });
    const small = (await h.wait(store().read(PG, "o", 5 * BLOCK_SIZE, 1)))!.data;
    await apply(3, "o", { offset: 4 * BLOCK_SIZE, data: [block(8, 8)], size: large.length });
    await apply(4, "o", { offset: 5 * BLOCK_SIZE, data: [block(6)], size: large.length });
    t.same(Buffer.concat(before), large);
    t.same(Buffer.concat(small), block(9));
    const expected = Buffer.from(large);
    block(8, 8).copy(expected, 4 * BLOCK_SIZE);
    block(6).copy(expected, 5 * BLOCK_SIZE);
    t.same(await bytes(h, "o"), expected);
    await h.reopen();
    t.same(await bytes(h, "o"), expected);
    t.equal(store().usage().used, large.length, "what was replaced is free");
  });

  test("zero makes holes, truncate drops the rest, remove ends the object", async (t, store, h, apply) => {
    const size = 8 * BLOCK_SIZE;
    await apply(1, "o", { data: [block(5, 8)] });
    await apply(2, "o", { kind: OpKind.zero, offset: BLOCK_SIZE, length: 2 * BLOCK_SIZE, size });
    t.same(store().extents(PG, "o", 0, size), [
      { offset: 0, length: BLOCK_SIZE },
      { offset: 3 * BLOCK_SIZE, length: 5 * BLOCK_SIZE },
    ]);
    t.same((await bytes(h, "o")).subarray(BLOCK_SIZE, 3 * BLOCK_SIZE), block(0, 2));
    const tail = Buffer.alloc(BLOCK_SIZE);
    tail.fill(5, 0, 10);
    const cut = 4 * BLOCK_SIZE + 10;
    await apply(3, "o", {
      kind: OpKind.truncate,
      offset: 4 * BLOCK_SIZE,
      data: [tail],
      size: cut,
      truncateSeq: 2,
    });
    await apply(4, "o", { kind: OpKind.touch, size: 6 * BLOCK_SIZE, truncateSeq: 2 });
    for (const when of ["at once", "after reopening"]) {
      t.match(
        store().stat(PG, "o"),
        { size: 6 * BLOCK_SIZE, allocated: 3 * BLOCK_SIZE, version: v(4) },
        when,
      );
      const found = await bytes(h, "o");
      t.same(found.subarray(3 * BLOCK_SIZE), Buffer.concat([block(5), tail, block(0)]), when);
      await h.reopen();
    }
    await apply(5, "o", { kind: OpKind.truncate, offset: 0, size: 0 });
    t.match(store().stat(PG, "o"), { size: 0, allocated: 0 });
    await apply(6, "o", { kind: OpKind.remove, size: 0 });
    await apply(7, "never", { kind: OpKind.remove, size: 0 });
    await apply(8, "empty", { kind: OpKind.touch, size: 0 });
    for (const when of ["at once", "after reopening"]) {
      t.equal(store().stat(PG, "o"), undefined, when);
      t.equal(await h.wait(store().read(PG, "o", 0, 1)), undefined, when);
      t.same(
        store()
          .list(PG, "", 10)
          .map((e) => e.object),
        ["empty"],
        when,
      );
      t.match(store().pgInfo(PG), { objects: 1, bytes: 0, last: v(8) }, when);
      await h.reopen();
    }
    await apply(9, "o", { data: [block(1)] });
    t.same(await bytes(h, "o"), block(1), "a name can come back");
  });

  test("list goes in byte order from any name, durable or not", async (t, store, h, apply) => {
    const names = ["a", "a.10", "a.2", "b", "é", "z", "😀"];
    for (const [i, object] of names.entries()) await apply(i + 1, object, { data: [block(i)] });
    await h.reopen();
    await apply(20, "a.15", { data: [block(1)] });
    await apply(21, "b", { kind: OpKind.remove, size: 0 });
    const all = ["a", "a.10", "a.15", "a.2", "z", "é", "😀"];
    t.same(
      store()
        .list(PG, "", 100)
        .map((e) => e.object),
      all,
    );
    t.same(
      store()
        .list(PG, "a.10", 2)
        .map((e) => e.object),
      ["a.15", "a.2"],
    );
    t.same(
      store()
        .list(PG, "a.11", 1)
        .map((e) => e.object),
      ["a.15"],
      "a name that does not exist",
    );
    t.same(store().list(PG, "😀", 5), []);
    t.equal(store().list(PG, "", 1)[0]!.info.size, BLOCK_SIZE);
    t.same(store().list(PG + 1, "", 5), []);
  });

  test("the log is ordered, limited, trimmed, and tells what it does not know", async (t, store, h, apply) => {
    for (let seq = 2; seq <= 600; seq += 2) {
      const change = transaction({
        pg: PG,
        version: v(seq),
        object: `o${seq % 7}`,
        kind: OpKind.touch,
        size: 0,
      });
      store().apply(change, () => undefined);
      if (seq % 150 === 0) await h.reopen();
    }
    await apply(602, "last", { client: CLIENT, sequence: 9, kind: OpKind.touch, size: 3 });
    const seqs = (log: LogEntry[] | undefined): number[] | undefined =>
      log?.map((e) => e.version.seq);
    t.same(seqs(store().log(PG, v(0, 0), 3)), [2, 4, 6]);
    t.same(seqs(store().log(PG, v(299), 2)), [300, 302]);
    t.same(seqs(store().log(PG, v(598), 100)), [600, 602]);
    t.equal(store().log(PG, VERSION_ZERO, 1e6)!.length, 301);
    t.match(store().log(PG, v(600), 9), [
      { object: "last", client: CLIENT, sequence: 9, size: 3, kind: OpKind.touch },
    ]);
    t.same(store().newestAtOrBelow(PG, v(301)), v(300));
    t.same(store().newestAtOrBelow(PG, v(9, 9)), v(602));
    store().trimLog(PG, v(401));
    for (const when of ["at once", "after reopening"]) {
      t.same(store().pgInfo(PG)!.logTail, v(400), `${when}: an entry's own version`);
      t.equal(store().log(PG, v(399), 5), undefined, when);
      t.same(seqs(store().log(PG, v(400), 2)), [402, 404], when);
      t.same(store().newestAtOrBelow(PG, v(401)), v(400), when);
      t.equal(store().newestAtOrBelow(PG, v(399)), undefined, when);
      await apply(when === "at once" ? 604 : 606, "last", { kind: OpKind.touch, size: 0 });
      await h.reopen();
    }
    store().trimLog(PG, v(5_000));
    t.same(store().pgInfo(PG)!.logTail, v(606));
    t.same(store().log(PG, v(606), 5), []);
    t.throws(
      () => store().apply(transaction({ pg: PG, version: v(606), object: "x" }), () => undefined),
      /606/,
    );
  });

  test("rewriteLog replaces what follows, appends, and starts over after a gap", async (t, store, h, apply) => {
    const entry = (seq: number, interval: number, sequence = 0): LogEntry => ({
      version: v(seq, interval),
      kind: OpKind.write,
      object: "r",
      client: sequence ? CLIENT : 0,
      sequence,
      size: 1,
    });
    const rewrite = (common: Version, ...entries: LogEntry[]): Promise<void> =>
      h.wait(durable((done) => store().rewriteLog(PG, common, entries, done)));
    const versions = (from: Version): unknown =>
      store()
        .log(PG, from, 99)
        ?.map((e) => e.version);
    for (let seq = 1; seq <= 6; seq++) {
      await apply(seq, "o", {
        kind: OpKind.touch,
        size: seq,
        client: CLIENT,
        sequence: seq,
        floor: 1,
      });
    }
    await h.reopen();
    await rewrite(v(4), entry(7, 2, 50), entry(8, 2));
    for (const when of ["at once", "after reopening"]) {
      t.same(versions(v(2)), [v(3), v(4), v(7, 2), v(8, 2)], when);
      t.same(store().pgInfo(PG)!.last, v(8, 2), when);
      t.equal(store().stat(PG, "o")!.size, 6, "objects are not touched");
      t.equal(store().answered(PG, CLIENT, 5), undefined, "a rolled back request has no answer");
      t.match(store().answered(PG, CLIENT, 50), { version: v(7, 2), size: 1 }, when);
      t.match(store().answered(PG, CLIENT, 4), { version: v(4) }, when);
      await h.reopen();
    }
    await rewrite(v(8, 2), entry(9, 2));
    t.same(versions(v(7, 2)), [v(8, 2), v(9, 2)], "an append");
    await rewrite(v(40, 5), entry(41, 5));
    for (const when of ["at once", "after reopening"]) {
      t.same(store().pgInfo(PG)!.logTail, v(40, 5), when);
      t.same(versions(v(40, 5)), [v(41, 5)], when);
      t.equal(store().log(PG, v(9, 2), 9), undefined, when);
      await h.reopen();
    }
    await rewrite(v(30, 5));
    t.same(store().pgInfo(PG)!.last, v(30, 5));
    t.same(versions(v(30, 5)), []);
  });

  test("image and install copy an object whole; discard leaves no entry", async (t, store, h, apply) => {
    const data = Buffer.concat([block(3, 2), block(4, 9)]);
    await apply(1, "o", {
      offset: BLOCK_SIZE,
      data: [data],
      size: 20 * BLOCK_SIZE,
      truncateSeq: 4,
      mtimeNs: 99n,
    });
    await apply(2, "o", {
      kind: OpKind.zero,
      offset: 3 * BLOCK_SIZE,
      length: BLOCK_SIZE,
      size: 20 * BLOCK_SIZE,
    });
    const image = (await h.wait(store().image(PG, "o")))!;
    t.equal(await h.wait(store().image(PG, "none")), undefined);
    t.same(
      image.extents.reduce((sum, e) => sum + e.data.length, 0),
      10 * BLOCK_SIZE,
    );
    for (const e of image.extents) t.same([...e.sums], [...blockChecksums(e.data)]);
    await apply(3, "copy", { data: [block(1, 30)] });
    await h.wait(durable((done) => store().install(PG, "copy", image, done)));
    await h.wait(durable((done) => store().discard(PG, "o", done)));
    await h.wait(durable((done) => store().discard(PG, "none", done)));
    for (const when of ["at once", "after reopening"]) {
      t.same(store().stat(PG, "copy"), image.info, when);
      t.same(store().extents(PG, "copy", 0, 1 << 20), [
        { offset: BLOCK_SIZE, length: 2 * BLOCK_SIZE },
        { offset: 4 * BLOCK_SIZE, length: 8 * BLOCK_SIZE },
      ]);
      t.equal(store().stat(PG, "o"), undefined, when);
      t.same(store().pgInfo(PG)!.last, v(3), when);
      t.equal(store().usage().used, 10 * BLOCK_SIZE, when);
      await h.reopen();
    }
  });

  test("answers are remembered until the floor passes, trimmed logs or not", async (t, store, h, apply) => {
    for (let seq = 1; seq <= 5; seq++) {
      await apply(seq, "o", {
        kind: OpKind.touch,
        size: seq,
        client: CLIENT,
        sequence: seq * 10,
        floor: 10,
      });
    }
    store().trimLog(PG, v(5));
    await apply(6, "o", { kind: OpKind.touch, size: 0, client: CLIENT, sequence: 60, floor: 30 });
    for (const when of ["at once", "after reopening"]) {
      t.same(store().answered(PG, CLIENT, 30), { version: v(3), size: 3 }, when);
      t.equal(store().answered(PG, CLIENT, 20), "below-floor", when);
      t.equal(store().answered(PG, CLIENT, 31), undefined, when);
      t.equal(store().answered(PG, CLIENT + 1, 1), undefined, when);
      t.same(
        store()
          .exportRetries(PG)
          .map((r) => [r.client, r.floor, r.answers.map((a) => a.sequence)]),
        [[CLIENT, 30, [30, 40, 50, 60]]],
      );
      await h.reopen();
    }
    store().mergeRetries(PG, [
      { client: CLIENT, floor: 50, answers: [{ sequence: 77, version: v(2), size: 8 }] },
      { client: CLIENT + 1, floor: 2, answers: [{ sequence: 2, version: v(1), size: 1 }] },
    ]);
    await h.wait(durable((done) => store().setPgMeta(PG, Buffer.alloc(0), done)));
    for (const when of ["at once", "after reopening"]) {
      t.same(store().answered(PG, CLIENT, 77), { version: v(2), size: 8 }, when);
      t.equal(store().answered(PG, CLIENT, 40), "below-floor", when);
      t.match(
        store().answered(PG, CLIENT, 60),
        { version: v(6) },
        "the merge adds, it does not replace",
      );
      t.match(store().answered(PG, CLIENT + 1, 2), { size: 1 }, when);
      await h.reopen();
    }
    store().forgetClient(CLIENT);
    await h.wait(durable((done) => store().setPgMeta(PG, Buffer.alloc(0), done)));
    await h.reopen();
    t.equal(store().answered(PG, CLIENT, 77), undefined);
    t.match(store().answered(PG, CLIENT + 1, 2), { size: 1 });
  });

  test("callbacks run once, in call order, and a backlog larger than the log gets through", async (t, store, h) => {
    const order: number[] = [];
    const all: Promise<void>[] = [];
    for (let seq = 1; seq <= 400; seq++) {
      const change = transaction({
        pg: PG,
        version: v(seq),
        object: `o${seq % 5}`,
        offset: (seq % 40) * BLOCK_SIZE,
        data: [block(seq % 251)],
        size: 40 * BLOCK_SIZE,
      });
      all.push(
        durable((done) =>
          store().apply(change, (error) => {
            order.push(seq);
            done(error);
          }),
        ),
      );
    }
    await h.wait(Promise.all(all));
    t.same(
      order,
      Array.from({ length: 400 }, (_, i) => i + 1),
    );
    for (const when of ["at once", "after reopening"]) {
      for (let i = 0; i < 5; i++) {
        const found = await bytes(h, `o${i}`);
        const fills = new Map<number, number>();
        for (let seq = 1; seq <= 400; seq++) if (seq % 5 === i) fills.set(seq % 40, seq % 251);
        for (const [at, fill] of fills) {
          if (found[at * BLOCK_SIZE] !== fill) t.fail(`${when}: o${i} block ${at}`);
        }
      }
      t.equal(store().log(PG, VERSION_ZERO, 1e4)!.length, 400, when);
      await h.reopen();
    }
  });

  test("a check finds nothing wrong, and a repair takes only bytes that fit", async (t, store, h, apply) => {
    for (const [object, count] of [
      ["small", 3],
      ["large", 40],
    ] as const) {
      const seq = object === "small" ? 1 : 2;
      const size = (count + 2) * BLOCK_SIZE;
      const change = { offset: 2 * BLOCK_SIZE, data: [block(5), block(6, count - 1)], size };
      await apply(seq, object, change);
      const good = await bytes(h, object);
      const [whole, second] = await h.wait(
        Promise.all([
          store().check(PG, object, 0, 1 << 22),
          store().check(PG, object, 3 * BLOCK_SIZE, BLOCK_SIZE),
        ]),
      );
      t.match(whole, { bytes: count * BLOCK_SIZE, bad: [], info: { version: v(seq) } });
      t.match(second, { bytes: BLOCK_SIZE, bad: [] });
      t.equal(store().digest(PG, object), store().digest(PG, object));
      const run = { offset: 0, data: block(6, 12), sums: blockChecksums(block(6, 12)) };
      const write = (runs: (typeof run)[]): Promise<boolean> => {
        let wrote = false;
        return h
          .wait(durable((done) => (wrote = store().repair(PG, object, runs, done))))
          .then(() => wrote);
      };
      const before = store().digest(PG, object);
      t.equal(await write([run]), true, "some of its blocks are what the object should have");
      const other = { offset: 0, data: block(9, 4), sums: blockChecksums(block(9, 4)) };
      t.equal(await write([other]), false, "none of these");
      for (const when of ["at once", "after reopening"]) {
        t.same(await bytes(h, object), good, when);
        t.equal(store().digest(PG, object), before, when);
        t.match(store().stat(PG, object), { version: v(seq), allocated: count * BLOCK_SIZE });
        await h.reopen();
      }
    }
    t.equal(await h.wait(store().check(PG, "none", 0, 9)), undefined);
    t.equal(store().digest(PG, "none"), undefined);
    t.match(store().pgInfo(PG), { last: v(2), objects: 2 }, "no log entry");
  });

  test("a copy with spoiled blocks never shows them, and takes the right bytes later", async (t, store, h, apply) => {
    await apply(1, "o", { data: [block(1), block(2), block(3)] });
    const image = (await h.wait(store().image(PG, "o", true)))!;
    t.equal(image.spoiled, undefined, "nothing is damaged");
    const [run] = image.extents;
    run!.data.fill(0, BLOCK_SIZE, 2 * BLOCK_SIZE);
    run!.sums[1] = ZERO_BLOCK_CRC;
    const spoiled = [{ offset: BLOCK_SIZE, sum: crc32(block(2)) }];
    const copy = { ...image, spoiled };
    await h.wait(durable((done) => store().install(PG, "copy", copy, done)));
    for (const when of ["at once", "after reopening"]) {
      const whole = h.wait(store().read(PG, "copy", 0, 3 * BLOCK_SIZE));
      await t.rejects(whole, { code: "Corrupt" }, when);
      await t.rejects(h.wait(store().image(PG, "copy")), { code: "Corrupt" }, when);
      t.ok(await h.wait(store().read(PG, "copy", 0, BLOCK_SIZE)), when);
      t.match(await h.wait(store().check(PG, "copy", 0, 1 << 20)), { bad: spoiled }, when);
      t.match(await h.wait(store().image(PG, "copy", true)), { spoiled }, when);
      t.equal(store().digest(PG, "copy"), store().digest(PG, "o"), when);
      await h.reopen();
    }
    const right = { offset: BLOCK_SIZE, data: block(2), sums: blockChecksums(block(2)) };
    await h.wait(durable((done) => store().repair(PG, "copy", [right], done)));
    for (const when of ["at once", "after reopening"]) {
      t.same(await bytes(h, "copy"), await bytes(h, "o"), when);
      await h.reopen();
    }
  });

  test("a snapshot clone shares its head's blocks, until either changes", async (t, store, h, apply) => {
    const clone = cloneName("o", 3);
    const used = (blocks: number, when: string): void => {
      t.equal(store().pgInfo(PG)!.bytes, blocks * BLOCK_SIZE, `${when}: counted for each`);
      // The memory store has a copy of each.
      if (name !== "memory") t.not(store().usage().used, blocks * BLOCK_SIZE, when);
    };
    await apply(1, "o", { data: [block(1, 30)], snapSeq: 1 }); // Large: in the data files.
    await apply(2, "o", { offset: 2 * BLOCK_SIZE, data: [block(2)], size: 30 * BLOCK_SIZE });
    const size = 30 * BLOCK_SIZE;
    const was = await bytes(h, "o");
    await apply(3, clone, { kind: OpKind.copy, source: "o", size, snapSeq: 1 });
    used(60, "a clone");
    t.same(store().clones(PG, "o"), [{ id: 3, from: 1 }]);
    // One block that is in the overlay still, one that is not, a hole, and the end.
    await apply(4, "o", { offset: 2 * BLOCK_SIZE, data: [block(3)], size, snapSeq: 3 });
    await apply(5, "o", { offset: 9 * BLOCK_SIZE, data: [block(4)], size, snapSeq: 3 });
    const gap = { offset: 12 * BLOCK_SIZE, length: BLOCK_SIZE };
    await apply(6, "o", { kind: OpKind.zero, ...gap, size, snapSeq: 3 });
    await apply(7, "o", { kind: OpKind.truncate, offset: 20 * BLOCK_SIZE, size: 20 * BLOCK_SIZE });
    const is = Buffer.concat([was.subarray(0, 2 * BLOCK_SIZE), block(3), block(1, 17)]);
    block(4).copy(is, 9 * BLOCK_SIZE);
    is.fill(0, 12 * BLOCK_SIZE, 13 * BLOCK_SIZE);
    for (const when of ["at once", "after reopening", "again"]) {
      t.same(await bytes(h, clone), was, `${when}: the clone is what its head was`);
      t.same(await bytes(h, "o"), is, `${when}: the head has changed`);
      t.match(store().stat(PG, clone), { size, snapSeq: 1, version: v(3) }, when);
      used(49, when);
      await h.reopen();
    }
    // Back to the snapshot: the head's own blocks go.
    await apply(8, "o", { kind: OpKind.copy, source: clone, size, snapSeq: 3 });
    t.same(await bytes(h, "o"), was);
    await apply(9, clone, { kind: OpKind.remove, size: 0 });
    t.same(store().clones(PG, "o"), []);
    await apply(10, "o", { offset: 4 * BLOCK_SIZE, data: [block(8)], size, snapSeq: 3 });
    block(8).copy(was, 4 * BLOCK_SIZE);
    for (const when of ["at once", "after reopening"]) {
      t.same(await bytes(h, "o"), was, `${when}: what was shared is still there`);
      t.equal(store().usage().used, size, `${when}: nothing is lost`);
      await h.reopen();
    }
  });

  test("a transaction that breaks the contract stops the caller", async (t, store) => {
    const bad = (fields: Partial<Transaction>): void =>
      store().apply(
        transaction({ pg: PG, version: v(1), object: "o", ...fields }),
        () => undefined,
      );
    t.throws(() => bad({ offset: 100 }), /whole blocks/);
    t.throws(() => bad({ data: [block(1)], sums: new Uint32Array(2) }), /do not fit/);
    t.throws(() => bad({ kind: OpKind.touch, data: [block(1)] }), /carries data/);
    t.throws(() => bad({ kind: OpKind.copy, source: "p" }), /copy of p/);
    t.throws(() => bad({ pg: PG + 9 }), /does not hold PG/);
  });
}
