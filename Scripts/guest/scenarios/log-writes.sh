# A filesystem on dm-log-writes: the first disk holds it, the second every write, discard and
# flush in the order in which the first disk received them. The host replays the log.
# The log is marked "made" after mkfs, and "mark-N" when file N was synced.

marks=12

dmsetup create log --noudevsync --table "0 $(blockdev --getsz $disk) log-writes $disk /dev/vdb"
log=/dev/mapper/log
[ -b $log ] || log=/dev/dm-0
make_filesystem ext4 $log
sync
dmsetup message log 0 mark made
mount -t ext4 $log /mnt
number=0
while [ $number -lt $marks ]; do
  mkdir /mnt/$number
  head -c 300k /dev/urandom | split -a 3 -b 3000 - /mnt/$number/file-
  head -c $((number * 100000)) /dev/urandom >/mnt/large
  seq $number $((number + 5000)) >/mnt/mark-$number
  # Files that are removed: their blocks are written again, and discarded.
  [ $number -lt 2 ] || rm -r /mnt/$((number - 2))
  [ $((number % 4)) -ne 3 ] || fstrim /mnt
  sync
  dmsetup message log 0 mark "mark-$number"
  number=$((number + 1))
done
umount /mnt
dmsetup message log 0 mark end
dmsetup remove --noudevsync log
info "marks $marks"
# The log's own superblock is written when the target is removed.
sync
