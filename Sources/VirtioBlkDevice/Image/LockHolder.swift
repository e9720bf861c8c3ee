/// Who has an image's lock: the kernel does not say it with the refusal, as such a lock is an open file's.
internal import CLinux
internal import Glibc
internal import VirtioCore

enum LockHolder {
  /// Who is in the way and what to do about it, as in "another process that writes to it (process 123, qemu-nbd): stop that one".
  /// For a message, because every descriptor of every process is looked at.
  ///
  /// - Parameters:
  ///   - stranger: what to call one that is not this process.
  ///   - unknown: what it does where nobody can tell who it is: another user's process, another machine's, or one that has gone.
  static func words(_ path: String, stranger: String, unknown: String = " that writes to it") -> String {
    var file = stat()
    guard unsafe stat(path, &file) == 0 else { return "\(stranger)\(unknown): stop that one" }
    if let user = OwnImages.user(of: file) {
      let who = user.name.map { "another disk of this process (\(printable($0)))" } ?? "this process itself"
      return "\(who), which \(deed(isWriter: user.isWriter)): give each disk an image of its own"
    }
    guard let holder = find(file) else { return "\(stranger)\(unknown): stop that one" }
    return "\(stranger) that \(deed(isWriter: holder.isExclusive)) (process \(holder.process)\(holder.name)): stop that one"
  }

  /// Who shares its locks may write, too, but need not.
  private static func deed(isWriter: Bool) -> String { isWriter ? "writes to it" : "has it open" }

  private struct Holder {
    var process: String
    var name: String
    var isExclusive: Bool
  }

  /// Who has it for itself, before those who share it.
  private static func find(_ file: stat) -> Holder? {
    let device = UInt64(file.st_dev)
    // As the kernel splits and writes it (fs/locks.c).
    let (major, minor) = (device >> 8 & 0xfff | device >> 32 & ~0xfff, device & 0xff | device >> 12 & ~0xff)
    let mark = " \(digits(major)):\(digits(minor)):\(file.st_ino) "
    var sharer: Holder?
    for process in SystemText.names(in: "/proc") where UInt32(process) != nil {
      let folder = "/proc/\(process)/fdinfo"
      // Servers and QEMU have these; locks of other kinds, of programs that make a backup for example, say nothing of who serves.
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
