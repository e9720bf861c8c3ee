#!/usr/bin/python3
"""Measures what idle disks on a Ceph cluster cost the process that serves them and the cluster: the basis for planning
many hosts (Docs/images.md).

    Scripts/rbd-many.py                   1, 10 and 50 disks in one process, on a throw-away cluster
    Scripts/rbd-many.py --counts 1,100    others
    Scripts/rbd-many.py --processes 10    also as many processes with one disk each

Each disk has its own image, is locked, and has a front-end that has read one block. What a disk costs is the difference between
the processes with most and with fewest disks. Needs Scripts/setup.sh ceph, and a built vmm-blk.
"""
import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time

from many import HUNG, ROOT, Frontend, Server

SCRIPTS = os.path.dirname(os.path.abspath(__file__))
NEEDED = ("ceph-mon", "ceph-osd", "ceph", "rbd", "ss")


class Cluster:
    def __init__(self):
        parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/var/tmp"
        self.folder = tempfile.mkdtemp(prefix="rbd-many.", dir=parent)
        self.conf = f"{self.folder}/ceph.conf"
        self.script("start", str(os.getpid()))

    def script(self, verb, *words):
        subprocess.run([f"{SCRIPTS}/ceph.sh", verb, self.folder, *words], check=True, env={**os.environ, "STORE": "bluestore"})

    def ask(self, program, *words):
        return subprocess.run([program, "-c", self.conf, *words], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              text=True, timeout=HUNG).stdout

    def daemons(self):
        """CPU seconds and memory in MiB of each daemon."""
        found = {}
        for name in ("mon.a", "osd.0"):
            pid = int(open(f"{self.folder}/{name}.pid").read())
            status = open(f"/proc/{pid}/status").read()
            found[name] = (time.clock_gettime(~pid << 3 | 2), int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024)
        return found


class RBDServer(Server):
    """One process with these images, each on its own socket."""

    def __init__(self, arguments, folder, cluster, images):
        os.makedirs(folder, exist_ok=True)
        self.sockets = [f"{folder}/{image}.sock" for image in images]
        entries = [{"image": f"rbd:rbd/{image}?conf={cluster.conf}", "socket-path": path}
                   for image, path in zip(images, self.sockets)]
        with open(f"{folder}/disks.json", "w") as file:
            json.dump(entries, file)
        self.errors = tempfile.TemporaryFile()
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [arguments.program, "serve", "--disks", f"{folder}/disks.json", "--log-level", "warning", *arguments.option],
            stdout=subprocess.DEVNULL, stderr=self.errors)
        self.running.add(self.process)
        while not self.accepts(self.sockets[-1]):
            if self.process.poll() is not None:
                self.errors.seek(0)
                sys.exit(self.errors.read().decode())
            time.sleep(0.002)
        self.start = time.perf_counter() - began

    def connections(self):
        """Connections to the cluster, and the bytes and segments that they have sent and received."""
        out = subprocess.run(["ss", "-tinpHO", "state", "established"], check=True, stdout=subprocess.PIPE, text=True).stdout
        own = [line for line in out.splitlines() if f"pid={self.process.pid}," in line]

        def total(word):
            return sum(int(match[1]) for line in own if (match := re.search(rf"\b{word}:(\d+)", line)))

        return {"connections": len(own), "bytes": total("bytes_sent") + total("bytes_received"),
                "segments": total("segs_out") + total("segs_in")}


def measure(arguments, cluster, servers):
    """The cost of all of them together, with a front-end at each disk, per `arguments.seconds` of idling."""
    frontends = []
    for server in servers:
        for path in server.sockets:
            frontends.append(Frontend(path, 128))
            frontends[-1].read_block()
    time.sleep(1)
    before = [(server.processor(), server.connections()) for server in servers]
    daemons = cluster.daemons()
    time.sleep(arguments.seconds)
    after = [(server.processor(), server.connections()) for server in servers]
    late = cluster.daemons()
    seconds = arguments.seconds

    def rate(word):
        return sum(now[1][word] - then[1][word] for then, now in zip(before, after)) / seconds

    result = {
        "threads": sum(server.threads() for server in servers),
        "descriptors": sum(server.descriptors() for server in servers),
        "connections": sum(now[1]["connections"] for now in after),
        "memory, MiB": sum(server.memory()["pss"] for server in servers) / 1024,
        "CPU, ms/s": sum(now[0] - then[0] for then, now in zip(before, after)) / seconds * 1000,
        "network, B/s": rate("bytes"),
        "segments/s": rate("segments"),
    }
    for name in daemons:
        result[f"{name} CPU, ms/s"] = (late[name][0] - daemons[name][0]) / seconds * 1000
        result[f"{name} memory, MiB"] = late[name][1]
    for frontend in frontends:
        frontend.close()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=lambda text: [int(word) for word in text.split(",")], default=[1, 10, 50])
    parser.add_argument("--processes", type=int, default=0, help="with one disk each, too")
    parser.add_argument("--seconds", type=float, default=20, help="of idling")
    parser.add_argument("--hosts", type=int, default=100, help="of the plan")
    parser.add_argument("--disks", type=int, default=1000, help="of a host of the plan")
    parser.add_argument("--program", default=os.environ.get("VMM_BLK", f"{ROOT}/.build/release/vmm-blk"))
    parser.add_argument("--option", action="append", default=["--num-queues=1"], help="of the server")
    arguments = parser.parse_args()
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        print(f"rbd-many: skipped, because {', '.join(missing)} is not installed (Scripts/setup.sh ceph)")
        return
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    folder = tempfile.mkdtemp(prefix="rbd-many.", dir="/tmp")
    cluster = Cluster()
    try:
        images = [f"d{number}" for number in range(max(*arguments.counts, arguments.processes, 1))]
        for image in images:
            cluster.ask("rbd", "create", f"rbd/{image}", "--size", "64M")
        results = {}
        for count in arguments.counts:
            server = RBDServer(arguments, f"{folder}/{count}", cluster, images[:count])
            results[count] = {"start, s": server.start, **measure(arguments, cluster, [server])}
            owners = cluster.ask("rbd", "status", f"rbd/{images[0]}").count("watcher=")
            results[count]["watchers of an image"] = owners
            results[count]["stop, s"] = server.stop()
            print(f"{count} disks in one process: measured", file=sys.stderr)
        if arguments.processes:
            servers = [RBDServer(arguments, f"{folder}/alone-{image}", cluster, [image]) for image in images[:arguments.processes]]
            name = f"{arguments.processes} processes"
            results[name] = {"start, s": sum(server.start for server in servers), **measure(arguments, cluster, servers)}
            results[name]["stop, s"] = sum(server.stop() for server in servers)
        show(arguments, results)
    finally:
        for process in Server.running:
            process.kill()
        cluster.script("remove")
        shutil.rmtree(folder)


def show(arguments, results):
    few, many = min(arguments.counts), max(arguments.counts)
    names = list(results[few])
    per_disk = {name: (results[many][name] - results[few][name]) / (many - few) for name in names} if many > few else {}
    columns = [(f"{count} disks" if isinstance(count, int) else count, results[count]) for count in results]
    print(f"{'':22}" + "".join(f"{title:>14}" for title, _ in columns)
          + (f"{'each':>12}{f'{arguments.disks:,} disks':>14}{f'{arguments.hosts} hosts':>14}" if per_disk else ""))
    for name in names:
        line = f"{name:22}" + "".join(f"{result[name]:14,.2f}" if name in result else f"{'':14}" for _, result in columns)
        if per_disk and name != "watchers of an image":
            host = results[few][name] + per_disk[name] * (arguments.disks - few)
            # The cluster's daemons and durations are not multiplied by hosts.
            over = "" if "memory" in name and "." in name.split()[0] or ", s" in name else f"{host * arguments.hosts:14,.0f}"
            line += f"{per_disk[name]:12,.3f}{host:14,.1f}{over}"
        print(line)


if __name__ == "__main__":
    main()
