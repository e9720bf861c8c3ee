#!/usr/bin/env bash
# Builds what guests boot, in .guest/ at the top of the repository:
#
#   build-image.sh [uml] [qemu] [zoned]         (uml and qemu when none is named)
#
#   GUEST/initramfs.cpio      busybox, modules, tools for filesystems, and our scenarios
#   GUEST/initramfs-fio.cpio  the same and fio, whose many libraries take longer to load
#   qemu/vmlinuz              Debian's cloud kernel, downloaded but not installed
#   zoned/vmlinuz             Debian's kernel 6.12, which knows disks with zones; downloaded but not installed
#
# User-mode Linux is an installed program, with its modules.
# Does nothing if the inputs have not changed.
# To move to a newer kernel, delete .guest/ and run this again.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=$root/.guest

[ $# -gt 0 ] || set -- uml qemu
for kind in "$@"; do
  case $kind in
  uml) "$root/Scripts/setup.sh" guest ;;
  qemu) "$root/Scripts/setup.sh" guest qemu ;;
  zoned) "$root/Scripts/setup.sh" guest qemu zoned ;;
  *) echo "build-image: a guest is uml, qemu or zoned, not '$kind'" >&2; exit 2 ;;
  esac
done
mkdir -p "$cache"

# Guests may be started from several shells at once; only one of them builds.
exec 9>"$cache/lock"
flock 9
# What an interrupted build left.
rm -rf "$cache"/fetch.* "$cache"/tree.*

# --- kernels and their modules, in the order in which they are inserted: each needs those before it

modules_uml="drivers/block/virtio_blk drivers/md/dm-mod drivers/md/dm-log-writes"
modules_qemu="drivers/virtio/virtio_ring drivers/virtio/virtio drivers/virtio/virtio_pci_legacy_dev
  drivers/virtio/virtio_pci_modern_dev drivers/virtio/virtio_pci drivers/block/virtio_blk"
modules_zoned="crypto/crc32c_generic lib/libcrc32c crypto/xor lib/raid6/raid6_pq fs/btrfs/btrfs fs/zonefs/zonefs
  drivers/block/virtio_blk"

fetch_uml() {
  local tree
  tree=$(uml_tree)
  [ -n "$tree" ] || { echo "build-image: no modules for linux.uml in /usr/lib/uml/modules" >&2; exit 1; }
  rm -rf "$cache/uml/modules"
  mkdir -p "$cache/uml/modules"
  for module in $modules_uml; do cp "$tree/kernel/$module.ko" "$cache/uml/modules/"; done
}

# The folder of the modules that fit the installed kernel, which prints its release.
uml_tree() {
  local tree
  tree=/usr/lib/uml/modules/$(linux.uml --version | tail -n 1)
  [ ! -d "$tree" ] || echo "$tree"
}

# Downloads the kernel that a meta package names, and the modules of a kind of guest.
fetch_kernel() { # guest, meta package
  local kind=$1 meta=$2 modules=modules_$1 scratch package release module
  [ ! -e "$cache/$kind/vmlinuz" ] || return 0
  scratch=$(mktemp -d "$cache/fetch.XXXXXX")

  # The meta package names the current kernel. Without package lists the name is unknown.
  package=$(find_kernel_package "$meta")
  if [ -z "$package" ]; then
    apt-get update -qq
    package=$(find_kernel_package "$meta")
  fi
  [ -n "$package" ] || {
    echo "build-image: apt knows no $meta: Debian 12 has it in bookworm or bookworm-security; add that to its sources" >&2
    exit 1
  }

  echo "build-image: downloading $package"
  # Outdated lists name packages that the mirror no longer has.
  (cd "$scratch" && apt-get download -qq "$package" 2>/dev/null) || {
    apt-get update -qq
    package=$(find_kernel_package "$meta")
    (cd "$scratch" && apt-get download -qq "$package")
  }
  dpkg -x "$scratch"/*.deb "$scratch/x"
  release=$(ls "$scratch/x/lib/modules")

  rm -rf "$cache/$kind/modules"
  mkdir -p "$cache/$kind/modules"
  for module in ${!modules}; do
    module=$scratch/x/lib/modules/$release/kernel/$module.ko
    # Newer kernels have them compressed.
    [ ! -e "$module.xz" ] || xz -d "$module.xz"
    cp "$module" "$cache/$kind/modules/"
  done
  # The kernel comes last: it marks a complete download.
  mv "$scratch/x/boot/vmlinuz-$release" "$cache/$kind/vmlinuz"
  rm -rf "$scratch"
}

find_kernel_package() { # meta package
  # apt-cache fails if it does not know the package; the result is then empty.
  { apt-cache depends "$1" 2>/dev/null || true; } | sed -n 's/^ *Depends: \(linux-image-[0-9].*-amd64\)$/\1/p' | head -n 1
}

# --- programs

# /sbin is not in every user's PATH.
program() {
  PATH=$PATH:/usr/sbin:/sbin command -v "$1" || { echo "build-image: no program $1" >&2; exit 1; }
}

# Programs that busybox lacks, or has with fewer options.
base_programs() { # guest
  for name in mke2fs e2fsck resize2fs dd fallocate split; do program "$name"; done
  # An emulated CPU takes too long to unpack what it does not use.
  [ "$1" != uml ] || for name in mkfs.xfs xfs_repair mkfs.btrfs btrfs dmsetup; do program "$name"; done
  [ "$1" != zoned ] || for name in blkzone mkfs.btrfs btrfs truncate; do program "$name"; done
}

# The program files and the libraries they are linked with.
with_libraries() {
  local file
  for file in "$@"; do
    echo "$file"
    ldd "$file" | grep -o '/[^ ]*' || true
  done | sort -u
}

inputs() { # guest
  find "$here/init" "$here/scenarios" "$here/build-image.sh" "$here/queue-reset.c" -type f
  find "$cache/$1" -name '*.ko'
  [ "$1" != uml ] || program linux.uml
  program busybox
  # shellcheck disable=SC2046  # one word per program
  with_libraries $(base_programs "$1") "$(program fio)"
}

# Names, sizes and times: a package may bring a newer file with an older date.
fingerprint() { inputs "$1" | LC_ALL=C sort | xargs -d '\n' stat -L -c '%n %s %Y' | sha256sum; }

copy_programs() { # tree, programs…
  local tree=$1 file
  shift
  mkdir -p "$tree/usr/bin"
  with_libraries "$@" | while read -r file; do
    cp -L --parents "$file" "$tree"
  done
  # Wherever they are on this machine, the guest has them in one directory.
  for file in "$@"; do
    [ -e "$tree/usr/bin/${file##*/}" ] || mv "$tree$file" "$tree/usr/bin/"
  done
}

archive() { # tree, output
  (cd "$1" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) >"$2"
}

build_initramfs() { # guest
  local tree modules=modules_$1 module
  tree=$(mktemp -d "$cache/tree.XXXXXX")

  mkdir -p "$tree"/base/{bin,dev,etc,lib/modules,mnt,proc,sys,tmp,guest} "$tree/fio"
  cp "$(program busybox)" "$tree/base/bin/busybox"
  # shellcheck disable=SC2046
  copy_programs "$tree/base" $(base_programs "$1")
  ln -s mke2fs "$tree/base/usr/bin/mkfs.ext4"
  cp /etc/mke2fs.conf "$tree/base/etc/"
  cp "$cache/$1"/modules/*.ko "$tree/base/lib/modules/"
  for module in ${!modules}; do echo "${module##*/}.ko"; done >"$tree/base/lib/modules/order"
  cp -r "$here/scenarios" "$tree/base/guest/"
  install -m 755 "$here/init" "$tree/base/init"

  # A separate driver, without libraries.
  [ "$1" != qemu ] || gcc -static -O2 -Wall -o "$tree/base/usr/bin/queue-reset" "$here/queue-reset.c"

  copy_programs "$tree/fio" "$(program fio)"

  # Not compressed: an emulated CPU takes longer to unpack than to read.
  # The kernel accepts archives one after the other.
  archive "$tree/base" "$cache/$1/initramfs.cpio"
  archive "$tree/fio" "$tree/fio.cpio"
  cat "$cache/$1/initramfs.cpio" "$tree/fio.cpio" >"$cache/$1/initramfs-fio.cpio"
  rm -rf "$tree"
}

for kind in "$@"; do
  mkdir -p "$cache/$kind"
  case $kind in
  qemu) fetch_kernel qemu linux-image-cloud-amd64 ;;
  zoned) fetch_kernel zoned linux-image-6.12-amd64 ;;
  esac
  if [ "$kind" = uml ] && [ "$(cat "$cache/uml/release" 2>/dev/null)" != "$(uml_tree)" ]; then
    fetch_uml
    uml_tree >"$cache/uml/release"
  fi
  if [ "$(cat "$cache/$kind/fingerprint" 2>/dev/null)" != "$(fingerprint "$kind")" ]; then
    rm -f "$cache/$kind/fingerprint"
    build_initramfs "$kind"
    fingerprint "$kind" >"$cache/$kind/fingerprint"
  fi
done
