# Jobs of several shapes, one after the other, each on its own part of the disk;
# fio checks every block it wrote against the sum inside it. The whole
# list runs three times, about a minute in all; fio's own loops cannot verify blocks of mixed sizes.

common="--filename=$disk --direct=1 --verify=crc32c --verify_fatal=1 --do_verify=1
  --randrepeat=0 --minimal --terse-version=3"

job() { # name, options…
  name=$1
  shift
  say "fio $name"
  # shellcheck disable=SC2086
  fio --name="$name" $common "$@" >/tmp/fio 2>&1 || {
    cat /tmp/fio
    fail "job $name"
  }
  # Fields of fio's terse line: 5 error, 9 and 50 requests per second.
  tail -n 1 /tmp/fio | awk -F ';' -v n="$name" '{ print "INFO fio " n " error " $5 " read " $6 " KiB, write " $47 " KiB" }'
}

deep="--ioengine=libaio --iodepth=16"

for round in 1 2 3; do
  say "round $round"
  job sequential $deep --rw=write --bs=128k --size=192m
  job random-4k $deep --rw=randwrite --bs=4k --offset=192m --size=48m
  job mixed-sizes $deep --rw=randrw --bsrange=512-128k --offset=256m --size=128m
  job sectors --ioengine=psync --rw=randwrite --bs=512 --offset=384m --size=2m
  job fsync $deep --rw=randwrite --bs=16k --fsync=8 --offset=400m --size=64m
  job four-jobs $deep --rw=randrw --bsrange=4k-64k --numjobs=4 --group_reporting --offset=512m --offset_increment=64m --size=48m
done
