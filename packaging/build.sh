#!/usr/bin/env bash
# Makes a Debian package and a tarball of vmm-blk, with the Swift runtime inside, in .package/. Both have the same program: a Debian
# system has the other libraries that it needs as packages, the tarball contains them.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

out=.package
build=.build-package
version=$(sed -n 's/.*static let text = "vmm-blk \(.*\)"/\1/p' Sources/vmm-blk/Version.swift)
[ -n "$version" ] || { echo "package: Sources/vmm-blk/Version.swift says no version" >&2; exit 1; }
date=$(date -u +%Y-%m-%d)
if commit=$(git rev-parse --short=12 HEAD 2>/dev/null); then
  # Two builds of one commit are identical, as far as the compiler permits.
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
  VMM_BLK_COMMIT=$(git describe --always --abbrev=12 --dirty=+ --exclude='*')
  export SOURCE_DATE_EPOCH VMM_BLK_COMMIT
  date=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%d)
  # Only the commit with the release's tag is the release.
  [ "$(git describe --tags --exact-match 2>/dev/null || true)" = "v$version" ] ||
    version="$version+git$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d).$commit"
fi
architecture=$(dpkg --print-architecture)

# shellcheck disable=SC2016 # for the loader, not the shell
swift build -c release --product vmm-blk --static-swift-stdlib --scratch-path "$build" \
  -Xlinker -rpath -Xlinker '$ORIGIN/../lib/vmm-blk'
program=$build/release/vmm-blk
"$program" --version | grep -qF "${VMM_BLK_COMMIT-}" || { echo "package: the program shows another commit than $VMM_BLK_COMMIT" >&2; exit 1; }

rm -rf "$out"
tree=$out/tree
mkdir -p "$tree"
put() { # mode from to...
  local mode=$1 from=$2 to
  for to in "${@:3}"; do install -D -m "$mode" "$from" "$tree/$to"; done
}
install -D -m 755 "$program" "$tree/usr/bin/vmm-blk"
strip --strip-unneeded "$tree/usr/bin/vmm-blk"
program=$tree/usr/bin/vmm-blk

"$program" --experimental-dump-help | packaging/manual.py "vmm-blk $version" "$date" "$tree/usr/share/man/man1"
gzip -9n "$tree"/usr/share/man/man1/*.1
share=usr/share
for pair in bash:bash-completion/completions/vmm-blk zsh:zsh/vendor-completions/_vmm-blk fish:fish/vendor_completions.d/vmm-blk.fish; do
  mkdir -p "$(dirname "$tree/$share/${pair#*:}")"
  "$program" --generate-completion-script "${pair%%:*}" >"$tree/$share/${pair#*:}"
done
put 644 packaging/vmm-blk@.service 'lib/systemd/system/vmm-blk@.service'
put 644 packaging/vmm-blk@.socket 'lib/systemd/system/vmm-blk@.socket'
put 644 packaging/vmm-blk.sysusers usr/lib/sysusers.d/vmm-blk.conf
# Where management software looks for back-ends (QEMU's docs/interop/vhost-user.json).
put 644 packaging/50-vmm-blk.json $share/qemu/vhost-user/50-vmm-blk.json
put 644 packaging/example.json $share/doc/vmm-blk/examples/example.json
put 644 packaging/domain.xml $share/doc/vmm-blk/examples/domain.xml
put 644 LICENSE $share/doc/vmm-blk/copyright
# Licences of what is linked into the program: the Swift runtime, and the packages.
swift=$(dirname "$(dirname "$(readlink -f "$(command -v swift)")")")
put 644 "$swift/share/swift/LICENSE.txt" $share/doc/vmm-blk/licenses/swift.txt
for checkout in "$build"/checkouts/*; do
  for file in "$checkout"/LICENSE* "$checkout"/NOTICE*; do
    [ -f "$file" ] || continue
    put 644 "$file" "$share/doc/vmm-blk/licenses/$(basename "$checkout")-$(basename "${file%.*}" | tr '[:upper:]' '[:lower:]').txt"
  done
done
put 755 Examples/driver.py $share/doc/vmm-blk/examples/driver.py
Scripts/book.py package "$tree/$share/doc/vmm-blk"
gzip -9nc CHANGELOG.md >"$tree/$share/doc/vmm-blk/changelog.gz"
install -d -m 755 "$tree/etc/vmm-blk"

# The system's packages that it needs, as dpkg determines them.
mkdir -p "$out/shlibs/debian"
printf 'Source: vmm-blk\n\nPackage: vmm-blk\nArchitecture: any\n' >"$out/shlibs/debian/control"
depends=$(cd "$out/shlibs" && dpkg-shlibdeps -O -e../tree/usr/bin/vmm-blk 2>/dev/null | sed -n 's/^shlibs:Depends=//p')
[ -n "$depends" ] || { echo "package: dpkg-shlibdeps does not list what the program needs" >&2; exit 1; }

mkdir -p "$tree/DEBIAN"
install -m 755 packaging/postinst packaging/prerm packaging/postrm "$tree/DEBIAN/"
cat >"$tree/DEBIAN/control" <<EOF
Package: vmm-blk
Version: $version
Architecture: $architecture
Maintainer: vmm-blk developers <vmm-blk@localhost>
Installed-Size: $(du -sk --exclude=DEBIAN "$tree" | cut -f1)
Depends: $depends, passwd
Enhances: qemu-system-x86, libvirt-daemon
Section: otherosfs
Priority: optional
Description: virtio block device in userspace
 Serves disk images and block devices to virtual machines over vhost-user
 sockets, for QEMU, Cloud Hypervisor and other VMMs, or to drivers that share
 a memory file. With systemd units, an operator's command and figures for
 Prometheus.
EOF
deb=$out/vmm-blk_${version}_$architecture.deb
dpkg-deb --root-owner-group -Zxz --build "$tree" "$deb" >/dev/null

# The same without a package manager: unpack it anywhere.
name=vmm-blk-$version-linux-$(uname -m)
root=$out/$name
mkdir -p "$root/lib/vmm-blk" "$root/share" "$root/systemd"
cp -a "$tree/usr/bin" "$root/"
cp -a "$tree/usr/share/man" "$tree/usr/share/bash-completion" "$tree/usr/share/zsh" "$tree/usr/share/fish" "$root/share/"
cp -a "$tree/usr/share/doc/vmm-blk" "$root/doc"
cp -a "$tree"/lib/systemd/system/* packaging/vmm-blk.sysusers packaging/50-vmm-blk.json "$root/systemd/"
ldd "$program" | awk '$1 ~ /^lib(uring|aio|seccomp)\.so/ {print $3}' | while read -r library; do
  cp -L "$library" "$root/lib/vmm-blk/"
done
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-$(date +%s)}" -C "$out" -cf - "$name" |
  zstd -q -19 -o "$out/$name.tar.zst"

rm -rf "$tree" "$root" "$out/shlibs"
echo "package: $deb"
echo "package: $out/$name.tar.zst"
