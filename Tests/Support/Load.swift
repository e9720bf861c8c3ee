/// A guest that runs a workload while something is done to its device.
internal import Foundation
public import GuestDriver
internal import Synchronization
internal import VirtioCore

/// A guest on its own thread, which verifies every byte.
public final class Load: Sendable {
  public struct Report: Sendable {
    public var progress: VerifyProgress
    /// How often its back-end had gone and it connected to another one.
    public var reconnections: Int
  }

  public struct Failure: Error, CustomStringConvertible { public let description: String }

  private let answered = Atomic<Int>(0)
  private let isEnding = Atomic<Bool>(false)
  private let outcome = Mutex<Result<Report, any Error>?>(nil)

  private init() {}

  /// Runs the guest's workload while the body runs, and for some more answers. The body runs on the test's thread, so that its
  /// failures are reported with the test's name.
  ///
  /// - Parameter connect: creates the guest's client, on its thread.
  @discardableResult
  public static func run(
    _ connect: @escaping @Sendable () throws -> BlockClient, during body: (Load) throws -> Void
  ) throws -> Report {
    let load = Load()
    let (isConnected, hasEnded) = (DispatchSemaphore(value: 0), DispatchSemaphore(value: 0))
    Thread.detachNewThread {
      let result = Result { try load.work(connect) { isConnected.signal() } }
      load.outcome.withLock { $0 = result }
      // Even if it never was connected.
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

  /// Waits until the guest has received some more answers, among them those to all requests submitted before this call.
  public func wait() throws {
    let before = answered.load(ordering: .relaxed)
    try TestSupport.wait(until: "the guest is answered") {
      if case .failure(let error) = outcome.withLock({ $0 }) { throw error }
      return answered.load(ordering: .relaxed) >= before + 20
    }
  }
}
