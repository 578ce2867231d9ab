/** The table of volumes to attach at the start of the machine. */
import t from "tap";
import {
  formatEntry,
  parseTable,
  tablePath,
  withEntry,
} from "../../../../cli/local/attachment-table.js";

t.test("lines are read, and written as they are read", (t) => {
  const text = `# a comment
mydevice
data   /dev/nbd3  ro   # to be looked at
  spare - loop,zookeeper=a:2181;b:2181
`;
  const entries = parseTable(text, "table");
  t.same(entries, [
    { volume: "mydevice", readOnly: false, kind: "nbd" },
    { volume: "data", device: "/dev/nbd3", readOnly: true, kind: "nbd" },
    { volume: "spare", readOnly: false, kind: "loop", zookeeper: "a:2181,b:2181" },
  ]);
  t.same(parseTable(entries.map(formatEntry).join("\n"), "table"), entries);
  t.same(parseTable("", "table"), []);
  t.end();
});

t.test("what is wrong is told with its line", (t) => {
  for (const [line, what] of [
    ["a b", /"b" is not a device/],
    ["a /dev/nbd0 rw", /"rw" is no option/],
    ["a - ro x", /"x" is one word too many/],
    ["a\na", /a is named twice/],
  ] as const) {
    t.throws(() => parseTable(`# first\n${line}`, "/etc/x"), {
      code: "Configuration",
      message: what,
    });
  }
  t.throws(() => parseTable("ok\n\na - x", "/etc/x"), { message: /^\/etc\/x:3: / });
  t.end();
});

t.test("entries are added, replaced in place and taken out; comments stay", (t) => {
  const entry = { volume: "a", readOnly: false, kind: "nbd" } as const;
  const first = withEntry("", "a", entry);
  t.match(first, /^# .*\na -\n$/);
  const second = withEntry(first, "b", { ...entry, volume: "b" });
  const third = withEntry(second, "a", { ...entry, device: "/dev/nbd1" });
  t.match(third, /^# .*\na \/dev\/nbd1\nb -\n$/);
  t.match(withEntry(third, "a", undefined), /^# .*\nb -\n$/);
  t.equal(withEntry("x # its comment\n", "y", undefined), "x # its comment\n");
  t.end();
});

t.test("where it is", (t) => {
  t.equal(tablePath({}), "/etc/dss/attachments");
  t.equal(tablePath({ DSS_DATA: "/data" }), "/data/attachments");
  t.equal(tablePath({ DSS_DATA: "/data", DSS_ATTACHMENTS: "/x" }), "/x");
  t.end();
});
