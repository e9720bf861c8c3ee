# sum=MD5   sum of the whole disk, which the host filled

[ "$(cat $block/ro)" = 1 ] || fail "the disk is not read-only"
[ "$(blockdev --getro $disk)" = 1 ] || fail "the disk can be opened for writing"
! dd if=/dev/zero of=$disk bs=4k count=1 oflag=direct conv=notrunc 2>/tmp/refused ||
  fail "a write succeeded"
info "write refused: $(tail -n 1 /tmp/refused)"
megabytes=$(($(cat $block/size) >> 11))
[ "$(sum_of_disk 0 $megabytes)" = "$sum" ] || fail "the disk does not read as the image"
