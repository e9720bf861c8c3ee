#!/usr/bin/python3
"""One disk of a process is on a medium that stops answering: the other disk must not notice, and SIGTERM must end the process.

    Scripts/silent-medium.py                    every engine for such an image
    Scripts/silent-medium.py --engine sync      only this one

The medium is a file of Tests/Programs/silent-fuse.py, which answers until it is switched to silence. While a request hangs,
the other disk of the same `serve` connects, answers GET_FEATURES, reads and stops, several times, also after the silent disk's
front-end has disconnected. SIGTERM then ends the process within its --drain-timeout, with status 75. The times are printed; the only limit
is the one that means "hung".

A request that a FUSE server holds cannot be cancelled, so whatever happens to this script, the file system's own process
fails the requests that it holds.
"""
import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from many import HUNG, ROOT, Frontend  # noqa: E402

DRAIN = 2  # seconds
LEFT_BEHIND = 75
SIZE = 8 << 20


class Fuse:
    """A file of Tests/Programs/silent-fuse.py. It lives as long as the pipe to it, however this script ends."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, f"{ROOT}/Tests/Programs/silent-fuse.py", str(SIZE)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, bufsize=1, start_new_session=True)
        word, _, self.path = self.process.stdout.readline().strip().partition(" ")
        if word != "ready":
            sys.exit(f"silent-medium: {self.path}")

    def be_silent(self):
        self.process.stdin.write("hold getattr read write flush release fsync fallocate\n")
        while not self.process.stdout.readline().startswith("hold "):
            pass

    def end(self):
        """Fails the hanging requests."""
        self.process.stdin.close()
        self.process.wait()


class Disk(Frontend):
    """A front-end of one queue that reads one block at a time."""

    def __init__(self, path):
        super().__init__(path, 128)
        self.socket.settimeout(HUNG)
        self.submitted = 0

    def submit(self):
        # Always another block: blocks that were read before are in the page cache, and do not reach the medium.
        sector = (4096 + 1024 * self.submitted) % (SIZE // 512)
        os.pwrite(self.file, struct.pack("<IIQ", 0, 0, sector), self.HEADER)
        chain = [(self.HEADER, 16, 1, 1), (self.DATA, 512, 3, 2), (self.STATUS, 1, 2, 0)]
        os.pwrite(self.file, b"".join(struct.pack("<QIHH", *entry) for entry in chain), self.DESCRIPTORS)
        os.pwrite(self.file, b"\xff", self.STATUS)
        os.pwrite(self.file, struct.pack("<H", 0), self.AVAILABLE + 4 + 2 * (self.submitted % 128))
        self.submitted += 1
        # Whole words: `struct.pack_into` would write them byte by byte.
        os.pwrite(self.file, struct.pack("<H", self.submitted), self.AVAILABLE + 2)
        os.eventfd_write(self.kick, 1)

    def wait(self):
        waiting = select.poll()
        waiting.register(self.call, select.POLLIN)
        end = time.monotonic() + HUNG
        while struct.unpack("<H", os.pread(self.file, 2, self.USED + 2))[0] != self.submitted:
            if time.monotonic() > end:
                raise TimeoutError(f"a read was not answered within {HUNG} seconds")
            waiting.poll(100)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.call)
        status = os.pread(self.file, 1, self.STATUS)[0]
        if status != 0:
            raise RuntimeError(f"a read ended with status {status}")

    def stop(self):
        """GET_VRING_BASE: the back-end stops the queue and returns its position."""
        self.send(11, struct.pack("<II", 0, 0))
        answer = self.socket.recv(20, socket.MSG_WAITALL)
        if struct.unpack("<II", answer[12:]) != (0, self.submitted):
            raise RuntimeError(f"the queue stopped at {answer[12:].hex()}, not at {self.submitted}")


def visit(path):
    """Acts as the other disk's front-end. Returns the seconds of the slowest step."""
    slowest, began = 0.0, time.monotonic()

    def step():
        nonlocal slowest, began
        slowest, began = max(slowest, time.monotonic() - began), time.monotonic()

    disk = Disk(path)
    step()
    if disk.number(1) == 0:
        raise RuntimeError("GET_FEATURES answered nothing")
    step()
    disk.submit()
    disk.wait()
    step()
    disk.stop()
    step()
    disk.close()
    return slowest


def state(process):
    """R, S, D, Z …, or nothing if it has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{process}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
    return ""


def attempt(program, engine, direct):
    folder = tempfile.mkdtemp(prefix="vmm-blk-silent.")
    fuse = server = None
    log = open(f"{folder}/log", "w+b")
    try:
        fuse = Fuse()
        with open(f"{folder}/other", "wb") as file:
            file.truncate(SIZE)
        silent, other = f"{folder}/silent.sock", f"{folder}/other.sock"
        with open(f"{folder}/disks.json", "w") as file:
            json.dump([
                {"blk-file": fuse.path, "socket-path": silent, "engine": engine, "direct": direct},
                {"blk-file": f"{folder}/other", "socket-path": other}], file)
        server = subprocess.Popen(
            [program, "serve", "--disks", f"{folder}/disks.json", "--drain-timeout", str(DRAIN)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + HUNG
        while b"Serving" not in os.pread(log.fileno(), 1 << 16, 0):
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError("the server does not serve")
            time.sleep(0.01)

        victim = Disk(silent)
        victim.submit()
        victim.wait()
        fuse.be_silent()
        victim.submit()
        times = [visit(other) for _ in range(5)]
        victim.close()
        times += [visit(other) for _ in range(5)]

        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        # If the kernel itself waits for the medium, the process stays a zombie until the medium has failed; its own part is
        # over when its first thread is.
        while server.poll() is None and state(server.pid) not in ("Z", "X", ""):
            if time.monotonic() - began > HUNG:
                raise TimeoutError(f"the server still runs {HUNG} seconds after SIGTERM")
            time.sleep(0.01)
        ended = time.monotonic() - began
        fuse.end()
        status = server.wait(timeout=HUNG)
        if status != LEFT_BEHIND:
            raise RuntimeError(f"the server ended with status {status}, not {LEFT_BEHIND}")
        print(f"{engine:8} direct {direct:4}  the other disk's slowest step {max(times) * 1000:6.1f} ms, "
              f"SIGTERM to the end {ended:5.2f} s of --drain-timeout {DRAIN}: ok", flush=True)
        return True
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"{engine:8} direct {direct:4}  FAIL: {error!r}", flush=True)
        print(os.pread(log.fileno(), 1 << 16, 0).decode(errors="replace"), flush=True)
        return False
    finally:
        # The medium first: until it has failed, a process that waits for it cannot be ended.
        if fuse:
            fuse.end()
        if server and server.poll() is None:
            server.kill()
            server.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=os.environ.get("VMM_BLK", f"{ROOT}/.build/release/vmm-blk"))
    parser.add_argument("--engine", help="only this one")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    cases = [("uring", "off"), ("sync", "off"), ("threads", "off")]
    if arguments.engine:
        cases = [case for case in cases if case[0] == arguments.engine] or [(arguments.engine, "auto")]
    results = [attempt(arguments.program, *case) for case in cases]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
