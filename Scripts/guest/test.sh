#!/usr/bin/env bash
# The matrix of real guests: each case boots Linux in QEMU on a server of its
# own and checks what guest and host see.
#
#   test.sh            all cases
#   test.sh CASE…      some of them
#   test.sh --list     their names
#
# SERVER=qsd runs them against qemu-storage-daemon, VMM_BLK=PATH against another
# build of ours. The log of each case is in .guest/logs/.
set -euo pipefail

# shellcheck source=Scripts/guest/lib.sh
source "$(dirname "$0")/lib.sh"

# Generous, for a busy machine: a case takes ten seconds on a quiet one.
timeout=${GUEST_TIMEOUT:-400}
logs=$root/.guest/logs

# Without the field that lets the driver choose the cache, a device with flush
# has a write-back cache (virtio 1.2, 5.2.5), and the guest really flushes.
write_back=(--device config-wce=off)

# --- what every case is made of

# Boots a guest on the case's server and waits for its verdict.
in_guest() { # options of boot.sh
  start_guest_here "$@"
  wait_guest
}

start_guest_here() {
  : >"$console"
  start_guest --socket "$work/socket" --log "$console" --timeout "$timeout" "$@"
}

told() { tr -d '\r' <"$console" | sed -n "s/^.*INFO $1 //p" | tail -n 1; } # a word the guest told
sum_of() { md5sum <"$1" | cut -d ' ' -f 1; }
blocks_of() { stat -c %b "$1"; } # of 512 bytes, that the image occupies
zero_range() { cmp -s <(tail -c +$(($2 + 1)) "$1" | head -c "$3") <(head -c "$3" /dev/zero); }
same_range() { cmp -s <(tail -c +$(($3 + 1)) "$1" | head -c "$4") <(tail -c +$(($3 + 1)) "$2" | head -c "$4"); }

# Feature bits as the guest names them in `expect`: 28 indirect descriptors,
# 29 event index, 32 virtio 1.
io_case() { # queues, expected features, options of boot.sh
  local queues=$1 expect=$2
  shift 2
  empty_disk "$work/disk" 64M
  start_server "$work/disk" "$work/socket" --num-queues "$queues"
  in_guest --queues "$queues" --scenarios io --set queues="$queues" --set expect="$expect" "$@"
  stop_server
}

# --- the cases, in the order they run

case_queues-1() { io_case 1 28,29,32; }
case_queues-2() { io_case 2 28,29,32; }
# A driver takes no more queues than there are processors.
case_queues-4() { io_case 4 28,29,32 --processors 4; }
case_legacy() { io_case 2 28,29,!32 --legacy; }
case_no-event-idx() { io_case 2 28,!29,32 --event-idx off; }
case_no-indirect() { io_case 2 !28,29,32 --indirect off; }
case_no-event-idx-no-indirect() { io_case 2 !28,!29,32 --event-idx off --indirect off; }

case_filesystem() { filesystem_case; }
# Reads are copies, and what is written comes back through them.
case_filesystem-cached() { filesystem_case --engine cached; }
case_filesystem-mapped() { filesystem_case --engine mapped; }

filesystem_case() { # options of the server
  empty_disk "$work/disk" 256M
  start_server "$work/disk" "$work/socket" --num-queues 2 "$@"
  in_guest --queues 2 --scenarios filesystem "${write_back[@]}"
  stop_server

  e2fsck -fn "$work/disk" || die "the host's e2fsck finds the image damaged"
  mkdir "$work/files"
  debugfs -R "rdump / $work/files" "$work/disk" 2>"$work/debugfs"
  cd "$work/files"
  [ "$(sum_of manifest)" = "$(told manifest)" ] || die "the image holds another list of files than the guest wrote"
  md5sum -c --quiet manifest || die "the image holds other files than the guest wrote"
  [ "$(find . -type f ! -name manifest | wc -l)" = "$(told files)" ] || die "the image holds files the guest did not write"
  cd /
}

case_write-cache() {
  empty_disk "$work/disk" 64M
  start_server "$work/disk" "$work/socket"
  in_guest --scenarios write-cache
  stop_server
}

case_discard() {
  random_disk "$work/disk" 128M
  cp "$work/disk" "$work/before"
  local before after mib=$((1 << 20))
  before=$(blocks_of "$work/disk")
  start_server "$work/disk" "$work/socket"
  in_guest --scenarios discard
  stop_server
  after=$(blocks_of "$work/disk")
  echo "the image occupied $before blocks before, $after after; the guest sent $(told discards) discards"
  [ "$before" -ge $((128 * 2048)) ] || die "the image was not full before"
  # What remains: 32 MiB untouched, and of the trimmed 64 a file of 4 and the
  # filesystem's own blocks. Either discard alone would leave more than 64.
  [ "$after" -le $((48 * 2048)) ] || die "the host did not get its blocks back"
  same_range "$work/disk" "$work/before" $((64 * mib)) $((32 * mib)) || die "bytes changed that nobody discarded"
  e2fsck -fn "$work/disk" || die "the trim damaged the filesystem"
}

case_write-zeroes() {
  random_disk "$work/disk" 32M
  cp "$work/disk" "$work/before"
  local mib=$((1 << 20))
  start_server "$work/disk" "$work/socket"
  in_guest --scenarios write-zeroes
  stop_server
  echo "the image occupied $(blocks_of "$work/before") blocks before, $(blocks_of "$work/disk") after"
  zero_range "$work/disk" 0 $((8 * mib)) || die "the punched part is not zero"
  zero_range "$work/disk" $((16 * mib)) $((8 * mib)) || die "the zeroed part is not zero"
  same_range "$work/disk" "$work/before" $((8 * mib)) $((8 * mib)) || die "bytes between have changed"
  same_range "$work/disk" "$work/before" $((24 * mib)) $((8 * mib)) || die "bytes behind have changed"
}

case_read-only() {
  random_disk "$work/disk" 16M
  local sum
  sum=$(sum_of "$work/disk")
  start_server "$work/disk" "$work/socket" --read-only
  in_guest --scenarios read-only --set sum="$sum"
  stop_server
  [ "$(sum_of "$work/disk")" = "$sum" ] || die "the image has changed"
}

case_reboot() {
  empty_disk "$work/disk" 64M
  start_server "$work/disk" "$work/socket" --num-queues 2
  in_guest --queues 2 --scenarios reboot --reboot
  [ "$(grep -c 'BOOT ' "$console")" -eq 2 ] || die "the guest did not boot twice"
  stop_server
}

case_block-4096() {
  empty_disk "$work/disk" 64M
  start_server "$work/disk" "$work/socket" --logical-block-size 4096
  in_guest --scenarios block-size --set block_size=4096
  stop_server
  e2fsck -fn "$work/disk" || die "the host's e2fsck finds the image damaged"
}

case_fio() {
  empty_disk "$work/disk" 1G
  start_server "$work/disk" "$work/socket" --num-queues 2
  in_guest --queues 2 --scenarios fio "${write_back[@]}"
  stop_server
}

check_blocks() { # minimum
  "$guest/check-blocks.py" "$work/disk" "$console" "$1" || die "the image lacks blocks that were acknowledged"
}

# Waits until the guest has said so many blocks written.
wait_for_acks() { # number
  while [ "$(grep -c '^ACK' "$console")" -lt "$1" ]; do
    kill -0 "$guest_pid" 2>/dev/null || die "the guest ended before $1 blocks were written"
    kill -0 "$server_pid" 2>/dev/null || die "the server ended before $1 blocks were written"
    sleep 0.2
  done
}

case_sigterm() {
  empty_disk "$work/disk" 64M
  start_server "$work/disk" "$work/socket" --num-queues 2
  # More blocks than time for them: the guest never comes to an end.
  start_guest_here --queues 2 --scenarios numbered "${write_back[@]}" --set blocks=16000
  wait_for_acks 100
  stop_server
  [ "$SERVER" = qsd ] || [ ! -e "$work/socket" ] || die "the server left its socket behind"
  # What was acknowledged is on its way to the log.
  sleep 1
  stop_guest
  check_blocks 100
}

case_restart() {
  empty_disk "$work/disk" 64M
  start_server "$work/disk" "$work/socket" --num-queues 2
  start_guest_here --queues 2 --reconnect 1 --scenarios numbered "${write_back[@]}" --set blocks=800
  for acks in 100 400; do
    wait_for_acks $acks
    stop_server
    check_blocks $acks
    start_server "$work/disk" "$work/socket" --num-queues 2
  done
  wait_guest
  stop_server
  check_blocks 800
}

# --- running them

# The last verdict in a log; what follows it is only processes being ended.
reason() {
  local verdict
  verdict=$(sed -n -e 's/^FAIL: //p' -e 's/^boot: //p' "$1" | tail -n 1)
  echo "${verdict:-see there}"
}

all=$(sed -n 's/^case_\([^(]*\)().*/\1/p' "$0")

run_case() { # name
  console=$logs/$1.console
  enter_work
  "case_$1"
}

case ${1:-} in
--list)
  echo "$all"
  exit 0
  ;;
-*)
  sed -n 's/^# \{0,1\}//p; /^set/q' "$0" | tail -n +2 >&2
  exit 2
  ;;
esac

names=("$@")
[ $# -gt 0 ] || mapfile -t names <<<"$all"
for name in "${names[@]}"; do
  grep -qx -- "$name" <<<"$all" || die "no case '$name'; --list shows them"
done

need_server
"$guest/build-image.sh"
mkdir -p "$logs"

# Cases that qemu-storage-daemon cannot pass: its library knows no legacy devices, and the engines are ours.
beyond_qsd=" legacy filesystem-cached filesystem-mapped "

passed=0 failed=0 case_pid=''
# The case cleans up after itself, if it is told and given the time.
trap '[ -z "$case_pid" ] || { kill "$case_pid"; wait "$case_pid"; } 2>/dev/null || true; exit 130' INT TERM

for name in "${names[@]}"; do
  if [ "$SERVER" = qsd ] && [[ $beyond_qsd == *" $name "* ]]; then
    printf '%-30s %6s    skipped, qemu-storage-daemon cannot\n' "$name" -
    continue
  fi
  log=$logs/$name.log
  start=$(date +%s%N)
  # In the background and not in a condition: there bash would ignore set -e.
  run_case "$name" >"$log" 2>&1 </dev/null &
  case_pid=$!
  status=0
  wait "$case_pid" || status=$?
  case_pid=''
  tenths=$((($(date +%s%N) - start) / 100000000))
  seconds=$((tenths / 10)).$((tenths % 10))
  if [ $status -eq 0 ]; then
    passed=$((passed + 1))
    printf '%-30s %6s s  ok\n' "$name" "$seconds"
  else
    failed=$((failed + 1))
    printf '%-30s %6s s  FAIL  %s: %s\n' "$name" "$seconds" "${log#"$PWD/"}" "$(reason "$log")"
  fi
done

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
