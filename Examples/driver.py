#!/usr/bin/env python3
"""A virtio-blk driver for a memory file in plain Python: brings the device up, writes, flushes, reads back, verifies.

    vmm-blk run --memory guest.mem --create 16M --blk-file disk.img &
    Examples/driver.py guest.mem

Overwrites the disk, and leaves the rings for 'vmm-blk inspect'. Written from Docs/memory-file.md and the virtio
specification alone, for x86-64: plain aligned stores are in order there.
"""
import ctypes, fcntl, mmap, os, random, struct, sys, time

SYS_FUTEX, FUTEX_WAIT, FUTEX_WAKE, EVERYBODY = 202, 0, 1, 0x7FFFFFFF
VERSION_1, FLUSH = 1 << 32, 1 << 9
NEXT, WRITE = 1, 2  # descriptor flags
IN, OUT, TYPE_FLUSH, GET_ID = 0, 1, 4, 8
libc = ctypes.CDLL(None, use_errno=True)


class File:
    """The mapped file: words, futexes, registers and guest memory."""

    def __init__(self, path, patience=120.0):
        self.patience = patience
        deadline = time.monotonic() + patience
        while True:  # the maker of the file writes the magic number last
            try:
                fd = os.open(path, os.O_RDWR)
                header = os.pread(fd, 0x54, 0)
                if header[:8] == b"VIRTIOMF":
                    break
                os.close(fd)
            except FileNotFoundError:
                pass
            if time.monotonic() > deadline:
                sys.exit(f"{path} is not a memory file: make one with 'vmm-blk run --create'")
            time.sleep(0.01)
        (version, self.queues, size, self.control, _, self.memory, self.memory_size, self.base,
         self.doorbells, self.stride) = struct.unpack_from("<IIQQQQQQII", header, 8)
        registers, = struct.unpack_from("<I", header, 0x50)
        if registers != 0:
            sys.exit(f"{path} has registers of kind {registers}, this driver knows virtio-mmio version 2 (0)")
        if version != 1:
            sys.exit(f"{path} has version {version}, this driver knows 1")
        try:  # one driver at a time: byte 1 stays locked as long as the descriptor is open
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 1, 1, 0))
        except OSError:
            sys.exit(f"another driver uses {path}")
        self.map = mmap.mmap(fd, size)

    def word(self, offset, kind=ctypes.c_uint32):
        return kind.from_buffer(self.map, offset)

    def wait(self, word, seen, seconds):
        limit = (ctypes.c_int64 * 2)(int(seconds), int(seconds % 1 * 1e9))
        libc.syscall(SYS_FUTEX, ctypes.byref(word), FUTEX_WAIT, ctypes.c_uint32(seen), limit, None, 0)

    def ring(self, word):
        word.value = (word.value + 1) & 0xFFFFFFFF
        libc.syscall(SYS_FUTEX, ctypes.byref(word), FUTEX_WAKE, EVERYBODY, None, None, 0)

    def access(self, offset, width, write, value):
        """One register access through the mailbox."""
        request, response = self.word(self.control + 0x40), self.word(self.control + 0x80)
        self.await_response(response, request.value)  # the device may still have an earlier request
        struct.pack_into("<IIIQ", self.map, self.control + 0x44, offset, width, write, value)
        self.ring(request)
        self.await_response(response, request.value)
        status, = struct.unpack_from("<I", self.map, self.control + 0x84)
        if status != 0:
            sys.exit(f"the device refused an access of {width} bytes at {offset:#x}")
        return struct.unpack_from("<Q", self.map, self.control + 0x88)[0]

    def await_response(self, response, sequence):
        deadline = time.monotonic() + self.patience
        while (seen := response.value) != sequence:
            if time.monotonic() > deadline:
                sys.exit("no device answers: is 'vmm-blk run' running?")
            self.wait(response, seen, 0.05)

    def read(self, offset, width=4):
        return self.access(offset, width, 0, 0)

    def write(self, offset, value, width=4):
        self.access(offset, width, 1, value)


class Queue:
    """Queue 0 of 128 entries at the beginning of guest memory; chain n uses descriptors 3n … 3n + 2."""

    # A request of this disk may have 126 segments and two descriptors besides: smaller rings have no room for the largest ones.
    SIZE, CHAINS, LENGTH = 128, 4, 4096

    def __init__(self, file):
        self.file = file
        self.table, self.avail, self.used, self.buffers = 0, 0x800, 0xA00, 0x1000
        file.map[file.memory:file.memory + self.buffers] = bytes(self.buffers)  # a driver zeroes its rings
        self.kick = file.word(file.control + file.doorbells)
        self.call = file.word(file.control + file.doorbells + 64)
        self.avail_index = file.word(file.memory + self.avail + 2, ctypes.c_uint16)
        self.used_index = file.word(file.memory + self.used + 2, ctypes.c_uint16)
        self.free, self.seen, self.outstanding = list(range(self.CHAINS)), 0, {}

    def submit(self, kind, sector=0, data=b"", length=0):
        """Makes one request available; `length` is what the device may write. Returns the chain."""
        chain = self.free.pop()
        at = self.buffers + chain * 2 * self.LENGTH  # header, status and data of this chain
        where, memory = self.file.base + at, self.file.memory
        struct.pack_into("<IIQ", self.file.map, memory + at, kind, 0, sector)
        self.file.map[memory + at + 16] = 0xFF
        body = at + self.LENGTH
        self.file.map[memory + body:memory + body + len(data)] = data
        middle = (self.file.base + body, len(data) or length, 0 if data else WRITE)
        parts = [(where, 16, 0), middle, (where + 16, 1, WRITE)] if middle[1] else [(where, 16, 0), (where + 16, 1, WRITE)]
        for place, (address, size, flags) in enumerate(parts):
            index = 3 * chain + place
            last = place == len(parts) - 1
            struct.pack_into("<QIHH", self.file.map, memory + self.table + 16 * index,
                             address, size, flags | (0 if last else NEXT), 0 if last else index + 1)
        slot = memory + self.avail + 4 + 2 * (self.avail_index.value % self.SIZE)
        struct.pack_into("<H", self.file.map, slot, 3 * chain)
        self.avail_index.value = (self.avail_index.value + 1) & 0xFFFF  # publish
        self.outstanding[chain] = length
        self.file.ring(self.kick)
        return chain

    def complete(self):
        """Waits for one used element. Returns its chain and what the device wrote; a bad status ends the program."""
        deadline = time.monotonic() + self.file.patience
        while True:
            rung = self.call.value  # first the doorbell, then the ring
            if self.used_index.value != self.seen:
                break
            if time.monotonic() > deadline:
                sys.exit(f"a request has not come back; status register {self.file.read(0x70):#x}")
            self.file.wait(self.call, rung, 0.1)
        memory = self.file.memory
        head, written = struct.unpack_from("<II", self.file.map, memory + self.used + 4 + 8 * (self.seen % self.SIZE))
        self.seen = (self.seen + 1) & 0xFFFF
        chain = head // 3
        length = self.outstanding.pop(chain)
        at = memory + self.buffers + chain * 2 * self.LENGTH
        status = self.file.map[at + 16]
        if status != 0 or written != length + 1:
            sys.exit(f"chain {chain}: status {status}, {written} bytes written of {length + 1}")
        self.free.append(chain)
        return chain, self.file.map[at + self.LENGTH:at + self.LENGTH + length]

    def request(self, *arguments, **named):
        self.submit(*arguments, **named)
        return self.complete()[1]


def bring_up(file):
    """virtio 3.1.1 over virtio-mmio registers (4.2.2)."""
    if file.read(0x00) != 0x74726976 or file.read(0x04) != 2 or file.read(0x08) != 2:
        sys.exit("no virtio block device of version 2 here")
    file.write(0x70, 0)  # reset, which is over when the status reads 0
    while file.read(0x70) != 0:
        pass
    file.write(0x70, 1)  # ACKNOWLEDGE
    file.write(0x70, 3)  # DRIVER
    offered = 0
    for half in range(2):
        file.write(0x14, half)
        offered |= file.read(0x10) << 32 * half
    wanted = offered & (VERSION_1 | FLUSH)
    for half in range(2):
        file.write(0x24, half)
        file.write(0x20, wanted >> 32 * half & 0xFFFFFFFF)
    file.write(0x70, 11)  # FEATURES_OK
    if not file.read(0x70) & 8:
        sys.exit("the device refused VERSION_1")
    queue = Queue(file)
    file.write(0x30, 0)  # QueueSel
    file.write(0x38, queue.SIZE)
    for register, part in ((0x80, queue.table), (0x90, queue.avail), (0xA0, queue.used)):
        file.write(register, file.base + part & 0xFFFFFFFF)
        file.write(register + 4, file.base + part >> 32)
    file.write(0x44, 1)  # QueueReady
    file.write(0x70, 15)  # DRIVER_OK
    return queue, file.read(0x100) | file.read(0x104) << 32


def main():
    file = File(sys.argv[1])
    queue, sectors = bring_up(file)
    print("disk:", sectors, "sectors, serial", queue.request(GET_ID, length=20).rstrip(b"\0").decode())
    random.seed(1)
    blocks = random.sample(range(sectors // 8), min(256, sectors // 8))
    contents = {block: random.randbytes(4096) for block in blocks}
    for block in blocks:
        if not queue.free:
            queue.complete()
        queue.submit(OUT, block * 8, data=contents[block])
    while queue.outstanding:
        queue.complete()
    queue.request(TYPE_FLUSH)
    for block in blocks:
        if queue.request(IN, block * 8, length=4096) != contents[block]:
            sys.exit(f"block {block} reads back differently")
    print("verified:", len(blocks), "blocks of 4096 bytes written, flushed and read back")


if __name__ == "__main__":
    main()
