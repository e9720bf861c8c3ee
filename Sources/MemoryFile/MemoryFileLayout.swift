/// The layout of a memory file (Docs/memory-file.md): the header as a value, validated when it is read from a file.
public import VirtioCore
public import VirtioRegisters

/// The header of one file, validated: its numbers are consistent with each other and with the file.
public struct MemoryFileLayout: Hashable, Sendable {
  /// "VIRTIOMF" as a little-endian number.
  public static let magic: UInt64 = 0x464d_4f49_5452_4956
  public static let version: UInt32 = 1
  public static let pageSize = 4096
  /// The most queues a file can have room for.
  public static let maximumQueueLimit = 1024
  /// Bytes of the header that are used; the rest of its page is zero.
  static let headerSize = 0x54

  /// Queues that the file has room for, 1 … 1024.
  public let maximumQueues: Int
  /// Bytes of the whole file.
  public let fileSize: UInt64
  /// Where the control block begins, bytes; a multiple of 4096.
  public let controlOffset: UInt64
  public let controlSize: UInt64
  /// Where guest memory begins, bytes; a multiple of 4096.
  public let memoryOffset: UInt64
  /// Bytes of guest memory; at least 1.
  public let memorySize: UInt64
  /// The guest-physical address of the first byte of guest memory; a multiple of 4096.
  public let memoryBase: GuestAddress
  /// The registers that the mailbox reaches.
  public let interface: RegisterInterface

  /// The layout of a new file.
  /// - Returns: `nil` if the sizes are invalid: memory that is empty, too large or not a whole number of pages, or a bad number
  ///   of queues.
  public init?(
    memorySize: UInt64, memoryBase: GuestAddress = GuestAddress(0), maximumQueues: Int, interface: RegisterInterface = .mmio
  ) {
    let page = UInt64(Self.pageSize)
    guard (1...Self.maximumQueueLimit).contains(maximumQueues), memoryBase.isAligned(to: page) else { return nil }
    guard memorySize > 0, memorySize % page == 0, memorySize <= UInt64(Int64.max) / 2 else { return nil }
    guard memoryBase.advanced(by: memorySize - 1) != nil else { return nil }
    self.maximumQueues = maximumQueues
    self.memorySize = memorySize
    self.memoryBase = memoryBase
    self.interface = interface
    controlOffset = page
    let end = ControlOffset.end(maximumQueues: maximumQueues, interface)
    controlSize = (UInt64(end) + page - 1) / page * page
    memoryOffset = controlOffset + controlSize
    fileSize = memoryOffset + memorySize
  }

  /// The header's bytes, with the magic number or without it: it is written last when a file is created.
  func encoded(magic: UInt64) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Self.headerSize)
    bytes.store(magic, at: 0x00)
    bytes.store(Self.version, at: 0x08)
    bytes.store(UInt32(maximumQueues), at: 0x0c)
    bytes.store(fileSize, at: 0x10)
    bytes.store(controlOffset, at: 0x18)
    bytes.store(controlSize, at: 0x20)
    bytes.store(memoryOffset, at: 0x28)
    bytes.store(memorySize, at: 0x30)
    bytes.store(memoryBase.rawValue, at: 0x38)
    bytes.store(UInt32(ControlOffset.doorbells), at: 0x40)
    bytes.store(UInt32(ControlOffset.doorbellStride), at: 0x44)
    bytes.store(UInt32(ControlOffset.state(0, maximumQueues: maximumQueues, interface)), at: 0x48)
    bytes.store(UInt32(ControlOffset.stateStride(maximumQueues: maximumQueues, interface)), at: 0x4c)
    bytes.store(interface.rawValue, at: 0x50)
    return bytes
  }

  /// Decodes and validates an untrusted header.
  ///
  /// - Parameters:
  ///   - header: a private copy of the file's beginning.
  ///   - actualSize: the real size of the file, bytes.
  public init(decoding header: [UInt8], actualSize: UInt64, path: String) throws(MemoryFileError) {
    func broken(_ reason: String) -> MemoryFileError { .notAMemoryFile(path: path, reason: reason) }
    guard header.count >= Self.headerSize else { throw broken("it is shorter than a header") }
    let magic = header.load(at: 0x00, as: UInt64.self)
    guard magic != 0 else { throw broken("its header is empty: it was never finished, or is something else") }
    guard magic == Self.magic else { throw broken("it does not begin with VIRTIOMF") }
    let version = header.load(at: 0x08, as: UInt32.self)
    guard version == Self.version else { throw .unsupportedVersion(path: path, version) }
    let page = UInt64(Self.pageSize)
    let queues = header.load(at: 0x0c, as: UInt32.self)
    guard queues >= 1, queues <= UInt32(Self.maximumQueueLimit) else {
      throw broken("its header has room for \(queues) queues, and 1 to \(Self.maximumQueueLimit) are possible")
    }
    maximumQueues = Int(queues)
    let number = header.load(at: 0x50, as: UInt32.self)
    guard let interface = RegisterInterface(rawValue: number) else {
      throw broken("its registers are of kind \(number), and 0 to \(RegisterInterface.allCases.count - 1) are known")
    }
    self.interface = interface
    fileSize = header.load(at: 0x10, as: UInt64.self)
    guard fileSize <= actualSize, fileSize <= UInt64(Int64.max) / 2 else {
      throw broken("its header states \(fileSize) bytes, but the file has \(actualSize)")
    }
    controlOffset = header.load(at: 0x18, as: UInt64.self)
    controlSize = header.load(at: 0x20, as: UInt64.self)
    memoryOffset = header.load(at: 0x28, as: UInt64.self)
    memorySize = header.load(at: 0x30, as: UInt64.self)
    memoryBase = GuestAddress(header.load(at: 0x38, as: UInt64.self))
    guard controlOffset % page == 0, controlOffset >= page, controlOffset <= fileSize else {
      throw broken("its control block begins at \(controlOffset)")
    }
    // No sum below can overflow: every term is at most fileSize, which is below 2^62.
    guard
      controlSize >= UInt64(ControlOffset.end(maximumQueues: maximumQueues, interface)), controlSize <= fileSize,
      controlOffset + controlSize <= fileSize
    else { throw broken("its control block has \(controlSize) bytes") }
    guard memoryOffset % page == 0, memoryOffset >= controlOffset + controlSize, memoryOffset <= fileSize else {
      throw broken("its guest memory begins at \(memoryOffset)")
    }
    guard memorySize > 0, memorySize <= fileSize, memoryOffset + memorySize <= fileSize else {
      throw broken("its guest memory has \(memorySize) bytes")
    }
    guard memoryBase.isAligned(to: page), memoryBase.advanced(by: memorySize - 1) != nil else {
      throw broken("its guest memory has the guest address \(memoryBase)")
    }
    guard
      header.load(at: 0x40, as: UInt32.self) == UInt32(ControlOffset.doorbells),
      header.load(at: 0x44, as: UInt32.self) == UInt32(ControlOffset.doorbellStride),
      header.load(at: 0x48, as: UInt32.self) == UInt32(ControlOffset.state(0, maximumQueues: maximumQueues, interface)),
      header.load(at: 0x4c, as: UInt32.self) == UInt32(ControlOffset.stateStride(maximumQueues: maximumQueues, interface))
    else { throw broken("the offsets inside its control block are not those of version 1") }
  }
}

/// Offsets inside the control block.
enum ControlOffset {
  static let deviceState = 0x000
  static let deviceProcess = 0x004
  static let deviceEpoch = 0x008
  static let requestSequence = 0x040
  static let requestOffset = 0x044
  static let requestWidth = 0x048
  static let requestWrite = 0x04c
  static let requestValue = 0x050
  static let responseSequence = 0x080
  static let responseStatus = 0x084
  static let responseValue = 0x088
  static let interruptStatus = 0x0c0
  static let configurationDoorbell = 0x100
  /// Beside a call doorbell, in its cache line: the held-back flag, and words that nobody waits on.
  static let heldBack = 4
  static let silentDoorbell = 8
  static let silentStatus = 12
  static let activeState = 0x140
  static let doorbells = 0x1000
  static let doorbellStride = 128
  /// From a queue's kick doorbell to its call doorbell: two cache lines, one for each side to write.
  static let callDoorbell = 64

  static func stateStride(maximumQueues: Int, _ interface: RegisterInterface) -> Int {
    (RegisterImage.size(queueCount: maximumQueues, interface: interface) + 63) / 64 * 64
  }
  static func state(_ copy: Int, maximumQueues: Int, _ interface: RegisterInterface) -> Int {
    doorbells + maximumQueues * doorbellStride + copy * stateStride(maximumQueues: maximumQueues, interface)
  }
  static func end(maximumQueues: Int, _ interface: RegisterInterface) -> Int {
    state(2, maximumQueues: maximumQueues, interface)
  }
}

extension [UInt8] {
  mutating func store<Word: FixedWidthInteger>(_ word: Word, at offset: Int) {
    for index in 0..<Word.bitWidth / 8 { self[offset + index] = UInt8(truncatingIfNeeded: word >> Word(index * 8)) }
  }

  /// The word at an offset, little-endian. The caller has checked that it is within the array.
  func load<Word: FixedWidthInteger>(at offset: Int, as: Word.Type) -> Word {
    self[offset..<offset + Word.bitWidth / 8].reversed().reduce(0) { $0 << 8 | Word(truncatingIfNeeded: $1) }
  }
}
