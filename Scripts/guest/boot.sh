#!/usr/bin/env bash
# Boots one guest on a vhost-user-blk socket that is already served, runs
# scenarios in it and says by its exit code what the guest reported:
# 0 every scenario is ok, 1 one failed or did not report, 124 time was up.
#
#   boot.sh --socket PATH --scenarios NAME[,NAME…] [options]
#   boot.sh --socket PATH --shell [options]
set -euo pipefail

usage() {
  sed -n 's/^  \(--[^)]*\)) *\(.*\) *# \(.*\)$/\1\t\3/p' "$0" >&2
  exit 2
}

here=$(cd "$(dirname "$0")" && pwd)
cache=$(cd "$here/../.." && pwd)/.guest

socket='' scenarios='' log=/dev/null timeout=120 show=no shell=no
queues=1 processors=2 memory=512 chardev='' device='' reboot=(-no-reboot)
append='console=ttyS0 quiet panic=-1'

while [ $# -gt 0 ]; do
  case $1 in
  --socket)      socket=$2; shift 2 ;;                        # the back-end's socket
  --scenarios)   scenarios=$2; shift 2 ;;                     # names in Scripts/guest/scenarios, with commas
  --set)         append+=" $2"; shift 2 ;;                    # name=value, a parameter of the scenarios
  --log)         log=$2; shift 2 ;;                           # file for the serial console
  --show)        show=yes; shift ;;                           # show the serial console too
  --shell)       shell=yes; shift ;;                          # a shell on this terminal; "poweroff -f" ends it
  --timeout)     timeout=$2; shift 2 ;;                       # seconds, then the guest is stopped
  --queues)      queues=$2; shift 2 ;;                        # request queues
  --queue-size)  device+=,queue-size=$2; shift 2 ;;           # entries of each queue
  --event-idx)   device+=,event_idx=$2; shift 2 ;;            # on|off
  --indirect)    device+=,indirect_desc=$2; shift 2 ;;        # on|off
  --legacy)      device+=,disable-modern=on; shift ;;         # virtio 0.9 only
  --device)      device+=,$2; shift 2 ;;                      # any other option of vhost-user-blk-pci
  --reconnect)   chardev+=,reconnect=$2; shift 2 ;;           # seconds between attempts when the back-end goes
  --reboot)      reboot=(); shift ;;                          # let the guest reboot; else QEMU ends there
  --memory)      memory=$2; shift 2 ;;                        # MiB
  --processors)  processors=$2; shift 2 ;;                    # a guest uses no more queues than it has of these
  *) usage ;;
  esac
done
[ -n "$socket" ] || usage
[ "$shell" = yes ] || [ -n "$scenarios" ] || usage

# fio brings 100 MB of libraries; only those who use it wait for them.
initramfs=$cache/initramfs.cpio
if [ "$shell" = yes ] || [[ $scenarios == *fio* ]]; then initramfs=$cache/initramfs-fio.cpio; fi

# The back-end maps the guest's memory, so it must be a shareable file. TCG, not
# KVM: it runs anywhere, and correctness is what these boots are for.
# shellcheck disable=SC2054  # the commas are QEMU's
qemu=(qemu-system-x86_64 -M q35,accel=tcg -cpu max -smp "$processors" -m "$memory"
  -object "memory-backend-memfd,id=memory,size=${memory}M,share=on" -numa node,memdev=memory
  -kernel "$cache/vmlinuz" -initrd "$initramfs"
  -nodefaults -nic none -vga none -display none "${reboot[@]}"
  -chardev "socket,id=blk,path=$socket$chardev"
  -device "vhost-user-blk-pci,chardev=blk,num-queues=$queues$device")

if [ "$shell" = yes ]; then
  exec "${qemu[@]}" -append "$append scenarios=shell" -serial mon:stdio
fi

# A log that is left from another run would answer for this one.
[ "$log" != /dev/null ] || { log=$(mktemp); remove_log=$log; }
: >"$log"
pids=()
stop() {
  [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true
  wait
  rm -f "${remove_log:-}"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# In the background and waited for, because bash runs no trap before a command
# in the foreground has ended.
timeout --kill-after=5 "$timeout" "${qemu[@]}" -append "$append scenarios=$scenarios" \
  -chardev "file,id=console,path=$log" -serial chardev:console </dev/null &
pids+=($!)
if [ "$show" = yes ]; then
  tail -n +1 -f --pid="${pids[0]}" "$log" 2>/dev/null | tr -d '\r' &
fi
status=0
wait "${pids[0]}" || status=$?
pids=()
wait

explain() {
  echo "boot: the end of the guest's console:" >&2
  tail -n 40 "$log" | tr -d '\r' >&2
  # Last, because the last line of a log is the first one that is read.
  echo "boot: $*" >&2
}

case $status in
0) ;;
124 | 137)
  explain "the guest was still running after $timeout seconds"
  exit 124
  ;;
*)
  explain "QEMU ended with status $status"
  exit 1
  ;;
esac

for scenario in ${scenarios//,/ }; do
  # The firmware leaves control characters before the first line.
  result=$(tr -d '\r' <"$log" | sed -n "s/^.*RESULT $scenario //p" | tail -n 1)
  if [ "$result" != ok ]; then
    explain "$scenario: ${result:-no result, the guest ended early}"
    exit 1
  fi
done
