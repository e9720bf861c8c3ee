/// Lets the power fail at many moments of a run, and checks what could be left.
internal import GuestDriver
internal import VirtioBlkDevice

struct CrashChecker {
  /// Images per moment; all that are possible with whole changes, if there are no more than this.
  static let imagesPerPoint = 16

  let mode: CrashMode
  let engine: EngineKind
  let seed: UInt64
  let sectors: Int
  private(set) var figures = CrashFigures()
  private(set) var violations: [CrashViolation] = []
  private var random: SeededRandom

  init(mode: CrashMode, engine: EngineKind, seed: UInt64, sectors: Int) {
    self.mode = mode
    self.engine = engine
    self.seed = seed
    self.sectors = sectors
    random = SeededRandom(seed: seed ^ 0xc2a5)
  }

  /// - Parameter points: the largest number of moments.
  /// - Returns: what the medium holds when the power stays on.
  mutating func check(_ events: [CrashEvent], points: Int) -> [SectorContent] {
    var promise = GuestPromise(sectors: sectors)
    var medium = PowerFailure(sectors: sectors)
    let moments = Set(events.indices.shuffled(using: &random).prefix(points))
    for (index, event) in events.enumerated() {
      promise.take(event)
      medium.take(event)
      if case .asked(_, let request) = event {
        figures.requests += 1
        if request.kind == .flush { figures.flushes += 1 }
      }
      if moments.contains(index) { fail(after: index + 1, promise, medium) }
    }
    return medium.current
  }

  private mutating func fail(after event: Int, _ promise: GuestPromise, _ medium: PowerFailure) {
    figures.points += 1
    let (uncertain, changes) = medium.uncertain
    // The image without any uncertain change: all of its sectors are checked, and in the other images those that differ.
    look(at: medium.stable, 0..<sectors, event, promise)
    guard changes > 0 else {
      figures.exhaustivePoints += 1
      return
    }
    var seen: Set<[SectorContent]> = [uncertain.map { medium.stable[$0] }]
    var image = medium.stable
    let subsets = changes < 16 ? 1 << changes : Int.max
    let isExhaustive = subsets <= Self.imagesPerPoint
    if isExhaustive { figures.exhaustivePoints += 1 }
    for number in 1..<Self.imagesPerPoint {
      for sector in uncertain { image[sector] = medium.stable[sector] }
      var choices = SeededRandom(seed: random.next())
      medium.apply(to: &image, using: &random) { place in
        if isExhaustive, number < subsets { return number >> place & 1 == 1 ? .whole : .none }
        // First all changes, then random ones.
        if number == 1 { return .whole }
        return [.none, .whole, .some][Int(choices.next() % 3)]
      }
      guard seen.insert(uncertain.map { image[$0] }).inserted else { continue }
      look(at: image, uncertain, event, promise)
    }
  }

  private mutating func look(
    at image: [SectorContent], _ places: some Sequence<Int>, _ event: Int, _ promise: GuestPromise
  ) {
    figures.images += 1
    var isViolated = false
    for sector in places where !promise.allows(image[sector], in: sector) {
      if !isViolated, violations.count < CrashReport.violationLimit {
        violations.append(
          CrashViolation(
            mode: mode, engine: engine, seed: seed, event: event, sector: sector, promised: promise.describe(sector),
            found: image[sector].description))
      }
      isViolated = true
    }
    if isViolated { figures.violatedImages += 1 }
  }
}
