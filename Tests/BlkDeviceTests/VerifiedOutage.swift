/// A verified load during which the server of the image is killed and restarted.
import Foundation
import GuestDriver
import Synchronization
import VirtioCore

@testable import VirtioBlkDevice

extension Rig {
  /// Ends when the server has been restarted as often as it was killed.
  ///
  /// - Parameters:
  ///   - times: number of kills.
  ///   - pause: time that it runs before a kill, microseconds.
  ///   - outage: time that it is away after a kill, microseconds.
  func verifyThroughKills(
    _ times: Int, after pause: ClosedRange<UInt32>, for outage: ClosedRange<UInt32>, kill: @escaping () throws -> Void,
    start: @escaping () throws -> Void
  ) throws {
    client.depth = 16
    let isOver = Atomic(false)
    let kills = Atomic(0)
    var options = VerifyOptions(seed: .random(in: 0 ... .max), range: 0..<8 << 20, limit: .bytes(.max), cuts: .all)
    options.largest = 64 << 10
    var verifier = try Verifier(client, options)
    verifier.goesOn = { kills.load(ordering: .relaxed) < times }
    try withBackground {
      defer { kills.store(times, ordering: .relaxed) }
      for number in 1...times where !isOver.load(ordering: .relaxed) {
        usleep(.random(in: pause))
        try kill()
        usleep(.random(in: outage))
        try start()
        kills.store(number, ordering: .relaxed)
      }
    } during: {
      defer { isOver.store(true, ordering: .relaxed) }
      _ = try verifier.run()
    }
  }
}
