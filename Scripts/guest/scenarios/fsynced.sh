# Writes numbered files and says each number as soon as fsync has returned, until
# the power is cut: the machine has no end of its own. The next boot's `fsynced-check`
# must find every file that was said.
#
# fs=ext4|xfs|btrfs
# made=yes           it is there already
# mark=N             each number also goes into sector N of the disk, behind the filesystem

[ "${made:-}" = yes ] || make_filesystem "$fs" $disk
mount -t "$fs" $disk /mnt
number=0
while :; do
  [ $((number % 100)) -ne 0 ] || mkdir -p /mnt/$((number / 100))
  # fsync of a new file keeps its name, too, on these filesystems.
  seq "$number" $((number + 700)) | dd of=/mnt/$((number / 100))/$number bs=64k conv=fsync status=none
  [ -z "${mark:-}" ] ||
    printf '%-512s' "$number" | dd of=$disk bs=512 seek="$mark" iflag=fullblock oflag=direct conv=notrunc status=none
  echo "ACK $number"
  number=$((number + 1))
done
