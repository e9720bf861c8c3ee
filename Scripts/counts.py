#!/usr/bin/env python3
"""Counts what one request costs, in numbers that no load on the machine can change, and holds them against the file.

    Scripts/counts.py            count and compare with Benchmarks/counts.tsv
    Scripts/counts.py --update   count and write Benchmarks/counts.tsv

Instructions, allocations, reference counts and locks are counted by callgrind inside a worker's turn, as the difference
between a long and a short run, so that start and stop do not count. System calls of the ring are counted by strace.
"""
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.path.join(ROOT, ".build/release/request-cost")
TABLE = os.path.join(ROOT, "Benchmarks/counts.tsv")
SHORT, LONG = 6400, 12800
GROWTH = 1.03

# What must not happen for a request, by the names of the functions that do it.
FORBIDDEN = {
    "allocations": r"^(malloc|calloc|realloc|posix_memalign|aligned_alloc|swift_allocObject|swift_slowAlloc)\b",
    "reference counts": r"^swift_(bridgeObject|unknownObject|nonatomic_)?(retain|release)",
    "exclusivity checks": r"^swift_(beginAccess|endAccess)",
    "locks": r"^(pthread_mutex_lock|__pthread_mutex_lock|pthread_rwlock_\w+|sem_wait)",
}


def callgrind(arguments, folder):
    """Instructions inside turns, and calls of every function from inside them."""
    out = os.path.join(folder, "callgrind.out")
    subprocess.run(
        ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--toggle-collect=*QueueWorker*4turn*",
         PROGRAM, *arguments],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    names, calls, instructions = {}, {}, 0
    callee = None
    with open(out) as lines:
        for line in lines:
            if line.startswith("totals:") or line.startswith("summary:"):
                instructions = int(line.split()[1])
            elif line.startswith(("fn=", "cfn=")):
                number, _, name = line.split("=", 1)[1].strip().partition(" ")
                if name:
                    names[number] = name
                if line.startswith("cfn="):
                    callee = number
            elif line.startswith("calls="):
                calls[callee] = calls.get(callee, 0) + int(line[6:].split()[0])
    return instructions, {names.get(number, number): count for number, count in calls.items()}


def per_request(kind, engine, image, folder):
    few, few_calls = callgrind([kind, str(SHORT), engine, image], folder)
    many, many_calls = callgrind([kind, str(LONG), engine, image], folder)
    requests = LONG - SHORT
    counts = {f"{kind} {engine} instructions": (many - few) / requests}
    for what, pattern in FORBIDDEN.items():
        total = sum(
            count - few_calls.get(name, 0) for name, count in many_calls.items() if re.search(pattern, name))
        counts[f"{kind} {engine} {what}"] = total / requests
    return counts


def system_calls(image):
    """Calls of io_uring_enter for each request and each turn at depth 64, as strace sees them."""
    run = subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=io_uring_enter", "-e", "signal=none", "-o", "/dev/stderr",
         PROGRAM, "read", str(LONG), "uring,cached", image], check=True, capture_output=True, text=True)
    calls = sum("io_uring_enter(" in line for line in run.stderr.splitlines())
    turns = int(re.search(r"turns=(\d+)", run.stdout).group(1))
    return calls / LONG, calls / turns


def main():
    if not os.path.exists(PROGRAM):
        sys.exit(f"counts: there is no {PROGRAM}: build it with 'swift build -c release'")
    counts, failures = {}, []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        image = os.path.join(folder, "disk.img")
        with open(image, "wb") as file:
            file.write(os.urandom(16 << 20))
        for kind in ("read", "write"):
            for engine in ("null", "uring,epoll"):
                counts.update(per_request(kind, engine, image, folder))
        # Writes to the page cache finish in a kernel thread some time later: how many turns that takes is not ours to count.
        del counts["write uring,epoll instructions"]
        each, turn = system_calls(image)
    rows = []

    def check(name, value, limit, form="{:.2f}"):
        ok = value <= limit
        rows.append((name, form.format(value), "at most " + form.format(limit), "ok" if ok else "FAIL"))
        if not ok:
            failures.append(name)

    known = {}
    if os.path.exists(TABLE):
        with open(TABLE) as lines:
            known = {name: float(value) for name, value in (line.rstrip("\n").split("\t") for line in lines)}
    update = "--update" in sys.argv[1:]
    for name, value in counts.items():
        if name.endswith("instructions"):
            if name not in known and not update:
                rows.append((name, f"{value:.0f}", "not in the table", "FAIL"))
                failures.append(name)
            else:
                check(name, value, value if update else known[name] * GROWTH, "{:.0f}")
        else:
            # A handful belong to a turn or a batch; nothing may belong to a request.
            check(name, value, 0.01)
    check("io_uring_enter for each request, depth 64", each, 0.10)
    check("io_uring_enter for each turn", turn, 1.02)
    width = max(len(row[0]) for row in rows)
    for name, value, limit, verdict in rows:
        print(f"{name:<{width}}  {value:>9}  {limit:<16}  {verdict}")
    if update:
        with open(TABLE, "w") as file:
            for name, value in counts.items():
                if name.endswith("instructions"):
                    file.write(f"{name}\t{value:.0f}\n")
    print(f"{len(rows) - len(failures)} passed, {len(failures)} failed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
