# Thousands of small files on ext4, read back after the cache is dropped. The
# host compares them again in the image, with the sums told here.

[ "$(cat $block/queue/write_cache)" = "write back" ] || fail "the disk asks for no flushes"
mkfs.ext4 -q -F $disk
mount -t ext4 $disk /mnt
for size in 700 4096 20000; do
  mkdir /mnt/$size
  head -c $((size * 1000)) /dev/urandom | split -a 3 -b $size - /mnt/$size/file-
done
# Some go again, so that blocks are freed and used a second time.
rm /mnt/4096/file-b*
mkdir /mnt/again
head -c 2m /dev/urandom | split -a 3 -b 3000 - /mnt/again/file-

cd /mnt
find . -type f | sort | xargs md5sum >/tmp/manifest
mv /tmp/manifest manifest
cd /
info "files $(wc -l </mnt/manifest)"
info "manifest $(md5sum </mnt/manifest | cut -d ' ' -f 1)"
sync
[ "$(awk '{ print $16 }' $block/stat)" -gt 0 ] || fail "sync sent no flush"

umount /mnt
drop_caches
mount -t ext4 $disk /mnt
(cd /mnt && md5sum -c -s manifest) || fail "files differ after the second mount"
umount /mnt
e2fsck -fn $disk >/tmp/fsck 2>&1 || fail "e2fsck: $(tail -n 3 /tmp/fsck)"
