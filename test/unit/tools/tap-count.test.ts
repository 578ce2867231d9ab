/** The counts on which `npm test` decides: nothing that failed may be counted as passed. */
import t from "tap";
import { countTap, failuresOf } from "../../../tools/tap-count.js";

const count = (text: string) => {
  const { passed, failed, skipped } = countTap(text);
  return [passed, failed, skipped];
};

t.test("assertions are counted, closing lines of subtests are not", (t) => {
  const text = `TAP version 14
# Subtest: a
    ok 1 - one
    # Subtest: inner
        ok 1 - two
        not ok 2 - three
          ---
          not ok 9 - text within a diagnostic
          source: |
            ok 1 - also text
          ...
        1..2
    not ok 2 - inner # time=1ms
    1..2
not ok 1 - a # time=4ms
ok 2 - four
1..2
`;
  t.same(count(text), [3, 1, 0]);
  t.match(countTap(text), { planned: true, bailedOut: false });
  t.same(failuresOf(text).slice(0, 2), ["        not ok 2 - three", "          ---"]);
  t.end();
});

t.test("a subtest that fails without a failed assertion counts", (t) => {
  t.same(count("# Subtest: a\n    ok 1 - x\n    1..2\nnot ok 1 - a\n1..1\n"), [1, 1, 0]);
  t.end();
});

t.test("buffered subtests", (t) => {
  const text = "not ok 1 - a {\n    ok 1 - x\n    not ok 2 - y\n    1..2\n}\n1..1\n";
  t.same(count(text), [1, 1, 0]);
  t.end();
});

t.test("skips and todos are neither passed nor failed, and must say why", (t) => {
  const text = "ok 1 - a # SKIP no kernel\nok 2 # skip\nnot ok 3 - b # TODO later\n1..3\n";
  t.same(count(text), [0, 0, 3]);
  t.equal(countTap(text).unexplained, 1);
  t.same(count("1..0 # SKIP not here\n"), [0, 0, 1]);
  t.same(count("ok 1 - costs \\# skip nothing\n1..1\n"), [1, 0, 0]);
  t.end();
});

t.test("a stream that ends early or bails out is told from a whole one", (t) => {
  t.equal(countTap("ok 1 - a\n").planned, false);
  t.equal(countTap("    1..1\n").planned, false, "a subtest's plan is not the file's");
  t.equal(countTap("Bail out! no disk\n").bailedOut, true);
  t.end();
});

t.test("what this library prints is counted as it says itself", (t) => {
  // The stream of a real run of every construct that tests use.
  const text = `# Subtest: p
    ok 1 - should be equal
    1..1
ok 1 - p # time=5.8ms

ok 2 - later # TODO some day
ok 3 - skipped # SKIP because
ok 4 - top
1..4
# { total: 4, pass: 2, todo: 1, skip: 1 }
`;
  t.same(count(text), [2, 0, 2]);
  t.end();
});
