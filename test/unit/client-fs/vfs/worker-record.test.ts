/** The log that a mount's worker leaves: what it says after any end, and how long it becomes. */
import t from "tap";
import {
  FAILED,
  KEPT,
  RECORD_FORMAT,
  WorkerRecord,
  type RecordStore,
} from "../../../../client-fs/vfs/worker-record.js";
import { crc32 } from "../../../../cluster/base/checksum.js";
import { msgpack } from "../../../../cluster/wire/registry.js";
import type { LoggedRequest } from "../../../../mds/client/request-log.js";

const MIB = 2 ** 20;

class MemoryRecord implements RecordStore {
  parts: Buffer[] = [];
  length = 0;
  replaced = 0;
  copied = 0;
  free = Infinity;
  roomFor = Infinity;
  room(): number {
    return this.free;
  }
  read(): Buffer {
    return Buffer.concat(this.parts);
  }
  append(parts: readonly Buffer[]): void {
    this.take(this.parts, this.length, parts);
  }
  replace(parts: readonly Buffer[]): void {
    this.take([], 0, parts);
    this.replaced++;
    this.copied += this.length;
  }
  private take(before: Buffer[], length: number, parts: readonly Buffer[]): void {
    for (const part of parts) length += part.length;
    if (length > this.roomFor) throw new Error("ENOSPC");
    for (const part of parts) before.push(Buffer.from(part));
    this.parts = before;
    this.length = length;
  }
}
function storeOf(bytes: Buffer): MemoryRecord {
  const store = new MemoryRecord();
  store.append([bytes]);
  return store;
}
const cut = (store: MemoryRecord, length = Infinity): MemoryRecord =>
  storeOf(store.read().subarray(0, length));
function keep(record: WorkerRecord, ino: number, ...texts: string[]): void {
  const pieces = texts.map((text, i) => ({ start: i * 4096, data: Buffer.from(text) }));
  record.keep({ ino, mtimeNs: BigInt(ino), pieces });
  record.data(ino, KEPT);
}
const setattr = (id: number): LoggedRequest => ({
  ...{ id, cause: 0, promised: true, state: "sent", ino: 0 },
  request: { op: "setattr", ino: 9, mode: 0o600, actor: { uid: 1, gid: 2, timeNs: 3n } },
});

t.test("bytes of files are what they were, in one frame with other notes", (t) => {
  const store = new MemoryRecord();
  const record = new WorkerRecord(store);
  record.commit();
  keep(record, 1, "one", "", "three");
  record.opened({ id: 4, ino: 1, flags: 2, cause: 0, isDirectory: false });
  keep(record, 2, "two");
  record.commit();
  keep(record, 3, "written back since");
  record.commit();
  record.data(3, 0);
  record.commit();
  const { inherited } = new WorkerRecord(store);
  const texts = inherited!.kept.map(({ ino, pieces }) => [
    ino,
    ...pieces.map(({ start, data }) => `${start} ${data.toString()}`),
  ]);
  t.same(texts, [
    [1, "0 one", "4096 ", "8192 three"],
    [2, "0 two"],
  ]);
  t.equal(inherited!.kept[1]!.mtimeNs, 2n);
  t.equal(inherited!.handles.length, 1);
  t.end();
});

t.test("a frame counts when all of it is there, wherever its writer died", (t) => {
  const store = new MemoryRecord();
  const record = new WorkerRecord(store);
  record.commit();
  const begun = store.length;
  keep(record, 1, "first");
  record.commit();
  const first = store.length;
  keep(record, 2, "second", "and more");
  record.commit();
  for (let length = begun; length <= store.length; length++) {
    const inos = new WorkerRecord(cut(store, length)).inherited!.kept.map(({ ino }) => ino);
    t.same(inos, length < first ? [] : length < store.length ? [1] : [1, 2], `${length}`);
  }
  const changed = store.read();
  changed[changed.length - 1]! ^= 1;
  t.same(
    new WorkerRecord(storeOf(changed)).inherited!.kept.map(({ ino }) => ino),
    [1],
    "other bytes than were noted are not written to a file",
  );
  t.end();
});

t.test("what was amended is there with the request, also after the log was written anew", (t) => {
  const store = new MemoryRecord();
  const record = new WorkerRecord(store);
  const noted = setattr(5);
  record.entered({ ...noted, request: { ...noted.request } });
  record.commit();
  record.amended(5, { uid: 7, mode: 0o640 });
  record.amended(6, { uid: 8 }); // It is over.
  record.commit();
  const expected = [{ id: 5, request: { ...noted.request, uid: 7, mode: 0o640 } }];
  for (let i = 0; i < 3; i++) t.match(new WorkerRecord(store).inherited!.requests, expected);
  t.end();
});

t.test("files that are written back do not stay in the log, nor are others copied often", (t) => {
  const store = new MemoryRecord();
  const record = new WorkerRecord(store);
  const text = "x".repeat(MIB);
  // Twenty are not written back at any time.
  for (let ino = 1; ino <= 300; ino++) {
    if (ino > 20) record.data(ino - 20, 0);
    keep(record, ino, text);
    record.commit();
  }
  t.ok(store.replaced > 2, `${store.replaced} times`);
  t.ok(store.length < 75 * MIB, `${store.length} bytes`);
  t.ok(store.copied < 150 * MIB, `${store.copied} bytes were copied`);
  t.equal(new WorkerRecord(store).inherited!.kept.length, 20);
  t.end();
});

t.test("without room the log is written anew, and if that is not enough without the files", (t) => {
  const store = new MemoryRecord();
  let broken = 0;
  const record = new WorkerRecord(store, () => broken++);
  store.roomFor = 10_000;
  const text = "x".repeat(3_000);
  const kept = (): number[] => new WorkerRecord(cut(store)).inherited!.kept.map(({ ino }) => ino);
  for (let ino = 1; ino <= 9; ino++) {
    if (ino > 1) record.data(ino - 1, 0);
    keep(record, ino, text);
    record.commit();
  }
  t.same(kept(), [9]);
  for (let ino = 10; ino <= 13; ino++) keep(record, ino, text);
  record.entered(setattr(1));
  record.commit();
  t.same(kept(), []);
  const { data, requests } = new WorkerRecord(cut(store)).inherited!;
  t.same(
    data.filter(({ bits }) => (bits & KEPT) !== 0),
    [],
  );
  t.equal(requests.length, 1);
  record.data(13, FAILED | KEPT); // As who does not know of it says.
  record.commit();
  t.match(new WorkerRecord(cut(store)).inherited!.data.at(-1), { ino: 13, bits: FAILED });
  t.equal(broken, 0);
  store.roomFor = 0;
  record.entered(setattr(2));
  record.commit();
  t.equal(broken, 1, "then the mount has to know");
  t.end();
});

t.test("the log takes two thirds of the room at most, the new one beside it counted", (t) => {
  const store = new MemoryRecord();
  store.free = 12 * MIB;
  let most = 0;
  const { replace } = store;
  store.replace = (parts): void => {
    const before = store.length;
    replace.call(store, parts);
    most = Math.max(most, before + store.length);
  };
  const record = new WorkerRecord(store);
  const text = "x".repeat(64 * 1024);
  let kept = 0;
  for (let ino = 1; ino <= 1_000; ino++) {
    if (ino > 100) record.data(ino - 100, 0);
    const data = Buffer.from(text);
    if (!record.mayKeep({ ino, mtimeNs: 1n, pieces: [{ start: 0, data }] })) continue;
    keep(record, ino, text);
    record.commit();
    kept++;
    t.ok(store.length < 8 * MIB);
  }
  t.ok(kept > 300, `${kept} files`);
  t.ok(store.replaced > 2 && most < 8.5 * MIB, `${most} bytes`);
  t.end();
});

t.test("another version's record, and what is none", (t) => {
  const body = msgpack<unknown>().encode([["format", RECORD_FORMAT - 1, 0]]);
  const head = Buffer.alloc(8);
  head.writeUInt32LE(body.length, 0);
  head.writeUInt32LE(crc32(body), 4);
  const other = storeOf(Buffer.concat([head, body]));
  t.throws(() => new WorkerRecord(other), { code: "IncompatibleVersion" });
  t.throws(() => new WorkerRecord(storeOf(Buffer.from("no record"))), { code: "Corrupt" });
  t.end();
});
