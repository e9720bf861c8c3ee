#!/usr/bin/env bash
# Shows a real Linux using a disk of vmm-blk: boots it on `vmm-blk serve`,
# makes a file system, writes, reads back, trims. Removes everything afterwards.
#
#   demo.sh [uml|qemu]
set -euo pipefail

# shellcheck source=Scripts/guest/lib.sh
source "$(dirname "$0")/lib.sh"

kind=${1:-uml}
need_server
"$guest/build-image.sh" "$kind"
enter_work

empty_disk "$work/disk" 256M
start_server "$work/disk" "$work/socket" --num-queues 2
start_guest --guest "$kind" --socket "$work/socket" --queues 2 --scenarios demo --show
wait_guests
occupied=$(($(stat -c %b "$work/disk") / 2048))
stop_server

echo
echo "The guest is off and the server has ended with status 0. On the host, the image"
echo "of 256 MiB occupies $occupied MiB, and the filesystem in it is clean:"
e2fsck -fn "$work/disk" 2>&1 | tail -n 1 | sed "s|$work/||"
