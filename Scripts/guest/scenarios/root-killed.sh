# Like `killed`, on a disk that is also the root of the system (system=disk): programs are read from it.
#
# beats=N   as there

grep -q "^$disk / ext4 " /proc/mounts || fail "the disk is not the root"
mkdir /work
hammer /work
(cd /work && find . -type f | sort | xargs md5sum >/tmp/manifest && mv /tmp/manifest manifest)
sync
drop_caches
(cd /work && md5sum -c -s manifest) || fail "files differ when they are read again"
sees_no_errors
mount -o remount,ro /
