#!/usr/bin/env bash
# Reports of other back-ends that can be installed, for Docs/conformance.md: text, JSON, JUnit and HTML, in conform-report/.
set -euo pipefail
cd "$(dirname "$0")/.."

vmm_blk=${VMM_BLK:-$PWD/.build/release/vmm-blk}
report=${CONFORM_REPORT:-conform-report}
mkdir -p "$report"

# check NAME COMMAND: a back-end that does not conform is a result, not a failure of this script.
check() {
  local name=$1 status=0
  "$vmm_blk" conform --exec "$2" --junit "$report/$name.xml" --html "$report/$name.html" \
    >"$report/$name.txt" 2>"$report/$name.log" || status=$?
  # 1 says that it does not conform; anything else, that it could not be checked.
  if [ "$status" -gt 1 ]; then
    echo "$name could not be checked: status $status" >&2
    exit "$status"
  fi
  tail -n 1 "$report/$name.txt"
}

blockdev='--blockdev driver=file,node-name=d,filename={disk},discard=unmap'
export='--export type=vhost-user-blk,id=e,node-name=d,num-queues=2,addr.type=unix,addr.path={socket}'
qemu-storage-daemon --version | head -n 1
check qemu-storage-daemon "exec qemu-storage-daemon $blockdev $export,writable=on"
check qemu-storage-daemon-read-only "exec qemu-storage-daemon $blockdev,read-only=on $export"
check qemu-storage-daemon-4k "exec qemu-storage-daemon $blockdev $export,writable=on,logical-block-size=4096"
echo "reports are in $report/"
