#!/usr/bin/env python3
"""Builds a memory file and a disk image from a recipe (Images/README.md).

    Images/build.py Images/read-write.recipe FILE.mem FILE.img
    Images/build.py --all DIRECTORY        # every recipe beside this script
"""
import os, pathlib, struct, sys

FEATURES = {name: bit for bit, name in [
    (1, "SIZE_MAX"), (2, "SEG_MAX"), (4, "GEOMETRY"), (5, "RO"), (6, "BLK_SIZE"), (9, "FLUSH"), (10, "TOPOLOGY"),
    (11, "CONFIG_WCE"), (12, "MQ"), (13, "DISCARD"), (14, "WRITE_ZEROES"), (28, "RING_INDIRECT_DESC"),
    (29, "RING_EVENT_IDX"), (32, "VERSION_1")]}
TYPES = {"IN": 0, "OUT": 1, "FLUSH": 4, "GET_ID": 8, "DISCARD": 11, "WRITE_ZEROES": 13}
DESCRIPTOR_FLAGS = {"next": 1, "write": 2, "indirect": 4}


def number(text):
    units = {"K": 10, "M": 20}
    return int(text[:-1], 0) << units[text[-1]] if text[-1] in units else int(text, 0)


class Recipe:
    def __init__(self, path):
        self.base, self.memory, self.disk = 0, bytearray(65536), 65536
        self.features, self.status, self.queues = 1 << 32, 15, {}
        for place, line in enumerate(path.read_text().splitlines(), 1):
            words = line.split("#")[0].split()
            if not words:
                continue
            try:
                getattr(self, "do_" + words[0])(*words[1:])
            except Exception as error:
                sys.exit(f"{path}:{place}: {line.strip()!r}: {type(error).__name__}: {error}")

    def put(self, address, data):
        at = address - self.base
        if not 0 <= at <= len(self.memory) - len(data):
            raise ValueError(f"{address:#x} is outside guest memory")
        self.memory[at:at + len(data)] = data

    # The statements, one method each; Images/README.md is their reference.

    def do_memory(self, size, at="at", base="0"):
        self.memory, self.base = bytearray(number(size)), number(base)

    def do_disk(self, size):
        self.disk = number(size)

    def do_features(self, *names):
        self.features = sum(1 << FEATURES[name] for name in names)

    def do_status(self, value):
        self.status = number(value)

    def do_queue(self, index, *pairs):
        self.queues[int(index)] = {name: number(value) for name, value in zip(pairs[::2], pairs[1::2], strict=True)}

    def do_descriptor(self, queue, index, *words):
        self.put_descriptor(self.queues[int(queue)]["desc"], index, words)

    def do_table(self, address, index, *words):
        self.put_descriptor(number(address), index, words)

    def put_descriptor(self, table, index, words):
        address, length, flags, next_ = number(words[0]), number(words[1]), 0, 0
        for word in words[2:]:
            name, _, value = word.partition("=")
            flags |= DESCRIPTOR_FLAGS[name]
            next_ = number(value) if value else next_
        self.put(table + 16 * int(index), struct.pack("<QIHH", address, length, flags, next_))

    def do_available(self, queue, *words):
        self.put_ring(self.queues[int(queue)], "avail", 2, words, lambda head: struct.pack("<H", number(head)))

    def do_used(self, queue, *words):
        def element(word):
            head, _, length = word.partition(":")
            return struct.pack("<II", number(head), number(length))
        self.put_ring(self.queues[int(queue)], "used", 8, words, element)

    def put_ring(self, queue, ring, width, words, encode):
        values = dict(word.split("=") for word in words if "=" in word)
        entries = [word for word in words if "=" not in word]
        first, at = number(values.get("from", "0")), queue[ring]
        for place, entry in enumerate(entries):
            self.put(at + 4 + width * ((first + place) % queue["size"]), encode(entry))
        index = number(values["index"]) if "index" in values else first + len(entries)
        self.put(at, struct.pack("<HH", number(values.get("flags", "0")), index & 0xFFFF))
        if "event" in values:
            self.put(at + 4 + width * queue["size"], struct.pack("<H", number(values["event"])))

    def do_header(self, address, kind, sector="0"):
        self.put(number(address), struct.pack("<IIQ", TYPES[kind] if kind in TYPES else number(kind), 0, number(sector)))

    def do_segment(self, address, sector, count, flags="0"):
        self.put(number(address), struct.pack("<QII", number(sector), number(count), number(flags)))

    def do_fill(self, address, length, byte):
        self.put(number(address), bytes([number(byte)]) * number(length))

    def do_bytes(self, address, *digits):
        self.put(number(address), bytes.fromhex("".join(digits)))

    # The files.

    def memory_file(self):
        """Docs/memory-file.md: the state after a driver has done all this, before any device has used the file."""
        count = max(self.queues, default=0) + 1
        stride = (0x240 + 32 * count + 63) // 64 * 64
        state = 0x1000 + 128 * count
        control_size = (state + 2 * stride + 4095) // 4096 * 4096
        memory = 4096 + control_size
        header = b"VIRTIOMF" + struct.pack(
            "<IIQQQQQQIIII", 1, count, memory + len(self.memory), 4096, control_size, memory, len(self.memory), self.base,
            0x1000, 128, state, stride)
        control = bytearray(control_size)
        struct.pack_into("<IIIIQII", control, state, self.status, 0, 0, 0, self.features, 0, count)
        for index, queue in self.queues.items():
            struct.pack_into("<QQQII", control, state + 0x240 + 32 * index, queue["desc"], queue["avail"], queue["used"],
                             queue["size"], queue.get("ready", 1))
        return header.ljust(4096, b"\0") + bytes(control) + bytes(self.memory)

    def disk_image(self):
        """Every sector is filled with its number plus one, as 64-bit words, so that no sector is zero."""
        return b"".join(struct.pack("<Q", sector + 1) * 64 for sector in range(self.disk // 512))


def build(recipe, memory, disk):
    made = Recipe(pathlib.Path(recipe))
    pathlib.Path(memory).write_bytes(made.memory_file())
    pathlib.Path(disk).write_bytes(made.disk_image())


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--all":
        for path in sorted(pathlib.Path(__file__).parent.glob("*.recipe")):
            build(path, os.path.join(sys.argv[2], path.stem + ".mem"), os.path.join(sys.argv[2], path.stem + ".img"))
    elif len(sys.argv) == 4:
        build(*sys.argv[1:])
    else:
        sys.exit(__doc__)
