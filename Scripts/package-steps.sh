#!/usr/bin/env bash
# Follows Docs/operating.md step by step, as an operator would, on a system that systemd has booted and that has never seen the
# package. Scripts/package-test.sh runs it inside a bare Debian.
#
#   package-steps.sh vmm-blk.deb
set -euo pipefail

deb=$1
program=/usr/bin/vmm-blk
folder=/run/vmm-blk
images=/var/lib/vmm-blk
# Seconds after which any wait counts as hung. This is not a measure of speed.
patience=300

step() { echo "step: $*"; }
fail() {
  echo "failed: $*"
  systemctl --no-pager status 'vmm-blk@*' 2>&1 | tail -n 60 || true
  journalctl --no-pager -b -u 'vmm-blk@*' 2>&1 | tail -n 60 || true
  tail -n 20 "$guest" 2>/dev/null || true
  exit 1
}
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR
guest=/root/guest.out

wait_until() { # what, command…
  local what=$1 end=$((SECONDS + patience))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || fail "$what: not within $patience seconds"
    sleep 0.1
  done
}
property() { systemctl show --value -p "$2" "vmm-blk@$1"; }
holds() { [ "$(property "$1" "$2")" = "$3" ] || fail "$1: $2 is '$(property "$1" "$2")', not '$3'"; }
refused() { # what, command…
  local what=$1
  shift
  ! "$@" >/root/refused 2>&1 || fail "$what was not refused: $(cat /root/refused)"
}
ctl() { "$program" ctl --control "$folder/$1.ctl" "${@:2}"; }
verify() { "$program" guest --socket-path "$folder/$1" verify --length 16M "${@:2}" || fail "the guest on $1 has seen something wrong"; }
# Whether systemd has started another process for the server.
another_process() { local now; now=$(property "$1" MainPID); [ "$now" != 0 ] && [ "$now" != "$2" ]; }
has_ended() { [ "$(property "$1" ActiveState)" = inactive ]; }
said() { journalctl --no-pager -q -b -u "vmm-blk@$1" --grep "$2" >/dev/null; }

# A guest that survives the loss of its server, and has enough work left.
start_guest() { # socket
  # The output of the previous guest.
  rm -f "$guest"
  "$program" guest --socket-path "$folder/$1" verify --reconnect --bytes 128M --length 64M --report-every 100 >"$guest" 2>&1 &
  guest_pid=$!
  wait_until "the guest begins" begun
}
begun() {
  kill -0 "$guest_pid" 2>/dev/null || fail "the guest has ended"
  grep -qs answered "$guest"
}
guest_ends() { # how often its server came back
  wait "$guest_pid" || fail "the guest has seen something wrong"
  grep -v answered "$guest"
  grep -q "went away and came back $1 times" "$guest" || fail "the guest's server did not come back $1 times"
}

step "the package is installed"
dpkg -i "$deb" >/root/dpkg 2>&1 || fail "dpkg: $(cat /root/dpkg)"
[ "$(stat -c %U:%a $images)" = vmm-blk:750 ] || fail "$images: $(stat -c %U:%a $images)"

step "the first disk"
truncate -s 10G $images/example.img
chown vmm-blk: $images/example.img
cp /usr/share/doc/vmm-blk/examples/example.json /etc/vmm-blk/example.json
systemctl enable --now vmm-blk@example
# It returns when the sockets accept connections, so no wait is needed.
holds example ActiveState active
holds example SubState running
holds example Result success
systemctl status --no-pager --lines 0 vmm-blk@example
[ "$(stat -c %U:%G:%a $folder/example.sock)" = vmm-blk:kvm:770 ] || fail "the socket: $(stat -c %U:%G:%a $folder/example.sock)"
ctl example status
verify example.sock --bytes 16M

step "who may connect"
useradd --system --groups kvm front-end
useradd --system stranger
runuser -u front-end -- "$program" guest --socket-path $folder/example.sock info >/dev/null || fail "a front-end of the group kvm may not connect"
refused "a stranger's connection" runuser -u stranger -- "$program" guest --socket-path $folder/example.sock info
grep -q 'Permission denied\|permission' /root/refused || fail "a stranger was not refused for the permission: $(cat /root/refused)"
refused "a front-end at the control socket" runuser -u front-end -- "$program" ctl --control $folder/example.ctl status

step "a disk is added, a mistake changes nothing, a disk goes"
truncate -s 64M $images/second.img
chown vmm-blk: $images/second.img
start_guest example.sock
cp /etc/vmm-blk/example.json /etc/vmm-blk/one
pid=$(property example MainPID)
# The last line is the end of the list.
sed -i '$d' /etc/vmm-blk/example.json
echo ", { \"blk-file\": \"$images/second.img\", \"socket-path\": \"$folder/second.sock\" } ]" >>/etc/vmm-blk/example.json
systemctl reload vmm-blk@example
verify second.sock --bytes 8M
echo nonsense >/etc/vmm-blk/example.json
refused "a reload of a file with a mistake" systemctl reload vmm-blk@example
verify second.sock --bytes 8M
cp /etc/vmm-blk/one /etc/vmm-blk/example.json
# SIGHUP does the same.
systemctl kill --kill-who=main -s HUP vmm-blk@example
gone() { [ ! -e $folder/second.sock ]; }
wait_until "the second disk goes" gone
holds example MainPID "$pid"
holds example ActiveState active
guest_ends 0

step "a restart under a guest"
start_guest example.sock
pid=$(property example MainPID)
systemctl restart vmm-blk@example
another_process example "$pid" || fail "the restart has left the process"
guest_ends 1

step "a stop and a start under a guest"
start_guest example.sock
systemctl stop vmm-blk@example
holds example Result success
holds example ActiveState inactive
[ ! -e $folder/example.sock ] || fail "the socket is still there"
systemctl start vmm-blk@example
guest_ends 1

step "the server is killed under a guest"
start_guest example.sock
pid=$(property example MainPID)
systemctl kill --kill-who=main -s KILL vmm-blk@example
wait_until "systemd starts a killed server again" another_process example "$pid"
guest_ends 1
holds example NRestarts 1

step "the server hangs under a guest: the watchdog"
start_guest example.sock
pid=$(property example MainPID)
kill -STOP "$pid"
wait_until "systemd starts a hanging server again" another_process example "$pid"
guest_ends 1
holds example NRestarts 2
said example 'Watchdog timeout' || fail "the journal says nothing of the watchdog"

step "another server takes over under a guest"
start_guest example.sock
systemd-run --quiet --unit=vmm-blk-example-next -p Type=notify -p User=vmm-blk -p Group=kvm -p UMask=0007 \
  -p SupplementaryGroups=disk -p LimitNOFILE=524288 -p LimitMEMLOCK=infinity \
  vmm-blk serve --take-over $folder/example.ctl --disks /etc/vmm-blk/example.json --control $folder/example-next.ctl
wait_until "the server before ends" has_ended example
holds example Result success
guest_ends 0
systemctl stop vmm-blk-example-next
systemctl start vmm-blk@example

step "options in a drop-in: metrics"
mkdir -p /etc/systemd/system/vmm-blk@example.service.d
sed -n '/^    \[Service\]/,/^$/s/^    //p' /usr/share/doc/vmm-blk/Docs/operating.md >/etc/systemd/system/vmm-blk@example.service.d/override.conf
cat /etc/systemd/system/vmm-blk@example.service.d/override.conf
systemctl daemon-reload
systemctl restart vmm-blk@example
exec 5<>/dev/tcp/127.0.0.1/9100
printf 'GET /metrics HTTP/1.0\r\n\r\n' >&5
grep -q '^vmm_blk_' <&5 || fail "there are no metrics"
exec 5>&-

step "a block device"
loop=''
if mknod /dev/loop-control c 10 237 2>/dev/null && loop=$(losetup -f 2>/dev/null); then
  truncate -s 64M $images/device
  [ -e "$loop" ] || mknod "$loop" b 7 "${loop#/dev/loop}"
  trap 'losetup -d $loop' EXIT
  losetup "$loop" $images/device
  # The mode that udev sets.
  chown root:disk "$loop"
  chmod 660 "$loop"
  echo "[{\"blk-file\": \"$loop\", \"socket-path\": \"$folder/device.sock\"}]" >/etc/vmm-blk/device.json
  systemctl start vmm-blk@device
  verify device.sock --bytes 8M
  ctl device status | tail -n 1
  systemctl stop vmm-blk@device
else
  echo "skipped: there are no loop devices here"
fi

step "a description that is no description is not tried again"
echo nonsense >/etc/vmm-blk/wrong.json
refused "a start with it" systemctl start vmm-blk@wrong
holds wrong ActiveState failed
holds wrong ExecMainStatus 64
holds wrong NRestarts 0
echo '[{"blk-file": "/var/lib/vmm-blk/none.img", "socket-path": "/run/vmm-blk/none.sock"}]' >/etc/vmm-blk/missing.json
refused "a start without the image" systemctl start vmm-blk@missing
systemctl stop vmm-blk@missing
said missing 'none.img' || fail "the journal does not name the missing image"

step "socket activation"
sed 's/example/late/g' /etc/vmm-blk/example.json >/etc/vmm-blk/late.json
truncate -s 64M $images/late.img
chown vmm-blk: $images/late.img
systemctl enable --now vmm-blk@late.socket
[ "$(stat -c %U:%G:%a $folder/late.sock)" = vmm-blk:kvm:660 ] || fail "the socket: $(stat -c %U:%G:%a $folder/late.sock)"
holds late ActiveState inactive
runuser -u front-end -- "$program" guest --socket-path $folder/late.sock verify --bytes 8M || fail "the guest at the activated socket"
holds late ActiveState active
! said late 'warning' || fail "the activated server warns"
# The socket outlives its service, and starts it again.
systemctl stop vmm-blk@late.service
verify late.sock --bytes 8M
systemctl disable --now vmm-blk@late.socket vmm-blk@late.service
[ ! -e $folder/late.sock ] || fail "the activated socket is still there"
verify example.sock --bytes 8M

step "hardening"
systemd-analyze security --no-pager vmm-blk@example | tail -n 1
systemd-analyze security --no-pager --threshold=20 vmm-blk@example >/dev/null || fail "the unit is not as closed as it was"
pid=$(property example MainPID)
grep -E '^(NoNewPrivs|Seccomp|CapEff|CapBnd):' "/proc/$pid/status"

step "what the journal says: all of it at the end, and the warnings"
journalctl --no-pager -q -b -u vmm-blk@example | tail -n 25
journalctl --no-pager -q -b -p warning -u vmm-blk@example | grep vmm-blk >/root/warnings || fail "the journal knows no level of its lines"
cat /root/warnings
! grep -q 'a front-end connected' /root/warnings || fail "the journal takes news for warnings"

step "an update leaves running servers alone; the removal ends them"
dpkg -i "$deb" >/root/dpkg 2>&1 || fail "dpkg: $(cat /root/dpkg)"
holds example MainPID "$pid"
holds example ActiveState active
verify example.sock --bytes 8M
dpkg --purge vmm-blk >/root/dpkg 2>&1 || fail "dpkg: $(cat /root/dpkg)"
! kill -0 "$pid" 2>/dev/null || fail "the server still runs"
[ ! -e $program ] || fail "the program is still there"
[ -z "$(find /etc/systemd/system -name 'vmm-blk@*' -type l)" ] || fail "units that are gone are still enabled"
[ -e $images/example.img ] || fail "an image has gone"
step "all steps done"
