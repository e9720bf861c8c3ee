#!/usr/bin/python3
"""Migrates a Linux guest under load from one QEMU to another and back, each with its own back-end on the same image.

    migrate.py --folder FOLDER --disk IMAGE --console FILE [--migrations N] [--scenarios killed] [--set name=value …]

Two `vmm-blk serve` run all the time. The guest begins on the first; for each migration a second QEMU waits on the other
one, takes the guest over, and the first QEMU ends. The guest's console goes to one file. Status 0: every scenario is ok.
Each migration prints one line: the guest's downtime, and how much was copied.
"""
import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PROGRAM = os.environ.get("VMM_BLK", os.path.join(ROOT, ".build/release/vmm-blk"))
HUNG = int(os.environ.get("GUEST_TIMEOUT", "1200"))  # seconds after which any wait counts as hung


class Failure(Exception):
    """Something that must not happen did."""


def wait_until(what, found):
    """Returns the result of `found` as soon as there is one."""
    limit = time.monotonic() + HUNG
    while time.monotonic() < limit:
        result = found()
        if result:
            return result
        time.sleep(0.1)
    raise Failure(f"{what}: not within {HUNG} seconds")


class Server:
    """A back-end that does not lock its image, because another one has it open, too: only one of them has a guest at a time."""

    def __init__(self, folder, name, disk, options):
        self.path = f"{folder}/{name}.socket"
        command = [PROGRAM, "serve", "--blk-file", disk, "--no-lock", "--socket-path", self.path, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        if not self.process.stdout.readline():
            raise Failure(f"a server ended with status {self.process.wait()} instead of listening")

    def stop(self):
        """As an operator would."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(HUNG)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Machine:
    """A QEMU, and its monitor."""

    def __init__(self, folder, name, server, console, errors, words, device="", incoming=None):
        self.monitor_path = f"{folder}/{name}.qmp"
        memory = 512
        command = [
            # One thread for both CPUs: with one each, QEMU 7.2 loses stores of theirs in a migration, even with its own
            # virtio-blk and no back-end at all.
            "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", str(memory),
            "-object", f"memory-backend-memfd,id=mem,size={memory}M,share=on", "-machine", "memory-backend=mem",
            "-kernel", "vmlinuz", "-initrd", "initramfs-fio.cpio", "-nodefaults", "-nic", "none", "-vga", "none",
            "-display", "none", "-no-reboot", "-serial", "stdio", "-qmp", f"unix:{self.monitor_path},server=on,wait=off",
            "-chardev", f"socket,id=disk0,path={server.path},reconnect=1",
            "-device", "vhost-user-blk-pci,chardev=disk0,num-queues=2,config-wce=off" + (device and f",{device}"),
            "-append", f"console=ttyS0 quiet panic=-1 no_timer_check {' '.join(words)}",
        ]
        if incoming:
            command += ["-incoming", f"unix:{incoming}"]
        self.process = subprocess.Popen(
            command, cwd=f"{ROOT}/.guest/qemu", stdin=subprocess.DEVNULL, stdout=console, stderr=errors)
        self.monitor = None

    def connect(self):
        """Connects to its monitor, as soon as that is there."""
        def attempt():
            if self.process.poll() is not None:
                raise Failure(f"QEMU ended with status {self.process.returncode}")
            try:
                end = socket.socket(socket.AF_UNIX)
                end.connect(self.monitor_path)
                return end
            except OSError:
                return None

        end = wait_until("QEMU's monitor", attempt)
        end.settimeout(HUNG)
        self.monitor = end.makefile("rw")
        self.monitor.readline()
        self.ask("qmp_capabilities")
        return self

    def ask(self, command, **arguments):
        """A command's result; events are skipped."""
        self.monitor.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.monitor.flush()
        while True:
            line = self.monitor.readline()
            if not line:
                raise Failure(f"QEMU's monitor is gone during {command}")
            reply = json.loads(line)
            if "error" in reply:
                raise Failure(f"{command}: {reply['error']['desc']}")
            if "return" in reply:
                return reply["return"]

    def runs(self):
        return self.process.poll() is None

    def end(self):
        if self.runs():
            self.process.kill()
        self.process.wait()


def move(guest, other, channel):
    """Migrates the guest. - Returns: the migration's statistics."""
    # Slow enough that the guest writes while its memory is copied, and memory that the back-end wrote has to be copied again.
    guest.ask("migrate-set-parameters", **{"max-bandwidth": 128 << 20, "downtime-limit": 1000})
    guest.ask("migrate", uri=f"unix:{channel}")

    def result():
        state = guest.ask("query-migrate")
        if state.get("status") in ("failed", "cancelled"):
            raise Failure(f"the migration {state['status']}: {state.get('error-desc', 'QEMU does not say why')}")
        return state if state.get("status") == "completed" else None

    state = wait_until("the migration", result)
    wait_until("the guest runs again", lambda: other.ask("query-status")["status"] == "running")
    return state


def text(path):
    with open(path, "rb") as console:
        return console.read().decode(errors="replace").replace("\r", "")


def run(options, machines, servers):
    console = open(options.console, "ab")
    # On the console QEMU's messages would split the guest's lines.
    errors = open(options.console + ".hypervisor", "ab")
    servers += [Server(options.folder, f"end{index}", options.disk, options.server_options.split()) for index in range(2)]
    words = [*options.set, f"scenarios={options.scenarios}"]
    guest = Machine(options.folder, "0", servers[0], console, errors, words, options.device).connect()
    machines.append(guest)
    beats = 0

    def is_alive():
        if not guest.runs():
            raise Failure("the guest ended before it was migrated often enough")
        found = re.findall(r"^BEAT (\d+)$", text(options.console), re.M)
        return found and int(found[-1]) >= beats + 2 and int(found[-1])

    for number in range(1, options.migrations + 1):
        beats = wait_until(f"the guest's disk answers after migration {number - 1}", is_alive)
        channel = f"{options.folder}/{number}.migration"
        other = Machine(options.folder, str(number), servers[number % 2], console, errors, words, options.device, channel).connect()
        machines.append(other)
        state = move(guest, other, channel)
        print(
            f"migration {number}: the guest was paused for {state['downtime']} ms of {state['total-time']} ms, "
            f"{state['ram']['transferred'] >> 20} MiB were copied, memory was scanned "
            f"{state['ram']['dirty-sync-count']} times", flush=True)
        guest.end()
        guest = other
    wait_until("the guest's verdict", lambda: not guest.runs())
    for scenario in options.scenarios.split(","):
        found = re.findall(rf"^.*RESULT {scenario} (.*)$", text(options.console), re.M)
        if not found or found[-1] != "ok":
            raise Failure(f"{scenario}: {found[-1] if found else 'no result, the guest ended early'}")
    for server in servers:
        status = server.stop()
        if status != 0:
            raise Failure(f"a server ended with status {status}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="for sockets")
    parser.add_argument("--disk", required=True, help="the image")
    parser.add_argument("--console", required=True, help="the file that the guest's console goes to")
    parser.add_argument("--migrations", type=int, default=10)
    parser.add_argument("--scenarios", default="killed")
    parser.add_argument("--set", action="append", default=[], help="name=value, a parameter of the scenarios")
    parser.add_argument("--device", default="", help="more options of vhost-user-blk-pci")
    parser.add_argument("--server-options", default="--num-queues 2", help="more options of both servers")
    options = parser.parse_args()
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, lambda *_: sys.exit(130))
    machines, servers = [], []
    try:
        run(options, machines, servers)
    except Failure as failure:
        for path, lines in (options.console, 60), (options.console + ".hypervisor", 20):
            print("\n".join(text(path).splitlines()[-lines:]), file=sys.stderr)
        sys.exit(f"migrate: {failure}")
    finally:
        for machine in machines:
            machine.end()
        for server in servers:
            server.stop()


main()
