/// SUSPEND (virtio 3.4): queues stop at their positions, nothing changes meanwhile, and missed changes are notified afterwards.
import Synchronization
import Testing
import VirtioCore
import VirtioRegisters

@Suite struct SuspendTests {
  let made = Made()
  private static let features = Made.features.union(.suspend)

  /// A driver with two of three queues, after DRIVER_OK.
  private func live(_ accepted: FeatureSet = [.version1, .suspend]) -> MMIORegisters {
    var registers = made.registers(features: Self.features)
    registers.negotiate(accepted)
    registers.setUp(queue: 0)
    registers.setUp(queue: 2)
    registers.write(.status, 15)
    return registers
  }

  @Test("suspend.8, suspend.9: queues stop, and continue at their positions")
  func thereAndBack() {
    var registers = live()
    for _ in 0..<3 {
      #expect(registers.write(.status, 31) == [.pauseQueue(0), .pauseQueue(2)])
      #expect(registers.read(.status) == 27)
      #expect(!registers.isLive && !registers.isInUse)
      #expect(registers.write(.status, 27).isEmpty, "it is already suspended")
      #expect(registers.write(.queueNotify, 0).isEmpty)
      #expect(registers.write(.status, 15) == [.startQueue(0, .sample(0)), .startQueue(2, .sample(2))])
      #expect(registers.read(.status) == 15)
    }
    #expect(registers.write(.status, 31).count == 2)
    #expect(registers.write(.status, 31).count == 2, "DRIVER_OK resumes it, whatever is written with it")
  }

  @Test("suspend.1: without the feature or before DRIVER_OK nothing happens")
  func early() {
    var registers = live([.version1])
    #expect(registers.write(.status, 31).isEmpty)
    #expect(registers.read(.status) == 15)
    registers.negotiate([.version1, .suspend])
    #expect(registers.write(.status, 27).isEmpty)
    #expect(registers.read(.status) == 11)
    #expect(registers.write(.status, 31) == [.live], "the bit means nothing")
    #expect(registers.read(.status) == 15)
  }

  @Test("suspend.2, suspend.5 to suspend.7: the configuration is frozen, and changes are notified on resume")
  func configuration() {
    var registers = live()
    registers.write(.status, 31)
    made.generation.withLock { $0 = 8 }
    #expect(registers.read(.configurationGeneration) == 7)
    #expect(registers.read(offset: 0x100, width: 4) == 0x1312_1110)
    #expect(registers.read(offset: 0x100 + 254, width: 8) == 0)
    #expect(registers.write(offset: 0x104, width: 1, value: 5).isEmpty)
    let early = registers.configurationChanged()
    #expect(!early)
    #expect(registers.write(.status, 15).last == .configurationChanged)
    #expect(registers.read(.configurationGeneration) == 8)
    let late = registers.configurationChanged()
    #expect(late, "a running driver is notified at once")
    registers.write(.status, 31)
    #expect(registers.write(.status, 15).last == .startQueue(2, .sample(2)), "nothing is notified twice")
  }

  @Test("a device that needs a reset reports it when it is resumed, and starts nothing")
  func needsReset() {
    var registers = live()
    registers.write(.status, 31)
    let isTold = registers.needReset()
    #expect(!isTold)
    #expect(registers.read(.status) == 0x40 | 27)
    #expect(registers.write(.status, 15) == [.configurationChanged])
    #expect(registers.write(.status, 31).isEmpty, "a device that needs a reset is not suspended")
  }

  @Test("queues of a suspended device are disabled and reset like others")
  func queues() {
    var registers = live([.version1, .suspend, .ringReset])
    registers.write(.status, 31)
    registers.write(.queueSelect, 0)
    #expect(registers.write(.queueReady, 0) == [.stopQueue(0)])
    registers.write(.queueSelect, 2)
    #expect(registers.write(.queueReset, 1) == [.resetQueue(2)])
    registers.queueResetFinished(2)
    #expect(registers.setUp(queue: 1).isEmpty)
    #expect(registers.write(.status, 15) == [.startQueue(1, .sample(1))])
  }

  @Test("a reset ends the suspension")
  func reset() {
    var registers = live()
    registers.write(.status, 31)
    made.generation.withLock { $0 = 9 }
    #expect(registers.write(.status, 0) == [.reset])
    #expect(registers.read(.configurationGeneration) == 9)
  }

  @Test(
    "another process restores a suspended device with NEEDS_RESET, whatever the driver was about to write",
    arguments: [false, true])
  func restored(_ hasFailed: Bool) {
    var registers = live()
    registers.write(.status, 31)
    if hasFailed { _ = registers.needReset() }
    let (again, effects, _) = MMIORegisters.restore(registers.image, face: made.face(features: Self.features))
    #expect(again.read(.status) == 0x40 | 15)
    #expect(effects == [.featuresFixed([.version1, .suspend]), .live])
    for status in [31, 27, 15] as [UInt32] {
      var restored = again
      #expect(restored.write(.status, status).isEmpty)
      #expect(restored.read(.status) == 0x40 | 15)
      #expect(restored.write(.queueNotify, 0).isEmpty)
      #expect(restored.write(.status, 0) == [.reset])
    }
    // The same for a device without the feature.
    let (other, _, refused) = MMIORegisters.restore(registers.image, face: made.face())
    #expect(refused == .refused && other.status.contains(.needsReset))
  }

  @Test("a contradictory or impossible record does not bypass the rules", arguments: [31, 27, 16, 20])
  func forged(_ status: UInt8) {
    for features in [[.version1, .suspend], [.version1]] as [FeatureSet] {
      var image = live(features).image
      image.status = DeviceStatus(rawValue: status)
      let (restored, effects, restoration) = MMIORegisters.restore(image, face: made.face(features: Self.features))
      #expect(restoration != .complete)
      #expect(restored.status.contains(.needsReset) && !restored.status.contains(.suspend))
      #expect(!effects.contains { if case .startQueue = $0 { true } else { false } })
    }
  }
}
