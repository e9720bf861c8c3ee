/// The registers as bytes, and restored by replay.
import Testing
import VirtioCore
import VirtioRegisters

@Suite struct RestoreTests {
  let made = Made()

  @Test("every stage of the initialization is restored", arguments: 0...4)
  func roundTrip(_ stage: Int) {
    var registers = made.registers()
    if stage >= 1 {
      registers.write(.status, 3)
      registers.write(.deviceFeaturesSelect, 1)
      registers.write(.driverFeaturesSelect, 7)
      registers.write(.queueSelect, 0xffff_fff0)
    }
    if stage >= 2 { registers.negotiate([.version1, .eventIndex]) }
    if stage >= 3 {
      registers.setUp(queue: 0)
      registers.setUp(queue: 2, size: 16)
      registers.configurationWritten(at: 32, [1])
    }
    if stage >= 4 { registers.write(.status, 15) }
    let decoded = RegisterImage(decoding: registers.image.encoded(queueCount: 8))
    #expect(decoded == registers.image)
    let (restored, effects, restoration) = MMIORegisters.restore(decoded, face: made.face())
    #expect(restoration == .complete)
    #expect(restored.image == registers.image)
    let expected: [[MMIORegisters.Effect]] = [
      [], [], [.featuresFixed([.version1, .eventIndex])], [.configWrite(offset: 32, bytes: [1])],
      [.live, .startQueue(0, .sample(0)), .startQueue(2, .sample(2, size: 16))],
    ]
    #expect(effects == expected.prefix(stage + 1).flatMap { $0 })
  }

  @Test("a stopped packed queue's position is part of the image; ready alone implies none")
  func positions() {
    var image = MMIORegisters.live(made).image
    image.queues[0].position = PackedPosition(slot: 0x1234, wrap: true)
    image.queues[1].position = PackedPosition(slot: 0, wrap: false)
    image.queues[1].ready = false
    let bytes = image.encoded(queueCount: 8)
    #expect(RegisterImage(decoding: bytes) == image)
    #expect(Array(bytes[0x25c..<0x260]) == [3, 0, 0x34, 0x92])
    #expect(Array(bytes[0x27c..<0x280]) == [2, 0, 0, 0])
    #expect(Array(bytes[0x29c..<0x2a0]) == [1, 0, 0, 0], "a queue that runs, or is split, has none")
  }

  @Test("an image with NEEDS_RESET is restored with it, and starts nothing")
  func needsReset() {
    var registers = MMIORegisters.live(made)
    _ = registers.needReset()
    let (restored, effects, restoration) = MMIORegisters.restore(registers.image, face: made.face())
    #expect(restoration == .complete)
    #expect(restored.read(.status) == 15 | 64)
    #expect(effects == [.featuresFixed([.version1]), .live])
  }

  @Test("a device without a negotiated feature sets NEEDS_RESET")
  func lesserDevice() {
    let image = MMIORegisters.live(made, features: [.version1, .eventIndex]).image
    for face in [made.face(features: [.version1]), made.face(queues: 2), made.face(size: 32)] {
      let (restored, effects, restoration) = MMIORegisters.restore(image, face: face)
      #expect(restoration == .refused)
      #expect(restored.status.contains(.needsReset))
      #expect(!effects.contains { if case .startQueue = $0 { true } else { false } })
      var again = restored
      #expect(again.write(.status, 0) == [.reset])
    }
  }

  @Test("a driver's stray feature bit is remembered")
  func strayFeatures() {
    var registers = made.registers()
    registers.write(.status, 3)
    registers.write(.driverFeaturesSelect, 9)
    registers.write(.driverFeatures, 4)
    let (restored, _, _) = MMIORegisters.restore(registers.image, face: made.face())
    var again = restored
    again.write(.driverFeaturesSelect, 1)
    again.write(.driverFeatures, 1)
    again.write(.status, 11)
    #expect(again.read(.status) == 3)
  }

  @Test("forged bytes do no more than a driver can", arguments: 0..<200 as Range<UInt64>)
  func forged(_ seed: UInt64) {
    var generator = SplitMix(state: seed)
    var bytes = (0..<RegisterImage.size(queueCount: 5)).map { _ in generator.byte(sparse: seed % 2 == 0) }
    if seed % 3 == 0 { bytes.replaceSubrange(0..<4, with: [0x0f, 0, 0, 0]) }
    if seed % 4 == 0 { bytes = Array(bytes.prefix(Int(seed) * 3)) }
    let (registers, effects, restoration) = MMIORegisters.restore(RegisterImage(decoding: bytes), face: made.face())
    #expect(registers.features.isSubset(of: Made.features) || !registers.status.contains(.featuresOK))
    for case .startQueue(let queue, let configuration) in effects {
      #expect(queue < 3 && configuration.size <= 256 && configuration.size.nonzeroBitCount == 1)
      #expect(registers.status.contains(.driverOK) && restoration == .complete)
    }
    #expect(RegisterImage(decoding: registers.image.encoded(queueCount: 3)) == registers.image)
  }

  @Test("an image shorter than its fixed part is that of a fresh device", arguments: [0, 1, 0x40, 0x23f])
  func short(_ count: Int) {
    #expect(RegisterImage(decoding: [UInt8](repeating: 0xff, count: count)) == RegisterImage())
  }

  @Test("remembered configuration writes are the last ones, in ranges without gaps")
  func configurationWrites() {
    var registers = made.registers()
    registers.configurationWritten(at: 4, [1, 2])
    registers.configurationWritten(at: 6, [3])
    registers.configurationWritten(at: 5, [9])
    registers.configurationWritten(at: 255, [7])
    for (offset, bytes) in [(256, [1]), (250, [UInt8](repeating: 1, count: 7)), (-1, [1]), (Int.max, [1])] {
      registers.configurationWritten(at: offset, bytes)
    }
    let runs = registers.image.configurationWrites.runs
    #expect(runs.map(\.offset) == [4, 255])
    #expect(runs.map(\.bytes) == [[1, 9, 3], [7]])
  }
}

/// A small random number generator, so that a failure can be repeated with its seed.
struct SplitMix {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var word = state
    word = (word ^ word >> 30) &* 0xbf58_476d_1ce4_e5b9
    word = (word ^ word >> 27) &* 0x94d0_49bb_1331_11eb
    return word ^ word >> 31
  }

  /// Mostly zero when sparse, so that plausible numbers occur.
  mutating func byte(sparse: Bool) -> UInt8 {
    let word = next()
    return sparse && word % 5 != 0 ? 0 : UInt8(truncatingIfNeeded: word >> 8)
  }
}
