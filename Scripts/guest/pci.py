#!/usr/bin/env python3
"""Lets Debian's kernel find this project's PCI functions among QEMU's own, and use the disk behind one of them.

    pci.py [--kvm] [--kernel FOLDER] [--zoned WORDS] PROXY pci|pci-legacy|pci-transitional IMAGE [WORD…]
    pci.py --firmware FILE PROXY pci-legacy|pci-transitional IMAGE

QEMU's x-pci-proxy-dev forwards what a guest does with a function to PROXY (the program pci-proxy), which has a register
model and a disk. It knows INTx only, and delivers that with KVM only; without --kvm the guest's kernel polls its
handlers at every tick (irqpoll). WORDs go to the kernel's command line. The console goes to standard output; the exit
status is 0 if a scenario reported ok.

With --firmware there is no kernel: the firmware (OVMF) starts what it finds on IMAGE, and the exit status is 0 when the
machine powered itself off. QEMU treats a 64-bit BAR as one of 32 bits, and OVMF places it above 4 GiB, so the modern function
cannot be reached in this way.
"""
import argparse, os, pathlib, socket, subprocess, sys

parser = argparse.ArgumentParser()
parser.add_argument("--kvm", action="store_true")
parser.add_argument("--kernel", default=pathlib.Path(__file__).resolve().parents[2] / ".guest/qemu", type=pathlib.Path)
parser.add_argument("--initramfs", default="initramfs.cpio")
parser.add_argument("--zoned")
parser.add_argument("--firmware")
parser.add_argument("--queues", default=1, type=int)
parser.add_argument("--memory", default=512, type=int)
parser.add_argument("--timeout", default=600, type=int)
parser.add_argument("proxy")
parser.add_argument("registers")
parser.add_argument("image")
parser.add_argument("words", nargs="*")
arguments = parser.parse_args()

ours, theirs = socket.socketpair()
proxy = subprocess.Popen(
    [arguments.proxy, str(ours.fileno()), arguments.registers, arguments.image, str(arguments.queues)]
    + ([arguments.zoned] if arguments.zoned else []),
    pass_fds=[ours.fileno()])
ours.close()
# The periodic timer polls the line, so without KVM it must be there, and nothing that replaces it.
polling = [] if arguments.kvm else ["irqpoll", "nolapic", "nohpet"]
kernel = ["console=ttyS0", "panic=-1", "pci=nomsi"] + polling + arguments.words
accelerator = "kvm" if arguments.kvm else "tcg"
start = (
    ["-bios", arguments.firmware] if arguments.firmware else
    ["-kernel", arguments.kernel / "vmlinuz", "-initrd", arguments.kernel / arguments.initramfs, "-append", " ".join(kernel)])
machine = subprocess.Popen(
    ["qemu-system-x86_64", "-M", f"pc,accel={accelerator}", "-cpu", "max", "-m", str(arguments.memory), "-no-reboot",
     "-object", f"memory-backend-memfd,id=mem,size={arguments.memory}M,share=on", "-machine", "memory-backend=mem",
     "-nodefaults", "-nic", "none", "-vga", "none", "-display", "none", "-monitor", "none", "-serial", "stdio",
     "-device", f"x-pci-proxy-dev,id=disk,fd={theirs.fileno()}"] + start,
    pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
theirs.close()
isOver = True
try:
    console, _ = machine.communicate(timeout=arguments.timeout)
except subprocess.TimeoutExpired:
    machine.kill()
    console, _ = machine.communicate()
    isOver = False
    console += b"\npci.py: the guest was still running, and was stopped\n"
finally:
    machine.kill()
    # It ends with its socket.
    try:
        proxy.wait(20)
    except subprocess.TimeoutExpired:
        proxy.kill()
sys.stdout.write(console.decode(errors="replace").replace("\r", ""))
if arguments.firmware:
    sys.exit(0 if isOver and machine.returncode == 0 else 1)
sys.exit(0 if b" ok" in console and b"RESULT" in console else 1)
