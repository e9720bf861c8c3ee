#!/usr/bin/python3
"""Measures vmm-blk against what else one can install, in one interleaved run.

Every back-end serves the same image on a vhost-user socket, pinned to one processor, and is driven by the same client,
`vmm-blk bench`, pinned to another. fio goes to the image directly. Each round measures all subjects one after the other,
beginning with another one each time; figures are medians of the rounds and ratios are formed within a round.
"""
import argparse
import contextlib
import json
import os
import pathlib
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

JOBS = [
    ("randread 4k QD1", "randread", "4k", 1), ("randread 4k QD32", "randread", "4k", 32),
    ("randread 4k QD128", "randread", "4k", 128), ("randwrite 4k QD1", "randwrite", "4k", 1),
    ("randwrite 4k QD32", "randwrite", "4k", 32), ("randwrite 4k QD128", "randwrite", "4k", 128),
    ("read 128k QD32", "read", "128k", 32), ("write 128k QD32", "write", "128k", 32),
]


class Subject:
    """A back-end, or fio."""

    def __init__(self, ident, title, family, command=None, images=None, jobs=None):
        self.id, self.title, self.family = ident, title, family
        # Called with the image and the socket; None: fio.
        self.command = command
        self.images = images
        self.jobs = jobs

    def serves(self, image, job):
        return (self.images is None or image["id"] in self.images) and (self.jobs is None or job[0] in self.jobs)


def ours(vmm_blk, *flags):
    def command(image, socket):
        return [vmm_blk, "serve", "--socket-path", socket, "--blk-file", image["path"], "--no-lock",
                "--direct", "on" if image["direct"] else "off", *flags]
    return command


def qemu(aio=None, iothread=False, null=False):
    def command(image, socket):
        if null:
            node = f"driver=null-co,node-name=disk,size={image['size']},read-zeroes={'off' if null == 'silent' else 'on'}"
        else:
            node = (f"driver=file,node-name=disk,filename={image['path']},locking=off,aio={aio},"
                    f"cache.direct={'on' if image['direct'] else 'off'}")
        export = f"type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={socket},writable=on"
        words = ["qemu-storage-daemon", "--blockdev", node]
        if iothread:
            words += ["--object", "iothread,id=io"]
            export += ",iothread=io"
        return words + ["--export", export]
    return command


def subjects(vmm_blk):
    everything = [
        Subject("vmm-auto", "vmm-blk", "ours", ours(vmm_blk)),
        Subject("vmm-sleep", "vmm-blk --waiting sleep", "ours", ours(vmm_blk, "--waiting", "sleep")),
        Subject("vmm-busy", "vmm-blk --waiting busy", "ours", ours(vmm_blk, "--waiting", "busy"), images=("tmpfs",),
                jobs=("randread 4k QD1", "randwrite 4k QD1")),
        Subject("vmm-uring", "vmm-blk --engine uring", "ours", ours(vmm_blk, "--engine", "uring"),
                images=("tmpfs", "ext4-cache")),  # elsewhere that is the default
        Subject("vmm-mapped", "vmm-blk --engine mapped", "ours", ours(vmm_blk, "--engine", "mapped"), images=("ext4-cache",)),
        Subject("vmm-sync", "vmm-blk --engine sync", "ours", ours(vmm_blk, "--engine", "sync"), images=("tmpfs",)),
        Subject("vmm-null", "vmm-blk --engine null", "null", ours(vmm_blk, "--engine", "null"), images=("tmpfs",)),
    ]
    for aio in ("io_uring", "native", "threads"):
        images = ("tmpfs", "ext4-direct") if aio == "native" else None  # native needs direct I/O
        for iothread in (False, True):
            everything.append(Subject(
                f"qemu-{aio}{'-iothread' if iothread else ''}", f"QEMU {aio}{', iothread' if iothread else ''}", "qemu",
                qemu(aio, iothread), images=images))
    everything += [
        Subject("qemu-null", "QEMU null-co", "qemu-null", qemu(null=True), images=("tmpfs",)),
        Subject("qemu-null-silent", "QEMU null-co, no zeroing", "qemu-null", qemu(null="silent"), images=("tmpfs",)),
        Subject("fio", "fio io_uring, no virtio", "fio"),
    ]
    return everything


@contextlib.contextmanager
def served(words, socket, cpu):
    """A running back-end that listens; ended with SIGTERM."""
    process = subprocess.Popen(["taskset", "-c", str(cpu), *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        limit = time.monotonic() + 120
        while not os.path.exists(socket):
            if process.poll() is not None:
                raise RuntimeError(process.stderr.read().decode(errors="replace").strip() or "it ended at once")
            if time.monotonic() > limit:
                raise RuntimeError("it does not listen")
            time.sleep(0.005)
        time.sleep(0.02)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stderr.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket)


def fio(image, job, options):
    """fio itself on the image."""
    _, rw, block, depth = job
    done = subprocess.run(
        ["taskset", "-c", str(options.backend_cpu), "fio", "--name=j", f"--filename={image['path']}", "--ioengine=io_uring",
         f"--direct={int(image['direct'])}", f"--rw={rw}", f"--bs={block}", f"--iodepth={depth}", "--time_based",
         f"--runtime={int(options.runtime * 1000)}ms", f"--ramp_time={int(options.ramp * 1000)}ms", f"--size={image['size']}", "--thread",
         # By default fio throws the file out of the page cache first, for itself and for the next run.
         "--allow_file_create=0", "--invalidate=0", "--output-format=json"],
        capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or done.stdout.strip())
    found = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    way = found["read" if "read" in rw else "write"]
    busy = (found["usr_cpu"] + found["sys_cpu"]) / 100
    return {"iops": way["iops"], "cpu": busy * 1e6 / way["iops"] if way["iops"] else None,
            "p50": way["clat_ns"]["percentile"]["50.000000"] / 1000, "p99": way["clat_ns"]["percentile"]["99.000000"] / 1000}


def bench(subject, image, job, options, directory):
    """One measurement of one back-end."""
    _, rw, block, depth = job
    socket = os.path.join(directory, "s")
    with served(subject.command(image, socket), socket, options.backend_cpu):
        done = subprocess.run(
            [options.vmm_blk, "bench", "--socket-path", socket, f"--rw={rw}", f"--bs={block}", f"--iodepth={depth}",
             f"--runtime={options.runtime}", f"--ramp_time={options.ramp}", "--client-cpus", str(options.client_cpu),
             "--no-ceiling-check", "--output-format=json"],
            capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    found = json.loads(done.stdout)["jobs"][0]["vmm-blk"]
    return {"iops": found["iops"], "cpu": found.get("backend_cpu_us_per_io"), "p50": found["latency_ns"]["50"] / 1000,
            "p99": found["latency_ns"]["99"] / 1000}


def make_images(options, directory):
    """The same amount of written data in memory and on the disk."""
    size = options.size << 20
    images = []
    places = [("tmpfs", "a file on tmpfs, direct I/O", options.memory_directory, True),
              ("ext4-direct", "a file on the disk, direct I/O", options.disk_directory, True),
              ("ext4-cache", "a file on the disk, page cache", options.disk_directory, False)]
    made = {}
    for ident, title, place, direct in places:
        if options.images and ident not in options.images:
            continue
        if place not in made:
            descriptor, path = tempfile.mkstemp(prefix="vmm-blk-bench-", suffix=".img", dir=place)
            made[place] = path
            directory.callback(os.unlink, path)
            with os.fdopen(descriptor, "wb") as file:
                block = os.urandom(1 << 20)
                for _ in range(options.size):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
        images.append({"id": ident, "title": title, "path": made[place], "direct": direct, "size": size})
    return images


def settle(image):
    """Brings the image into the state that every subject of a step should find: on the disk, and in the cache if that is
    what is measured (direct writes throw it out of there)."""
    with open(image["path"], "rb", buffering=0) as file:
        os.fsync(file.fileno())
        while not image["direct"] and file.read(1 << 20):
            pass


def ratios(results, everything, images):
    """Ours against the best of the others, each ratio within a round."""
    def rates(subject, image, job):
        return {r["round"]: r["iops"] for r in results if (r["subject"], r["image"], r["job"]) == (subject, image, job)}

    def best(family, image, job):
        candidates = [(statistics.median(found.values()), s.id) for s in everything if s.family == family
                      if (found := rates(s.id, image, job))]
        return max(candidates)[1] if candidates else None

    pairs = [("vmm-blk / best of QEMU", "vmm-auto", "qemu"), ("vmm-blk / fio io_uring", "vmm-auto", "fio"),
             ("vmm-blk --waiting sleep / best of QEMU", "vmm-sleep", "qemu"),
             ("vmm-blk --engine sync / best of QEMU", "vmm-sync", "qemu"),
             ("vmm-blk --engine sync / fio io_uring", "vmm-sync", "fio"),
             ("vmm-blk --engine null / best null-co", "vmm-null", "qemu-null")]
    found = []
    for image in images:
        for job in JOBS:
            for title, mine, family in pairs:
                other = best(family, image["id"], job[0])
                a = rates(mine, image["id"], job[0])
                b = rates(other, image["id"], job[0]) if other else {}
                each = [a[r] / b[r] for r in a if r in b and b[r] > 0]
                if each:
                    found.append({"image": image["id"], "job": job[0], "title": title, "against": other,
                                  "ratio": statistics.median(each), "low": min(each), "high": max(each)})
    return found


def command_words(subject, images):
    """How a back-end is started: its engine, set-up and way of waiting are among the words."""
    return " ".join(subject.command(images[0], "SOCKET")) if subject.command and images else None


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")


def commit():
    """Of the sources that this script lies in."""
    done = subprocess.run(["git", "-C", os.path.dirname(os.path.abspath(__file__)), "rev-parse", "--short=12", "HEAD"],
                          capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def show(report):
    """The same for a terminal."""
    for image in report["images"]:
        jobs = [j[0] for j in JOBS if any(r["image"] == image["id"] and r["job"] == j[0] for r in report["results"])]
        print(f"\n{image['title']}: thousand IOPS (CPU us per I/O), medians")
        print(f"{'':40}" + "".join(f"{job:>20}" for job in jobs))
        for subject in report["subjects"]:
            cells = []
            for job in jobs:
                found = [r for r in report["results"]
                         if (r["subject"], r["image"], r["job"]) == (subject["id"], image["id"], job)]
                if not found:
                    cells.append("")
                    continue
                costs = [r["cpu"] for r in found if r.get("cpu") is not None]
                cost = f" ({statistics.median(costs):.2f})" if costs else ""
                cells.append(f"{statistics.median(r['iops'] for r in found) / 1000:.1f}{cost}")
            if any(cells):
                print(f"{subject['title']:40}" + "".join(f"{cell:>20}" for cell in cells))
        for title in dict.fromkeys(r["title"] for r in report["ratios"] if r["image"] == image["id"]):
            by_job = {r["job"]: r for r in report["ratios"] if r["image"] == image["id"] and r["title"] == title}
            print(f"{title:40}" + "".join(
                f"{by_job[job]['ratio']:>19.2f}x" if job in by_job else f"{'':>20}" for job in jobs))
    for missing in report["missing"]:
        print(f"not measured: {missing}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vmm-blk", default=".build/release/vmm-blk", help="the program to measure")
    parser.add_argument("--output", default="bench-report", help="directory for peers.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runtime", type=float, default=0.3, help="seconds of each measurement")
    parser.add_argument("--ramp", type=float, default=0.2, help="seconds before it")
    parser.add_argument("--size", type=int, default=512, help="MiB of each image")
    parser.add_argument("--images", nargs="*", choices=["tmpfs", "ext4-direct", "ext4-cache"])
    parser.add_argument("--subjects", nargs="*", help="ids, as in vmm-auto qemu-io_uring fio")
    parser.add_argument("--jobs", nargs="*", help="names, as in 'randread 4k QD32'")
    parser.add_argument("--memory-directory", default="/dev/shm")
    parser.add_argument("--disk-directory", default="/var/tmp")
    parser.add_argument("--backend-cpu", type=int, default=0)
    parser.add_argument("--client-cpu", type=int, default=(os.cpu_count() or 1) - 1)
    options = parser.parse_args()
    everything = [s for s in subjects(options.vmm_blk) if not options.subjects or s.id in options.subjects]
    missing = []
    for family, program in (("qemu", "qemu-storage-daemon"), ("qemu-null", "qemu-storage-daemon"), ("fio", "fio")):
        if shutil.which(program) is None and any(s.family == family for s in everything):
            missing.append(f"{program} is not installed: run 'Scripts/setup.sh bench'")
            everything = [s for s in everything if s.family != family]
    jobs = [job for job in JOBS if not options.jobs or job[0] in options.jobs]

    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="vmm-blk-peers-"))
        images = make_images(options, stack)
        steps = [(image, job, round_) for image in images for job in jobs for round_ in range(options.rounds)]
        results, broken = [], {}
        load = f"{os.getloadavg()[0]:.2f}"
        started = time.strftime("%Y-%m-%d %H:%M:%S %z")
        for number, (image, job, round_) in enumerate(steps):
            turn = [s for s in everything if s.serves(image, job)]
            settle(image)
            shift = round_ * (len(turn) // max(options.rounds, 1) + 1) % max(len(turn), 1)
            for subject in turn[shift:] + turn[:shift]:
                key = (subject.id, image["id"])
                if key in broken:
                    continue
                if sys.stderr.isatty():
                    print(f"\r\x1b[K{number + 1} of {len(steps)}: {image['id']}, {job[0]}, {subject.title}",
                          end="", file=sys.stderr, flush=True)
                try:
                    found = (fio(image, job, options) if subject.command is None
                             else bench(subject, image, job, options, directory))
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    broken[key] = f"{subject.title} on {image['title']} ({job[0]}): {error}"
                    continue
                results.append({"subject": subject.id, "image": image["id"], "job": job[0], "round": round_, **found})
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)

    report = {
        "subjects": [{"id": s.id, "title": s.title, "command": command_words(s, images)} for s in everything],
        "images": [{key: image[key] for key in ("id", "title", "path", "direct", "size")} for image in images],
        "jobs": [job[0] for job in jobs], "results": results, "ratios": ratios(results, everything, images),
        "missing": missing + list(broken.values()), "kernel": platform.release(), "started": started, "load": load,
        "processor": processor(), "processors": os.cpu_count(), "commit": commit(),
        "method": f"Medians of {options.rounds} interleaved rounds of {options.runtime} s; back-ends and fio on processor "
                  f"{options.backend_cpu}, the client on {options.client_cpu}; {options.size} MiB images.",
    }
    pathlib.Path(options.output).mkdir(parents=True, exist_ok=True)
    (pathlib.Path(options.output) / "peers.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    show(report)


if __name__ == "__main__":
    main()
