# The disk grows while its filesystem is mounted: the kernel is told, the filesystem is made larger, and the new space is used.
#
# sizes=N,N…   the disk's sizes in MiB, one after the other; the host changes it when this scenario prints that it is ready

megabytes() { echo $(($(cat $block/size) >> 11)); }

make_filesystem ext4 $disk
mount -t ext4 $disk /mnt
round=0
for size in $(echo "$sizes" | tr , ' '); do
  round=$((round + 1))
  dd if=/dev/urandom of=/mnt/file$round bs=1M count=4 oflag=direct status=none || fail "a write ended in an error"
  echo "BEAT $round"
  waited=0
  until [ "$(megabytes)" = "$size" ]; do
    waited=$((waited + 1))
    [ $waited -lt 1200 ] || fail "the kernel still sees $(megabytes) MiB, not $size"
    sleep 0.1
  done
  resize2fs $disk >/tmp/resized 2>&1 || {
    cat /tmp/resized
    fail "the filesystem cannot be made larger"
  }
  # Fills most of the new space, up to the end.
  dd if=/dev/urandom of=/mnt/new$round bs=1M count=$((size - $(df -m /mnt | awk 'END { print $3 }') - 24)) oflag=direct status=none ||
    fail "the new space cannot be used"
  dd if=$disk of=/dev/null bs=1M skip=$((size - 1)) count=1 iflag=direct status=none || fail "the new end cannot be read"
  info "resized to $size MiB"
  sync
  rm /mnt/new$round
done
ends_well
