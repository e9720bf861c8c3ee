/// What a driver's queue is made of: a ring in memory, two lines, and room for indirect tables.
public import VirtioCore

/// The parts of one queue. Copies refer to the same parts.
public struct QueueSetup: Sendable {
  public let index: Int
  public let ring: RingMemory
  public let lines: QueueLines
  public let memory: DriverMemory
  /// Where kicks with data go (NOTIFICATION_DATA); `nil`: kicks go over the line.
  public let notify: NotifyRegister?
  public let eventIndex: Bool
  /// The device uses chains in the order in which they became available (IN_ORDER).
  public let inOrder: Bool
  /// Empty if INDIRECT_DESC is not negotiated.
  public let indirectTables: [GuestBuffer]
  /// Descriptors in each.
  public let indirectEntries: Int

  public init(
    index: Int, ring: RingMemory, lines: QueueLines, memory: DriverMemory, features: FeatureSet, indirectTables: Int = 0,
    indirectEntries: Int = 0, notify: NotifyRegister? = nil
  ) throws(DriverError) {
    self.index = index
    self.ring = ring
    self.lines = lines
    self.memory = memory
    eventIndex = features.contains(.eventIndex)
    inOrder = features.contains(.inOrder)
    self.indirectEntries = indirectEntries
    self.notify = notify
    var tables: [GuestBuffer] = []
    if features.contains(.indirectDescriptors), indirectEntries > 0 {
      for _ in 0..<min(indirectTables, Int(UInt16.max)) {
        tables.append(try memory.allocate(16 * indirectEntries, alignment: 16))
      }
    }
    self.indirectTables = tables
  }
}
