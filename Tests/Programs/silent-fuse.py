#!/usr/bin/python3
"""A file on a file system that stops answering when it is told to.

    silent-fuse.py SIZE [--page-cache]

It serves one regular file of SIZE bytes through /dev/fuse and prints `ready PATH` on standard output, or `cannot SENTENCE` if
FUSE cannot be used. Lines on standard input tell it what not to answer from then on; each is echoed when it is in force:

    hold read flush      of getattr, open, read, write, flush, release, fsync and fallocate; the others are answered (again)

The first request held of each kind is reported as `held read`. Held requests are never answered. When standard input or the
parent ends, at SIGTERM, or when this process is killed, the kernel fails all held requests.

The mount is in this process's own mount namespace, and PATH leads there through /proc, so nothing can be left mounted.
With --page-cache reads are cached and the file can be mapped shared; without it, every read and write comes here.
"""
import contextlib
import ctypes
import os
import select
import signal
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
MNT_FORCE, MNT_DETACH = 1, 2
# Exists in every namespace; its content does not matter here.
MOUNT = b"/tmp"
LOOKUP, FORGET, SETATTR, STATFS, INIT, OPENDIR, RELEASEDIR, BATCH_FORGET = 1, 2, 4, 17, 26, 27, 29, 42
GETATTR, OPEN, READ, WRITE, RELEASE, FSYNC, FLUSH, FALLOCATE = 3, 14, 15, 16, 18, 20, 25, 43
HOLDABLE = {
    "getattr": GETATTR, "open": OPEN, "read": READ, "write": WRITE, "flush": FLUSH, "release": RELEASE, "fsync": FSYNC,
    "fallocate": FALLOCATE}
FOLDER, FILE = 1, 2  # nodes
DIRECT_IO = 1
ASYNC = 1 | 1 << 15  # reads, and direct I/O: nothing in the kernel waits for those
ENOENT, ENOSYS = 2, 38


class File:
    def __init__(self, size, page_cache):
        self.data = bytearray(size)
        self.open_flags = 0 if page_cache else DIRECT_IO
        self.held = {}  # operation: its name
        self.told = set()
        self.device = -1

    def mount(self):
        """Returns an error, or None."""
        if libc.unshare(CLONE_NEWNS) != 0:
            return f"a mount namespace cannot be created: {os.strerror(ctypes.get_errno())}"
        if libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0:
            return f"mounts cannot be made private: {os.strerror(ctypes.get_errno())}"
        try:
            self.device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            return f"/dev/fuse cannot be used: {error.strerror}"
        options = b"fd=%d,rootmode=40000,user_id=%d,group_id=%d" % (self.device, os.getuid(), os.getgid())
        if libc.mount(b"silent", MOUNT, b"fuse", 0, options) != 0:
            return f"FUSE cannot be mounted: {os.strerror(ctypes.get_errno())}"
        return None

    def abort(self):
        """Fails all held requests. Closing the device would do that, too, and so does the end of this process."""
        libc.umount2(MOUNT, MNT_FORCE)
        libc.umount2(MOUNT, MNT_DETACH)
        os.close(self.device)

    def hold(self, names):
        self.held = {HOLDABLE[name]: name for name in names}
        self.told = set()

    def serve(self):
        """Answers one request, if there is one."""
        try:
            message = os.read(self.device, 2 << 20)  # a write and its header
        except (InterruptedError, FileNotFoundError):  # a request that was cancelled
            return
        _, operation, unique, node = struct.unpack_from("<IIQQ", message)
        if operation in self.held:
            if operation not in self.told:
                self.told.add(operation)
                say(f"held {self.held[operation]}")
            return
        if operation in (FORGET, BATCH_FORGET):
            return
        error, reply = self.answer(operation, node, message[40:])
        # The process that asked may have gone.
        with contextlib.suppress(OSError):
            os.write(self.device, struct.pack("<IiQ", 16 + len(reply), -error, unique) + reply)

    def answer(self, operation, node, body):
        if operation == INIT:
            return 0, struct.pack("<IIIIHHIIHH", 7, 31, 1 << 16, ASYNC, 12, 10, 1 << 20, 1, 0, 0) + bytes(32)
        if operation == LOOKUP:
            if body.rstrip(b"\0") != b"disk":
                return ENOENT, b""
            return 0, struct.pack("<QQQQII", FILE, 0, 0, 0, 0, 0) + self.attributes(FILE)
        if operation in (GETATTR, SETATTR):
            return 0, struct.pack("<QII", 0, 0, 0) + self.attributes(node)
        if operation in (OPEN, OPENDIR):
            return 0, struct.pack("<QII", 1, self.open_flags if operation == OPEN else 0, 0)
        if operation == READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return 0, bytes(self.data[offset:offset + size])
        if operation == WRITE:
            _, offset, size = struct.unpack_from("<QQI", body)
            self.data[offset:offset + size] = body[40:40 + size]
            return 0, struct.pack("<II", size, 0)
        if operation == STATFS:
            return 0, struct.pack("<QQQQQIIII", 1 << 20, 1 << 20, 1 << 20, 10, 10, 4096, 255, 4096, 0) + bytes(24)
        return (0 if operation in (RELEASE, RELEASEDIR, FSYNC, FLUSH) else ENOSYS), b""

    def attributes(self, node):
        folder = node == FOLDER
        size = 0 if folder else len(self.data)
        return struct.pack(
            "<QQQQQQIIIIIIIIII", node, size, size // 512, 0, 0, 0, 0, 0, 0, 0o40755 if folder else 0o100600, 1,
            os.getuid(), os.getgid(), 0, 4096, 0)


def say(line):
    with contextlib.suppress(OSError):  # nobody has to listen
        os.write(1, line.encode() + b"\n")


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    parent = os.getppid()
    # Interrupts the wait; the connection goes with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    file = File(int(sys.argv[1]), "--page-cache" in sys.argv[2:])
    problem = file.mount()
    if problem:
        say(f"cannot {problem}")
        sys.exit(1)
    try:
        say(f"ready /proc/{os.getpid()}/root{MOUNT.decode()}/disk")
        waiting = select.poll()
        waiting.register(file.device, select.POLLIN)
        waiting.register(0, select.POLLIN)
        text = b""
        # Another process may have the other end of standard input, too.
        while os.getppid() == parent:
            ready = {descriptor for descriptor, _ in waiting.poll(1000)}
            if file.device in ready:
                file.serve()
            if 0 in ready:
                more = os.read(0, 4096)
                if not more:
                    return
                *lines, text = (text + more).split(b"\n")
                for line in lines:
                    file.hold(line.decode().split()[1:])
                    say(line.decode())
    finally:
        file.abort()


if __name__ == "__main__":
    main()
