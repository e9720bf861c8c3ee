#!/usr/bin/python3
"""Measures what many disks in one process cost: start-up, memory, CPU time while idle, and the first read.

    Scripts/many.py                       1,000 disks
    Scripts/many.py --disks 50 --check    fewer, and exit with status 1 if an idle disk costs too much
    Scripts/many.py --busy                how fast one busy disk is among sleeping ones, against one alone
    Scripts/many.py --active              cost and latency of a request when 1, 10, 100 and 1,000 disks are active

The disks are sparse files. Each is measured twice: alone on its socket, and with a front-end in this script that sets up
one queue in 64 KiB of shared memory, reads one block, and falls asleep. What a disk costs is the difference between a process
with all of them and a process with one.
"""
import argparse
import array
import json
import math
import mmap
import os
import resource
import select
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KIB_LIMIT = 64  # a disk's own memory, with a front-end
ACTIVE_SIZE = 1 << 20  # bytes of an image that is read all the time
ACTIVE_LIMITS = {"us": 4, "p99": 1000}  # of --active --check, both microseconds
HUNG = 120  # seconds after which any wait counts as hung


class Frontend:
    """A minimal vhost-user front-end: one queue, one request."""

    SIZE = 64 << 10
    FEATURES = 0
    DESCRIPTORS, AVAILABLE, USED, HEADER, DATA, STATUS = 0, 0x4000, 0x5000, 0x8000, 0x9000, 0xa000
    USER = 1 << 40  # the address that the front-end claims for its memory

    def __init__(self, path, entries):
        self.began = time.perf_counter()
        self.entries = entries
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.file = os.memfd_create("guest")
        os.ftruncate(self.file, self.SIZE)
        self.memory = mmap.mmap(self.file, self.SIZE)
        self.kick = os.eventfd(0)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)
        self.set_up()

    def send(self, request, payload=b"", descriptors=()):
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.socket.sendmsg([struct.pack("<III", request, 1, len(payload)) + payload], ancillary)

    def number(self, request):
        """The reply to a request whose reply is a number."""
        self.send(request)
        answer = self.socket.recv(20, socket.MSG_WAITALL)
        return struct.unpack("<Q", answer[12:])[0]

    def set_up(self):
        version_1, protocol_features = 1 << 32, 1 << 30
        self.number(1)  # GET_FEATURES
        self.send(3)  # SET_OWNER
        self.send(2, struct.pack("<Q", version_1 | protocol_features | self.FEATURES))
        self.number(15)  # GET_PROTOCOL_FEATURES
        self.send(16, struct.pack("<Q", 0))
        self.send(5, struct.pack("<IIQQQQ", 1, 0, 0, self.SIZE, self.USER, 0), [self.file])  # SET_MEM_TABLE
        self.send(8, struct.pack("<II", 0, self.entries))  # SET_VRING_NUM
        self.send(10, struct.pack("<II", 0, 0))  # SET_VRING_BASE
        self.send(9, struct.pack(  # SET_VRING_ADDR
            "<IIQQQQ", 0, 0, self.USER + self.DESCRIPTORS, self.USER + self.USED, self.USER + self.AVAILABLE, 0))
        self.send(13, struct.pack("<Q", 0), [self.call])  # SET_VRING_CALL
        self.send(12, struct.pack("<Q", 0), [self.kick])  # SET_VRING_KICK
        self.send(18, struct.pack("<II", 0, 1))  # SET_VRING_ENABLE

    def ask(self):
        """Requests the first 512 bytes, without waiting."""
        os.pwrite(self.file, struct.pack("<IIQ", 0, 0, 0), self.HEADER)
        chain = [(self.HEADER, 16, 1, 1), (self.DATA, 512, 3, 2), (self.STATUS, 1, 2, 0)]
        os.pwrite(self.file, b"".join(struct.pack("<QIHH", *entry) for entry in chain), self.DESCRIPTORS)
        self.memory[self.STATUS] = 0xff
        os.pwrite(self.file, struct.pack("<HHH", 0, 1, 0), self.AVAILABLE)
        os.eventfd_write(self.kick, 1)

    def read_block(self):
        """Reads the first 512 bytes. Returns the seconds since the connection was asked for."""
        self.ask()
        waiting = select.poll()  # select cannot handle descriptors above 1023
        waiting.register(self.call, select.POLLIN)
        while struct.unpack_from("<H", self.memory, self.USED + 2)[0] != 1:
            if not waiting.poll(HUNG * 1000):
                sys.exit(f"a disk did not answer within {HUNG} seconds")
            os.eventfd_read(self.call)
        if self.memory[self.STATUS] != 0:
            sys.exit(f"a disk answered with status {self.memory[self.STATUS]}")
        return time.perf_counter() - self.began

    def close(self):
        self.memory.close()
        self.socket.close()
        for descriptor in (self.file, self.kick, self.call):
            os.close(descriptor)


class LoadedFrontend(Frontend):
    """One whose memory has room for many requests, for a generator of load."""

    DATA, SLOTS = 0x10000, 64
    SIZE = DATA + SLOTS * 4096
    FEATURES = 1 << 29  # EVENT_IDX


class Server:
    """One process with `count` disks, measured from outside."""

    running = set()

    def __init__(self, arguments, folder, count, size=64 << 20, filled=False, cpu=None):
        self.sockets = [f"{folder}/{index}.sock" for index in range(count)]
        entries = []
        for index, path in enumerate(self.sockets):
            image = f"{folder}/{index}.img"
            with open(image, "wb") as file:
                if filled:
                    file.write(os.urandom(size))
                else:
                    file.truncate(size)
            entries.append({"blk-file": image, "socket-path": path})
        with open(f"{folder}/disks.json", "w") as file:
            json.dump(entries, file)
        self.errors = tempfile.TemporaryFile()
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [arguments.program, "serve", "--disks", f"{folder}/disks.json", "--log-level", "warning", *arguments.option],
            stdout=subprocess.DEVNULL, stderr=self.errors,
            preexec_fn=cpu is not None and (lambda: os.sched_setaffinity(0, {cpu})) or None)
        self.running.add(self.process)
        while not self.accepts(self.sockets[-1]):
            if self.process.poll() is not None:
                self.errors.seek(0)
                sys.exit(self.errors.read().decode())
            time.sleep(0.0002)
        self.start = time.perf_counter() - began
        self.start_processor = self.ticks() / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def accepts(path):
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(path) == 0

    def proc(self, name):
        with open(f"/proc/{self.process.pid}/{name}") as file:
            return file.read()

    def ticks(self):
        """CPU time of all threads, in clock ticks."""
        fields = self.proc("stat").rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def processor(self):
        """CPU time of all threads, including those that have ended: seconds."""
        return time.clock_gettime(~self.process.pid << 3 | 2)  # as clock_getcpuclockid(3) has it

    def switches(self):
        """Context switches of all present threads."""
        count = 0
        for task in os.listdir(f"/proc/{self.process.pid}/task"):
            try:
                status = self.proc(f"task/{task}/status")
            except OSError:
                continue
            count += sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)
        return count

    def memory(self):
        """Kilobytes: RSS, PSS, private memory, and the mapped rings of the kernel."""
        rollup = {}
        for line in self.proc("smaps_rollup").splitlines()[1:]:
            name, value = line.split(":")
            rollup[name] = int(value.split()[0])
        rings, inside = 0, False
        for line in self.proc("smaps").splitlines():
            first = line.split()[0]
            if not first.endswith(":"):
                inside = "io_uring" in line
            elif inside and first == "Rss:":
                rings += int(line.split()[1])
        return {"rss": rollup["Rss"], "pss": rollup["Pss"], "own": rollup["Anonymous"], "rings": rings}

    def idle_ticks(self, seconds):
        time.sleep(0.3)
        before = self.ticks()
        time.sleep(seconds)
        return self.ticks() - before

    def threads(self):
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def table(self):
        """How many descriptors fit into the process's table before the kernel has to enlarge it."""
        return int(self.proc("status").partition("FDSize:")[2].split()[0])

    def stop(self):
        began = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait()
        self.running.discard(self.process)
        if status != 0:
            self.errors.seek(0)
            sys.exit(f"the server ended with status {status}\n" + self.errors.read().decode())
        left = [path for path in self.sockets if os.path.exists(path)]
        if left:
            sys.exit(f"{len(left)} sockets were not removed, among them {left[0]}")
        return time.perf_counter() - began


def measure(arguments, folder, count):
    """Numbers of one process with `count` disks, without and with front-ends."""
    os.makedirs(folder)
    server = Server(arguments, folder, count)
    result = {"start": server.start, "start processor": server.start_processor}
    seconds = arguments.seconds if count > 1 else 0
    result["listening"] = {**server.memory(), "ticks": server.idle_ticks(seconds), "threads": server.threads(),
                           "files": server.descriptors(), "table": server.table()}
    frontends, first = [], []
    for path in server.sockets:
        frontends.append(Frontend(path, arguments.queue_size))
        first.append(frontends[-1].read_block())
    result["first read"] = first
    result["connected"] = {**server.memory(), "ticks": server.idle_ticks(seconds), "threads": server.threads(),
                           "files": server.descriptors(), "table": server.table()}
    result["stop"] = server.stop()
    for frontend in frontends:
        frontend.close()
    shutil.rmtree(folder)
    return result


def rate(arguments, path):
    """Thousands of reads per second of the disk on this socket, and microseconds of CPU time per read."""
    out = subprocess.run(
        [arguments.program, "bench", "run", "--socket-path", path, "--rw=randread", "--iodepth=32", "--runtime=0.5",
         "--ramp_time=0.1", "--no-ceiling-check", "--output-format=json"],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    job = json.loads(out)["jobs"][0]
    return job["read"]["iops"] / 1000, job["vmm-blk"]["backend_cpu_us_per_io"]


def busy(arguments, folder):
    """One disk is active, alone in its process or among others that have front-ends and sleep; alternating, so that drift hits
    both alike, and every other pair in reverse order. Queues run on CPU 0, because the measuring client uses the
    last one."""
    arguments.option.append("--pin-cpus=0")
    for name in ("alone", "among"):
        os.makedirs(f"{folder}/{name}")
    alone = Server(arguments, f"{folder}/alone", 1)
    among = Server(arguments, f"{folder}/among", arguments.disks)
    busy = {"alone": alone.sockets[0], "among": among.sockets[-1]}
    for path in busy.values():
        with open(path.replace(".sock", ".img"), "r+b") as image:  # reading holes would measure something else
            image.write(os.urandom(64 << 20))
    frontends = [Frontend(path, arguments.queue_size) for path in among.sockets[:-1]]
    for frontend in frontends:
        frontend.read_block()
    rates = {"alone": [], "among": []}
    for number in range(arguments.rounds):
        for name in sorted(busy, reverse=number % 2 == 1):
            rates[name].append(rate(arguments, busy[name]))
    for frontend in frontends:
        frontend.close()
    alone.stop()
    among.stop()
    for index, what in enumerate(("thousands a second", "processor, us a read")):
        alone, among = ([values[index] for values in rates[name]] for name in ("alone", "among"))
        ratios = sorted(there / here for here, there in zip(alone, among))
        low = max(int(len(ratios) / 2 - 0.98 * math.sqrt(len(ratios))), 0)  # by ranks: 95 % for the median of any distribution
        print(f"{what:22} alone {statistics.median(alone):8.2f}   among {arguments.disks - 1} sleeping disks "
              f"{statistics.median(among):8.2f}   ratio {statistics.median(ratios):.3f}, 95 % interval {ratios[low]:.3f} to "
              f"{ratios[-1 - low]:.3f}; single pairs {ratios[0]:.3f} to {ratios[-1]:.3f}")


def load(arguments, server, frontends, rate, seconds):
    """Runs the load generator for all of them, on the last CPU."""
    slots = min(LoadedFrontend.SLOTS, arguments.queue_size // 3)
    beside = min(arguments.beside, slots)
    lines = "".join(f"{frontend.file} {frontend.kick}\n" for frontend in frontends)
    descriptors = [number for frontend in frontends for number in (frontend.file, frontend.kick)]
    before = server.processor(), server.switches(), time.perf_counter()
    run = subprocess.run(
        [os.path.join(os.path.dirname(arguments.program), "open-load"), *map(str, (
            slots, arguments.queue_size, ACTIVE_SIZE // 4096, rate, seconds, beside))],
        input=lines, text=True, stdout=subprocess.PIPE, pass_fds=descriptors,
        preexec_fn=lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}))
    if run.returncode != 0:
        sys.exit(f"the generator ended with status {run.returncode}")
    result = json.loads(run.stdout)
    if result["failures"]:
        sys.exit(f"{result['failures']} reads failed")
    result["processor"] = (server.processor() - before[0]) * 1e6
    result["switches"] = server.switches() - before[1]
    result["threads"] = server.threads()
    return result


def active(arguments, folder):
    """Reads at Poisson moments from 1, 10, 100 and more disks of one process that has a CPU for itself."""
    print(f"4 KiB reads at Poisson moments, {arguments.rate:,.0f} a second in all, median of {arguments.rounds} rounds of "
          f"{arguments.seconds:g} s; images on {arguments.directory}; the process runs on "
          + (f"processor {min(os.sched_getaffinity(0))}\n" if arguments.one_processor else "all processors\n"))
    print(f"{'disks':>6}{'us of CPU a read':>18}{'p50, ms':>10}{'p99':>9}{'p99.9':>9}{'worst':>9}{'switches a read':>17}"
          f"{'kicks':>7}{'threads':>9}" + (f"{'beside, k/s':>13}" if arguments.beside else ""))
    results, mistakes = {}, []
    for count in arguments.counts:
        os.makedirs(f"{folder}/{count}")
        server = Server(arguments, f"{folder}/{count}", count + (1 if arguments.beside else 0), ACTIVE_SIZE, filled=True,
                        cpu=min(os.sched_getaffinity(0)) if arguments.one_processor else None)
        frontends = [LoadedFrontend(path, arguments.queue_size) for path in server.sockets]
        rounds = []
        # The generator sets up rings from scratch, so each round has its own front-ends.
        for _ in range(arguments.rounds):
            if rounds:
                for frontend in frontends:
                    frontend.close()
                frontends = [LoadedFrontend(path, arguments.queue_size) for path in server.sockets]
            rounds.append(load(arguments, server, frontends, arguments.rate, arguments.seconds))
        server.stop()
        for frontend in frontends:
            frontend.close()
        shutil.rmtree(f"{folder}/{count}")
        middle = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        requests = max(middle["requests"] + middle["busy"], 1)
        middle["microseconds"] = middle["processor"] / requests
        results[count] = middle
        print(f"{count:6}{middle['microseconds']:18.2f}{middle['p50'] / 1000:10.4f}{middle['p99'] / 1000:9.3f}"
              f"{middle['p999'] / 1000:9.3f}{middle['worst'] / 1000:9.2f}{middle['switches'] / requests:17.3f}"
              f"{middle['kicks'] / requests:7.2f}{middle['threads']:9.0f}"
              + (f"{middle['busy'] / arguments.seconds / 1000:13.1f}" if arguments.beside else ""), flush=True)
        if arguments.check and (middle["microseconds"] > ACTIVE_LIMITS["us"] or middle["p99"] > ACTIVE_LIMITS["p99"]):
            mistakes.append(f"with {count} disks a read took {middle['microseconds']:.1f} us of CPU and {middle['p99']:.0f} us "
                            f"at p99, more than {ACTIVE_LIMITS['us']} and {ACTIVE_LIMITS['p99']}")
    if arguments.json:
        print(json.dumps(results))
    return mistakes


def report(arguments, one, many):
    count = arguments.disks
    print(f"{count} disks in one process; images on {arguments.directory}; ring size {arguments.queue_size}\n")
    print(f"{'':30}{'listening':>14}{'connected':>14}")
    others = max(count - 1, 1)
    for name, what in (("own", "own memory, KiB a disk"), ("rings", "io_uring's, KiB a disk"), ("pss", "PSS, KiB a disk"),
                       ("rss", "RSS, KiB a disk")):
        values = [(many[state][name] - one[state][name]) / others for state in ("listening", "connected")]
        print(f"{what:30}{values[0]:14.1f}{values[1]:14.1f}")
    for name, what in (("rss", "RSS of the process, MiB"), ("threads", "threads"), ("files", "open files"),
                       ("ticks", f"CPU ticks in {arguments.seconds:g} idle s")):
        scale = 1024 if name == "rss" else 1
        print(f"{what:30}{many['listening'][name] / scale:14.0f}{many['connected'][name] / scale:14.0f}")
    first = sorted(many["first read"])
    print(f"""
from exec to the last socket   {many['start'] * 1000:.0f} ms ({many['start processor'] * 1000:.0f} ms of CPU time); one disk \
{one['start'] * 1000:.1f} ms
connect to first block read    median {statistics.median(first) * 1000:.2f} ms, worst {first[-1] * 1000:.2f} ms; the first of a \
process {one['first read'][0] * 1000:.2f} ms
SIGTERM to the end             {many['stop'] * 1000:.0f} ms""")


def check(arguments, one, many):
    """What must hold on any machine."""
    mistakes = []
    for state in ("listening", "connected"):
        own = (many[state]["own"] - one[state]["own"]) / max(arguments.disks - 1, 1)
        if own > KIB_LIMIT:
            mistakes.append(f"a {state} disk has {own:.0f} KiB of its own, more than {KIB_LIMIT}")
        if many[state]["ticks"] > 0:
            mistakes.append(f"idle {state} disks used {many[state]['ticks']} ticks of CPU time")
    before, after = (many[state]["table"] for state in ("listening", "connected"))
    if before != after:
        mistakes.append(f"the table of descriptors grew from {before} to {after} while front-ends connected: one of them waited")
    return mistakes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default=os.path.join(ROOT, ".build/release/vmm-blk"))
    parser.add_argument("--disks", type=int, default=1000)
    parser.add_argument("--directory", default="/dev/shm", help="where the images are made (default: %(default)s)")
    parser.add_argument("--queue-size", type=int, default=128, help="entries of each ring, up to 1024 (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="how long to watch the idle process (default: %(default)s)")
    parser.add_argument("--option", action="append", default=[], help="an option for serve, as in --option=--engine=uring")
    parser.add_argument("--check", action="store_true", help="status 1 when an idle disk costs CPU time or too much memory")
    parser.add_argument("--busy", action="store_true", help="measure one busy disk among the others instead")
    parser.add_argument("--rounds", type=int, help="measurements of each side of --busy (default: 25), or of each count of --active (5)")
    parser.add_argument("--active", action="store_true", help="measure disks that all work instead; --seconds is of a round")
    parser.add_argument("--counts", default="1,10,100,1000", help="how many disks, for --active (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=50000, help="reads a second of all disks together (default: %(default)s)")
    parser.add_argument("--beside", type=int, default=0, metavar="DEPTH", help="another disk, at full speed with that many reads in flight")
    parser.add_argument("--all-processors", dest="one_processor", action="store_false", help="let the process run anywhere")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    arguments = parser.parse_args()
    arguments.counts = [int(word) for word in arguments.counts.split(",")]
    arguments.rounds = arguments.rounds or (5 if arguments.active else 25)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    folder = tempfile.mkdtemp(prefix="many-", dir=arguments.directory)
    try:
        if arguments.busy:
            return busy(arguments, folder)
        if arguments.active:
            return finish(active(arguments, folder))
        one = measure(arguments, f"{folder}/one", 1)
        many = measure(arguments, f"{folder}/many", arguments.disks)
    finally:
        for process in Server.running:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.json:
        print(json.dumps({"one": one, "many": many}))
    else:
        report(arguments, one, many)
    finish(check(arguments, one, many) if arguments.check else [])


def finish(mistakes):
    for mistake in mistakes:
        print(mistake, file=sys.stderr)
    sys.exit(1 if mistakes else 0)


if __name__ == "__main__":
    main()
