# A separate driver resets each of four queues while the others are in use: Linux's driver never resets a disk's queue.

function=$(readlink -f $block/device/..)
echo "${function##*/}" >"$function/driver/unbind"
/usr/bin/queue-reset "$function" >/tmp/reset 2>&1 || fail "$(cat /tmp/reset)"
cat /tmp/reset
