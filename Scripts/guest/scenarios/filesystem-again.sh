# The files that the scenario `filesystem` left, seen by another boot on another server.
#
# fs=ext4|xfs|btrfs   ext4 by default
# manifest=MD5        sum of the list of sums, as the first boot reported it

fs=${fs:-ext4}
check_filesystem "$fs" $disk
mount -t "$fs" -o ro $disk /mnt
[ "$(md5sum </mnt/manifest | cut -d ' ' -f 1)" = "$manifest" ] || fail "the list of files differs"
(cd /mnt && md5sum -c -s manifest) || fail "files differ after the second boot"
umount /mnt
