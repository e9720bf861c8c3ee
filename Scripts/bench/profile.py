#!/usr/bin/python3
"""Shows where a back-end's CPU time goes at full speed: perf samples, by kind and by function.

    Scripts/bench/profile.py [--cases "tmpfs randread 4k QD32" …]

Every case is served and driven as in peers.py, on images that are made for it. Waiting for the disk is not sampled: `busy` is
the part of the time in which the back-end was on its CPU at all.
"""
import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time

import peers

# What is run, and with which flags of serve.
CASES = [
    ("tmpfs", "randread", "4k", 32, []), ("tmpfs", "randwrite", "4k", 32, []), ("tmpfs", "randread", "4k", 1, []),
    ("tmpfs", "read", "128k", 32, []), ("tmpfs", "randread", "4k", 32, ["--engine", "sync"]),
    ("tmpfs", "randread", "4k", 32, ["--engine", "threads"]),
    ("ext4-cache", "randread", "4k", 32, []), ("ext4-cache", "randwrite", "4k", 32, []), ("ext4-cache", "read", "128k", 32, []),
    ("ext4-direct", "randread", "4k", 32, []), ("ext4-direct", "randwrite", "4k", 32, []),
]
COPY = re.compile(r"copy|memcpy|memmove|memset|clear_page|rep_movs|rep_stos")
SECONDS = 2


def title(case):
    image, rw, block, depth, flags = case
    return " ".join([image, rw, block, f"QD{depth}", *flags])


def kind(program, symbol):
    if COPY.search(symbol):
        return "copying"
    if "kernel" in program:
        return "kernel"
    return "vmm-blk" if "vmm-blk" in program else "libraries"


def short(symbol):
    """The last names of a Swift function, without its types."""
    symbol = re.sub(r"^(generic )?specialized ", "", symbol.strip())
    return re.sub(r"[<(].*", "", symbol)[-60:]


def samples(data):
    """(share, program, symbol) of each function, largest first."""
    report = subprocess.run(
        ["perf", "report", "-i", data, "--stdio", "--no-children", "-F", "overhead,dso,sym", "--percent-limit", "0.3", "-t", "|"],
        capture_output=True, text=True, check=True).stdout
    names = subprocess.run(["swift", "demangle", "--simplified"], input=report, capture_output=True, text=True, check=True).stdout
    found = []
    for line in names.splitlines():
        words = [word.strip() for word in line.split("|", 2)]
        if len(words) == 3 and words[0].endswith("%"):
            found.append((float(words[0][:-1]), words[1], re.sub(r"^\[.\] ", "", words[2])))
    return found


def profile(case, image, options, directory):
    _, rw, block, depth, flags = case
    socket, data = os.path.join(directory, "s"), os.path.join(directory, "perf.data")
    peers.settle(image)
    with peers.served(peers.ours(options.vmm_blk, *flags)(image, socket), socket, options.backend_cpu) as process:
        client = subprocess.Popen(
            [options.vmm_blk, "bench", "--socket-path", socket, f"--rw={rw}", f"--bs={block}", f"--iodepth={depth}",
             f"--runtime={SECONDS + 1}", "--ramp_time=0.5", "--client-cpus", str(options.client_cpu), "--no-ceiling-check",
             "--output-format=json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(0.8)
        subprocess.run(
            ["perf", "record", "-e", "cpu-clock", "-F", "1999", "-o", data, "-p", str(process.pid), "--", "sleep", str(SECONDS)],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        output, errors = client.communicate(timeout=60)
    if client.returncode:
        raise RuntimeError(errors.strip())
    found = json.loads(output)["jobs"][0]["vmm-blk"]
    return found["iops"], found["iops"] * (found.get("backend_cpu_us_per_io") or 0) / 1e6, samples(data)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vmm-blk", default=".build/release/vmm-blk", help="the program to look at")
    parser.add_argument("--cases", nargs="*", help="titles, as in 'tmpfs randread 4k QD32'")
    parser.add_argument("--size", type=int, default=512, help="MiB of each image")
    parser.add_argument("--memory-directory", default="/dev/shm")
    parser.add_argument("--disk-directory", default="/var/tmp")
    parser.add_argument("--backend-cpu", type=int, default=0)
    parser.add_argument("--client-cpu", type=int, default=(os.cpu_count() or 1) - 1)
    options = parser.parse_args()
    cases = [case for case in CASES if not options.cases or title(case) in options.cases]
    if not cases:
        sys.exit("profile: there is no such case; there are: " + ", ".join(f"'{title(case)}'" for case in CASES))
    options.images = sorted({case[0] for case in cases})
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="vmm-blk-profile-"))
        images = {image["id"]: image for image in peers.make_images(options, stack)}
        print("| case | thousands/s | busy | copying | kernel | vmm-blk | libraries | most of it |")
        print("|---|---|---|---|---|---|---|---|")
        for case in cases:
            rate, busy, found = profile(case, images[case[0]], options, directory)
            share = {}
            for part, program, symbol in found:
                share[kind(program, symbol)] = share.get(kind(program, symbol), 0) + part
            most = ", ".join(f"{short(symbol)} {part:.0f} %" for part, _, symbol in found[:4])
            print(f"| {title(case)} | {rate / 1000:.0f} | {busy:.0%} | " + " | ".join(
                f"{share.get(what, 0):.0f} %" for what in ("copying", "kernel", "vmm-blk", "libraries")) + f" | {most} |", flush=True)


if __name__ == "__main__":
    main()
