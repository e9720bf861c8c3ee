#!/usr/bin/env bash
# Boots a Debian in a folder with its own systemd as the first process, and runs a program there once it is up.
#
#   package-boot.sh ROOT PROGRAM ARGUMENTS...      paths as the system inside sees them
#
# Ends with the program's status; with 4 and a message if such a system cannot be booted. Runs as root.
set -euo pipefail

root=$1
shift
# Seconds after which any wait counts as hung. This is not a measure of speed.
patience=1200
cannot() { echo "package-boot: $*"; exit 4; }

command -v systemd-nspawn >/dev/null || cannot "there is no systemd-nspawn: install systemd-container"

# The new system must not see the machine's own cgroups. The host's systemd makes a scope for it; without one, groups are made
# by hand.
options=(--register=no) groups=() name=vmm-blk-$$
if [ ! -d /run/systemd/system ]; then
  options+=(--keep-unit)
  for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
    [ -e "$hierarchy/cgroup.procs" ] || continue
    mkdir "$hierarchy/$name" 2>/dev/null || cannot "no group can be made in $hierarchy"
    groups+=("$hierarchy/$name")
  done
  [ ${#groups[@]} -gt 0 ] || cannot "there are no cgroups in /sys/fs/cgroup"
fi

cat >"$root/etc/systemd/system/package-boot.service" <<END
[Unit]
Description=What is tried here
SuccessAction=exit
FailureAction=exit
[Service]
Type=exec
WorkingDirectory=/root
Environment=HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
ExecStart=$*
StandardOutput=append:/root/package-boot.log
StandardError=append:/root/package-boot.log
[Install]
WantedBy=multi-user.target
END
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -sf ../package-boot.service "$root/etc/systemd/system/multi-user.target.wants/"
: >"$root/root/package-boot.log"
: >"$root/etc/machine-id"

console=$(mktemp)
machine='' tail=''
cleanup() {
  local group
  [ -z "$machine" ] || ! kill -TERM "$machine" 2>/dev/null || timeout 60 tail --pid="$machine" -f /dev/null || kill -KILL "$machine" || true
  [ -z "$tail" ] || kill "$tail" 2>/dev/null || true
  rm -f "$console"
  for group in "${groups[@]}"; do
    # From within. Its last processes may still be ending.
    for _ in $(seq 100); do
      find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
      [ -d "$group" ] || break
      sleep 0.1
    done
  done
}
trap cleanup EXIT
trap 'exit 130' INT TERM

tail -n +1 -s 0.2 -f "$root/root/package-boot.log" &
tail=$!
(
  for group in "${groups[@]}"; do echo "$BASHPID" >"$group/cgroup.procs"; done
  # As on a real machine: one cgroup hierarchy, and no seccomp filters except those of the units.
  export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 SYSTEMD_SECCOMP=0
  exec systemd-nspawn --quiet --directory "$root" --machine "$name" --boot --private-network --capability=all --link-journal=no \
    --console=read-only "${options[@]}" -- systemd.log_target=journal
) >"$console" 2>&1 </dev/null &
machine=$!

# The unit ends the system with the status of the program.
timeout "$patience" tail -s 0.2 --pid="$machine" -f /dev/null || { echo "package-boot: it still runs after $patience seconds"; exit 1; }
status=0
wait "$machine" || status=$?
machine=''
sleep 0.5
if [ ! -s "$root/root/package-boot.log" ]; then
  tail -n 5 "$console"
  cannot "systemd does not come up in it here"
fi
exit $status
