/// Rules for every register interface: the same driver gets the same result from each, a record continues where the registers
/// were, and nothing that a driver does traps.
import Synchronization
import Testing
import VirtioCore
import VirtioRegisters

/// What a driver does, independent of the registers' names.
private enum Step {
  case status(UInt8)
  case features(word: UInt32, UInt32)
  case select(UInt32)
  case size(UInt32)
  case address(Int, high: Bool, UInt32)
  case ready
  case queueReset
  case page(UInt32)
  case notify(UInt32)
  case configuration(Int, UInt8)
  case acknowledge

  static func random(_ generator: inout SplitMix, isLegacy: Bool) -> Step {
    let value = UInt32(truncatingIfNeeded: generator.next() >> 16)
    switch generator.next() % 16 {
    case 0...2: return .status([0, 1, 3, 3, 7, 11, 11, 15, 15, 64, 128][Int(value % 11)])
    case 3:
      guard !isLegacy else { return .features(word: 0, [0, 1 << 29, 1 << 28, 1 << 5][Int(value % 4)]) }
      let word = value % 3
      return .features(word: word, word == 1 ? [1, 1, 1, 0, 0x101, 0x41][Int(value >> 8 % 6) % 6] : value & 0x2000_0000)
    case 4...6: return .select(value % 4)
    case 7: return isLegacy ? .page(value % 3) : .size([1, 2, 64, 100, 256, 512, 0][Int(value % 7)])
    case 8, 9: return isLegacy ? .page(value % 4096) : .address(Int(value % 3), high: value & 8 != 0, value)
    case 10, 11: return isLegacy ? .page(value) : .ready
    case 12: return isLegacy ? .notify(value % 5) : .queueReset
    case 13, 14: return .notify(value % 5)
    default: return value % 2 == 0 ? .configuration(Int(value % 300), UInt8(truncatingIfNeeded: value)) : .acknowledge
    }
  }
}

/// How a driver takes a step through one interface.
private protocol Stepper {
  var model: RegisterModel { get set }
  mutating func perform(_ step: Step) -> [RegisterEffect]
}

extension Stepper {
  @discardableResult mutating func put(_ offset: UInt32, _ width: Int, _ value: UInt64) -> [RegisterEffect] {
    model.write(offset: offset, width: width, value: value)
  }
}

private struct MMIOStepper: Stepper {
  var model: RegisterModel

  mutating func perform(_ step: Step) -> [RegisterEffect] {
    switch step {
    case .status(let value): return put(0x70, 4, UInt64(value))
    case .features(let word, let bits):
      put(0x24, 4, UInt64(word))
      return put(0x20, 4, UInt64(bits))
    case .select(let queue): return put(0x30, 4, UInt64(queue))
    case .size(let size): return put(0x38, 4, UInt64(size))
    case .address(let part, let high, let value): return put([0x80, 0x90, 0xa0][part] + (high ? 4 : 0), 4, UInt64(value))
    case .ready: return put(0x44, 4, 1)
    case .queueReset: return put(0xc0, 4, 1)
    case .page(let page):
      put(0x28, 4, 4096)
      return put(0x40, 4, UInt64(page))
    case .notify(let queue): return put(0x50, 4, UInt64(queue))
    case .configuration(let offset, let byte): return put(0x100 + UInt32(offset), 1, UInt64(byte))
    case .acknowledge: return put(0x64, 4, UInt64(model.read(offset: 0x60, width: 4).value))
    }
  }
}

private struct PCIStepper: Stepper {
  var model: RegisterModel
  /// Accesses go through the window in the configuration space.
  var usesWindow = false

  private mutating func common(_ offset: UInt32, _ width: Int, _ value: UInt64) -> [RegisterEffect] {
    guard usesWindow else { return put(RegisterModel.offset(.bar(4), offset), width, value) }
    put(0x88, 1, 4)
    put(0x8c, 4, UInt64(offset))
    put(0x90, 4, UInt64(width))
    return put(0x94, width, value)
  }

  mutating func perform(_ step: Step) -> [RegisterEffect] {
    switch step {
    case .status(let value): return common(0x14, 1, UInt64(value))
    case .features(let word, let bits):
      _ = common(0x08, 4, UInt64(word))
      return common(0x0c, 4, UInt64(bits))
    case .select(let queue): return common(0x16, 2, UInt64(queue))
    case .size(let size): return common(0x18, 2, UInt64(size))
    case .address(let part, let high, let value): return common([0x20, 0x28, 0x30][part] + (high ? 4 : 0), 4, UInt64(value))
    case .ready: return common(0x1c, 2, 1)
    case .queueReset: return common(0x3a, 2, 1)
    case .page: return []
    case .notify(let queue): return common(0x4000 + queue * 4, 2, UInt64(queue))
    case .configuration(let offset, let byte): return common(0x2000 + UInt32(offset), 1, UInt64(byte))
    case .acknowledge: return model.read(offset: RegisterModel.offset(.bar(4), 0x1000), width: 1).effects
    }
  }
}

private struct LegacyPCIStepper: Stepper {
  var model: RegisterModel

  mutating func perform(_ step: Step) -> [RegisterEffect] {
    func at(_ offset: UInt32) -> UInt32 { RegisterModel.offset(.bar(0), offset) }
    switch step {
    case .status(let value): return put(at(0x12), 1, UInt64(value))
    case .features(_, let bits): return put(at(0x04), 4, UInt64(bits))
    case .select(let queue): return put(at(0x0e), 2, UInt64(queue))
    case .size, .address, .ready, .queueReset: return []
    case .page(let page): return put(at(0x08), 4, UInt64(page))
    case .notify(let queue): return put(at(0x10), 2, UInt64(queue))
    case .configuration(let offset, let byte):
      // The I/O BAR is shorter than MMIO's configuration space.
      return offset + 0x14 < 0x100
        ? put(at(0x14 + UInt32(offset)), 1, UInt64(byte)) : [.configWrite(offset: offset, bytes: [byte])]
    case .acknowledge: return model.read(offset: at(0x13), width: 1).effects
    }
  }
}

@Suite struct FaceTests {
  let made = Made()

  /// A function whose BARs are decoded and whose bus mastering is on.
  private func function(_ interface: RegisterInterface) -> RegisterModel {
    var model = RegisterModel(interface, face: made.face())
    _ = model.write(offset: 4, width: 2, value: 7)
    return model
  }

  @Test("the same driver gets the same from mmio and pci, also through the window", arguments: 0..<24 as Range<UInt64>)
  func modernFaces(_ seed: UInt64) {
    var steppers: [any Stepper] = [
      MMIOStepper(model: RegisterModel(.mmio, face: made.face())), PCIStepper(model: function(.pci)),
      PCIStepper(model: function(.pci), usesWindow: true), PCIStepper(model: function(.pciTransitional)),
    ]
    compare(&steppers, seed, isLegacy: false)
  }

  @Test("the same legacy driver gets the same from mmio version 1 and both PCI faces", arguments: 0..<24 as Range<UInt64>)
  func legacyFaces(_ seed: UInt64) {
    var steppers: [any Stepper] = [
      MMIOStepper(model: RegisterModel(.mmioLegacy, face: made.face())), LegacyPCIStepper(model: function(.pciLegacy)),
      LegacyPCIStepper(model: function(.pciTransitional)),
    ]
    compare(&steppers, seed, isLegacy: true)
  }

  /// Takes random steps over all of them. Every few steps one is replaced by its restored record: nothing may differ.
  private func compare(_ steppers: inout [any Stepper], _ seed: UInt64, isLegacy: Bool) {
    var generator = SplitMix(state: seed)
    for count in 0..<400 {
      let step = Step.random(&generator, isLegacy: isLegacy)
      made.interruptStatus.withLock { $0 = UInt32(count % 4) }
      var effects: [[RegisterEffect]] = []
      for index in steppers.indices {
        let done = steppers[index].perform(step)
        for case .resetQueue(let queue) in done { steppers[index].model.queueResetFinished(queue) }
        for case .configWrite(let offset, let bytes) in done where offset % 2 == 0 {
          steppers[index].model.configurationWritten(at: offset, bytes)
        }
        effects.append(done.filter { $0 != .interruptRoutesChanged })
      }
      for index in 1..<steppers.count {
        #expect(effects[index] == effects[0], "seed \(seed), step \(count): \(step)")
        #expect(plain(steppers[index].model) == plain(steppers[0].model), "seed \(seed), step \(count): \(step)")
      }
      if generator.next() % 32 == 0 {
        let needs = generator.next() % 2 == 0
        if needs { for index in steppers.indices { _ = steppers[index].model.needReset() } }
      }
      if generator.next() % 8 == 0 {
        let index = Int(generator.next() % UInt64(steppers.count))
        steppers[index].model = restored(steppers[index].model)
      }
    }
  }

  /// The state that does not depend on the interface. Only some interfaces remember selectors.
  private func plain(_ model: RegisterModel) -> RegisterImage {
    var image = model.image
    image.pci = nil
    image.guestPageSize = 0
    image.deviceFeaturesSelect = 0
    image.driverFeaturesSelect = 0
    return image
  }

  private func restored(_ model: RegisterModel) -> RegisterModel {
    let interface = model.interface
    let bytes = model.image.encoded(queueCount: 5, interface: interface)
    #expect(bytes.count == RegisterImage.size(queueCount: 5, interface: interface))
    let image = RegisterImage(decoding: bytes, queueCount: 5, interface: interface)
    let (restored, _, restoration) = RegisterModel.restore(image, interface, face: made.face())
    #expect(restoration == .complete)
    var (before, after) = (model.image, restored.image)
    before.pci?.generation = 0
    after.pci?.generation = 0
    #expect(after == before)
    return restored
  }

  @Test("a PCI function's BARs, vectors and table are restored, and a changed configuration is noticed")
  func pciRoundTrip() {
    for interface in RegisterInterface.allCases where interface.isPCI && interface.hasModern {
      var function = PCIRegisters.live(made, interface)
      function.openVectors()
      function.put(.bar(1), 28, 4, 1)
      function.setCommon(0x10, 2, 0)
      function.setCommon(0x16, 2, 2)
      function.setCommon(0x1a, 2, 1)
      function.put(.configuration, 0x8c, 4, 0x1234)
      let generation = function.common(0x15, 1)
      guard case .pci(var again) = restored(.pci(function)) else { return #expect(Bool(false)) }
      #expect(again.bar(at: 0x12_f000_0014, isPort: false)?.index == 4)
      #expect(again.common(0x1a, 2) == 1 && again.common(0x10, 2) == 0)
      #expect(again.route(of: .configuration) == .message(vector: 0, MSIMessage(address: 0x1_fee0_0000, data: 0x40)))
      #expect(again.route(of: .queue(2)) == .masked(vector: 1))
      #expect(again.route(of: .queue(0)) == .none)
      #expect(again.common(0x15, 1) != generation)
      #expect(again.put(.bar(4), 0x4008, 2, 2) == [.notify(2)])
    }
  }

  @Test(
    "hostile accesses of any width and offset never trap, and start only existing queues",
    arguments: 0..<24 as Range<UInt64>)
  func hostileAccesses(_ seed: UInt64) {
    for interface in RegisterInterface.allCases {
      var generator = SplitMix(state: seed)
      var model = RegisterModel(interface, face: made.face())
      if seed % 2 == 0 { _ = model.write(offset: 4, width: 2, value: 7) }
      for _ in 0..<240 {
        let word = generator.next()
        let space = UInt32(truncatingIfNeeded: word >> 8) & 0xf << 28
        let near: [UInt32] = [0, 0x10, 0x12, 0x14, 0x40, 0x70, 0x88, 0x94, 0x98, 0x100, 0x800, 0x1000, 0x2000, 0x4000]
        let offset: UInt32 =
          word % 4 == 0
          ? UInt32(truncatingIfNeeded: word >> 16) : space | near[Int(word >> 40 % 14) % 14] &+ UInt32(word >> 56) % 32
        let width = [1, 2, 4, 8, 3, 0, -1, 16, Int.max, Int.min][Int(word >> 4 % 10) % (word % 3 == 0 ? 10 : 4)]
        let value = generator.next() % 3 == 0 ? generator.next() : generator.next() % 16
        made.interruptStatus.withLock { $0 = UInt32(truncatingIfNeeded: word) }
        let effects =
          word % 2 == 0
          ? model.read(offset: offset, width: width).effects : model.write(offset: offset, width: width, value: value)
        for effect in effects {
          switch effect {
          case .startQueue(let queue, let configuration):
            #expect((0..<3).contains(queue) && configuration.size <= 256 && configuration.size.nonzeroBitCount == 1)
            #expect(model.isLive)
          case .stopQueue(let queue), .pauseQueue(let queue), .notify(let queue): #expect((0..<3).contains(queue))
          case .resetQueue(let queue):
            #expect((0..<3).contains(queue))
            model.queueResetFinished(queue)
          case .configWrite(let offset, let bytes):
            #expect(offset >= 0 && (1...8).contains(bytes.count))
            model.configurationWritten(at: offset, bytes)
          case .acknowledgeInterrupt(let bits): #expect(bits > 0 && bits & ~3 == 0)
          case .featuresFixed, .live, .interruptRoutesChanged, .configurationChanged, .reset: break
          }
        }
        for source in [InterruptSource.configuration, .queue(0), .queue(-1), .queue(Int.max)] { _ = model.route(of: source) }
      }
      _ = restored(model)
    }
  }

  @Test("forged bytes do no more than a driver can, with any interface", arguments: 0..<60 as Range<UInt64>)
  func forged(_ seed: UInt64) {
    for interface in RegisterInterface.allCases {
      var generator = SplitMix(state: seed)
      var bytes = (0..<RegisterImage.size(queueCount: 5, interface: interface)).map { _ in
        generator.byte(sparse: seed % 2 == 0)
      }
      if seed % 3 == 0 { bytes.replaceSubrange(0..<4, with: [interface.hasModern ? 0x0f : 0x07, 0, 0, 0]) }
      if seed % 4 == 0 { bytes = Array(bytes.prefix(Int(seed) * 8)) }
      let image = RegisterImage(decoding: bytes, queueCount: 5, interface: interface)
      let (model, effects, restoration) = RegisterModel.restore(image, interface, face: made.face())
      for case .startQueue(let queue, let configuration) in effects {
        #expect(queue < 3 && configuration.size <= 256 && configuration.size.nonzeroBitCount == 1)
        #expect(model.isLive && restoration == .complete)
      }
      var again = model
      for source in [InterruptSource.configuration, .queue(0), .queue(4)] { _ = again.route(of: source) }
      for offset in stride(from: 0 as UInt32, to: 0x100, by: 4) { _ = again.read(offset: offset, width: 4) }
    }
  }

  @Test("an interface has one name and one number")
  func names() {
    for interface in RegisterInterface.allCases { #expect(RegisterInterface(name: interface.name) == interface) }
    #expect(RegisterInterface.allCases.map(\.rawValue) == [0, 1, 2, 3, 4])
    #expect(RegisterInterface(name: "isa") == nil)
  }
}
