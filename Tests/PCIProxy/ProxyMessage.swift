/// The messages that QEMU's `x-pci-proxy-dev` (7.2) sends to the process with its device, and how they are received.
internal import CLinux
internal import Glibc
import VirtioCore

/// One request of the proxy.
struct ProxyMessage {
  enum Command: Int32 {
    case memory = 0
    case answer = 1
    case configurationWrite = 2
    case configurationRead = 3
    case barWrite = 4
    case barRead = 5
    case interruptDescriptors = 6
    case reset = 7
  }

  var command: Command
  var data: [UInt8]
  var descriptors: [OwnedDescriptor]

  /// A word of the data; zero beyond its end.
  func word<Word: FixedWidthInteger>(_ offset: Int, as: Word.Type = Word.self) -> Word {
    guard offset >= 0, offset + Word.bitWidth / 8 <= data.count else { return 0 }
    return data[offset..<offset + Word.bitWidth / 8].reversed().reduce(0) { $0 << 8 | Word(truncatingIfNeeded: $1) }
  }
}

/// The proxy's socket. Reads block.
struct ProxyLink {
  let socket: OwnedDescriptor

  /// The largest data part: that of the memory map.
  private static let largest: UInt64 = 192
  /// Command, padding, and the size of the data.
  private static let headerSize = 16

  /// - Returns: `nil` at the end, or after an invalid message.
  func receive() -> ProxyMessage? {
    guard let (header, descriptors) = read(Self.headerSize) else { return nil }
    let message = ProxyMessage(command: .answer, data: header, descriptors: [])
    let size = message.word(8, as: UInt64.self)
    guard let command = ProxyMessage.Command(rawValue: message.word(0)), size <= Self.largest else { return nil }
    guard size > 0 else { return ProxyMessage(command: command, data: [], descriptors: descriptors) }
    guard let (data, _) = read(Int(size)) else { return nil }
    return ProxyMessage(command: command, data: data, descriptors: descriptors)
  }

  private func read(_ count: Int) -> (bytes: [UInt8], descriptors: [OwnedDescriptor])? {
    var bytes = [UInt8](repeating: 0, count: count)
    var descriptors: [OwnedDescriptor] = []
    var done = 0
    while done < count {
      var numbers = [Int32](repeating: -1, count: 8)
      var found = 0
      var truncated: Int32 = 0
      let got = unsafe bytes.withUnsafeMutableBytes { buffer in
        unsafe numbers.withUnsafeMutableBufferPointer {
          unsafe clinux_receive_with_fds(
            socket.rawValue, buffer.baseAddress! + done, count - done, 0, $0.baseAddress, 8, &found, &truncated)
        }
      }
      if got == -Int(EINTR) { continue }
      descriptors += numbers.prefix(found).map { OwnedDescriptor($0) }
      guard got > 0, truncated == 0 else { return nil }
      done += got
    }
    return (bytes, descriptors)
  }

  func answer(_ value: UInt64) {
    var bytes = [UInt8](repeating: 0, count: Self.headerSize + 8)
    bytes[0] = UInt8(ProxyMessage.Command.answer.rawValue)
    bytes[8] = 8
    for index in 0..<8 { bytes[Self.headerSize + index] = UInt8(truncatingIfNeeded: value >> UInt64(index * 8)) }
    _ = unsafe bytes.withUnsafeBytes { unsafe send(socket.rawValue, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
  }
}
