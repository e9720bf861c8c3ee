#!/usr/bin/python3
"""Shows where a back-end's CPU time goes at full speed: perf samples, by kind and by function.

    Scripts/bench/profile.py                                   raw files
    Scripts/bench/profile.py --images qcow2,nbd,rbd            images of these kinds, or single ones
    Scripts/bench/profile.py --cases "tmpfs randread 4k QD32"  single cases

Every case is served and driven as in peers.py, on images that are made for it. Waiting for the medium is not sampled: `busy` is
the CPU time of all the back-end's threads as a share of the time.
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

import images
import peers

# The image, the subject, the job, and more flags of serve.
CASES = [
    ("tmpfs", "vmm-auto", "randread 4k QD32", []), ("tmpfs", "vmm-auto", "randwrite 4k QD32", []),
    ("tmpfs", "vmm-auto", "randread 4k QD1", []), ("tmpfs", "vmm-auto", "read 128k QD32", []),
    ("tmpfs", "vmm-auto", "randread 4k QD32", ["--engine", "sync"]),
    ("tmpfs", "vmm-auto", "randread 4k QD32", ["--engine", "threads"]),
    ("ext4-cache", "vmm-auto", "randread 4k QD32", []), ("ext4-cache", "vmm-auto", "randwrite 4k QD32", []),
    ("ext4-cache", "vmm-auto", "read 128k QD32", []),
    ("ext4-direct", "vmm-auto", "randread 4k QD32", []), ("ext4-direct", "vmm-auto", "randwrite 4k QD32", []),
    ("qcow2-tmpfs", "vmm-qcow2", "randread 4k QD32", []), ("qcow2-tmpfs", "vmm-qcow2", "randwrite 4k QD32", []),
    ("qcow2-ext4", "vmm-qcow2", "randwrite 4k QD1", []), ("qcow2-ext4", "vmm-qcow2", "randwrite 4k QD128", []),
    ("qcow2-subclusters-ext4", "vmm-qcow2", "randwrite 4k QD128", []),
    ("qcow2-over-tmpfs", "vmm-qcow2", "randwrite 4k QD32", []), ("qcow2-1tib-tmpfs", "vmm-large", "randread 4k QD32", []),
    ("nbd", "vmm-nbd", "randread 4k QD32", []), ("nbd", "vmm-nbd", "randwrite 4k QD32", []),
    ("rbd", "vmm-rbd", "randread 4k QD32", []), ("rbd", "vmm-rbd", "randwrite 4k QD1", []),
]
COPY = re.compile(r"copy|memcpy|memmove|memset|clear_page|rep_movs|rep_stos")
# Before a measurement, and during it, where the image does not say.
SECONDS = (0.5, 2)
# The same for images that can be used only for a moment, and how long client and perf take to start.
SHORT, START = (0.05, 0.4), 0.4


def title(case):
    image, _, job, flags = case
    return " ".join([image, job, *flags])


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
    """Operations per second, CPU seconds per second, and the samples."""
    _, ident, name, flags = case
    subject = next(s for s in image.subjects if s.id == ident)
    _, rw, block, depth = next(job for job in images.JOBS if job[0] == name)
    socket, data = os.path.join(directory, "s"), os.path.join(directory, "perf.data")
    ramp, runtime = image.times or SECONDS
    if ramp < SECONDS[0]:
        ramp, runtime = SHORT
    image.settle()
    image.fresh()
    with peers.served([*subject.command(socket), *flags], socket, options.backend_cpu) as process:
        client = subprocess.Popen(
            [options.vmm_blk, "bench", "--socket-path", socket, f"--rw={rw}", f"--bs={block}", f"--iodepth={depth}",
             f"--runtime={runtime + START}", f"--ramp_time={ramp}", "--client-cpus", str(options.client_cpu),
             "--no-ceiling-check", "--output-format=json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        # perf samples only threads that exist when it starts.
        time.sleep(ramp + START / 2)
        perf = subprocess.run(
            ["perf", "record", "-e", "cpu-clock", "-F", "1999", "-o", data, "-p", str(process.pid), "--", "sleep", str(runtime)],
            capture_output=True, text=True, check=False)
        output, errors = client.communicate(timeout=120)
    if client.returncode or perf.returncode:
        raise RuntimeError(errors.strip() or perf.stderr.strip())
    found = json.loads(output)["jobs"][0]["vmm-blk"]
    return found["iops"], found["iops"] * (found.get("backend_cpu_us_per_io") or 0) / 1e6, samples(data)


def row(case, rate, busy, found):
    share = {}
    for part, program, symbol in found:
        share[kind(program, symbol)] = share.get(kind(program, symbol), 0) + part
    most = ", ".join(f"{short(symbol)} {part:.0f} %" for part, _, symbol in found[:4])
    return f"| {title(case)} | {rate / 1000:.0f} | {busy:.0%} | " + " | ".join(
        f"{share.get(what, 0):.0f} %" for what in ("copying", "kernel", "vmm-blk", "libraries")) + f" | {most} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vmm-blk", default=".build/release/vmm-blk", help="the program to look at")
    parser.add_argument("--images", nargs="*", default=["raw"], metavar="WORD[,WORD…]",
                        help=f"kinds ({', '.join(images.KINDS)}) or single images ({', '.join(images.NAMES)}); raw by default")
    parser.add_argument("--cases", nargs="*", help="titles, as in 'tmpfs randread 4k QD32'")
    parser.add_argument("--size", type=int, default=512, help="MiB of each image")
    parser.add_argument("--memory-directory", default="/dev/shm")
    parser.add_argument("--disk-directory", default="/var/tmp")
    parser.add_argument("--backend-cpu", type=int, default=0)
    parser.add_argument("--client-cpu", type=int, default=(os.cpu_count() or 1) - 1)
    options = parser.parse_args()
    options.runtime, options.ramp = SECONDS[1], SECONDS[0]
    words = [word for words in options.images for word in words.split(",") if word]
    for word in words:
        if word not in images.KINDS and word not in images.NAMES:
            parser.error(f"there is no image {word!r}: use {', '.join([*images.KINDS, *images.NAMES])}")
    if options.cases:
        cases = [case for case in CASES if title(case) in options.cases]
    else:
        cases = [case for case in CASES if case[0] in words or images.kind_of(case[0]) in words]
    if not cases:
        sys.exit("profile: there is no such case; there are: " + ", ".join(f"'{title(case)}'" for case in CASES))
    options.images = list(dict.fromkeys(case[0] for case in cases))
    missing = []
    with contextlib.closing(images.make(options, missing)) as made, \
            tempfile.TemporaryDirectory(prefix="vmm-blk-profile-") as directory:
        print("| case | thousands/s | busy | copying | kernel | vmm-blk | libraries | most of it |")
        print("|---|---|---|---|---|---|---|---|")
        for image in made:
            for case in cases:
                if case[0] == image.id:
                    print(row(case, *profile(case, image, options, directory)), flush=True)
    for sentence in missing:
        print(f"profile: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    main()
