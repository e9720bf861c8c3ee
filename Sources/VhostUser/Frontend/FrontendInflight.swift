/// The front-end keeps the records of what is in flight, for the back-end that comes after this one.
public import VirtioCore

/// Memory for the records of a back-end, as a front-end holds it: a file that it looks at no further.
public struct FrontendInflight: Sendable {
  public var description: InflightDescription
  public var descriptor: OwnedDescriptor

  public init(_ description: InflightDescription, descriptor: OwnedDescriptor) {
    self.description = description
    self.descriptor = descriptor
  }
}

extension Frontend {
  /// Asks the back-end for memory for its records (needs INFLIGHT_SHMFD). To be handed back with `setInflight` before a ring is
  /// started, and again to every back-end that goes on with these rings.
  ///
  /// - Parameters:
  ///   - queues: rings that will be started, from ring 0 on.
  ///   - size: entries of the largest of them.
  /// - Returns: `nil` when the back-end has none to give.
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
