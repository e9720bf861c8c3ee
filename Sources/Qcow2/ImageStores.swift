/// Stores to an image's file, and their order.

/// A store of metadata at an offset.
public struct ImageStore: Hashable, Sendable {
  public let part: Qcow2Fault.Part
  /// Its offset in the file, bytes.
  public let offset: UInt64
  public let bytes: [UInt8]

  init(_ part: Qcow2Fault.Part, _ offset: UInt64, _ bytes: [UInt8]) {
    self.part = part
    self.offset = offset
    self.bytes = bytes
  }

  /// A whole L2 table.
  public static func table(at place: UInt64, _ bytes: [UInt8]) -> ImageStore { ImageStore(.level2, place, bytes) }
}

/// Stores in groups. Those of one group may reach the medium in any order, or in part; the next group follows only when the
/// previous one is stable.
public struct StorePlan: Hashable, Sendable {
  /// The length that the file has to have before the first store, bytes; `nil`: any.
  public var length: UInt64?
  /// The stores of a group have to be stable before the next group.
  public var groups: [[ImageStore]]

  public init(length: UInt64? = nil, groups: [[ImageStore]] = []) {
    self.length = length
    self.groups = groups
  }

  /// There is nothing to do.
  public var isEmpty: Bool { length == nil && groups.allSatisfy(\.isEmpty) }
}
