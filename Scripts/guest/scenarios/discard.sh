# The disk comes full of the host's random bytes. Frees 32 MiB of it with one
# command and most of the first half through a filesystem; the host looks at
# what its image occupies before and after.
#
#   0..64 MiB     ext4, trimmed
#   64..96 MiB    not touched
#   96..128 MiB   discarded

[ "$(cat $block/queue/discard_max_bytes)" -gt 0 ] || fail "the disk offers no discard"

blkdiscard -o $((96 << 20)) -l $((32 << 20)) $disk
# mke2fs would discard as well; here only the trim should.
mkfs.ext4 -q -F -E nodiscard $disk 64M
mount -t ext4 $disk /mnt
head -c 4m /dev/urandom >/mnt/kept
sum=$(md5sum </mnt/kept)
sync
fstrim -v /mnt
umount /mnt
drop_caches
mount -t ext4 $disk /mnt
[ "$(md5sum </mnt/kept)" = "$sum" ] || fail "the trim took bytes of a file"
umount /mnt
info "discards $(awk '{print $12}' $block/stat)"
