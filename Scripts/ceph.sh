#!/usr/bin/env bash
# A Ceph cluster to try things on: one monitor and one OSD on the loopback address, everything in one folder, for any user. It
# can
# be used after a few seconds, has a pool "rbd", and no managers, so it reports neither usage nor rates.
#
#   Scripts/ceph.sh start FOLDER [PID]     from nothing; with PID it is removed when that process ends
#   Scripts/ceph.sh stop FOLDER            its processes are shut down, its data stays
#   Scripts/ceph.sh resume FOLDER          starts those of its processes that are not running
#   Scripts/ceph.sh remove FOLDER          removes it completely
#
# The clients' configuration is FOLDER/ceph.conf, and its keys are beside it. Environment:
#   STORE   memstore (default; in memory, gone with the OSD unless that is stopped in order) or bluestore (in FOLDER)
#   AUTH    none (default) or cephx
#   BYTES   the OSD's size (4 GiB; a sparse file with bluestore)
#
# Needs ceph-mon, ceph-osd, ceph-common: Scripts/setup.sh ceph.
set -euo pipefail

verb=${1:-}
[ $# -ge 2 ] || { sed -n 's/^#   Scripts/usage: Scripts/p' "$0" >&2; exit 2; }
folder=$(realpath -m "$2")
conf=$folder/ceph.conf

ask() { ceph -c "$conf" --connect-timeout 20 "$@" 2>>"$folder/ceph.err"; }

# A zombie does not count as running.
# A process whose last threads still hold its locks does.
lives() { grep -qs '^State:.[^ZX]' "/proc/$1/task"/*/status; }

is_running() {
  local process
  process=$(cat "$folder/$1.pid" 2>/dev/null) && [ -n "$process" ] && lives "$process"
}

# An orderly end: otherwise the monitor would report the OSD's loss to clients only after a while.
stop_one() {
  local process
  is_running "$1" || return 0
  process=$(cat "$folder/$1.pid")
  kill -TERM "$process" 2>/dev/null || return 0
  for _ in $(seq 300); do
    lives "$process" || return 0
    sleep 0.05
  done
  kill -KILL "$process" 2>/dev/null || true
}

resume() {
  is_running mon.a || ceph-mon -c "$conf" -i a 2>>"$folder/mon.err"
  is_running osd.0 || ceph-osd -c "$conf" -i 0 >>"$folder/osd.err" 2>&1
}

# A list of images needs everything: monitor, OSD, placement groups.
until_it_answers() {
  for _ in $(seq 60); do
    timeout 5 rbd -c "$conf" ls rbd >/dev/null 2>>"$folder/ceph.err" && return 0
    sleep 0.1
  done
  echo "ceph: no answer; see $folder/*.log" >&2
  return 1
}

free_port() {
  local port
  for _ in $(seq 100); do
    port=$((RANDOM % 10000 + 20000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
}

configure() {
  local store=${STORE:-memstore} auth=${AUTH:-none} bytes=${BYTES:-4294967296} in_order=true
  # Data in memory is written only at an orderly end.
  [ "$store" = bluestore ] || in_order=false
  cat >"$conf" <<END
[global]
fsid = $1
mon host = [v2:127.0.0.1:$(free_port)]
public network = 127.0.0.1/32
cluster network = 127.0.0.1/32
ms bind ipv6 = false
ms bind msgr1 = false
auth cluster required = $auth
auth service required = $auth
auth client required = $auth
auth allow insecure global id reclaim = false
keyring = $folder/keyring
run dir = $folder
crash dir = $folder/crash
log to stderr = false
log file = $folder/\$name.log
pid file = $folder/\$name.pid
admin socket =
mon cluster log file = $folder/cluster.log
# One copy, on one OSD, and no rebalancing.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon mgr mkfs grace = 1000000000
mon data avail warn = 1
mon data avail crit = 0
# Changes of the map are published at once, not collected for a second.
paxos propose interval = 0.05
paxos min wait = 0.01
[mon]
mon data = $folder/mon
[osd]
osd data = $folder/osd
osd objectstore = $store
memstore device bytes = $bytes
bluestore block size = $bytes
osd memory target = 939524096
osd fast shutdown = $in_order
[client]
log file =
pid file =
END
}

start() {
  local fsid osd
  rm -rf "$folder"
  mkdir -p "$folder"/{mon,osd,crash}
  fsid=$(cat /proc/sys/kernel/random/uuid)
  osd=$(cat /proc/sys/kernel/random/uuid)
  configure "$fsid"
  # The monitor and the OSD are created with keys even without authentication.
  ceph-authtool --create-keyring "$folder/keyring" --gen-key -n mon. --cap mon 'allow *' >/dev/null
  ceph-authtool "$folder/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' >/dev/null
  ceph-authtool "$folder/keyring" --gen-key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *' >/dev/null
  monmaptool --create --fsid "$fsid" --addv a "$(sed -n 's/^mon host = //p' "$conf")" "$folder/monmap" >/dev/null
  ceph-mon -c "$conf" --mkfs -i a --monmap "$folder/monmap" --keyring "$folder/keyring"
  ceph-mon -c "$conf" -i a
  ask osd new "$osd" >/dev/null
  ask auth import -i "$folder/keyring"
  ceph-osd -c "$conf" -i 0 --mkfs --osd-uuid "$osd" >>"$folder/osd.err" 2>&1
  resume
  ask osd pool create rbd 8 8 replicated
  ask osd pool application enable rbd rbd
  until_it_answers
}

stop() { stop_one osd.0; stop_one mon.a; }

remove() {
  for name in osd.0 mon.a; do
    is_running "$name" && kill -KILL "$(cat "$folder/$name.pid")" 2>/dev/null || true
  done
  rm -rf "$folder"
}

# Removes the cluster when its owner has ended.
watch_owner() {
  while lives "$1" && [ -f "$conf" ]; do sleep 1; done
  remove
}

case $verb in
  start)
    start || { remove; exit 1; }
    # Not with `||`: that would leave a shell that keeps the output open.
    if [ -n "${3:-}" ]; then
      (trap '' HUP; watch_owner "$3") </dev/null >/dev/null 2>&1 &
    fi
    ;;
  stop) stop ;;
  resume) resume; until_it_answers ;;
  remove) remove ;;
  *) echo "ceph: start, stop, resume or remove" >&2; exit 2 ;;
esac
