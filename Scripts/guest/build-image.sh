#!/usr/bin/env bash
# Builds what QEMU boots, in .guest/ at the top of the repository:
#
#   vmlinuz             Debian's cloud kernel, downloaded but not installed
#   initramfs.cpio      busybox, virtio modules, e2fsprogs and our scenarios
#   initramfs-fio.cpio  the same and fio, whose many libraries take longer to load
#
# Does nothing when what these are made from has not changed.
# To move to a newer kernel, delete .guest/ and run this again.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=$root/.guest

# Inserted in this order: each needs those before it.
modules="virtio/virtio_ring virtio/virtio virtio/virtio_pci_legacy_dev
  virtio/virtio_pci_modern_dev virtio/virtio_pci block/virtio_blk"

"$root/Scripts/setup.sh" guest
mkdir -p "$cache"

# Guests may be started from several shells at once; only one of them builds.
exec 9>"$cache/lock"
flock 9

fetch_kernel() {
  local scratch package release
  scratch=$(mktemp -d "$cache/fetch.XXXXXX")
  # shellcheck disable=SC2064  # the directory's name is wanted as it is now
  trap "rm -rf '$scratch'" EXIT

  # The meta package names the current kernel. Without package lists it is unknown.
  package=$(find_kernel_package)
  if [ -z "$package" ]; then
    apt-get update -qq
    package=$(find_kernel_package)
  fi
  [ -n "$package" ] || { echo "build-image: apt knows no linux-image-cloud-amd64" >&2; exit 1; }

  echo "build-image: downloading $package"
  # Lists that are older than the mirror name packages that are gone.
  (cd "$scratch" && apt-get download -qq "$package" 2>/dev/null) || {
    apt-get update -qq
    package=$(find_kernel_package)
    (cd "$scratch" && apt-get download -qq "$package")
  }
  dpkg -x "$scratch"/*.deb "$scratch/x"
  release=$(ls "$scratch/x/lib/modules")

  rm -rf "$cache/modules"
  mkdir "$cache/modules"
  for module in $modules; do
    cp "$scratch/x/lib/modules/$release/kernel/drivers/$module.ko" "$cache/modules/"
  done
  # The kernel last: it stands for a complete download.
  mv "$scratch/x/boot/vmlinuz-$release" "$cache/vmlinuz"
  rm -rf "$scratch"
  trap - EXIT
}

find_kernel_package() {
  apt-cache depends linux-image-cloud-amd64 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*-cloud-amd64\)$/\1/p' | head -n 1
}

# /sbin is not in everybody's PATH.
program() { PATH=$PATH:/usr/sbin:/sbin command -v "$1"; }

# Programs that busybox has not, or has with fewer options.
base_programs() {
  for name in mke2fs e2fsck dd fallocate split; do program "$name"; done
}

# The program files and the libraries they are linked with.
with_libraries() {
  local file
  for file in "$@"; do
    echo "$file"
    ldd "$file" | grep -o '/[^ ]*' || true
  done | sort -u
}

inputs() {
  find "$here/init" "$here/scenarios" "$here/build-image.sh" -type f
  echo "$cache/vmlinuz"
  program busybox
  # shellcheck disable=SC2046  # one word per program
  with_libraries $(base_programs) "$(program fio)"
}

# Names, sizes and times: a package may bring a newer file with an older date.
fingerprint() { inputs | LC_ALL=C sort | xargs stat -L -c '%n %s %Y' | sha256sum; }

copy_programs() { # tree, programs…
  local tree=$1 file
  shift
  mkdir -p "$tree/usr/bin"
  with_libraries "$@" | while read -r file; do
    cp -L --parents "$file" "$tree"
  done
  # Wherever this machine keeps them, the guest has them in one directory.
  for file in "$@"; do
    [ -e "$tree/usr/bin/${file##*/}" ] || mv "$tree$file" "$tree/usr/bin/"
  done
}

archive() { # tree, output
  (cd "$1" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) >"$2"
}

build_initramfs() {
  local tree
  tree=$(mktemp -d "$cache/tree.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$tree'" EXIT

  mkdir -p "$tree"/base/{bin,dev,etc,lib/modules,mnt,proc,sys,tmp,guest} "$tree/fio"
  cp "$(program busybox)" "$tree/base/bin/busybox"
  # shellcheck disable=SC2046
  copy_programs "$tree/base" $(base_programs)
  ln -s mke2fs "$tree/base/usr/bin/mkfs.ext4"
  cp /etc/mke2fs.conf "$tree/base/etc/"
  cp "$cache"/modules/*.ko "$tree/base/lib/modules/"
  for module in $modules; do echo "${module##*/}.ko"; done >"$tree/base/lib/modules/order"
  cp -r "$here/scenarios" "$tree/base/guest/"
  install -m 755 "$here/init" "$tree/base/init"

  copy_programs "$tree/fio" "$(program fio)"

  # Not compressed: an emulated processor takes longer to unpack than to read.
  # The kernel accepts archives one after the other.
  archive "$tree/base" "$cache/initramfs.cpio"
  archive "$tree/fio" "$tree/fio.cpio"
  cat "$cache/initramfs.cpio" "$tree/fio.cpio" >"$cache/initramfs-fio.cpio"
  rm -rf "$tree"
  trap - EXIT
}

[ -e "$cache/vmlinuz" ] || fetch_kernel

if [ "$(cat "$cache/fingerprint" 2>/dev/null)" != "$(fingerprint)" ]; then
  rm -f "$cache/fingerprint"
  build_initramfs
  fingerprint >"$cache/fingerprint"
fi
