/** What `-o` may say, and what mount(8) calls its helper with. */
import t from "tap";
import { mountArguments } from "../../../cli/mount-arguments.js";
import { parseMountOptions } from "../../../client-fs/mount-options.js";

t.test("options", async (t) => {
  const parsed = parseMountOptions(["ro", "noatime", "allow_other", "uid=7", "cache=2M", "nodev"]);
  t.match(parsed, { readOnly: true, sync: false, owner: { uid: 7 }, cacheBytes: 2 ** 21 });
  t.match(parsed, { atime: { mode: "noatime", directories: true }, extra: ["noatime", "nodev"] });
  t.equal(parseMountOptions(["noatime", "strictatime"]).atime.mode, "strictatime");
  t.equal(parseMountOptions(["cache=none"]).cacheBytes, 0);
  t.equal(parseMountOptions(["nodiratime"]).atime.directories, false);
  t.same([parseMountOptions(["noxattr"]).xattrs, parsed.xattrs], [false, true]);
  for (const wrong of ["x", "uid=", "uid=-1", "gid=4294967295", "cache=", "cache=1T", "fsname="]) {
    t.throws(() => parseMountOptions([wrong]), { code: "Configuration" }, wrong);
  }
});

t.test("the helper of mount(8)", async (t) => {
  t.same(mountArguments(["dss", "/m", "-o", "rw,ro"]), ["mount", "/m", "-o", "rw,ro"]);
  const servers = ["--zookeeper", "a:1,b:2", "mount", "/m"];
  t.same(mountArguments(["a:1,b:2", "/m", "-sv", "-t", "dss"]), servers);
  t.same(mountArguments(["a:1,b:2", "/m", "-r"]), [...servers, "-o", "ro"]);
  t.equal(mountArguments(["dss", "/m", "-f"]), undefined);
  t.type(mountArguments(["dss"]), "string");
  t.type(mountArguments(["dss", "/m", "-o"]), "string");
  t.type(mountArguments(["dss", "/m", "-q"]), "string");
});
