# shellcheck shell=bash
# What demo.sh and test.sh share: a working directory, disk images, the server
# under test and guests on it. Sourced, under `set -euo pipefail`.

guest=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$guest/../.." && pwd)

# The server: ours, or qemu-storage-daemon to tell our faults from the guest's.
SERVER=${SERVER:-vmm-blk}
VMM_BLK=${VMM_BLK:-$root/.build/release/vmm-blk}
# More options for our server, for instance "--engine aio --direct off".
VMM_BLK_OPTIONS=${VMM_BLK_OPTIONS:-}

server_pid='' guest_pid='' work=''

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

# A directory for images and sockets that goes, with every process of ours, when
# the shell ends in any way. Socket paths are limited to 107 bytes, so it is
# not in the repository.
enter_work() {
  work=$(mktemp -d "${TMPDIR:-/tmp}/vmm-blk-guest.XXXXXX")
  trap leave_work EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
}

leave_work() {
  [ -z "$guest_pid" ] || kill "$guest_pid" 2>/dev/null || true
  [ -z "$server_pid" ] || kill "$server_pid" 2>/dev/null || true
  ended "$guest_pid" 10 || kill -KILL "$guest_pid" 2>/dev/null || true
  ended "$server_pid" 10 || kill -KILL "$server_pid" 2>/dev/null || true
  rm -rf "$work"
}

# Whether a process has ended within some seconds.
ended() { # pid, seconds
  [ -z "$1" ] || timeout "$2" tail --pid="$1" -f /dev/null
}

empty_disk() { truncate -s "$2" "$1"; }
random_disk() { head -c "$2" /dev/urandom >"$1"; }

# Starts the server with the options of `vmm-blk serve`, whichever it is, and
# waits until it listens.
start_server() { # image, socket, options…
  local image=$1 socket=$2 command ready
  shift 2
  case $SERVER in
  vmm-blk)
    ready=$work/server-output
    # shellcheck disable=SC2206  # the variable holds words
    command=("$VMM_BLK" serve --blk-file "$image" --socket-path "$socket" "$@" $VMM_BLK_OPTIONS)
    ;;
  qsd)
    ready=$work/server-pid
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
    command=(qemu-storage-daemon --pidfile "$ready"
      --blockdev "driver=file,node-name=f,filename=$image,cache.direct=on,aio=io_uring,discard=unmap,read-only=$read_only"
      --export "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=$socket,num-queues=$queues,writable=$writable,logical-block-size=$block")
    ;;
  esac
  rm -f "$work/server-output" "$work/server-pid" "$socket"
  echo "server: ${command[*]}" >&2
  "${command[@]}" >"$work/server-output" &
  server_pid=$!
  # Ours says a line when it listens; the other writes its process id then.
  for _ in $(seq 100); do
    if [ -s "$ready" ] && [ -S "$socket" ]; then return; fi
    kill -0 "$server_pid" 2>/dev/null || break
    sleep 0.1
  done
  die "the server does not listen on $socket"
}

# Asks the server to end, as an operator would. It must do so soon and well.
stop_server() {
  local pid=$server_pid status=0
  kill -TERM "$pid" 2>/dev/null || true
  ended "$pid" 20 || die "the server still runs 20 seconds after SIGTERM"
  wait "$pid" || status=$?
  server_pid=''
  [ $status -eq 0 ] || die "the server ended with status $status"
}

start_guest() { # options of boot.sh
  echo "guest: boot.sh $*" >&2
  "$guest/boot.sh" "$@" &
  guest_pid=$!
}

# Waits for the guest's verdict; without its server there will be none.
wait_guest() {
  local first status=0
  wait -n -p first "$guest_pid" "$server_pid" || status=$?
  if [ "$first" = "$server_pid" ]; then
    server_pid=''
    die "the server ended with status $status while the guest was running"
  fi
  guest_pid=''
  return $status
}

stop_guest() {
  kill -TERM "$guest_pid" 2>/dev/null || true
  wait "$guest_pid" || true
  guest_pid=''
}
