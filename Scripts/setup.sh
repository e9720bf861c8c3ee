#!/usr/bin/env bash
# Installs the Debian packages this project needs, only those that are missing.
#
#   Scripts/setup.sh [build] [test] [guest] [qemu] [counts] [bench]   (build and guest by default)
#
# build    libraries that the Swift package links against
# test     programs that unit tests use and compare with: a Python driver, loop devices, strace, qemu-storage-daemon, NBD
# servers
#          and certificates for them
# guest    programs that boot and check a real Linux guest (Scripts/guest): user-mode Linux and tools for filesystems
# qemu     also a guest in QEMU
# zoned    also a guest that supports zoned disks
# ovmf     OVMF as a guest, and tools to make a disk for it
# ceph     a Ceph cluster for tests of its images (Scripts/ceph.sh)
# counts   programs that count the cost of a request and of its pieces (Scripts/counts.py, Scripts/instructions.py)
# package  programs that make a Debian package and a tarball (packaging/build.sh)
# package-test  programs that try these in a bare Debian (Scripts/package-test.sh)
# docs     programs that make HTML from the documents (Scripts/book.py)
# peers    other back-ends, for their conformance reports (Scripts/conform-peers.sh)
# bench    programs that the benchmarks compare with and draw with (Scripts/bench)
set -euo pipefail

declare -A groups=(
  [build]="liburing-dev libaio-dev libseccomp-dev pkg-config"
  [test]="python3 strace util-linux mount e2fsprogs qemu-utils qemu-system-common nbdkit libnbd0 gnutls-bin"
  [ceph]="ceph-mon ceph-osd ceph-common librbd1"
  [counts]="valgrind strace python3"
  [bench]="python3-matplotlib qemu-utils qemu-system-common qemu-block-extra nbdkit libnbd0 fio linux-perf util-linux gcc libc6-dev"
  [peers]="qemu-utils qemu-system-common dpdk-doc libdpdk-dev gcc make pkg-config"
  [guest]="user-mode-linux gcc libc6-dev busybox-static cpio fio e2fsprogs xfsprogs btrfs-progs dmsetup util-linux python3"
  [docs]="pandoc python3"
  [package]="dpkg-dev binutils python3 zstd"
  [package-test]="debootstrap zstd systemd systemd-container man-db"
  [qemu]="qemu-system-x86 qemu-system-common gcc libc6-dev"
  [zoned]="xz-utils btrfs-progs util-linux"
  [ovmf]="ovmf mtools qemu-system-x86 qemu-system-common"
)

[ $# -gt 0 ] || set -- build guest

missing=()
for group in "$@"; do
  if [ -z "${groups[$group]:-}" ]; then
    echo "setup: no group '$group'; there are: ${!groups[*]}" >&2
    exit 2
  fi
  for package in ${groups[$group]}; do
    # Groups share packages.
    [[ " ${missing[*]-} " != *" $package "* ]] || continue
    status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$status" = "install ok installed" ] || missing+=("$package")
  done
done
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
  echo "setup: this machine has no apt-get; please install the equivalents of: ${missing[*]}" >&2
  exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "setup: missing packages; please run as root: apt-get install ${missing[*]}" >&2
  exit 1
fi

echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# A bare machine has no package lists, and an old one's are outdated.
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
