/// Everything that happened in one run, in one order: the driver's requests and their answers, and what was started and
/// finished at the medium.
internal import Synchronization
internal import VirtioBlkDevice

/// A request of the driver.
struct GuestRequest: Sendable {
  enum Kind: Sendable {
    case write
    case zero
    case discard
    case flush
  }
  var kind: Kind
  var sectors: Range<Int>
  /// It must be stable when it is answered, because the driver will not flush it.
  var isDurable: Bool
}

/// An action at the medium.
struct MediumChange: Sendable {
  enum Kind: Sendable {
    case contents
    case flush
  }
  var kind: Kind
  var isDurable: Bool
  var firstSector: Int
  /// Sector by sector.
  var contents: [SectorContent]
}

enum CrashEvent: Sendable {
  /// Before the device can see it.
  case asked(Int, GuestRequest)
  /// After the driver has seen the answer.
  case answered(Int)
  /// The driver is about to turn on the write cache: requests that are not yet answered may not be stable.
  case cacheTurnedOn
  case started(Int, MediumChange)
  case finished(Int, result: Int32)
}

/// Written by the driver's thread and by the workers, each on its own side of a request, so an event that precedes another did
/// happen before it.
final class CrashJournal: MediumWitness {
  private struct State {
    var events: [CrashEvent] = []
    var next = 0
  }
  private let state = Mutex(State())
  private let stamp: SectorStamp

  init(_ stamp: SectorStamp) { self.stamp = stamp }

  /// Oldest first.
  var events: [CrashEvent] { state.withLock { $0.events } }

  func add(_ event: CrashEvent) { state.withLock { $0.events.append(event) } }

  func started(_ action: MediumAction) -> Int {
    let first = Int(action.offset) / SectorContent.bytes
    let count = Int(action.length) / SectorContent.bytes
    var change = MediumChange(kind: .contents, isDurable: action.isDurable, firstSector: first, contents: [])
    switch action.kind {
    case .write: change.contents = stamp.contents(of: action.data, at: first)
    case .zero: change.contents = Array(repeating: .zeroes, count: count)
    case .forget: change.contents = Array(repeating: .foreign, count: count)
    case .allocate: break
    // A flush of something else has no effect on this medium.
    case .flush: if !action.isElsewhere { change.kind = .flush }
    }
    return state.withLock { state in
      let number = state.next
      state.next += 1
      state.events.append(.started(number, change))
      return number
    }
  }

  func finished(_ number: Int, result: Int32) { add(.finished(number, result: result)) }
}
