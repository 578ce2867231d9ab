/** What a benchmark starts is ended whatever happens, last first and once. */
import t from "tap";
import { Scope } from "../../support/scope.js";

t.test("last first, once, and past a failure", async (t) => {
  const said: string[] = [];
  const done: string[] = [];
  const before = process.exitCode;
  const scope = new Scope((message) => said.push(message));
  scope.teardown(() => done.push("first"));
  scope.teardown(() => Promise.reject(new Error("stuck")));
  scope.teardown(() => done.push("last"));
  t.equal(scope.ended, false);
  await Promise.all([scope.end(), scope.end()]);
  t.equal(process.exitCode, 1, "what cannot be cleaned up is a failure");
  process.exitCode = before;
  t.same(done, ["last", "first"]);
  t.same(said, ["cleaning up: stuck"]);
  t.equal(scope.ended, true);
});

t.test("who comes after the end has begun is ended too", async (t) => {
  const done: string[] = [];
  const scope = new Scope();
  scope.teardown(async () => {
    await Promise.resolve();
    scope.teardown(() => done.push("during"));
  });
  await scope.end();
  t.same(done, ["during"]);
  scope.teardown(() => done.push("after"));
  await scope.end();
  t.same(done, ["during", "after"]);
});

t.test("an inner scope ends with its action or with the outer one", async (t) => {
  const done: string[] = [];
  const outer = new Scope();
  const value = await outer.within((inner) => {
    inner.teardown(() => done.push("inner"));
    return Promise.resolve(7);
  });
  t.equal(value, 7);
  t.same(done, ["inner"]);
  await t.rejects(
    outer.within((inner) => {
      inner.teardown(() => done.push("failed"));
      return Promise.reject(new Error("no"));
    }),
    /no/,
  );
  t.same(done, ["inner", "failed"]);
  let release: (() => void) | undefined;
  const hanging = outer.within(async (inner) => {
    inner.teardown(() => {
      done.push("stopped");
      release?.();
    });
    await new Promise<void>((resolve) => (release = resolve));
  });
  await outer.end();
  await hanging;
  t.same(done, ["inner", "failed", "stopped"]);
});
