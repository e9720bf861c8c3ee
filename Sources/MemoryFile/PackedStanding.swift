/// The positions of the packed queues of a memory file. The position of a split queue is in `used.idx`; that of a packed one
/// only its device knows.
internal import VirtioCore
internal import VirtioRegisters

/// The positions that one device knows. A queue without an entry begins a new ring, as its driver has set it up.
struct PackedStanding {
  private enum Place: Equatable {
    /// It was stopped cleanly, with nothing in flight.
    case known(PackedPosition)
    /// It runs, or ran when its device died.
    case unknown
  }

  private var places: [Int: Place] = [:]

  init() {}

  /// The positions that another device left in the file.
  init(_ image: RegisterImage) {
    guard image.status.contains(.driverOK), image.driverFeatures.contains(.packedRing) else { return }
    for (index, queue) in image.queues.enumerated() where queue.ready {
      places[index] = queue.position.map { .known($0) } ?? .unknown
    }
  }

  /// A queue is being started. - Returns: its position; `nil` if that is unknown.
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

  /// A queue has stopped. Has no effect for a split queue.
  mutating func stopped(_ queue: Int, _ position: QueuePosition) {
    guard places[queue] == .unknown, position.used == position.available else { return }
    places[queue] = .known(PackedPosition(rawValue: position.available))
  }

  mutating func forget(_ queue: Int) { places[queue] = nil }

  func position(of queue: Int) -> PackedPosition? {
    if case .known(let position) = places[queue] { position } else { nil }
  }
}
