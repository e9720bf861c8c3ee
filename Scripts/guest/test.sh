#!/usr/bin/env bash
# The matrix of real guests: each case boots Linux with its own server and
# checks what guest and host see.
#
#   test.sh            all cases except those that have to be named
#   test.sh uml        those of one kind of guest: uml, qemu or zoned
#   test.sh CASE…      some of them
#   test.sh --list     their names
#
# SERVER=qsd runs them against qemu-storage-daemon, VMM_BLK=PATH against another
# build of it. The log of each case is in .guest/logs/.
set -euo pipefail

# shellcheck source=Scripts/guest/lib.sh
source "$(dirname "$0")/lib.sh"

logs=$root/.guest/logs

# --- what every case is made of

# Boots a guest and waits for its verdict.
in_guest() { # options of boot.sh
  guest_on "$console" "$@"
  wait_guests
}

guest_on() { # console, options of boot.sh
  : >"$1"
  start_guest --log "$@"
}

told() { tr -d '\r' <"$console" | sed -n "s/^.*INFO $1 //p" | tail -n 1; } # a value that the guest printed
sum_of() { md5sum <"$1" | cut -d ' ' -f 1; }
blocks_of() { stat -c %b "$1"; } # of 512 bytes, that the image occupies
zero_range() { cmp -s <(tail -c +$(($2 + 1)) "$1" | head -c "$3") <(head -c "$3" /dev/zero); }
same_range() { cmp -s <(tail -c +$(($3 + 1)) "$1" | head -c "$4") <(tail -c +$(($3 + 1)) "$2" | head -c "$4"); }

# Checks the files of the scenario `filesystem` on ext4 with the host's own tools, in the image.
check_ext4_files() {
  e2fsck -fn "$work/disk" || die "the host's e2fsck finds the image damaged"
  mkdir "$work/files"
  debugfs -R "rdump / $work/files" "$work/disk" 2>"$work/debugfs"
  (
    cd "$work/files"
    md5sum -c --quiet manifest || die "the image holds other files than the guest wrote"
    [ "$(find . -type f ! -name manifest | wc -l)" = "$(wc -l <manifest)" ] || die "the image holds files the guest did not write"
  ) || exit 1
}

discard_case() { # options of boot.sh
  random_disk "$work/disk" 128M
  cp "$work/disk" "$work/before"
  local before after mib=$((1 << 20))
  before=$(blocks_of "$work/disk")
  start_server "$work/disk" "$work/socket"
  in_guest --socket "$work/socket" --scenarios discard "$@"
  stop_server
  after=$(blocks_of "$work/disk")
  echo "the image occupied $before blocks before, $after after; the guest sent $(told discards) discards"
  [ "$before" -ge $((128 * 2048)) ] || die "the image was not full before"
  # What remains: 32 MiB untouched, and of the trimmed 64 a file of 4 and the
  # filesystem's own blocks. Either discard alone would leave more than 64.
  [ "$after" -le $((48 * 2048)) ] || die "the host did not get its blocks back"
  same_range "$work/disk" "$work/before" $((64 * mib)) $((32 * mib)) || die "bytes changed that were not discarded"
  e2fsck -fn "$work/disk" || die "the trim damaged the filesystem"
}

write_zeroes_case() { # options of boot.sh
  random_disk "$work/disk" 32M
  cp "$work/disk" "$work/before"
  local mib=$((1 << 20))
  start_server "$work/disk" "$work/socket"
  in_guest --socket "$work/socket" --scenarios write-zeroes "$@"
  stop_server
  echo "the image occupied $(blocks_of "$work/before") blocks before, $(blocks_of "$work/disk") after"
  zero_range "$work/disk" 0 $((8 * mib)) || die "the punched part is not zero"
  zero_range "$work/disk" $((16 * mib)) $((8 * mib)) || die "the zeroed part is not zero"
  same_range "$work/disk" "$work/before" $((8 * mib)) $((8 * mib)) || die "bytes between have changed"
  same_range "$work/disk" "$work/before" $((24 * mib)) $((8 * mib)) || die "bytes behind have changed"
}

check_blocks() { # minimum
  "$python" "$guest/check-blocks.py" "$work/disk" "$console" "$1" || die "the image does not hold what the guest says it wrote"
}

# Waits until the guest has acknowledged that many writes.
wait_for_acks() { # number, console
  wait_until "$1 writes are done" has_acks "$1" "${2:-$console}"
}

has_acks() { # number, console
  [ "$(acks "$2" | wc -l)" -lt "$1" ] || return 0
  check_guests "$1 writes were done"
  check_server
  return 1
}

# Waiting for output of a guest that has ended would never end.
check_guests() { # what is waited for
  local pid
  for pid in "${guest_pids[@]}"; do
    kill -0 "$pid" 2>/dev/null || die "a guest ended before $1"
  done
}

# The progress that an endless guest prints.
beats() { tr -d '\r' <"$console" | sed -n 's/^BEAT //p' | tail -n 1; }

has_beaten() { # number
  local now
  now=$(beats)
  [ "${now:-0}" -lt "$1" ] || return 0
  check_guests "it had said $1 times that it goes on"
  check_server
  return 1
}

# The last line may be incomplete.
acks() { tr -d '\r' <"$1" | sed -n '$!s/^ACK \([0-9]*\)$/\1/p'; } # console
last_ack() { acks "$1" | tail -n 1; }

# shellcheck source=Scripts/guest/cases-uml.sh
source "$guest/cases-uml.sh"
# shellcheck source=Scripts/guest/cases-qemu.sh
source "$guest/cases-qemu.sh"

# --- running them

all=$(sed -n 's/^case_\([^(]*\)().*/\1/p' "$guest/cases-uml.sh" "$guest/cases-qemu.sh")

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

# Cases that depend on more than the server and the guest: see the case.
named_only=$'qemu-migrated\nqemu-packed-migrated\nqemu-ovmf\nqemu-ovmf-pci\nqemu-pci\nqemu-pci-legacy\nqemu-pci-queue-reset\nqemu-pci-transitional\nqemu-rbd'

names=()
[ $# -gt 0 ] || set -- uml qemu
for name in "$@"; do
  case $name in
  uml | qemu | zoned) mapfile -t -O ${#names[@]} names < <(grep "^$name-" <<<"$all" | grep -vxF -- "$named_only") ;;
  *)
    grep -qx -- "$name" <<<"$all" || die "no case '$name'; --list shows them"
    names+=("$name")
    ;;
  esac
done

need_server
kinds=$(printf '%s\n' "${names[@]}" | cut -d - -f 1 | sort -u)
# shellcheck disable=SC2086  # words
"$guest/build-image.sh" $kinds
mkdir -p "$logs"

run_case() { # name
  console=$logs/$1.console
  rm -f "$console"*
  enter_work
  "case_$1"
}

# For readers who have nothing but this output: the server's log and the ends of the consoles.
show_failure() { # name
  local file
  echo "--- $1.log"
  tail -n 80 "$logs/$1.log"
  for file in "$logs/$1.console"*; do
    [ -e "$file" ] || continue
    echo "--- ${file##*/}"
    tail -n 60 "$file" | tr -d '\r'
  done
  echo "---"
}

# For a case that returns because something is not installed.
skip() { echo "SKIP: $*" >&2; }

# The last result in a log; what follows it is only the clean-up.
reason() {
  local verdict
  verdict=$(sed -n -e 's/^FAIL: //p' -e 's/^boot: //p' "$1" | tail -n 1)
  echo "${verdict:-see there}"
}

# Cases that qemu-storage-daemon cannot pass: its library knows no legacy devices, and the engines are vmm-blk's, and so is
# a server of many disks.
beyond_qsd=" qemu-legacy uml-split uml-split-ext4 zoned-linux uml-ext4-cached uml-xfs-mapped uml-btrfs-threads uml-log-writes uml-power-cut uml-many uml-taken-over uml-operated uml-resized qemu-resized qemu-taken-over qemu-killed qemu-rbd qemu-ovmf qemu-ovmf-pci "

passed=0 failures=() case_pid=''
# The case cleans up after itself if it is told to end and given the time.
trap '[ -z "$case_pid" ] || { kill "$case_pid"; wait "$case_pid"; } 2>/dev/null || true; exit 130' HUP INT TERM

for name in "${names[@]}"; do
  if [ "$SERVER" = qsd ] && [[ $beyond_qsd == *" $name "* || $name == qemu-packed* || $name == qemu-iommu* ]]; then
    printf '%-34s %6s    skipped, qemu-storage-daemon cannot\n' "$name" -
    continue
  fi
  log=$logs/$name.log
  start=$(date +%s%N)
  # In the background and not in a condition: there bash would ignore set -e.
  run_case "$name" >"$log" 2>&1 &
  case_pid=$!
  status=0
  wait "$case_pid" || status=$?
  case_pid=''
  tenths=$((($(date +%s%N) - start) / 100000000))
  seconds=$((tenths / 10)).$((tenths % 10))
  skipped=$(sed -n 's/^SKIP: //p' "$log" | tail -n 1)
  if [ $status -eq 0 ] && [ -n "$skipped" ]; then
    printf '%-34s %6s    skipped, %s\n' "$name" - "$skipped"
  elif [ $status -eq 0 ]; then
    passed=$((passed + 1))
    printf '%-34s %6s s  ok\n' "$name" "$seconds"
  else
    failures+=("$name")
    show_failure "$name"
    printf '%-34s %6s s  FAIL  %s\n' "$name" "$seconds" "$(reason "$log")"
  fi
done

# Repeated at the end: the last lines of a long run have to tell why.
for name in "${failures[@]}"; do
  printf '%s: %s\n' "$name" "$(reason "$logs/$name.log")"
  grep -a '^thread ' "$logs/$name.log" | head -n 30 || true
  grep -av '^thread ' "$logs/$name.log" | tail -n 8 | cut -c 1-200
done
echo "$passed passed, ${#failures[@]} failed${failures[*]:+: ${failures[*]}}"
[ ${#failures[@]} -eq 0 ]
