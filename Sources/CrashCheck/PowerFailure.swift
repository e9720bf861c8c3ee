/// What a medium may hold after a power failure, from what was started and finished there.
///
/// A medium promises this and no more: what finished before a flush started is stable when that flush has finished, and a
/// durable write is stable when it has finished. Of everything else that was started, any subset of sectors may be there: the
/// medium has a cache, and writes it back whenever and in whatever order it likes. A sector is there as a whole or not at all.
struct PowerFailure {
  private struct Change {
    var number: Int
    var start: Int
    /// `nil` while it is in flight.
    var finish: Int?
    /// Sectors that it has completed, from its start.
    var done = 0
    var isDurable: Bool
    var firstSector: Int
    var contents: [SectorContent]
    /// Sectors that may be there or not.
    var open: [Bool]
    var openCount: Int
  }

  /// What is there whatever happens, by sector.
  private(set) var stable: [SectorContent]
  /// What is there when the power stays on.
  private(set) var current: [SectorContent]
  /// What is not stable, in the order in which it began.
  private var changes: [Change] = []
  private var flushes: [Int: Int] = [:]
  private var time = 0

  /// - Parameter sectors: all zeroes, and stable.
  init(sectors: Int) {
    stable = Array(repeating: .zeroes, count: sectors)
    current = stable
  }

  mutating func take(_ event: CrashEvent) {
    time += 1
    switch event {
    case .asked, .answered, .cacheTurnedOn: break
    case .started(let number, let change):
      if change.kind == .flush {
        flushes[number] = time
      } else if !change.contents.isEmpty {
        changes.append(
          Change(
            number: number, start: time, isDurable: change.isDurable, firstSector: change.firstSector,
            contents: change.contents, open: Array(repeating: true, count: change.contents.count),
            openCount: change.contents.count))
      }
    case .finished(let number, let result):
      if let start = flushes.removeValue(forKey: number) {
        if result >= 0 { settle { $0.finish ?? .max < start } }
      } else if let place = changes.firstIndex(where: { $0.number == number }) {
        finish(place, result)
      }
    }
  }

  private mutating func finish(_ place: Int, _ result: Int32) {
    changes[place].finish = time
    let change = changes[place]
    let isRange = result == 0
    // A short transfer has written its first sectors; what a failed one has written is unknown.
    let done = isRange ? change.contents.count : max(0, min(Int(result) / SectorContent.bytes, change.contents.count))
    changes[place].done = done
    for index in 0..<done { current[change.firstSector + index] = change.contents[index] }
    if change.isDurable { settle { $0.number == change.number } }
  }

  /// Makes stable what some changes have completed.
  private mutating func settle(_ isMeant: (Change) -> Bool) {
    for place in changes.indices where isMeant(changes[place]) {
      let change = changes[place]
      for index in 0..<change.done where change.open[index] {
        stable[change.firstSector + index] = change.contents[index]
        close(place, index)
      }
      // What finished before it started is overwritten, and will never be seen again.
      for other in changes.indices where changes[other].finish ?? .max < change.start {
        let first = changes[other].firstSector
        let shared = (change.firstSector..<change.firstSector + change.done)
          .clamped(to: first..<first + changes[other].contents.count)
        for sector in shared { close(other, sector - first) }
      }
    }
    changes.removeAll { $0.openCount == 0 }
  }

  private mutating func close(_ place: Int, _ index: Int) {
    guard changes[place].open[index] else { return }
    changes[place].open[index] = false
    changes[place].openCount -= 1
  }

  // MARK: Images

  /// The sectors that are not certain, and how many changes concern them.
  var uncertain: (sectors: [Int], changes: Int) {
    var sectors: Set<Int> = []
    for change in changes {
      for (index, isOpen) in change.open.enumerated() where isOpen { sectors.insert(change.firstSector + index) }
    }
    return (sectors.sorted(), changes.count)
  }

  /// How much of one change is there.
  enum Part {
    case none
    case whole
    /// Any of its sectors.
    case some
  }

  /// One image: the uncertain sectors as they may be. - Parameters:
  ///   - image: `stable` in the uncertain sectors; gets what the image has there.
  ///   - part: how much of each change is there, by its place.
  func apply(to image: inout [SectorContent], using random: inout some RandomNumberGenerator, _ part: (Int) -> Part) {
    for (place, change) in changes.enumerated() {
      let part = part(place)
      guard part != .none else { continue }
      var bits: UInt64 = 0
      for index in change.open.indices {
        if index % 64 == 0 { bits = random.next() }
        guard change.open[index] else { continue }
        if part == .whole || bits >> UInt64(index % 64) & 1 == 1 { image[change.firstSector + index] = change.contents[index] }
      }
    }
  }
}
