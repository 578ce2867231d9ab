/**
 * The program that carries operations out: one process, two ways into one file system (two mounts
 * of it, or one folder twice), many open files. In Python, because Node lacks half of the system
 * calls. Operations come as JSON, results go as one line each, then the final state as lines.
 * A result says what a program may rely on: values, bytes, errno; not inode numbers, sizes of
 * directories, block counts or the present time.
 */
export const EXECUTOR = String.raw`
import ctypes, errno, hashlib, json, mmap, os, stat, sys, time
libc = ctypes.CDLL(None, use_errno=True)
roots, operations = sys.argv[1:3], json.load(open(sys.argv[3]))
slots = {}
ways = {}
# Operations that may have changed a size, through each way; and how many there were when a slot was
# opened.
resized = [0, 0]
moved = [0, 0] # Renames.
seen = {}
RESIZING = ('pwrite', 'write', 'copy', 'ftruncate', 'truncate', 'fallocate', 'dwrite', 'open')
PATTERN = bytes((i * 7 + i // 251) % 256 for i in range(1 << 16)) * 4
os.umask(0o022)
os.setgroups([])

def check(result):
    if result == -1:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))
    return result
def data(o): return PATTERN[o['fill'] : o['fill'] + o['length']]
def digest(b): return f"{len(b)}:{hashlib.sha1(b).hexdigest()[:12]}"
# Times that the operations set are long ago; what the system sets is "now".
def when(ns): return str(ns) if ns < 1_600_000_000 * 10**9 else 'now'
def show(s):
    kind = stat.S_IFMT(s.st_mode)
    size = '-' if kind == stat.S_IFDIR else s.st_size
    rdev = s.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
    return f"{s.st_mode:o} {s.st_nlink} {s.st_uid}:{s.st_gid} {size} {rdev} {when(s.st_mtime_ns)}"
def hole(fd, at, end):
    while at < end:
        b = os.pread(fd, min(end - at, 1 << 20), at)
        if not b: return True
        if b.count(0) != len(b): return False
        at += len(b)
    return True
def seek(fd, o):
    result = sought(fd, o)
    # Where exactly data begin each file system has its own mind.
    if result == 'right': os.lseek(fd, o['at'], os.SEEK_SET)
    return result
def sought(fd, o):
    # Of directories the kernel tells by itself, by what file systems call their size.
    if stat.S_ISDIR(os.fstat(fd).st_mode): return 'directory'
    size = os.fstat(fd).st_size
    if o['at'] >= size: return str(os.lseek(fd, o['at'], o['whence']))
    try: found = os.lseek(fd, o['at'], o['whence'])
    except OSError as e:
        if e.errno != errno.ENXIO or o['whence'] != os.SEEK_DATA: raise
        found = size
    if o['whence'] == os.SEEK_HOLE: return 'right' if o['at'] <= found <= size else f'hole {found}'
    return 'right' if hole(fd, o['at'], found) else f'data before {found}'
# Linux cuts a copy at the size it remembers of the source, and asks no FUSE file system whether
# that is still so (docs/posix.md). Where the other mount may have changed it, look, as cp does.
def copy(o):
    source, target, left = slots[o['slot']], slots[o['target']], o['length']
    other = 1 - ways[o['slot']]
    elsewhere = resized[other] > seen[o['slot']][other]
    while left > 0:
        n = os.copy_file_range(source, target, left, o['at'] + o['length'] - left,
                               o['to'] + o['length'] - left)
        if n > 0: left -= n
        elif elsewhere:
            os.fstat(source)
            elsewhere = False
        else: break
    return str(o['length'] - left)
def direct(o, path, write):
    fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_DIRECT | os.O_NONBLOCK)
    try:
        b = mmap.mmap(-1, o['length'])
        if write:
            b[:] = data(o)
            return str(os.pwritev(fd, [b], o['at']))
        n = os.preadv(fd, [b], o['at'])
        return digest(b[:n])
    finally: os.close(fd)
def mapped(o, fd):
    size = os.fstat(fd).st_size
    if o['at'] + o['length'] > size: return 'short'
    with mmap.mmap(fd, size) as m:
        if o['op'] == 'mapread': return digest(m[o['at'] : o['at'] + o['length']])
        m[o['at'] : o['at'] + o['length']] = data(o)
        m.flush()
    return 'ok'
def flags_rename(a, b, flags):
    check(libc.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), flags))
# A named pipe connects programs of one machine, not of two mounts: it is opened for both ways,
# whoever else has it open, and nothing goes through it.
def fifo(path, fd):
    if stat.S_ISFIFO(os.fstat(fd).st_mode if fd is not None else os.stat(path).st_mode):
        if fd is not None: os.close(fd)
        os.seteuid(0); os.setegid(0)
        return os.open(path, os.O_RDWR | os.O_NONBLOCK)
    return fd
def open_any(path, flags, mode):
    try: fd = os.open(path, flags | os.O_NONBLOCK, mode)
    except OSError as e:
        if e.errno != errno.ENXIO: raise
        fd = fifo(path, None)
        if fd is None: raise
        return fd
    return fifo(path, fd)
def is_pipe(o): return any(stat.S_ISFIFO(os.fstat(slots[o[k]]).st_mode)
                           for k in ('slot', 'target') if o.get(k) in slots)
def xattr(o, path):
    name = o['name']
    if o['op'] == 'setxattr':
        value = bytes.fromhex(o['value'])
        return os.setxattr(path, name, value, o['flags'], follow_symlinks=False)
    if o['op'] == 'getxattr': return os.getxattr(path, name, follow_symlinks=False).hex()
    if o['op'] == 'removexattr': return os.removexattr(path, name, follow_symlinks=False)
    return ' '.join(sorted(os.listxattr(path, follow_symlinks=False)))
def listing(path):
    with os.scandir(path) as found:
        kind = lambda e: '/' if e.is_dir(follow_symlinks=False) else ''
        return ' '.join(sorted(e.name + kind(e) for e in found))
def opened(o, fd):
    old = slots.pop(o['slot'], None)
    if old is not None: os.close(old)
    slots[o['slot']] = fd
    ways[o['slot']] = o['via']
    seen[o['slot']] = list(resized)

def way(o):
    if o['op'] in ('open', 'truncate', 'dwrite'): return o['via']
    return ways.get(o['target'] if o['op'] == 'copy' else o['slot'], o['via'])
def run(o):
    op, root = o['op'], roots[o['via']]
    # A link from one mount to another is none.
    if op == 'linkfd': root = roots[ways.get(o['slot'], 0)]
    if op in RESIZING: resized[way(o)] += 1
    path = root + '/' + o['path'] if 'path' in o else None
    second = root + '/' + o['to'] if op in ('rename', 'link') else None
    if 'slot' in o and op not in ('open', 'tmpfile'):
        if o['slot'] not in slots or (op == 'copy' and o['target'] not in slots): return 'closed'
        fd = slots[o['slot']]
    if op in ('read', 'write') and is_pipe(o): return 'pipe'
    if op == 'open': return opened(o, open_any(path, o['flags'], o['mode']))
    if op == 'tmpfile': return opened(o, os.open(path, os.O_TMPFILE | o['flags'], o['mode']))
    if op == 'linkfd':
        source = os.fsencode(f"/proc/self/fd/{fd}")
        return check(libc.linkat(-100, source, -100, os.fsencode(path), 0x400))
    if op == 'close': return os.close(slots.pop(o['slot']))
    if op == 'pread': return digest(os.pread(fd, o['length'], o['at']))
    if op == 'pwrite': return os.pwrite(fd, data(o), o['at'])
    if op == 'write': return os.write(fd, data(o))
    if op == 'read': return digest(os.read(fd, o['length']))
    if op == 'rewind': return os.lseek(fd, o['at'], os.SEEK_SET)
    if op == 'seek': return seek(fd, o)
    if op == 'copy': return copy(o)
    if op in ('mapread', 'mapwrite'): return mapped(o, fd)
    if op == 'dread': return direct(o, path, False)
    if op == 'dwrite': return direct(o, path, True)
    if op == 'ftruncate': return os.ftruncate(fd, o['size'])
    if op == 'truncate': return os.truncate(path, o['size'])
    if op == 'fallocate':
        at, length = ctypes.c_long(o['at']), ctypes.c_long(o['length'])
        return check(libc.fallocate(fd, o['how'], at, length))
    if op == 'fsync': return os.fsync(fd)
    if op == 'fdatasync': return os.fdatasync(fd)
    if op == 'fstat': return show(os.fstat(fd))
    if op == 'fchmod': return os.fchmod(fd, o['mode'])
    if op == 'stat': return show(os.stat(path))
    if op == 'lstat': return show(os.lstat(path))
    if op == 'mkdir': return os.mkdir(path, o['mode'])
    if op == 'rmdir': return os.rmdir(path)
    if op == 'unlink': return os.unlink(path)
    if op == 'rename':
        moved[o['via']] += 1
        return flags_rename(path, second, o['flags'])
    if op == 'link': return os.link(path, second, follow_symlinks=False)
    if op == 'symlink': return os.symlink(o['target'], path)
    if op == 'readlink': return os.readlink(path)
    if op == 'chmod': return os.chmod(path, o['mode'])
    if op == 'chown': return os.chown(path, o['uid'], o['gid'], follow_symlinks=False)
    if op == 'utime':
        times = (o['atime'] * 10**9 + 5, o['mtime'] * 10**9 + 7)
        return os.utime(path, ns=times, follow_symlinks=False)
    if op == 'mknod':
        return os.mknod(path, o['mode'], os.makedev(1, 3) if stat.S_ISCHR(o['mode']) else 0)
    if op == 'readdir': return listing(path)
    if op == 'access': return os.access(path, o['mode'], effective_ids=True)
    if op.endswith('xattr'): return xattr(o, path)
    raise Exception(f'no operation {op}')

def acting(o):
    if o['uid_'] == 0: return run(o)
    os.setegid(o['uid_']); os.seteuid(o['uid_'])
    try: return run(o)
    finally: os.seteuid(0); os.setegid(0)
# Linux takes over where another mount has moved a directory only while no rename is under way, this
# one or another sequence's; meanwhile the name is ESTALE where something below is open here
# (docs/posix.md). It is not for ever.
def patient(o):
    for left in range(100, -1, -1):
        try: return acting(o)
        except OSError as e:
            if e.errno != errno.ESTALE or left == 0 or moved[1 - o['via']] == 0: raise
            if 'path' not in o: raise
        for name in (o['path'], o['to'] if o['op'] in ('rename', 'link') else o['path']):
            try: os.lstat(roots[o['via']] + '/' + name)
            except OSError: pass
        time.sleep(0.02)

# Blocks are counted by the file system under test as its data lie; local ones have their own ways.
def blocks(path, size):
    fd, at, found = os.open(path, os.O_RDONLY), 0, 0
    try:
        while at < size:
            try: start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError: break
            at = os.lseek(fd, start, os.SEEK_HOLE)
            found += -(-at // 4096) - start // 4096
        for _ in range(80):
            told = os.fstat(fd).st_blocks // 8
            if told == found: return ''
            time.sleep(0.1)
        return f' {told} blocks, of which {found} have data'
    finally: os.close(fd)

def fail(error): raise error
def whole_state(top):
    for left in range(100, -1, -1):
        try: return list(state(top))
        except OSError as e:
            if e.errno != errno.ESTALE or left == 0: raise
        time.sleep(0.02)
def state(top):
    for folder, names, files in sorted(os.walk(top, onerror=fail)):
        for name in sorted(names + files):
            path = os.path.join(folder, name)
            s = os.lstat(path)
            line = f"{os.path.relpath(path, top)} {show(s)}"
            if stat.S_ISREG(s.st_mode):
                with open(path, 'rb') as f: line += ' ' + digest(f.read())
                if roots[0] != roots[1]: line += blocks(path, s.st_size)
            elif stat.S_ISLNK(s.st_mode): line += ' ' + os.readlink(path)
            for x in sorted(os.listxattr(path, follow_symlinks=False)):
                line += f" {x}={os.getxattr(path, x, follow_symlinks=False).hex()}"
            yield line

for o in operations:
    try:
        result = patient(o)
        print('ok' if result is None else result)
    except OSError as e: print(errno.errorcode.get(e.errno, e.errno))
    except ValueError as e: print(f'ValueError {e}')
for fd in slots.values(): os.close(fd)
for number, root in enumerate(roots):
    print(f'state by way {number}')
    for line in whole_state(root): print(line)
`;
