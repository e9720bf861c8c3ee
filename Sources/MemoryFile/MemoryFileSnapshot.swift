/// A snapshot of a memory file, taken without becoming its device or its driver.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore
public import VirtioRegisters

/// A copy of the control block's words, and access to copies of guest memory. Device and driver may write while it is taken, so
/// its numbers need not be consistent.
public struct MemoryFileSnapshot: Sendable {
  public let path: String
  public let layout: MemoryFileLayout
  public let memory: GuestBytes
  /// A process holds the device's lock.
  public let isDeviceThere: Bool
  /// A process holds the driver's lock.
  public let isDriverThere: Bool
  /// 0 if no device has ever served the file.
  public let deviceProcess: UInt32
  public let deviceEpoch: UInt32
  /// A register access waits for its answer.
  public let isRequestPending: Bool
  public let interruptStatus: UInt32
  public let configurationCount: UInt32
  public let registers: RegisterImage
  /// Kicks and calls of each queue that the file has room for.
  public let doorbells: [(kicks: UInt32, calls: UInt32)]

  /// Opens a file for reading only and copies the control block.
  public init(path: String) throws(MemoryFileError) {
    let number = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC, 0)
    guard number >= 0 else { throw .system(path: path, action: "open", Errno(rawValue: errno)) }
    let descriptor = OwnedDescriptor(number)
    layout = try MemoryFile.readLayout(descriptor, path: path)
    self.path = path
    memory = GuestBytes(
      descriptor: descriptor, offset: layout.memoryOffset, base: layout.memoryBase, size: layout.memorySize)
    isDeviceThere = MemoryFile.isTaken(.device, descriptor)
    isDriverThere = MemoryFile.isTaken(.driver, descriptor)
    let (queues, interface) = (layout.maximumQueues, layout.interface)
    let end = ControlOffset.end(maximumQueues: queues, interface)
    var control = [UInt8](repeating: 0, count: end)
    let position = off_t(layout.controlOffset)
    let got = unsafe control.withUnsafeMutableBytes { unsafe pread(number, $0.baseAddress, $0.count, position) }
    guard got == end else { throw .notAMemoryFile(path: path, reason: "its control block cannot be read") }
    func word(_ offset: Int) -> UInt32 { control.load(at: offset, as: UInt32.self) }
    deviceProcess = word(ControlOffset.deviceProcess)
    deviceEpoch = word(ControlOffset.deviceEpoch)
    isRequestPending = word(ControlOffset.requestSequence) != word(ControlOffset.responseSequence)
    interruptStatus = word(ControlOffset.interruptStatus)
    configurationCount = word(ControlOffset.configurationDoorbell)
    let state = ControlOffset.state(Int(word(ControlOffset.activeState) & 1), maximumQueues: queues, interface)
    let size = RegisterImage.size(queueCount: queues, interface: interface)
    registers = RegisterImage(
      decoding: Array(control[state..<state + size]), queueCount: queues, interface: interface)
    doorbells = (0..<layout.maximumQueues).map { queue in
      let at = ControlOffset.doorbells + queue * ControlOffset.doorbellStride
      return (kicks: word(at), calls: word(at + ControlOffset.callDoorbell))
    }
  }
}
