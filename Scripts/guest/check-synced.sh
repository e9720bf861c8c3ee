#!/usr/bin/env bash
# Checks an image of ext4 on which the scenario `fsynced` was running when power was cut: after the journal is replayed the
# filesystem is sound, and each numbered file is complete up to the one whose number is in sector MARK. The number was written
# there
# after fsync had returned, so if that write is there, the file has to be.
#
# check-synced.sh IMAGE MARK
set -euo pipefail

image=$1 mark=$2

# Status 1 means that something was repaired, which is no error after a crash.
repaired=0
said=$(e2fsck -fy "$image" 2>&1) || repaired=$?
[ $repaired -le 1 ] || { echo "e2fsck cannot repair it: $said"; exit 1; }
said=$(e2fsck -fn "$image" 2>&1) || { echo "e2fsck finds damage: $said"; exit 1; }

last=$(dd if="$image" bs=512 skip="$mark" count=1 status=none | tr -d '\000 ')
[ -n "$last" ] || exit 0

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for hundred in $(seq 0 $((last / 100))); do debugfs -R "rdump /$hundred $folder" "$image" >/dev/null 2>&1; done
for number in $(seq 0 "$last"); do
  seq "$number" $((number + 700)) | cmp -s - "$folder/$((number / 100))/$number" ||
    { echo "file $number of $last is not what was synced"; exit 1; }
done
