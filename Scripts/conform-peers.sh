#!/usr/bin/env bash
# Conformance reports of other back-ends that can be installed, for Docs/conformance.md: text, JUnit and HTML, in
# conform-report/.
#
#   conform-peers.sh [NAME…]     only these; all by default
#
# PATIENCE: seconds to wait for a missing answer; most of the time goes into these waits.
set -euo pipefail
cd "$(dirname "$0")/.."

vmm_blk=${VMM_BLK:-$PWD/.build/release/vmm-blk}
report=${CONFORM_REPORT:-conform-report}
wanted=("$@") checked=0
mkdir -p "$report"

# check NAME COMMAND: a back-end that does not conform is a result, not a failure of this script.
check() {
  local name=$1 status=0
  if [ ${#wanted[@]} -gt 0 ] && [[ " ${wanted[*]} " != *" $name "* ]]; then return; fi
  checked=$((checked + 1))
  "$vmm_blk" conform --exec "$2" --patience "${PATIENCE:-20}" --junit "$report/$name.xml" \
    --html "$report/$name.html" >"$report/$name.txt" 2>"$report/$name.log" || status=$?
  # Status 1 means that it does not conform; any other, that it could not be checked.
  if [ "$status" -gt 1 ]; then
    echo "$name could not be checked: status $status" >&2
    exit "$status"
  fi
  echo "$name: $(tail -n 1 "$report/$name.txt" | sed 's/.*: \([0-9]* checks\)/\1/')"
}

blockdev='--blockdev driver=file,node-name=d,filename={disk}'
export='--export type=vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path={socket}'
qemu-storage-daemon --version | head -n 1
check qemu-storage-daemon "exec qemu-storage-daemon $blockdev,discard=unmap $export,num-queues=2,writable=on"
check qemu-storage-daemon-one-queue "exec qemu-storage-daemon $blockdev,discard=unmap $export,num-queues=1,writable=on"
check qemu-storage-daemon-no-discard "exec qemu-storage-daemon $blockdev $export,num-queues=2,writable=on"
check qemu-storage-daemon-4k \
  "exec qemu-storage-daemon $blockdev,discard=unmap $export,num-queues=2,writable=on,logical-block-size=4096"
# Both ways to open a read-only disk.
check qemu-storage-daemon-read-only "exec qemu-storage-daemon $blockdev,read-only=on $export,num-queues=2"
check qemu-storage-daemon-not-writable "exec qemu-storage-daemon $blockdev $export,num-queues=2,writable=off"
check qemu-storage-daemon-qcow2 "qemu-img create -q -f qcow2 {disk}.qcow2 64M
  exec qemu-storage-daemon --blockdev driver=file,node-name=f,filename={disk}.qcow2,discard=unmap \
    --blockdev driver=qcow2,node-name=d,file=f,discard=unmap $export,num-queues=2,writable=on"

# DPDK's sample, a disk in memory on DPDK's vhost library: Debian has its source. It listens in the folder that it runs in.
sample=/usr/share/dpdk/examples/vhost_blk
if [ ${#wanted[@]} -gt 0 ] && [[ " ${wanted[*]} " != *" dpdk-vhost-blk "* ]]; then
  :
elif [ -d "$sample" ] && pkg-config --exists libdpdk; then
  build=$(mktemp -d)
  trap 'rm -rf "$build"' EXIT
  cp -r "$sample"/. "$build"
  make -s -C "$build" >"$report/dpdk-build.log" 2>&1
  pkg-config --modversion libdpdk | sed 's/^/DPDK /'
  check dpdk-vhost-blk "cd \"\$(dirname {socket})\" && ln -sfn vhost.socket {socket} &&
    exec $build/build/vhost-blk --no-huge -m 512 --no-pci --no-shconf --no-telemetry"
else
  echo "DPDK's sample is not here: Scripts/setup.sh peers installs it" >&2
fi
if [ $checked -eq 0 ]; then
  echo "conform-peers.sh: there is no back-end ${wanted[*]}" >&2
  exit 2
fi
echo "reports are in $report/"
