/// What has to be stored in an image's file, and in which order.

/// Bytes of metadata at their place.
public struct ImageStore: Hashable, Sendable {
  public let part: Qcow2Fault.Part
  /// In the file, bytes.
  public let offset: UInt64
  public let bytes: [UInt8]

  init(_ part: Qcow2Fault.Part, _ offset: UInt64, _ bytes: [UInt8]) {
    self.part = part
    self.offset = offset
    self.bytes = bytes
  }

  /// All of an L2 table.
  public static func table(at place: UInt64, _ bytes: [UInt8]) -> ImageStore { ImageStore(.level2, place, bytes) }
}

/// Stores in groups. What is in a group may reach the medium in any order, or in part; what is in the next one only when all of the one
/// before is stable.
public struct StorePlan: Hashable, Sendable {
  /// Bytes that the file has to have before the first store; `nil`: as many as it has.
  public var length: UInt64?
  /// After each of them everything has to be made stable.
  public var groups: [[ImageStore]]

  public init(length: UInt64? = nil, groups: [[ImageStore]] = []) {
    self.length = length
    self.groups = groups
  }

  /// Nothing is to be done.
  public var isEmpty: Bool { length == nil && groups.allSatisfy(\.isEmpty) }
}
