/// What a driver may rely on after a power failure (virtio 5.2.6.2), from its requests and their answers alone.

/// For each sector the contents that it may hold: the last one that was promised to be stable, and all that were requested
/// later.
struct GuestPromise {
  private struct Version {
    var request: Int
    /// `nil`: anything, after a discard.
    var content: SectorContent?
  }
  private struct Asked {
    var request: GuestRequest
    /// For a flush: the requests that were answered before it was submitted.
    var covers: [Int] = []
  }

  /// By sector, in the order in which they were requested: requests that overlap are never in flight together. The first one is
  /// promised.
  private var versions: [[Version]]
  private var asked: [Int: Asked] = [:]
  /// What was answered and is not stable yet.
  private var answered: [Int] = []
  private var sectorsOfAnswered: [Int: Range<Int>] = [:]

  /// - Parameter sectors: their number; all are zeroes, and stable.
  init(sectors: Int) { versions = Array(repeating: [Version(request: -1, content: .zeroes)], count: sectors) }

  mutating func take(_ event: CrashEvent) {
    switch event {
    case .asked(let number, let request): ask(number, request)
    case .answered(let number): answer(number)
    case .cacheTurnedOn: for number in asked.keys { asked[number]?.request.isDurable = false }
    case .started, .finished: break
    }
  }

  private mutating func ask(_ number: Int, _ request: GuestRequest) {
    asked[number] = Asked(request: request, covers: request.kind == .flush ? answered : [])
    guard request.kind != .flush else { return }
    let content: SectorContent? =
      switch request.kind {
      case .write, .flush: .written(UInt32(number))
      case .zero: .zeroes
      case .discard: nil
      }
    for sector in request.sectors { versions[sector].append(Version(request: number, content: content)) }
  }

  private mutating func answer(_ number: Int) {
    guard let done = asked.removeValue(forKey: number) else { return }
    if done.request.kind == .flush {
      for covered in done.covers { promise(covered) }
      return
    }
    answered.append(number)
    sectorsOfAnswered[number] = done.request.sectors
    if done.request.isDurable { promise(number) }
  }

  /// From now on, its sectors hold what it wrote, or what was requested later.
  private mutating func promise(_ number: Int) {
    // Two flushes may cover the same request.
    guard let sectors = sectorsOfAnswered.removeValue(forKey: number) else { return }
    answered.removeAll { $0 == number }
    for sector in sectors {
      guard let place = versions[sector].firstIndex(where: { $0.request == number }) else { continue }
      versions[sector].removeFirst(place)
    }
  }

  func allows(_ content: SectorContent, in sector: Int) -> Bool {
    versions[sector].contains { $0.content == nil || $0.content == content }
  }

  /// What a sector may hold, in words.
  func describe(_ sector: Int) -> String {
    versions[sector].map { version in
      guard version.request >= 0 else { return "the initial zeroes" }
      guard let content = version.content else { return "anything, after the discard of request \(version.request)" }
      return content == .zeroes ? "the zeroes of request \(version.request)" : content.description
    }.joined(separator: ", or ")
  }
}
