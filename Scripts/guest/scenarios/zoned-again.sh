# The disk that the scenario `zoned` left, in another guest with another server: the zones and the files on btrfs are unchanged.
#
# report=SUM      sum of the previous guest's zone report

found=$(blkzone report $disk | md5sum | cut -d ' ' -f 1)
[ "$found" = "$report" ] || {
  blkzone report $disk
  fail "the zones are not as they were"
}
mount -t btrfs $disk /mnt
(cd /mnt && md5sum -c -s manifest) || fail "files differ from those that were written"
head -c 3m /dev/urandom >/mnt/more
sync
umount /mnt
check_filesystem btrfs $disk
