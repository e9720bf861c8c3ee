# Thousands of small files on a filesystem, read back after the cache is dropped,
# and checked by the filesystem's own tool. The sums stay on the disk and are reported
# to the host, for filesystem-again and for the host's own look.
#
# fs=ext4|xfs|btrfs   ext4 by default
# files=N             number of files of each size, 1000 by default

fs=${fs:-ext4}
files=${files:-1000}
[ "$(cat $block/queue/write_cache)" = "write back" ] || fail "the disk asks for no flushes"
make_filesystem "$fs" $disk
mount -t "$fs" $disk /mnt
for size in 700 4096 20000; do
  mkdir /mnt/$size
  head -c $((size * files)) /dev/urandom | split -a 3 -b $size - /mnt/$size/file-
done
# Some are removed, so that blocks are freed and used again.
rm /mnt/4096/file-a[d-k]*
mkdir /mnt/again
head -c 2m /dev/urandom | split -a 3 -b 3000 - /mnt/again/file-
fstrim /mnt

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
mount -t "$fs" $disk /mnt
(cd /mnt && md5sum -c -s manifest) || fail "files differ after the second mount"
umount /mnt
check_filesystem "$fs" $disk
