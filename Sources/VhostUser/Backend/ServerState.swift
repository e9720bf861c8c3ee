/// The state that one server hands over to the next, unnoticed by a front-end and its guest: a value that is sent as JSON.
/// Addresses, sizes and positions are plain numbers; a descriptor is an index into the list that is sent with it. The members
/// are described in Docs/takeover.md, and their meaning never changes within one version.
public import VirtioCore

/// The descriptors of a state, which refers to them by index.
public struct DescriptorList: Sendable {
  public private(set) var descriptors: [OwnedDescriptor]

  public init(_ descriptors: [OwnedDescriptor] = []) { self.descriptors = descriptors }

  /// - Returns: its index.
  public mutating func add(_ descriptor: OwnedDescriptor) -> Int {
    descriptors.append(descriptor)
    return descriptors.count - 1
  }

  mutating func add(_ sink: CallSink) -> Int? { sink.descriptor.map { add($0) } }

  /// - Throws: there is no such index, or a required one is missing.
  public func descriptor(_ place: Int?) throws(TakeoverError) -> OwnedDescriptor {
    guard let place, descriptors.indices.contains(place) else { throw .noSuchDescriptor(place) }
    return descriptors[place]
  }

  func optional(_ place: Int?) throws(TakeoverError) -> OwnedDescriptor? {
    guard let place else { return nil }
    return try descriptor(place)
  }
}

/// Why a state cannot be adopted.
public enum TakeoverError: Error, Hashable, Sendable, CustomStringConvertible {
  case noSuchDescriptor(Int?)
  case notTheSame(String, theirs: String, ours: String)
  case configuration(offset: Int)
  case features(FeatureSet)
  case invalid(String)
  case refused(String)
  case queue(Int, QueueError)
  case notPrepared(QueueError)
  /// The server that is asked for its state is busy with something that may not end.
  case busy(String)
  /// The front-end or the server has moved on, or has disappeared, in the meantime.
  case overtaken

  public var description: String {
    switch self {
    case .noSuchDescriptor: "the state refers to a descriptor that was not sent with it"
    case .notTheSame(let what, let theirs, let ours):
      "the running server's \(what) is \(theirs), and here it would be \(ours): give the same options"
    case .configuration(let offset):
      "the configuration space differs from the running server's from byte \(offset) on: give the same image and options"
    case .features(let features):
      "the running server offers features \(features), which would be missing here: give the same options, or use a newer program"
    case .invalid(let what): "the state that the running server sent is invalid: \(what)"
    case .refused(let reason): reason
    case .queue(let queue, let error): "queue \(queue) cannot continue here: \(error)"
    case .notPrepared(let error): "the queues cannot be prepared: \(error)"
    case .busy(let what): "the running server is busy: \(what); try again later"
    case .overtaken: "the state has changed in the meantime; try again"
    }
  }
}

/// One disk and its socket.
public struct ServerState: Codable, Hashable, Sendable {
  /// The listening socket, an index; `nil`: there was only one connection, which was passed in.
  public var listener: Int?
  public var device: DeviceState
  /// `nil`: no front-end is connected.
  public var connection: ConnectionState?
}

/// The features of a device, and the driver's choice. The choice outlives a connection.
public struct DeviceState: Codable, Hashable, Sendable {
  /// The feature bits that are offered.
  public var features: UInt64
  public var queues: Int
  public var maximumQueueSize: UInt16
  /// The feature bits that the last driver chose; `nil`: none has chosen yet.
  public var negotiated: UInt64?
  /// The bytes of the configuration space, with the driver's changes.
  public var configuration: [UInt8]
}

/// One front-end's connection between two of its messages.
public struct ConnectionState: Codable, Hashable, Sendable {
  /// The connected socket.
  public var socket: Int
  /// Bytes of a message that has not been received completely, and its descriptors.
  public var unread: Unread?
  /// Messages that have not been sent completely.
  public var unsent: [Unsent]
  /// The socket for requests of the back-end.
  public var channel: Int?
  /// With a driver behind an IOMMU: messages on that socket that the front-end has not read completely yet; `nil`: none.
  public var channelUnsent: [Unsent]?
  public var protocolFeatures: UInt64
  /// Feature bits; `nil`: there was no SET_FEATURES yet.
  public var features: UInt64?
  /// The device status byte.
  public var status: UInt8
  public var memory: [Region]
  public var log: Log?
  /// VHOST_F_LOG_ALL.
  public var logsBuffers: Bool
  public var inflight: Inflight?
  /// The front-end has not been notified yet that the configuration space changed.
  public var owesConfigurationChange: Bool
  /// A driver's write to the configuration space from the time of an earlier server, to be repeated before a ring starts;
  /// `nil`: none.
  public var configurationToRestore: ConfigurationByte?
  /// With a driver behind an IOMMU: the front-end's translations; otherwise `nil`.
  public var translations: [Translation]?
  public var rings: [RingState]

  public struct ConfigurationByte: Codable, Hashable, Sendable {
    /// Its offset in the configuration space, bytes.
    public var offset: UInt8
    public var value: UInt8
  }

  public struct Unread: Codable, Hashable, Sendable {
    public var bytes: [UInt8]
    public var descriptors: [Int]
  }

  public struct Unsent: Codable, Hashable, Sendable {
    public var bytes: [UInt8]
    public var descriptors: [Int]
  }

  /// A memory region, as the front-end described it.
  public struct Region: Codable, Hashable, Sendable {
    public var guestAddress: UInt64
    /// Bytes.
    public var size: UInt64
    public var userAddress: UInt64
    /// Its offset in its file, bytes.
    public var offset: UInt64
    public var file: Int
  }

  /// As in IOTLB_MSG, but with the last address instead of the size.
  public struct Translation: Codable, Hashable, Sendable {
    public var first: UInt64
    public var last: UInt64
    public var userAddress: UInt64
    public var permission: UInt8
  }

  public struct Log: Codable, Hashable, Sendable {
    public var file: Int
    public var offset: UInt64
    public var size: UInt64
  }

  public struct Inflight: Codable, Hashable, Sendable {
    public var file: Int
    public var offset: UInt64
    public var size: UInt64
    public var queues: Int
    public var queueSize: UInt16
  }

  public struct RingState: Codable, Hashable, Sendable {
    /// Entries; `nil`: not set yet.
    public var size: UInt16?
    public var address: Address?
    /// The next available entry to pop.
    public var available: UInt16
    /// The next used entry to publish; `nil`: take it from the ring in memory.
    public var used: UInt16?
    public var isStarted: Bool
    public var isEnabled: Bool
    /// The new server serves it at once.
    public var runs: Bool
    public var hasFailed: Bool
    /// `nil` in a ring that is started: the driver does not kick.
    public var kick: Int?
    public var call: Int?
    public var failure: Int?

    /// As in SET_VRING_ADDR: addresses of the front-end's process.
    public struct Address: Codable, Hashable, Sendable {
      public var flags: UInt32
      public var descriptorTable: UInt64
      public var usedRing: UInt64
      public var availableRing: UInt64
      public var log: UInt64
    }
  }
}
