#!/usr/bin/env python3
"""Measures how much a hostile guest costs the other disk of its process.

    Scripts/neighbour.py                     every attack
    Scripts/neighbour.py kicks connects      only these
    Scripts/neighbour.py --check             and exit with status 1 if the neighbour keeps less than 0.9 of its fair share

The whole server runs on CPU 0, the neighbour's client ('vmm-blk bench', 4 KiB reads at depth 32) on the last one, and the
attacker's front-end there as well, at the lowest priority. Two busy queues share a CPU, so the neighbour's fair share is half of
its rate alone. Each attack is measured in pairs with and without it, every other pair in reverse order;
what is printed is the median of (rate beside the attack) / (half of the rate alone), with the quartiles. More than 1 means that
the attacker did not even use its share.
"""
import argparse
import array
import json
import mmap
import os
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
IMAGE = 64 << 20
FAIR = 0.9


class Frontend:
    """One queue in its own memory, whose ring an attack fills as it likes."""

    SIZE = 16 << 20
    ENTRIES = 256
    DESCRIPTORS, AVAILABLE, USED, TABLES, HEADERS, DATA = 0, 0x2000, 0x4000, 0x8000, 0x18000, 0x20000
    USER = 1 << 40

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.file = os.memfd_create("guest")
        self.kick = os.eventfd(0, os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)
        os.ftruncate(self.file, self.SIZE)
        self.memory = mmap.mmap(self.file, self.SIZE)
        self.available = 0
        self.socket.connect(path)
        self.number(1)
        self.send(3)
        self.send(2, struct.pack("<Q", 1 << 32 | 1 << 30 | 1 << 28 | 1 << 13))  # VERSION_1, INDIRECT_DESC, DISCARD
        self.number(15)
        self.send(16, struct.pack("<Q", 1 << 9))  # CONFIG
        self.send(5, struct.pack("<IIQQQQ", 1, 0, 0, self.SIZE, self.USER, 0), [self.file])
        self.send(8, struct.pack("<II", 0, self.ENTRIES))
        self.send(10, struct.pack("<II", 0, 0))
        self.send(9, struct.pack("<IIQQQQ", 0, 0, self.USER, self.USER + self.USED, self.USER + self.AVAILABLE, 0))
        self.send(13, struct.pack("<Q", 0), [self.call])
        self.send(12, struct.pack("<Q", 0), [self.kick])
        self.send(18, struct.pack("<II", 0, 1))
        self.number(1)  # everything before has been handled

    def send(self, request, payload=b"", descriptors=()):
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.socket.sendmsg([struct.pack("<III", request, 1, len(payload)) + payload], ancillary)

    def receive(self, count):
        answer = b""
        while len(answer) < count:
            piece = self.socket.recv(count - len(answer))
            if not piece:
                raise OSError("the connection was closed")
            answer += piece
        return answer

    def number(self, request):
        self.send(request)
        return struct.unpack("<Q", self.receive(20)[12:])[0]

    def fill(self, kind, pieces, data=b""):
        """Fills the ring with one request, in an indirect table that all entries use: header and data, each piece (bytes, writable)."""
        self.memory[self.HEADERS:self.HEADERS + 16] = struct.pack("<IIQ", kind, 0, 0)
        if data:
            self.memory[self.DATA:self.DATA + len(data)] = data
        table = struct.pack("<QIHH", self.HEADERS, 16, 1, 1)
        for number, (count, is_writable) in enumerate(pieces):
            table += struct.pack("<QIHH", self.DATA, count, 3 if is_writable else 1, number + 2)
        table += struct.pack("<QIHH", self.HEADERS + 64, 1, 2, 0)
        self.memory[self.TABLES:self.TABLES + len(table)] = table
        for entry in range(self.ENTRIES):
            place = self.DESCRIPTORS + 16 * entry
            self.memory[place:place + 16] = struct.pack("<QIHH", self.TABLES, len(table), 4, 0)
            place = self.AVAILABLE + 4 + 2 * entry
            self.memory[place:place + 2] = struct.pack("<H", entry)

    def used(self):
        return struct.unpack_from("<H", self.memory, self.USED + 2)[0]

    def keep_full(self):
        """Makes answered requests available again."""
        target = (self.used() + self.ENTRIES) & 0xffff
        if target != self.available:
            self.available = target
            self.memory[self.AVAILABLE + 2:self.AVAILABLE + 4] = struct.pack("<H", target)
            self.ring()
        else:
            time.sleep(0.0005)

    def ring(self):
        try:
            os.eventfd_write(self.kick, 1)
        except BlockingIOError:
            pass

    def close(self):
        self.socket.close()
        self.memory.close()
        for descriptor in (self.file, self.kick, self.call):
            os.close(descriptor)


class Attacker(threading.Thread):
    """Does one thing until it is stopped. Whatever the server answers, the attack continues."""

    def __init__(self, name, path):
        super().__init__()
        self.attack, self.path, self.is_over, self.rounds = ATTACKS[name], path, False, 0
        self.has_begun = threading.Event()

    def count(self):
        self.rounds += 1
        self.has_begun.set()

    def run(self):
        os.sched_setaffinity(0, {os.cpu_count() - 1})
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while not self.is_over:
            try:
                self.attack(self)
            except (OSError, struct.error):
                time.sleep(0.001)

    def stop(self):
        self.is_over = True
        self.join()

    def with_frontend(self, prepare, turn):
        frontend = Frontend(self.path)
        try:
            prepare(frontend)
            while not self.is_over:
                turn(frontend)
                self.count()
        finally:
            frontend.close()


def largest_reads(attacker):
    attacker.with_frontend(lambda guest: guest.fill(0, [(4 << 20, True)] * 15), Frontend.keep_full)


def largest_writes(attacker):
    attacker.with_frontend(lambda guest: guest.fill(1, [(4 << 20, False)] * 15), Frontend.keep_full)


def small_reads(attacker):
    attacker.with_frontend(lambda guest: guest.fill(0, [(512, True)]), Frontend.keep_full)


def discards(attacker):
    ranges = b"".join(struct.pack("<QII", 0, IMAGE // 512, 0) for _ in range(32))
    attacker.with_frontend(lambda guest: guest.fill(11, [(len(ranges), False)], ranges), Frontend.keep_full)


def unknown_requests(attacker):
    attacker.with_frontend(lambda guest: guest.fill(99, []), Frontend.keep_full)


def kicks(attacker):
    attacker.with_frontend(lambda guest: None, Frontend.ring)


def configurations(attacker):
    def turn(guest):
        guest.send(24, struct.pack("<III", 0, 60, 0) + bytes(60))
        guest.receive(12 + 72)
    attacker.with_frontend(lambda guest: None, turn)


def connects(attacker):
    while not attacker.is_over:
        Frontend(attacker.path).close()
        attacker.count()


def broken_rings(attacker):
    """The index jumps, the queue fails, and the guest reconnects."""
    def turn(guest):
        guest.memory[guest.AVAILABLE + 2:guest.AVAILABLE + 4] = struct.pack("<H", 0x8000)
        guest.ring()
    while not attacker.is_over:
        guest = Frontend(attacker.path)
        try:
            turn(guest)
            guest.number(1)
        finally:
            guest.close()
        attacker.count()


def lost_pages(attacker):
    """Memory is truncated while the device reads and writes it: each page causes a fault."""
    while not attacker.is_over:
        guest = Frontend(attacker.path)
        try:
            guest.fill(0, [(4 << 20, True)] * 3)
            guest.keep_full()
            os.ftruncate(guest.file, guest.DATA)
            time.sleep(0.002)
        finally:
            os.ftruncate(guest.file, guest.SIZE)
            guest.close()
        attacker.count()


ATTACKS = {
    "small-reads": small_reads, "largest-reads": largest_reads, "largest-writes": largest_writes, "discards": discards,
    "unknown-requests": unknown_requests, "kicks": kicks, "configurations": configurations, "connects": connects,
    "broken-rings": broken_rings, "lost-pages": lost_pages,
}


class Server:
    """Two disks in one process, on CPU 0."""

    def __init__(self, arguments, folder):
        self.sockets = [f"{folder}/{name}.sock" for name in ("neighbour", "attacker")]
        entries = []
        for path in self.sockets:
            image = path.replace(".sock", ".img")
            with open(image, "wb") as file:  # reading holes would measure something else
                for _ in range(IMAGE >> 20):
                    file.write(os.urandom(1 << 20))
            entries.append({"blk-file": image, "socket-path": path, "num-queues": 1})
        with open(f"{folder}/disks.json", "w") as file:
            json.dump(entries, file)
        self.errors = open(f"{folder}/log", "wb+")
        self.process = subprocess.Popen(
            ["taskset", "-c", "0", arguments.program, "serve", "--disks", f"{folder}/disks.json", "--log-level", "error",
             *arguments.option], stdout=subprocess.DEVNULL, stderr=self.errors)
        while not all(self.accepts(path) for path in self.sockets):
            if self.process.poll() is not None:
                self.errors.seek(0)
                sys.exit(self.errors.read().decode())
            time.sleep(0.01)

    def rest(self):
        """Waits until it is idle: requests of an attacker that has gone are finished first."""
        hung = time.monotonic() + 120
        before, now = -1, self.ticks()
        while now != before:
            if time.monotonic() > hung:
                sys.exit("neighbour.py: the server does not become idle")
            time.sleep(0.1)
            before, now = now, self.ticks()

    def ticks(self):
        """Its CPU time, in the kernel's ticks."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            return sum(map(int, file.read().rsplit(")", 1)[1].split()[11:13]))

    @staticmethod
    def accepts(path):
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(path) == 0

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()


def rate(arguments, path):
    """The neighbour's reads per second."""
    out = subprocess.run(
        [arguments.program, "bench", "run", "--socket-path", path, "--rw=randread", "--iodepth=32",
         f"--runtime={arguments.seconds}", "--ramp_time=0.1", "--no-ceiling-check", "--output-format=json"],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120).stdout
    return json.loads(out)["jobs"][0]["read"]["iops"]


def measure(arguments, server, name):
    """The fraction of its fair share that the neighbour keeps, for each pair, and how often the attack was carried out."""
    shares, rounds = [], 0
    for number in range(arguments.pairs):
        rates = {}
        for side in sorted(("alone", "beside"), reverse=number % 2 == 1):
            attacker = None
            if side == "beside":
                attacker = Attacker(name, server.sockets[1])
                attacker.start()
                # Requests of the previous one are finished before this one is accepted.
                if not attacker.has_begun.wait(60):
                    attacker.is_over = True
                    sys.exit(f"neighbour.py: {name} does not begin")
                time.sleep(0.2)
            try:
                rates[side] = rate(arguments, server.sockets[0])
            finally:
                if attacker:
                    attacker.stop()
                    rounds += attacker.rounds
                    server.rest()
        shares.append(rates["beside"] / (rates["alone"] / 2))
    return shares, rounds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", help="of " + ", ".join(ATTACKS))
    parser.add_argument("--program", default=os.path.join(ROOT, ".build/release/vmm-blk"))
    parser.add_argument("--directory", default="/dev/shm", help="where the images are made (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=9, help="measurements of each side (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement (default: %(default)s)")
    parser.add_argument("--option", action="append", default=[], help="an option for serve, as in --option=--engine=uring")
    parser.add_argument("--check", action="store_true", help=f"status 1 when a share is below {FAIR}")
    arguments = parser.parse_args()
    for name in arguments.attacks:
        if name not in ATTACKS:
            parser.error(f"there is no attack {name}: use " + ", ".join(ATTACKS))
    if os.cpu_count() < 2:
        sys.exit("neighbour.py: two CPUs are needed, one for the server and one for its clients")
    folder = tempfile.mkdtemp(prefix="neighbour-", dir=arguments.directory)
    server, poor = None, []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("neighbour.py: ended by a signal"))
    try:
        server = Server(arguments, folder)
        print(f"{'attack':18} {'share':>7} {'quartiles':>15} {'rounds':>9}   load {os.getloadavg()[0]:.1f}", flush=True)
        for name in arguments.attacks or ATTACKS:
            shares, rounds = measure(arguments, server, name)
            median = statistics.median(shares)
            low, _, high = statistics.quantiles(shares, n=4) if len(shares) > 1 else (median, median, median)
            print(f"{name:18} {median:7.2f} {low:7.2f}–{high:<7.2f} {rounds:9}", flush=True)
            if median < FAIR:
                poor.append(f"{name}: {median:.2f}")
    finally:
        if server:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.check and poor:
        sys.exit("neighbour.py: less than the fair share is left during " + ", ".join(poor))


if __name__ == "__main__":
    main()
