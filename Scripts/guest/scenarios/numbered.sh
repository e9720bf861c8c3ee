# Writes numbered blocks and prints each number as soon as the disk has
# acknowledged it, so that the host can check that none is lost when the
# back-end is stopped meanwhile. Several writers keep several requests in flight.
#
# blocks=N   number of 4096-byte blocks, each filled with its number at its own offset
# load=yes   fio keeps the second half of the disk busy meanwhile

writers=4
half=$(($(cat $block/size) / 2 * 512))

if [ "${load:-}" = yes ]; then
  fio --name=load --filename=$disk --offset=$half --size=$half --rw=randrw --bsrange=4k-256k --ioengine=libaio --iodepth=32 \
    --direct=1 --time_based --runtime=86400 --minimal >/dev/null 2>&1 &
  load_pid=$!
fi

block_of() { printf '%-4095s\n' "block $1"; }

write_from() { # first
  number=$1
  while [ "$number" -lt "$blocks" ]; do
    # Every eighth is also flushed.
    conv=notrunc
    [ $((number / writers % 8)) -ne 0 ] || conv=notrunc,fsync
    block_of "$number" |
      dd of=$disk bs=4k seek="$number" iflag=fullblock oflag=direct conv=$conv status=none || return 1
    echo "ACK $number"
    number=$((number + writers))
  done
}

started=''
for writer in $(seq 0 $((writers - 1))); do
  write_from "$writer" &
  started="$started $!"
done
for writer in $started; do
  wait "$writer" || fail "a write ended in an error"
done

[ -z "${load_pid:-}" ] || kill "$load_pid"

number=0
while [ "$number" -lt "$blocks" ]; do
  block_of "$number"
  number=$((number + 1))
done >/tmp/expected
dd if=$disk bs=4k count="$blocks" iflag=direct status=none | cmp - /tmp/expected ||
  fail "blocks do not read as they were written"
