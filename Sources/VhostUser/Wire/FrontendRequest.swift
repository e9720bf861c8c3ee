/// Requests of front-ends and of back-ends: the codes, and the rules that go with each.

/// Request codes of the front-end ("Front-end message types").
public enum FrontendRequest: UInt32, Sendable, CaseIterable {
  case getFeatures = 1
  case setFeatures
  case setOwner
  case resetOwner
  case setMemoryTable
  case setLogBase
  case setLogDescriptor
  case setVringSize
  case setVringAddress
  case setVringBase
  case getVringBase
  case setVringKick
  case setVringCall
  case setVringError
  case getProtocolFeatures
  case setProtocolFeatures
  case getQueueCount
  case setVringEnable
  case sendRARP
  case setMTU
  case setBackendRequestDescriptor
  case iotlb
  case setVringEndian
  case getConfiguration
  case setConfiguration
  case createCryptoSession
  case closeCryptoSession
  case postcopyAdvise
  case postcopyListen
  case postcopyEnd
  case getInflight
  case setInflight
  case setGPUSocket
  case resetDevice
  case vringKick
  case getMaximumMemorySlots
  case addMemoryRegion
  case removeMemoryRegion
  case setStatus
  case getStatus
  case getSharedObject
  case setDeviceState
  case checkDeviceState
  case getSharedMemoryConfiguration
  case getVringBaseSkippingDrain

  /// The size of a request's payload. Some front-ends always send a structure that is larger than the request needs; the
  /// rest is ignored.
  public enum PayloadRule: Hashable, Sendable {
    case atLeast(Int)
    /// A count word, padding, and regions of 32 bytes; there may be room for more of them.
    case memoryTable
    /// A header of twelve bytes and at least as many bytes as it announces.
    case configuration
    /// Not a request that is supported here.
    case any
  }

  public var payloadRule: PayloadRule {
    switch self {
    case .getFeatures, .setOwner, .resetOwner, .getProtocolFeatures, .getQueueCount, .setBackendRequestDescriptor,
      .resetDevice, .getMaximumMemorySlots, .getStatus:
      .atLeast(0)
    case .setFeatures, .setVringKick, .setVringCall, .setVringError, .setProtocolFeatures, .setStatus: .atLeast(8)
    case .setVringSize, .setVringBase, .getVringBase, .setVringEnable: .atLeast(VringState.size)
    case .setLogBase: .atLeast(SharedArea.size)
    case .setVringAddress: .atLeast(VringAddress.size)
    case .addMemoryRegion, .removeMemoryRegion: .atLeast(8 + MemoryRegion.size)
    case .getInflight, .setInflight: .atLeast(InflightDescription.size)
    case .iotlb: .atLeast(TranslationMessage.leastSize)
    case .setMemoryTable: .memoryTable
    case .getConfiguration, .setConfiguration: .configuration
    default: .any
    }
  }

  /// Always answered, whatever need_reply says; such a request never gets an acknowledgement in addition.
  public var hasOwnReply: Bool {
    switch self {
    case .getFeatures, .setLogBase, .getVringBase, .getProtocolFeatures, .getQueueCount, .iotlb, .getConfiguration,
      .createCryptoSession, .postcopyAdvise, .postcopyListen, .postcopyEnd, .getInflight, .getMaximumMemorySlots,
      .getStatus, .getSharedObject, .setDeviceState, .checkDeviceState, .getSharedMemoryConfiguration,
      .getVringBaseSkippingDrain:
      true
    default: false
    }
  }

  /// The name in the specification, for the log.
  public var name: String {
    switch self {
    case .getFeatures: "GET_FEATURES"
    case .setFeatures: "SET_FEATURES"
    case .setOwner: "SET_OWNER"
    case .resetOwner: "RESET_OWNER"
    case .setMemoryTable: "SET_MEM_TABLE"
    case .setLogBase: "SET_LOG_BASE"
    case .setLogDescriptor: "SET_LOG_FD"
    case .setVringSize: "SET_VRING_NUM"
    case .setVringAddress: "SET_VRING_ADDR"
    case .setVringBase: "SET_VRING_BASE"
    case .getVringBase: "GET_VRING_BASE"
    case .setVringKick: "SET_VRING_KICK"
    case .setVringCall: "SET_VRING_CALL"
    case .setVringError: "SET_VRING_ERR"
    case .getProtocolFeatures: "GET_PROTOCOL_FEATURES"
    case .setProtocolFeatures: "SET_PROTOCOL_FEATURES"
    case .getQueueCount: "GET_QUEUE_NUM"
    case .setVringEnable: "SET_VRING_ENABLE"
    case .sendRARP: "SEND_RARP"
    case .setMTU: "NET_SET_MTU"
    case .setBackendRequestDescriptor: "SET_BACKEND_REQ_FD"
    case .iotlb: "IOTLB_MSG"
    case .setVringEndian: "SET_VRING_ENDIAN"
    case .getConfiguration: "GET_CONFIG"
    case .setConfiguration: "SET_CONFIG"
    case .createCryptoSession: "CREATE_CRYPTO_SESSION"
    case .closeCryptoSession: "CLOSE_CRYPTO_SESSION"
    case .postcopyAdvise: "POSTCOPY_ADVISE"
    case .postcopyListen: "POSTCOPY_LISTEN"
    case .postcopyEnd: "POSTCOPY_END"
    case .getInflight: "GET_INFLIGHT_FD"
    case .setInflight: "SET_INFLIGHT_FD"
    case .setGPUSocket: "GPU_SET_SOCKET"
    case .resetDevice: "RESET_DEVICE"
    case .vringKick: "VRING_KICK"
    case .getMaximumMemorySlots: "GET_MAX_MEM_SLOTS"
    case .addMemoryRegion: "ADD_MEM_REG"
    case .removeMemoryRegion: "REM_MEM_REG"
    case .setStatus: "SET_STATUS"
    case .getStatus: "GET_STATUS"
    case .getSharedObject: "GET_SHARED_OBJECT"
    case .setDeviceState: "SET_DEVICE_STATE_FD"
    case .checkDeviceState: "CHECK_DEVICE_STATE"
    case .getSharedMemoryConfiguration: "GET_SHMEM_CONFIG"
    case .getVringBaseSkippingDrain: "GET_VRING_BASE_SKIP_DRAIN"
    }
  }

  /// A name for any request code.
  public static func name(of request: UInt32) -> String {
    FrontendRequest(rawValue: request)?.name ?? "request \(request)"
  }
}

/// Request codes of the back-end, on the channel of SET_BACKEND_REQ_FD ("Back-end message types").
public enum BackendRequest: UInt32, Sendable {
  /// IOTLB_MSG: a translation is missing.
  case translation = 1
  case configurationChanged = 2
}
