# block_size=N   the logical block size the disk should have

found=$(cat $block/queue/logical_block_size)
[ "$found" -eq "$block_size" ] || fail "the logical block is $found bytes"
# Not busybox's dd, which retries without O_DIRECT and succeeds.
! /usr/bin/dd if=/dev/zero of=$disk bs=512 count=1 oflag=direct conv=notrunc 2>/dev/null ||
  fail "half a block can be written"

mkfs.ext4 -q -F $disk
mount -t ext4 $disk /mnt
head -c 8m /dev/urandom | split -a 3 -b 5000 - /mnt/file-
(cd /mnt && md5sum file-* >/tmp/sums)
umount /mnt
drop_caches
mount -t ext4 $disk /mnt
(cd /mnt && md5sum -c -s /tmp/sums) || fail "files differ after the second mount"
umount /mnt
