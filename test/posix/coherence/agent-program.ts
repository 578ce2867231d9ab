/**
 * The program that makes system calls on one mount for the coherence suite: long-lived, one call
 * after the other, asked by lines of JSON on standard input. In Python, because Node lacks mmap,
 * locks and half of the other calls. Each answer is `[begin, end, value, error]`: when the call
 * began and returned (microseconds of the clock that all processes of the machine share), what it
 * returned, and the name of its errno.
 */
export const AGENT_PROGRAM = String.raw`
import base64, ctypes, errno, fcntl, json, mmap, os, stat, sys, time
libc = ctypes.CDLL(None, use_errno=True)
root = sys.argv[1]
files, maps, folders = {}, {}, {}
libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
for each in (libc.readdir, libc.rewinddir, libc.closedir): each.argtypes = [ctypes.c_void_p]
os.umask(0)
AT_FDCWD = -100
PROTECTION = {"r": mmap.PROT_READ, "w": mmap.PROT_READ | mmap.PROT_WRITE}

def there(name): return root + "/" + name
def text(data): return base64.b64encode(data).decode()
def check(result):
    if result == -1: raise OSError(ctypes.get_errno(), "refused")
def shown(s):
    return {"ino": s.st_ino, "mode": s.st_mode, "nlink": s.st_nlink, "uid": s.st_uid,
            "gid": s.st_gid, "size": s.st_size, "mtimeMs": s.st_mtime_ns // 1000000}
def write_all(fd, data, at):
    n = os.pwrite(fd, data, at)
    if n != len(data): raise OSError(errno.EIO, "short write")

def op_open(slot, name, flags, mode=0o644): files[slot] = os.open(there(name), flags, mode)
def op_close(slot): os.close(files.pop(slot))
def op_pread(slot, at, length): return text(os.pread(files[slot], length, at))
def op_pwrite(slot, at, data): write_all(files[slot], base64.b64decode(data), at)
def op_append(slot, data):
    data = base64.b64decode(data)
    if os.write(files[slot], data) != len(data): raise OSError(errno.EIO, "short write")
def op_fsync(slot): os.fsync(files[slot])
def op_ftruncate(slot, size): os.ftruncate(files[slot], size)
def op_truncate(name, size): os.truncate(there(name), size)
def op_fallocate(slot, mode, at, length):
    check(libc.fallocate(files[slot], mode, ctypes.c_long(at), ctypes.c_long(length)))
def op_copy(slot, at, to, length):
    while length > 0:
        n = os.copy_file_range(files[slot], files[slot], length, at, to)
        if n == 0: raise OSError(errno.EIO, "copied too little")
        at, to, length = at + n, to + n, length - n
def op_fstat(slot): return shown(os.fstat(files[slot]))
def op_stat(name): return shown(os.lstat(there(name)))
def op_read(name):
    fd = os.open(there(name), os.O_RDONLY)
    try:
        data = b""
        while True:
            piece = os.pread(fd, 1 << 20, len(data))
            if not piece: return text(data)
            data += piece
    finally: os.close(fd)
def op_write(name, data, flags, mode=0o644):
    fd = os.open(there(name), flags, mode)
    try: write_all(fd, base64.b64decode(data), 0)
    finally: os.close(fd)
def op_list(name): return os.listdir(there(name))
def op_opendir(slot, name):
    folders[slot] = libc.opendir(there(name).encode())
    if not folders[slot]: check(-1)
def op_readsome(slot, count):
    names = []
    while len(names) < count:
        ctypes.set_errno(0)
        entry = libc.readdir(folders[slot])
        if not entry:
            if ctypes.get_errno(): check(-1)
            break
        name = ctypes.string_at(entry + 19).decode()
        if name not in (".", ".."): names.append(name)
    return names
def op_relist(slot):
    libc.rewinddir(folders[slot])
    return op_readsome(slot, 1 << 30)
def op_closedir(slot): check(libc.closedir(folders.pop(slot)))
def op_rename(name, other, flags=0):
    check(libc.renameat2(AT_FDCWD, there(name).encode(), AT_FDCWD, there(other).encode(), flags))
def op_link(name, other): os.link(there(name), there(other))
def op_unlink(name): os.unlink(there(name))
def op_mkdir(name): os.mkdir(there(name), 0o755)
def op_rmdir(name): os.rmdir(there(name))
def op_symlink(target, name): os.symlink(target, there(name))
def op_readlink(name): return os.readlink(there(name))
def op_chmod(name, mode): os.chmod(there(name), mode)
def op_chown(name, uid, gid): os.chown(there(name), uid, gid)
def op_utime(name, ms): os.utime(there(name), ns=(ms * 1000000, ms * 1000000))
def op_setxattr(name, key, value): os.setxattr(there(name), key, value.encode())
def op_removexattr(name, key): os.removexattr(there(name), key)
def op_xattrs(name):
    keys = [key for key in os.listxattr(there(name)) if key.startswith("user.")]
    return {key: os.getxattr(there(name), key).decode() for key in keys}
def op_map(slot, name, length, how):
    maps[name] = mmap.mmap(files[slot], length, mmap.MAP_SHARED, PROTECTION[how])
def op_mread(name, at, length): return text(maps[name][at:at + length])
def op_mwrite(name, at, data):
    data = base64.b64decode(data)
    maps[name][at:at + len(data)] = data
def op_msync(name): maps[name].flush()
def op_unmap(name): maps.pop(name).close()
LOCKS = {"ex": fcntl.LOCK_EX, "sh": fcntl.LOCK_SH, "un": fcntl.LOCK_UN}
def op_flock(slot, kind, wait=False):
    fcntl.flock(files[slot], LOCKS[kind] | (0 if wait or kind == "un" else fcntl.LOCK_NB))
def op_lockf(slot, kind, start, length, wait=False):
    how = LOCKS[kind] | (0 if wait or kind == "un" else fcntl.LOCK_NB)
    fcntl.lockf(files[slot], how, length, start)
def op_increment(slot, how, count):
    fd, seen = files[slot], []
    for _ in range(count):
        op_flock(slot, "ex", True) if how == "flock" else op_lockf(slot, "ex", 0, 0, True)
        seen.append(int(os.pread(fd, 20, 0) or b"0"))
        os.pwrite(fd, b"%020d" % (seen[-1] + 1), 0)
        op_flock(slot, "un") if how == "flock" else op_lockf(slot, "un", 0, 0)
    return seen
def op_wait(until):
    while time.monotonic_ns() // 1000 < until: pass
# What follows one after the other without a word between; an error is an answer, not the end.
def op_many(calls): return [perform(call) for call in calls]

def perform(call):
    operation, *args = call
    value = error = None
    begin = time.monotonic_ns() // 1000
    try: value = globals()["op_" + operation](*args)
    except OSError as e: error = errno.errorcode.get(e.errno, str(e.errno))
    return [begin, time.monotonic_ns() // 1000 + 1, value, error]

for line in iter(sys.stdin.readline, ""):
    sys.stdout.write(json.dumps(perform(json.loads(line))) + "\n")
    sys.stdout.flush()
`;
