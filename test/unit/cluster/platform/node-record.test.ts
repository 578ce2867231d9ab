/** A log that processes leave to each other in two files without a name. */
import { fstatSync, readSync, readdirSync, writeSync } from "node:fs";
import t, { type Test } from "tap";
import {
  FileRecord,
  closeRecordFiles,
  openRecordFiles,
  type RecordFiles,
} from "../../../../cluster/platform/node-record.js";
import { tempFolder } from "../../../support/temp.js";

function filesFor(t: Test): RecordFiles {
  const folder = tempFolder(t, "record");
  const files = openRecordFiles(folder);
  t.teardown(() => closeRecordFiles(files));
  t.same(readdirSync(folder), [], "they have no name");
  return files;
}
const text = (record: FileRecord): string => record.read().toString();
const bytes = (value: string): Buffer => Buffer.from(value);

t.test("the next process finds what was appended, since it was replaced", (t) => {
  const files = filesFor(t);
  const first = new FileRecord(files);
  t.equal(text(first), "");
  first.replace([bytes("one")]);
  first.append([bytes(" two")]);
  t.equal(text(first), "one two");
  const second = new FileRecord(files);
  t.equal(text(second), "one two");
  second.append([bytes(" three")]);
  for (let i = 0; i < 5; i++) {
    second.replace([bytes(`${i}`)]);
    second.append([bytes("!")]);
    t.equal(text(new FileRecord(files)), `${i}!`);
  }
  const sizes = files.map((fd) => fstatSync(fd).size);
  t.same(sizes.sort(), [0, 18], "only one of them takes room");
  t.end();
});

t.test("one that is replaced is the old one until all of the new one is there", (t) => {
  const files = filesFor(t);
  const record = new FileRecord(files);
  record.replace([bytes("the old one")]);
  const present = files.findIndex((fd) => fstatSync(fd).size > 0);
  const next = files[1 - present]!;
  // As a process leaves it that dies before the head is written, or while it is.
  writeSync(next, bytes("the new one"), 0, 11, 16);
  t.equal(text(new FileRecord(files)), "the old one");
  const head = Buffer.alloc(16);
  head.writeUInt32LE(0x52737364, 0);
  head.writeUInt32LE(7, 8);
  writeSync(next, head, 0, 16, 0);
  t.equal(text(new FileRecord(files)), "the old one", "the head is not whole");
  const after = new FileRecord(files);
  after.replace([bytes("the third")]);
  t.equal(text(new FileRecord(files)), "the third");
  t.end();
});

t.test("the newer one counts when the old one was not let go", (t) => {
  const files = filesFor(t);
  new FileRecord(files).replace([bytes("first")]);
  const old = files.find((fd) => fstatSync(fd).size > 0)!;
  const whole = Buffer.alloc(fstatSync(old).size);
  readSync(old, whole, 0, whole.length, 0);
  new FileRecord(files).replace([bytes("second")]);
  t.equal(fstatSync(old).size, 0);
  writeSync(old, whole, 0, whole.length, 0);
  t.equal(text(new FileRecord(files)), "second");
  t.end();
});
