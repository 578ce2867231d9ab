/** How commands end: lines on stderr and exit codes. */
import t from "tap";
import { readFileSync } from "node:fs";
import { explain, UsageError } from "../../../cli/failure.js";
import { DssError } from "../../../cluster/base/errors.js";

t.test("an operating error is one line and what to do, with exit code 1", (t) => {
  const error = new DssError("NotFound", "there is no volume x", { hint: "see dss volume ls" });
  t.same(explain(error), {
    lines: ["dss: there is no volume x", "     see dss volume ls"],
    exitCode: 1,
  });
  t.end();
});

t.test("a wrong call has exit code 2", (t) => {
  t.equal(explain(new UsageError("no")).exitCode, 2);
  t.end();
});

t.test("reasons are told once, on the same line", (t) => {
  const cause = new Error("connect ECONNREFUSED\nagain");
  const error = new DssError("Unreachable", "no server answers", { cause });
  t.same(explain(error).lines, ["dss: no server answers: connect ECONNREFUSED; again"]);
  const repeated = new DssError("Unreachable", "a: connect", { cause: new Error("connect") });
  t.same(explain(repeated).lines, ["dss: a: connect"]);
  t.end();
});

t.test("a failed system call names what it was about, without a stack", (t) => {
  try {
    readFileSync("/nonexistent/file");
    t.fail("the file exists");
  } catch (error) {
    t.same(explain(error).lines, ["dss: no such file or directory: /nonexistent/file"]);
  }
  t.end();
});

t.test("a bug shows its stack", (t) => {
  const { lines, exitCode } = explain(new TypeError("x is not a function"));
  t.match(lines.join("\n"), /internal error[\s\S]*TypeError: x is not a function[\s\S]*at /);
  t.equal(exitCode, 1);
  t.end();
});
