# Every CPU writes its own part of the disk at the same time, so that
# every queue is used, in requests from one sector to more than one request can
# hold; then all is read back with the page cache bypassed.
#
# queues=N        how many queues the driver should have found
# expect=28,!29   feature bits that should be on or (!) off

found=$(ls $block/mq | wc -l)
info "queues $found"
[ "$found" -eq "$queues" ] || fail "the driver has $found queues, not $queues"

for bit in $(echo "$expect" | tr , ' '); do
  case $bit in
  !*) [ "$(feature "${bit#!}")" = 0 ] || fail "feature ${bit#!} is on" ;;
  *) [ "$(feature "$bit")" = 1 ] || fail "feature $bit is off" ;;
  esac
done

size=6 # MiB for each processor
head -c ${size}m /dev/urandom >/tmp/pattern
sum=$(md5sum </tmp/pattern | cut -d ' ' -f 1)

write() { # processor
  # The first MiB in small requests, which are the slow ones.
  to="of=$disk oflag=direct,seek_bytes conv=notrunc status=none"
  from="if=/tmp/pattern iflag=skip_bytes,count_bytes"
  start=$(($1 * size << 20))
  pin="taskset -c $1"
  $pin dd $from $to bs=512 count=128k seek=$start
  $pin dd $from $to bs=4k count=896k skip=128k seek=$((start + (128 << 10)))
  $pin dd $from $to bs=64k count=2M skip=1M seek=$((start + (1 << 20)))
  $pin dd $from $to bs=3M count=3M skip=3M seek=$((start + (3 << 20)))
}

writers=''
for processor in $(seq 0 $(($(nproc) - 1))); do
  write "$processor" &
  writers="$writers $!"
done
for writer in $writers; do wait "$writer"; done
sync

for processor in $(seq 0 $(($(nproc) - 1))); do
  [ "$(sum_of_disk $((processor * size)) $size)" = "$sum" ] ||
    fail "processor $processor reads other bytes than it wrote"
done
