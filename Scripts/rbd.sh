#!/usr/bin/env bash
# Images of a Ceph cluster as a user has them: sandboxed servers, on a real cluster that this script starts and ends. Its OSD is
# killed under a verified load, and so is the server; disks are added and removed; and finally the cluster never comes back.
#
#   Scripts/rbd.sh [KILLS]     (3 of each; needs a built vmm-blk, which VMM_BLK names, or the one in .build/release)
#
# If Ceph is not installed (Scripts/setup.sh ceph), it prints that and succeeds.
set -euo pipefail

kills=${1:-3}
scripts=$(cd "$(dirname "$0")" && pwd)
program=${VMM_BLK:-$(dirname "$scripts")/.build/release/vmm-blk}
for need in ceph-mon ceph-osd rbd ceph; do
  command -v "$need" >/dev/null || { echo "rbd: skipped, because $need is not installed (Scripts/setup.sh ceph)"; exit 0; }
done

folder=$(mktemp -d /var/tmp/rbd.XXXXXX)
parent=/dev/shm
[ -w "$parent" ] || parent=/var/tmp
cluster=$(mktemp -d "$parent/rbd-cluster.XXXXXX")
conf=$cluster/ceph.conf
server= guest=
finish() {
  for process in $guest $server; do kill -9 "$process" 2>/dev/null || true; done
  wait 2>/dev/null || true
  "$scripts/ceph.sh" remove "$cluster"
  rm -rf "$folder"
}
trap finish EXIT
die() {
  echo "rbd: $*" >&2
  tail -n 20 "$folder"/*.log >&2
  exit 1
}
# The limits are for hangs; every step takes less.
patience=120

serve() { # log, options
  local log=$folder/$1.log
  shift
  : >"$log"
  "$program" serve "$@" >>"$log" 2>&1 &
  server=$!
  timeout "$patience" bash -c "until grep -q ^Serving '$log'; do kill -0 $server || exit 1; sleep 0.01; done" 2>/dev/null ||
    die "the server did not start"
}

stop() { # expected status
  local status=0
  kill -TERM "$server"
  timeout "$patience" tail --pid="$server" -f /dev/null || die "the server does not end"
  wait "$server" || status=$?
  server=
  [ "$status" = "$1" ] || die "the server ended with $status, not with $1"
}

# Waits until it has ended, because the next one needs its locks.
kill_osd() {
  local process
  process=$(cat "$cluster/osd.0.pid")
  kill -9 "$process"
  timeout "$patience" bash -c "while grep -qs '^State:.[^ZX]' /proc/$process/task/*/status; do sleep 0.01; done" ||
    die "the OSD does not end"
}
resume() { "$scripts/ceph.sh" resume "$cluster"; }
step() { echo "rbd: $*, after $SECONDS s"; }

STORE=bluestore "$scripts/ceph.sh" start "$cluster" $$
for image in a b; do rbd -c "$conf" create "rbd/$image" --size 64M; done
a="rbd:rbd/a?conf=$conf" b="rbd:rbd/b?conf=$conf"
step "a cluster"

# The OSD is killed: requests wait, and none is lost.
serve osd --image "$a" --socket-path "$folder/a.sock" --num-queues 2
"$program" guest verify --socket-path "$folder/a.sock" --queues 2 --seconds $((kills * 3 + 2)) >"$folder/guest.log" 2>&1 &
guest=$!
for _ in $(seq "$kills"); do
  sleep "0.$((RANDOM % 90 + 10))"
  kill_osd
  resume
done
timeout "$patience" tail --pid="$guest" -f /dev/null || die "the guest hangs"
wait "$guest" || die "the guest is not content"
guest=
stop 0
step "$kills kills of the OSD"

# The server is killed: its guest continues with the next one, which breaks the dead one's lock.
serve server --image "$a" --socket-path "$folder/a.sock" --num-queues 2 --break-lock
"$program" guest verify --socket-path "$folder/a.sock" --queues 2 --reconnect --seconds $((kills * 2 + 2)) >"$folder/guest.log" 2>&1 &
guest=$!
for _ in $(seq "$kills"); do
  sleep "0.$((RANDOM % 90 + 10))"
  kill -9 "$server"
  wait "$server" 2>/dev/null || true
  serve server --image "$a" --socket-path "$folder/a.sock" --num-queues 2 --break-lock
done
timeout "$patience" tail --pid="$guest" -f /dev/null || die "the guest hangs"
wait "$guest" || die "the guest is not content"
guest=
stop 0
step "$kills kills of the server"

# A disk is added and removed in the sandbox; then the monitor is gone, which must not affect other disks.
truncate -s 16M "$folder/file"
serve added --blk-file "$folder/file" --socket-path "$folder/file.sock" --control "$folder/control" --allow-rbd \
  --allow-path "$cluster"
ctl() { "$program" ctl --control "$folder/control" "$@"; }
ctl add "image=$b" "socket-path=$folder/b.sock" >/dev/null || die "the disk is not added"
"$program" guest verify --socket-path "$folder/b.sock" --bytes 4M >"$folder/guest.log" 2>&1 || die "the guest is not content"
rbd -c "$conf" resize rbd/b --size 80M --no-progress
ctl remove b.sock >/dev/null
kill -9 "$(cat "$cluster/mon.a.pid")"
if ctl add "image=$b" "socket-path=$folder/b.sock" >"$folder/ctl.log" 2>&1; then die "a disk of no cluster is added"; fi &
adding=$!
"$program" guest verify --socket-path "$folder/file.sock" --bytes 1M >"$folder/guest.log" 2>&1 || die "the other disk suffers"
wait "$adding"
grep -q "does not answer" "$folder/ctl.log" || die "the error is another one"
stop 0
resume
step "disks added"

# The cluster never comes back: the server ends after its drain timeout.
serve gone --image "$a" --socket-path "$folder/a.sock" --num-queues 2 --drain-timeout 2
"$program" guest verify --socket-path "$folder/a.sock" --queues 2 --seconds 60 >"$folder/guest.log" 2>&1 &
guest=$!
sleep 1
kill_osd
sleep 1
began=$SECONDS
stop 75
[ $((SECONDS - began)) -lt 20 ] || die "the server took $((SECONDS - began)) s"
grep -q "abandoned, because the medium does not answer" "$folder/gone.log" || die "nothing is said of what was abandoned"
step "a cluster that is gone"
