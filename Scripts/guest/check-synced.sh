#!/usr/bin/env bash
# Judges an image of ext4 on which the scenario `fsynced` was running when the power failed: after the journal is replayed the
# filesystem is sound, and each numbered file is whole but the last, because it was synced before the next one was made.
#
# check-synced.sh IMAGE
set -euo pipefail

image=$1

# Status 1 says that something was put right, which after a crash is no fault.
repaired=0
said=$(e2fsck -fy "$image" 2>&1) || repaired=$?
[ $repaired -le 1 ] || { echo "e2fsck cannot mend it: $said"; exit 1; }
said=$(e2fsck -fn "$image" 2>&1) || { echo "e2fsck finds damage: $said"; exit 1; }

names() { debugfs -R "ls -p $1" "$image" 2>/dev/null | cut -s -d / -f 6 | grep -E '^[0-9]+$' | sort -n || true; }

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
last=-1
for hundred in $(names /); do
  debugfs -R "rdump /$hundred $folder" "$image" >/dev/null 2>&1
  for number in $(names "/$hundred"); do [ "$number" -le $last ] || last=$number; done
done
number=0
while [ $number -lt $last ]; do
  seq $number $((number + 700)) | cmp -s - "$folder/$((number / 100))/$number" || { echo "file $number of $last is not what was synced"; exit 1; }
  number=$((number + 1))
done
