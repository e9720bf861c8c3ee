# The disk comes full of the host's random bytes. Two parts are zeroed by
# command, one that may be freed and one that may not; the host compares all.
#
#   0..8 MiB     zeroed with unmap allowed (punch hole), which the kernel never
#                replaces by writing zeroes
#   16..24 MiB   zeroed without (zero range)

[ "$(cat $block/queue/write_zeroes_max_bytes)" -gt 0 ] || fail "the disk offers no write-zeroes"
zeroes=$(head -c 8m /dev/zero | md5sum | cut -d ' ' -f 1)
untouched=$(sum_of_disk 8 8)
[ "$(sum_of_disk 0 8)" != "$zeroes" ] || fail "the disk was zero before"

/usr/bin/fallocate --punch-hole --offset 0 --length 8M $disk
/usr/bin/fallocate --zero-range --offset 16M --length 8M $disk
drop_caches

[ "$(sum_of_disk 0 8)" = "$zeroes" ] || fail "the punched part is not zero"
[ "$(sum_of_disk 16 8)" = "$zeroes" ] || fail "the zeroed part is not zero"
[ "$(sum_of_disk 8 8)" = "$untouched" ] || fail "the part between has changed"
# The driver turns the feature off if the device answers UNSUPP.
[ "$(cat $block/queue/write_zeroes_max_bytes)" -gt 0 ] || fail "the device refused write-zeroes"
