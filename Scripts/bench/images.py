"""The images that peers.py measures on, each with its back-ends and the pairs to compare.

The kinds are raw files, qcow2, an NBD export and an RBD image. If a kind needs something that is missing, that is reported in
a sentence, and the other kinds are measured.
"""
import contextlib
import json
import os
import shutil
import subprocess
import tempfile

GIB = 1 << 30
RANDOM = [(f"rand{way} 4k QD{depth}", f"rand{way}", "4k", depth) for way in ("read", "write") for depth in (1, 32, 128)]
JOBS = RANDOM + [("read 128k QD32", "read", "128k", 32), ("write 128k QD32", "write", "128k", 32)]
READS, WRITES = RANDOM[:3], RANDOM[3:]
BYTES = {"4k": "4096", "128k": "131072"}


class Missing(Exception):
    """Something that a kind needs is missing."""


class Subject:
    """A back-end, or a program that accesses the medium directly.

    family: the best of a family is compared with others.
    command: called with a socket, returns its command line. Or `fio`: called with a job, returns fio's arguments. Or `loop`:
    called with a job, and with seconds before and during the measurement, returns the command line of a program that prints its
    result as a line of JSON.
    """

    def __init__(self, ident, title, family, command=None, fio=None, loop=None, jobs=None):
        self.id, self.title, self.family, self.command, self.fio, self.loop = ident, title, family, command, fio, loop
        self.jobs = jobs


class Image:
    """An image to measure on.

    pairs: (title, id, family or id of the other).
    fresh: called before each measurement, if an image can be used only once.
    settle: called before each round of a job.
    """

    def __init__(self, ident, title, size, subjects, pairs, jobs=None, path=None, fresh=None, settle=None, times=None):
        self.id, self.title, self.size, self.subjects, self.pairs = ident, title, size, subjects, pairs
        self.jobs = jobs or JOBS
        self.path = path
        self.fresh = fresh or (lambda: None)
        self.settle = settle or (lambda: None)
        # Seconds before and during a measurement, if the usual ones would use the image up.
        self.times = times

    def turn(self, job):
        return [s for s in self.subjects if s.jobs is None or job[0] in s.jobs]


class Bench:
    """Makes the images: has the options, and a stack that cleans up."""

    def __init__(self, options, stack):
        self.options, self.stack = options, stack
        self.vmm_blk = options.vmm_blk
        self.size = options.size << 20

    def folder(self, place):
        path = tempfile.mkdtemp(prefix="vmm-blk-bench-", dir=place)
        self.stack.callback(shutil.rmtree, path, ignore_errors=True)
        return path

    # Back-ends.

    def ours(self, *flags):
        return lambda socket: [self.vmm_blk, "serve", "--socket-path", socket, *flags]

    @staticmethod
    def qemu(*nodes, iothread=False):
        """The last of the nodes is exported."""
        def command(socket):
            words = ["qemu-storage-daemon"]
            for node in nodes:
                words += ["--blockdev", json.dumps(node)]
            name = nodes[-1]["node-name"]
            export = f"type=vhost-user-blk,id=export,node-name={name},addr.type=unix,addr.path={socket},writable=on"
            if iothread:
                words += ["--object", "iothread,id=io"]
                export += ",iothread=io"
            return words + ["--export", export]
        return command

    @staticmethod
    def file_node(path, aio, direct, name="file", **more):
        return {"driver": "file", "node-name": name, "filename": path, "locking": "off", "aio": aio,
                "cache": {"direct": direct}, **more}

    def qemus(self, nodes, aios):
        """QEMU with and without an iothread.

        nodes: called with an I/O mode, returns the nodes.
        aios: (name, I/O mode, direct or not).
        """
        found = []
        for name, aio, direct in aios:
            for iothread in (False, True):
                found.append(Subject(
                    f"qemu-{name}{'-iothread' if iothread else ''}",
                    f"QEMU {name.replace('-cache', ', page cache')}{', iothread' if iothread else ''}", "qemu",
                    self.qemu(*nodes(aio, direct), iothread=iothread)))
        return found


# Raw files.

def written(path, size, sync=True):
    """A fully written file."""
    block = os.urandom(1 << 20)
    with open(path, "wb") as file:
        for _ in range(size >> 20):
            file.write(block)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def settled(path, cached):
    """The state in which every subject of a round should find the file: on the disk, and cached if that is measured (direct
    writes evict it)."""
    def settle():
        with open(path, "rb", buffering=0) as file:
            os.fsync(file.fileno())
            while cached and file.read(1 << 20):
                pass
    return settle


def fio_of_file(path, direct):
    # By default fio evicts the file from the page cache first, for itself and for the next run.
    return lambda job: [f"--filename={path}", "--ioengine=io_uring", f"--direct={int(direct)}",
                        f"--size={os.path.getsize(path)}", "--allow_file_create=0", "--invalidate=0"]


RAW_PAIRS = [
    ("vmm-blk / best of QEMU", "vmm-auto", "qemu"), ("vmm-blk / fio io_uring", "vmm-auto", "fio"),
    ("vmm-blk --waiting sleep / best of QEMU", "vmm-sleep", "qemu"),
    ("vmm-blk --engine sync / best of QEMU", "vmm-sync", "qemu"),
    ("vmm-blk --engine sync / fio io_uring", "vmm-sync", "fio"),
    ("vmm-blk --engine null / best null-co", "vmm-null", "qemu-null"),
]


def raw(bench, wanted):
    """The same amount of written data in memory and on the disk."""
    made = {}
    for ident, title, place, direct in (
            ("tmpfs", "a file on tmpfs, direct I/O", bench.options.memory_directory, True),
            ("ext4-direct", "a file on the disk, direct I/O", bench.options.disk_directory, True),
            ("ext4-cache", "a file on the disk, page cache", bench.options.disk_directory, False)):
        if not wanted(ident):
            continue
        if place not in made:
            made[place] = os.path.join(bench.folder(place), "disk.img")
            written(made[place], bench.size)
        path = made[place]

        def ours(*flags, path=path, direct=direct):
            return bench.ours("--blk-file", path, "--no-lock", "--direct", "on" if direct else "off", *flags)

        subjects = [Subject("vmm-auto", "vmm-blk", "ours", ours()),
                    Subject("vmm-sleep", "vmm-blk --waiting sleep", "ours", ours("--waiting", "sleep"))]
        if ident == "tmpfs":
            subjects.append(Subject("vmm-busy", "vmm-blk --waiting busy", "ours", ours("--waiting", "busy"),
                                    jobs=("randread 4k QD1", "randwrite 4k QD1")))
        if ident != "ext4-direct":  # there that is the default
            subjects.append(Subject("vmm-uring", "vmm-blk --engine uring", "ours", ours("--engine", "uring")))
        if ident == "ext4-cache":
            subjects.append(Subject("vmm-mapped", "vmm-blk --engine mapped", "ours", ours("--engine", "mapped")))
        if ident == "tmpfs":
            subjects += [Subject("vmm-sync", "vmm-blk --engine sync", "ours", ours("--engine", "sync")),
                         Subject("vmm-null", "vmm-blk --engine null", "null",
                                 bench.ours("--blk-file", path, "--no-lock", "--engine", "null"))]
        aios = [(aio, aio, direct) for aio in ("io_uring", "native", "threads")]
        if not direct:  # native needs direct I/O
            aios = [way for way in aios if way[0] != "native"]
        subjects += bench.qemus(lambda aio, direct, path=path: [bench.file_node(path, aio, direct)], aios)
        if ident == "tmpfs":
            for name, zeroes in (("qemu-null", True), ("qemu-null-silent", False)):
                node = {"driver": "null-co", "node-name": "disk", "size": bench.size, "read-zeroes": zeroes}
                subjects.append(Subject(name, "QEMU null-co" + ("" if zeroes else ", no zeroing"), "qemu-null",
                                        bench.qemu(node)))
        subjects.append(Subject("fio", "fio io_uring, no virtio", "fio", fio=fio_of_file(path, direct)))
        yield Image(ident, title, bench.size, subjects, RAW_PAIRS, path=path, settle=settled(path, not direct))


# qcow2.

def made(*words):
    done = subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"qemu-img: {done.stderr.strip()}")


def qcow2(bench, wanted):
    if shutil.which("qemu-img") is None:
        raise Missing("qemu-img is not installed: run 'Scripts/setup.sh bench'")
    memory = bench.folder(bench.options.memory_directory)
    places = [("tmpfs", "tmpfs", memory), ("ext4", "the disk", bench.folder(bench.options.disk_directory))]

    def ours(path, backing=None):
        return bench.ours("--image", f"qcow2:{path}" + (f"?backing={backing}" if backing else ""))

    def raws(path, *engine):
        return bench.ours("--blk-file", path, "--direct", "off", *engine)

    def qemus(path, *more, where):
        def nodes(aio, direct):
            chain, below = [], None
            for number, (driver, name) in enumerate([*more, ("qcow2", path)]):
                chain.append(bench.file_node(name, aio, direct, name=f"f{number}"))
                node = {"driver": driver, "node-name": f"n{number}", "file": f"f{number}"}
                if driver == "qcow2":
                    node |= {"backing": below, "cache": {"direct": direct}}
                chain.append(node)
                below = node["node-name"]
            return chain
        aios = [("io_uring-cache", "io_uring", False), ("threads-cache", "threads", False), ("io_uring", "io_uring", True)]
        # With and without the page cache of a disk are two different media.
        return bench.qemus(nodes, aios if where == "tmpfs" else aios[:2])

    against = [("qcow2: vmm-blk / best of QEMU", "vmm-qcow2", "qemu")]
    for where, place, folder in places:
        ident = f"qcow2-{where}"
        if wanted(ident):
            path, flat = f"{folder}/full.qcow2", f"{folder}/full.raw"
            written(flat, bench.size)
            subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-S", "0", flat, path], check=True)

            def settle(path=path, flat=flat, where=where):
                for name in (path, flat):
                    settled(name, where != "tmpfs")()
            # On a disk the same as for a qcow2 image that is written to: calls by other threads.
            threads = [Subject("vmm-raw-threads", "vmm-blk, raw, --engine threads", "raw-threads", raws(flat, "--engine", "threads"))]
            yield Image(
                ident, f"a qcow2 image on {place}, all of it allocated", bench.size,
                [Subject("vmm-qcow2", "vmm-blk, qcow2", "ours", ours(path)),
                 # Synchronous calls through the page cache, and what a raw file gets by default: copies out of a mapping.
                 Subject("vmm-raw", "vmm-blk, raw, --engine sync", "raw", raws(flat, "--engine", "sync")),
                 Subject("vmm-raw-auto", "vmm-blk, raw", "raw-auto", raws(flat)),
                 *([] if where == "tmpfs" else threads), *qemus(path, where=where)],
                [("vmm-blk: qcow2 / raw, --engine sync", "vmm-qcow2", "vmm-raw"),
                 ("vmm-blk: qcow2 / raw", "vmm-qcow2", "vmm-raw-auto"),
                 *([] if where == "tmpfs" else [("vmm-blk: qcow2 / raw, --engine threads", "vmm-qcow2", "vmm-raw-threads")]),
                 *against], jobs=RANDOM, path=path, settle=settle)
        # An image for first writes serves only once, and not for long.
        ident, path = f"qcow2-first-{where}", f"{folder}/empty.qcow2"
        if wanted(ident):
            yield Image(
                ident, f"first writes into an empty qcow2 image on {place}, clusters of 64 KiB", 64 * GIB,
                [Subject("vmm-qcow2", "vmm-blk, qcow2", "ours", ours(path)), *qemus(path, where=where)], against,
                jobs=WRITES[1:], path=path, fresh=lambda path=path: made(path, "64G"), times=(0.05, 0.2))
        ident, path, flat = f"qcow2-subclusters-{where}", f"{folder}/sub.qcow2", f"{folder}/sparse.raw"
        if wanted(ident):
            def fresh(path=path, flat=flat):
                made("-o", "extended_l2=on,cluster_size=128k", path, "64G")
                with open(flat, "wb") as file:
                    file.truncate(64 * GIB)
            yield Image(
                ident, f"first writes into an empty qcow2 image on {place}, subclusters of 4 KiB", 64 * GIB,
                [Subject("vmm-qcow2", "vmm-blk, qcow2", "ours", ours(path)),
                 Subject("vmm-raw", "vmm-blk, raw, sparse", "raw", raws(flat)), *qemus(path, where=where)],
                [("vmm-blk: qcow2 / raw sparse file", "vmm-qcow2", "vmm-raw"), *against],
                jobs=WRITES[1:], path=path, fresh=fresh, times=(0.05, 0.2))
    overs = {"qcow2-over-tmpfs": ("clusters of 64 KiB", []),
             # As 'vmm-blk image create' makes them.
             "qcow2-over-subclusters-tmpfs": ("subclusters of 4 KiB", ["-o", "extended_l2=on,cluster_size=128k"])}
    chained = [name for name in (*overs, "qcow2-chain-tmpfs") if wanted(name)]
    if chained:
        base = f"{memory}/base.raw"
        written(base, 4 * GIB, sync=False)
        top = f"{memory}/over.qcow2"
        for ident, (clusters, options) in overs.items():
            if ident not in chained:
                continue
            yield Image(
                ident, f"first writes over a backing file on tmpfs, {clusters}", 4 * GIB,
                [Subject("vmm-qcow2", "vmm-blk, qcow2", "ours", ours(top, f"raw:{base}")),
                 *qemus(top, ("raw", base), where="tmpfs")],
                against, jobs=WRITES[1:], path=top,
                fresh=lambda options=options: made(*options, "-b", base, "-F", "raw", top), times=(0.05, 0.1))
        if "qcow2-chain-tmpfs" in chained:
            names = [f"{memory}/chain{number}.qcow2" for number in range(4)]
            subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-S", "0", base, names[0]], check=True)
            for below, above in zip(names, names[1:]):
                made("-b", below, "-F", "qcow2", above)
            backing = "&backing=".join(f"qcow2:{name}" for name in reversed(names[:-1]))
            yield Image(
                "qcow2-chain-tmpfs", "reads through three backing files on tmpfs, after 1 s", 4 * GIB,
                [Subject("vmm-chain", "vmm-blk, three backing files", "ours", ours(names[-1], backing)),
                 Subject("vmm-qcow2", "vmm-blk, none", "flat", ours(names[0])),
                 *qemus(names[-1], *(("qcow2", name) for name in names[:-1]), where="tmpfs")],
                [("vmm-blk: three backing files / none", "vmm-chain", "vmm-qcow2"),
                 ("qcow2: vmm-blk / best of QEMU", "vmm-chain", "qemu")], jobs=READS, path=names[-1],
                times=(1, bench.options.runtime))  # until most of the files has been looked at
    if wanted("qcow2-1tib-tmpfs"):
        # Full tables, with holes as clusters, which are read like others.
        large, small = f"{memory}/large.qcow2", f"{memory}/small.qcow2"
        made("-o", "preallocation=metadata", large, "1T")
        made("-o", "preallocation=metadata", small, str(bench.size))
        yield Image(
            "qcow2-1tib-tmpfs", "reads of a qcow2 image of 1 TiB on tmpfs (tables whole, clusters holes), after 1 s", 1024 * GIB,
            [Subject("vmm-large", "vmm-blk, 1 TiB", "ours", ours(large)),
             Subject("vmm-small", f"vmm-blk, {bench.options.size} MiB", "small", ours(small)),
             *qemus(large, where="tmpfs")],
            [("vmm-blk: 1 TiB / small", "vmm-large", "vmm-small"), ("qcow2: vmm-blk / best of QEMU", "vmm-large", "qemu")],
            jobs=READS, path=large, times=(1, bench.options.runtime))  # until all tables have been read


# Images on servers.

def nbd(bench, wanted):
    """An export in a server's memory, over a UNIX socket; the server has the back-end's CPU."""
    if not wanted("nbd"):
        return
    if shutil.which("nbdkit") is None:
        raise Missing("nbdkit is not installed: run 'Scripts/setup.sh bench'")
    socket = os.path.join(bench.folder(bench.options.memory_directory), "nbd")
    server = subprocess.Popen(
        ["taskset", "-c", str(bench.options.backend_cpu), "nbdkit", "--foreground", "--exit-with-parent", "-U", socket,
         "memory", f"{bench.options.size}M"], stdin=subprocess.DEVNULL)
    bench.stack.callback(server.wait)
    bench.stack.callback(server.terminate)
    node = {"driver": "nbd", "node-name": "disk", "server": {"type": "unix", "path": socket}, "export": ""}
    subjects = [Subject("vmm-nbd", "vmm-blk, NBD", "ours", bench.ours("--image", f"nbd+unix:///?socket={socket}")),
                *bench.qemus(lambda _, __: [node], [("nbd", None, False)])]
    yield Image("nbd", "an export of nbdkit's memory plugin over a UNIX socket", bench.size, subjects,
                [("NBD: vmm-blk / best of QEMU", "vmm-nbd", "qemu")], jobs=RANDOM)


def built(bench, source):
    """A program of one C file, built for this run."""
    here = os.path.dirname(os.path.abspath(__file__))
    program = os.path.join(bench.folder(None), os.path.splitext(source)[0])
    include = os.path.join(os.path.dirname(os.path.dirname(here)), "Sources", "CLinux")
    subprocess.run(["cc", "-O2", "-I", include, "-o", program, os.path.join(here, source)], check=True)
    return program


def rbd(bench, wanted):
    """An image of a cluster in memory; the cluster has the back-end's CPU. Compared with a bare loop of the library."""
    if not wanted("rbd"):
        return
    for program in ("ceph-mon", "ceph-osd", "rbd", "cc"):
        if shutil.which(program) is None:
            raise Missing(f"{program} is not installed: run 'Scripts/setup.sh bench ceph'")
    folder = os.path.join(bench.folder(bench.options.memory_directory), "cluster")
    script = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "ceph.sh")
    bench.stack.callback(subprocess.run, [script, "remove", folder], stdout=subprocess.DEVNULL, check=False)
    subprocess.run(["taskset", "-c", str(bench.options.backend_cpu), script, "start", folder], check=True,
                   stdout=subprocess.DEVNULL)
    conf = os.path.join(folder, "ceph.conf")
    size = min(bench.options.size, 512)
    with tempfile.NamedTemporaryFile() as full:
        written(full.name, size << 20, sync=False)
        subprocess.run(["rbd", "-c", conf, "import", "--no-progress", full.name, "rbd/bench"], check=True)
    loop = built(bench, "librbd-loop.c")
    node = {"driver": "rbd", "node-name": "disk", "pool": "rbd", "image": "bench", "conf": conf,
            "cache": {"direct": True}}
    subjects = [Subject("vmm-rbd", "vmm-blk, RBD", "ours", bench.ours("--image", f"rbd:rbd/bench?conf={conf}", "--break-lock")),
                Subject("librbd", "a bare loop of librbd", "librbd", loop=lambda job, ramp, runtime: [
                    loop, conf, "rbd", "bench", job[1], BYTES[job[2]], str(job[3]), str(ramp), str(runtime)]),
                *bench.qemus(lambda _, __: [node], [("rbd", None, False)])]
    pairs = [("RBD: vmm-blk / a bare loop of librbd", "vmm-rbd", "librbd"), ("RBD: vmm-blk / best of QEMU", "vmm-rbd", "qemu")]
    yield Image("rbd", "an RBD image of a cluster in memory (one OSD, on the back-end's CPU)", size << 20, subjects, pairs,
                jobs=RANDOM)


KINDS = {"raw": raw, "qcow2": qcow2, "nbd": nbd, "rbd": rbd}
NAMES = ["tmpfs", "ext4-direct", "ext4-cache", "qcow2-tmpfs", "qcow2-first-tmpfs", "qcow2-subclusters-tmpfs", "qcow2-ext4",
         "qcow2-first-ext4", "qcow2-subclusters-ext4", "qcow2-over-tmpfs",
         "qcow2-over-subclusters-tmpfs", "qcow2-chain-tmpfs", "qcow2-1tib-tmpfs"]


def kind_of(ident):
    """The kind of an image."""
    prefix = ident.split("-")[0]
    return prefix if prefix in KINDS else "raw"


def make(options, missing):
    """The requested images, one after the other; what a kind needs is kept until the next kind begins.

    missing: receives a sentence for each kind that cannot be measured here.
    """
    for kind, images in KINDS.items():
        def wanted(ident, kind=kind):
            return kind in options.images or ident in options.images
        with contextlib.ExitStack() as stack:
            try:
                yield from images(Bench(options, stack), wanted)
            except Missing as error:
                missing.append(f"{kind}: {error}")
