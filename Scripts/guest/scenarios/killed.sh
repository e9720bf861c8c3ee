# fio sends 32 requests of each of two jobs at once, in files of an ext4 filesystem, and checks what it wrote, while the host kills
# the back-end and starts it again, or lets another one take over. A writer beside it prints each time that the disk has
# answered, so that the host
# knows that the guest makes progress.
#
# beats=N   answers to that writer until the end, about one per second

make_filesystem ext4 $disk
mount -t ext4 $disk /mnt
hammer /mnt
ends_well
