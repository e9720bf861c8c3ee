#!/usr/bin/env python3
"""Random histories of qcow2 images: QEMU makes them, and QEMU and vmm-blk have to read the same and to judge the same.

  Scripts/qcow2-histories.py [--write [--turns=N] [--long] | --tools] [--folder=FOLDER] [HISTORIES [SEED]]

There are 100 by default, with the images in /dev/shm or in a folder on another file system. It needs qemu-utils and a built vmm-blk,
which VMM_BLK names, or the one in .build/release.

With --write, each history makes two copies of an image, mostly of an overlay, and sends the same random writes, zeroes and discards to
both: to one by qemu-io, to the other by 'vmm-blk serve' and 'vmm-blk guest', then to each by the other program, and so on, four turns or as
many as --turns says, sometimes with a server that is killed in between; now and then the disk grows. With --long, disks have 12 to 40
MiB, and a third of the requests up to 12 MiB; writes in pieces of up to 4 MiB, which the device serves in several steps. After each turn
- both disks have the same content, as both programs read it;
- 'qemu-img check' and 'vmm-blk image check' find both clean, or leaks in one whose server was killed;
- a snapshot that was taken has what it had.

With --tools, each history makes two copies of a chain and changes both in the same ways, one by qemu-img and one by 'vmm-blk image', which
a new one each time: writes, snapshots created, applied and deleted, overlays committed and rebased. Now and then 'vmm-blk image' is
killed in the middle, and the change is made again. After each change
- both have the same disk and the same snapshots, as QEMU reads them, and every file is clean;
- what a killed command left is clean or has leaks, and is the disk that it was or that it was to be.

Without either, each history makes a chain of one to three images with options of all kinds, writes, zeroes, discards and compresses at random, takes
snapshots, and then
- converts the disk and its snapshots by 'qemu-img convert' and by 'vmm-blk image convert', and compares the bytes;
- checks every image by 'qemu-img check' and by 'vmm-blk image check', and compares statuses and leaks;
- changes some bytes of the tables and makes vmm-blk check, describe and convert the result: whatever it says, no signal ends it.
"""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VMM_BLK = os.environ.get("VMM_BLK", os.path.join(ROOT, ".build/release/vmm-blk"))
# Turns of a history with --write.
TURNS = 4
SIZES = [1 << 20, 1000448, 4 << 20, 3 << 20, 2097152 + 512]
# For --long: the disks, the longest request in sectors, and how many of the requests may be longer than 150 KiB.
LONG_SIZES, LONGEST, LONG_SHARE = [12 << 20, 24 << 20, 40 << 20, (16 << 20) + 512], 24576, 0.33
IS_LONG = "--long" in sys.argv
FOLDER = next((word[9:] for word in sys.argv if word.startswith("--folder=")), "/dev/shm")
LARGEST = ["--largest=4M", "--iodepth=2"] if IS_LONG else []
if IS_LONG:
    SIZES = LONG_SIZES


def run(*words):
    return subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300)


def must(*words):
    result = run(*words)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(words)}: {result.stdout.decode()} {result.stderr.decode()}")
    return result.stdout.decode()


def options(chance):
    """Options of `qemu-img create`, and the cluster size."""
    if chance.random() < 0.15:
        bits = chance.randint(9, 16)
        return [f"compat=0.10,cluster_size={1 << bits}"], 1 << bits
    extended = chance.random() < 0.4
    bits = chance.randint(14 if extended else 9, 18)
    words = [f"cluster_size={1 << bits}", f"extended_l2={'on' if extended else 'off'}"]
    words.append(f"compression_type={chance.choice(['zlib', 'zstd'])}")
    words.append(f"lazy_refcounts={chance.choice(['on', 'off'])}")
    words.append(f"refcount_bits={chance.choice([8, 16, 16, 32, 64])}")
    return [",".join(words)], 1 << bits


def history(chance, size, cluster, is_new):
    commands = []
    if is_new and size >= cluster and chance.random() < 0.6:
        for number in chance.sample(range(size // cluster), min(size // cluster, 6)):
            commands.append(f"write -c -P {chance.randint(1, 255)} {number * cluster} {cluster}")
    for _ in range(chance.randint(0, 25)):
        start = chance.randrange(size // 512) * 512
        most = LONGEST if IS_LONG and chance.random() < LONG_SHARE else 300
        length = min(size - start, chance.randint(1, most) * 512)
        word = chance.choice(["write -z", "write -z -u", "discard"] + [f"write -P {chance.randint(1, 255)}"] * 5)
        commands.append(f"{word} {start} {length}")
    return commands


def io(path, commands, form="qcow2"):
    if commands:
        must("qemu-io", "-f", form, *[word for command in commands for word in ("-c", command)], path)


def same(folder, path, words, snapshot=None):
    theirs, ours = os.path.join(folder, "theirs"), os.path.join(folder, "ours")
    must("qemu-img", "convert", "-f", "qcow2", "-O", "raw", *(["-l", f"snapshot.name={snapshot}"] if snapshot else []), path, theirs)
    if snapshot:
        words = words + [f"snapshot={snapshot}"]
    must(VMM_BLK, "image", "convert", f"qcow2:{path}" + ("?" + "&".join(words) if words else ""), ours)
    if run("cmp", theirs, ours).returncode != 0:
        raise SystemExit(f"{path} {words}: {run('cmp', theirs, ours).stdout.decode()}")
    os.unlink(theirs)
    os.unlink(ours)


def check(path):
    theirs = run("qemu-img", "check", "-f", "qcow2", "--output=json", path)
    ours = run(VMM_BLK, "image", "check", "--json", path)
    found = [json.loads(result.stdout or b"{}").get("leaks", 0) for result in (theirs, ours)]
    if theirs.returncode != ours.returncode or found[0] != found[1]:
        raise SystemExit(f"{path}: qemu-img {theirs.returncode} {found[0]}, vmm-blk {ours.returncode} {found[1]}: {ours.stderr}")
    return theirs.returncode


def damage(chance, folder, path, words):
    """- Returns: whether something was found."""
    broken = os.path.join(folder, "broken")
    shutil.copyfile(path, broken)
    length = os.path.getsize(broken)
    with open(broken, "r+b") as file:
        if chance.random() < 0.1:
            file.truncate(chance.randrange(length))
        for _ in range(chance.randint(1, 4)):
            places = [chance.randrange(128), chance.randrange(length) // 512 * 512 + chance.randrange(64), chance.randrange(length)]
            file.seek(chance.choice(places))
            file.write(bytes([chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])]))
    statuses = [run(VMM_BLK, "image", word, broken).returncode for word in ("check", "info")]
    target = os.path.join(folder, "target")
    statuses.append(run(VMM_BLK, "image", "convert", f"qcow2:{broken}" + ("?" + "&".join(words) if words else ""), target).returncode)
    if os.path.exists(target):
        os.unlink(target)
    if any(status < 0 or status > 127 for status in statuses):
        kept = os.path.join(tempfile.gettempdir(), f"qcow2-{os.getpid()}")
        shutil.copyfile(broken, kept)
        raise SystemExit(f"{kept}: ended with {statuses}")
    return any(statuses)


def one(chance, folder):
    depth = chance.randint(1, 3)
    paths, words = [], []
    is_raw = chance.random() < 0.5
    if is_raw:
        base = os.path.join(folder, "base")
        size = chance.choice(SIZES)
        must("qemu-img", "create", "-q", "-f", "raw", base, str(size))
        io(base, [f"write -P {chance.randint(1, 255)} 0 {size // 2}", f"write -P 9 {size - 512} 512"], "raw")
        paths.append((base, "raw"))
    for level in range(depth):
        path = os.path.join(folder, f"image{level}")
        size = chance.choice(SIZES)
        more, cluster = options(chance)
        under = ["-b", paths[-1][0], "-F", paths[-1][1]] if paths else []
        must("qemu-img", "create", "-q", "-f", "qcow2", "-o", *more, *under, path, str(size))
        io(path, history(chance, size, cluster, True))
        if chance.random() < 0.3:
            must("qemu-img", "snapshot", "-c", "then", path)
            io(path, history(chance, size, cluster, False))
        paths.append((path, "qcow2"))
    top = paths[-1][0]
    words = [f"backing={form}:{path}" for path, form in reversed(paths[:-1])]
    same(folder, top, words)
    if len(paths) > 1:
        same(folder, top, [f"backing-folder={folder}"])
    if "then" in must("qemu-img", "snapshot", "-l", "-U", top):
        same(folder, top, words, "then")
    for path, form in paths:
        if form == "qcow2":
            check(path)
    return sum(damage(chance, folder, top, words) for _ in range(5))


class Server:
    """vmm-blk with a disk, until it is told to end."""

    def __init__(self, folder, path, words):
        self.socket = os.path.join(folder, "socket")
        self.log = tempfile.TemporaryFile()
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        image = f"qcow2:{path}" + ("?" + "&".join(words) if words else "")
        self.process = subprocess.Popen(
            [VMM_BLK, "serve", "--image", image, "--socket-path", self.socket], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=self.log)
        line = self.process.stdout.readline().decode()
        if not line.startswith("Serving"):
            self.process.kill()
            raise SystemExit(line + self.said())

    def said(self):
        self.process.wait(timeout=60)
        self.log.seek(0)
        return self.log.read().decode()

    def do(self, command):
        """A command of qemu-io."""
        words = command.split()
        place, length = words[-2:]
        if words[0] == "discard":
            verb = ["discard", place, length]
        elif "-z" in words:
            verb = ["zero", place, length] + (["--unmap"] if "-u" in words else [])
        else:
            verb = ["write", place, "--fill", words[words.index("-P") + 1], "--length", length, *LARGEST]
        must(VMM_BLK, "guest", *verb[:1], "--socket-path", self.socket, *verb[1:])

    def end(self, how):
        self.process.send_signal(how)
        self.process.stdout.read()
        text = self.said()
        if how == signal.SIGTERM and self.process.returncode != 0:
            raise SystemExit(f"the server ended with {self.process.returncode}: {text}")


def raw_of(path, folder, snapshot=None):
    raw = os.path.join(folder, "raw")
    must("qemu-img", "convert", "-f", "qcow2", "-O", "raw", *(["-l", f"snapshot.name={snapshot}"] if snapshot else []), path, raw)
    with open(raw, "rb") as file:
        content = file.read()
    os.unlink(raw)
    return content


def written(folder, path, words, snapshot=None):
    """The disk, as both programs read it."""
    if snapshot:
        words = words + [f"snapshot={snapshot}"]
    content, ours = raw_of(path, folder, snapshot), os.path.join(folder, "ours")
    must(VMM_BLK, "image", "convert", f"qcow2:{path}" + ("?" + "&".join(words) if words else ""), ours)
    with open(ours, "rb") as file:
        if file.read() != content:
            raise SystemExit(f"{path} {words}: QEMU reads another disk")
    os.unlink(ours)
    return content


def write(chance, folder):
    """- Returns: servers that were killed."""
    paths = [os.path.join(folder, name) for name in ("one", "other")]
    words, under = [], []
    if chance.random() < 0.6:
        base, form = os.path.join(folder, "base"), chance.choice(["raw", "qcow2"])
        size = chance.choice(SIZES)
        must("qemu-img", "create", "-q", "-f", form, base, str(size))
        io(base, history(chance, size, 65536, False), form)
        words, under = [f"backing={form}:{base}"], ["-b", base, "-F", form]
    size = chance.choice(SIZES)
    more, cluster = options(chance)
    must("qemu-img", "create", "-q", "-f", "qcow2", "-o", *more, *under, paths[0], str(size))
    io(paths[0], history(chance, size, cluster, True))
    then = None
    if chance.random() < 0.4:
        must("qemu-img", "snapshot", "-c", "then", paths[0])
        then = written(folder, paths[0], words, "then")
        io(paths[0], history(chance, size, cluster, False))
    shutil.copyfile(paths[0], paths[1])
    # Commands of qemu-io, whose discards keep partial clusters.
    may_leak, killed = [False, False], 0
    for turn in range(TURNS):
        commands = [command for command in history(chance, size, cluster, False)[:8] if not command.startswith("discard")]
        theirs, ours = (paths[0], paths[1]) if turn % 2 == 0 else (paths[1], paths[0])
        discards = []
        if chance.random() < 0.5 and size >= 2 * cluster:
            # Whole clusters of zeroes on both sides, whatever a discard leaves.
            start = chance.randrange(size // cluster) * cluster
            discards = [f"discard {start} {min(cluster, size - start)}", f"write -z {start} {min(cluster, size - start)}"]
        io(theirs, commands + discards)
        if chance.random() < 0.2 and then is None and "compat=0.10" not in more[0]:
            # QEMU resizes both. It reads an old snapshot of such an image in the new size, and cannot resize every version 2
            # image.
            size += chance.choice([512, 65536, 1 << 20, 3 << 20])
            for path in paths:
                must("qemu-img", "resize", "-q", "-f", "qcow2", path, str(size))
        server = Server(folder, ours, words)
        try:
            for command in commands + discards:
                server.do(command)
        except BaseException:
            server.process.kill()
            raise
        is_killed = chance.random() < 0.2
        server.end(signal.SIGKILL if is_killed else signal.SIGTERM)
        killed += is_killed
        may_leak[paths.index(ours)] |= is_killed
        if written(folder, paths[0], words) != written(folder, paths[1], words):
            kept = os.path.join(tempfile.gettempdir(), f"qcow2-{os.getpid()}")
            shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("socket"))
            raise SystemExit(f"turn {turn}: the two disks differ; see {kept}")
        for path, leaks in zip(paths, may_leak):
            status = check(path)
            if status != 0 and not (leaks and status == 3):
                raise SystemExit(f"{path}: qemu-img check says {status}")
            if then is not None and written(folder, path, words, "then") != then:
                raise SystemExit(f"{path}: the snapshot has changed")
    return killed


def clean(path, may_leak=False):
    for program in (["qemu-img", "check", "-f", "qcow2", path], [VMM_BLK, "image", "check", path]):
        result = run(*program)
        if result.returncode != 0 and not (may_leak and result.returncode == 3):
            raise SystemExit(f"{' '.join(program)}: {result.returncode}: {result.stdout.decode()}")


class Chain:
    """base, middle and top in their own folder, which refer to each other by relative names."""

    def __init__(self, folder):
        self.folder = folder
        self.backing = {}

    def path(self, name):
        return os.path.join(self.folder, name)

    def uri(self, name):
        """The URI with everything under the image, as its headers name it."""
        words, at = [], name
        while self.backing.get(at):
            at, form = self.backing[at]
            words.append(f"backing={form}:{self.path(at)}")
        return f"qcow2:{self.path(name)}" + ("?" + "&".join(words) if words else "")


def ours(chance, words, after):
    """Runs a command of vmm-blk, sometimes killed first. - Returns: whether it was killed."""
    killed = False
    if chance.random() < 0.3:
        process = subprocess.Popen([VMM_BLK, "image", *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=chance.random() * 0.06)
        except subprocess.TimeoutExpired:
            process.kill()
            killed = process.wait() < 0
        if not killed:
            return False
        if after():
            return True
    must(VMM_BLK, "image", *words)
    return killed


def tools(chance, folder):
    """- Returns: commands that were killed."""
    chains = []
    size = chance.choice(SIZES)
    for name in ("one", "other"):
        os.mkdir(os.path.join(folder, name))
        chains.append(Chain(os.path.join(folder, name)))
    first, second = chains
    base_form = chance.choice(["raw", "qcow2"])
    must("qemu-img", "create", "-q", "-f", base_form, first.path("base"), str(chance.choice([size, size // 1024 * 512])))
    io(first.path("base"), [f"write -P {chance.randint(1, 255)} {start} 4096" for start in range(0, 400000, 40960)], base_form)
    under = ("base", base_form)
    for name in ("middle", "top"):
        more, cluster = options(chance)
        while "refcount_bits=1," in more[0]:
            more, cluster = options(chance)
        must("qemu-img", "create", "-q", "-f", "qcow2", "-o", *more, "-b", under[0], "-F", under[1], first.path(name), str(size))
        first.backing[name] = under
        io(first.path(name), history(chance, size, cluster, True)[:10])
        under = (name, "qcow2")
    for name in os.listdir(first.folder):
        shutil.copyfile(first.path(name), second.path(name))
    second.backing = dict(first.backing)
    snapshots, killed, may_leak = [], 0, False
    for _ in range(8):
        # The programs swap copies with each step.
        qemu, mine = chains if chance.random() < 0.5 else reversed(chains)
        top = mine.path("top")
        before = raw_of(top, folder)
        contents = {name: raw_of(top, folder, name) for name in snapshots}
        kind = chance.choice(["write", "create", "create", "apply", "delete", "commit", "rebase", "rebase"])
        if kind in ("commit", "rebase") and snapshots:
            kind = chance.choice(["write", "delete"])
        if kind in ("apply", "delete") and not snapshots:
            kind = "write"
        name = chance.choice(snapshots) if snapshots else None

        def same_disk():
            clean(top, True)
            if raw_of(top, folder) != before:
                raise SystemExit(f"{kind} was killed, and the disk has changed")
            return False

        if kind == "write":
            commands = history(chance, len(before), 65536, False)[:8]
            commands = [command for command in commands if not command.startswith("discard")]
            io(qemu.path("top"), commands)
            io(top, commands)
        elif kind in ("create", "apply", "delete"):
            if kind == "create":
                name = f"s{chance.randrange(1 << 30)}"
            word = "-" + kind[0]
            must("qemu-img", "snapshot", word, name, qemu.path("top"))
            wanted = raw_of(qemu.path("top"), folder)

            def whole():
                clean(top, may_leak)
                now = {each["name"] for each in json.loads(must(VMM_BLK, "image", "info", "--json", top)).get("snapshots", [])}
                is_done = {"create": name in now, "delete": name not in now, "apply": raw_of(top, folder) == wanted}[kind]
                if not is_done and raw_of(top, folder) != before:
                    raise SystemExit(f"{kind} was killed, and the disk is neither the old nor the new one")
                return is_done and kind != "apply"

            killed += ours(chance, ["snapshot", word, name, top], whole)
            if kind == "create":
                snapshots.append(name)
                contents[name] = before
            elif kind == "delete":
                snapshots.remove(name)
        elif kind == "commit":
            if not mine.backing.get("top"):
                continue
            must("qemu-img", "commit", "-q", "-f", "qcow2", qemu.path("top"))
            was_killed = ours(chance, ["commit", mine.uri("top")], same_disk)
            killed, may_leak = killed + was_killed, may_leak or was_killed
        else:
            target = chance.choice([None, "base", "middle", "middle"])
            form = {"base": base_form, "middle": "qcow2", None: None}[target]
            must("qemu-img", "rebase", "-q", "-f", "qcow2", "-b", target or "", *(["-F", form] if form else []), qemu.path("top"))
            words = ["rebase", "-b", target or "", *(["-F", form] if form else [])]
            # The new image's backing file is opened because it is in this folder.
            uri = mine.uri("top")
            words.append(uri + ("&" if "?" in uri else "?") + f"backing-folder={mine.folder}")

            def renamed():
                same_disk()
                named = json.loads(must(VMM_BLK, "image", "info", "--json", top)).get("backing-filename")
                return named == target and named != (mine.backing.get("top") or (None,))[0]

            was_killed = ours(chance, words, renamed)
            killed, may_leak = killed + was_killed, may_leak or was_killed
            for chain in chains:
                chain.backing["top"] = (target, form) if target else None
        for chain in chains:
            for image in ("top", "middle") + (("base",) if base_form == "qcow2" else ()):
                clean(chain.path(image), may_leak)
        disks = [raw_of(chain.path("top"), folder) for chain in chains]
        if disks[0] != disks[1]:
            raise SystemExit(f"{kind}: the two disks differ")
        for each in snapshots:
            for chain in chains:
                if raw_of(chain.path("top"), folder, each) != contents[each]:
                    raise SystemExit(f"{kind}: the snapshot {each} is not what it was")
    return killed


def main():
    global TURNS
    arguments = [word for word in sys.argv[1:] if not word.startswith("--")]
    TURNS = next((int(word[8:]) for word in sys.argv if word.startswith("--turns=")), TURNS)
    count = int(arguments[0]) if arguments else 100
    seed = int(arguments[1]) if len(arguments) > 1 else random.randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    if "--write" in sys.argv:
        return turns(count, seed, write, f"{TURNS} turns each, the same content in both images after each", "servers")
    if "--tools" in sys.argv:
        return turns(count, seed, tools, "8 changes each, the same disks and snapshots after each", "commands")
    found = 0
    for number in range(count):
        with tempfile.TemporaryDirectory(dir=FOLDER, prefix="vmm-blk-qcow2-") as folder:
            try:
                found += one(random.Random(seed * 1000003 + number), folder)
            except SystemExit as failure:
                raise SystemExit(f"history {number} of seed {seed}: {failure}")
    print(f"{count} histories, the same content and verdict; of {count * 5} damaged images {found} were refused or reported")


def turns(count, seed, body, words, what):
    killed, begun = 0, time.monotonic()
    for number in range(count):
        with tempfile.TemporaryDirectory(dir=FOLDER, prefix="vmm-blk-qcow2-") as folder:
            try:
                killed += body(random.Random(seed * 1000003 + number), folder)
            except SystemExit as failure:
                raise SystemExit(f"history {number} of seed {seed}: {failure}")
        if (number + 1) % 50 == 0 and number + 1 < count:
            print(f"{number + 1} so far, {killed} {what} killed, {time.monotonic() - begun:.0f} s", flush=True)
    print(f"{count} histories of {words}; {killed} {what} were killed; {time.monotonic() - begun:.0f} s")


main()
