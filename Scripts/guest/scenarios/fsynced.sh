# Writes numbered files and prints each number as soon as fsync has returned, until
# power is cut: the machine never ends by itself. The next boot's `fsynced-check`
# must find every file whose number was printed.
#
# fs=ext4|xfs|btrfs
# made=yes           the filesystem exists already
# mark=N             each number is also written to sector N of the disk, after the filesystem

[ "${made:-}" = yes ] || make_filesystem "$fs" $disk
mount -t "$fs" $disk /mnt
number=0
while :; do
  [ $((number % 100)) -ne 0 ] || mkdir -p /mnt/$((number / 100))
  # On these filesystems, fsync of a new file also makes its name stable.
  seq "$number" $((number + 700)) | dd of=/mnt/$((number / 100))/$number bs=64k conv=fsync status=none
  [ -z "${mark:-}" ] ||
    printf '%-512s' "$number" | dd of=$disk bs=512 seek="$mark" iflag=fullblock oflag=direct conv=notrunc status=none
  echo "ACK $number"
  number=$((number + 1))
done
