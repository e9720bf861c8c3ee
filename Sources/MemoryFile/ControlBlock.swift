/// The control block as named words: the only place that turns its offsets into addresses.
internal import Glibc
internal import VirtioCore
internal import VirtioRegisters

/// A view of the words that both sides share. It keeps the file mapped; every access is to a single word.
@safe
struct ControlBlock: Sendable {
  /// Values of `deviceState`.
  enum DeviceState {
    static let absent: UInt32 = 0
    static let serving: UInt32 = 1
  }

  /// Values of `responseStatus`.
  enum ResponseStatus {
    static let done: UInt32 = 0
    static let refused: UInt32 = 1
  }

  private let mapping: Mapping
  private let offset: Int
  private let maximumQueues: Int
  private let interface: RegisterInterface

  /// - Parameter mapping: the whole file, checked to be as large as the layout says.
  init(mapping: Mapping, layout: MemoryFileLayout) {
    self.mapping = mapping
    offset = Int(layout.controlOffset)
    maximumQueues = layout.maximumQueues
    interface = layout.interface
  }

  private func word(_ at: Int) -> SharedCell<UInt32> { unsafe SharedCell(mapping.base + offset + at) }
  private func long(_ at: Int) -> SharedCell<UInt64> { unsafe SharedCell(mapping.base + offset + at) }

  var deviceState: SharedCell<UInt32> { word(ControlOffset.deviceState) }
  var deviceProcess: SharedCell<UInt32> { word(ControlOffset.deviceProcess) }
  var deviceEpoch: SharedCell<UInt32> { word(ControlOffset.deviceEpoch) }
  var requestSequence: SharedCell<UInt32> { word(ControlOffset.requestSequence) }
  var requestOffset: SharedCell<UInt32> { word(ControlOffset.requestOffset) }
  var requestWidth: SharedCell<UInt32> { word(ControlOffset.requestWidth) }
  var requestWrite: SharedCell<UInt32> { word(ControlOffset.requestWrite) }
  var requestValue: SharedCell<UInt64> { long(ControlOffset.requestValue) }
  var responseSequence: SharedCell<UInt32> { word(ControlOffset.responseSequence) }
  var responseStatus: SharedCell<UInt32> { word(ControlOffset.responseStatus) }
  var responseValue: SharedCell<UInt64> { long(ControlOffset.responseValue) }
  var interruptStatus: SharedCell<UInt32> { word(ControlOffset.interruptStatus) }
  var configuration: Doorbell { Doorbell(word(ControlOffset.configurationDoorbell)) }

  /// - Parameter queue: 0 … maximumQueues − 1; anything else is a programming error.
  func kick(_ queue: Int) -> Doorbell {
    precondition((0..<maximumQueues).contains(queue))
    return Doorbell(word(ControlOffset.doorbells + queue * ControlOffset.doorbellStride))
  }

  func call(_ queue: Int) -> Doorbell {
    precondition((0..<maximumQueues).contains(queue))
    return Doorbell(word(ControlOffset.doorbells + queue * ControlOffset.doorbellStride + ControlOffset.callDoorbell))
  }

  /// Where a source's notifications go while they must not wake the driver: bit 0 of `heldBack` says that there was one.
  func silent(_ source: InterruptSource) -> (heldBack: SharedCell<UInt32>, doorbell: Doorbell, status: SharedCell<UInt32>) {
    let at: Int
    switch source {
    case .configuration: at = ControlOffset.configurationDoorbell
    case .queue(let queue):
      precondition((0..<maximumQueues).contains(queue))
      at = ControlOffset.doorbells + queue * ControlOffset.doorbellStride + ControlOffset.callDoorbell
    }
    return (
      word(at + ControlOffset.heldBack), Doorbell(word(at + ControlOffset.silentDoorbell)),
      word(at + ControlOffset.silentStatus)
    )
  }

  /// The state of the registers, from the active copy.
  func loadState() -> RegisterImage {
    let copy = Int(word(ControlOffset.activeState).loadAcquire() & 1)
    let start = offset + ControlOffset.state(copy, maximumQueues: maximumQueues, interface)
    let count = RegisterImage.size(queueCount: maximumQueues, interface: interface)
    let bytes = unsafe [UInt8](UnsafeRawBufferPointer(start: mapping.base + start, count: count))
    return RegisterImage(decoding: bytes, queueCount: maximumQueues, interface: interface)
  }

  /// Replaces the state of the registers. The inactive one of the two copies is written, and only then is the word switched: a
  /// device that dies at any moment leaves a complete state.
  func storeState(_ image: RegisterImage) {
    let active = word(ControlOffset.activeState)
    let copy = Int(active.loadRelaxed() & 1) ^ 1
    let start = offset + ControlOffset.state(copy, maximumQueues: maximumQueues, interface)
    let bytes = image.encoded(queueCount: maximumQueues, interface: interface)
    unsafe bytes.withUnsafeBytes { source in
      _ = unsafe memcpy(mapping.base + start, source.baseAddress!, source.count)
    }
    active.storeRelease(UInt32(copy))
  }
}
