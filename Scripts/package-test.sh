#!/usr/bin/env bash
# Installs the package of .package/ into a bare Debian, unpacks the tarball in another one, and serves a guest in each. Then boots the
# first one and follows Docs/operating.md there. Leaves nothing behind. Runs as root, and needs a Debian mirror.
#
#   package-test.sh [--libvirt]     also starts packaging/domain.xml there, with libvirt and an emulating QEMU
set -euo pipefail
cd "$(dirname "$0")/.."

suite=bookworm
libvirt=no
[ "${1:-}" != --libvirt ] || libvirt=yes
fail() { echo "package-test: $*" >&2; exit 1; }
skip() { echo "package-test: skipped: $*"; exit 0; }

deb=$(ls .package/*.deb 2>/dev/null) || fail "there is no package: make one with 'make package'"
tarball=$(ls .package/*.tar.zst)
[ "$(id -u)" -eq 0 ] || skip "it needs root for a system of its own"
command -v debootstrap >/dev/null || skip "there is no debootstrap: install it"

work=$(mktemp -d)
mounted=()
cleanup() {
  # Processes that a failed step has left.
  losetup -n -O NAME,BACK-FILE | while read -r device file; do [[ $file != "$work"/* ]] || losetup -d "$device"; done
  for place in "${mounted[@]}"; do umount -l "$place" 2>/dev/null || true; done
  # Nothing of the host may be mounted below the removed folder.
  if grep -q " $work" /proc/mounts; then
    echo "package-test: something is still mounted below $work, which is left there" >&2
  else
    rm -rf "$work"
  fi
}
trap cleanup EXIT
trap 'exit 130' INT TERM

mirror=$(sed -n 's/^URIs: *\(http[^ ]*\).*/\1/p; s/^deb \(\[.*\] \)\?\(http[^ ]*\).*/\2/p' /etc/apt/sources.list.d/*.sources \
  /etc/apt/sources.list 2>/dev/null | grep -v security | head -n 1 || true)
if ! timeout -k 5 600 debootstrap --variant=minbase "$suite" "$work/installed" "${mirror:-http://deb.debian.org/debian}" \
  >"$work/log" 2>&1; then
  tail -n 3 "$work/log" >&2
  skip "debootstrap cannot make a bare Debian here"
fi
# Before anything is installed.
cp -a --reflink=auto "$work/installed" "$work/unpacked"
cp /etc/resolv.conf "$work/installed/etc/resolv.conf" 2>/dev/null || true
# The proxy or mirror that this machine is configured with.
cp -a /etc/apt/apt.conf.d/*proxy* "$work/installed/etc/apt/apt.conf.d/" 2>/dev/null || true
for root in installed unpacked; do
  mount -t proc proc "$work/$root/proc"
  mounted+=("$work/$root/proc")
done

inside() { # root command...
  chroot "$work/$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "${@:2}"
}
step() { echo "package-test: $*"; }

# A disk in a bare system, and a guest that checks every byte of it.
serve() { # root program
  inside "$1" timeout -k 5 120 bash -euc '
    program=$1 work=$(mktemp -d)
    truncate -s 64M "$work/disk"
    "$program" serve --blk-file "$work/disk" --socket-path "$work/s" --control "$work/ctl" >"$work/out" 2>"$work/errors" &
    server=$!
    trap "kill -9 $server 2>/dev/null || true" EXIT
    for try in $(seq 600); do [ -s "$work/out" ] && break; sleep 0.1; done
    "$program" guest verify --socket-path "$work/s" --bytes 16M || { cat "$work/errors"; exit 1; }
    "$program" ctl --control "$work/ctl" status
    "$program" ctl --control "$work/ctl" drain
    wait $server || { echo "the server ended with status $?"; cat "$work/errors"; exit 1; }
    [ ! -e "$work/s" ]
    trap - EXIT
    rm -rf "$work"' serve "$2"
}

step "installing $(basename "$deb")"
cp "$deb" "$work/installed/tmp/vmm-blk.deb"
inside installed apt-get update -qq >"$work/log" 2>&1 || { cat "$work/log"; skip "the mirror cannot be reached from the new system"; }
inside installed apt-get install -y -qq --no-install-recommends /tmp/vmm-blk.deb >"$work/log" 2>&1 ||
  { cat "$work/log"; fail "the package cannot be installed"; }
inside installed vmm-blk --version
inside installed getent passwd vmm-blk >/dev/null || fail "there is no user vmm-blk"
serve installed vmm-blk

step "what management software asks"
binary=$(inside installed sed -n 's/.*"binary": "\(.*\)",/\1/p' /usr/share/qemu/vhost-user/50-vmm-blk.json)
inside installed "$binary" --print-capabilities

step "manual pages, completions and units"
inside installed apt-get install -y -qq --no-install-recommends man-db systemd >"$work/log" 2>&1 ||
  { cat "$work/log"; fail "man-db and systemd cannot be installed"; }
inside installed man -w vmm-blk vmm-blk-serve vmm-blk-ctl
warnings=$(inside installed bash -c 'for page in /usr/share/man/man1/vmm-blk*; do man --warnings=w -l "$page" 2>&1 >/dev/null; done')
[ -z "$warnings" ] || fail "manual pages are not as they should be: $warnings"
inside installed bash -n /usr/share/bash-completion/completions/vmm-blk
warnings=$(inside installed systemd-analyze verify vmm-blk@example.service vmm-blk@example.socket 2>&1) || fail "$warnings"
[ -z "$warnings" ] || fail "the units are not as they should be: $warnings"

step "links of the documents"
links() { # folder of the documents
  local pages
  mapfile -t pages < <(find "$1" -name '*.md')
  [ ${#pages[@]} -gt 0 ] || fail "there are no documents in $1"
  Scripts/book.py links "${pages[@]}" || fail "a reader of the documents in $1 would not find what they link to"
}
links "$work/installed/usr/share/doc/vmm-blk"

step "removing it"
inside installed apt-get purge -y -qq vmm-blk >"$work/log" 2>&1 || { cat "$work/log"; fail "the package cannot be removed"; }
[ ! -e "$work/installed/usr/bin/vmm-blk" ] || fail "the program is still there"

# The operator's page, in a system that has never seen the package.
booted() { # folder, program, arguments…
  local status=0
  Scripts/package-boot.sh "$work/$1" "${@:2}" || status=$?
  case $status in
  0) ;;
  4) step "skipped: that system cannot be booted here" ;;
  *) fail "not every step went as Docs/operating.md says (status $status)" ;;
  esac
}
step "booting it, and following Docs/operating.md"
inside installed apt-get install -y -qq --no-install-recommends systemd-sysv dbus libaio1 liburing2 >"$work/log" 2>&1 ||
  { cat "$work/log"; fail "what boots a system cannot be installed"; }
umount "$work/installed/proc"
cp Scripts/package-steps.sh Scripts/package-libvirt.sh "$work/installed/root/"
cp "$deb" "$work/installed/root/vmm-blk.deb"
if [ $libvirt = yes ]; then
  Scripts/guest/build-image.sh qemu
  cp -a --reflink=auto "$work/installed" "$work/libvirt"
  mount -t proc proc "$work/libvirt/proc"
  mounted+=("$work/libvirt/proc")
  inside libvirt apt-get install -y -qq --no-install-recommends libvirt-daemon-system libvirt-clients qemu-system-x86 >"$work/log" 2>&1 ||
    { cat "$work/log"; fail "libvirt cannot be installed"; }
  umount "$work/libvirt/proc"
  # In a place that QEMU's user can read, too.
  cp .guest/qemu/vmlinuz .guest/qemu/initramfs-fio.cpio "$work/libvirt/opt/"
fi
booted installed /root/package-steps.sh /root/vmm-blk.deb
if [ $libvirt = yes ]; then
  step "starting a domain with libvirt"
  booted libvirt /root/package-libvirt.sh /root/vmm-blk.deb /opt/vmlinuz /opt/initramfs-fio.cpio
fi

step "unpacking $(basename "$tarball")"
zstd -dc "$tarball" | tar -xf - -C "$work/unpacked/opt"
program=$(cd "$work/unpacked" && ls -d opt/*/bin/vmm-blk)
inside unpacked "/$program" --version
links "$work/unpacked/$(dirname "$program")/../doc"
serve unpacked "/$program"

step "all of it is as it should be"
