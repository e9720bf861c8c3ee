/// Lines on a stream socket, in whatever pieces the bytes are received and sent.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// The receiving half.
struct ControlReader {
  enum Progress {
    case line(ControlLine)
    case nothingYet
    /// The other end closed the connection between two lines.
    case ended
  }

  /// Bytes of the longest line that is accepted.
  var maximumSize = ControlLine.maximumSize
  /// Closes the descriptors that are received from now on; `nil`: their last owner does.
  var disposer: (any Disposer)?
  private var bytes: [UInt8] = []
  /// In the order in which they were received; each line takes the first of them.
  private var descriptors: [OwnedDescriptor] = []
  /// Bytes that have been searched for the end of a line.
  private var searched = 0

  /// Reads until a line is complete or the socket has nothing more.
  mutating func read(_ socket: Int32) throws(ControlError) -> Progress {
    while true {
      if let end = bytes[searched...].firstIndex(of: UInt8(ascii: "\n")) { return .line(try takeLine(end)) }
      searched = bytes.count
      guard bytes.count < maximumSize else { throw .lineTooLong(limit: maximumSize) }
      switch try receive(socket) {
      case nil: return .nothingYet
      case 0?:
        guard bytes.isEmpty else { throw .closed }
        return .ended
      default: break
      }
    }
  }

  private mutating func takeLine(_ end: Int) throws(ControlError) -> ControlLine {
    let text = Array(bytes[..<end])
    bytes.removeSubrange(...end)
    searched = 0
    // The kernel delivers the descriptors of a piece with its first byte, so all of a line's descriptors are here when its end
    // is.
    let count = try ControlLine.descriptorCount(in: text)
    guard count <= descriptors.count else { throw .descriptorsMissing(said: count, came: descriptors.count) }
    defer { descriptors.removeFirst(count) }
    return ControlLine(text: text, descriptors: Array(descriptors.prefix(count)))
  }

  /// - Returns: how many bytes were received, 0 at the end, `nil` if there is nothing now.
  private mutating func receive(_ socket: Int32) throws(ControlError) -> Int? {
    let size = 1 << 16
    var room = [UInt8](repeating: 0, count: size)
    var numbers = [Int32](repeating: -1, count: 253)
    var arrived = 0
    var truncated: Int32 = 0
    var received: Int
    repeat {
      received = unsafe clinux_receive_with_fds(
        socket, &room, size, Int32(MSG_DONTWAIT), &numbers, numbers.count, &arrived, &truncated)
    } while received == -Int(EINTR)
    // Owned before anything else is checked, so that no path leaks them.
    descriptors += numbers[..<arrived].map { OwnedDescriptor($0, closedBy: disposer) }
    if received == -Int(EAGAIN) { return nil }
    if received == -Int(ECONNRESET) { return 0 }
    guard received >= 0 else { throw .socket("\(Errno(rawValue: Int32(-received)))") }
    guard truncated == 0 else { throw .descriptorsLost }
    guard descriptors.count <= ControlLine.maximumDescriptors else {
      throw .tooManyDescriptors(limit: ControlLine.maximumDescriptors)
    }
    bytes += room[..<received]
    return received
  }
}

/// The sending half.
struct ControlWriter {
  /// How many descriptors are sent with one piece of a line.
  private static let descriptorsPerPiece = 64

  private struct Piece {
    var bytes: ArraySlice<UInt8>
    var descriptors: ArraySlice<OwnedDescriptor>
  }

  private var waiting: [Piece] = []

  /// Everything has been sent.
  var isIdle: Bool { waiting.isEmpty }

  mutating func enqueue(_ line: ControlLine) {
    var bytes = (line.text + [UInt8(ascii: "\n")])[...]
    var descriptors = line.descriptors[...]
    // The text contains the number of descriptors, so it is long enough to give each piece a byte.
    while descriptors.count > Self.descriptorsPerPiece {
      waiting.append(Piece(bytes: bytes.prefix(1), descriptors: descriptors.prefix(Self.descriptorsPerPiece)))
      bytes = bytes.dropFirst(1)
      descriptors = descriptors.dropFirst(Self.descriptorsPerPiece)
    }
    waiting.append(Piece(bytes: bytes, descriptors: descriptors))
  }

  /// Sends as much as the socket accepts.
  mutating func flush(_ socket: Int32) throws(ControlError) {
    while let piece = waiting.first {
      let (bytes, numbers) = (Array(piece.bytes), piece.descriptors.map(\.rawValue))
      let sent = unsafe clinux_send_with_fds(socket, bytes, bytes.count, numbers, numbers.count)
      if sent == -Int(EINTR) { continue }
      if sent == -Int(EAGAIN) { return }
      if sent == -Int(EPIPE) || sent == -Int(ECONNRESET) { throw .closed }
      guard sent >= 0 else { throw .socket("\(Errno(rawValue: Int32(-sent)))") }
      guard sent < bytes.count else {
        waiting.removeFirst()
        continue
      }
      // Descriptors are sent once, with the first byte.
      waiting[0] = Piece(bytes: piece.bytes.dropFirst(sent), descriptors: [])
    }
  }
}
