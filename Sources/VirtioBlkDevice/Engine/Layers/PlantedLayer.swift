/// Deliberate mistakes of a device that lose data in a power failure: a checker has to find each of them.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// A mistake by name.
public enum PlantedMistake: String, CaseIterable, Sendable {
  /// FLUSH is answered, and nothing is flushed.
  case noFlush = "no-flush"
  /// Every second FLUSH is answered with the previous flush, which began before the writes in question were done.
  case flushTooSoon = "flush-too-soon"
  /// Another file is flushed.
  case wrongFile = "wrong-file"
  /// Writes are not stable when they are answered, whatever the driver has chosen.
  case toggleIgnored = "toggle-ignored"
  /// Stable writes and flushes are answered first and done later.
  case answerTooSoon = "answer-too-soon"
  /// Writes are answered and delayed, even past a flush that comes after them.
  case writeAfterFlush = "write-after-flush"
  /// One write in eight is answered and never done.
  case lostWrite = "lost-write"
  /// The last sector of a write of several is left out.
  case shortWrite = "short-write"

  /// What it does, in a few words.
  public var summary: String {
    switch self {
    case .noFlush: "FLUSH is answered without a flush"
    case .flushTooSoon: "every second FLUSH joins the flush before it, which began before the write was done"
    case .wrongFile: "another file is flushed"
    case .toggleIgnored: "writes are not stable although the driver chose so"
    case .answerTooSoon: "stable writes and flushes are answered before they are done"
    case .writeAfterFlush: "a write is done after the flush that came after it"
    case .lostWrite: "one write in eight is never done"
    case .shortWrite: "the last sector of a write is left out"
    }
  }
}

/// A layer around an engine that does everything in place.
@safe
final class PlantedLayer: EngineLayer {
  /// How many operations later one that was answered too soon is done.
  private static let lateness = 4
  private static let longLateness = 24

  let base: any EngineObject
  private let mistake: PlantedMistake
  private let witness: (any MediumWitness)?
  /// A file that nobody uses.
  private let elsewhere: OwnedDescriptor
  /// Answered, but not done.
  private var held: [Held] = []
  private var writes = 0
  /// The next FLUSH joins the flush before it.
  private var joins = false

  /// An operation with a copy of its data.
  private struct Held {
    var operation: IOOperation
    var data: [UInt8]
  }

  init(_ base: any EngineObject, _ mistake: PlantedMistake, _ witness: (any MediumWitness)?) throws(Errno) {
    self.base = base
    self.mistake = mistake
    self.witness = witness
    let file = unsafe memfd_create("elsewhere", UInt32(MFD_CLOEXEC))
    guard file >= 0 else { throw Errno(rawValue: errno) }
    elsewhere = OwnedDescriptor(file)
  }

  func start(_ operation: IOOperation, tag: UInt32) -> IOOutcome {
    switch (mistake, operation.kind) {
    case (_, .read): return base.start(operation, tag: tag)
    case (.noFlush, .flush): return .finished(0)
    case (.flushTooSoon, .flush):
      joins.toggle()
      return joins ? base.start(operation, tag: tag) : .finished(0)
    case (.wrongFile, .flush): return flushElsewhere()
    case (.toggleIgnored, .write):
      var plain = operation
      plain.isDurable = false
      return base.start(plain, tag: tag)
    case (.answerTooSoon, _):
      let outcome =
        operation.kind == .flush || operation.kind == .write && operation.isDurable
        ? hold(operation) : base.start(operation, tag: tag)
      while held.count > Self.lateness { release(tag) }
      return outcome
    case (.writeAfterFlush, .write):
      let outcome = hold(operation)
      while held.count > Self.longLateness { release(tag) }
      return outcome
    case (.lostWrite, .write):
      writes += 1
      return writes % 8 == 0 ? .finished(Int32(clamping: operation.length)) : base.start(operation, tag: tag)
    case (.shortWrite, .write) where operation.length > 512: return leaveOutTheLast(operation, tag)
    default: return base.start(operation, tag: tag)
    }
  }

  private func hold(_ operation: IOOperation) -> IOOutcome {
    held.append(Held(operation: operation, data: operation.bytes))
    return .finished(Int32(clamping: operation.length))
  }

  /// Executes the oldest operation that is held.
  private func release(_ tag: UInt32) {
    let oldest = held.removeFirst()
    _ = perform(oldest.operation, oldest.data, tag)
  }

  private func perform(_ operation: IOOperation, _ data: [UInt8], _ tag: UInt32) -> IOOutcome {
    guard !data.isEmpty else { return base.start(operation, tag: tag) }
    // Direct transfers need aligned buffers.
    let copy = UnsafeMutableRawPointer.allocate(byteCount: data.count, alignment: 4096)
    defer { unsafe copy.deallocate() }
    unsafe UnsafeMutableRawBufferPointer(start: copy, count: data.count).copyBytes(from: data)
    var piece = unsafe MemorySegment(base: copy, count: data.count)
    return unsafe withUnsafeMutablePointer(to: &piece) { piece in
      var own = operation
      own.length = UInt64(data.count)
      unsafe own.segments = piece
      own.segmentCount = 1
      return base.start(own, tag: tag)
    }
  }

  private func leaveOutTheLast(_ operation: IOOperation, _ tag: UInt32) -> IOOutcome {
    guard case .finished(let result) = perform(operation, operation.bytes.dropLast(512), tag), result >= 0 else {
      return .finished(-EIO)
    }
    return .finished(result + 512)
  }

  private func flushElsewhere() -> IOOutcome {
    var action = MediumAction(.flush)
    action.isElsewhere = true
    let number = witness?.started(action)
    let result = fdatasync(elsewhere.rawValue) < 0 ? -errno : 0
    if let number { witness?.finished(number, result: result) }
    return .finished(result)
  }
}
