/// What firmware and a kernel's PCI core see: identity, BARs, capabilities, the command register.
import Synchronization
import Testing
import VirtioCore
import VirtioRegisters

@Suite struct PCIConfigurationTests {
  let made = Made()

  @Test(
    "pci.id.2 to pci.id.7, legacy.pci.1 to legacy.pci.3: identity",
    arguments: [
      (RegisterInterface.pci, 0x1042_1af4 as UInt64, 0x0180_0001 as UInt64, 0x1100_1af4 as UInt64),
      (.pciLegacy, 0x1001_1af4, 0x0180_0000, 0x0002_1af4), (.pciTransitional, 0x1001_1af4, 0x0180_0000, 0x0002_1af4),
    ])
  func identity(_ interface: RegisterInterface, _ id: UInt64, _ revision: UInt64, _ subsystem: UInt64) {
    var function = made.function(interface)
    #expect(function.config(0x00, 4) == id)
    #expect(function.config(0x08, 4) == revision)
    #expect(function.config(0x2c, 4) == subsystem)
    #expect(function.config(0x0e, 1) == 0, "one function, with an ordinary header")
    #expect(function.config(0x3d, 1) == 1, "INTA")
    #expect(function.config(0x06, 2) == 0x10, "a capability list, and no interrupt")
  }

  @Test("pci.bus.1: BAR sizes are found by writing all ones", arguments: [1, 3, 200, 1000])
  func sizing(_ queues: Int) {
    var function = made.function(.pciTransitional, queues: queues)
    var sizes: [UInt64] = []
    for bar in 0..<6 as Range<UInt32> {
      function.put(.configuration, 0x10 + bar * 4, 4, 0xffff_ffff)
      sizes.append(function.config(0x10 + bar * 4, 4))
    }
    #expect(sizes[0] == 0xffff_ff01)
    #expect(sizes[2] == 0 && sizes[3] == 0)
    #expect(sizes[4] & 15 == 4 && sizes[5] == 0xffff_ffff)
    // Table and pending bits of every vector, and a notification address for every queue.
    #expect(sizes[1] & 15 == 0 && 0x1_0000_0000 - sizes[1] >= (queues + 1) * 16 + (queues + 64) / 64 * 8)
    let virtio = 0x1_0000_0000 - (sizes[4] & ~15)
    for capability in function.capabilities() where capability.type != 5 {
      #expect(capability.bar == 4 && UInt64(capability.offset) + UInt64(capability.size) <= virtio)
    }
    #expect(function.capabilities().first { $0.type == 2 }?.size == UInt32(queues) * 4, "pci.notify.6, pci.notify.11")
  }

  @Test("pci.common.1, pci.common.2, pci.notify.1, pci.isr.1, pci.devcfg.1, pci.cfgacc.1: the capabilities, best first")
  func capabilities() {
    for interface in [RegisterInterface.pci, .pciTransitional] {
      var function = made.function(interface)
      let list = function.capabilities()
      #expect(list.map(\.type) == [1, 2, 3, 4, 5])
      #expect(list.map(\.length) == [16, 20, 16, 16, 20])
      #expect(list.filter { $0.type != 3 }.allSatisfy { $0.offset % 4 == 0 })
      #expect(list[0].size >= 0x40 && list[2].size == 1 && list[3].size >= 96)
      #expect(list.allSatisfy { $0.at % 4 == 0 })
      let multiplier = function.config(list[1].at + 16, 4)
      #expect(multiplier.nonzeroBitCount == 1 && multiplier % 4 == 0, "pci.notify.7")
    }
    var legacy = made.function(.pciLegacy)
    #expect(legacy.capabilities().isEmpty)
    #expect(legacy.config(legacy.config(0x34, 1) == 0x98 ? 0x98 : 0, 2) == 0x11, "MSI-X alone, and the list ends")
  }

  @Test("pci.msix.1 to pci.msix.4: the MSI-X table has a vector for each queue and one more", arguments: [1, 3, 2047, 4000])
  func vectors(_ queues: Int) {
    var function = made.function(queues: queues)
    #expect(function.config(function.msixControl, 2) == UInt64(min(queues + 1, 2048) - 1))
    #expect(function.config(0x9c, 4) == 1)
    #expect(function.config(0xa0, 4) & 7 == 1)
  }

  @Test("d.pci.cap.8: read-only fields stay", arguments: [RegisterInterface.pci, .pciLegacy, .pciTransitional])
  func readOnly(_ interface: RegisterInterface) {
    var function = made.function(interface)
    let before = (0..<256 as Range<UInt32>).map { function.config($0, 1) }
    for offset in 0..<256 as Range<UInt32> { function.put(.configuration, offset, 1, 0xff) }
    let after = (0..<256 as Range<UInt32>).map { function.config($0, 1) }
    let writable = Set<UInt32>(
      [0x04, 0x05, 0x0c, 0x3c, 0x9b] + Array(0x10...0x17) + (interface == .pciLegacy ? [] : [0x88] + Array(0x20...0x27)))
    // The window's writable fields: offset, length and data.
    let window = interface == .pciLegacy ? [] : Array(0x8c...0x97) as [UInt32]
    for offset in 0..<256 where before[offset] != after[offset] {
      #expect(writable.union(window).contains(UInt32(offset)), "byte \(offset)")
    }
    // Reserved bits of the command register, and the table's size.
    #expect(function.config(0x04, 2) & 0xfaf8 == 0)
    #expect(function.config(0x9a, 2) == 0xc003)
    #expect(function.config(0x06, 2) == 0x10)
  }

  @Test("offsets without a register read zero", arguments: [0xff as UInt32, 0x100, 0xfff, 0x0fff_ffff, 0xffff_ffff])
  func beyond(_ offset: UInt32) {
    var function = PCIRegisters.live(made, .pciTransitional)
    let image = function.image
    #expect(function.get(.configuration, offset, 4) >> 8 == 0xff_ffff)
    #expect(function.get(.configuration, offset, 3) == 0xff_ffff)
    for bar in [-1, 2, 3, 5, 6, Int.max] {
      #expect(function.get(.bar(bar), offset, 4) == 0xffff_ffff)
      #expect(function.put(.bar(bar), offset, 4, 0).isEmpty)
    }
    for bar in [0, 1, 4] where offset > 0xff || bar == 0 {
      if offset <= 0xfff, bar != 0 { continue }
      #expect(function.get(.bar(bar), offset, 8) == .max)
      #expect(function.put(.bar(bar), offset, 8, 0).isEmpty)
    }
    #expect(function.image == image)
  }

  @Test("the command register enables BARs, and addresses are found in them")
  func decoding() {
    var function = made.function(.pciTransitional)
    for (command, io, memory) in [(0, false, false), (1, true, false), (2, false, true), (3, true, true)]
      as [(UInt64, Bool, Bool)]
    {
      function.enable()
      function.put(.configuration, 4, 2, command)
      #expect((function.get(.bar(0), 0x0c, 2) == 256) == io)
      #expect((function.get(.bar(4), 0x12, 2) == 3) == memory)
      #expect((function.get(.bar(1), 12, 4) == 1) == memory)
      let (port, structures, table) = (
        function.bar(at: 0xc012, isPort: true), function.bar(at: 0x12_f000_4008, isPort: false),
        function.bar(at: 0xe000_0810, isPort: false)
      )
      #expect(port?.index == (io ? 0 : nil) && port?.offset == (io ? 0x12 : nil))
      #expect(structures?.index == (memory ? 4 : nil) && structures?.offset == (memory ? 0x4008 : nil))
      #expect(table?.index == (memory ? 1 : nil))
      #expect(function.bar(at: 0xf000_0000, isPort: false) == nil, "half an address")
      #expect(function.bar(at: 0xc012, isPort: false) == nil)
      #expect(function.bar(at: .max, isPort: false) == nil)
    }
  }

  @Test("without bus mastering a function takes nothing from its queues, and continues at its position")
  func busMaster() {
    var function = PCIRegisters.live(made)
    #expect(function.put(.configuration, 4, 2, 3) == [.pauseQueue(0), .pauseQueue(1), .pauseQueue(2), .interruptRoutesChanged])
    #expect(!function.isLive && function.isInUse)
    #expect(function.put(.bar(4), 0x4000, 2, 0).isEmpty)
    #expect(function.put(.configuration, 4, 2, 3) == [.interruptRoutesChanged])
    #expect(
      function.put(.configuration, 4, 1, 7) == [
        .startQueue(0, .sample(0)), .startQueue(1, .sample(1)), .startQueue(2, .sample(2)), .interruptRoutesChanged,
      ])
    // After a reset in the meantime there is nothing to continue; a virtio reset does not clear this bit.
    function.put(.configuration, 4, 2, 3)
    #expect(function.setCommon(0x14, 1, 0) == [.reset, .interruptRoutesChanged])
    #expect(function.put(.configuration, 4, 2, 7) == [.interruptRoutesChanged])
    #expect(function.config(4, 2) == 6, "there is no I/O BAR")
  }

  @Test("pci.cfgacc.2, pci.cfgacc.3: the window reaches the structures before BARs have addresses")
  func window() {
    var function = made.function()
    func aim(_ function: inout PCIRegisters, _ offset: UInt64, _ length: UInt64, bar: UInt64 = 4) {
      function.put(.configuration, 0x88, 1, bar)
      function.put(.configuration, 0x8c, 4, offset)
      function.put(.configuration, 0x90, 4, length)
    }
    aim(&function, 0x12, 2)
    #expect(function.config(0x94, 2) == 3)
    aim(&function, 0x14, 1)
    #expect(function.put(.configuration, 0x94, 1, 1).isEmpty)
    #expect(function.config(0x94, 1) == 1)
    #expect(function.status == .acknowledge)
    #expect(function.put(.configuration, 0x94, 4, 0xffff_ff00) == [.reset, .interruptRoutesChanged], "of the data, one byte")
    aim(&function, 0x2000, 4)
    #expect(function.config(0x94, 4) == 0x1312_1110)
    #expect(function.put(.configuration, 0x94, 4, 0x4433_2211) == [.configWrite(offset: 0, bytes: [0x11, 0x22, 0x33, 0x44])])
    made.interruptStatus.withLock { $0 = 1 }
    aim(&function, 0x1000, 1)
    #expect(function.read(.configuration, offset: 0x94, width: 1) == (1, [.acknowledgeInterrupt(1)]))
    // d.pci.cfgacc.1, d.pci.cfgacc.3: invalid windows.
    for (offset, length, bar) in [
      (0x14, 0, 4), (0x14, 3, 4), (0x14, 8, 4), (0x14, 1, 1), (0x14, 1, 0), (0x14, 1, 255), (0xffff_ffff, 4, 4),
      (0x7fff, 2, 4), (0x14, 0xffff_ffff, 4),
    ] as [(UInt64, UInt64, UInt64)] {
      aim(&function, offset, length, bar: bar)
      #expect(function.put(.configuration, 0x94, 4, 3).isEmpty)
      #expect(function.read(.configuration, offset: 0x94, width: 4) == (3, []))
      #expect(function.status == [])
    }
  }
}

func == (left: (value: UInt64, effects: [RegisterEffect]), right: (UInt64, [RegisterEffect])) -> Bool {
  left.value == right.0 && left.effects == right.1
}
