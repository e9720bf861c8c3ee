/// A guest that works while something is done to its device.
internal import Foundation
public import GuestDriver
internal import Synchronization
internal import VirtioCore

/// A guest on a thread of its own, which checks every byte.
public final class Load: Sendable {
  public struct Report: Sendable {
    public var progress: VerifyProgress
    /// How often its back-end had gone and it found another one.
    public var reconnections: Int
  }

  public struct Failure: Error, CustomStringConvertible { public let description: String }

  private let answered = Atomic<Int>(0)
  private let isEnding = Atomic<Bool>(false)
  private let outcome = Mutex<Result<Report, any Error>?>(nil)

  private init() {}

  /// Lets the guest work for as long as the body runs, and for some answers more. The body runs on the thread of the test, so
  /// that what fails there is told with the test's name.
  ///
  /// - Parameter connect: makes the guest, on its thread.
  @discardableResult
  public static func run(
    _ connect: @escaping @Sendable () throws -> BlockClient, during body: (Load) throws -> Void
  ) throws -> Report {
    let load = Load()
    let (isConnected, hasEnded) = (DispatchSemaphore(value: 0), DispatchSemaphore(value: 0))
    Thread.detachNewThread {
      let result = Result { try load.work(connect) { isConnected.signal() } }
      load.outcome.withLock { $0 = result }
      // Also when it never was.
      isConnected.signal()
      hasEnded.signal()
    }
    isConnected.wait()
    let done = Result { try body(load) }
    load.isEnding.store(true, ordering: .relaxed)
    hasEnded.wait()
    guard let outcome = load.outcome.withLock({ $0 }) else { preconditionFailure("the guest has ended without a result") }
    if case .failure(let error) = done {
      guard case .failure(let second) = outcome else { throw error }
      throw Failure(description: "\(error); and the guest failed: \(second)")
    }
    return try outcome.get()
  }

  private func work(_ connect: () throws -> BlockClient, connected: () -> Void) throws -> Report {
    let client = try connect()
    connected()
    client.depth = 12
    var weights = VerifyOptions.Weights()
    (weights.flush, weights.discard, weights.writeZeroes) = (6, 8, 12)
    var verifier = try Verifier(
      client, VerifyOptions(seed: 11, range: 0..<4 << 20, limit: .bytes(.max), largest: 32 << 10, weights: weights))
    verifier.whenAnswered = { self.answered.store($0, ordering: .relaxed) }
    var left = 200
    verifier.goesOn = {
      if self.isEnding.load(ordering: .relaxed) { left -= 1 }
      return left > 0
    }
    let progress = try verifier.run()
    try client.shutDown()
    return Report(progress: progress, reconnections: (client.session.transport as? VhostUserTransport)?.reconnections ?? 0)
  }

  /// Until the guest has got some more answers, those to requests of before this call among them.
  public func wait() throws {
    let before = answered.load(ordering: .relaxed)
    try TestSupport.wait(until: "the guest is answered") {
      if case .failure(let error) = outcome.withLock({ $0 }) { throw error }
      return answered.load(ordering: .relaxed) >= before + 20
    }
  }
}
