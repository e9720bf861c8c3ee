#!/usr/bin/env bash
# Starts packaging/domain.xml with libvirt and QEMU on a system that systemd has booted, with a disk of vmm-blk@example, as
# Docs/operating.md says. Scripts/package-test.sh runs it inside a bare Debian.
#
#   package-libvirt.sh vmm-blk.deb vmlinuz initramfs
#
# The guest is that of Scripts/guest with its scenario "killed": it writes, says BEAT for each answer, and checks all of it.
set -euo pipefail

deb=$1 kernel=$2 initramfs=$3
folder=/run/vmm-blk
console=/var/log/libvirt/qemu/example.console
# Seconds after which any wait counts as hung. This is not a measure of speed: QEMU emulates the CPU.
patience=900

step() { echo "step: $*"; }
fail() {
  echo "failed: $*"
  journalctl --no-pager -b -u 'vmm-blk@*' -u libvirtd 2>&1 | tail -n 40 || true
  tail -n 20 /var/log/libvirt/qemu/example.log $console 2>/dev/null || true
  exit 1
}
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR
wait_until() { # what, command…
  local what=$1 end=$((SECONDS + patience))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || fail "$what: not within $patience seconds"
    sleep 0.2
  done
}
state() { virsh domstate example | head -n 1; }
is_off() { [ "$(state)" = "shut off" ]; }
beats() { grep -ac BEAT $console || true; }
goes_on() {
  local before
  before=$(beats)
  more() {
    [ "$(state)" = running ] || fail "the domain is $(state)"
    [ "$(beats)" -gt $((before + 1)) ]
  }
  wait_until "the guest goes on" more
}
main_pid() { systemctl show --value -p MainPID vmm-blk@example; }

step "the package and its first disk"
dpkg -i "$deb" >/root/dpkg 2>&1 || fail "dpkg: $(cat /root/dpkg)"
truncate -s 256M /var/lib/vmm-blk/example.img
chown vmm-blk: /var/lib/vmm-blk/example.img
cp /usr/share/doc/vmm-blk/examples/example.json /etc/vmm-blk/example.json

step "the domain"
virsh version
# An emulated CPU, less memory, and a kernel that logs to a serial line; the rest is the example.
sed -e "s/<domain type='kvm'>/<domain type='qemu'>/" -e "s/<memory unit='GiB'>1</<memory unit='MiB'>768</" \
  -e "s|^    <type arch.*|&<kernel>$kernel</kernel><initrd>$initramfs</initrd><cmdline>console=ttyS0 panic=-1 scenarios=killed beats=40</cmdline>|" \
  -e "s|<boot order='1'/>||" -e "s|<console type='pty'/>|<serial type='file'><source path='$console'/></serial>|" \
  /usr/share/doc/vmm-blk/examples/domain.xml >/root/example.xml
virsh define --validate /root/example.xml
# With "reconnect", QEMU tries every second until a server listens, and virsh waits for that.
virsh start example &
start=$!
log=/var/log/libvirt/qemu/example.log
waits() {
  kill -0 $start 2>/dev/null || fail "the domain does not wait for its server"
  grep -qs 'Unable to connect' $log
}
wait_until "QEMU finds no server" waits
systemctl enable --now vmm-blk@example
wait $start || fail "the domain does not start when its server is there"
wait_until "the guest boots" grep -aq BEAT $console
pid=$(cat /run/libvirt/qemu/example.pid)
tr '\0' '\n' <"/proc/$pid/cmdline" | grep -A 1 -E 'vhost-user|memory-backend|chardev' || true
grep -E '^(Uid|Gid|Groups):' "/proc/$pid/status"
vmm-blk ctl --control $folder/example.ctl status example.sock
goes_on

step "the server is restarted and killed under the domain"
server=$(main_pid)
systemctl restart vmm-blk@example
[ "$(main_pid)" != "$server" ] || fail "the restart has left the process"
goes_on
systemctl kill --kill-who=main -s KILL vmm-blk@example
goes_on
wait_until "the guest ends" is_off
grep -a -E 'INFO|RESULT' $console
grep -aq 'RESULT killed ok' $console || fail "the guest is not content"

step "what libvirt does not know"
: >$console
virsh start example
wait_until "the guest boots again" grep -aq BEAT $console
! virsh domblkstat example vda >/root/stat 2>&1 || fail "libvirt has statistics: the page says it has none"
cat /root/stat
! virsh blockresize example vda 300M >/root/stat 2>&1 || fail "libvirt can resize: the page says it cannot"
cat /root/stat
truncate -s 300M /var/lib/vmm-blk/example.img
vmm-blk ctl --control $folder/example.ctl resize example.sock
virsh destroy example
idle() { vmm-blk ctl --control $folder/example.ctl status | grep -q idle; }
wait_until "the server sees the end of its front-end" idle
virsh undefine example
journalctl --no-pager -q -b -o cat -u vmm-blk@example | grep -v 'the driver chose' | tail -n 20
step "all steps done"
