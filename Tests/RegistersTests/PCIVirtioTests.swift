/// The virtio structures of a modern function: common configuration, notification, device configuration.
import Synchronization
import Testing
import VirtioCore
import VirtioRegisters

@Suite struct PCIVirtioTests {
  let made = Made()

  func enabled(_ interface: RegisterInterface = .pci, features: FeatureSet = Made.features) -> PCIRegisters {
    var function = made.function(interface, features: features)
    function.enable()
    return function
  }

  @Test(
    "pci.common.3, feat.4: device_feature follows its selector; NOTIF_CONFIG_DATA is the function's own",
    arguments: [(0 as UInt64, 0x3000_0202 as UInt64), (1, 0x0000_01c1), (2, 0), (0xffff_ffff, 0)])
  func features(_ select: UInt64, _ word: UInt64) {
    for interface in [RegisterInterface.pci, .pciTransitional] {
      var function = enabled(interface)
      function.setCommon(0x00, 4, select)
      #expect(function.common(0x00, 4) == select)
      #expect(function.common(0x04, 4) == word)
    }
  }

  @Test("a function's own feature can be withheld, and is then not accepted") func withheld() {
    for (features, taken) in [(FeatureSet(), true), (.notificationConfigurationData, false)] {
      var face = made.face()
      face.withheld = features
      var function = PCIRegisters(face: face, interface: .pci)
      function.enable()
      function.setCommon(0x00, 4, 1)
      #expect(function.common(0x04, 4) == (taken ? 0x1c1 : 0x141))
      function.setCommon(0x08, 4, 1)
      function.setCommon(0x0c, 4, 0x81)
      function.setCommon(0x14, 1, 11)
      #expect(function.common(0x14, 1) == (taken ? 11 : 3))
    }
  }

  @Test("pci.common.4: driver_feature reads back, for the existing words")
  func driverFeatures() {
    var function = enabled()
    for (select, word) in [(0, 0x2000_0000), (1, 0x81)] as [(UInt64, UInt64)] {
      function.setCommon(0x08, 4, select)
      function.setCommon(0x0c, 4, word)
      #expect(function.common(0x0c, 4) == word)
    }
    function.setCommon(0x08, 4, 7)
    #expect(function.common(0x0c, 4) == 0)
    #expect(function.setCommon(0x14, 1, 11) == [.featuresFixed([.version1, .eventIndex])])
    #expect(function.common(0x14, 1) == 11)
  }

  @Test(
    "feat.3: FEATURES_OK is not kept for features that were not offered, or without VERSION_1",
    arguments: [
      [] as FeatureSet, [.eventIndex], [.version1, .packedRing], [.version1, .anyLayout], [.version1, .singleRootIO],
    ])
  func unacceptable(_ features: FeatureSet) {
    for interface in [RegisterInterface.pci, .pciTransitional] {
      var function = enabled(interface)
      function.negotiate(features)
      #expect(function.common(0x14, 1) == 3)
      #expect(function.setCommon(0x14, 1, 15).isEmpty)
      #expect(function.common(0x14, 1) == 3)
    }
  }

  @Test("pci.common.15: fields of an existing queue, and of one that does not exist")
  func queueFields() {
    var function = PCIRegisters.live(made)
    function.setCommon(0x16, 2, 1)
    let queue = QueueConfiguration.sample(1)
    let fields: [(UInt32, Int, UInt64)] = [
      (0x12, 2, 3), (0x16, 2, 1), (0x18, 2, 64), (0x1a, 2, 0xffff), (0x1c, 2, 1), (0x1e, 2, 1),
      (0x20, 8, queue.descriptorTable.rawValue), (0x28, 8, queue.availableRing.rawValue), (0x30, 8, queue.usedRing.rawValue),
      (0x24, 4, queue.descriptorTable.rawValue >> 32), (0x38, 2, 0), (0x3a, 2, 0), (0x3c, 4, 0),
    ]
    for (offset, width, value) in fields {
      #expect(function.common(offset, width) == value, "field 0x\(String(offset, radix: 16))")
    }
    for missing in [3, 0xffff] as [UInt64] {
      function.setCommon(0x16, 2, missing)
      let image = function.image
      for (offset, width, _) in fields where offset >= 0x18 {
        #expect(function.common(offset, width) == (offset == 0x1a ? 0xffff : 0))
        #expect(function.setCommon(offset, width, 1).isEmpty)
      }
      #expect(function.image == image)
    }
  }

  @Test("pci.layout.1: halves of an address in any order, or the whole")
  func halves() {
    for order in [[0x20, 0x24], [0x24, 0x20]] as [[UInt32]] {
      var function = enabled()
      for offset in order { function.setCommon(offset, 4, offset == 0x20 ? 0x1111_2222 : 0x3333_4444) }
      #expect(function.common(0x20, 8) == 0x3333_4444_1111_2222)
    }
    var function = enabled()
    for offset in [0x20, 0x28, 0x30] as [UInt32] { function.setCommon(offset, 8, 0x1234_5678_9abc_def0 + UInt64(offset)) }
    #expect(function.image.queues[0].configuration.usedRing.rawValue == 0x1234_5678_9abc_df20)
    #expect(function.image.queues[0].configuration.descriptorTable.rawValue == 0x1234_5678_9abc_df10)
  }

  @Test("d.pci.common.6: queue_enable is written 1 and nothing else, and latches the queue")
  func enabling() {
    var function = enabled()
    function.negotiate()
    #expect(function.setUp(queue: 2).isEmpty)
    #expect(function.setCommon(0x14, 1, 15) == [.live, .startQueue(2, .sample(2))])
    for value in [0, 2, 0xffff] as [UInt64] { #expect(function.setCommon(0x1c, 2, value).isEmpty) }
    #expect(function.common(0x1c, 2) == 1)
    let image = function.image
    for (offset, width) in [(0x18, 2), (0x20, 4), (0x2c, 4), (0x30, 8)] as [(UInt32, Int)] {
      function.setCommon(offset, width, 2)
    }
    #expect(function.image == image)
    #expect(function.setUp(queue: 0, size: 16) == [.startQueue(0, .sample(0, size: 16))])
  }

  @Test("d.pci.common.2, d.pci.common.3: invalid sizes", arguments: [0, 3, 257, 512, 0xffff] as [UInt64])
  func badSizes(_ size: UInt64) {
    var function = enabled()
    function.setCommon(0x18, 2, size)
    #expect(function.common(0x18, 2) == 256)
  }

  @Test("pci.common.7 to pci.common.9, pci.msix.8: a reset")
  func reset() {
    var function = PCIRegisters.live(made)
    function.setCommon(0x10, 2, 1)
    function.setCommon(0x1a, 2, 2)
    #expect(function.setCommon(0x14, 1, 0) == [.reset, .interruptRoutesChanged])
    #expect(function.common(0x14, 1) == 0)
    #expect(function.common(0x10, 2) == 0xffff)
    for queue in 0..<3 as Range<UInt64> {
      function.setCommon(0x16, 2, queue)
      #expect(function.common(0x1c, 2) == 0 && function.common(0x1a, 2) == 0xffff && function.common(0x18, 2) == 256)
    }
  }

  @Test("pci.common.10 to pci.common.14: queue_reset reads 1 while the reset runs, then it and queue_enable read 0")
  func queueReset() {
    var function = PCIRegisters.live(made, features: [.version1, .ringReset])
    function.setCommon(0x16, 2, 1)
    #expect(function.setCommon(0x3a, 2, 0).isEmpty)
    #expect(function.setCommon(0x3a, 2, 1) == [.resetQueue(1)])
    #expect(function.common(0x3a, 2) == 1)
    #expect(function.setCommon(0x3a, 2, 1).isEmpty)
    #expect(function.put(.bar(4), 0x4004, 2, 1).isEmpty)
    function.queueResetFinished(1)
    #expect(function.common(0x3a, 2) == 0 && function.common(0x1c, 2) == 0)
    #expect(function.setUp(queue: 1, size: 8) == [.startQueue(1, .sample(1, size: 8))])
    var plain = PCIRegisters.live(made)
    #expect(plain.setCommon(0x3a, 2, 1).isEmpty)
  }

  @Test("i.pci.notifaddr.1: each queue has its address; the data written is ignored")
  func notify() {
    var function = PCIRegisters.live(made, features: [.version1, .notificationData])
    for queue in 0..<3 as Range<UInt32> {
      function.setCommon(0x16, 2, UInt64(queue))
      let address = 0x4000 + UInt32(function.common(0x1e, 2)) * 4
      #expect(function.put(.bar(4), address, 2, UInt64(queue)) == [.notify(Int(queue))])
      #expect(function.put(.bar(4), address, 4, 0xabcd_0000 | UInt64(queue)) == [.notify(Int(queue))])
      for (offset, width) in [(address, 1), (address, 8), (address + 1, 2), (address + 2, 2)] as [(UInt32, Int)] {
        #expect(function.put(.bar(4), offset, width, UInt64(queue)).isEmpty)
      }
      #expect(function.get(.bar(4), address, 2) == 0)
    }
    #expect(function.put(.bar(4), 0x400c, 2, 0).isEmpty)
    var early = enabled()
    early.negotiate()
    early.setUp(queue: 0)
    #expect(early.put(.bar(4), 0x4000, 2, 0).isEmpty)
  }

  @Test("virtio 4.1.4.3: queue_notify_config_data exists with its feature, which the device never sees")
  func notifyData() {
    var function = enabled()
    function.negotiate([.version1, FeatureSet(bit: 39)])
    #expect(function.features == [.version1])
    function.setCommon(0x16, 2, 2)
    #expect(function.common(0x38, 2) == 2)
    #expect(function.image.driverFeatures == [.version1, FeatureSet(bit: 39)])
  }

  @Test("pci.common.6: config_generation advances once for all changes since it was read")
  func generation() {
    var function = enabled()
    let first = function.common(0x15, 1)
    #expect(function.common(0x15, 1) == first)
    made.generation.withLock { $0 &+= 256 }
    let second = function.common(0x14, 2) >> 8
    #expect(second == first + 1)
    #expect(function.common(0x15, 1) == second)
  }

  @Test("device configuration: any width inside, nothing between the structures")
  func deviceConfiguration() {
    var function = enabled()
    #expect(function.get(.bar(4), 0x2000, 8) == 0x1716_1514_1312_1110)
    #expect(function.get(.bar(4), 0x2003, 4) == 0x1615_1413)
    #expect(function.get(.bar(4), 0x2fff, 1) == 0)
    #expect(function.put(.bar(4), 0x2020, 1, 1) == [.configWrite(offset: 32, bytes: [1])])
    for hole in [0x40, 0xfff, 0x1001, 0x3000, 0x400c, 0x7fff] as [UInt32] {
      #expect(function.get(.bar(4), hole, 1) == 0)
      #expect(function.put(.bar(4), hole, 1, 0xff).isEmpty)
    }
  }

  @Test("d.pci.layout.1: reads of other widths return the same bytes, writes of other widths are ignored")
  func otherWidths() {
    var function = PCIRegisters.live(made)
    let bytes = (0..<0x40 as Range<UInt32>).map { function.common($0, 1) }
    let image = function.image
    for offset in 0..<0x40 {
      for width in [2, 4, 8] {
        let expected = (0..<width).reduce(0 as UInt64) { $0 | (offset + $1 < 0x40 ? bytes[offset + $1] << UInt64($1 * 8) : 0) }
        #expect(function.common(UInt32(offset), width) == expected)
      }
    }
    for (offset, width) in [
      (0x00, 2), (0x01, 4), (0x0c, 8), (0x10, 4), (0x14, 2), (0x14, 4), (0x15, 1), (0x16, 1), (0x18, 4), (0x1c, 1), (0x1c, 4),
      (0x22, 4), (0x24, 8), (0x2c, 8), (0x38, 2), (0x3c, 4),
    ] as [(UInt32, Int)] {
      #expect(function.setCommon(offset, width, 0).isEmpty)
    }
    for width in [0, 3, 16, -1] {
      #expect(function.put(.bar(4), 0x14, width, 0).isEmpty)
      #expect(function.put(.configuration, 4, width, 0).isEmpty)
    }
    #expect(function.image == image)
  }
}
