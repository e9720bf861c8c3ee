# fio sends 32 requests of each of two jobs at once, in files of an ext4 filesystem, and checks what it wrote, while the host kills
# the back-end and starts it again, or lets another one take over. A writer beside it says each time that the disk has answered, so that the host
# knows the guest goes on.
#
# beats=N   answers to that writer until the end, about one a second

make_filesystem ext4 $disk
mount -t ext4 $disk /mnt
mkdir /mnt/fio

beat() {
  number=0
  while [ $number -lt "$beats" ]; do
    number=$((number + 1))
    printf '%-4095s\n' "beat $number" |
      dd of=/mnt/beat bs=4k iflag=fullblock oflag=direct conv=fsync status=none || return 1
    echo "BEAT $number"
    sleep 1
  done
  : >/tmp/enough
}
beat &
beat_pid=$!

round=0
while [ ! -e /tmp/enough ]; do
  kill -0 $beat_pid 2>/dev/null || [ -e /tmp/enough ] || fail "a write ended in an error"
  fio --name=killed --directory=/mnt/fio --size=16m --numjobs=2 --group_reporting --rw=randwrite --bsrange=4k-128k \
    --ioengine=libaio --iodepth=32 --iodepth_batch_submit=32 --iodepth_batch_complete_min=32 --direct=1 --fsync=64 --randrepeat=0 --verify=crc32c --verify_fatal=1 --do_verify=1 \
    --minimal >/tmp/fio 2>&1 || {
    cat /tmp/fio
    fail "fio found an error in round $round"
  }
  round=$((round + 1))
done
wait $beat_pid || fail "a write ended in an error"
info "rounds $round"
ends_well
