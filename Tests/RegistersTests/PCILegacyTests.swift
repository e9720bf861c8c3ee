/// The legacy I/O block, alone and beside the modern structures.
import Synchronization
import Testing
import VirtioCore
import VirtioRegisters

@Suite struct PCILegacyTests {
  let made = Made()

  func enabled(_ interface: RegisterInterface, features: FeatureSet = Made.features) -> PCIRegisters {
    var function = made.function(interface, features: features)
    function.enable()
    return function
  }

  @Test(
    "legacy.pci.4, legacy.pci.8: the block at the start of the I/O BAR",
    arguments: [RegisterInterface.pciLegacy, .pciTransitional])
  func block(_ interface: RegisterInterface) {
    var function = enabled(interface, features: FeatureSet(rawValue: .max))
    #expect(function.config(0x10, 4) & 3 == 1)
    for (offset, width, value) in [
      (0x00, 4, 0xbefd_ffff), (0x04, 4, 0), (0x08, 4, 0), (0x0c, 2, 256), (0x0e, 2, 0), (0x10, 2, 0), (0x12, 1, 0),
      (0x13, 1, 0),
    ] as [(UInt32, Int, UInt64)] {
      #expect(function.get(.bar(0), offset, width) == value, "register \(offset)")
    }
    function.put(.bar(0), 0x0e, 2, 3)
    #expect(function.get(.bar(0), 0x0c, 2) == 0 && function.get(.bar(0), 0x0e, 2) == 3)
  }

  @Test("legacy.pci.5, legacy.pci.6: the configuration space follows, after two vectors while MSI-X is on, in any width")
  func configuration() {
    var function = enabled(.pciLegacy)
    for base in [0x14, 0x18, 0x14] as [UInt32] {
      function.put(.configuration, function.msixControl, 2, base == 0x18 ? 0x8000 : 0)
      #expect(function.get(.bar(0), base, 8) == 0x1716_1514_1312_1110)
      #expect(function.get(.bar(0), base, 4) == 0x1312_1110)
      #expect(function.get(.bar(0), base + 1, 2) == 0x1211)
      #expect(function.get(.bar(0), base + 7, 1) == 0x17)
      #expect(function.put(.bar(0), base + 32, 1, 1) == [.configWrite(offset: 32, bytes: [1])], "legacy.init.1")
      // The vectors, or the configuration bytes in their place.
      function.put(.bar(0), 0x0e, 2, 2)
      let effects = function.put(.bar(0), 0x16, 2, 3)
      #expect(effects == (base == 0x18 ? [.interruptRoutesChanged] : [.configWrite(offset: 2, bytes: [3, 0])]))
      #expect(function.get(.bar(0), 0x16, 2) == (base == 0x18 ? 3 : 0x1312))
      #expect(function.put(.bar(0), 0x14, 2, 99).count == 1)
      #expect(function.get(.bar(0), 0x14, 2) == (base == 0x18 ? 0xffff : 0x1110))
    }
  }

  @Test("legacy.vq.1, legacy.pci.7: a legacy driver's session", arguments: [RegisterInterface.pciLegacy, .pciTransitional])
  func life(_ interface: RegisterInterface) {
    var function = enabled(interface)
    for _ in 0..<2 {
      function.legacyNegotiate([.eventIndex, .indirectDescriptors, FeatureSet(bit: 3)])
      #expect(function.get(.bar(0), 0x04, 4) == 0x3000_0000)
      function.put(.bar(0), 0x0e, 2, 1)
      #expect(function.put(.bar(0), 0x08, 4, 0x321).isEmpty)
      #expect(function.get(.bar(0), 0x08, 4) == 0x321)
      let queue = QueueConfiguration.legacySample(page: 0x321)
      #expect(
        function.put(.bar(0), 0x12, 1, 7)
          == [.featuresFixed([.eventIndex, .indirectDescriptors]), .live, .startQueue(1, queue)])
      #expect(function.get(.bar(0), 0x12, 1) == 7)
      #expect(function.put(.bar(0), 0x10, 2, 1) == [.notify(1)])
      #expect(function.put(.bar(0), 0x10, 2, 0).isEmpty)
      #expect(function.put(.bar(0), 0x10, 2, 0xffff).isEmpty)
      #expect(function.put(.bar(0), 0x08, 4, 0) == [.stopQueue(1)])
      #expect(function.put(.bar(0), 0x08, 4, 0xffff_ffff).count == 1)
      #expect(function.put(.bar(0), 0x12, 1, 0) == [.reset, .interruptRoutesChanged])
      #expect(function.get(.bar(0), 0x08, 4) == 0)
    }
  }

  @Test("legacy.init.2: before DRIVER_OK")
  func early() {
    var function = enabled(.pciTransitional)
    function.legacyNegotiate([])
    function.put(.bar(0), 0x08, 4, 5)
    #expect(
      function.put(.bar(0), 0x10, 2, 0)
        == [.featuresFixed([]), .live, .startQueue(0, .legacySample(page: 5)), .notify(0)])
    #expect(function.put(.bar(0), 0x12, 1, 7).isEmpty)
    // The modern notification address does not do that.
    var modern = enabled(.pciTransitional)
    modern.legacyNegotiate([])
    modern.put(.bar(0), 0x08, 4, 5)
    #expect(modern.put(.bar(4), 0x4000, 2, 0).isEmpty)
  }

  @Test("a driver that does not enable bus mastering is served: as Linux before 2.6.34 does")
  func withoutBusMaster() {
    var function = enabled(.pciLegacy)
    function.put(.configuration, 4, 2, 1)
    function.legacyNegotiate([])
    function.put(.bar(0), 0x08, 4, 5)
    #expect(function.put(.bar(0), 0x12, 1, 7) == [.featuresFixed([]), .live, .startQueue(0, .legacySample(page: 5))])
    #expect(function.config(4, 2) == 5)
  }

  @Test("legacy.feat.1: the two interfaces are one device")
  func oneDevice() {
    var function = enabled(.pciTransitional)
    function.put(.bar(0), 0x12, 1, 3)
    #expect(function.common(0x14, 1) == 3)
    function.negotiate([.version1, .eventIndex])
    #expect(function.get(.bar(0), 0x12, 1) == 11)
    function.setUp(queue: 0, size: 16)
    #expect(function.setCommon(0x14, 1, 15) == [.live, .startQueue(0, .sample(0, size: 16))])
    #expect(function.get(.bar(0), 0x0c, 2) == 256)
    // A legacy driver that comes next begins with a reset.
    #expect(function.put(.bar(0), 0x12, 1, 0) == [.reset, .interruptRoutesChanged])
    function.legacyNegotiate([])
    function.setCommon(0x18, 2, 16)
    function.put(.bar(0), 0x08, 4, 9)
    #expect(function.image.queues[0].configuration == .legacySample(page: 9))
  }

  @Test("other widths and offsets read zero and write nothing")
  func otherWidths() {
    var function = enabled(.pciLegacy)
    function.legacyNegotiate([])
    let image = function.image
    for offset in 0..<0x14 as Range<UInt32> {
      for width in [1, 2, 4, 8]
      where ![(0, 4), (4, 4), (8, 4), (0xc, 2), (0xe, 2), (0x10, 2), (0x12, 1), (0x13, 1)].contains(where: {
        $0 == (Int(offset), width)
      }) {
        #expect(function.get(.bar(0), offset, width) == 0)
        #expect(function.put(.bar(0), offset, width, 0).isEmpty)
      }
    }
    #expect(function.image == image)
  }
}

extension PCIRegisters {
  /// virtio 3.1.2.
  mutating func legacyNegotiate(_ features: FeatureSet) {
    for status in [0, 1, 3] as [UInt64] { put(.bar(0), 0x12, 1, status) }
    put(.bar(0), 0x04, 4, features.rawValue & 0xffff_ffff)
  }
}
