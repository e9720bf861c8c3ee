/// INTx, ISR and MSI-X.
import Synchronization
import Testing
import VirtioCore
import VirtioRegisters

@Suite struct PCIInterruptTests {
  let made = Made()
  let sources: [InterruptSource] = [.configuration, .queue(0), .queue(1), .queue(2)]

  @Test(
    "pci.isr.2 to pci.isr.5: reading ISR returns and clears it, and the line is its level",
    arguments: [1, 2, 3] as [UInt32])
  func isr(_ bits: UInt32) {
    var function = PCIRegisters.live(made, .pciTransitional)
    #expect(!function.isInterruptAsserted && function.config(6, 2) == 0x10)
    for (space, offset) in [(PCIRegisters.Space.bar(4), 0x1000), (.bar(0), 0x13)] as [(PCIRegisters.Space, UInt32)] {
      made.interruptStatus.withLock { $0 = bits | 0xfff0 }
      #expect(function.isInterruptAsserted)
      #expect(function.config(6, 2) == 0x18)
      #expect(function.read(space, offset: offset, width: 1) == (UInt64(bits), [.acknowledgeInterrupt(bits)]))
      made.interruptStatus.withLock { $0 = 0 }
      #expect(function.read(space, offset: offset, width: 1) == (0, []))
      #expect(!function.isInterruptAsserted && function.config(6, 2) == 0x10)
      #expect(function.put(space, offset, 1, 3).isEmpty)
    }
  }

  @Test("the command register's interrupt disable keeps the line low, and pending bits stay")
  func interruptDisable() {
    var function = PCIRegisters.live(made)
    made.interruptStatus.withLock { $0 = 1 }
    #expect(function.put(.configuration, 4, 2, 0x407) == [.interruptRoutesChanged])
    #expect(!function.isInterruptAsserted && function.config(6, 2) == 0x18)
    for source in sources { #expect(function.route(of: source) == .lineDisabled) }
    function.put(.configuration, 4, 2, 7)
    #expect(function.isInterruptAsserted)
    for source in sources { #expect(function.route(of: source) == .line) }
  }

  @Test("pci.msix.5 to pci.msix.7, pci.msix.9: every source can have every vector, and none")
  func mapping() {
    var function = PCIRegisters.live(made)
    function.openVectors()
    for source in sources { #expect(function.route(of: source) == .none, "pci.intr.1, pci.intr.3") }
    for vector in [0, 1, 2, 3] as [UInt64] {
      for source in sources {
        let field: UInt32
        if case .queue(let queue) = source {
          function.setCommon(0x16, 2, UInt64(queue))
          field = 0x1a
        } else {
          field = 0x10
        }
        #expect(function.setCommon(field, 2, vector) == [.interruptRoutesChanged])
        #expect(function.common(field, 2) == vector)
        #expect(
          function.route(of: source)
            == .message(vector: Int(vector), MSIMessage(address: 0x1_fee0_0000, data: 0x40 + UInt32(vector))))
      }
    }
    for value in [4, 0x7ff, 0x800, 0xffff] as [UInt64] {
      function.setCommon(0x10, 2, 1)
      function.setCommon(0x10, 2, value)
      #expect(function.common(0x10, 2) == 0xffff, "pci.msix.10")
      #expect(function.route(of: .configuration) == .none)
    }
    #expect(function.route(of: .queue(17)) == .none)
    made.interruptStatus.withLock { $0 = 3 }
    #expect(!function.isInterruptAsserted && function.config(6, 2) == 0x10, "with MSI-X on the line is not used")
  }

  @Test("a masked vector holds back its sources' messages, and shows them as pending")
  func masks() {
    var function = PCIRegisters.live(made)
    function.openVectors()
    function.setCommon(0x16, 2, 1)
    function.setCommon(0x1a, 2, 3)
    let message = InterruptRoute.message(vector: 3, MSIMessage(address: 0x1_fee0_0000, data: 0x43))
    let mask: [(PCIRegisters.Space, UInt32, UInt64, UInt64)] = [
      (.bar(1), 3 * 16 + 12, 1, 0), (.configuration, function.msixControl, 0xc000, 0x8000), (.configuration, 4, 3, 7),
    ]
    for (space, offset, on, off) in mask {
      let width = space == .bar(1) ? 4 : 2
      #expect(function.route(of: .queue(1)) == message)
      #expect(function.put(space, offset, width, on).last == .interruptRoutesChanged)
      // Messages that the device holds back.
      made.heldBack.withLock { $0 = [.queue(1)] }
      if offset != 4 {
        #expect(function.route(of: .queue(1)) == .masked(vector: 3))
        #expect(function.get(.bar(1), 0x800, 4) == 8)
        #expect(function.get(.bar(1), 0x800, 8) == 8)
        #expect(function.get(.bar(1), 0x804, 4) == 0)
      } else {
        #expect(function.route(of: .queue(1)) == .masked(vector: 3), "a message is a write to memory")
      }
      made.heldBack.withLock { $0 = [] }
      function.put(space, offset, width, off)
      #expect(function.get(.bar(1), 0x800, 4) == 0)
    }
  }

  @Test("the table accepts aligned words, keeps reserved bits zero and is masked at first; pending bits cannot be written")
  func table() {
    var function = made.function()
    function.enable()
    for vector in 0..<4 as Range<UInt32> { #expect(function.get(.bar(1), vector * 16 + 12, 4) == 1) }
    function.put(.bar(1), 16, 8, .max)
    function.put(.bar(1), 24, 8, .max)
    #expect(function.get(.bar(1), 16, 8) == 0xffff_ffff_ffff_fffc)
    #expect(function.get(.bar(1), 24, 8) == 0x1_ffff_ffff)
    let image = function.image
    for (offset, width) in [(16, 1), (16, 2), (18, 4), (20, 8), (64, 4), (0x7fc, 4), (0x800, 4), (0x808, 8), (0xff8, 8)]
      as [(UInt32, Int)]
    {
      function.put(.bar(1), offset, width, 0)
      if offset >= 64 || width < 4 { #expect(function.get(.bar(1), offset, width) == 0) }
    }
    #expect(function.image == image)
  }
}
