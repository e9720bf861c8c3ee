#!/usr/bin/python3
"""Replays a log of dm-log-writes and compares the result with the disk that was logged.

replay-writes.py LOG DISK FOLDER MARKS

The scenario `log-writes` ran an ext4 filesystem on DISK and logged every request to DISK. Replayed into
an empty image in FOLDER, the log must give DISK, sector by sector (discarded sectors may contain anything). At every
flush the image must be one that e2fsck can clean, and at "mark-N" it must hold the file that was synced then.
"""

import collections
import ctypes
import os
import struct
import subprocess
import sys

MAGIC = 0x6A736677736872
FLUSH, DISCARD, MARK = 1, 4, 8
PUNCH_HOLE_KEEP_SIZE = 3
SECTOR = 512
FLUSHES_CHECKED = 24

libc = ctypes.CDLL(None, use_errno=True)
Entry = collections.namedtuple("Entry", "offset length flags name data")


def read_log(path):
    """Every entry, with the offset of its data in the log."""
    with open(path, "rb") as log:
        magic, version, count, unit = struct.unpack("<QQQI", log.read(28))
        if (magic, version) != (MAGIC, 1):
            sys.exit(f"replay: {path} holds no log of dm-log-writes")
        position = unit
        for _ in range(count):
            log.seek(position)
            sector, sectors, flags, length = struct.unpack("<QQQQ", log.read(32))
            name = log.read(length).decode() if flags & MARK else ""
            data = None if flags & DISCARD or not sectors else position + unit
            yield Entry(sector * unit, sectors * unit, flags, name, data)
            position += unit * (1 if data is None else 1 + sectors)


def punch(image, offset, length):
    if libc.fallocate(image, PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        os.pwrite(image, bytes(length), offset)


def run(*command):
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)


def check_crash(image, folder, where, number=None):
    """Checks the filesystem as if power had been cut here."""
    copy, dumped = f"{folder}/crashed", f"{folder}/dumped"
    run("cp", "--sparse=always", image, copy)
    # The journal is replayed; status 1 means that something was repaired, which is no error after a crash.
    repaired = run("e2fsck", "-fy", copy)
    verdict = run("e2fsck", "-fn", copy)
    if repaired.returncode > 1 or verdict.returncode != 0:
        sys.exit(f"replay: e2fsck finds damage at {where}:\n{(repaired.stdout + verdict.stdout).decode()}")
    if number is not None:
        run("debugfs", "-R", f"dump /mark-{number} {dumped}", copy)
        with open(dumped, "rb") as file:
            if file.read() != b"".join(b"%d\n" % n for n in range(number, number + 5001)):
                sys.exit(f"replay: at {where} the synced file differs")
        os.remove(dumped)
    os.remove(copy)


def differing(image, disk, discarded):
    """Sectors that differ from the log, except discarded ones."""
    chunk = 1 << 20
    wrong = []
    for start in range(0, os.fstat(disk).st_size, chunk):
        ours, theirs = os.pread(image, chunk, start), os.pread(disk, chunk, start)
        if ours == theirs:
            continue
        for offset in range(0, len(theirs), SECTOR):
            sector = (start + offset) // SECTOR
            if ours[offset : offset + SECTOR] != theirs[offset : offset + SECTOR] and not discarded[sector]:
                wrong.append(sector)
    return wrong


def main(log_path, disk_path, folder, marks):
    entries = list(read_log(log_path))
    flushes = [n for n, entry in enumerate(entries) if entry.flags & FLUSH]
    step = max(1, len(flushes) // FLUSHES_CHECKED)
    checked = set(flushes[::step])
    replayed = f"{folder}/replayed"
    log, disk = os.open(log_path, os.O_RDONLY), os.open(disk_path, os.O_RDONLY)
    image = os.open(replayed, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    size = os.fstat(disk).st_size
    os.truncate(image, size)
    discarded = bytearray(size // SECTOR)
    made, seen, crashes = False, [], 0
    for number, entry in enumerate(entries):
        first, sectors = entry.offset // SECTOR, entry.length // SECTOR
        if entry.flags & MARK:
            made = made or entry.name == "made"
            seen.append(entry.name)
            if entry.name.startswith("mark-"):
                check_crash(replayed, folder, entry.name, int(entry.name[5:]))
        elif entry.flags & DISCARD:
            punch(image, entry.offset, entry.length)
            discarded[first : first + sectors] = b"\1" * sectors
        elif entry.data is not None:
            os.pwrite(image, os.pread(log, entry.length, entry.data), entry.offset)
            discarded[first : first + sectors] = bytes(sectors)
        if made and number in checked:
            check_crash(replayed, folder, f"the flush of entry {number}")
            crashes += 1
    kinds = f"{len(entries)} entries, {len(flushes)} flushes, {sum(bool(e.flags & DISCARD) for e in entries)} discards"
    # The target itself adds a last mark when it is removed.
    if seen[: marks + 2] != ["made", *(f"mark-{n}" for n in range(marks)), "end"]:
        sys.exit(f"replay: the log has {kinds}, and these marks only: {seen}")
    wrong = differing(image, disk, discarded)
    if wrong:
        sys.exit(f"replay: {len(wrong)} sectors of the disk are not what was written, the first are {wrong[:10]}")
    print(f"replayed {kinds}: the disk is what was written; {marks} synced files and {crashes} crashes are sound")


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
