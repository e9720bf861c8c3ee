#!/usr/bin/python3
"""Repeats the figures of Docs/reliability.md for as long as you like, and keeps a report that the next run continues.

    Scripts/soak.py 30                        thirty minutes of everything
    Scripts/soak.py 5 --only kills            only one exercise
    Scripts/soak.py 5 --seed 7 --report FILE  the same moments again (as far as a machine repeats itself)

A third of the kills hits a server that is recovering from the previous one. These servers are a test build, which can be
told at which place between two stores to end; VMM_BLK_TEST names another than the debug build of this folder.

Each exercise is made of rounds, and each round has its own seed, derived from --seed and its number: a round that
failed can be run again alone with --only EXERCISE --round N. The report is JSON: seed, commit, date, and for each exercise
its rounds, its counts and what went wrong. Status 1: something did.
"""
import argparse
import collections
import datetime
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from many import Frontend  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.environ.get("VMM_BLK", os.path.join(ROOT, ".build/release/vmm-blk"))
TEST_PROGRAM = os.environ.get("VMM_BLK_TEST", os.path.join(ROOT, ".build/debug/vmm-blk"))
HUNG = 300  # seconds after which any wait counts as hung
IMAGE_LOCKED = 66  # the status of a server whose image the kernel still keeps locked for the previous one


class Failure(Exception):
    """Something that must not happen did."""


class Server:
    """One `vmm-blk serve` on a socket, and after each kill the next."""

    def __init__(self, folder, options):
        self.options = ["serve", "--blk-file", f"{folder}/disk", "--socket-path", f"{folder}/socket", *options]
        self.log = open(f"{folder}/log", "ab")
        self.process = None

    def start(self, ends_at=None):
        """Returns when it listens. With a place to end at it is a test build, which ends there by SIGKILL, maybe before that."""
        program, environment = PROGRAM, None
        if ends_at:
            program, environment = TEST_PROGRAM, dict(os.environ, VMM_BLK_KILL_AT=ends_at)
        limit = time.monotonic() + HUNG
        while time.monotonic() < limit:
            self.process = subprocess.Popen([program, *self.options], stdout=subprocess.PIPE, stderr=self.log, env=environment)
            if self.process.stdout.readline():
                return
            status = self.process.wait()
            if ends_at and status == -signal.SIGKILL:
                return  # a waiting guest may be served before its first line is read
            if status != IMAGE_LOCKED:
                raise Failure(f"a server ended with status {status} instead of listening")
        raise Failure("the image stays locked")

    def kill(self):
        """Sends SIGKILL, and waits."""
        ended = self.process.poll()
        if ended is not None:
            raise Failure(f"the server ended by itself with status {ended}")
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def ends(self, seconds):
        """Whether it ends by itself within that many seconds, as it was told to."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self.process.stdout.close()
        if status != -signal.SIGKILL:
            raise Failure(f"a server that was to end by SIGKILL ended with status {status}")
        return True

    def state(self):
        """For a report: its status, and its last output."""
        with open(self.log.name, encoding="utf-8", errors="replace") as log:
            words = " / ".join(log.read().splitlines()[-4:])
        return f"the server's status: {self.process.poll()}; its last words: {words}"

    def stop(self):
        """Stops it as an operator would; or at once, after a failure."""
        if self.process is None or self.process.poll() is not None:
            return None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(HUNG)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Guest:
    """`vmm-blk guest verify --reconnect`, and its progress."""

    def __init__(self, folder, seed, seconds, options, reconnects=True):
        self.command = [
            PROGRAM, "guest", "verify", "--socket-path", f"{folder}/socket", *(["--reconnect"] if reconnects else []),
            "--seed", str(seed), "--seconds", str(seconds), "--report-every", "10", *options]
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.answered = 0
        self.pauses = []  # of more than half a millisecond: milliseconds
        self.lines = collections.deque(maxlen=20)
        self.moved = threading.Condition()
        self.is_over = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            with self.moved:
                words = line.split()
                if words and words[0] == "answered":
                    self.answered = int(words[1])
                elif words[:3] == ["no", "answer", "for"]:
                    self.pauses.append(int(words[3]) / 1000)
                else:
                    self.lines.append(line.rstrip())
                self.moved.notify_all()
        with self.moved:
            self.is_over = True
            self.moved.notify_all()

    def wait_for(self, answers, limit):
        """Waits until that many requests are answered, the guest has ended, or the monotonic clock reaches `limit`."""
        with self.moved:
            return self.moved.wait_for(lambda: self.answered >= answers or self.is_over, max(limit - time.monotonic(), 0))

    def finish(self):
        try:
            status = self.process.wait(HUNG)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Failure(f"the guest hangs after {self.answered} answers: {' '.join(self.command)}") from None
        with self.moved:
            self.moved.wait_for(lambda: self.is_over, HUNG)
        if status != 0:
            raise Failure(f"the guest found: {' / '.join(self.lines)} ({' '.join(self.command)})")


ENGINES = ["uring", "sync", "threads", "mapped", "aio", "cached"]


def guest_options(chance):
    """Random options of `guest verify`."""
    options = ["--queues", str(chance.choice([1, 1, 2, 4])), "--depth", str(chance.choice([1, 4, 16, 32]))]
    options += ["--length", "16M", "--largest", "64k"]
    return options + [word for word in ("--no-indirect", "--no-event-index", "--poll") if chance.random() < 0.4]


def dies_recovering(server, guest, place):
    """Starts a server that is to end in its recovery. - Returns: whether it did; it may have had less to recover."""
    server.start(ends_at=f"recovery:{place}")
    before, limit = guest.answered, time.monotonic() + HUNG
    while not server.ends(0.005):
        if guest.answered > before + 100 or guest.is_over:
            server.kill()
            return False
        if time.monotonic() > limit:
            raise Failure(f"a server that was to end at the {place}th place of its recovery neither ended nor served")
    return True


def kills(chance, folder, seconds, keeps_records):
    """One guest, and as many kills as the time allows; a third of them during the recovery from the previous one."""
    engine = chance.choice(["uring", *ENGINES])
    options = guest_options(chance)
    if keeps_records:
        options += ["--base", chance.choice(["used", "available"]), "--ring", chance.choice(["split", "split", "packed"])]
    else:
        options += ["--no-inflight"]
    os.truncate(os.open(f"{folder}/disk", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC), 32 << 20)
    counts = collections.Counter()
    server = Server(folder, ["--engine", engine, "--num-queues", "4"])
    guest = None
    try:
        server.start()
        # Ends before the guest does: the last kill is followed by more requests, and by the final verification.
        limit = time.monotonic() + 0.8 * seconds
        guest = Guest(folder, chance.getrandbits(32), seconds, options)
        while True:
            before = guest.answered
            if not guest.wait_for(before + 10 * chance.randint(1, 30), limit) or guest.is_over:
                break
            time.sleep(chance.random() * 0.003)
            server.kill()
            counts["kills"] += 1
            while 3 * counts["kills in recovery"] < counts["kills"] and time.monotonic() < limit:
                # Its successor, at one of the first places, or at any of many.
                counts["kills in recovery"] += dies_recovering(server, guest, 1 + chance.randrange(chance.choice([2, 8, 40])))
                counts["kills"] += 1
                if guest.is_over:
                    break
            server.start()
            if chance.random() < 1 / 8:
                # Somewhere between its first line and its first answer.
                before = guest.answered
                time.sleep(chance.random() * chance.choice([0.002, 0.006, 0.02]))
                server.kill()
                counts["kills"] += 1
                counts["kills before the first answer"] += guest.answered == before
                server.start()
        guest.finish()
        counts["requests answered"] += guest.answered
        if counts["kills"] > 2 and not counts["kills in recovery"]:
            raise Failure(f"none of {counts['kills']} kills was in a recovery")
        status = server.stop()
        if status != 0:
            raise Failure(f"the last server ended with status {status}")
    except Failure as failure:
        raise Failure(f"engine {engine}, {' '.join(options)}: {failure}; {server.state()}") from None
    finally:
        if guest is not None and guest.process.poll() is None:
            guest.process.kill()
            guest.process.wait()
        if server.process is not None and server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        server.log.close()
    return counts


def with_records(chance, folder, seconds):
    return kills(chance, folder, seconds, True)


def in_order(chance, folder, seconds):
    return kills(chance, folder, seconds, False)


def takeovers(chance, folder, seconds):
    """One guest, and servers that take over from each other."""
    engine = chance.choice(ENGINES)
    options = guest_options(chance)
    with open(f"{folder}/disk", "wb") as file:
        file.truncate(32 << 20)
    control = ["--control", f"{folder}/control"]
    common = ["--engine", engine, "--num-queues", "4", *control]
    counts, pauses = collections.Counter(), []
    server, guest = Server(folder, common), None
    try:
        server.start()
        limit = time.monotonic() + 0.8 * seconds
        # It does not reconnect: a lost connection is a failure.
        guest = Guest(folder, chance.getrandbits(32), seconds, [*options, "--report-pauses", "0.5"], reconnects=False)
        while guest.wait_for(guest.answered + 10 * chance.randint(1, 30), limit) and not guest.is_over:
            before, seen = server, len(guest.pauses)
            server = Server(folder, [*common, "--take-over", f"{folder}/control"])
            server.start()
            if before.process.wait(HUNG) != 0:
                raise Failure("a server that was taken over from did not end with status 0")
            before.process.stdout.close()
            before.log.close()
            counts["takeovers"] += 1
            guest.wait_for(guest.answered + 20, time.monotonic() + HUNG)
            pauses.append(max(guest.pauses[seen:], default=0.5))
        guest.finish()
        counts["requests answered"] += guest.answered
        if server.stop() != 0:
            raise Failure("the last server did not end with status 0")
    except Failure as failure:
        raise Failure(f"engine {engine}, {' '.join(options)}: {failure}") from None
    finally:
        if guest is not None and guest.process.poll() is None:
            guest.process.kill()
            guest.process.wait()
        server.stop()
        server.log.close()
    return counts, {"longest time without an answer at a takeover, ms": pauses}


def guest_case(name, **environment):
    """A case of the real guests, with these variables."""
    result = subprocess.run(
        [os.path.join(ROOT, "Scripts/guest/test.sh"), name], env=dict(os.environ, VMM_BLK=PROGRAM, **environment),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode != 0:
        raise Failure("the guest's case failed: " + " / ".join(result.stdout.splitlines()[-5:]))


def real_guest(chance, folder, seconds):
    """Linux in QEMU with fio, killed ten times per boot."""
    del folder, seconds
    guest_case("qemu-killed", KILLS="10", SEED=str(chance.getrandbits(15)))
    return collections.Counter({"kills": 10})


def migrations(chance, folder, seconds):
    """Linux in QEMU with fio, migrated between two back-ends ten times."""
    del chance, folder, seconds
    guest_case("qemu-migrated", MIGRATIONS="10")
    return collections.Counter({"migrations": 10})


def power_failures(chance, folder, seconds):
    """Images that a power failure could leave; and a planted mistake in the device, which has to be found."""
    del seconds
    counts = collections.Counter()
    command = [PROGRAM, "verify-crash", "--json", "--folder", folder, "--seed", str(chance.getrandbits(32))]
    result = subprocess.run([*command, "--images", "10000"], stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise Failure(f"{' '.join(command)}: status {result.returncode}: {result.stdout}")
    total = json.loads(result.stdout)["total"]
    counts["images"] = total["images"]
    counts["violations"] = total["violated"]
    for mistake in MISTAKES:
        result = subprocess.run(
            [*command, "--images", "1500", "--plant", mistake], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            check=False)
        if result.returncode != 1:
            raise Failure(f"the mistake {mistake} was not found: {' '.join(command)}")
        counts["mistakes found"] += 1
    return counts


MISTAKES = ("no-flush", "flush-too-soon", "wrong-file", "toggle-ignored", "answer-too-soon", "write-after-flush", "lost-write",
            "short-write")


def faults(chance, folder, seconds):
    """A verified workload while faults are injected that can be handled."""
    del seconds
    engine = chance.choice(ENGINES)
    rules = ["any:eintr:rate=0.05", "any:eagain:rate=0.005", "read:short:rate=0.2", "write:short:rate=0.2",
             "any:delay=10us-2ms:rate=0.05", "any:reorder=8:rate=0.3"]
    rules = [f"{rule}:seed={chance.getrandbits(32)}" for rule in chance.sample(rules, chance.randint(1, len(rules)))]
    with open(f"{folder}/disk", "wb") as file:
        file.truncate(32 << 20)
    server = Server(folder, ["--engine", engine, "--num-queues", "2", *(word for rule in rules for word in ("--inject", rule))])
    try:
        server.start()
        command = [PROGRAM, "guest", "--socket-path", f"{folder}/socket", "verify", "--bytes", "64M", "--json", "--seed",
                   str(chance.getrandbits(32))]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if result.returncode != 0:
            raise Failure(f"engine {engine}, {' '.join(rules)}: {result.stdout} ({' '.join(command)})")
        if server.stop() != 0:
            raise Failure(f"engine {engine}, {' '.join(rules)}: the server did not end with status 0")
    finally:
        server.stop()
        server.log.close()
    return collections.Counter({"requests verified": sum(json.loads(result.stdout)["requests"].values())})


class Holdings:
    """The resources of a process."""

    def __init__(self, process):
        place = f"/proc/{process}"
        self.descriptors = len(os.listdir(f"{place}/fd"))
        self.threads = len(os.listdir(f"{place}/task"))
        with open(f"{place}/maps", encoding="utf-8") as file:
            self.maps = len(file.readlines())
        with open(f"{place}/statm", encoding="utf-8") as file:
            self.resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def is_within(self, other):
        # The C library keeps stacks and arenas for later threads, which differ by a few.
        return (self.descriptors <= other.descriptors and self.threads <= other.threads and self.maps <= other.maps + 16
                and self.resident <= other.resident + (1 << 20))


def front_ends(chance, folder, seconds):
    """Front-ends that connect, and disconnect in every state; afterwards the server has the same resources as before."""
    del seconds
    engine = chance.choice(ENGINES)
    with open(f"{folder}/disk", "wb") as file:
        file.truncate(1 << 20)
    server = Server(folder, ["--engine", engine, "--log-level", "critical"])
    path = f"{folder}/socket"

    def come_and_go():
        choice = chance.randrange(5)
        if choice < 2:
            # Some of the front-end's messages, or part of one.
            words = b"".join(struct.pack("<III", request, 1, 0) for request in (1, 3, 15))
            with socket.socket(socket.AF_UNIX) as end:
                end.connect(path)
                end.sendall(words[:chance.randint(0, len(words))] if choice == 0 else os.urandom(chance.randint(1, 64)))
            return
        disk = Frontend(path, 128)
        if choice == 2:
            disk.read_block()
        elif choice == 3:
            disk.ask()
        disk.close()

    def settle():
        """When this one is answered, the previous one is gone."""
        disk = Frontend(path, 128)
        disk.read_block()
        disk.close()

    try:
        server.start()
        for _ in range(500):
            come_and_go()
        settle()
        before = Holdings(server.process.pid)
        for _ in range(10000):
            come_and_go()
        settle()
        limit = time.monotonic() + HUNG
        while not (after := Holdings(server.process.pid)).is_within(before):
            if time.monotonic() > limit:
                raise Failure(f"engine {engine}: {vars(before)} before 10000 front-ends, {vars(after)} after them")
            time.sleep(0.1)
        if server.stop() != 0:
            raise Failure(f"engine {engine}: the server did not end with status 0")
    finally:
        server.stop()
        server.log.close()
    return collections.Counter({"front-ends": 10000})


# name: the function of one round, its duration in seconds, its purpose.
EXERCISES = {
    "kills": (with_records, 20, "killed and back, with in-flight records"),
    "kills-in-order": (in_order, 20, "killed and back, published in order, without records"),
    "takeovers": (takeovers, 20, "taken over by one server after the other"),
    "kills-qemu": (real_guest, 300, "killed under Linux in QEMU, with fio and its verification"),
    "migrations": (migrations, 150, "moved under load between two back-ends, with fio and its verification"),
    "power-failures": (power_failures, 30, "images that a power failure could leave"),
    "faults": (faults, 20, "faults of the medium that can be repaired"),
    "front-ends": (front_ends, 60, "front-ends that come and go"),
}


def commit():
    result = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        check=False)
    return result.stdout.strip() or "unknown"


def load(path, seed):
    """The report to continue, or a new one."""
    try:
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        if seed is not None and report["seed"] != seed:
            sys.exit(f"{path} has the seed {report['seed']}: name another --report, or leave --seed out to continue it")
        return report
    except FileNotFoundError:
        return {"seed": random.getrandbits(32) if seed is None else seed, "exercises": {}}


def save(path, report):
    """Whole or not at all."""
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(report, file, indent=2, sort_keys=True)
        file.write("\n")
    os.replace(path + ".new", path)


def show(text, end=""):
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end=end, file=sys.stderr, flush=True)


def show_samples(name, values):
    """Median, tail, and a histogram of doubling steps."""
    if not values:
        return
    at = lambda part: values[min(int(len(values) * part), len(values) - 1)]  # noqa: E731
    print(f"  {name}: median {at(0.5):.1f}, p90 {at(0.9):.1f}, p99 {at(0.99):.1f}, largest {values[-1]:.1f}")
    upper, low = 1, 0
    while low < len(values):
        count = sum(value <= upper for value in values[low:])
        if count:
            print(f"    up to {upper:>5}: {count:>6} {'#' * max(1, round(60 * count / len(values)))}")
        low, upper = low + count, upper * 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float, nargs="?", default=10, help="how long (default: 10)")
    parser.add_argument("--seed", type=int, help="the seed of all random choices; a random one, or the report's")
    parser.add_argument("--report", default=os.path.join(ROOT, "soak-report.json"), help="where to write the report, and to resume from it")
    parser.add_argument("--only", choices=EXERCISES, action="append", help="this exercise; again for another")
    parser.add_argument("--round", type=int, help="repeat only this round of the exercise")
    words = parser.parse_args()
    if not os.access(PROGRAM, os.X_OK):
        sys.exit(f"there is no program {PROGRAM}: make release, or name another in VMM_BLK")
    names = words.only or list(EXERCISES)
    if not os.access(TEST_PROGRAM, os.X_OK) and {"kills", "kills-in-order"} & set(names):
        sys.exit(f"there is no test build {TEST_PROGRAM}: swift build --product vmm-blk, or name another in VMM_BLK_TEST")
    if words.round is not None and len(names) != 1:
        sys.exit("--round needs one --only")
    report = load(words.report, words.seed)
    began = time.monotonic()
    end = began + 60 * words.minutes
    failed = False
    while True:
        for name in names:
            report["exercises"].setdefault(name, {"rounds": 0, "seconds": 0, "counts": {}, "failures": []})
        name = min(names, key=lambda name: report["exercises"][name]["seconds"])
        state = report["exercises"][name]
        work, seconds, purpose = EXERCISES[name]
        number = state["rounds"] if words.round is None else words.round
        folder = tempfile.mkdtemp(prefix="vmm-blk-soak.")
        left = max(end - time.monotonic(), 0)
        counted = ", ".join(f"{value} {key}" for key, value in sorted(state["counts"].items()))
        show(f"{left / 60:.1f} min left; {purpose}: round {number}; {counted or 'nothing yet'}")
        start = time.monotonic()
        try:
            counts = work(random.Random(f"{report['seed']}/{name}/{number}"), folder, seconds)
            counts, samples = counts if isinstance(counts, tuple) else (counts, {})
            for key, values in samples.items():
                state.setdefault("samples", {}).setdefault(key, []).extend(round(value, 3) for value in values)
            for key, value in counts.items():
                state["counts"][key] = state["counts"].get(key, 0) + value
        except Failure as failure:
            failed = True
            state["failures"].append({"round": number, "what": str(failure)})
            show("", end="")
            print(f"{name}, round {number}: {failure}", flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        state["rounds"] = max(state["rounds"], number + 1)
        state["seconds"] += round(time.monotonic() - start, 1)
        report["commit"] = commit()
        report["date"] = datetime.date.today().isoformat()
        save(words.report, report)
        if words.round is not None or time.monotonic() >= end:
            break
    show("")
    for name, state in sorted(report["exercises"].items()):
        counted = ", ".join(f"{value} {key}" for key, value in sorted(state["counts"].items()))
        print(f"{name}: {state['rounds']} rounds, {counted or 'nothing'}; {len(state['failures'])} failures")
        for key, values in sorted(state.get("samples", {}).items()):
            show_samples(key, sorted(values))
    print(f"seed {report['seed']}, commit {report['commit']}, report {words.report}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
