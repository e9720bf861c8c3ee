/// The block device's configuration space, decoded (virtio 5.2.4). Fields whose feature is not offered are `nil`.
public import VirtioCore

public struct BlockConfig: Hashable, Sendable {
  /// 512-byte sectors.
  public var capacity: UInt64 = 0
  /// Largest segment, bytes.
  public var sizeMax: UInt32?
  /// Most data segments of one request.
  public var segMax: UInt32?
  public var geometry: Geometry?
  /// The logical block, bytes.
  public var blockSize: UInt32?
  public var topology: Topology?
  /// 0: writethrough, 1: writeback.
  public var writeback: UInt8?
  public var queues: UInt16?
  public var discard: Limits?
  public var writeZeroes: Limits?
  public var writeZeroesMayUnmap: UInt8?
  public var secureErase: Limits?
  public var zoned: Zoned?

  public struct Geometry: Hashable, Sendable {
    public var cylinders: UInt16
    public var heads: UInt8
    public var sectors: UInt8
  }

  public struct Topology: Hashable, Sendable {
    /// log2 of the logical blocks in a physical one.
    public var physicalBlockExponent: UInt8
    /// Logical blocks.
    public var alignmentOffset: UInt8
    public var minimumIO: UInt16
    public var optimalIO: UInt32
  }

  /// The limits of a disk with zones.
  public struct Zoned: Hashable, Sendable {
    /// 512-byte sectors.
    public var zoneSectors: UInt32
    /// 0: any number.
    public var maximumOpen: UInt32
    public var maximumActive: UInt32
    /// 512-byte sectors; 0: no appends.
    public var maximumAppend: UInt32
    /// Bytes.
    public var granularity: UInt32
    /// 0: none, 1: host-managed, 2: host-aware.
    public var model: UInt8
  }

  /// What one DISCARD, WRITE_ZEROES or SECURE_ERASE can do.
  public struct Limits: Hashable, Sendable {
    /// 512-byte sectors of one segment.
    public var maximumSectors: UInt32
    public var maximumSegments: UInt32
    /// 512-byte sectors; WRITE_ZEROES has none.
    public var alignment: UInt32?
  }

  /// The number of bytes that covers every field that is offered: back-ends that know fewer fields have a shorter space.
  static func bytesNeeded(_ offered: FeatureSet) -> Int {
    offered.contains(BlockFeature.zoned) ? 96 : offered.contains(BlockFeature.secureErase) ? 72 : 60
  }
  static let writebackOffset = 32
  /// The offsets of fields narrower than 32 bits, with their widths in bytes (virtio 5.2.4).
  private static let narrow: [Int: Int] = [
    16: 2, 18: 1, 19: 1, 24: 1, 25: 1, 26: 2, 32: 1, 33: 1, 34: 2, 56: 1, 57: 1, 58: 1, 59: 1,
    92: 1, 93: 1, 94: 1, 95: 1,
  ]

  /// The width of a read at an offset: that of the field, or one byte if no whole field is wanted.
  static func width(at offset: Int, atMost count: Int) -> Int {
    let width = narrow[offset] ?? (offset % 4 == 0 ? 4 : 1)
    return width <= count ? width : 1
  }

  /// Reads the space in a loop until no field changed in the meantime (virtio 2.4.1); a legacy device has no generation
  /// counter, and is read until two passes agree (virtio 2.4.4).
  init(_ transport: any DriverTransport, offered: FeatureSet) throws(DriverError) {
    var bytes: [UInt8] = []
    // Bounded, in case a device changes its configuration all the time.
    for _ in 0..<16 {
      let before = try transport.configurationGeneration()
      bytes = try transport.readConfiguration(at: 0, count: Self.bytesNeeded(offered))
      if offered.contains(.version1) {
        if try transport.configurationGeneration() == before { break }
      } else if try transport.readConfiguration(at: 0, count: Self.bytesNeeded(offered)) == bytes {
        break
      }
    }
    self.init(bytes, offered: offered)
  }

  /// - Parameter bytes: missing bytes at the end are taken as zero.
  public init(_ bytes: [UInt8], offered: FeatureSet) {
    func field<Value: FixedWidthInteger>(_ offset: Int, _ type: Value.Type) -> Value {
      (0..<Value.bitWidth / 8).reversed().reduce(0) { value, index in
        value << 8 | Value(truncatingIfNeeded: offset + index < bytes.count ? bytes[offset + index] : 0)
      }
    }
    capacity = field(0, UInt64.self)
    if offered.contains(BlockFeature.sizeMax) { sizeMax = field(8, UInt32.self) }
    if offered.contains(BlockFeature.segMax) { segMax = field(12, UInt32.self) }
    if offered.contains(BlockFeature.geometry) {
      geometry = Geometry(cylinders: field(16, UInt16.self), heads: field(18, UInt8.self), sectors: field(19, UInt8.self))
    }
    if offered.contains(BlockFeature.blockSize) { blockSize = field(20, UInt32.self) }
    if offered.contains(BlockFeature.topology) {
      topology = Topology(
        physicalBlockExponent: field(24, UInt8.self), alignmentOffset: field(25, UInt8.self),
        minimumIO: field(26, UInt16.self), optimalIO: field(28, UInt32.self))
    }
    if offered.contains(BlockFeature.configWCE) { writeback = field(Self.writebackOffset, UInt8.self) }
    if offered.contains(BlockFeature.multiQueue) { queues = field(34, UInt16.self) }
    if offered.contains(BlockFeature.discard) {
      discard = Limits(
        maximumSectors: field(36, UInt32.self), maximumSegments: field(40, UInt32.self), alignment: field(44, UInt32.self))
    }
    if offered.contains(BlockFeature.writeZeroes) {
      writeZeroes = Limits(maximumSectors: field(48, UInt32.self), maximumSegments: field(52, UInt32.self))
      writeZeroesMayUnmap = field(56, UInt8.self)
    }
    if offered.contains(BlockFeature.secureErase) {
      secureErase = Limits(
        maximumSectors: field(60, UInt32.self), maximumSegments: field(64, UInt32.self), alignment: field(68, UInt32.self))
    }
    if offered.contains(BlockFeature.zoned) {
      zoned = Zoned(
        zoneSectors: field(72, UInt32.self), maximumOpen: field(76, UInt32.self), maximumActive: field(80, UInt32.self),
        maximumAppend: field(84, UInt32.self), granularity: field(88, UInt32.self), model: field(92, UInt8.self))
    }
  }

  /// The smallest unit of reads and writes, bytes, at least 512.
  public var logicalBlock: Int { max(512, Int(blockSize ?? 512)) }
}
