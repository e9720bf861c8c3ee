# Writes, reboots the machine without resetting the device, and reads. The
# disk's content tells which of the two boots this is.

marked() { [ "$(dd if=$disk bs=512 count=1 iflag=direct status=none | head -c 6)" = marked ]; }

if ! marked; then
  head -c 4m /dev/urandom >/tmp/pattern
  dd if=/tmp/pattern of=$disk bs=64k seek=16 oflag=direct conv=notrunc status=none
  # The sum is longer than its line and fills the first sector.
  printf '%-511s\n' "marked $(md5sum </tmp/pattern)" |
    dd of=$disk bs=512 oflag=direct iflag=fullblock conv=notrunc,fsync status=none
  # A reader keeps requests in flight when the machine resets.
  dd if=$disk of=/dev/null bs=512 iflag=direct status=none &
  touch /tmp/reboot
else
  sum=$(dd if=$disk bs=512 count=1 iflag=direct status=none | cut -d ' ' -f 2)
  [ "$(sum_of_disk 1 4)" = "$sum" ] || fail "the second boot reads other bytes than the first wrote"
fi
