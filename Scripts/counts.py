#!/usr/bin/python3
"""Counts what one request costs, in numbers that do not depend on the load of the machine, and compares them with the file.

    Scripts/counts.py            count and compare with Benchmarks/counts.tsv: nothing may grow by more than 3 %
    Scripts/counts.py --update   count and write Benchmarks/counts.tsv
    Scripts/counts.py --all      show unchanged counts as well

The driver makes one batch available, and the next one when all of it is used and the device's thread sleeps, so every run
is the same. Counting starts and ends at such moments, so that start and stop do not count. Instructions, copies,
allocations, reference counts and locks are counted by callgrind inside a worker's turn; copies are counted by calls, and
their instructions left out. System calls are the worker thread's, as strace sees them. Kicks are the driver's, calls
the device's.

Counts that depend on timing are left out: writes through io_uring finish in a kernel thread some time later, kicks while the
device works may be suppressed, and a worker that polls before it sleeps may need one poll or two.
"""
import os
import re
import struct
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
import callgrind

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.path.join(ROOT, ".build/release/request-cost")
TABLE = os.path.join(ROOT, "Benchmarks/counts.tsv")
BATCHES = 16
GROWTH = 0.03

# Instructions: the engine, and the shapes of requests in the words of Benchmarks/RequestCost/Scenario.swift.
SHAPES = {
    "null": [
        "read", "write", "read,segments=4,ring=512", "write,segments=4,ring=512", "read,indirect",
        "read,indirect,segments=4", "read,indirect,segments=32", "read,no-event-index", "read,in-order", "read,each",
        "read,batch=1", "flush", "get-id", "discard", "write-zeroes", "outside", "unknown",
        "read,recorded", "write,recorded", "read,indirect,recorded", "read,batch=1,recorded",
        "read,logged", "write,logged", "read,indirect,logged", "read,recorded,logged",
        "read,indirect,batch=2", "read,indirect,batch=2,ring=2", "read,indirect,batch=2,ring=32768", "read,ring=32768",
        "read,packed", "write,packed", "read,packed,segments=4,ring=512", "read,packed,indirect", "read,packed,no-event-index",
        "read,packed,in-order", "read,packed,recorded", "read,packed,logged", "read,packed,indirect,batch=2,ring=32768",
        "read,regions=8", "read,regions=64", "read,regions=509", "read,together,regions=8", "read,together,regions=509",
        "read,metered", "write,metered", "flush,metered", "read,batch=1,metered",
    ],
    "mapped": ["read", "read,packed", "write", "read,segments=4,ring=512", "read,recorded", "write,recorded", "read,logged", "write,logged",
               "read,metered", "write,metered", "read,in-order", "write,in-order"],
    "mapped,qcow2": ["read", "write", "read,segments=4,ring=512", "read,metered"],
    "cached,epoll": ["read", "read,segments=4,ring=512", "read,metered", "read,in-order"],
    "sync,cached": ["read", "write", "read,segments=4,ring=512", "read,metered"],
    "uring,epoll": ["read", "read,segments=4,ring=512", "read,logged", "read,metered", "read,in-order"],
}

# How much more a request may cost with the ring's size and the number of regions: null engine, compared with another shape.
FLAT = [
    ("read,indirect,batch=2,ring=2", "read,indirect,batch=2"),
    ("read,indirect,batch=2,ring=32768", "read,indirect,batch=2"),
    ("read,ring=32768", "read"),
    ("read,together,regions=8", "read"),
    ("read,together,regions=509", "read"),
    # Every piece in a different region from the one before: no look-up hits the last one's region.
    ("read,regions=8", "read"),
    ("read,regions=64", "read"),
    ("read,regions=509", "read"),
]
FLATNESS = 1.20

# How much more a request may cost with an in-flight record: the engine, and the shapes compared.
RECORDED = [
    ("null", "read,recorded", "read"),
    ("null", "write,recorded", "write"),
    ("null", "read,indirect,recorded", "read,indirect"),
    ("mapped", "read,recorded", "read"),
    ("mapped", "write,recorded", "write"),
]
RECORDING_LIMIT = 1.03

# The most instructions of a request through a packed ring with the null engine.
PACKED = ["read,packed", "write,packed", "read,packed,indirect"]
PACKED_LIMIT = 250

# What must not happen per request, by the names of the functions that do it.
FORBIDDEN = {
    "allocations": r"^(malloc|calloc|realloc|posix_memalign|aligned_alloc|swift_allocObject|swift_slowAlloc)\b",
    "reference counts": r"^swift_(bridgeObject|unknownObject|nonatomic_)?(retain|release)",
    "exclusivity checks": r"^swift_(beginAccess|endAccess)",
    "locks": r"^(pthread_mutex_lock|__pthread_mutex_lock|pthread_rwlock_\w+|sem_wait)",
}
# A handful belong to a turn or a batch; nothing may belong to a request.
FORBIDDEN_LIMIT = 0.01


def counters(line):
    return {key: int(value) for key, value in re.findall(r"([\w-]+)=(\d+)(?= |$)", line.split(" ", 1)[1])}


def scenarios(shapes):
    return [f"{shape},batches={BATCHES}" for shape in shapes]


def batch_size(shape):
    found = re.search(r"batch=(\d+)", shape)
    return int(found.group(1)) if found else 64


def title(shape, engine):
    kind, _, way = engine.partition(",")
    return f"{' '.join(shape.replace('=', ' ').split(','))} {way if way == 'qcow2' else kind}"


def instructions(images):
    """Instructions and copies per request, and what must not happen. - images: called with an engine."""
    counts, forbidden = {}, {}
    for engine, shapes in SHAPES.items():
        parts, lines = callgrind.count(
            [PROGRAM, engine, images(engine), *scenarios(shapes)], "*QueueWorker*4turn*", "*endOfPart*")
        # Each run has two parts, of which the first is the preparation.
        for shape, part, line in zip(shapes, parts[1::2], map(counters, lines), strict=True):
            requests = BATCHES * batch_size(shape)
            refused = requests if shape in ("outside", "unknown") else 0
            if (line["requests"], line["failures"]) != (requests, refused):
                sys.exit(f"counts: {shape}: {line['requests']} requests, {line['failures']} of them refused, instead of "
                         f"{requests} and {refused}")
            name = title(shape, engine)
            counts[f"{name} instructions"] = part.instructions / requests
            if copies := part.count(callgrind.COPY) / requests:
                counts[f"{name} copies"] = copies
            for what, pattern in FORBIDDEN.items():
                # With one turn per request, the turn's cost cannot be told from the request's.
                if batch_size(shape) == 64:
                    forbidden[f"{name} {what}"] = part.count(pattern) / requests
    return counts, forbidden


def system_calls(image):
    """Turns and system calls of the worker per batch of reads, as strace sees them and as the engine counts them."""
    counts, differences = {}, {}
    for engine in ("null", "sync,cached", "uring,cached", "mapped"):
        with tempfile.NamedTemporaryFile("r") as out:
            run = subprocess.run(
                ["strace", "-f", "-qq", "-e", "signal=none", "-o", out.name, PROGRAM, engine, image,
                 *scenarios(["read"])], check=True, stdout=subprocess.PIPE, text=True)
            calls = [(line.split(None, 1)[0], match.group(1)) for line in out if (match := re.match(r"\d+ +(\w+)\(", line))]
        begin, end = (place for place, (_, call) in enumerate(calls) if call == "getppid")
        driver = calls[begin][0]
        seen = [call for thread, call in calls[begin:end] if thread != driver]
        line = counters(run.stdout)
        kind = engine.split(",")[0]
        counts[f"{kind} turns for each batch of 64"] = line["turns"] / BATCHES
        for call in sorted(set(seen)):
            counts[f"{kind} {call} for each batch of 64"] = seen.count(call) / BATCHES
        counts[f"{kind} system calls for each batch of 64"] = len(seen) / BATCHES
        differences[f"{kind} system calls that the engine counts wrong, for each batch of 64"] = (
            abs(len(seen) - line["system-calls"]) / BATCHES)
    return counts, differences


def notifications(image):
    """Kicks and calls per request, by the driver's behaviour."""
    shapes = {}
    for features, words in (("event index", ""), ("no event index", ",no-event-index")):
        for driver, wish in (("driver asks", ",asks"), ("driver polls", "")):
            for batch in (1, 8, 64):
                shapes[f"{features}, {driver}, batches of {batch}"] = f"read,batch={batch}{words}{wish}"
    shapes["event index, driver asks, call for each, batches of 64"] = "read,batch=64,asks,each"
    run = subprocess.run(
        [PROGRAM, "null", image, *scenarios(shapes.values())], check=True, stdout=subprocess.PIPE, text=True)
    counts = {}
    for name, line in zip(shapes, map(counters, run.stdout.splitlines()), strict=True):
        for what in ("kicks", "calls"):
            counts[f"{what} for each request, {name}"] = line[what] / line["requests"]
    return counts


def number(value):
    return f"{value:.4f}".rstrip("0").rstrip(".") if value < 10 else f"{value:.1f}".removesuffix(".0")


def write_qcow2(path, data):
    """A qcow2 image of which every cluster is allocated, one after the other."""
    size, copied = 1 << 16, 1 << 63
    # The header, the refcount table, its block, the L1 table, the L2 table, then the data.
    count = len(data) // size
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, len(data), 0, 1, 3 * size, size, 1, 0, 0, 0, 0, 0, 4, 104)
    tables = [header, struct.pack(">Q", 2 * size), struct.pack(">H", 1) * (5 + count), struct.pack(">Q", copied | 4 * size),
              struct.pack(f">{count}Q", *(copied | (5 + index) * size for index in range(count)))]
    with open(path, "wb") as file:
        file.write(b"".join(table.ljust(size, b"\0") for table in tables) + data)


class Verdicts:
    def __init__(self, shows_all):
        self.shows_all, self.passed, self.failed = shows_all, 0, 0

    def limit(self, name, value, limit):
        self.say(value <= limit, f"{name}: {number(value)} (at most {number(limit)})", self.shows_all)

    def compare(self, name, value, known):
        if known is None:
            return self.say(False, f"{name}: {number(value)}, which is not in the table: run with --update")
        change = f"{name}: {number(known)} → {number(value)}"
        if known:
            change += f", {abs(value / known - 1) * 100:.1f} % {'more' if value > known else 'less'}"
        if value > known * (1 + GROWTH):
            self.say(False, f"{change} (at most {GROWTH * 100:.0f} %)")
        elif value < known * (1 - GROWTH):
            self.say(True, f"{change} (shrank: run with --update)")
        else:
            self.say(True, f"{name}: {number(value)}", self.shows_all)

    def say(self, ok, text, shown=True):
        self.passed, self.failed = self.passed + ok, self.failed + (not ok)
        if shown or not ok:
            print(("      " if ok else "FAIL  ") + text)


def main():
    if not os.path.exists(PROGRAM):
        sys.exit(f"counts: there is no {PROGRAM}: build it with 'swift build -c release'")
    options = set(sys.argv[1:])
    if not options <= {"--update", "--all"}:
        sys.exit(__doc__)
    # Not in memory: io_uring cannot read a file on tmpfs without a kernel thread.
    with (tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder,
          tempfile.TemporaryDirectory(dir="/dev/shm") as memory):
        image = os.path.join(folder, "disk.img")
        with open(image, "wb") as file:
            file.write(os.urandom(16 << 20))
        # In memory, because only there writes to a qcow2 image are copies.
        qcow2 = os.path.join(memory, "disk.qcow2")
        write_qcow2(qcow2, os.urandom(16 << 20))
        counts, forbidden = instructions(lambda engine: qcow2 if engine.endswith(",qcow2") else image)
        calls, differences = system_calls(image)
        counts |= calls | notifications(image)
    # Rounded as in the table, so that rounding is not a change.
    counts = {name: float(number(value)) for name, value in counts.items()}

    if "--update" in options:
        with open(TABLE, "w") as file:
            file.writelines(f"{name}\t{number(value)}\n" for name, value in counts.items())
    known = {}
    if os.path.exists(TABLE):
        with open(TABLE) as lines:
            known = {name: float(value) for name, value in (line.rstrip("\n").split("\t") for line in lines)}

    verdicts = Verdicts("--all" in options)
    for name, value in counts.items():
        verdicts.compare(name, value, known.get(name))
    for name in known:
        if name not in counts:
            verdicts.say(False, f"{name} is in the table and was not counted: run with --update")
    for name, value in forbidden.items():
        verdicts.limit(f"{name} for each request", value, FORBIDDEN_LIMIT)
    for name, value in differences.items():
        verdicts.limit(name, value, 0)
    for shape, base in FLAT:
        ratio = counts[f"{title(shape, 'null')} instructions"] / counts[f"{title(base, 'null')} instructions"]
        verdicts.limit(f"{title(shape, 'null')}, instructions against {title(base, 'null')}", ratio, FLATNESS)
    for shape in PACKED:
        verdicts.limit(f"{title(shape, 'null')} instructions", counts[f"{title(shape, 'null')} instructions"], PACKED_LIMIT)
    for engine, shape, base in RECORDED:
        ratio = counts[f"{title(shape, engine)} instructions"] / counts[f"{title(base, engine)} instructions"]
        verdicts.limit(f"{title(shape, engine)}, instructions against {title(base, engine)}", ratio, RECORDING_LIMIT)
    verdicts.limit(
        "uring system calls for each request, batches of 64", counts["uring system calls for each batch of 64"] / 64, 0.10)
    print(f"{verdicts.passed} passed, {verdicts.failed} failed")
    sys.exit(1 if verdicts.failed else 0)


if __name__ == "__main__":
    main()
