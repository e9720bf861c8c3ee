/// The front-end keeps the in-flight records, for the next back-end.
public import VirtioCore

/// Memory for the records of a back-end, as a front-end keeps it: a file whose contents it does not interpret.
public struct FrontendInflight: Sendable {
  public var description: InflightDescription
  public var descriptor: OwnedDescriptor

  public init(_ description: InflightDescription, descriptor: OwnedDescriptor) {
    self.description = description
    self.descriptor = descriptor
  }
}

extension Frontend {
  /// Requests memory for in-flight records from the back-end (needs INFLIGHT_SHMFD). The memory is handed back with
  /// `setInflight` before a ring is started, and again to every back-end that continues these rings.
  ///
  /// - Parameters:
  ///   - queues: rings that will be started, from ring 0 on.
  ///   - size: entries of the largest of them.
  /// - Returns: `nil` if the back-end has none.
  public func getInflight(queues: UInt16, size: UInt16) throws(FrontendError) -> FrontendInflight? {
    let asked = InflightDescription(queueCount: queues, queueSize: size)
    let reply = try askForDescriptor(.getInflight, asked.bytes)
    guard let description = InflightDescription(decoding: reply.payload) else {
      preconditionFailure("the length of the reply was checked")
    }
    guard description.byteCount > 0 else { return nil }
    guard let descriptor = reply.descriptor else { throw .missingDescriptor(.getInflight) }
    return FrontendInflight(description, descriptor: descriptor)
  }

  /// Hands such memory to the back-end (needs INFLIGHT_SHMFD). No ring may run.
  public func setInflight(_ inflight: FrontendInflight) throws(FrontendError) {
    try tell(.setInflight, inflight.description.bytes, [inflight.descriptor])
  }
}
