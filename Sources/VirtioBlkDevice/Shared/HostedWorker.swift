/// A worker that moves between a shared thread and its own thread.
internal import SystemPackage
internal import VirtioCore

/// What a shared thread knows about a worker, whatever its ring and engine are. One call per turn goes through a closure, which
/// was made where both types are known: below it, nothing is dispatched dynamically.
///
/// It belongs to one thread at a time, which hands it over through a lock or by starting the next thread.
final class HostedWorker: @unchecked Sendable {
  let seat: WorkerSeat
  let name: String
  /// - Returns: false if it was its last turn.
  let turn: () -> Bool
  /// - Returns: false if its last queue has stopped.
  let runAlone: () -> Bool
  private let moveAlone: (Bool) -> Errno?
  private let destroy: () -> Void
  /// Called after its last turn, when it has been destroyed.
  private let ended: @Sendable () -> Void

  /// - Throws: if there is no memory for the requests in flight.
  @inline(__always)
  init<Ring: Virtqueue & ~Copyable, Engine: BlockEngine & ~Copyable>(
    _: Ring.Type, _ order: HostOrder, _ seat: WorkerSeat, _ engine: consuming Engine
  ) throws(Errno) {
    var configuration = order.configuration
    configuration.seat = seat
    let worker = UnsafeMutablePointer<QueueWorker<Ring, Engine>>.allocate(capacity: 1)
    do throws(Errno) { unsafe worker.initialize(to: try QueueWorker(configuration, engine: engine)) } catch {
      unsafe worker.deallocate()
      throw error
    }
    self.seat = seat
    name = order.name
    ended = order.ended
    turn = { unsafe worker.pointee.step() }
    runAlone = { unsafe worker.pointee.runAlone(seat) }
    moveAlone = { alone in
      do throws(Errno) { unsafe try worker.pointee.move(alone: alone) } catch { return error }
      return nil
    }
    destroy = {
      unsafe worker.deinitialize(count: 1)
      unsafe worker.deallocate()
    }
  }

  func move(alone: Bool) throws(Errno) { if let error = moveAlone(alone) { throw error } }

  /// Its last queue has stopped.
  func end() {
    destroy()
    ended()
  }
}

/// A worker that is to be made on a shared thread.
struct HostOrder: Sendable {
  var configuration: WorkerConfiguration
  var plan: EnginePlan
  var name: String
  /// What to run on its own thread if it cannot share one.
  var body: BlockDevice.WorkerBody
  /// Called when the worker has ended.
  var ended: @Sendable () -> Void

  /// - Throws: if its engine cannot run on a shared thread, or cannot be made.
  func makeWorker(_ seat: WorkerSeat) throws(Errno) -> HostedWorker {
    #if FUZZED
    // See `serve`; an engine that is an object has no seat.
    throw .notSupported
    #else
    let mailbox = configuration.mailbox.descriptor
    let descriptor = plan.image.descriptor
    switch plan.kind {
    case .mapped:
      guard let mapped = plan.mapped else { throw .noMemory }
      return try makeWorker(
        seat, MappedEngine(mapped, descriptor: descriptor, mailbox: mailbox, seat: seat))
    case .null: return try makeWorker(seat, NullEngine(mailbox: mailbox, seat: seat))
    case .sync: return try makeWorker(seat, SyncEngine(descriptor: descriptor, mailbox: mailbox, seat: seat))
    case .auto, .uring, .cached, .aio, .threads, .nbd, .rbd: throw .notSupported
    }
    #endif
  }

  @inline(__always)
  private func makeWorker<Engine: BlockEngine & ~Copyable>(
    _ seat: WorkerSeat, _ engine: consuming Engine
  ) throws(Errno) -> HostedWorker {
    switch (configuration.kind.isPacked, configuration.kind.isRecorded) {
    case (false, false): try HostedWorker(SplitQueue.self, self, seat, engine)
    case (false, true): try HostedWorker(RecordedSplitQueue.self, self, seat, engine)
    case (true, false): try HostedWorker(PackedQueue.self, self, seat, engine)
    case (true, true): try HostedWorker(RecordedPackedQueue.self, self, seat, engine)
    }
  }

  /// Runs the worker on its own thread after all. If no thread can be made, every start of a queue is answered with that error.
  func runAlone() {
    do throws(Errno) {
      _ = try SystemThread(name: name) { [self] in
        body(configuration, plan)
        ended()
      }
    } catch {
      refuse(configuration)
      ended()
    }
  }
}
