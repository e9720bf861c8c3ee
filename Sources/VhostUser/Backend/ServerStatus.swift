/// The status of a server for its operator: who is connected, and which rings run.
public import Sockets
public import VirtioCore

/// The current state of a connected front-end.
public struct FrontendStatus: Hashable, Sendable {
  public struct Ring: Hashable, Sendable {
    public var queue: Int
    /// Entries.
    public var size: Int
    /// The device serves it.
    public var isRunning: Bool
    /// The ring broke while the device served it.
    public var hasFailed: Bool
  }

  /// `nil` if the kernel does not tell.
  public var peer: PeerCredentials?
  /// The driver's choice; `nil` before it has chosen.
  public var features: FeatureSet?
  public var protocolFeatures: ProtocolFeatures
  /// Guest memory that is mapped, bytes.
  public var memory: UInt64
  /// Rings that have a size.
  public var rings: [Ring]
}

extension BackendServer {
  /// A front-end is connected.
  public var hasFrontend: Bool { connection.map { !$0.isOver } ?? false }

  /// `nil`: no front-end is connected.
  public var frontend: FrontendStatus? {
    guard let connection, !connection.isOver else { return nil }
    let session = connection.session
    let rings = session.rings.enumerated().compactMap { queue, ring in
      ring.size.map {
        FrontendStatus.Ring(queue: queue, size: Int($0), isRunning: ring.isRunning, hasFailed: ring.hasFailed)
      }
    }
    return FrontendStatus(
      peer: PeerCredentials(of: connection.socket.rawValue), features: session.features,
      protocolFeatures: session.protocolFeatures, memory: session.table.entries.reduce(0) { $0 + $1.region.size },
      rings: rings)
  }
}
