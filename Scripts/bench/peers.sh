#!/usr/bin/env bash
# vmm-blk against qemu-storage-daemon and fio on this machine, in one interleaved run; writes bench-report/.
#
#   Scripts/bench/peers.sh [options of peers.py, such as --rounds 3 --images tmpfs]
set -euo pipefail
cd "$(dirname "$0")/../.."

Scripts/setup.sh build bench
swift build -c release --product vmm-blk
/usr/bin/python3 Scripts/bench/peers.py --vmm-blk .build/release/vmm-blk --output bench-report "$@"
/usr/bin/python3 Scripts/bench/report.py bench-report/peers.html bench-report/peers.json
echo "bench-report/peers.html is written"
