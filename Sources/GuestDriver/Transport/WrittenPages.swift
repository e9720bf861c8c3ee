/// The driver's side of the dirty log, which a VMM creates when a live migration begins.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VhostUser
internal import VirtioCore

/// Memory for a log that covers a guest's memory, one bit for each page. It is handed over and never read.
struct WrittenPages {
  let descriptor: OwnedDescriptor
  let area: SharedArea

  init(of memory: DriverMemory) throws(DriverError) {
    let end = memory.regions.last.map { $0.start.rawValue + UInt64($0.size) } ?? 0
    // QEMU's log consists of words of 64 bits.
    let size = (end / DirtyLog.pageSize + 64) / 64 * 8
    let number = unsafe memfd_create("vmm-blk-log", UInt32(MFD_CLOEXEC))
    guard number >= 0 else { throw .system("memfd_create for the dirty log", Errno(rawValue: errno)) }
    descriptor = OwnedDescriptor(number)
    guard ftruncate(number, off_t(size)) == 0 else {
      throw .system("ftruncate of the dirty log", Errno(rawValue: errno))
    }
    area = SharedArea(size: size, offset: 0)
  }
}
