# A zoned disk as Linux sees it: the block layer's attributes, every zone command, fio writing zones sequentially, and
# filesystems for such disks (zonefs, btrfs). At the end the zones are as btrfs left them.
#
# zones=N, zone=MIB, capacity=MIB, conventional=N, open=N, active=N    the expected properties of the disk

queue=$block/queue
[ "$(feature 17)" = 1 ] || fail "the driver did not accept ZONED"
is() { # word of the kernel, what it should be
  found=$(cat "$queue/$1")
  [ "$found" = "$2" ] || fail "$1 is $found, not $2"
}
is zoned host-managed
is nr_zones "$zones"
is chunk_sectors $((zone * 2048))
is max_open_zones "$open"
is max_active_zones "$active"
[ "$(cat $queue/zone_append_max_bytes)" -gt 0 ] || fail "there are no zone appends"

# A line of `blkzone report`: start, len, cap, wptr, then reset, non-seq, zcond and a type in parentheses.
report() { blkzone report -o $(($1 * zone * 2048)) -c 1 $disk; }
state() { report "$1" | sed 's/.*zcond: *[0-9]*(\([a-z]*\)).*/\1/'; }
pointer() { printf %d "$(report "$1" | sed 's/.*wptr \(0x[0-9a-f]*\).*/\1/')"; }
expect_zone() { # zone, state, sectors written
  [ "$(state "$1")" = "$2" ] || fail "zone $1 is $(state "$1"), not $2"
  [ $# -lt 3 ] || [ "$(pointer "$1")" -eq "$3" ] || fail "$(pointer "$1") sectors of zone $1 are written, not $3"
}
zone_command() { blkzone "$1" -o $(($2 * zone * 2048)) -c 1 $disk; }
write() { # zone, offset and count in KiB
  dd if=/tmp/pattern of=$disk bs=4k oflag=direct,seek_bytes iflag=count_bytes conv=notrunc status=none \
    seek=$((($1 * zone << 20) + ($2 << 10))) count=$(($3 << 10)) 2>/tmp/dd
}

head -c 4m /dev/urandom >/tmp/pattern
blkzone report $disk >/tmp/report
[ "$(wc -l </tmp/report)" -eq "$zones" ] || fail "$(wc -l </tmp/report) zones are reported"
[ "$(grep -c 'CONVENTIONAL' /tmp/report)" -eq "$conventional" ] || fail "other zones are conventional"
[ "$(grep -c "cap $(printf 0x%06x $((capacity * 2048)))" /tmp/report)" -eq $((zones - conventional)) ] ||
  fail "other zones have a capacity of $capacity MiB"

first=$conventional
expect_zone $first em
write $first 0 256 || fail "the beginning of a zone cannot be written: $(cat /tmp/dd)"
expect_zone $first oi 512
! write $first 512 4 || fail "a write far from the write pointer was accepted"
! write $first 0 4 || fail "a write before the write pointer was accepted"
expect_zone $first oi 512
write $first 256 4 || fail "the zone cannot be written any more: $(cat /tmp/dd)"
zone_command close $first
expect_zone $first cl 520
zone_command open $first
expect_zone $first oe 520
zone_command finish $first
expect_zone $first fu
! write $first 260 4 || fail "a write to a full zone was accepted"
zone_command reset $first
expect_zone $first em 0

# Explicitly open zones up to the limit, and one more.
for number in $(seq 0 $((open - 1))); do zone_command open $((first + number)); done
! zone_command open $((first + open)) 2>/tmp/blkzone || fail "more zones are open than allowed"
blkzone reset $disk
expect_zone $first em 0
# Conventional zones can be written anywhere.
if [ "$conventional" -gt 0 ]; then write 0 512 64 && write 0 128 64 || fail "a conventional zone cannot be written: $(cat /tmp/dd)"; fi

# fio knows zones: in sequence within each, zones at random, everything read back and compared.
fio --name=zbd --filename=$disk --direct=1 --zonemode=zbd --ioengine=libaio --iodepth=4 --rw=randwrite --bs=64k \
  --offset=$((first * zone))m --size=$((8 * zone))m --io_size=24m --max_open_zones=4 --verify=crc32c --do_verify=1 \
  --verify_fatal=1 --output=/tmp/fio || {
  cat /tmp/fio
  fail "fio found wrong data on the disk"
}
blkzone reset $disk

# zonefs: each zone is a file that can be appended to. Its superblock is the magic number, a checksum and zeroes.
printf '\123\106\117\132\005\253\277\131' >/tmp/super
truncate -s 4096 /tmp/super
dd if=/tmp/super of=$disk bs=4096 oflag=direct conv=notrunc status=none
mount -t zonefs $disk /mnt
[ "$(ls /mnt/seq | wc -l)" -eq $((zones - conventional)) ] || fail "zonefs has $(ls /mnt/seq | wc -l) files"
/usr/bin/dd if=/tmp/pattern of=/mnt/seq/0 bs=512k count=4 oflag=direct,append conv=notrunc status=none
/usr/bin/dd if=/tmp/pattern of=/mnt/seq/1 bs=4k count=10 oflag=direct,append conv=notrunc status=none
/usr/bin/truncate -s 0 /mnt/seq/1
/usr/bin/truncate -s ${capacity}M /mnt/seq/2
cmp -n $((2 << 20)) /mnt/seq/0 /tmp/pattern || fail "zonefs reads other bytes than it wrote"
umount /mnt
expect_zone $first oi 4096
expect_zone $((first + 1)) em 0
expect_zone $((first + 2)) fu
blkzone reset $disk
dd if=/dev/zero of=$disk bs=4096 count=1 oflag=direct conv=notrunc status=none

# btrfs writes everything except its superblock with zone appends.
mkfs.btrfs -q -f -O zoned -m single -d single $disk
mount -t btrfs $disk /mnt
count=0
while [ $count -lt "${files:-120}" ]; do
  mkdir -p /mnt/$((count % 7))
  head -c $((count * 997)) /tmp/pattern >/mnt/$((count % 7))/$count
  [ $((count % 20)) -ne 0 ] || sync
  [ $((count % 3)) -ne 0 ] || rm /mnt/$((count % 7))/$count
  count=$((count + 1))
done
(cd /mnt && find . -type f | sort | xargs md5sum >/tmp/manifest && cp /tmp/manifest manifest)
umount /mnt
drop_caches
mount -t btrfs $disk /mnt
(cd /mnt && md5sum -c -s manifest) || fail "files differ after the second mount"
umount /mnt
check_filesystem btrfs $disk
if dmesg | grep -iE 'btrfs.*(error|corrupt)' >/tmp/errors; then
  cat /tmp/errors
  fail "btrfs saw errors"
fi
info "zones $(blkzone report $disk | md5sum | cut -d ' ' -f 1)"
info "used $(blkzone report $disk | grep -cvE '\(em\)|CONVENTIONAL')"
