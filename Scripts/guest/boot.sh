#!/usr/bin/env bash
# Boots one guest on vhost-user-blk sockets that are already served, runs
# scenarios in it, and reports the guest's result in its exit code:
# 0 every scenario is ok, 1 one failed or did not report, 124 timeout.
#
#   boot.sh --socket PATH --scenarios NAME[,NAME…] [options]
#   boot.sh --socket PATH --shell [options]
#
# SIGTERM ends guest and script at once, as if power were cut.
set -euo pipefail

usage() {
  sed -n 's/^  \(--[^)]*\)) *\(.*\) *# \(.*\)$/\1\t\3/p' "$0" >&2
  exit 2
}

here=$(cd "$(dirname "$0")" && pwd)
cache=$(cd "$here/../.." && pwd)/.guest

guest=uml sockets=() scenarios='' log=/dev/null timeout=1200 show=no shell=no fio=no words=()
queues=1 processors=2 memory='' chardev='' device='' reboot=no iommu=none

while [ $# -gt 0 ]; do
  case $1 in
  --guest)       guest=$2; shift 2 ;;                         # uml (a kernel that is a process) or qemu
  --socket)      sockets+=("$2"); shift 2 ;;                  # a back-end's socket; again for a second disk
  --scenarios)   scenarios=$2; shift 2 ;;                     # names in Scripts/guest/scenarios, with commas
  --set)         words+=("$2"); shift 2 ;;                    # name=value, a parameter of the scenarios
  --log)         log=$2; shift 2 ;;                           # file for the console
  --show)        show=yes; shift ;;                           # show the console too
  --fio)         fio=yes; shift ;;                            # have fio in the guest; it is there when a scenario names it
  --shell)       shell=yes; shift ;;                          # a shell on this terminal; "poweroff -f" ends it
  --timeout)     timeout=$2; shift 2 ;;                       # seconds, then the guest is stopped
  --memory)      memory=$2; shift 2 ;;                        # MiB
  --queues)      queues=$2; shift 2 ;;                        # qemu: request queues
  --queue-size)  device+=,queue-size=$2; shift 2 ;;           # qemu: entries of each queue
  --event-idx)   device+=,event_idx=$2; shift 2 ;;            # qemu: on|off
  --indirect)    device+=,indirect_desc=$2; shift 2 ;;        # qemu: on|off
  --legacy)      device+=,disable-modern=on; shift ;;         # qemu: virtio 0.9 only
  --device)      device+=,$2; shift 2 ;;                      # qemu: any other option of vhost-user-blk-pci
  --iommu)       iommu=$2; shift 2 ;;                         # qemu: an IOMMU before the disks, with these options ("" for none)
  --reconnect)   chardev+=,reconnect=$2; shift 2 ;;           # qemu: seconds between attempts when the back-end goes
  --reboot)      reboot=yes; shift ;;                         # qemu: let the guest reboot; else it ends there
  --processors)  processors=$2; shift 2 ;;                    # qemu: a guest uses no more queues than it has of these
  *) usage ;;
  esac
done
[ ${#sockets[@]} -gt 0 ] || usage
[ "$shell" = yes ] || [ -n "$scenarios" ] || usage
[ "$shell" = no ] || scenarios=shell

# fio needs 80 MB of libraries; only scenarios that use it load them.
initramfs=initramfs.cpio
if [[ $fio == yes || $scenarios == *fio* || $shell == yes ]]; then fio=yes initramfs=initramfs-fio.cpio; fi
words+=("scenarios=$scenarios")

scratch=$(mktemp -d "${TMPDIR:-/tmp}/boot.XXXXXX")
machine='' guard=''
stop() {
  trap '' HUP INT TERM
  [ -z "$guard" ] || kill -KILL -- "-$guard" 2>/dev/null || true
  cut_power
  wait 2>/dev/null
  rm -rf "$scratch"
}
# The guest leads a process group: user-mode Linux has a process for each of its own.
cut_power() {
  [ -z "$machine" ] || kill -KILL -- "-$machine" 2>/dev/null || kill -KILL "$machine" 2>/dev/null || true
}
trap stop EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# Makes a path absolute, because user-mode Linux runs in another folder.
absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }

# --- the guests: each fills `command` and `folder`

uml_guest() {
  local socket
  [ -n "$memory" ] || { [ $fio = yes ] && memory=512 || memory=192; }
  folder=$cache/uml
  # The kernel's own memory is a file, which the back-end maps. If /dev/shm is too small or must not hold programs, the
  # scratch folder is used.
  local shm=/dev/shm room
  room=$(df --output=avail -m "$shm" 2>/dev/null | tail -n 1 || true)
  if [ ! -w "$shm" ] || [ "${room:-0}" -lt $((memory + 256)) ] || findmnt -n -o OPTIONS -T "$shm" | grep -qw noexec; then
    shm=$scratch
  fi
  local preload=
  # CPUs with AMX have more registers than this kernel sets at once: without the library, its first process fails.
  if grep -qw amx_tile /proc/cpuinfo; then
    preload=$folder/wide-registers.so
    if [ ! -e "$preload" ]; then
      # Many guests can be started at once.
      cc -O2 -shared -fPIC -o "$preload.$$" "$here/wide-registers.c"
      mv "$preload.$$" "$preload"
    fi
  fi
  command=(env "TMPDIR=$shm" "HOME=$scratch" ${preload:+"LD_PRELOAD=$preload"} linux.uml "mem=${memory}M" "initrd=$initramfs" "uml_dir=$scratch" umid=guest
    con=null quiet panic=-1 noreboot)
  for socket in "${sockets[@]}"; do command+=("virtio_uml.device=$(absolute "$socket"):2"); done
  if [ "$shell" = yes ]; then command+=(con0=fd:0,fd:1); else command+=(con0=null,fd:1); fi
  command+=("${words[@]}")
}

qemu_guest() {
  local number socket port
  [ -n "$memory" ] || memory=512
  folder=$cache/qemu
  # The back-end maps the guest's memory, so it must be a shareable file. TCG, not
  # KVM: it runs anywhere, and correctness is what these boots are for.
  # shellcheck disable=SC2054  # the commas are QEMU's
  command=(qemu-system-x86_64 -M q35,accel=tcg -cpu max -smp "$processors" -m "$memory"
    -object "memory-backend-memfd,id=mem,size=${memory}M,share=on" -machine memory-backend=mem
    -kernel vmlinuz -initrd "$initramfs"
    -nodefaults -nic none -vga none -display none)
  [ $reboot = yes ] || command+=(-no-reboot)
  if [ "$iommu" != none ]; then
    # Before every device that it translates for. It does not remap interrupts.
    command+=(-device "intel-iommu,intremap=off${iommu:+,$iommu}")
    device+=,iommu_platform=on,disable-legacy=on
    words+=(intel_iommu=on)
  fi
  for number in "${!sockets[@]}"; do
    socket=$(absolute "${sockets[number]}")
    port=''
    if [ "$iommu" != none ]; then
      # ATS is a capability of PCI Express functions, and those on the root bus are not.
      command+=(-device "pcie-root-port,id=port$number,slot=$((number + 1))")
      port=,bus=port$number
    fi
    command+=(-chardev "socket,id=disk$number,path=$socket$chardev"
      -device "vhost-user-blk-pci,chardev=disk$number,num-queues=$queues$port$device")
  done
  # If the emulator does not get its CPU in time, the kernel takes that for a broken timer and panics.
  command+=(-append "console=ttyS0 quiet panic=-1 no_timer_check ${words[*]}")
  if [ "$shell" = yes ]; then command+=(-serial mon:stdio); else command+=(-serial stdio -monitor none); fi
}

case $guest in
uml | qemu) "${guest}_guest" ;;
*) usage ;;
esac

if [ "$shell" = yes ]; then
  (cd "$folder" && "${command[@]}")
  exit
fi

# A log left by another run would be taken for this one's.
if [ "$log" = /dev/null ]; then log=$scratch/console; else log=$(absolute "$log"); fi
: >"$log"
# The hypervisor's messages go to a separate file: on the console they would split the guest's lines.
words_of_host=$log.hypervisor
: >"$words_of_host"

# In the background and waited for, because bash runs no trap before a command in the foreground has ended.
(cd "$folder" && exec setsid setpriv --pdeathsig KILL -- "${command[@]}") </dev/null >>"$log" 2>>"$words_of_host" &
machine=$!
# The guest does not outlive this script, even when that is killed.
# shellcheck disable=SC2016  # its own parameters
setsid bash -c 'tail --pid="$1" -f /dev/null; kill -KILL -- "-$2"' guard $$ "$machine" </dev/null >/dev/null 2>&1 &
guard=$!
disown "$guard"
if [ "$show" = yes ]; then
  tail -n +1 -s 0.1 -f --pid="$machine" "$log" 2>/dev/null | tr -d '\r' | sed -u -n '/^BOOT/,$p' &
fi
status=0
timeout "$timeout" tail -s 0.1 --pid="$machine" -f /dev/null &
wait $! || status=$?
[ $status -eq 0 ] || cut_power
[ $status -eq 124 ] || { status=0 && wait "$machine" || status=$?; } 2>/dev/null
# Ends whatever the guest has left in its group.
cut_power
machine=''
kill -KILL -- "-$guard" 2>/dev/null || true
guard=''
wait 2>/dev/null

explain() {
  echo "boot: the end of the guest's console:" >&2
  tail -n 60 "$log" | tr -d '\r' >&2
  if [ -s "$words_of_host" ]; then
    echo "boot: and what $guest said:" >&2
    tail -n 20 "$words_of_host" >&2
  fi
  # Last, because the last line of a log is read first.
  echo "boot: $*" >&2
}

# Once its kernel has halted, user-mode Linux lets the signals fire that are still pending, with nothing left that could take
# them, and now and then one of them aborts it (status 134). That says nothing about the disk; the scenarios' results do.
aborted_after_halt() {
  [ "$guest" = uml ] && [ "$1" -eq 134 ] && grep -aq '^reboot: System halted' "$log"
}
if aborted_after_halt "$status"; then
  echo "boot: user-mode Linux has aborted after its kernel halted" >&2
  status=0
fi

case $status in
0) ;;
124)
  explain "the guest was still running after $timeout seconds"
  exit 124
  ;;
*)
  explain "the guest ($guest) ended with status $status"
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
