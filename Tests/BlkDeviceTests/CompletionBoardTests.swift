/// The board on which other threads tell a worker which requests are complete.
import Glibc
import Synchronization
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct CompletionBoardTests {
  private final class Shared: Sendable {
    let isWaking = Atomic(false)
    let isTaken = Atomic(false)
    let wasLate = Atomic(false)
  }

  /// Whoever takes the last result may release the board and close its wake-up descriptor: no thread may still be signalling
  /// it.
  @Test func whoTookAResultIsNotBeingWoken() throws {
    let shared = Shared()
    let board = CompletionBoard {
      shared.isWaking.store(true, ordering: .releasing)
      // The worker takes the result at once, if it can.
      for _ in 0..<100 where !shared.isTaken.load(ordering: .acquiring) { usleep(1000) }
      if shared.isTaken.load(ordering: .acquiring) { shared.wasLate.store(true, ordering: .relaxed) }
    }
    let worker = try SystemThread(name: "worker", stackSize: SystemThread.smallStack) {
      while !shared.isWaking.load(ordering: .acquiring) { sched_yield() }
      var list: [(tag: UInt32, result: Int32)] = []
      board.take(into: &list)
      shared.isTaken.store(true, ordering: .releasing)
    }
    board.post(tag: 1, result: 0)
    worker.join()
    let wasLate = shared.wasLate.load(ordering: .relaxed)
    #expect(!wasLate)
  }
}
