# Checks the files of `fsynced` after power was cut.
#
# fs=ext4|xfs|btrfs
# acked=N             how many files the previous guest acknowledged, from 0 on

# Mounting replays the journal, which the tools need.
mount -t "$fs" $disk /mnt
number=0
while [ "$number" -lt "$acked" ]; do
  seq "$number" $((number + 700)) | cmp -s - /mnt/$((number / 100))/$number ||
    fail "file $number of $acked is not what was written before the power was cut"
  number=$((number + 1))
done
umount /mnt
check_filesystem "$fs" $disk
