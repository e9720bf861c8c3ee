#!/usr/bin/env bash
# The main job in a few seconds, without QEMU or KVM: a device in one process, a guest in another, a memory file between
# them, and a drawing of the rings.
set -euo pipefail
cd "$(dirname "$0")/.."

vmm_blk=${VMM_BLK:-$PWD/.build/release/vmm-blk}
bytes=128M
# The first build of 'make demo' is not optimized.
[ -x "$vmm_blk" ] || { vmm_blk=$PWD/.build/first/release/vmm-blk; bytes=16M; }
folder=$(mktemp -d)
device=
guest=
clean_up() {
  for process in $guest $device; do kill "$process" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$folder"
}
trap clean_up EXIT
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n%s\n' "$*"; }

cd "$folder"
say "1. A disk image, a file of guest memory, and the device between them"
echo "$ truncate -s 256M disk.img"
truncate -s 256M disk.img
echo "$ vmm-blk run --memory guest.mem --create 64M --blk-file disk.img --num-queues 2 &"
"$vmm_blk" run --memory guest.mem --create 64M --blk-file disk.img --num-queues 2 2>device.log >device.out &
device=$!
until grep -q Serving device.out; do
  kill -0 "$device" 2>/dev/null || { cat device.log; exit 1; }
  sleep 0.05
done
cat device.out

say "2. A guest in another process brings it up, writes, flushes, reads back, and checks every byte"
echo "$ vmm-blk guest verify --memory guest.mem --bytes $bytes"
"$vmm_blk" guest verify --memory guest.mem --bytes $bytes

say "3. The rings while a small guest is at work"
"$vmm_blk" guest verify --memory guest.mem --queues 1 --queue-size 8 --depth 2 --cuts classic --seconds 3 >guest.log 2>&1 &
guest=$!
sleep 1
echo "$ vmm-blk guest verify --memory guest.mem --queues 1 --queue-size 8 --depth 2 --cuts classic --seconds 3 &"
echo "$ vmm-blk inspect guest.mem"
"$vmm_blk" inspect guest.mem
wait "$guest" || { cat guest.log; exit 1; }
guest=

say "4. The device is stopped: everything that was taken is finished"
kill -TERM "$device"
wait "$device"
device=
echo "ended with status 0; $(du -h --apparent-size disk.img | cut -f1) image, $(du -h disk.img | cut -f1) of it on disk"

say "A real guest on the same disk:"
cat <<'END'
  vmm-blk serve --blk-file disk.img --socket-path /tmp/disk.sock &
  qemu-system-x86_64 -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem \
      -chardev socket,id=disk,path=/tmp/disk.sock,reconnect=1 -device vhost-user-blk-pci,chardev=disk …
  (or, without QEMU: make guest)
END
