# shellcheck shell=bash
# Shared by demo.sh and test.sh: a working directory, disk images, the server
# under test and guests on it. Sourced, under `set -euo pipefail`.

# The caller may have closed it.
exec </dev/null

guest=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$guest/../.." && pwd)
python=/usr/bin/python3

# The server: vmm-blk, or qemu-storage-daemon to tell its faults from the guest's.
SERVER=${SERVER:-vmm-blk}
VMM_BLK=${VMM_BLK:-$root/.build/release/vmm-blk}
# More options for vmm-blk, for instance "--engine aio --direct off".
VMM_BLK_OPTIONS=${VMM_BLK_OPTIONS:-}

# Seconds after which any wait counts as hung. This is not a measure of speed.
hung=${GUEST_TIMEOUT:-1200}

server_pid='' guest_pids=() work=''

die() {
  echo "FAIL: $*" >&2
  exit 1
}

need_server() {
  case $SERVER in
  vmm-blk) [ -x "$VMM_BLK" ] || die "no server at $VMM_BLK: build it first, set VMM_BLK, or set SERVER=qsd" ;;
  qsd) ;;
  *) die "SERVER is vmm-blk or qsd, not '$SERVER'" ;;
  esac
}

# A directory for images and sockets that is removed, with every process of this
# script, however the shell ends. Socket paths are limited to 107 bytes and are part
# of kernels' command lines, so it is not in the repository.
enter_work() {
  local base=${TMPDIR:-/tmp}
  [[ ${#base} -le 60 && $base == /* && $base != *[[:space:],:]* ]] || base=/tmp
  work=$(mktemp -d "$base/vmm-blk-guest.XXXXXX")
  # For child processes: a guest's memory and scratch files belong to the directory, too.
  export TMPDIR=$work
  trap leave_work EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
}

leave_work() {
  local status=$? pid
  trap '' HUP INT TERM
  [ $status -eq 0 ] || show_threads
  for pid in "${guest_pids[@]}" $server_pid; do kill "$pid" 2>/dev/null || true; done
  for pid in "${guest_pids[@]}" $server_pid; do
    ended "$pid" 20 || kill -KILL "$pid" 2>/dev/null || true
  done
  rm -rf "$work"
}

# Shows where each thread of the server and of the guests waits, to find out why nothing happens. User-mode Linux is
# several processes, which show what its kernel waits for.
show_threads() {
  local pid task pids=()
  for pid in $server_pid "${guest_pids[@]}"; do mapfile -t -O ${#pids[@]} pids < <(family "$pid"); done
  for pid in "${pids[@]}"; do
    for task in /proc/"$pid"/task/*; do
      [ -r "$task/comm" ] || continue
      printf 'thread %s %s: %s, %s, call %s\n' "${task##*/}" "$(cat "$task/comm")" "$(sed -n 's/^State:[[:space:]]*//p' "$task/status")" \
        "$(cat "$task/wchan" 2>/dev/null)" "$(cut -d ' ' -f 1-3 "$task/syscall" 2>/dev/null)"
    done
  done >&2
}

# A process and all its descendants.
family() { # pid
  local child
  echo "$1"
  for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do family "$child"; done
}

# Whether a process has ended within some seconds.
ended() { # pid, seconds
  # In the background, with wait, so that a trap runs at once.
  timeout "$2" tail -s 0.1 --pid="$1" -f /dev/null &
  wait $!
}

# Waits until a command succeeds; fails with a message if it never does.
wait_until() { # what is waited for, command…
  local what=$1 end=$((SECONDS + hung))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || die "$what: not within $hung seconds"
    sleep 0.1
  done
}

empty_disk() { truncate -s "$2" "$1"; }
random_disk() { head -c "$2" /dev/urandom >"$1"; }

# Starts the server with the options of `vmm-blk serve`, whichever it is, and
# waits until it listens.
start_server() { # image, socket, options…
  local image=$1 socket=$2
  shift 2
  case $SERVER in
  vmm-blk)
    local named=--blk-file
    [[ $image != rbd:* ]] || named=--image
    # shellcheck disable=SC2086  # the variable holds words
    launch "$work/server-output" "$socket" "$VMM_BLK" serve "$named" "$image" --socket-path "$socket" \
      --log-level debug "$@" $VMM_BLK_OPTIONS
    ;;
  qsd)
    local queues=1 writable=on block=512
    while [ $# -gt 0 ]; do
      case $1 in
      --num-queues) queues=$2; shift 2 ;;
      --logical-block-size) block=$2; shift 2 ;;
      --read-only) writable=off; shift ;;
      *) die "qemu-storage-daemon has nothing like $1" ;;
      esac
    done
    local read_only=off
    [ $writable = on ] || read_only=on
    launch "$work/server-pid" "$socket" qemu-storage-daemon --pidfile "$work/server-pid" \
      --blockdev "driver=file,node-name=f,filename=$image,cache.direct=on,aio=io_uring,discard=unmap,read-only=$read_only" \
      --export "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=$socket,num-queues=$queues,writable=$writable,logical-block-size=$block"
    ;;
  esac
}

# Starts one server for several disks: $work/NAME at $work/NAME.socket.
start_disks() { # options of all disks, separated by "--", names…
  local options=() entries='' name
  while [ "$1" != -- ]; do
    options+=("$1")
    shift
  done
  shift
  [ "$SERVER" = vmm-blk ] || die "qemu-storage-daemon is started with one disk here"
  for name in "$@"; do
    entries+="${entries:+,}{\"blk-file\":\"$work/$name\",\"socket-path\":\"$work/$name.socket\",\"serial\":\"$name\"}"
  done
  echo "[$entries]" >"$work/disks.json"
  # shellcheck disable=SC2086
  launch "$work/server-output" "$work/$name.socket" "$VMM_BLK" serve --disks "$work/disks.json" "${options[@]}" $VMM_BLK_OPTIONS
}

launch() { # file that says when it listens, socket, command…
  local ready=$1 socket=$2
  shift 2
  rm -f "$work/server-output" "$work/server-pid" "$socket"
  echo "server: $*" >&2
  "$@" >"$work/server-output" &
  server_pid=$!
  # vmm-blk prints a line when it listens; the other writes its process ID.
  wait_until "the server listens on $socket" is_listening "$ready" "$socket"
}

is_listening() { # ready file, socket
  if [ -s "$1" ] && [ -S "$2" ]; then return 0; fi
  kill -0 "$server_pid" 2>/dev/null || die "the server ended before it listened on $2"
  return 1
}

# Asks the server to end, as an operator would. It must end with status 0.
stop_server() {
  local pid=$server_pid status=0
  kill -TERM "$pid" 2>/dev/null || true
  ended "$pid" "$hung" || die "the server still runs $hung seconds after SIGTERM"
  wait "$pid" || status=$?
  server_pid=''
  [ $status -eq 0 ] || die "the server ended with status $status"
}

# Another server takes over from the current one, which must end with status 0 by itself.
take_over() { # control socket, image, socket, options…
  local before=$server_pid control=$1 image=$2 socket=$3 status=0
  shift 3
  # shellcheck disable=SC2086  # the variable holds words
  "$VMM_BLK" serve --take-over "$control" --control "$control" --blk-file "$image" --socket-path "$socket" "$@" \
    $VMM_BLK_OPTIONS >"$work/server-output.next" &
  server_pid=$!
  wait_until "the previous server ends" has_gone "$before"
  wait "$before" || status=$?
  [ $status -eq 0 ] || die "the previous server ended with status $status"
  kill -0 "$server_pid" 2>/dev/null || die "the server that took over has ended"
}

has_gone() {
  ! kill -0 "$1" 2>/dev/null || { kill -0 "$server_pid" 2>/dev/null || die "the server that was to take over has ended"; return 1; }
}

# Ends the server as a crash does.
kill_server() {
  kill -KILL "$server_pid" || die "the server ended by itself"
  wait "$server_pid" 2>/dev/null || true
  server_pid=''
}

start_guest() { # options of boot.sh
  echo "guest: boot.sh --timeout $hung $*" >&2
  "$guest/boot.sh" --timeout "$hung" "$@" &
  guest_pids+=($!)
}

# Waits for the results of all guests; without their server there will be none.
wait_guests() {
  local pid status verdict=0 left last=$((SECONDS + hung - hung / 20)) shown=no
  while [ ${#guest_pids[@]} -gt 0 ]; do
    sleep 0.1
    # Before boot.sh ends a guest: after that the server has nothing left to be stuck at.
    if [ $shown = no ] && [ $SECONDS -ge $last ]; then show_threads && shown=yes; fi
    left=()
    for pid in "${guest_pids[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then
        left+=("$pid")
      else
        status=0
        wait "$pid" || status=$?
        [ $status -eq 0 ] || verdict=$status
      fi
    done
    guest_pids=("${left[@]}")
    [ ${#left[@]} -eq 0 ] || check_server
  done
  return $verdict
}

check_server() {
  local status=0
  if kill -0 "$server_pid" 2>/dev/null; then return 0; fi
  wait "$server_pid" || status=$?
  server_pid=''
  die "the server ended with status $status while a guest was running"
}

# Cuts the power of all guests.
cut_guests() {
  local pid
  for pid in "${guest_pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${guest_pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  guest_pids=()
}
