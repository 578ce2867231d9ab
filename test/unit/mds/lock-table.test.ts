/**
 * The lock table: ranges split and join, conflicts, upgrades, the order of waiters, circles, the
 * end of sessions; and random requests against a model that knows every byte by itself.
 */
import t from "tap";
import { Prng } from "../../../cluster/base/prng.js";
import { LockTable, type LockRequest, type Woken } from "../../../mds/core/lock-table.js";
import { LOCK_END, type LockKind, type LockMode } from "../../../mds/proto.js";

const A = 1;
const B = 2;
interface Wish {
  owner?: string;
  mode?: LockMode;
  kind?: LockKind;
  ino?: number;
  waiter?: number;
}

class Desk {
  readonly table: LockTable;
  woken: Woken[] = [];

  constructor(limits?: { locks: number; waiters: number }) {
    this.table = new LockTable(limits);
  }
  request(session: number, start: number, end: number, wish: Wish = {}): LockRequest {
    const { owner = "a", mode = "exclusive", kind = "posix", ino = 7 } = wish;
    const last = end === Infinity ? LOCK_END : BigInt(end);
    return { session, kind, ino, owner, mode, start: BigInt(start), end: last, pid: 1 };
  }
  lock(session: number, start: number, end: number, wish: Wish = {}): string {
    return this.table.lock(
      this.request(session, start, end, wish),
      wish.waiter ?? 0,
      (this.woken = []),
    );
  }
  unlock(session: number, start: number, end: number, wish: Wish = {}): string {
    this.table.unlock(this.request(session, start, end, wish), (this.woken = []));
    return this.events();
  }
  flock(session: number, mode: LockMode, wish: Wish = {}): string {
    return this.lock(session, 0, Infinity, { ...wish, mode, kind: "flock" });
  }
  events(): string {
    return this.woken.map((each) => `${each.session}.${each.waiter} ${each.outcome}`).join(", ");
  }
  held(session: number): string {
    const parts = [...this.table.held(session)].map(
      ({ owner, mode, start, end }) =>
        `${owner}:${mode.charAt(0)}${start}-${end === LOCK_END ? "" : end}`,
    );
    return parts.join(" ");
  }
}

t.test("ranges of one owner split, join and change their mode", (t) => {
  const desk = new Desk();
  desk.lock(A, 0, 9, { mode: "shared" });
  desk.lock(A, 10, 19, { mode: "shared" });
  t.equal(desk.held(A), "a:s0-19", "those that touch are one");
  desk.lock(A, 5, 14);
  t.equal(desk.held(A), "a:s0-4 a:e5-14 a:s15-19");
  desk.unlock(A, 7, 8);
  t.equal(desk.held(A), "a:s0-4 a:e5-6 a:e9-14 a:s15-19");
  desk.lock(A, 0, Infinity, { mode: "shared" });
  t.equal(desk.held(A), "a:s0-");
  t.equal(desk.table.count(A), 1);
  desk.unlock(A, 100, Infinity);
  desk.unlock(A, 0, 0);
  t.equal(desk.held(A), "a:s1-99");
  desk.unlock(A, 0, Infinity);
  t.equal(desk.held(A), "");
  t.equal(desk.table.count(A), 0);
  t.end();
});

t.test("conflicts are between owners, kinds and files apart", (t) => {
  const desk = new Desk();
  t.equal(desk.lock(A, 0, 9), "granted");
  t.equal(desk.lock(A, 5, 5, { owner: "b" }), "conflict", "another process of the same mount");
  t.equal(desk.lock(B, 5, 5), "conflict");
  t.equal(desk.lock(B, 10, 10), "granted");
  t.equal(desk.lock(B, 5, 5, { ino: 8 }), "granted");
  t.equal(desk.flock(B, "exclusive"), "granted", "flock is another matter");
  const found = desk.table.test(desk.request(B, 0, Infinity, { mode: "shared" }));
  t.match(found, { session: A, range: { start: 0n, end: 9n, mode: "exclusive", pid: 1 } });
  t.equal(desk.table.test(desk.request(A, 0, 9)), undefined);
  t.equal(desk.lock(B, 20, 20, { mode: "shared" }), "granted");
  t.equal(desk.lock(A, 20, 29, { mode: "shared" }), "granted", "readers share");
  t.equal(desk.lock(A, 20, 20), "conflict", "an upgrade waits for the other reader");
  t.equal(desk.held(A), "a:e0-9 a:s20-29", "and what is held stays");
  t.end();
});

t.test("who waits is served in order, as far as it goes", (t) => {
  const desk = new Desk();
  desk.lock(A, 0, 9);
  t.equal(desk.lock(B, 0, 4, { waiter: 1 }), "queued");
  t.equal(desk.lock(B, 0, 4, { waiter: 1 }), "queued", "asked again");
  t.equal(desk.lock(B, 0, 9, { waiter: 2, owner: "b", mode: "shared" }), "queued");
  t.equal(desk.lock(B, 5, 9, { waiter: 3, owner: "c", mode: "shared" }), "queued");
  t.equal(desk.table.waiterCount, 3);
  t.same([...desk.table.allBlockers()], [A]);
  t.equal(desk.unlock(A, 5, 9), "2.3 granted");
  t.equal(desk.unlock(A, 0, 4), "2.1 granted", "the second waits for the first now");
  t.ok(desk.table.cancel(B, 2));
  t.notOk(desk.table.cancel(B, 2));
  t.equal(desk.unlock(B, 0, Infinity), "");
  t.equal(desk.held(B), "c:s5-9");
  t.end();
});

t.test("a lock that becomes shared lets readers in", (t) => {
  const desk = new Desk();
  desk.lock(A, 0, 9);
  desk.lock(B, 0, 0, { waiter: 1, mode: "shared" });
  desk.lock(B, 0, 0, { waiter: 2, owner: "w" });
  t.equal(desk.lock(A, 0, 4, { mode: "shared" }), "granted");
  t.equal(desk.events(), "2.1 granted");
  t.end();
});

t.test("two that wait for each other: the second is refused", (t) => {
  const desk = new Desk();
  desk.lock(A, 0, 0);
  desk.lock(B, 1, 1);
  t.equal(desk.lock(A, 1, 1, { waiter: 1 }), "queued");
  t.equal(desk.lock(B, 0, 0, { waiter: 1 }), "deadlock");
  t.equal(desk.lock(B, 0, 0), "conflict", "who does not wait closes no circle");
  t.equal(desk.unlock(B, 1, 1), "1.1 granted");
  t.end();
});

t.test("circles over several files and owners, and two readers that both upgrade", (t) => {
  const desk = new Desk();
  const owners = ["a", "b", "c", "d"];
  for (const [at, owner] of owners.entries()) desk.lock(A, 0, 0, { owner, ino: at });
  for (const [at, owner] of owners.entries()) {
    const wish = { owner, ino: (at + 1) % 4, waiter: at + 1 };
    t.equal(desk.lock(A, 0, 0, wish), at < 3 ? "queued" : "deadlock", owner);
  }
  const readers = new Desk();
  readers.lock(A, 0, 0, { mode: "shared" });
  readers.lock(B, 0, 0, { mode: "shared" });
  t.equal(readers.lock(A, 0, 0, { waiter: 1 }), "queued");
  t.equal(readers.lock(B, 0, 0, { waiter: 1 }), "deadlock");
  t.end();
});

t.test("a circle that comes about because another was served first is refused then", (t) => {
  const desk = new Desk();
  desk.lock(A, 0, 0, { owner: "x" });
  desk.lock(A, 5, 5, { owner: "b" });
  // c and b both want what x has; c then waits for b as well.
  t.equal(desk.lock(A, 0, 0, { owner: "c", waiter: 1 }), "queued");
  t.equal(desk.lock(A, 5, 5, { owner: "c", waiter: 2 }), "queued");
  t.equal(desk.lock(A, 0, 0, { owner: "b", waiter: 3 }), "queued");
  t.equal(desk.unlock(A, 0, 0, { owner: "x" }), "1.1 granted, 1.2 deadlock");
  t.end();
});

t.test("flock: one lock a file, converted by giving it up first", (t) => {
  const desk = new Desk();
  t.equal(desk.flock(A, "shared"), "granted");
  t.equal(desk.flock(B, "shared"), "granted");
  t.equal(desk.flock(A, "exclusive"), "conflict");
  t.equal(desk.held(A), "", "what was held is lost, as in Linux");
  t.equal(desk.flock(A, "shared"), "granted");
  t.equal(desk.flock(A, "exclusive", { waiter: 1 }), "queued");
  t.equal(desk.flock(B, "exclusive", { waiter: 1 }), "queued", "no circle: A was served");
  t.equal(desk.events(), "1.1 granted");
  t.equal(desk.unlock(A, 0, Infinity, { kind: "flock" }), "2.1 granted");
  t.end();
});

t.test("flock: a conversion by the only holder holds", (t) => {
  const desk = new Desk();
  desk.flock(A, "exclusive");
  t.equal(desk.flock(A, "shared"), "granted");
  t.equal(desk.flock(B, "exclusive"), "conflict");
  t.equal(desk.flock(A, "exclusive"), "granted");
  t.equal(desk.flock(B, "shared"), "conflict");
  t.end();
});

t.test("the end of a session frees its locks and ends its waits", (t) => {
  const desk = new Desk();
  desk.lock(A, 0, 9);
  desk.flock(A, "exclusive");
  desk.lock(B, 0, 0, { waiter: 1 });
  desk.flock(B, "shared", { waiter: 2 });
  desk.lock(B, 100, 100);
  desk.lock(A, 100, 100, { waiter: 9, owner: "z" });
  desk.table.dropSession(A, (desk.woken = []));
  t.equal(desk.events(), "2.1 granted, 2.2 granted");
  t.equal(desk.held(A), "");
  t.equal(desk.unlock(B, 100, 100), "", "A's wait is over too");
  t.equal(desk.table.waiterCount, 0);
  t.end();
});

t.test("sessions claim what they hold at a new leader", (t) => {
  const desk = new Desk();
  desk.lock(A, 0, 9);
  desk.lock(A, 20, 29, { mode: "shared" });
  desk.flock(A, "shared");
  const next = new Desk();
  t.ok(next.table.claim(A, [...desk.table.held(A)]));
  t.equal(next.held(A), desk.held(A));
  t.equal(next.table.count(A), 3);
  const claim = { kind: "posix", ino: 7, owner: "q", mode: "shared", pid: 1 } as const;
  t.notOk(next.table.claim(B, [{ ...claim, start: 5n, end: 5n }]), "somebody is wrong");
  t.equal(next.held(B), "");
  t.ok(next.table.claim(B, [{ ...claim, start: 25n, end: 40n }]));
  t.end();
});

t.test("a session has so many locks and no more", (t) => {
  const desk = new Desk({ locks: 3, waiters: 1 });
  for (const at of [0, 2, 4]) t.equal(desk.lock(A, at, at), "granted");
  t.equal(desk.lock(A, 1_000_000, 1_000_000), "full");
  t.equal(desk.lock(B, 1_000_000, 1_000_000), "granted");
  t.equal(desk.lock(B, 0, 0, { waiter: 1 }), "queued");
  t.equal(desk.lock(B, 2, 2, { waiter: 2 }), "full");
  desk.unlock(A, 0, Infinity);
  t.equal(desk.lock(A, 7, 7), "granted");
  t.end();
});

// ---- Against a model that knows nothing but bytes ---------------------------------------------

const BYTES = 24;
interface Wait {
  id: number;
  session: number;
  owner: string;
  ino: number;
  mode: LockMode;
  start: number;
  end: number;
}
/** owner -> byte -> mode, for two files; waiters in order. */
class Model {
  readonly bytes = new Map<string, (LockMode | undefined)[]>();
  waits: Wait[] = [];

  private of(ino: number, key: string): (LockMode | undefined)[] {
    const name = `${ino}/${key}`;
    let bytes = this.bytes.get(name);
    if (bytes === undefined) {
      this.bytes.set(name, (bytes = new Array<LockMode | undefined>(BYTES).fill(undefined)));
    }
    return bytes;
  }
  set(wait: Wait, mode: LockMode | undefined): void {
    const bytes = this.of(wait.ino, `${wait.session}.${wait.owner}`);
    for (let at = wait.start; at <= wait.end; at++) bytes[at] = mode;
  }
  blockers(wait: Wait): Set<string> {
    const found = new Set<string>();
    const self = `${wait.session}.${wait.owner}`;
    for (const [name, bytes] of this.bytes) {
      const [ino, key] = name.split("/") as [string, string];
      if (Number(ino) !== wait.ino || key === self) continue;
      for (let at = wait.start; at <= wait.end; at++) {
        const held = bytes[at];
        if (held !== undefined && (held === "exclusive" || wait.mode === "exclusive")) {
          found.add(key);
        }
      }
    }
    return found;
  }
  /** Whether somebody waits, over any number of others, for himself, `wait` included. */
  circular(wait: Wait): boolean {
    const self = `${wait.session}.${wait.owner}`;
    const reached = this.blockers(wait);
    for (let size = -1; size !== reached.size;) {
      size = reached.size;
      for (const other of this.waits) {
        if (!reached.has(`${other.session}.${other.owner}`)) continue;
        for (const key of this.blockers(other)) reached.add(key);
      }
    }
    return reached.has(self);
  }
  /** What those who wait get, once something was released. */
  settle(ino: number): string[] {
    const events: string[] = [];
    const here = (): Wait[] => this.waits.filter((wait) => wait.ino === ino);
    for (let again = true; again;) {
      again = false;
      for (const wait of here()) {
        if (this.blockers(wait).size > 0) continue;
        this.waits = this.waits.filter((other) => other !== wait);
        this.set(wait, wait.mode);
        again = true;
        events.push(`${wait.session}.${wait.id} granted`);
      }
    }
    for (const wait of events.length > 0 ? here() : []) {
      if (!this.circular(wait)) continue;
      this.waits = this.waits.filter((other) => other !== wait);
      events.push(`${wait.session}.${wait.id} deadlock`);
    }
    return events;
  }
}

function randomRun(seed: number, steps: number): { outcomes: Map<string, number> } {
  const random = new Prng(seed);
  const desk = new Desk();
  const model = new Model();
  const outcomes = new Map<string, number>();
  const fail = (step: number, what: string): never => {
    throw new Error(`seed ${seed}, step ${step}: ${what}`);
  };
  for (let step = 1; step <= steps; step++) {
    const session = random.int(1, 3);
    const start = random.int(0, BYTES - 1);
    const end = random.int(start, Math.min(start + 7, BYTES - 1));
    const mode = random.chance(0.5) ? "shared" : "exclusive";
    const wait: Wait = {
      id: random.chance(0.7) ? step : 0,
      session,
      owner: random.chance(0.7) ? "a" : "b",
      ino: random.int(1, 2),
      mode,
      start,
      end,
    };
    const { owner, ino, id } = wait;
    let expected: string[] = [];
    const dice = random.float();
    if (dice < 0.5) {
      const outcome = desk.lock(session, start, end, { owner, ino, mode, waiter: id });
      let right = "granted";
      if (model.blockers(wait).size > 0) {
        right = id === 0 ? "conflict" : model.circular(wait) ? "deadlock" : "queued";
      }
      if (outcome !== right) fail(step, `${outcome} instead of ${right}`);
      if (right === "granted") model.set(wait, mode);
      if (right === "queued") model.waits.push(wait);
      if (right === "granted") expected = model.settle(ino);
      outcomes.set(right, (outcomes.get(right) ?? 0) + 1);
    } else if (dice < 0.9) {
      desk.unlock(session, start, end, { owner, ino });
      model.set(wait, undefined);
      expected = model.settle(ino);
    } else if (dice < 0.97) {
      const chosen = model.waits[random.int(0, model.waits.length)];
      if (chosen === undefined) continue;
      if (!desk.table.cancel(chosen.session, chosen.id)) fail(step, "nothing to cancel");
      model.waits = model.waits.filter((other) => other !== chosen);
      desk.woken = [];
    } else {
      const files = new Set([...desk.table.held(session)].map((claim) => claim.ino));
      desk.table.dropSession(session, (desk.woken = []));
      model.waits = model.waits.filter((other) => other.session !== session);
      for (const [name, bytes] of model.bytes) {
        if (name.includes(`/${session}.`)) bytes.fill(undefined);
      }
      for (const file of files) expected.push(...model.settle(file));
    }
    for (const event of expected) {
      const what = event.split(" ")[1]!;
      outcomes.set(`then ${what}`, (outcomes.get(`then ${what}`) ?? 0) + 1);
    }
    if (desk.events() !== expected.join(", ")) {
      fail(step, `${desk.events()} instead of ${expected.join(", ")}`);
    }
    for (const who of [1, 2, 3]) compare(desk, model, who, (what) => fail(step, what));
  }
  return { outcomes };
}

function compare(desk: Desk, model: Model, session: number, fail: (what: string) => void): void {
  const claims = [...desk.table.held(session)];
  if (claims.length !== desk.table.count(session)) fail(`session ${session}: wrong count`);
  const seen = new Map<string, (LockMode | undefined)[]>();
  for (const { ino, owner, mode, start, end } of claims) {
    const name = `${ino}/${session}.${owner}`;
    const bytes = seen.get(name) ?? new Array<LockMode | undefined>(BYTES).fill(undefined);
    seen.set(name, bytes);
    if (start > 0n && bytes[Number(start) - 1] === mode) fail(`${name} is not joined`);
    for (let at = Number(start); at <= Number(end); at++) bytes[at] = mode;
  }
  for (const [name, bytes] of model.bytes) {
    if (!name.includes(`/${session}.`)) continue;
    const mine = seen.get(name) ?? [];
    for (let at = 0; at < BYTES; at++) {
      if (mine[at] !== bytes[at]) fail(`${name}: byte ${at} ${mine[at]}, not ${bytes[at]}`);
    }
  }
}

t.test("random requests agree with a model that knows every byte", (t) => {
  const total = new Map<string, number>();
  for (let seed = 1; seed <= 25; seed++) {
    for (const [what, count] of randomRun(seed, 300).outcomes) {
      total.set(what, (total.get(what) ?? 0) + count);
    }
  }
  for (const what of ["granted", "queued", "conflict", "deadlock", "then granted"]) {
    t.ok((total.get(what) ?? 0) > 50, `${what}: ${total.get(what)}`);
  }
  t.end();
});
