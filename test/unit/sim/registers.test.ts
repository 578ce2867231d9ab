/** The simulator's judge of histories: what it lets pass and what it catches. */
import t from "tap";
import { linearizabilityFault, type Operation } from "../../sim/registers.js";

const write = (value: number, start: number, end = Infinity): Operation => {
  return { kind: "write", value, start, end };
};
const read = (value: number, start: number, end: number): Operation => {
  return { kind: "read", value, start, end };
};

t.test("histories that some order explains", (t) => {
  t.equal(linearizabilityFault([]), undefined);
  t.equal(linearizabilityFault([read(0, 0, 1), write(1, 2, 3), read(1, 4, 5)]), undefined);
  t.equal(linearizabilityFault([write(1, 0, 9), read(0, 1, 2), read(1, 3, 4)]), undefined);
  t.equal(linearizabilityFault([write(1, 0, 9), write(2, 0, 9), read(2, 10, 11)]), undefined);
  t.equal(linearizabilityFault([write(1, 0), read(0, 5, 6), read(1, 50, 60)]), undefined);
  t.equal(linearizabilityFault([write(1, 0), read(0, 5, 6)]), undefined, "it never happened");
  t.end();
});

t.test("a lost write, a stale read, a value from nowhere, one that comes back", (t) => {
  t.match(linearizabilityFault([write(1, 0, 1), read(0, 2, 3)]), /held/);
  t.match(linearizabilityFault([write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)]), /held/);
  t.match(linearizabilityFault([read(7, 0, 1)]), /never written/);
  t.match(linearizabilityFault([read(1, 0, 1), write(1, 2, 3)]), /before it was written/);
  const twice = [write(1, 0, 20), read(1, 1, 2), write(2, 3, 4), read(1, 5, 6)];
  t.match(linearizabilityFault(twice), /held/, "executed, overwritten, executed again");
  t.end();
});
