/** Negotiation: every option, cut at every byte, with what is wrong about it. */
import t from "tap";
import { DssError } from "../../../cluster/base/errors.js";
import type { ExportFacts, Session } from "../../../nbd/abi.js";
import {
  BACKLOG_BYTES_MAX,
  Handshake,
  OPTION_BYTES_MAX,
  OPTION_SKIP_BYTES_MAX,
  OPTIONS_MAX,
  type HandshakeEffect,
  type TlsPolicy,
} from "../../../nbd/handshake.js";
import {
  contextData,
  FLAGS,
  infoData,
  option,
  parseOptionReplies,
  u16,
  u32,
  u64,
} from "./client-bytes.js";

const ACK = 1;
const SERVER = 2;
const INFO = 3;
const META = 4;
const UNSUP = 0x80000001;
const POLICY = 0x80000002;
const INVALID = 0x80000003;
const PLATFORM = 0x80000004;
const TLS_REQD = 0x80000005;
const UNKNOWN = 0x80000006;
const SHUTDOWN = 0x80000007;
const TOO_BIG = 0x80000009;
const EXT_REQD = 0x8000000a;

const FACTS: ExportFacts = {
  name: "disk",
  description: "a disk",
  size: 0x123456789a00,
  readOnly: false,
  blockSize: { minimum: 512, preferred: 4096, maximum: 1 << 25 },
};
// has-flags, flush, fua, trim, write-zeroes, multi-conn, cache, fast-zero
const READ_WRITE = 0xd6d;
const READ_ONLY = 0x50f; // has-flags, read-only, flush, fua, multi-conn, cache
const DF = 0x80;
const STATUS_PAYLOAD = 0x1000;

/** Runs a handshake against a directory with one export (and the default ""), recording. */
class Run {
  readonly handshake: Handshake;
  session: Session | undefined;
  sent = Buffer.alloc(0);
  readonly asked: string[] = [];
  entered: Buffer | undefined;
  closed: string | undefined;

  constructor(
    readonly facts: ExportFacts = FACTS,
    readonly refusal?: DssError,
    tls: TlsPolicy = "off",
  ) {
    this.handshake = new Handshake(tls);
    this.run(this.handshake.start());
  }
  push(...bytes: Buffer[]): this {
    for (const chunk of bytes) this.run(this.handshake.onBytes(chunk));
    return this;
  }
  run(effects: HandshakeEffect[]): void {
    for (const effect of effects) {
      if (this.closed !== undefined) throw new Error(`${effect.do} after close`);
      if (effect.do === "send") this.sent = Buffer.concat([this.sent, effect.bytes]);
      else if (effect.do === "enter") {
        this.entered = Buffer.concat(effect.rest);
        this.session = effect.session;
      } else if (effect.do === "close") this.closed = effect.fault ?? "";
      else if (effect.do === "list") {
        this.asked.push("list");
        const entries = [
          { name: "disk", description: "a disk" },
          { name: "é", description: "" },
        ];
        if (this.refusal) this.run(this.handshake.onRefused(this.refusal));
        else this.run(this.handshake.onListed(entries));
      } else if (effect.do === "secure") {
        this.asked.push("secure");
      } else {
        this.asked.push(`open ${effect.name}`);
        if (this.refusal) this.run(this.handshake.onRefused(this.refusal));
        else this.run(this.handshake.onOpened(this.facts));
      }
    }
  }
  get replies(): { option: number; type: number; data: Buffer }[] {
    return parseOptionReplies(this.sent.subarray(18));
  }
  get types(): number[] {
    return this.replies.map((reply) => reply.type);
  }
}

t.test("the greeting offers fixed newstyle without padding", (t) => {
  t.same(new Run().sent, Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), u16(3)]));
  t.end();
});

t.test("EXPORT_NAME answers size and flags, padded unless negotiated away", (t) => {
  const plain = new Run().push(FLAGS, option(1, Buffer.from("disk")));
  t.same(plain.sent.subarray(18), Buffer.concat([u64(0x123456789a00n), u16(READ_WRITE)]));
  t.same(plain.asked, ["open disk"]);
  t.same(plain.entered, Buffer.alloc(0));

  const padded = new Run().push(u32(1), option(1, Buffer.from("disk")));
  t.same(
    padded.sent.subarray(18),
    Buffer.concat([u64(0x123456789a00n), u16(READ_WRITE), Buffer.alloc(124)]),
  );
  const readOnly = new Run({ ...FACTS, readOnly: true }).push(FLAGS, option(1));
  t.equal(readOnly.sent.readUInt16BE(18 + 8), READ_ONLY);
  t.same(readOnly.asked, ["open "], "no data means the default export");
  t.end();
});

t.test("EXPORT_NAME cannot be refused, so the connection ends", (t) => {
  const unknown = new Run(FACTS, new DssError("NotFound", "no such volume"));
  unknown.push(FLAGS, option(1, Buffer.from("x")));
  t.equal(unknown.sent.length, 18);
  t.equal(unknown.closed, "");
  t.match(new Run().push(FLAGS, option(1, Buffer.from([0xff]))).closed, /UTF-8/);
  t.match(new Run().push(FLAGS, option(1, Buffer.from("a\0b"))).closed, /NUL/);
  t.match(new Run().push(FLAGS, option(1, Buffer.alloc(4097, "a"))).closed, /4096/);
  t.match(new Run().push(FLAGS, Buffer.from("IHAVEOPT"), u32(1), u32(70_000)).closed, /70000/);
  t.end();
});

t.test("GO tells what was asked and enters transmission with the bytes that follow", (t) => {
  const run = new Run().push(
    FLAGS,
    Buffer.concat([option(7, infoData("disk", [3, 1, 2, 77, 3])), Buffer.from("rest")]),
  );
  const info = run.replies.filter((reply) => reply.type === INFO).map((reply) => reply.data);
  t.same(info, [
    Buffer.concat([u16(0), u64(0x123456789a00n), u16(READ_WRITE)]),
    Buffer.concat([u16(3), u32(512), u32(4096), u32(1 << 25)]),
    Buffer.concat([u16(1), Buffer.from("disk")]),
    Buffer.concat([u16(2), Buffer.from("a disk")]),
  ]);
  t.equal(run.types.at(-1), ACK);
  t.ok(run.replies.every((reply) => reply.option === 7));
  t.same(run.entered, Buffer.from("rest"));
  t.same(run.push(option(3)).asked, ["open disk"], "nothing is negotiated any more");
  t.end();
});

t.test("INFO answers the same and negotiation goes on", (t) => {
  const run = new Run().push(FLAGS, option(6, infoData("disk")), option(7, infoData("disk")));
  t.same(run.types, [INFO, ACK, INFO, ACK]);
  t.same(run.asked, ["open disk", "open disk"]);
  t.ok(run.entered);
  t.end();
});

t.test("INFO and GO with impossible lengths or names are invalid, and harmless", (t) => {
  const bad: [Buffer, number][] = [
    [Buffer.alloc(0), INVALID],
    [Buffer.alloc(5), INVALID],
    [Buffer.concat([u32(5), Buffer.from("disk"), u16(0)]), INVALID],
    [Buffer.concat([u32(0xffffffff), u16(0)]), INVALID],
    [Buffer.concat([infoData("disk", [1]), Buffer.from([0])]), INVALID],
    [infoData("disk", [1, 2]).subarray(0, 12), INVALID],
    [infoData("a\0"), INVALID],
    [Buffer.concat([u32(1), Buffer.from([0xc3]), u16(0)]), INVALID],
    [infoData("n".repeat(4097)), TOO_BIG],
  ];
  for (const number of [6, 7]) {
    for (const [data, type] of bad) {
      const run = new Run().push(FLAGS, option(number, data), option(3));
      t.same(run.types, [type, SERVER, SERVER, ACK]);
      t.same(run.asked, ["list"]);
    }
  }
  t.end();
});

t.test("a refused export is answered with the protocol's reason", (t) => {
  const cases: [DssError, number][] = [
    [new DssError("NotFound", "no"), UNKNOWN],
    [new DssError("Unreachable", "no"), UNKNOWN],
    [new DssError("Busy", "locked by another"), POLICY],
    [new DssError("AccessDenied", "no"), POLICY],
    [new DssError("ShuttingDown", "no"), SHUTDOWN],
    [new DssError("NotSupported", "no"), PLATFORM],
  ];
  for (const [error, type] of cases) {
    const run = new Run(FACTS, error).push(FLAGS, option(7, infoData("disk")), option(2));
    t.same(run.types, [type, ACK], error.code);
    t.equal(run.replies[0]!.data.toString(), `${error.code}: ${error.message}`);
    t.equal(run.entered, undefined);
  }
  t.same(new Run(FACTS, new DssError("TimedOut", "no")).push(FLAGS, option(3)).types, [UNKNOWN]);
  const long = new Run(FACTS, new DssError("NotFound", "é".repeat(4000)));
  const text = long.push(FLAGS, option(7, infoData("x"))).replies[0]!.data;
  t.ok(text.length <= 4096 && text.length > 4000, "a message is at most 4,096 bytes");
  t.notMatch(text.toString(), /\ufffd/, "and is cut at a character");
  t.end();
});

t.test("LIST names every export and takes no data", (t) => {
  const run = new Run().push(FLAGS, option(3));
  t.same(run.types, [SERVER, SERVER, ACK]);
  t.same(run.replies[0]!.data, Buffer.concat([u32(4), Buffer.from("diska disk")]));
  t.same(run.replies[1]!.data, Buffer.concat([u32(2), Buffer.from("é")]));
  t.same(new Run().push(FLAGS, option(3, Buffer.from("x"))).types, [INVALID]);
  t.end();
});

t.test("ABORT is acknowledged, whatever its data, and ends the connection", (t) => {
  for (const data of [Buffer.alloc(0), Buffer.from("bye")]) {
    const run = new Run().push(FLAGS, option(2, data), option(3));
    t.same(run.types, [ACK]);
    t.equal(run.closed, "");
  }
  t.end();
});

t.test("other options are unsupported and their data is skipped", (t) => {
  for (const number of [0, 4, 12, 99, 0xffffffff]) {
    const run = new Run().push(FLAGS, option(number, Buffer.alloc(33, 7)), option(3));
    t.same(run.types, [UNSUP, SERVER, SERVER, ACK], `option ${number}`);
    t.equal(run.replies[0]!.option, number);
  }
  t.end();
});

t.test("too much option data is read past up to a limit", (t) => {
  const big = Buffer.alloc(OPTION_BYTES_MAX + 1);
  const run = new Run().push(FLAGS, option(99, big), option(3));
  t.same(run.types, [TOO_BIG, SERVER, SERVER, ACK]);
  t.same(new Run().push(FLAGS, option(99, big.subarray(1))).types, [UNSUP], "the limit itself");
  const flood = new Run().push(FLAGS, Buffer.from("IHAVEOPT"), u32(9));
  flood.push(u32(OPTION_SKIP_BYTES_MAX + 1));
  t.match(flood.closed, /bytes of data/);
  t.end();
});

t.test("a client that breaks the protocol is dropped", (t) => {
  t.match(new Run().push(u32(4)).closed, /client flags/);
  t.match(new Run().push(u32(0x80000003)).closed, /client flags/);
  t.match(new Run().push(FLAGS, Buffer.alloc(16)).closed, /magic/);
  t.match(new Run().push(Buffer.from("GET / HTTP/1.1\r\n")).closed, /client flags/);
  const busy = new Run();
  busy.push(FLAGS);
  for (let i = 0; i < OPTIONS_MAX; i++) busy.push(option(3));
  t.equal(busy.closed, undefined);
  t.match(busy.push(option(3)).closed, /1024 options/);
  t.end();
});

t.test("while the directory is asked nothing is parsed, and little is kept", (t) => {
  const handshake = new Handshake();
  handshake.start();
  const effects = handshake.onBytes(Buffer.concat([FLAGS, option(3), option(2)]));
  t.same(effects, [{ do: "list" }]);
  t.ok(handshake.busy);
  t.same(
    handshake.onListed([]).map((effect) => effect.do),
    ["send", "send", "close"],
    "the options that came meanwhile follow",
  );
  const pushy = new Handshake();
  pushy.start();
  pushy.onBytes(Buffer.concat([FLAGS, option(3)]));
  t.same(pushy.onBytes(Buffer.alloc(BACKLOG_BYTES_MAX)), []);
  t.match(pushy.onBytes(Buffer.alloc(1)), [{ do: "close", fault: /without waiting/ }]);
  t.same(pushy.onListed([]), [], "the late answer finds nothing to do");
  t.end();
});

t.test("an answer after the client has gone is ignored, one nobody asked for is a bug", (t) => {
  const handshake = new Handshake();
  handshake.start();
  t.throws(() => handshake.onListed([]), /without a question/);
  handshake.onBytes(Buffer.concat([FLAGS, option(7, infoData("disk"))]));
  t.throws(() => handshake.onListed([]), /answers no question/);
  handshake.abandon();
  t.same(handshake.onOpened(FACTS), []);
  t.same(handshake.onBytes(option(3)), []);
  t.end();
});

t.test("the answers do not depend on how the bytes are split", (t) => {
  const bytes = Buffer.concat([
    FLAGS,
    option(8),
    option(3, Buffer.from("x")),
    option(3),
    option(6, infoData("disk", [1, 2, 3])),
    option(9, Buffer.alloc(100)),
    option(7, infoData("disk", [3])),
    Buffer.from("transmission"),
  ]);
  const whole = new Run().push(bytes);
  t.equal(whole.types.length, 14);
  const check = (run: Run, how: string): void => {
    const same = run.sent.equals(whole.sent) && whole.asked.join() === run.asked.join();
    if (same && run.entered?.toString() === "transmission") return;
    t.fail(`split ${how} gives other answers`);
  };
  for (let cut = 1; cut < bytes.length; cut++) {
    // Beyond the last option there is no handshake to split.
    if (cut >= bytes.length - "transmission".length) break;
    check(new Run().push(bytes.subarray(0, cut), bytes.subarray(cut)), `at ${cut}`);
  }
  const single = new Run();
  const options = bytes.subarray(0, bytes.length - "transmission".length);
  for (let at = 0; at < options.length - 1; at++) single.push(options.subarray(at, at + 1));
  single.push(bytes.subarray(options.length - 1));
  check(single, "into bytes");
  t.end();
});

const context = (id: number) => Buffer.concat([u32(id), Buffer.from("base:allocation")]);
const STRUCTURED = option(8);
const EXTENDED = option(11);
/** The flags that an INFO of the export tells. */
function flagsOf(run: Run): number {
  const info = run.replies.filter((reply) => reply.type === INFO).at(-1)!;
  return info.data.readUInt16BE(10);
}

t.test("structured replies and extended headers change what the export offers", (t) => {
  const go = option(7, infoData("disk"));
  const plain = new Run().push(FLAGS, go);
  t.equal(flagsOf(plain), READ_WRITE);
  t.same(plain.session, { structured: false, extended: false, allocation: false });
  const chunks = new Run().push(FLAGS, STRUCTURED, go);
  t.equal(flagsOf(chunks), READ_WRITE | DF);
  t.same(chunks.session, { structured: true, extended: false, allocation: false });
  const wide = new Run().push(FLAGS, EXTENDED, go);
  t.equal(flagsOf(wide), READ_WRITE | DF);
  t.same(wide.session, { structured: true, extended: true, allocation: false });
  const selected = option(10, contextData("disk", ["base:allocation"]));
  const all = new Run().push(FLAGS, EXTENDED, selected, go);
  t.equal(flagsOf(all), READ_WRITE | DF | STATUS_PAYLOAD);
  t.same(all.session, { structured: true, extended: true, allocation: true });
  t.end();
});

t.test("what extended headers exclude", (t) => {
  const run = new Run().push(FLAGS, STRUCTURED, EXTENDED, STRUCTURED);
  t.same(run.types, [ACK, ACK, EXT_REQD], "but structured replies may come first");
  run.push(option(1, Buffer.from("disk")));
  t.match(run.closed, /extended/);
  t.same(new Run().push(FLAGS, option(8, u32(1)), option(11, u32(1))).types, [INVALID, INVALID]);
  t.end();
});

t.test("metadata contexts are listed and selected", (t) => {
  const run = new Run().push(FLAGS, STRUCTURED);
  const ask = (number: number, queries: string[]) => {
    const before = run.replies.length;
    run.push(option(number, contextData("disk", queries)));
    return run.replies.slice(before).map(({ type, data }) => (type === META ? data : type));
  };
  t.same(ask(9, []), [context(0), ACK], "all of them");
  t.same(ask(9, ["base:"]), [context(0), ACK]);
  t.same(ask(9, ["base:allocation", "base:"]), [context(0), ACK], "once");
  t.same(ask(9, ["x-mine:", "base:other", "qemu:dirty-bitmap:a"]), [ACK]);
  t.same(ask(10, ["x-mine:y", "base:allocation"]), [context(1), ACK]);
  t.same(ask(10, []), [ACK], "none");
  t.same(ask(10, ["base:"]), [ACK], "no wildcards when setting");
  t.same(ask(10, ["allocation"]), [INVALID], "a query has a namespace");
  run.push(option(7, infoData("disk")));
  t.equal(run.session?.allocation, false, "the last one counts");
  t.end();
});

t.test("contexts count for the export that they were selected for", (t) => {
  const set = (name: string) => option(10, contextData(name, ["base:allocation"]));
  const go = option(7, infoData(""));
  t.equal(new Run().push(FLAGS, STRUCTURED, set(""), go).session?.allocation, true);
  const spelled = new Run().push(FLAGS, STRUCTURED, set("disk"), go);
  t.equal(spelled.session?.allocation, true, "by its canonical name");
  const failed = new Run().push(FLAGS, STRUCTURED, set("disk"), option(10, u32(9)), go);
  t.equal(failed.session?.allocation, false, "a selection that fails selects nothing");
  const early = new Run().push(FLAGS, set("disk"), STRUCTURED, go);
  t.same(early.types, [INVALID, ACK, INFO, ACK]);
  t.equal(early.session?.allocation, false);
  const unknown = new Run(FACTS, new DssError("NotFound", "no")).push(FLAGS, STRUCTURED, set("x"));
  t.same(unknown.types, [ACK, UNKNOWN]);
  t.end();
});

t.test("malformed context queries", (t) => {
  const name = Buffer.concat([u32(4), Buffer.from("disk")]);
  for (const [data, type] of [
    [Buffer.alloc(0), INVALID],
    [Buffer.concat([u32(5), Buffer.from("disk"), u32(0)]), INVALID],
    [Buffer.concat([u32(0xffffffff), Buffer.from("disk"), u32(0)]), INVALID],
    [Buffer.concat([name, u32(1)]), INVALID],
    [Buffer.concat([name, u32(1), u32(5), Buffer.from("a:b")]), INVALID],
    [Buffer.concat([name, u32(1), u32(0xffffffff), Buffer.from("a:b")]), INVALID],
    [Buffer.concat([name, u32(0), u32(0)]), INVALID],
    [Buffer.concat([name, u32(1), u32(3), Buffer.from([0x61, 0x3a, 0xff])]), INVALID],
    [Buffer.concat([name, u32(0xffffffff)]), TOO_BIG],
    [contextData("disk", Array.from({ length: 65 }, () => "a:b")), TOO_BIG],
  ] as [Buffer, number][]) {
    t.same(new Run().push(FLAGS, STRUCTURED, option(9, data)).types, [ACK, type]);
  }
  t.end();
});

t.test("without a certificate STARTTLS is refused, and nothing else is", (t) => {
  const run = new Run().push(FLAGS, option(5), option(7, infoData("disk")));
  t.same(run.types, [POLICY, INFO, ACK]);
  t.end();
});

t.test("encryption starts after its ACK and forgets what was negotiated before", (t) => {
  const run = new Run(FACTS, undefined, "allow");
  run.push(FLAGS, STRUCTURED, option(10, contextData("disk", ["base:allocation"])), option(5));
  t.equal(run.types.at(-1), ACK);
  t.same(run.asked, ["open disk", "secure"]);
  t.ok(run.handshake.busy);
  run.run(run.handshake.onSecured());
  run.push(option(5));
  t.equal(run.types.at(-1), INVALID, "once");
  run.push(option(7, infoData("disk")));
  t.same(run.session, { structured: false, extended: false, allocation: false });
  t.end();
});

t.test("what was put behind STARTTLS in the clear ends the connection", (t) => {
  const run = new Run(FACTS, undefined, "allow");
  run.push(FLAGS, Buffer.concat([option(5), option(3)]));
  t.match(run.closed, /clear/);
  t.same(run.asked, []);
  t.same(new Run(FACTS, undefined, "allow").push(FLAGS, option(5, u32(1))).types, [INVALID]);
  t.end();
});

t.test("a server that requires encryption tells nothing before it", (t) => {
  const run = new Run(FACTS, undefined, "require");
  const go = option(7, infoData("disk"));
  run.push(FLAGS, option(3), option(6, infoData("disk")), go, STRUCTURED, option(99));
  run.push(option(99, Buffer.alloc(OPTION_BYTES_MAX + 1)));
  t.same(run.types, Array.from({ length: 6 }, () => TLS_REQD));
  t.same(run.asked, []);
  run.push(option(5));
  run.run(run.handshake.onSecured());
  run.push(STRUCTURED, go);
  t.same(run.types.slice(6), [ACK, ACK, INFO, ACK]);
  t.ok(run.entered);

  t.equal(new Run(FACTS, undefined, "require").push(FLAGS, option(2)).types.at(-1), ACK);
  const old = new Run(FACTS, undefined, "require").push(FLAGS, option(1, Buffer.from("disk")));
  t.match(old.closed, /encryption/);
  t.match(new Run(FACTS, undefined, "require").push(u32(0)).closed, /encrypt/);
  const simple = new Run(FACTS, undefined, "allow").push(u32(0), option(5));
  t.same(simple.types, [POLICY], "TLS is for clients that know the fixed newstyle");
  t.end();
});
