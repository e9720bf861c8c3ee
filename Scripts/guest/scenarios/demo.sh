# What a user would try first, for Scripts/guest/demo.sh.

show() {
  echo
  echo "# $*"
  "$@"
}
counters() {
  awk '{ printf "  %d reads, %d KiB   %d writes, %d KiB   %d discards   %d flushes\n", $1, $3/2, $5, $7/2, $12, $16 }' $block/stat
}

show uname -sr
echo
echo "# the disk, as this Linux sees it"
echo "  $((size_of = $(cat $block/size) >> 11)) MiB, $(ls $block/mq | wc -l) queues, logical block $(cat $block/queue/logical_block_size)," \
  "serial '$(cat $block/serial)', cache: $(cat $block/queue/write_cache)"
show mkfs.ext4 -q -F $disk
show mount -t ext4 $disk /mnt

echo
echo "# writing 500 files, then sync"
head -c 10m /dev/urandom | split -a 3 -b 20k - /mnt/file-
(cd /mnt && md5sum file-* >/tmp/sums)
sync
show df -h /mnt
counters

echo
echo "# unmount, drop the cache, mount, read all of them back"
umount /mnt
drop_caches
mount -t ext4 $disk /mnt
(cd /mnt && md5sum -c -s /tmp/sums) || fail "files differ"
echo "  $(wc -l </tmp/sums) files are what was written"
counters

show rm -r /mnt/file-aaa /mnt/file-aab
show fstrim -v /mnt
umount /mnt
show e2fsck -fn $disk
counters
