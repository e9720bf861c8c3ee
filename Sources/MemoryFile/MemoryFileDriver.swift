/// The driver's end of a memory file: registers through the mailbox, doorbells, and the guest's memory.
internal import CLinux
internal import Glibc
internal import SystemPackage
public import VirtioCore

/// A driver on a memory file. Except for `kick`, `waitForCall` and the memory it is not thread-safe: one thread at a time may
/// access registers.
///
///     let driver = try MemoryFileDriver.open(path: "guest.mem")      // waits for file and device, 5 s by default
///     guard try driver.read(0x000) == 0x74726976 else { … }          // MagicValue
///     try driver.write(0x070, 0)                                     // Status: reset; done when this returns
///     …                                                              // bring-up as over any virtio-mmio
///     var seen = driver.callCount(queue: 0)                          // before looking at the used ring
///     driver.kick(queue: 0)
///     seen = driver.waitForCall(queue: 0, whileEquals: seen, milliseconds: 1000)
///     driver.acknowledgeInterrupt(1)
public final class MemoryFileDriver: Sendable {
  public let file: MemoryFile
  /// How long a register access waits for a device to appear, milliseconds. A device that is there may take `Patience.limit`.
  public let timeout: Int

  /// Opens a file and becomes its driver.
  ///
  /// - Parameters:
  ///   - timeout: milliseconds to wait for the complete file, and at each register access for the device.
  public static func open(path: String, timeout: Int = 5000) throws(MemoryFileError) -> MemoryFileDriver {
    let deadline = Deadline(milliseconds: timeout)
    while true {
      do {
        return try MemoryFileDriver(MemoryFile.open(path: path), timeout: timeout)
      } catch {
        // The device may be creating the file at this moment.
        guard error.mayPass, !deadline.isOver else { throw error }
        usleep(2000)
      }
    }
  }

  /// Becomes the driver of an open file. A device need not be there yet.
  public init(_ file: MemoryFile, timeout: Int = 5000) throws(MemoryFileError) {
    guard file.take(.driver) else { throw .driverAlreadyThere(path: file.path) }
    self.file = file
    self.timeout = timeout
  }

  /// Milliseconds that a device may take for an answer: a register write can wait for a whole ring to drain.
  private static let patience = Int(Patience.limit / .milliseconds(1))

  deinit { file.release(.driver) }

  // MARK: Registers

  /// Reads a register. - Parameter width: bytes, 1, 2, 4 or 8.
  public func read(_ offset: UInt32, width: Int = 4) throws(MemoryFileError) -> UInt64 {
    try access(offset, width: width, value: 0, isWrite: false)
  }

  /// Writes a register; its effects are complete when this returns.
  public func write(_ offset: UInt32, width: Int = 4, _ value: UInt64) throws(MemoryFileError) {
    _ = try access(offset, width: width, value: value, isWrite: true)
  }

  private func access(_ offset: UInt32, width: Int, value: UInt64, isWrite: Bool) throws(MemoryFileError) -> UInt64 {
    let control = file.control
    let deadline = Deadline(milliseconds: timeout)
    // A request that timed out, here or in an earlier driver, still belongs to the device.
    try awaitResponse(to: control.requestSequence.loadAcquire(), deadline)
    control.requestOffset.storeRelaxed(offset)
    control.requestWidth.storeRelaxed(UInt32(truncatingIfNeeded: width))
    control.requestWrite.storeRelaxed(isWrite ? 1 : 0)
    control.requestValue.storeRelaxed(value)
    let sequence = control.requestSequence.loadRelaxed() &+ 1
    // Release: a device that sees the new number sees the words above.
    control.requestSequence.storeRelease(sequence)
    _ = unsafe clinux_futex_wake(control.requestSequence.address, Int32.max)
    try awaitResponse(to: sequence, deadline)
    guard control.responseStatus.loadRelaxed() == ControlBlock.ResponseStatus.done else {
      throw .accessRefused(path: file.path, offset: offset, width: width)
    }
    return control.responseValue.loadRelaxed()
  }

  /// Sleeps in slices, because a device that dies does not wake its driver.
  private func awaitResponse(to sequence: UInt32, _ deadline: Deadline) throws(MemoryFileError) {
    let response = file.control.responseSequence
    let patience = Deadline(milliseconds: Self.patience)
    while true {
      let seen = response.loadAcquire()
      if seen == sequence { return }
      if deadline.isOver {
        guard file.isTaken(.device) else { throw .noDevice(path: file.path) }
        guard !patience.isOver else {
          throw .noAnswer(
            path: file.path, process: file.control.deviceProcess.loadRelaxed(), milliseconds: Self.patience)
        }
      }
      Doorbell(response).wait(whileEquals: seen, nanoseconds: patience.slice)
    }
  }

  /// Whether a device has the file at this moment.
  public var isDeviceThere: Bool { file.isTaken(.device) }
  /// The process of the device that took the file last; 0 before the first.
  public var deviceProcess: UInt32 { file.control.deviceProcess.loadRelaxed() }
  /// Changes whenever a device starts on the file.
  public var deviceEpoch: UInt32 { file.control.deviceEpoch.loadAcquire() }

  // MARK: Notifications

  /// Available buffer notification, without a register access.
  public func kick(queue: Int) { file.control.kick(queue).ring() }

  /// The number of used buffer notifications of a queue. Read it before looking at the used ring, and wait for it to change if
  /// nothing was found there.
  public func callCount(queue: Int) -> UInt32 { file.control.call(queue).counter.loadAcquire() }

  /// Waits until the queue's count is no longer `seen` or the time is over.
  /// - Returns: the count now.
  @discardableResult
  public func waitForCall(queue: Int, whileEquals seen: UInt32, milliseconds: Int) -> UInt32 {
    Self.wait(file.control.call(queue), whileEquals: seen, milliseconds: milliseconds)
  }

  /// The number of configuration change notifications.
  public var configurationCount: UInt32 { file.control.configuration.counter.loadAcquire() }

  /// As `waitForCall`, for configuration changes.
  @discardableResult
  public func waitForConfigurationChange(whileEquals seen: UInt32, milliseconds: Int) -> UInt32 {
    Self.wait(file.control.configuration, whileEquals: seen, milliseconds: milliseconds)
  }

  /// The pending interrupt bits, without a register access.
  public var interruptStatus: UInt32 { file.control.interruptStatus.loadAcquire() }
  /// Clears pending bits, without a register access; the same as writing InterruptACK.
  public func acknowledgeInterrupt(_ bits: UInt32) { file.control.interruptStatus.subtract(bits) }

  private static func wait(_ doorbell: Doorbell, whileEquals seen: UInt32, milliseconds: Int) -> UInt32 {
    let deadline = Deadline(milliseconds: milliseconds)
    while true {
      let now = doorbell.counter.loadAcquire()
      guard now == seen, !deadline.isOver else { return now }
      doorbell.wait(whileEquals: seen, nanoseconds: deadline.nanosecondsLeft)
    }
  }

  // MARK: Memory

  /// Guest-physical address of the first byte of guest memory.
  public var memoryBase: GuestAddress { file.layout.memoryBase }
  /// Bytes of guest memory.
  public var memorySize: Int { Int(file.layout.memorySize) }
  /// The first byte of guest memory in this process, valid for `memorySize` bytes as long as the driver lives.
  @unsafe public var memory: UnsafeMutableRawPointer { unsafe file.mapping.base + Int(file.layout.memoryOffset) }
}

extension MemoryFileError {
  /// Whether the error can be temporary, because the file is being created.
  fileprivate var mayPass: Bool {
    switch self {
    case .system(_, "open", .noSuchFileOrDirectory), .notAMemoryFile: true
    default: false
    }
  }
}

/// A point in time at which to give up.
struct Deadline {
  private let end: ContinuousClock.Instant

  init(milliseconds: Int) { end = ContinuousClock.now + .milliseconds(milliseconds) }

  var isOver: Bool { ContinuousClock.now >= end }

  /// At least 0, at most a day.
  var nanosecondsLeft: Int64 {
    let (seconds, attoseconds) = (end - ContinuousClock.now).components
    guard seconds >= 0, attoseconds >= 0 else { return 0 }
    return min(seconds, 86400) * 1_000_000_000 + attoseconds / 1_000_000_000
  }

  /// How long to sleep before checking whether the other side is still alive.
  var slice: Int64 { min(nanosecondsLeft, 20_000_000) }
}
