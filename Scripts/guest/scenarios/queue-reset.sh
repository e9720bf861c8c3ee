# A driver of its own resets each of four queues while the others are in use: Linux's never does that to a disk.

function=$(readlink -f $block/device/..)
echo "${function##*/}" >"$function/driver/unbind"
/usr/bin/queue-reset "$function" >/tmp/reset 2>&1 || fail "$(cat /tmp/reset)"
cat /tmp/reset
