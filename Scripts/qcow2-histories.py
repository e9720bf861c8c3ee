#!/usr/bin/env python3
"""Random histories of qcow2 images: QEMU makes them, and QEMU and vmm-blk have to read the same and to judge the same.

  Scripts/qcow2-histories.py [HISTORIES [SEED]]     (100; needs qemu-utils and a built vmm-blk, which VMM_BLK names, or the one in
                                                     .build/release)

Each history makes a chain of one to three images with options of all kinds, writes, zeroes, discards and compresses at random, takes
snapshots, and then
- converts the disk and its snapshots by 'qemu-img convert' and by 'vmm-blk image convert', and compares the bytes;
- checks every image by 'qemu-img check' and by 'vmm-blk image check', and compares statuses and leaks;
- changes some bytes of the tables and has vmm-blk check, tell and convert what that leaves: whatever it says, no signal ends it.
"""
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VMM_BLK = os.environ.get("VMM_BLK", os.path.join(ROOT, ".build/release/vmm-blk"))
SIZES = [1 << 20, 1000448, 4 << 20, 3 << 20, 2097152 + 512]


def run(*words):
    return subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300)


def must(*words):
    result = run(*words)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(words)}: {result.stdout.decode()} {result.stderr.decode()}")
    return result.stdout.decode()


def options(chance):
    """Options of `qemu-img create`, and the cluster's bytes."""
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
        length = min(size - start, chance.randint(1, 300) * 512)
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


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    found = 0
    for number in range(count):
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="vmm-blk-qcow2-") as folder:
            try:
                found += one(random.Random(seed * 1000003 + number), folder)
            except SystemExit as failure:
                raise SystemExit(f"history {number} of seed {seed}: {failure}")
    print(f"{count} histories, the same content and verdict; of {count * 5} damaged images {found} were refused or found to be wrong")


main()
