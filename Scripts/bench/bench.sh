#!/usr/bin/env bash
# A short run of the laboratory: which completion path suits this machine; writes bench-report/ in under five minutes.
#
#   Scripts/bench/bench.sh [IMAGE …]
#
# Without images it makes two and removes them again: one in memory, one on the disk that this directory is on.
# Images given are only read.
set -euo pipefail
cd "$(dirname "$0")/../.."

Scripts/setup.sh build bench
swift build -c release --product vmm-blk
mkdir -p bench-report

made=()
trap 'rm -f "${made[@]}"' EXIT
if [ $# -eq 0 ]; then
  for place in /dev/shm /var/tmp; do
    [ -d "$place" ] && [ -w "$place" ] || continue
    image=$(mktemp "$place/vmm-blk-bench-XXXXXX.img")
    made+=("$image")
    # Written, not only allocated: reading unwritten extents costs no I/O.
    head -c 512M /dev/urandom > "$image"
    sync "$image"
  done
  set -- "${made[@]}"
fi

reports=()
for image in "$@"; do
  directory=bench-report/$(basename "$image" .img | sed 's/^vmm-blk-bench-.*/run/')-$((${#reports[@]} + 1))
  .build/release/vmm-blk bench --paths --blk-file "$image" --read-only --rounds 3 --slice 0.15 --output "$directory"
  reports+=("$directory/paths.json")
done
/usr/bin/python3 Scripts/bench/report.py bench-report/paths.html "${reports[@]}"
echo "bench-report/paths.html is written"
