/** Names of objects: whose they are, and that a family is together in name order. */
import t from "tap";
import {
  cloneIdOf,
  cloneName,
  clonePrefix,
  familyOf,
  headOf,
  isObjectOf,
  listedFrom,
  objectIndex,
  objectName,
} from "../../../../cluster/base/object-name.js";

const CHILD = clonePrefix("v2", 5);
const GRANDCHILD = clonePrefix(CHILD, 0x10);

t.test("a family is placed by its first and is together in name order", (t) => {
  const heads = ["v2", CHILD, GRANDCHILD].map((prefix) => objectName(prefix, 3));
  t.same(heads, ["v2.3", "v2.3$00000005", "v2.3$00000010"]);
  const family = heads.flatMap((head) => [head, cloneName(head, 1), cloneName(head, 0xffff)]);
  t.same([...new Set(family.map(familyOf))], ["v2.3"]);
  const others = [objectName("v2", 0x30), objectName("v2", 0x3a), objectName(CHILD, 0x30), "v20.3"];
  const sorted = [...others, ...family].sort();
  t.same(sorted.slice(sorted.indexOf("v2.3")).slice(0, family.length), family);
  t.end();
});

t.test("an object is its volume's, and what it was at snapshots", (t) => {
  const names = ["v2", CHILD, GRANDCHILD, "v20"].flatMap((prefix) => {
    const head = objectName(prefix, 0x2f);
    return [head, cloneName(head, 7)];
  });
  for (const prefix of ["v2", CHILD, GRANDCHILD]) {
    const own = names.filter((name) => isObjectOf(prefix, name));
    t.same(own, [objectName(prefix, 0x2f), cloneName(objectName(prefix, 0x2f), 7)]);
    t.same([listedFrom(prefix), ...own.map(objectIndex)], ["v2.", 0x2f, 0x2f]);
  }
  t.same(names.map(cloneIdOf).filter(Boolean), [7, 7, 7, 7]);
  t.equal(headOf(names[3]!), objectName(CHILD, 0x2f));
  t.end();
});
