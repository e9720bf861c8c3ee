/// Where the packed queues of a memory file stand. Of a split queue `used.idx` says it; of a packed one only its device knows.
internal import VirtioCore
internal import VirtioRegisters

/// One device's account. A queue that is not in it begins a new ring, as its driver set it up.
struct PackedStanding {
  private enum Place: Equatable {
    /// It was stopped in order, with nothing in flight.
    case known(PackedPosition)
    /// It runs, or ran when its device died.
    case unknown
  }

  private var places: [Int: Place] = [:]

  init() {}

  /// As another device left it.
  init(_ image: RegisterImage) {
    guard image.status.contains(.driverOK), image.driverFeatures.contains(.packedRing) else { return }
    for (index, queue) in image.queues.enumerated() where queue.ready {
      places[index] = queue.position.map { .known($0) } ?? .unknown
    }
  }

  /// A queue is being started. - Returns: where; `nil` where nobody knows that.
  mutating func start(_ queue: Int) -> PackedPosition? {
    switch places[queue] {
    case nil:
      places[queue] = .unknown
      return .start
    case .known(let position):
      places[queue] = .unknown
      return position
    case .unknown: return nil
    }
  }

  /// A queue has stopped; of one that is not packed nothing changes.
  mutating func stopped(_ queue: Int, _ position: QueuePosition) {
    guard places[queue] == .unknown, position.used == position.available else { return }
    places[queue] = .known(PackedPosition(rawValue: position.available))
  }

  mutating func forget(_ queue: Int) { places[queue] = nil }

  func position(of queue: Int) -> PackedPosition? {
    if case .known(let position) = places[queue] { position } else { nil }
  }
}
