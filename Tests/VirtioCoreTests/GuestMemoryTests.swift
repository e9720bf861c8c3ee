/// Guest memory: which region tables are valid, and what translation returns.
import GuestDriver
import Testing
import VirtioCore

@Suite struct GuestMemoryTests {
  private func region(_ start: UInt64, _ size: UInt64, offset: Int = 0) throws -> GuestRegion {
    GuestRegion(start: GuestAddress(start), size: size, mapping: try Mapping(anonymous: 1 << 16), offset: offset)
  }

  @Test func refusesWhatIsNoMemory() throws {
    #expect(throws: GuestMemoryError.emptyRegion(GuestAddress(4096))) {
      _ = try GuestMemory([region(4096, 0)])
    }
    #expect(throws: GuestMemoryError.regionLeavesAddressSpace(GuestAddress(UInt64.max - 1), size: 4096)) {
      _ = try GuestMemory([region(UInt64.max - 1, 4096)])
    }
    #expect(throws: GuestMemoryError.regionLeavesMapping(GuestAddress(0), size: (1 << 16) + 1)) {
      _ = try GuestMemory([region(0, (1 << 16) + 1)])
    }
    #expect(throws: GuestMemoryError.regionLeavesMapping(GuestAddress(0), size: 1 << 16)) {
      _ = try GuestMemory([region(0, 1 << 16, offset: 1)])
    }
    #expect(throws: GuestMemoryError.overlap(GuestAddress(0), GuestAddress(4095))) {
      _ = try GuestMemory([region(4095, 4096), region(0, 4096)])
    }
    #expect(throws: GuestMemoryError.tooManyRegions(510)) {
      let one = try region(0, 4096)
      _ = try GuestMemory(
        (0..<510).map { GuestRegion(start: GuestAddress(UInt64($0) << 16), size: 4096, mapping: one.mapping) })
    }
  }

  @Test(arguments: [1, 2, 3, 64, 509]) func findsEveryByteOfEveryRegionAndNothingElse(count: Int) throws {
    let mapping = try Mapping(anonymous: 509 * 4096)
    let regions = (0..<count).shuffled().map {
      GuestRegion(
        start: GuestAddress(UInt64($0) * 0x3000 + 0x1000), size: 0x1000, mapping: mapping, offset: $0 * 4096)
    }
    let memory = try GuestMemory(regions)
    var view = memory.view()
    for index in (0..<count).shuffled() {
      let start = UInt64(index) * 0x3000 + 0x1000
      for (distance, isInside) in [(-1, false), (0, true), (0xfff, true), (0x1000, false)] {
        let address = GuestAddress(UInt64(Int64(start) + Int64(distance)))
        let found = view.contiguous(address, count: 1)
        #expect((found != nil) == isInside, "\(address)")
        if let found { #expect(unsafe found.base == mapping.base + index * 4096 + distance) }
      }
      #expect(view.contiguous(GuestAddress(start), count: 0x1000) != nil)
      #expect(view.contiguous(GuestAddress(start), count: 0x1001) == nil)
    }
  }

  /// Regions of very different sizes at any distance, like firmware, RAM and shared windows: small ones are next to large
  /// ones, and searches for one after the other must find each.
  @Test(arguments: 0..<20) func findsWhatALinearSearchFinds(seed: UInt64) throws {
    var random = SeededRandom(seed: seed)
    let mapping = try Mapping(anonymous: 1 << 16)
    var regions: [GuestRegion] = []
    var next: UInt64 = 0
    for _ in 0..<Int.random(in: 1...60, using: &random) {
      let gap = Bool.random(using: &random) ? 0 : UInt64(1) << UInt64.random(in: 0...34, using: &random)
      let size = UInt64.random(in: 1...(1 << UInt64.random(in: 0...16, using: &random)), using: &random)
      regions.append(GuestRegion(start: GuestAddress(next + gap), size: size, mapping: mapping))
      next += gap + size
    }
    let memory = try GuestMemory(regions)
    defer { withExtendedLifetime(memory) {} }
    var view = memory.view()
    for _ in 0..<2000 {
      let region = regions.randomElement(using: &random)!
      let address = [
        region.start.rawValue, region.start.rawValue + region.size - 1, region.start.rawValue + region.size,
        region.start.rawValue &- 1, UInt64.random(in: 0...(next + next / 4), using: &random),
        UInt64.random(in: 0...(.max), using: &random),
      ].randomElement(using: &random)!
      let expected = unsafe regions.first { address >= $0.start.rawValue && address - $0.start.rawValue < $0.size }
        .map { unsafe $0.mapping.base + Int(address - $0.start.rawValue) }
      #expect(unsafe view.contiguous(GuestAddress(address), count: 1)?.base == expected, "\(address), seed \(seed)")
    }
  }

  @Test func splitsARangeOverAdjacentRegions() throws {
    let memory = try GuestMemory([region(0x1000, 0x1000), region(0x2000, 0x1000), region(0x4000, 0x1000)])
    var view = memory.view()
    #expect(try view.pieces(GuestAddress(0x1800), length: 0x1000).map(\.count) == [0x800, 0x800])
    #expect(try view.pieces(GuestAddress(0x1000), length: 0x2000).map(\.count) == [0x1000, 0x1000])
    #expect(throws: TranslationError.unmapped) { _ = try view.pieces(GuestAddress(0x2800), length: 0x1000) }
    #expect(throws: TranslationError.unmapped) { _ = try view.pieces(GuestAddress(0x3000), length: 1) }
    #expect(try view.pieces(GuestAddress(0x3000), length: 0).isEmpty)
  }

  @Test func theEndOfTheAddressSpaceIsNotFollowedByItsBeginning() throws {
    let memory = try GuestMemory([region(0, 0x1000), region(UInt64.max - 0xfff, 0x1000)])
    var view = memory.view()
    #expect(try view.pieces(GuestAddress(UInt64.max), length: 1).map(\.count) == [1])
    #expect(throws: TranslationError.unmapped) { _ = try view.pieces(GuestAddress(UInt64.max), length: 2) }
    #expect(throws: TranslationError.unmapped) { _ = try view.pieces(GuestAddress(UInt64.max - 10), length: .max) }
  }

  @Test func anEmptyMemoryHasNothing() throws {
    let memory = try GuestMemory([])
    var view = memory.view()
    #expect(view.contiguous(GuestAddress(0), count: 0) == nil)
    #expect(throws: TranslationError.unmapped) { _ = try view.pieces(GuestAddress(0), length: 1) }
  }
}
