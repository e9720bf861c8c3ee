#!/usr/bin/python3
"""Measures vmm-blk against other back-ends that can be installed, in one interleaved run.

    peers.py                             raw files
    peers.py --images qcow2,nbd,rbd      images of these kinds (images.py lists them)

Every back-end serves the same image on a vhost-user socket, pinned to one CPU, and is driven by the same client,
`vmm-blk bench`, pinned to another. fio accesses the image directly. Each round measures all subjects one after the other,
starting with a different one each time; figures are medians of the rounds, and ratios are formed within a round.
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

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import images  # noqa: E402
from images import JOBS  # noqa: E402

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


def peak(process):
    """The peak of a process's private memory, MiB, without mapped files."""
    with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["RssAnon"].split()[0]) / 1024


def seconds(image, options):
    """Duration of the ramp, and of a measurement."""
    return image.times or (options.ramp, options.runtime)


def fio(subject, image, job, options):
    """fio itself on the image."""
    _, rw, block, depth = job
    ramp, runtime = seconds(image, options)
    done = subprocess.run(
        ["taskset", "-c", str(options.backend_cpu), "fio", "--name=j", *subject.fio(job), f"--rw={rw}", f"--bs={block}",
         f"--iodepth={depth}", "--time_based", f"--runtime={int(runtime * 1000)}ms", f"--ramp_time={int(ramp * 1000)}ms", "--thread",
         "--output-format=json"],
        capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or done.stdout.strip())
    found = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    way = found["read" if "read" in rw else "write"]
    busy = (found["usr_cpu"] + found["sys_cpu"]) / 100
    return {"iops": way["iops"], "cpu": busy * 1e6 / way["iops"] if way["iops"] else None,
            "p50": way["clat_ns"]["percentile"]["50.000000"] / 1000, "p99": way["clat_ns"]["percentile"]["99.000000"] / 1000}


@contextlib.contextmanager
def busy(cpu):
    """A CPU that always has something to run."""
    with subprocess.Popen(["taskset", "-c", str(cpu), "sh", "-c", "while :; do :; done"]) as process:
        try:
            yield
        finally:
            process.kill()


def loop(subject, image, job, options):
    """A program that measures itself, beside a CPU that is as busy as the client makes it for a back-end: threads of others
    are scheduled differently beside an idle one."""
    with busy(options.client_cpu):
        done = subprocess.run(["taskset", "-c", str(options.backend_cpu), *subject.loop(job, *seconds(image, options))],
                              capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return json.loads(done.stdout)


def bench(subject, image, job, options, directory):
    """One measurement of one back-end."""
    _, rw, block, depth = job
    ramp, runtime = seconds(image, options)
    socket = os.path.join(directory, "s")
    with served(subject.command(socket), socket, options.backend_cpu) as process:
        done = subprocess.run(
            [options.vmm_blk, "bench", "--socket-path", socket, f"--rw={rw}", f"--bs={block}", f"--iodepth={depth}",
             f"--runtime={runtime}", f"--ramp_time={ramp}", "--client-cpus", str(options.client_cpu),
             "--no-ceiling-check", "--output-format=json"],
            capture_output=True, text=True, check=False, timeout=120)
        memory = peak(process)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    found = json.loads(done.stdout)["jobs"][0]["vmm-blk"]
    return {"iops": found["iops"], "cpu": found.get("backend_cpu_us_per_io"), "p50": found["latency_ns"]["50"] / 1000,
            "p99": found["latency_ns"]["99"] / 1000, "memory": memory}


def ratios(results, image):
    """Of each pair of the image, against the best of the other family; each within a round."""
    def of(subject, job, key):
        return {r["round"]: r[key] for r in results
                if (r["subject"], r["image"], r["job"]) == (subject, image.id, job) and r.get(key)}

    def best(name, job):
        candidates = [(statistics.median(found.values()), s.id) for s in image.subjects if name in (s.family, s.id)
                      if (found := of(s.id, job, "iops"))]
        return max(candidates)[1] if candidates else None

    found = []
    for job, *_ in image.jobs:
        for title, mine, name in image.pairs:
            other = best(name, job)
            if other is None:
                continue
            row = {"image": image.id, "job": job, "title": title, "against": other}
            for key, words in (("iops", ("ratio", "low", "high")), ("cpu", ("cpuRatio", "cpuLow", "cpuHigh"))):
                a, b = of(mine, job, key), of(other, job, key)
                each = [a[r] / b[r] for r in a if r in b]
                if each:
                    row |= dict(zip(words, (statistics.median(each), min(each), max(each))))
            if "ratio" in row:
                found.append(row)
    return found


def command_words(subject):
    """A back-end's command line, with its engine, set-up and waiting mode."""
    return " ".join(subject.command("SOCKET")) if subject.command else None


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")


def commit():
    """The commit of this script's repository."""
    done = subprocess.run(["git", "-C", os.path.dirname(os.path.abspath(__file__)), "rev-parse", "--short=12", "HEAD"],
                          capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def show(report):
    """The same for a terminal."""
    for image in report["images"]:
        jobs = [job for job in report["jobs"]
                if any(r["image"] == image["id"] and r["job"] == job for r in report["results"])]
        print(f"\n{image['title']}: thousand IOPS (CPU us per I/O), medians")
        print(f"{'':40}" + "".join(f"{job:>20}" for job in jobs))
        for subject in image["subjects"]:
            cells, memory = [], []
            for job in jobs:
                found = [r for r in report["results"]
                         if (r["subject"], r["image"], r["job"]) == (subject["id"], image["id"], job)]
                if not found:
                    cells.append("")
                    continue
                memory += [r["memory"] for r in found if r.get("memory") is not None]
                costs = [r["cpu"] for r in found if r.get("cpu") is not None]
                cost = f" ({statistics.median(costs):.2f})" if costs else ""
                cells.append(f"{statistics.median(r['iops'] for r in found) / 1000:.1f}{cost}")
            if any(cells):
                print(f"{subject['title']:40}" + "".join(f"{cell:>20}" for cell in cells)
                      + (f"   {max(memory):.0f} MiB" if memory else ""))
        for title in dict.fromkeys(r["title"] for r in report["ratios"] if r["image"] == image["id"]):
            by_job = {r["job"]: r for r in report["ratios"] if r["image"] == image["id"] and r["title"] == title}
            for key, words in (("ratio", title), ("cpuRatio", "  CPU time")):
                print(f"{words:40}" + "".join(
                    f"{by_job[job][key]:>19.2f}x" if key in by_job.get(job, {}) else f"{'':>20}" for job in jobs))
    for missing in report["missing"]:
        print(f"not measured: {missing}")


def measure(image, options, directory, results):
    """All rounds of all jobs on an image.

    Returns: a sentence for each subject that could not be measured.
    """
    steps = [(job, round_) for job in image.jobs for round_ in range(options.rounds)]
    broken = {}
    for number, (job, round_) in enumerate(steps):
        turn = image.turn(job)
        image.settle()
        shift = round_ * (len(turn) // max(options.rounds, 1) + 1) % max(len(turn), 1)
        for subject in turn[shift:] + turn[:shift]:
            if subject.id in broken:
                continue
            if sys.stderr.isatty():
                print(f"\r\x1b[K{image.id}, {number + 1} of {len(steps)}: {job[0]}, {subject.title}",
                      end="", file=sys.stderr, flush=True)
            try:
                image.fresh()
                if subject.fio:
                    found = fio(subject, image, job, options)
                elif subject.loop:
                    found = loop(subject, image, job, options)
                else:
                    found = bench(subject, image, job, options, directory)
            except (RuntimeError, subprocess.TimeoutExpired, images.Missing) as error:
                broken[subject.id] = f"{subject.title} on {image.title} ({job[0]}): {error}"
                continue
            results.append({"subject": subject.id, "image": image.id, "job": job[0], "round": round_, **found})
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    return list(broken.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vmm-blk", default=".build/release/vmm-blk", help="the program to measure")
    parser.add_argument("--output", default="bench-report", help="directory for peers.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runtime", type=float, default=0.3, help="seconds of each measurement")
    parser.add_argument("--ramp", type=float, default=0.2, help="seconds before it")
    parser.add_argument("--size", type=int, default=512, help="MiB of each image")
    parser.add_argument("--images", nargs="*", default=["raw"], metavar="WORD[,WORD…]",
                        help=f"kinds ({', '.join(images.KINDS)}) or single images ({', '.join(images.NAMES)}); raw by default")
    parser.add_argument("--subjects", nargs="*", help="ids, as in vmm-auto qemu-io_uring fio")
    parser.add_argument("--jobs", nargs="*", help="names, as in 'randread 4k QD32'")
    parser.add_argument("--memory-directory", default="/dev/shm")
    parser.add_argument("--disk-directory", default="/var/tmp")
    parser.add_argument("--backend-cpu", type=int, default=0)
    parser.add_argument("--client-cpu", type=int, default=(os.cpu_count() or 1) - 1)
    options = parser.parse_args()
    options.images = [word for words in options.images for word in words.split(",") if word]
    for word in options.images:
        if word not in images.KINDS and word not in images.NAMES:
            parser.error(f"there is no image {word!r}: use {', '.join([*images.KINDS, *images.NAMES])}")

    missing = []
    programs = {"qemu": "qemu-storage-daemon", "qemu-null": "qemu-storage-daemon", "fio": "fio"}
    absent = {family for family, program in programs.items() if shutil.which(program) is None}
    for program in sorted({programs[family] for family in absent}):
        missing.append(f"{program} is not installed: run 'Scripts/setup.sh bench'")
    report = {
        "images": [], "jobs": [], "results": [], "ratios": [], "kernel": platform.release(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"), "load": f"{os.getloadavg()[0]:.2f}",
        "processor": processor(), "processors": os.cpu_count(), "commit": commit(),
        "method": f"Medians of {options.rounds} interleaved rounds of {options.runtime} s; back-ends and fio on CPU "
                  f"{options.backend_cpu}, the client on {options.client_cpu}; {options.size} MiB images.",
    }
    with contextlib.closing(images.make(options, missing)) as made, \
            tempfile.TemporaryDirectory(prefix="vmm-blk-peers-") as directory:
        for image in made:
            image.subjects = [s for s in image.subjects if s.family not in absent
                              and (not options.subjects or s.id in options.subjects)]
            image.jobs = [job for job in image.jobs if not options.jobs or job[0] in options.jobs]
            missing += measure(image, options, directory, report["results"])
            report["images"].append({
                "id": image.id, "title": image.title, "path": image.path, "size": image.size,
                "seconds": dict(zip(("before", "measured"), seconds(image, options))),
                "subjects": [{"id": s.id, "title": s.title, "command": command_words(s)} for s in image.subjects]})
            report["ratios"] += ratios(report["results"], image)
    report["jobs"] = [job[0] for job in JOBS if any(r["job"] == job[0] for r in report["results"])]
    report["missing"] = missing
    pathlib.Path(options.output).mkdir(parents=True, exist_ok=True)
    (pathlib.Path(options.output) / "peers.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    show(report)


if __name__ == "__main__":
    main()
