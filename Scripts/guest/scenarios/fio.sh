# Jobs of several shapes, one after the other, each on its own part of the disk and with one of the
# guest's I/O interfaces; fio checks every block it wrote against the sum inside it. The list is
# run again until the time is over, at least once: a slow machine does less, not longer.
#
# seconds=N     time after which no new round begins
# engines=A,B   fio's engines, used in turn; libaio by default

common="--filename=$disk --verify=crc32c --verify_fatal=1 --do_verify=1
  --randrepeat=0 --minimal --terse-version=3"
engines=$(echo "${engines:-libaio}" | tr , ' ')
round=0

now() { cut -d . -f 1 /proc/uptime; }

job() { # name, options…
  name=$1
  shift
  # Another engine for each job, and for the same job another in each round.
  number=$((number + 1))
  # shellcheck disable=SC2086
  set -- $engines -- "$@"
  count=0
  for word in "$@"; do
    [ "$word" != -- ] || break
    count=$((count + 1))
  done
  shift $(((number + round) % count))
  engine=$1
  while [ "$1" != -- ]; do shift; done
  shift
  # One goes through the page cache. (Not mmap: in user-mode Linux its verification fails on any back-end.)
  [ "$engine" = sync ] && direct=0 || direct=1
  say "fio $name, $engine"
  # shellcheck disable=SC2086
  fio --name="$name" --ioengine="$engine" --iodepth=16 --direct=$direct $common "$@" >/tmp/fio 2>&1 || {
    cat /tmp/fio
    fail "job $name with $engine"
  }
  # Fields of fio's terse line: 5 error, 6 and 47 KiB read and written.
  tail -n 1 /tmp/fio | awk -F ';' -v n="$name $engine" '{ print "INFO fio " n " error " $5 " read " $6 " KiB, write " $47 " KiB" }'
}

end=$(($(now) + ${seconds:-30}))
while :; do
  number=0
  say "round $round"
  job sequential --rw=write --bs=128k --size=192m
  job random-4k --rw=randwrite --bs=4k --offset=192m --size=48m
  job mixed-sizes --rw=randrw --bsrange=512-128k --offset=256m --size=128m
  job sectors --rw=randwrite --bs=512 --offset=384m --size=2m
  job fsync --rw=randwrite --bs=16k --fsync=8 --offset=400m --size=64m
  job four-jobs --rw=randrw --bsrange=4k-64k --numjobs=4 --group_reporting --offset=512m --offset_increment=64m --size=48m
  job trim --rw=randtrimwrite --bs=64k --offset=832m --size=64m
  round=$((round + 1))
  [ "$(now)" -lt $end ] || break
done
info "rounds $round"
