/// Which process has an image's lock: the kernel does not say it with the refusal, as such a lock is an open file's.
internal import CLinux
internal import Glibc
internal import VirtioCore

enum LockHolder {
  /// As in " (process 123, qemu-nbd)"; empty where nobody can tell: another user's process, another machine's, or one that has
  /// gone meanwhile. For a message, because every descriptor of every process is looked at.
  static func words(_ path: String) -> String {
    var info = stat()
    guard unsafe stat(path, &info) == 0 else { return "" }
    let device = UInt64(info.st_dev)
    // As the kernel splits and writes it (fs/locks.c).
    let (major, minor) = (device >> 8 & 0xfff | device >> 32 & ~0xfff, device & 0xff | device >> 12 & ~0xff)
    let mark = " \(digits(major)):\(digits(minor)):\(info.st_ino) "
    for process in SystemText.names(in: "/proc") where UInt32(process) != nil {
      let folder = "/proc/\(process)/fdinfo"
      let hasLock = SystemText.names(in: folder).contains { descriptor in
        let lines = SystemText.contents("\(folder)/\(descriptor)", most: 65536)?.split(separator: "\n") ?? []
        return lines.contains { $0.hasPrefix("lock:") && $0.contains(mark) }
      }
      guard hasLock else { continue }
      let name = SystemText.line("/proc/\(process)/comm").map { ", " + printable($0) } ?? ""
      return " (process \(process)\(name))"
    }
    return ""
  }

  private static func digits(_ number: UInt64) -> String {
    let digits = String(number, radix: 16)
    return digits.count < 2 ? "0" + digits : digits
  }
}
