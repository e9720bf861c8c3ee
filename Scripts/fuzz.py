#!/usr/bin/env python3
"""Fuzzes the parsers of vmm-blk with libFuzzer and AddressSanitizer (Fuzz/), and reports the results.

    Scripts/fuzz.py --minutes 30                all targets, two at a time, for this long in total
    Scripts/fuzz.py --minutes 5 session split   only these
    Scripts/fuzz.py --merge                     merge the new inputs into Fuzz/Corpus, as few as suffice
    Scripts/fuzz.py --seed 1                    a minute's work, the same each time: what make test-fuzz does
    Scripts/fuzz.py --again FILE                run one input, whose name begins with its target's, and show what happens

Failures and new inputs are kept in .fuzz/, and the next run continues from there. The exit status is 1 if a failure was found.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.path.join(ROOT, ".build-fuzz/release/fuzz")
WORK = os.path.join(ROOT, ".fuzz")
SEEDS = os.path.join(ROOT, "Fuzz/Corpus")
# The largest input that is committed, and how many of them a target has at most.
SEED_BYTES, SEED_COUNT = 200, 500
# Each target with its share of the time: larger ones have more to try.
TARGETS = {
    "split": 4, "packed": 4, "inflight": 2, "session": 3, "takeover": 2, "memory-file": 1, "registers": 1, "texts": 1,
    "descriptions": 1, "operator": 1, "files": 1, "qcow2": 3,
}
# With fixed random numbers, how many inputs a target tries per share: then two runs try the same, on any machine.
RUNS, SLOW_RUNS, SLOW = 8000, 800, {"qcow2"}
# Of several sanitizers the compiler uses the last one, and the package manager passes them in any order: so both in one word,
# while
# the other word makes libFuzzer's main the program's.
BUILD = [
    "swift", "build", "--scratch-path", os.path.join(ROOT, ".build-fuzz"), "-c", "release", "--sanitize=fuzzer",
    "-Xswiftc", "-sanitize=fuzzer,address", "-Xswiftc", "-enable-testing", "-Xswiftc", "-DFUZZED", "--product", "fuzz",
]


def environment(target, tells=False):
    """The targets count leaks themselves, in descriptors and mappings: the allocator's are a few statics of the process."""
    # Allocation stacks are kept only when a single input is run: keeping them costs a tenth of the time.
    options = "detect_leaks=0" if tells else "detect_leaks=0:malloc_context_size=1"
    result = dict(os.environ, FUZZ_TARGET=target, SWIFT_BACKTRACE="enable=no", ASAN_OPTIONS=options)
    if tells:
        result["FUZZ_TELL"] = "1"
    return result


def build():
    begin = time.monotonic()
    print("building the fuzz targets …", flush=True)
    done = subprocess.run(BUILD, cwd=ROOT, env=dict(os.environ, VMM_BLK_FUZZ="1"), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(done.stdout[-8000:] + "\nfuzz.py: the targets cannot be built")
    print(f"built in {time.monotonic() - begin:.0f} s", flush=True)


def unpack(target):
    """The committed inputs of a target, one in each line of a file, as the files that libFuzzer wants. Returns their folder."""
    folder = os.path.join(WORK, "seeds", target)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    name = os.path.join(SEEDS, target + ".hex")
    if os.path.exists(name):
        with open(name) as file:
            for number, line in enumerate(file):
                with open(os.path.join(folder, f"{number:05}"), "wb") as seed:
                    seed.write(bytes.fromhex(line))
    return folder


class Run:
    """One run of a target."""

    def __init__(self, target, seconds, seed):
        self.target = target
        self.findings = os.path.join(WORK, "findings", target + "-")
        corpus = os.path.join(WORK, "seeded" if seed else "corpus", target)
        limit = f"-max_total_time={max(1, round(seconds))}"
        if seed:
            # Inputs of earlier runs would change what this one tries.
            shutil.rmtree(corpus, ignore_errors=True)
            limit = f"-runs={(SLOW_RUNS if target in SLOW else RUNS) * TARGETS[target]}"
        os.makedirs(corpus, exist_ok=True)
        os.makedirs(os.path.dirname(self.findings), exist_ok=True)
        self.log = os.path.join(WORK, target + ".log")
        words = [
            PROGRAM, limit, f"-seed={seed}", "-max_len=600", "-len_control=20", "-timeout=300",
            "-rss_limit_mb=4096", "-print_final_stats=1",
            # Preferring inputs that reach rare code costs as much as some targets do, and nothing else writes into the corpus.
            "-entropic=0", "-reload=0", "-artifact_prefix=" + self.findings, corpus,
        ]
        words.append(unpack(target))
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(words, cwd=WORK, env=environment(target), stdout=log, stderr=log)

    def result(self):
        """Executions, coverage, features, and a sentence if something was found."""
        with open(self.log, errors="replace") as file:
            text = file.read()
        count = re.findall(r"stat::number_of_executed_units:\s+(\d+)", text) or re.findall(r"^#(\d+)\s", text, re.M)
        cover = re.findall(r"cov: (\d+) ft: (\d+)", text)
        finding = ""
        if self.process.returncode != 0:
            words = re.findall(r"Fatal error: (.*)|ERROR: (AddressSanitizer.*|libFuzzer.*)|Test unit written to (.*)", text)
            finding = "; ".join(next(word for word in match if word) for match in words)[:400] or "it ended with "\
                + str(self.process.returncode)
        return int(count[-1]) if count else 0, int(cover[-1][0]) if cover else 0, int(cover[-1][1]) if cover else 0, finding


def attack(targets, minutes, jobs, seed):
    """Runs each target for its share of the time, several at once; the longest first."""
    total = sum(TARGETS[target] for target in targets)
    left = [(target, minutes * 60 * jobs * TARGETS[target] / total) for target in targets]
    left.sort(key=lambda item: -item[1])
    running, results = [], {}
    begin = told = time.monotonic()
    try:
        while left or running:
            while left and len(running) < jobs:
                running.append(Run(*left.pop(0), seed))
            time.sleep(0.2)
            for run in [run for run in running if run.process.poll() is not None]:
                running.remove(run)
                results[run.target] = run.result()
                count, cover, _, finding = results[run.target]
                print(f"{run.target}: {count} executions, coverage {cover}" + (f", FOUND: {finding}" if finding else ""), flush=True)
            if time.monotonic() - told > 60:
                told = time.monotonic()
                states = [f"{run.target} {run.result()[0]}" for run in running]
                print(f"after {(told - begin) / 60:.0f} min: " + ", ".join(states), flush=True)
    finally:
        for run in running:
            run.process.kill()
            run.process.wait()
    return results


def table(results):
    print(f"\n{'target':12} {'executions':>12} {'edges':>7} {'features':>9}  findings")
    for target, (count, cover, features, finding) in results.items():
        print(f"{target:12} {count:12} {cover:7} {features:9}  {finding or 'none'}")
    print(f"{'all':12} {sum(result[0] for result in results.values()):12}")


def merge(targets):
    """Replaces the committed inputs by the smallest set that covers as much."""
    for target in targets:
        fresh = os.path.join(WORK, "merged", target)
        shutil.rmtree(fresh, ignore_errors=True)
        os.makedirs(fresh)
        sources = [unpack(target), os.path.join(WORK, "corpus", target)]
        subprocess.run([PROGRAM, "-merge=1", "-max_len=600", fresh] + [path for path in sources if os.path.isdir(path)],
                       env=environment(target), cwd=WORK, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lines = []
        for name in os.listdir(fresh):
            with open(os.path.join(fresh, name), "rb") as file:
                lines.append(file.read().hex())
        # Long inputs reach little more than short ones, and every clone has them forever.
        lines = sorted((line for line in lines if 0 < len(line) <= 2 * SEED_BYTES), key=lambda line: (len(line), line))[:SEED_COUNT]
        with open(os.path.join(SEEDS, target + ".hex"), "w") as file:
            file.writelines(line + "\n" for line in lines)
        print(f"{target}: {len(lines)} inputs")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="of " + ", ".join(TARGETS))
    parser.add_argument("--minutes", type=float, default=10, help="in all (default: 10)")
    parser.add_argument("--jobs", type=int, default=2, help="targets at once (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers, for a fixed number of inputs instead of a time; 0: another one each time (default)")
    parser.add_argument("--merge", action="store_true")
    parser.add_argument("--again", metavar="FILE")
    parser.add_argument("--no-build", action="store_true", help="use what is built")
    options = parser.parse_args()
    for target in options.targets:
        if target not in TARGETS:
            parser.error(f"there is no target {target}: use " + ", ".join(TARGETS))
    targets = options.targets or list(TARGETS)
    os.makedirs(WORK, exist_ok=True)
    if not options.no_build:
        build()
    if options.again:
        name = os.path.basename(options.again)
        target = max((target for target in TARGETS if name.startswith(target + "-")), key=len, default=None)
        if target is None:
            parser.error("the file's name does not begin with a target's")
        sys.exit(subprocess.run([PROGRAM, options.again], env=environment(target, tells=True)).returncode)
    if options.merge:
        return merge(targets)
    results = attack(targets, options.minutes, options.jobs, options.seed)
    table(results)
    if any(result[3] for result in results.values()):
        sys.exit("fuzz.py: something was found; the inputs are in .fuzz/findings, and --again FILE runs one of them")


if __name__ == "__main__":
    main()
