# shellcheck shell=bash
# Debian's kernel in QEMU: cases that need more than one queue, PCI, features that QEMU can turn off, or a front-end that
# reconnects. QEMU emulates the CPU. Sourced by test.sh, in the order in which the cases run.

# The program that serves this project's PCI function.
proxy=${PCI_PROXY:-$root/.build/release/pci-proxy}

qemu() { in_guest --guest qemu --socket "$work/socket" "$@"; }

# Without the field that lets the driver choose the cache, a device with flush
# has a write-back cache (virtio 1.2, 5.2.5), and the guest really flushes.
write_back=(--device config-wce=off)

# Feature bits as the guest names them in `expect`: 28 indirect descriptors, 29 event index, 32 virtio 1, 34 packed rings.
qemu_io_case() { # queues, expected features, options of boot.sh
  local queues=$1 expect=$2
  shift 2
  empty_disk "$work/disk" 64M
  start_server "$work/disk" "$work/socket" --num-queues "$queues"
  qemu --queues "$queues" --scenarios io --set queues="$queues" --set expect="$expect" "$@"
  stop_server
}

case_qemu-queues-2() { qemu_io_case 2 28,29,32; }
# A driver uses no more queues than there are CPUs.
case_qemu-queues-4() { qemu_io_case 4 28,29,32 --processors 4; }
case_qemu-legacy() { qemu_io_case 2 28,29,!32 --legacy; }
case_qemu-no-event-idx() { qemu_io_case 2 28,!29,32 --event-idx off; }
case_qemu-no-indirect() { qemu_io_case 2 !28,29,32 --indirect off; }
case_qemu-no-event-idx-no-indirect() { qemu_io_case 2 !28,!29,32 --event-idx off --indirect off; }
case_qemu-ring-of-1024() { qemu_io_case 2 28,29,32 --queue-size 1024; }

# This project's PCI function instead of QEMU's: its accesses come through x-pci-proxy-dev, which delivers no interrupts here,
# so
# the kernel polls for them at every tick. SeaBIOS reads the disk first.
qemu_pci_case() { # registers, expected features, where the accesses go, scenario, queues
  [ "$SERVER" = vmm-blk ] || die "only vmm-blk has a PCI function"
  [ -x "$proxy" ] || die "build it first: swift build -c release --product pci-proxy"
  empty_disk "$work/disk" 64M
  "$python" "$guest/pci.py" --timeout "$hung" --queues "${5:-1}" "$proxy" "$1" "$work/disk" \
    scenarios="${4:-io}" queues=1 expect="$2" iomem=relaxed >"$console" 2>&1 || die "the guest was not content"
  grep -q "^accesses: .*$3 [1-9]" "$console" || die "the guest did not use $3"
}

case_qemu-pci() { qemu_pci_case pci 28,29,32 "BAR 4"; }
case_qemu-pci-legacy() { qemu_pci_case pci-legacy '28,29,!32' "BAR 0"; }
case_qemu-pci-queue-reset() {
  qemu_pci_case pci 40 "BAR 4" queue-reset 4
  [[ "$(told 24)" == "resets of one of 4 queues" ]] || die "the guest reset no queues"
}
case_qemu-pci-transitional() { qemu_pci_case pci-transitional 28,29,32 "BAR 4"; }

# A zoned disk under a kernel that supports zones. QEMU 7.2's own vhost-user-blk does not pass the feature on, this project's
# PCI
# function does not depend on that. The second guest meets another process, which reads the zones' state from their file.
zoned_guest() { # scenario, words of the kernel's command line
  "$python" "$guest/pci.py" --timeout "$hung" --kernel "$root/.guest/zoned" --initramfs initramfs-fio.cpio --memory 768 \
    --zoned host-managed,zone-size=8M,zone-capacity=6M,conventional=4,max-open=10,max-active=12 \
    "$proxy" pci "$work/disk" scenarios="$1" "${@:2}" >"$console.$1" 2>&1 || die "the guest was not content"
  cat "$console.$1" >>"$console"
}

case_zoned-linux() {
  [ "$SERVER" = vmm-blk ] || die "only vmm-blk has a PCI function"
  [ -x "$proxy" ] || die "build it first: swift build -c release --product pci-proxy"
  empty_disk "$work/disk" 512M
  zoned_guest zoned zones=64 zone=8 capacity=6 conventional=4 open=10 active=12
  [ "$(told used)" -ge 1 ] || die "btrfs has left no zones that are written"
  zoned_guest zoned-again report="$(told zones)"
}

# OVMF's driver: a FAT disk with a script for its shell, which copies a file and powers the machine off.
firmware=/usr/share/ovmf/OVMF.fd
ovmf_disk() {
  [ -e "$firmware" ] && command -v mformat >/dev/null || die "install them first: Scripts/setup.sh ovmf"
  rm -f "$work/disk" "$work/again"
  empty_disk "$work/disk" 64M
  random_disk "$work/file" 3000000
  printf '%s\r\n' '@echo -on' 'fs0:' 'cp file copy' 'comp file copy' 'mkdir folder' 'cp copy folder\again' 'rm -q copy' \
    'ls folder' 'reset -s' >"$work/startup.nsh"
  mformat -i "$work/disk" -F -T $((64 * 2048)) -h 64 -s 32 ::
  mcopy -i "$work/disk" "$work/file" "$work/startup.nsh" ::/
}

check_ovmf_disk() {
  mcopy -i "$work/disk" ::/folder/again "$work/again" || die "OVMF wrote no file"
  cmp "$work/file" "$work/again" || die "the disk holds another file than OVMF wrote"
}

case_qemu-ovmf() {
  local face
  for face in disable-legacy=on disable-modern=on; do
    ovmf_disk
    start_server "$work/disk" "$work/socket"
    timeout "$hung" qemu-system-x86_64 -M q35,accel=tcg,memory-backend=mem -m 512 -no-reboot -bios "$firmware" \
      -object memory-backend-memfd,id=mem,size=512M,share=on -chardev "socket,id=disk,path=$work/socket" \
      -device "vhost-user-blk-pci,chardev=disk,$face" \
      -nodefaults -nic none -vga none -display none -monitor none -serial stdio >>"$console" &
    guest_pids=($!)
    wait "${guest_pids[0]}" || die "OVMF did not turn the machine off"
    guest_pids=()
    stop_server
    check_ovmf_disk
  done
}

case_qemu-ovmf-pci() {
  local registers
  [ -x "$proxy" ] || die "build it first: swift build -c release --product pci-proxy"
  for registers in pci-legacy pci-transitional; do
    ovmf_disk
    "$python" "$guest/pci.py" --timeout "$hung" --firmware "$firmware" "$proxy" "$registers" \
      "$work/disk" >>"$console" 2>&1 || die "OVMF did not turn the machine off"
    check_ovmf_disk
  done
}

# The other ring format. QEMU offers it only on request.
packed=(--device packed=on)
case_qemu-packed() { qemu_io_case 2 28,29,32,34 "${packed[@]}"; }
case_qemu-packed-ring-of-1024() { qemu_io_case 2 28,29,32,34 "${packed[@]}" --queue-size 1024; }
case_qemu-packed-queues-4() { qemu_io_case 4 28,29,32,34 "${packed[@]}" --processors 4; }
case_qemu-packed-no-event-idx() { qemu_io_case 2 28,!29,32,34 "${packed[@]}" --event-idx off; }
case_qemu-packed-no-indirect() { qemu_io_case 2 !28,29,32,34 "${packed[@]}" --indirect off; }
case_qemu-packed-no-event-idx-no-indirect() { qemu_io_case 2 !28,!29,32,34 "${packed[@]}" --event-idx off --indirect off; }

qemu_filesystem_case() { # options of boot.sh
  empty_disk "$work/disk" 256M
  start_server "$work/disk" "$work/socket" --num-queues 2
  qemu --queues 2 --scenarios filesystem --set files=400 "${write_back[@]}" "$@"
  stop_server
  check_ext4_files
}

case_qemu-filesystem() { qemu_filesystem_case; }
case_qemu-packed-filesystem() { qemu_filesystem_case "${packed[@]}"; }

# A driver behind an IOMMU: 33 is ACCESS_PLATFORM. In strict mode, the kernel unmaps each buffer as soon as it has been used.
# QEMU tells a vhost back-end of all unmapped ranges only with device-iotlb=on there, and ats=on for the disk, behind a root
# port.
behind_iommu=(--features default,access_platform)
qemu_iommu_case() { # expected features, options of boot.sh
  local expect=$1
  shift
  empty_disk "$work/disk" 256M
  start_server "$work/disk" "$work/socket" --num-queues 2 "${behind_iommu[@]}"
  qemu --queues 2 --iommu device-iotlb=on --device ats=on --scenarios io --set queues=2 --set expect="$expect" "$@"
  qemu --queues 2 --iommu device-iotlb=on --device ats=on --scenarios filesystem --set files=200 "${write_back[@]}" "$@"
  stop_server
  check_ext4_files
}

case_qemu-iommu() { qemu_iommu_case 28,29,32,33; }
case_qemu-iommu-strict() { qemu_iommu_case 28,29,32,33 --set iommu.strict=1; }
case_qemu-iommu-packed() { qemu_iommu_case 28,29,32,33,34 "${packed[@]}" --set iommu.strict=1; }

qemu_reboot_case() { # options of boot.sh
  empty_disk "$work/disk" 64M
  start_server "$work/disk" "$work/socket" --num-queues 2
  qemu --queues 2 --scenarios reboot --reboot "$@"
  [ "$(grep -c 'BOOT ' "$console")" -eq 2 ] || die "the guest did not boot twice"
  stop_server
}

case_qemu-reboot() { qemu_reboot_case; }
case_qemu-packed-reboot() { qemu_reboot_case "${packed[@]}"; }

qemu_sigterm_case() { # options of boot.sh
  empty_disk "$work/disk" 64M
  start_server "$work/disk" "$work/socket" --num-queues 2
  # More blocks than there is time for: the guest never finishes.
  guest_on "$console" --guest qemu --socket "$work/socket" --queues 2 --scenarios numbered "${write_back[@]}" --set blocks=8000 \
    "$@"
  wait_for_acks 100
  stop_server
  [ "$SERVER" = qsd ] || [ ! -e "$work/socket" ] || die "the server left its socket behind"
  # The last acknowledgements may not have reached the log yet.
  sleep 1
  cut_guests
  check_blocks 100
}

case_qemu-sigterm() { qemu_sigterm_case; }
case_qemu-packed-sigterm() { qemu_sigterm_case "${packed[@]}"; }

qemu_restart_case() { # options of boot.sh
  local acks
  empty_disk "$work/disk" 64M
  start_server "$work/disk" "$work/socket" --num-queues 2
  guest_on "$console" --guest qemu --socket "$work/socket" --queues 2 --reconnect 1 --scenarios numbered "${write_back[@]}" \
    --set blocks=400 "$@"
  for acks in 50 200; do
    wait_for_acks $acks
    stop_server
    check_blocks $acks
    start_server "$work/disk" "$work/socket" --num-queues 2
  done
  wait_guests
  stop_server
  check_blocks 400
}

case_qemu-restart() { qemu_restart_case; }
# The front-end has the in-flight records, and no index in memory to go by.
case_qemu-packed-restart() { qemu_restart_case "${packed[@]}"; }

# Killed, not stopped: requests in flight are in the records that QEMU keeps. KILLS is the number of kills.
qemu_killed_case() { # options of boot.sh
  local kills=${KILLS:-3} count beats=0 engines=(threads uring) try
  RANDOM=${SEED:-1}
  empty_disk "$work/disk" 192M
  start_server "$work/disk" "$work/socket" --num-queues 2 --engine threads
  guest_on "$console" --guest qemu --socket "$work/socket" --queues 2 --reconnect 1 --fio --scenarios killed "${write_back[@]}" \
    --set beats=$((10 * kills)) "$@"
  for count in $(seq "$kills"); do
    # Waits until something was written since the last kill.
    wait_until "the guest's disk answers after kill $((count - 1))" has_beaten $((beats + 2))
    sleep "$((RANDOM % 2)).$((RANDOM % 10))"
    beats=$(beats)
    # Probably several requests are in flight, and complete out of order.
    for try in {1..200}; do ! is_at_disk || break; done
    kill_server
    start_server "$work/disk" "$work/socket" --num-queues 2 --engine "${engines[count % 2]}"
  done
  echo "killed $kills times" >&2
  wait_guests
  stop_server
  check_ext4_files
}

case_qemu-killed() { qemu_killed_case; }
case_qemu-packed-killed() { qemu_killed_case "${packed[@]}"; }

case_qemu-resized() { resized_case --guest qemu "${write_back[@]}"; }
case_qemu-packed-resized() { resized_case --guest qemu "${write_back[@]}" "${packed[@]}"; }

# The same on two queues; QEMU's in-flight records are handed over.
case_qemu-taken-over() { taken_over_case 2 --guest qemu --queues 2 "${write_back[@]}"; }
case_qemu-packed-taken-over() { taken_over_case 2 --guest qemu --queues 2 "${write_back[@]}" "${packed[@]}"; }

# Migrated while it writes: memory that the back-end writes meanwhile has to be copied, too. MIGRATIONS is the number of
# migrations.
# Runs only if named: QEMU 7.2's emulated CPUs sometimes lose one of their stores in a migration, even without any back-end.
qemu_migrated_case() { # options of vhost-user-blk-pci
  local migrations=${MIGRATIONS:-2}
  [ "$SERVER" = vmm-blk ] || die "the back-ends that this case starts are ours"
  empty_disk "$work/disk" 192M
  : >"$console"
  # A separate process, so that it ends together with this script.
  "$python" "$guest/migrate.py" --folder "$work" --disk "$work/disk" --console "$console" --migrations "$migrations" \
    --set beats=$((6 * migrations)) --device "$1" --server-options "--num-queues 2 $VMM_BLK_OPTIONS" >&2 &
  guest_pids+=($!)
  wait $! || die "the guest did not survive its migrations"
  guest_pids=()
  check_ext4_files
}

case_qemu-migrated() { qemu_migrated_case ''; }
case_qemu-packed-migrated() { qemu_migrated_case packed=on; }

# Whether several of the server's threads wait for the disk.
is_at_disk() { [ "$(cat "/proc/$server_pid/task/"*/stat 2>/dev/null | sed 's/.*) //' | grep -c '^D')" -ge 2 ]; }

# The whole system is on an image of a Ceph cluster, and so survives the machine that serves it: the server is killed, and another
# process continues from the records that QEMU keeps. It breaks the dead server's lock, and the cluster then refuses that one
# forever;
# the last one breaks no lock, and waits until the cluster has noticed by itself. KILLS is the number of kills.
case_qemu-rbd() {
  local kills=${KILLS:-3} count beats=0 need options=() cluster image
  [ "$SERVER" = vmm-blk ] || die "the back-ends that this case starts are ours"
  for need in ceph-mon ceph-osd ceph rbd; do
    command -v "$need" >/dev/null || { skip "$need is not installed (Scripts/setup.sh ceph)"; return 0; }
  done
  # Its OSD makes everything stable, so it is in memory if possible. It ends with this process.
  cluster=$(mktemp -d "$([ -w /dev/shm ] && echo /dev/shm || echo "$work")/guest-cluster.XXXXXX")
  STORE=bluestore "$root/Scripts/ceph.sh" start "$cluster" $BASHPID
  image="rbd:rbd/root?conf=$cluster/ceph.conf"
  make_system "$work/system" 400M
  rbd -c "$cluster/ceph.conf" import --no-progress "$work/system" rbd/root
  rm "$work/system"
  start_server "$image" "$work/socket" --num-queues 2
  guest_on "$console" --guest qemu --socket "$work/socket" --queues 2 --reconnect 1 --fio --set system=disk --scenarios root-killed \
    "${write_back[@]}" --set beats=$((10 * kills))
  for count in $(seq "$kills"); do
    wait_until "the guest's disk answers after kill $((count - 1))" has_beaten $((beats + 2))
    beats=$(beats)
    kill_server
    [ "$count" = "$kills" ] && options=() || options=(--break-lock)
    start_server "$image" "$work/socket" --num-queues 2 "${options[@]}"
  done
  echo "killed $kills times" >&2
  wait_guests
  stop_server
  count=$(ceph -c "$cluster/ceph.conf" osd blocklist ls 2>/dev/null | grep -c ':.*/' || true)
  [ "$count" -ge $((kills - 1)) ] || die "the cluster has $count of $((kills - 1)) dead servers on its blocklist"
  rbd -c "$cluster/ceph.conf" export --no-progress rbd/root "$work/disk"
  "$root/Scripts/ceph.sh" remove "$cluster"
  e2fsck -fn "$work/disk" || die "the host's e2fsck finds the image damaged"
  mkdir "$work/files"
  debugfs -R "rdump /work $work/files" "$work/disk" 2>"$work/debugfs"
  (cd "$work/files/work" && md5sum -c --quiet manifest) || die "the image holds other files than the guest wrote"
}

# The system that guests boot from memory, as a file system.
make_system() { # file, size
  mkdir "$work/tree"
  # Two archives, one after the other: the second begins where reading the first has stopped.
  (cd "$work/tree" && cpio -idu --quiet && cpio -idu --quiet) <"$root/.guest/qemu/initramfs-fio.cpio"
  empty_disk "$1" "$2"
  mkfs.ext4 -q -F -d "$work/tree" "$1"
  rm -rf "$work/tree"
}
