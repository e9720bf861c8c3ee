#!/usr/bin/python3
"""Compares two ways to serve a disk, alternating between them: rate and CPU time per request, as ratios within each round.

    Scripts/paired.py -- '--sandbox off' '--sandbox on'
    Scripts/paired.py --image tmpfs,null --rounds 40 -- '--latencies off' '--latencies on'
    Scripts/paired.py --program old/vmm-blk --image cache -- '' ''      the second is this build

Each round starts both servers afresh, because two processes of the same program differ by some per cent for as long as they live,
depending on where their memory is. It drives one and then the other with 'vmm-blk bench'; the next round reverses the order, and every
second round swaps the images. Printed are medians over the rounds of second/first, with a 95 % interval of the median. CPU time is
the server's, of all its threads.

Images: tmpfs (a file in memory), cache (a file through the page cache), direct (a file that bypasses it), null (no medium).
"""
import argparse
import glob
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIZE = 256 << 20
# The page cache keeps what is written at once in large pieces, and ext4 looks at all buffers of a piece at each write into it: up to 512 of
# them, which takes several times as long as the write and differs from file to file. So an image in it is filled page by page.
PAGE = 4096
HUNG = 120


class Server:
    def __init__(self, program, folder, name, image, options):
        self.socket = os.path.join(folder, name + ".sock")
        command = [program, "serve", "--blk-file", image, "--socket-path", self.socket, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if not self.process.stdout.readline().startswith("Serving"):
            sys.exit(f"paired: '{' '.join(command)}' does not serve")

    def cpu(self):
        """Nanoseconds of CPU time of all its threads; of those that have ended, as far as the kernel counts them: ticks."""
        total = 0
        for path in glob.glob(f"/proc/{self.process.pid}/task/*/schedstat"):
            try:
                with open(path) as file:
                    total += int(file.read().split()[0])
            except (OSError, ValueError):
                pass
        return total

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(HUNG)


def measure(driver, server, rw, args):
    """Requests per second, and nanoseconds of the server's CPU time per request."""
    command = [driver, "bench", "--socket-path", server.socket, "--rw", rw, "--bs", args.bs, "--iodepth", str(args.iodepth),
               "--runtime", str(args.runtime), "--ramp_time", "0.05", "--output-format=json"]
    # A queue's thread ends with its queue, and its CPU time is lost: so the server is read while it works.
    bench = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen = []
    while bench.poll() is None:
        seen.append(server.cpu())
        try:
            bench.wait(0.005)
        except subprocess.TimeoutExpired:
            pass
    output, errors = bench.communicate(timeout=HUNG)
    if bench.returncode != 0:
        sys.exit(f"paired: {errors.strip()}")
    job = json.loads(output[output.index("{"):])["jobs"][0]
    part = job["read"] if job["read"]["iops"] >= job["write"]["iops"] else job["write"]
    requests = sum(job[kind]["total_ios"] for kind in ("read", "write")) or 1
    # CPU time of the whole run, ramp included, per counted request: the same share on both sides of the ratio.
    return part["iops"], (max(seen) - seen[0]) / requests


def round_of(number, folder, paths, own, more, rw, args):
    """Both measurements, the first server's first."""
    servers = []
    try:
        images = paths if number // 2 % 2 else paths[::-1]
        pairs = list(zip("ab", (args.program or own, own), args.options, images))
        # Where a server's memory lies depends on what was started before it.
        for name, program, options, path in pairs if number // 4 % 2 else pairs[::-1]:
            servers.append(Server(program, folder, name, path, more + options.split()))
        servers.sort(key=lambda server: server.socket)
        result = [None, None]
        for index in (0, 1) if number % 2 else (1, 0):
            result[index] = measure(own, servers[index], rw, args)
        return result
    finally:
        for server in servers:
            server.end()


def interval(values):
    """Median, and a 95 % interval of it, from ranks."""
    values = sorted(values)
    n = len(values)
    low, high = max(0, int(n / 2 - 0.98 * n ** 0.5)), min(n - 1, int(n / 2 + 0.98 * n ** 0.5))
    return statistics.median(values), values[low], values[high]


def fill(path, bytes):
    """Random bytes, by writes of this size all over the file."""
    count = SIZE // bytes
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    # An odd factor: each once, and no two neighbours in succession.
    for number in range(count):
        os.pwrite(file, os.urandom(bytes), number * 40503 % count * bytes)
    os.close(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs=2, help="of 'vmm-blk serve', each as one word")
    parser.add_argument("--image", default="tmpfs,cache,null", help="a list (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--runtime", type=float, default=0.3, help="seconds of each measurement (default: %(default)s)")
    parser.add_argument("--rw", default="randread,randwrite", help="a list (default: %(default)s)")
    parser.add_argument("--bs", default="4k")
    parser.add_argument("--iodepth", type=int, default=32)
    parser.add_argument("--fill", type=int, metavar="BYTES",
                        help="written at once when the image is filled (default: 4096 for cache, 1 MiB for others)")
    parser.add_argument("--program", help="that serves the first; the second is served by this build")
    args = parser.parse_args()
    own = os.path.join(ROOT, ".build/release/vmm-blk")
    kinds = args.rw.split(",")
    for image in args.image.split(","):
        memory = image == "tmpfs"
        folder = tempfile.mkdtemp(prefix="vmm-blk-paired-", dir="/dev/shm" if memory else "/var/tmp")
        try:
            more = {"null": ["--engine", "null"], "cache": ["--direct", "off"], "direct": ["--direct", "on"]}.get(image, [])
            paths = [os.path.join(folder, name + ".img") for name in "ab"]
            for path in paths:
                fill(path, args.fill or (PAGE if image == "cache" else 1 << 20))
            for rw in kinds:
                rates, costs = [], []
                for number in range(args.rounds):
                    (first, cost), (second, other) = round_of(number, folder, paths, own, more, rw, args)
                    rates.append(second / first)
                    if cost > 0:
                        costs.append(other / cost)
                    if sys.stderr.isatty():
                        print(f"\r{image} {rw}: {number + 1} of {args.rounds}", end="", file=sys.stderr)
                if sys.stderr.isatty():
                    print("\r", end="", file=sys.stderr)
                line = f"{image:7} {rw:10} rate %.3f (95 %% %.3f to %.3f)" % interval(rates)
                if costs:
                    line += "   CPU time a request %.3f (95 %% %.3f to %.3f)" % interval(costs)
                print(line, flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
