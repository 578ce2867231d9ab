/** Volumes as exports: locks taken and given back, and what is left of them after an eviction. */
import t from "tap";
import { DssError } from "../../../cluster/base/errors.js";
import type { ClientId } from "../../../cluster/base/ids.js";
import type { Clock } from "../../../cluster/platform/ports.js";
import type { SessionCache } from "../../../mds/client/session-cache.js";
import {
  contextKey,
  type Answer,
  type Grant,
  type MdsReply,
  type Released,
  type Request,
  type Volume,
} from "../../../mds/proto.js";
import {
  VolumeDirectory,
  type VolumeLocking,
  type VolumeSession,
} from "../../../nbd/volume-directory.js";
import { MemoryObjects } from "./memory-objects.js";

const OBJECT = 65_536;
const clock = { wallNs: () => 7n } as Clock;

function volume(id: number, name: string): Volume {
  return {
    ...{ id, name, size: 10 * OBJECT, createdNs: 0n, objectPrefix: `v${id}`, features: [] },
    layout: { pool: 1, objectSize: OBJECT, stripeUnit: OBJECT, stripeCount: 1 },
    ...{
      owner: "",
      ownerClient: 0,
      ...{ revision: 1, shrinkTo: 0, iopsLimit: 0, bandwidthLimit: 0 },
      ...{ snapSeq: 0, snapshots: [], rollbackTo: 0, snapshot: 0 },
      ...{ parent: null, ancestors: [], children: [], isFlattening: false },
      ownerSinceNs: 0n,
      writer: { client: 0, sinceNs: 0n, holder: "" },
    },
  };
}

/** A leader that keeps the rules of volumes in one object. */
class Leader implements VolumeSession {
  client: ClientId = 70_000;
  readonly calls: string[] = [];
  readonly volumes = [volume(1, "alpha"), volume(2, "beta")];
  /** Taken by somebody else. */
  busy: string | undefined;
  private cache: SessionCache | undefined;
  private grants = 0;
  /** What was given back. */
  readonly released: Released[] = [];

  release(released: Released): boolean {
    this.released.push(released);
    return true;
  }
  /** Asks for the right to change the volume's objects. */
  recall(id: number): void {
    this.cache?.recall({ ino: contextKey(id), mode: "none", seq: ++this.grants });
  }
  setCache(cache: SessionCache): void {
    this.cache = cache;
  }
  change(changed: Volume): void {
    this.cache?.volumeChanged?.(changed);
  }
  resume(): void {
    this.cache?.resumed();
  }
  evict(next: ClientId): void {
    this.client = next;
    this.cache?.evicted(new DssError("NoSession", "evicted"), []);
  }
  async call(request: Request): Promise<MdsReply> {
    const answer: Answer = {};
    switch (request.op) {
      case "volumeList":
        answer.volumes = this.volumes;
        break;
      case "volumeOpen": {
        this.calls.push(`open ${request.name} ${request.write ? "write" : "read"}`);
        if (request.name === this.busy && request.write) {
          throw new DssError("Busy", `volume ${request.name} is in use by h1 (nbd client.9)`);
        }
        const found = this.volumes.find((each) => each.name === request.name);
        if (found === undefined) {
          throw new DssError("NotFound", `there is no volume ${request.name}`);
        }
        Object.assign(answer, { volume: found, minEpoch: 33 });
        break;
      }
      case "volumeContext": {
        this.calls.push(`context ${request.id}`);
        const found = this.volumes.find((each) => each.id === request.id);
        if (found !== undefined) answer.volume = found;
        break;
      }
      case "volumeClose":
        this.calls.push(`close ${request.id}`);
        break;
      default:
        throw new Error(`unexpected ${request.op}`);
    }
    const grants: Grant[] = [];
    const { volume: opened } = answer;
    if (opened !== undefined && (request.op !== "volumeOpen" || request.write)) {
      const ino = contextKey(opened.id);
      grants.push({ ino, mode: "shared", seq: ++this.grants, maxSize: 0, minEpoch: 33 });
    }
    const reply: MdsReply = { id: 1, journal: 0, notFound: false, answer, grants };
    this.cache?.apply(request, reply, false);
    return reply;
  }
}

class Access extends MemoryObjects {
  closed = false;
  constructor(readonly client: ClientId) {
    super(OBJECT);
  }
  close(): void {
    this.closed = true;
  }
}

function world(options: { names?: string[]; readOnly?: boolean; lock?: VolumeLocking } = {}) {
  const leader = new Leader();
  const accesses: Access[] = [];
  const losses: DssError[] = [];
  const directory = new VolumeDirectory({
    mds: leader,
    clock,
    accessAs: (client) => {
      const access = new Access(client);
      accesses.push(access);
      return access;
    },
    names: options.names ?? [],
    readOnly: options.readOnly ?? false,
    ...(options.lock !== undefined && { lock: options.lock }),
    onLost: (error) => losses.push(error),
  });
  return { leader, directory, accesses, losses };
}

t.test("a volume is locked while it is open, and used under the lock's epoch", async (t) => {
  const { leader, directory, accesses } = world();
  const image = await directory.open("alpha");
  t.match(image, { name: "alpha", size: 10 * OBJECT, readOnly: false });
  await image.write(0, Buffer.alloc(100, 1));
  t.equal(accesses[0]?.minEpoch, 33);
  t.equal(accesses[0]?.client, 70_000);
  const other = await directory.open("beta");
  t.equal(accesses.length, 1, "one access for one session");
  await directory.close(image);
  await directory.close(other);
  t.same(leader.calls, ["open alpha write", "open beta write", "close 1", "close 2"]);
  t.same(
    (await directory.list()).map(({ name }) => name),
    ["alpha", "beta"],
  );
});

t.test("read-only use takes no lock", async (t) => {
  const { leader, directory } = world({ readOnly: true });
  leader.busy = "alpha";
  t.equal((await directory.open("alpha")).readOnly, true);
  t.same(leader.calls, ["open alpha read"]);
});

t.test("a server that continues finds its volume under a new name", async (t) => {
  const lock = { holder: "line 1", continues: true };
  const { leader, directory } = world({ names: ["old"], lock });
  leader.volumes[1]!.writer = { client: 5, sinceNs: 1n, holder: "line 1" };
  await directory.hold("old");
  const image = await directory.open("old");
  await directory.close(image);
  t.same(leader.calls, ["open beta write"], "and keeps it, whatever it is called");
  await directory.release();
  t.same(leader.calls, ["open beta write", "close 2"]);
  const stranger = world({ names: ["old"], lock: { holder: "line 2", continues: true } });
  await t.rejects(stranger.directory.hold("old"), { code: "NotFound" });
});

t.test("what cannot be opened says why", async (t) => {
  const { leader, directory } = world();
  leader.busy = "alpha";
  await t.rejects(directory.open("alpha"), { code: "Busy", message: /in use by h1 \(nbd/ });
  await t.rejects(directory.open("gamma"), { code: "NotFound", message: /gamma/ });
  leader.client = 0;
  await t.rejects(directory.open("beta"), { code: "NoSession" });
});

t.test("only the named volumes are offered", async (t) => {
  const { directory } = world({ names: ["beta"] });
  t.same(
    (await directory.list()).map(({ name }) => name),
    ["beta"],
  );
  await t.rejects(directory.open("alpha"), { code: "NotFound", message: /not offered/ });
});

t.test("a held volume stays locked between its clients", async (t) => {
  const { leader, directory } = world({ names: ["alpha"] });
  await directory.hold("alpha");
  const image = await directory.open("alpha");
  await directory.close(image);
  t.equal(await directory.open("alpha"), image);
  await directory.close(image);
  t.same(leader.calls, ["open alpha write"]);
  await directory.release();
  t.same(leader.calls, ["open alpha write", "close 1"]);
  await directory.release();
  t.equal(leader.calls.length, 2, "given back once");
});

t.test("an eviction loses the images for good; a new session starts afresh", async (t) => {
  const { leader, directory, accesses, losses } = world();
  leader.evict(70_001);
  t.same(losses, [], "nothing was open, nothing is lost");
  await directory.hold("alpha");
  const image = await directory.open("alpha");
  await image.write(0, Buffer.alloc(10, 1));
  leader.evict(70_002);
  t.match(losses, [{ code: "Fenced", message: /alpha/ }]);
  t.ok(accesses[0]?.closed, "requests under the old id end");
  await t.rejects(image.read(0, 1), { code: "Fenced" });
  await directory.close(image);
  await directory.release();
  t.same(leader.calls, ["open alpha write"], "a lost lock is not given back");
  const again = await directory.open("alpha");
  await again.read(0, 1);
  t.equal(accesses[1]?.client, 70_002, "never the old id");
  t.equal(accesses.length, 2);
  directory.shutDown();
  t.ok(accesses[1]?.closed);
});

t.test("a change of the record reaches the open image, however it is told", async (t) => {
  const { leader, directory } = world();
  const image = await directory.open("alpha");
  const grown = { ...leader.volumes[0]!, size: 20 * OBJECT, revision: 2 };
  leader.change(grown);
  t.equal(image.size, 20 * OBJECT);
  leader.change({ ...grown, size: 15 * OBJECT, revision: 1 });
  t.equal(image.size, 20 * OBJECT, "an older record is no news");
  leader.change({ ...grown, id: 2, revision: 9 });
  t.equal(image.volume.id, 1, "another volume's neither");
  leader.volumes[0] = { ...grown, name: "gamma", size: 30 * OBJECT, revision: 3 };
  leader.resume();
  await new Promise(setImmediate);
  t.equal(image.size, 30 * OBJECT, "asked for after a lost connection");
  t.equal(image.name, "alpha", "clients keep the name that they know");
});

t.test("a renamed volume has one image and one lock under both names", async (t) => {
  const { leader, directory } = world();
  const image = await directory.open("alpha");
  leader.volumes[0] = { ...leader.volumes[0]!, name: "gamma", revision: 2 };
  t.equal(await directory.open("gamma"), image);
  await directory.close(image);
  t.notOk(leader.calls.includes("close 1"), "it is still in use");
  // An opening under way while the last user leaves: the lock must not be taken away after it.
  const opening = directory.open("gamma");
  const closing = directory.close(image);
  t.equal(await opening, image);
  await closing;
  t.notOk(leader.calls.includes("close 1"), "it is in use again");
  await directory.close(image);
  t.equal(leader.calls.at(-1), "close 1");
});

t.test(
  "a snapshot is taken between changes: those under way end, the next ones know it",
  async (t) => {
    const { leader, directory, accesses } = world();
    const image = await directory.open("alpha");
    const access = accesses[0]!;
    const { contexts } = access;
    let release: () => void = () => undefined;
    const held = new Promise<void>((resolve) => (release = resolve));
    access.gate = () => held;
    const before = image.write(0, Buffer.alloc(10, 1));
    await new Promise((resolve) => setImmediate(resolve));
    leader.recall(1);
    const taken = {
      id: 1,
      name: "s",
      size: 10 * OBJECT,
      createdNs: 0n,
      isProtected: false,
      origin: "",
    };
    leader.volumes[0] = { ...volume(1, "alpha"), snapSeq: 1, snapshots: [taken], revision: 2 };
    const after = image.write(0, Buffer.alloc(10, 2));
    await new Promise((resolve) => setImmediate(resolve));
    t.same(leader.released, [], "not while something is under way");
    t.equal(contexts.length, 1, "and nothing more is begun");
    release();
    await Promise.all([before, after]);
    t.match(leader.released, [{ ino: contextKey(1), mode: "none" }]);
    t.same(leader.calls, ["open alpha write", "context 1"]);
    t.same(contexts, [
      { seq: 0, newest: 0 },
      { seq: 1, newest: 1 },
    ]);
  },
);

t.test("who gave up on a change does not let a snapshot be taken over it", async (t) => {
  const { leader, directory, accesses } = world();
  const image = await directory.open("alpha");
  accesses[0]!.gate = () => Promise.reject(new DssError("TimedOut", "no answer"));
  await t.rejects(image.write(0, Buffer.alloc(10)), { code: "TimedOut" });
  accesses[0]!.gate = undefined;
  leader.recall(1);
  const later = image.write(0, Buffer.alloc(10));
  await new Promise((resolve) => setImmediate(resolve));
  t.same(leader.released, [], "it is fenced");
  leader.evict(70_001);
  await t.rejects(later, { code: "Fenced" });
});
