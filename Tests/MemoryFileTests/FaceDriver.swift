/// One set of driver operations for every register interface, so that a test's body is written once.
import MemoryFile
import Testing
import VirtioCore
import VirtioRegisters

/// A memory file's register interface, and which one is used if there are two.
struct Face: Sendable, CustomTestStringConvertible {
  var interface: RegisterInterface
  var prefersLegacy = false
  var isLegacy: Bool { prefersLegacy || !interface.hasModern }
  var testDescription: String { interface.name + (prefersLegacy ? ", the legacy way" : "") }

  static let all =
    RegisterInterface.allCases.map { Face(interface: $0) }
    + [Face(interface: .pciTransitional, prefersLegacy: true)]
  static let pci = all.filter { $0.interface.isPCI }

  var featuresOK: UInt32 { isLegacy ? 3 : 11 }
  var driverOK: UInt32 { isLegacy ? 7 : 15 }
  /// The features that have to be accepted.
  var least: FeatureSet { isLegacy ? [] : [.version1] }

  /// The configuration that `FaceDriver.bringUp` sets up.
  func configuration(_ queue: Int) -> QueueConfiguration {
    let base = 0x10000 + UInt64(queue) * 0x4000
    // Only over legacy PCI does the device dictate the size of its rings.
    let size: UInt16 = isLegacy && interface.isPCI ? 256 : 8
    if isLegacy {
      let parts = 18 * UInt64(size) + 6
      return QueueConfiguration(
        size: size, descriptorTable: GuestAddress(base), availableRing: GuestAddress(base + 16 * UInt64(size)),
        usedRing: GuestAddress(base + (parts + 4095) / 4096 * 4096))
    }
    return QueueConfiguration(
      size: size, descriptorTable: GuestAddress(base), availableRing: GuestAddress(base + 1024),
      usedRing: GuestAddress(base + 2048))
  }
}

/// A driver of a memory file, over any register interface.
struct FaceDriver: Sendable {
  let driver: MemoryFileDriver
  let face: Face

  init(_ path: String, _ face: Face, timeout: Int = 5000) throws {
    driver = try MemoryFileDriver.open(path: path, timeout: timeout)
    self.face = face
  }

  private var isMMIO: Bool { !face.interface.isPCI }

  // MARK: PCI address spaces

  func pci(_ space: PCIRegisters.Space, _ offset: UInt32, _ width: Int) throws -> UInt64 {
    try driver.read(RegisterModel.offset(space, offset), width: width)
  }

  func setPCI(_ space: PCIRegisters.Space, _ offset: UInt32, _ width: Int, _ value: UInt64) throws {
    try driver.write(RegisterModel.offset(space, offset), width: width, value)
  }

  private func common(_ offset: UInt32, _ width: Int) throws -> UInt64 { try pci(.bar(4), offset, width) }
  private func setCommon(_ offset: UInt32, _ width: Int, _ value: UInt64) throws { try setPCI(.bar(4), offset, width, value) }

  /// Decodes BARs, and enables memory access and bus mastering; for a new function all are off.
  func enable() throws { if !isMMIO { try setPCI(.configuration, 4, 2, 7) } }

  /// Enables MSI-X, with a message for each vector, and maps the configuration's and the queues' sources to 0, 1, ….
  func useMessages(queues: Int) throws {
    for vector in 0...UInt32(queues) {
      try setPCI(.bar(1), vector * 16, 8, 0xfee0_0000)
      try setPCI(.bar(1), vector * 16 + 8, 8, UInt64(0x30 + vector))
    }
    try setPCI(.configuration, 0x9a, 2, 0x8000)
  }

  func mapVectors(queues: Int) throws {
    try setPCI(face.isLegacy ? .bar(0) : .bar(4), face.isLegacy ? 0x14 : 0x10, 2, 0)
    for queue in 0..<queues {
      try select(queue)
      try setPCI(face.isLegacy ? .bar(0) : .bar(4), face.isLegacy ? 0x16 : 0x1a, 2, UInt64(queue + 1))
    }
  }

  func mask(_ vector: UInt32, _ isMasked: Bool) throws { try setPCI(.bar(1), vector * 16 + 12, 4, isMasked ? 1 : 0) }

  // MARK: Operations

  func status() throws -> UInt32 {
    if isMMIO { return UInt32(try driver.read(0x70)) }
    return UInt32(try face.isLegacy ? pci(.bar(0), 0x12, 1) : common(0x14, 1))
  }

  func setStatus(_ status: UInt32) throws {
    if isMMIO { return try driver.write(0x70, UInt64(status)) }
    try face.isLegacy ? setPCI(.bar(0), 0x12, 1, UInt64(status)) : setCommon(0x14, 1, UInt64(status))
  }

  func select(_ queue: Int) throws {
    if isMMIO { return try driver.write(0x30, UInt64(queue)) }
    try face.isLegacy ? setPCI(.bar(0), 0x0e, 2, UInt64(queue)) : setCommon(0x16, 2, UInt64(queue))
  }

  func accept(_ features: FeatureSet) throws {
    for word in 0..<2 as Range<UInt64> {
      let bits = features.rawValue >> (word * 32) & 0xffff_ffff
      switch (isMMIO, face.isLegacy) {
      case (true, _):
        try driver.write(0x24, word)
        try driver.write(0x20, bits)
      case (false, true): if word == 0 { try setPCI(.bar(0), 0x04, 4, bits) }
      case (false, false):
        try setCommon(0x08, 4, word)
        try setCommon(0x0c, 4, bits)
      }
    }
  }

  func setUp(_ queue: Int) throws {
    try select(queue)
    let wanted = face.configuration(queue)
    let parts = [wanted.descriptorTable, wanted.availableRing, wanted.usedRing].map(\.rawValue)
    switch (isMMIO, face.isLegacy) {
    case (true, true):
      try driver.write(0x38, UInt64(wanted.size))
      try driver.write(0x3c, 4096)
      try driver.write(0x40, parts[0] / 4096)
    case (true, false):
      try driver.write(0x38, UInt64(wanted.size))
      for (offset, part) in zip([0x80, 0x90, 0xa0] as [UInt32], parts) { try driver.write(offset, part) }
      try driver.write(0x44, 1)
    case (false, true): try setPCI(.bar(0), 0x08, 4, parts[0] / 4096)
    case (false, false):
      try setCommon(0x18, 2, UInt64(wanted.size))
      for (offset, part) in zip([0x20, 0x28, 0x30] as [UInt32], parts) { try setCommon(offset, 8, part) }
      try setCommon(0x1c, 2, 1)
    }
  }

  /// virtio 3.1.1, or 3.1.2 for a legacy driver.
  func bringUp(features: FeatureSet = [], queues: Int, messages: Bool = false) throws {
    try enable()
    for status in [0, 1, 3] as [UInt32] { try setStatus(status) }
    if face.interface == .mmioLegacy { try driver.write(0x28, 4096) }
    try accept(features.union(face.least))
    if !face.isLegacy { try setStatus(11) }
    #expect(try status() == face.featuresOK)
    if messages {
      try useMessages(queues: queues)
      try mapVectors(queues: queues)
    }
    for queue in 0..<queues { try setUp(queue) }
    try setStatus(face.driverOK)
  }

  func notify(_ queue: Int) throws {
    if isMMIO { return try driver.write(0x50, UInt64(queue)) }
    try face.isLegacy
      ? setPCI(.bar(0), 0x10, 2, UInt64(queue)) : setPCI(.bar(4), 0x4000 + UInt32(queue) * 4, 2, UInt64(queue))
  }

  /// The pending bits: "ring or configuration?". Over PCI, reading them clears them.
  func interrupts() throws -> UInt32 {
    if isMMIO { return UInt32(try driver.read(0x60)) }
    return UInt32(try face.isLegacy ? pci(.bar(0), 0x13, 1) : pci(.bar(4), 0x1000, 1))
  }

  func acknowledge(_ bits: UInt32) throws { if isMMIO { try driver.write(0x64, UInt64(bits)) } }

  private var configuration: UInt32 {
    get throws {
      if isMMIO { return 0x100 }
      guard face.isLegacy else { return RegisterModel.offset(.bar(4), 0x2000) }
      return RegisterModel.offset(.bar(0), try pci(.configuration, 0x9a, 2) & 0x8000 != 0 ? 0x18 : 0x14)
    }
  }

  func readConfiguration(_ offset: UInt32, _ width: Int) throws -> UInt64 {
    try driver.read(configuration + offset, width: width)
  }

  func writeConfiguration(_ offset: UInt32, _ width: Int, _ value: UInt64) throws {
    try driver.write(configuration + offset, width: width, value)
  }
}
