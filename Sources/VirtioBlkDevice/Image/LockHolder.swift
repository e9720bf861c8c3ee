/// Finds out who has an image's lock: the kernel does not report it with the refusal, because such a lock belongs to an open
/// file.
internal import CLinux
internal import Glibc
internal import VirtioCore

enum LockHolder {
  /// Who has the image and what to do about it, as in "another process that writes to it (process 123, qemu-nbd): stop it".
  /// Only for messages, because it looks at every descriptor of every process.
  ///
  /// - Parameters:
  ///   - stranger: what to call a process that is not this one.
  ///   - unknown: what it does, if it cannot be found: it belongs to another user or another machine, or has ended.
  static func words(_ path: String, stranger: String, unknown: String = " that writes to it") -> String {
    var file = stat()
    guard unsafe stat(path, &file) == 0 else { return "\(stranger)\(unknown): stop it" }
    if let user = OwnImages.user(of: file) {
      let who = user.name.map { "another disk of this process (\(printable($0)))" } ?? "this process itself"
      return "\(who), which \(deed(isWriter: user.isWriter)): give each disk an image of its own"
    }
    guard let holder = find(file) else { return "\(stranger)\(unknown): stop it" }
    return "\(stranger) that \(deed(isWriter: holder.isExclusive)) (process \(holder.process)\(holder.name)): stop it"
  }

  /// A holder of shared locks may write, too, but need not.
  private static func deed(isWriter: Bool) -> String { isWriter ? "writes to it" : "has it open" }

  private struct Holder {
    var process: String
    var name: String
    var isExclusive: Bool
  }

  /// The exclusive holder if there is one, otherwise one that shares it.
  private static func find(_ file: stat) -> Holder? {
    let device = UInt64(file.st_dev)
    // As the kernel splits and prints it (fs/locks.c).
    let (major, minor) = (device >> 8 & 0xfff | device >> 32 & ~0xfff, device & 0xff | device >> 12 & ~0xff)
    let mark = " \(digits(major)):\(digits(minor)):\(file.st_ino) "
    var sharer: Holder?
    for process in SystemText.names(in: "/proc") where UInt32(process) != nil {
      let folder = "/proc/\(process)/fdinfo"
      // Servers and QEMU use these; locks of other kinds, such as those of backup programs, do not tell who serves the image.
      let locks = SystemText.names(in: folder).flatMap { descriptor -> [Substring] in
        let lines = SystemText.contents("\(folder)/\(descriptor)", most: 65536)?.split(separator: "\n") ?? []
        return lines.filter { $0.hasPrefix("lock:") && $0.contains(" OFDLCK ") && $0.contains(mark) }
      }
      guard !locks.isEmpty else { continue }
      let name = SystemText.line("/proc/\(process)/comm").map { ", " + printable($0) } ?? ""
      let isExclusive = locks.contains { $0.contains(" WRITE ") }
      let holder = Holder(process: process, name: name, isExclusive: isExclusive)
      if isExclusive { return holder }
      sharer = sharer ?? holder
    }
    return sharer
  }

  private static func digits(_ number: UInt64) -> String {
    let digits = String(number, radix: 16)
    return digits.count < 2 ? "0" + digits : digits
  }
}
