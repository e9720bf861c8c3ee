/// Waits until the device's thread is asleep, so that each batch finds it in the same state and counts are equal.
import CLinux
import Glibc
import SystemPackage

/// Watches the one worker thread of a device of this process, through /proc.
final class SleepWatch {
  #if arch(x86_64)
  private static let sleeps = [Int(__NR_epoll_wait), Int(__NR_epoll_pwait), Int(__NR_io_uring_enter)]
  #else
  private static let sleeps = [Int(__NR_epoll_pwait), Int(__NR_io_uring_enter)]
  #endif

  private let sleeps = SleepWatch.sleeps
  private let state: FileDescriptor
  private let call: FileDescriptor
  private var text = [UInt8](repeating: 0, count: 512)

  /// - Parameter name: the name of the thread. The result is `nil` if there is no such thread.
  init?(thread name: String) {
    var text = [UInt8](repeating: 0, count: 64)
    guard let tasks = unsafe opendir("/proc/self/task") else { return nil }
    defer { unsafe closedir(tasks) }
    while let entry = unsafe readdir(tasks) {
      let number = unsafe withUnsafeBytes(of: entry.pointee.d_name) { bytes in
        unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
      }
      let folder = "/proc/self/task/\(number)"
      guard let comm = try? FileDescriptor.open(FilePath(folder + "/comm"), .readOnly) else { continue }
      defer { try? comm.close() }
      let count = Self.read(comm, into: &text)
      guard text.prefix(count).elementsEqual((name + "\n").utf8) else { continue }
      guard let state = try? FileDescriptor.open(FilePath(folder + "/stat"), .readOnly),
        let call = try? FileDescriptor.open(FilePath(folder + "/syscall"), .readOnly)
      else { return nil }
      self.state = state
      self.call = call
      return
    }
    return nil
  }

  deinit {
    try? state.close()
    try? call.close()
  }

  /// Waits until the thread really sleeps in epoll or in its ring, and is not just about to.
  func wait() {
    // The state tells whether it sleeps, the call tells where. A thread that a tracer stopped at the call has another state.
    while !(isSleeping && sleeps.contains(currentCall) && isSleeping) { usleep(20) }
  }

  /// The letter after the name, which stands in parentheses and can contain anything.
  private var isSleeping: Bool {
    var place = Self.read(state, into: &text) - 1
    while place >= 0, text[place] != UInt8(ascii: ")") { place -= 1 }
    return place >= 0 && text[place + 2] == UInt8(ascii: "S")
  }

  /// The current system call, or -1.
  private var currentCall: Int {
    let count = Self.read(call, into: &text)
    var number = 0
    var place = 0
    while place < count, text[place] >= UInt8(ascii: "0"), text[place] <= UInt8(ascii: "9") {
      number = number * 10 + Int(text[place] - UInt8(ascii: "0"))
      place += 1
    }
    return place > 0 ? number : -1
  }

  /// - Returns: how many bytes the file has; after them there is room for two more.
  private static func read(_ file: FileDescriptor, into text: inout [UInt8]) -> Int {
    unsafe max(0, text.withUnsafeMutableBytes { unsafe pread(file.rawValue, $0.baseAddress, $0.count - 2, 0) })
  }
}
