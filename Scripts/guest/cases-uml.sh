# shellcheck shell=bash
# User-mode Linux: a kernel that is an ordinary process and speaks vhost-user itself. One CPU and one queue,
# real speed. Sourced by test.sh, in the order in which the cases run.

uml() { in_guest --guest uml "$@"; }

# Feature bits as the guest names them in `expect`: 28 indirect descriptors, 29 event index, 32 virtio 1, 34 packed rings.
# This kernel uses packed rings wherever they are offered, so all of these guests do, except in the cases named split and if
# VMM_BLK_OPTIONS contains --no-feature ring_packed.
ring() { if [ "$SERVER" = qsd ] || [[ $VMM_BLK_OPTIONS == *ring_packed* ]]; then echo '!34'; else echo 34; fi; }

uml_io_case() { # queues of the device
  empty_disk "$work/disk" 64M
  start_server "$work/disk" "$work/socket" --num-queues "$1"
  # This kernel has one CPU, and so uses one queue of however many there are.
  uml --socket "$work/socket" --scenarios io --set queues=1 --set "expect=28,29,32,$(ring)"
  stop_server
}

case_uml-queues-1() { uml_io_case 1; }
case_uml-queues-2() { uml_io_case 2; }
case_uml-queues-4() { uml_io_case 4; }
case_uml-split() {
  local VMM_BLK_OPTIONS="$VMM_BLK_OPTIONS --no-feature ring_packed"
  uml_io_case 2
}

# Written by a guest on one engine, read by another guest on another.
uml_filesystem_case() { # filesystem, size, options of the first server, "--", options of the second
  local fs=$1 size=$2 first=()
  shift 2
  while [ "$1" != -- ]; do
    first+=("$1")
    shift
  done
  shift
  empty_disk "$work/disk" "$size"
  start_server "$work/disk" "$work/socket" "${first[@]}"
  uml --socket "$work/socket" --scenarios filesystem --set fs="$fs"
  stop_server
  start_server "$work/disk" "$work/socket" "$@"
  uml --socket "$work/socket" --scenarios filesystem-again --set fs="$fs" --set manifest="$(told manifest)"
  stop_server
}

case_uml-ext4() {
  uml_filesystem_case ext4 256M --
  check_ext4_files
}
case_uml-split-ext4() {
  local VMM_BLK_OPTIONS="$VMM_BLK_OPTIONS --no-feature ring_packed"
  case_uml-ext4
}
case_uml-xfs() { uml_filesystem_case xfs 512M --; }
case_uml-btrfs() { uml_filesystem_case btrfs 512M --; }
# Engines that only this project has; reads are copies, and written data is read back through them.
case_uml-ext4-cached() { uml_filesystem_case ext4 256M --engine cached -- --engine uring; }
case_uml-xfs-mapped() { uml_filesystem_case xfs 512M --engine mapped -- --engine sync; }
case_uml-btrfs-threads() { uml_filesystem_case btrfs 512M --engine threads -- --engine aio; }

# A second disk logs every write, discard and flush of a filesystem, in order; replaying the log must reproduce the first.
case_uml-log-writes() {
  empty_disk "$work/data" 96M
  empty_disk "$work/log" 1G
  start_disks -- data log
  uml --socket "$work/data.socket" --socket "$work/log.socket" --set disks=2 --scenarios log-writes
  stop_server
  "$python" "$guest/replay-writes.py" "$work/log" "$work/data" "$work" "$(told marks)" ||
    die "the log of writes does not give the disk"
}

# Servers take over from each other, with engines in turn, while fio writes and verifies: these guests do not reconnect, so a
# lost
# connection is a failure. TAKEOVERS is the number of takeovers.
taken_over_case() { # queues, options of boot.sh
  local takeovers=${TAKEOVERS:-5} count engines=(uring threads mapped sync) queues=$1
  shift
  [ "$SERVER" = vmm-blk ] || die "the back-ends that this case starts are ours"
  empty_disk "$work/disk" 192M
  start_server "$work/disk" "$work/socket" --control "$work/control" --engine uring --num-queues "$queues"
  guest_on "$console" --socket "$work/socket" --fio --scenarios killed --set beats=$((2 * takeovers)) "$@"
  for count in $(seq "$takeovers"); do
    # Waits until something was written since the last takeover.
    wait_until "the guest's disk answers after takeover $((count - 1))" has_beaten $((2 * count - 1))
    take_over "$work/control" "$work/disk" "$work/socket" --engine "${engines[count % 4]}" --num-queues "$queues"
  done
  echo "taken over $takeovers times" >&2
  wait_guests
  stop_server
  check_ext4_files
}

case_uml-taken-over() { taken_over_case 1 --guest uml; }

case_uml-write-cache() {
  empty_disk "$work/disk" 64M
  start_server "$work/disk" "$work/socket"
  uml --socket "$work/socket" --scenarios write-cache
  stop_server
}

case_uml-discard() { discard_case --guest uml; }
case_uml-write-zeroes() { write_zeroes_case --guest uml; }

case_uml-read-only() {
  random_disk "$work/disk" 16M
  local sum
  sum=$(sum_of "$work/disk")
  start_server "$work/disk" "$work/socket" --read-only
  uml --socket "$work/socket" --scenarios read-only --set sum="$sum"
  stop_server
  [ "$(sum_of "$work/disk")" = "$sum" ] || die "the image has changed"
}

case_uml-block-4096() {
  empty_disk "$work/disk" 64M
  start_server "$work/disk" "$work/socket" --logical-block-size 4096
  uml --socket "$work/socket" --scenarios block-size --set block_size=4096
  stop_server
  e2fsck -fn "$work/disk" || die "the host's e2fsck finds the image damaged"
}

# The server is stopped under load: what it acknowledged is in the image.
case_uml-sigterm() {
  empty_disk "$work/disk" 128M
  start_server "$work/disk" "$work/socket" --num-queues 2
  # More blocks than there is time for: the guest never finishes.
  guest_on "$console" --guest uml --socket "$work/socket" --fio --scenarios numbered --set blocks=16000 --set load=yes
  wait_for_acks 300
  stop_server
  [ "$SERVER" = qsd ] || [ ! -e "$work/socket" ] || die "the server left its socket behind"
  # The last acknowledgements may not have reached the log yet.
  sleep 1
  cut_guests
  check_blocks 300
}

# This kernel does not reconnect; a second guest on a second server finds what the first one wrote.
case_uml-restart() {
  empty_disk "$work/disk" 64M
  local round
  for round in 1 2 3; do
    start_server "$work/disk" "$work/socket" --num-queues "$round"
    guest_on "$console" --guest uml --socket "$work/socket" --scenarios numbered --set blocks=16000
    wait_for_acks $((round * 50))
    stop_server
    sleep 1
    cut_guests
    check_blocks $((round * 50))
  done
}

# Power is cut under a filesystem, three times at once; the server stays and takes the next guest of each disk.
case_uml-power-cut() {
  local fs
  for fs in ext4 xfs btrfs; do empty_disk "$work/$fs" 512M; done
  start_disks --num-queues 2 -- ext4 xfs btrfs
  for fs in ext4 xfs btrfs; do
    guest_on "$console-$fs" --guest uml --socket "$work/$fs.socket" --scenarios fsynced --set fs=$fs
  done
  for fs in ext4 xfs btrfs; do wait_for_acks 150 "$console-$fs"; done
  cut_guests
  for fs in ext4 xfs btrfs; do
    # Numbers are printed in order; an incomplete line does not count.
    guest_on "$console-$fs-again" --guest uml --socket "$work/$fs.socket" --scenarios fsynced-check --set fs=$fs \
      --set acked="$(($(last_ack "$console-$fs") + 1))"
  done
  wait_guests
  stop_server
}

# Power is cut at any moment: images of what may be left, made from the record of what reached the disk.
case_uml-power-cuts() {
  # The filesystem, followed by a sector with the number that was synced last.
  empty_disk "$work/base" 33M
  mkfs.ext4 -q -F "$work/base" 32M
  cp "$work/base" "$work/disk"
  start_server "$work/disk" "$work/socket" --record "$work/record"
  guest_on "$console" --guest uml --socket "$work/socket" --scenarios fsynced --set fs=ext4 --set made=yes --set mark=65536
  wait_for_acks "${SYNCED:-120}"
  cut_guests
  stop_server
  "$VMM_BLK" verify-crash --log "$work/record" --base "$work/base" --folder "$work" --images "${IMAGES:-100}" \
    --check "$guest/check-synced.sh \"\$1\" 65536" || die "an image that may be left lacks what was synced"
}

# Eight guests at once on eight disks of one server.
case_uml-many() {
  local names=(ext4 xfs btrfs io-1 io-2 io-3 numbered fio) name
  for name in "${names[@]}"; do empty_disk "$work/$name" 1G; done
  start_disks --num-queues 2 --threads 1 -- "${names[@]}"
  many() { # disk, options
    guest_on "$console-$1" --guest uml --socket "$work/$1.socket" "${@:2}"
  }
  for name in ext4 xfs btrfs; do many "$name" --scenarios filesystem --set fs="$name" --set files=300; done
  for name in io-1 io-2 io-3; do many "$name" --scenarios io --set queues=1 --set expect=28,29,32; done
  many numbered --scenarios numbered --set blocks=1000
  many fio --scenarios fio --set seconds=1 --set engines=libaio,io_uring
  wait_guests
  stop_server
  "$python" "$guest/check-blocks.py" "$work/numbered" "$console-numbered" 1000 || die "the image lacks blocks that were acknowledged"
}

# For minutes at full speed, with all of Linux's I/O interfaces.
case_uml-fio() {
  empty_disk "$work/disk" 1G
  start_server "$work/disk" "$work/socket" --num-queues 2
  uml --socket "$work/socket" --scenarios fio --set seconds=100 --set engines=libaio,io_uring,psync,pvsync2,posixaio,sync
  stop_server
}

# An operator at work while fio writes and verifies: the disk is paused, resumed, flushed and inspected, and another one is
# added and
# removed beside it. PAUSES is the number of pauses.
case_uml-operated() {
  local pauses=${PAUSES:-5} count ctl=("$VMM_BLK" ctl --control "$work/control")
  [ "$SERVER" = vmm-blk ] || die "the operator's socket is ours"
  empty_disk "$work/disk" 192M
  empty_disk "$work/other" 16M
  start_server "$work/disk" "$work/socket" --control "$work/control" --metrics "$work/metrics"
  guest_on "$console" --socket "$work/socket" --fio --scenarios killed --set beats=$((2 * pauses)) --guest uml
  for count in $(seq "$pauses"); do
    # Waits until something was written since the last pause.
    wait_until "the guest's disk answers after pause $((count - 1))" has_beaten $((2 * count - 1))
    "${ctl[@]}" pause "$work/socket" >&2
    "${ctl[@]}" flush "$work/socket" >&2
    cp --sparse=always "$work/disk" "$work/copy"
    cmp "$work/disk" "$work/copy" || die "the image has changed while its disk was paused"
    "${ctl[@]}" resume "$work/socket" >&2
    "${ctl[@]}" add blk-file="$work/other" socket-path="$work/other.socket" >&2
    "${ctl[@]}" status other.socket >"$work/status"
    grep -q 'state  *idle' "$work/status" || die "a disk without a driver is not idle"
    "${ctl[@]}" remove other.socket >&2
  done
  "${ctl[@]}" metrics | grep -q 'vmm_blk_requests_total.*kind="write"} [1-9]' || die "no write was counted"
  echo "paused $pauses times" >&2
  wait_guests
  stop_server
  check_ext4_files
}

# The operator enlarges the disk twice while Linux has its filesystem mounted: once through the image, once through the disk.
resized_case() { # options of boot.sh
  local ctl=("$VMM_BLK" ctl --control "$work/control")
  [ "$SERVER" = vmm-blk ] || die "the operator's socket is ours"
  empty_disk "$work/disk" 64M
  start_server "$work/disk" "$work/socket" --control "$work/control"
  guest_on "$console" --socket "$work/socket" --scenarios resized --set sizes=96,160 "$@"
  wait_until "the guest has begun" has_beaten 1
  truncate -s 96M "$work/disk"
  "${ctl[@]}" resize "$work/socket" >&2
  wait_until "the guest has used the first new space" has_beaten 2
  "${ctl[@]}" resize "$work/socket" 160M >&2
  wait_guests
  stop_server
  check_ext4_files
}

case_uml-resized() { resized_case --guest uml; }
