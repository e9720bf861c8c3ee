#!/usr/bin/env bash
# Kills an NBD server again and again (SIGKILL) under a verified load: no acknowledged write may be missing, no request may fail.
#
#   Scripts/nbd-kills.sh [KILLS]     (100; needs nbdkit and a built vmm-blk, which VMM_BLK names, or the one in .build/release)
#
# The server is nbdkit on a file, so acknowledged writes survive it: --server-keeps-writes.
set -euo pipefail

kills=${1:-100}
program=${VMM_BLK:-$(cd "$(dirname "$0")/.." && pwd)/.build/release/vmm-blk}
folder=$(mktemp -d /var/tmp/nbd-kills.XXXXXX)
server= device= guest=
finish() {
  for process in $guest $device $server; do kill -9 "$process" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$folder"
}
trap finish EXIT

truncate -s 64M "$folder/disk"
begin() {
  rm -f "$folder/nbd"
  nbdkit --foreground --unix "$folder/nbd" file "$folder/disk" &
  server=$!
  for _ in $(seq 200); do
    grep -q "00010000 .* $folder/nbd\$" /proc/net/unix && return
    sleep 0.01
  done
  echo "nbd-kills: nbdkit does not listen" >&2
  exit 1
}

begin
"$program" serve --image "nbd+unix:///?socket=$folder/nbd" --socket-path "$folder/disk.sock" --server-keeps-writes \
  --num-queues 2 >"$folder/log" 2>&1 &
device=$!
for _ in $(seq 500); do
  grep -q '^Serving' "$folder/log" && break
  sleep 0.01
done
# It ends by itself: the amount is more than it can do meanwhile, and its time is limited.
"$program" guest verify --socket-path "$folder/disk.sock" --queues 2 --seconds $((kills / 4 + 5)) >"$folder/guest" 2>&1 &
guest=$!

killed=0
while [ "$killed" -lt "$kills" ] && kill -0 "$guest" 2>/dev/null; do
  sleep "0.0$((RANDOM % 90 + 10))"
  kill -9 "$server"
  wait "$server" 2>/dev/null || true
  killed=$((killed + 1))
  begin
done
if ! wait "$guest"; then
  cat "$folder/guest" "$folder/log" >&2
  exit 1
fi
cat "$folder/guest"
echo "$killed kills of the server"
