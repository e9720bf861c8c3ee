# What the scenario `filesystem` left, seen by another boot on another server.
#
# fs=ext4|xfs|btrfs   ext4 when it is not said
# manifest=MD5        of the list of sums, as the first boot told it

fs=${fs:-ext4}
check_filesystem "$fs" $disk
mount -t "$fs" -o ro $disk /mnt
[ "$(md5sum </mnt/manifest | cut -d ' ' -f 1)" = "$manifest" ] || fail "the list of files is another"
(cd /mnt && md5sum -c -s manifest) || fail "files differ after the second boot"
umount /mnt
