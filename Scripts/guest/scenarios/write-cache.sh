# The driver may turn the device's write cache off and on; flushes are sent only
# while it is on.

[ "$(feature 11)" = 1 ] || fail "the disk does not let the driver choose its cache"

flushes() { awk '{ print $16 }' $block/stat; }
write_and_sync() { dd if=/dev/zero of=$disk bs=64k count=4 conv=notrunc,fsync status=none; }

choose() { # cache type
  echo "$1" >$block/cache_type
  [ "$(cat $block/cache_type)" = "$1" ] || fail "the disk did not accept '$1'"
}

choose "write back"
before=$(flushes)
write_and_sync
[ "$(flushes)" -gt "$before" ] || fail "no flush was sent with a write-back cache"

choose "write through"
before=$(flushes)
write_and_sync
[ "$(flushes)" -eq "$before" ] || fail "a flush was sent with a write-through cache"

choose "write back"
