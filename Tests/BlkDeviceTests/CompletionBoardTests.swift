/// The board on which other threads tell a worker which requests are complete.
import Dispatch
import Glibc
import Synchronization
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct CompletionBoardTests {
  private final class Shared: Sendable {
    let isWaking = Atomic(false)
    let isReleased = Atomic(false)
    let wasLate = Atomic(false)
  }

  /// Whoever took the last result may release the board and close its wake-up descriptor after `awaitPosters`: no thread may
  /// still be signalling it.
  @Test func whoHasAwaitedThePostersIsNotBeingWoken() throws {
    let shared = Shared()
    let board = CompletionBoard {
      shared.isWaking.store(true, ordering: .releasing)
      // The worker releases the board at once, if it can.
      for _ in 0..<100 where !shared.isReleased.load(ordering: .acquiring) { usleep(1000) }
      if shared.isReleased.load(ordering: .acquiring) { shared.wasLate.store(true, ordering: .relaxed) }
    }
    let worker = try SystemThread(name: "worker", stackSize: SystemThread.smallStack) {
      while !shared.isWaking.load(ordering: .acquiring) { sched_yield() }
      var list: [(tag: UInt32, result: Int32)] = []
      board.take(into: &list)
      if list.count == 1 { board.awaitPosters() }
      shared.isReleased.store(true, ordering: .releasing)
    }
    board.post(tag: 1, result: 0)
    worker.join()
    let wasLate = shared.wasLate.load(ordering: .relaxed)
    #expect(!wasLate)
  }

  /// The worker that is woken can take the result while the thread that posted it is still waking.
  @Test func whoIsWokenFindsTheBoardUnlocked() {
    let taken = Mutex<[UInt32]>([])
    let reference = Mutex<CompletionBoard?>(nil)
    let board = CompletionBoard {
      var list: [(tag: UInt32, result: Int32)] = []
      reference.withLock { $0 }?.take(into: &list)
      taken.withLock { $0 += list.map(\.tag) }
    }
    reference.withLock { $0 = board }
    for tag: UInt32 in 1...3 { board.post(tag: tag, result: 0) }
    reference.withLock { $0 = nil }
    let tags = taken.withLock { $0 }
    #expect(tags == [1, 2, 3])
  }

  /// Many threads post, one takes: each result once, and never a sleep with something on the board.
  @Test func everyResultIsTakenOnceAndWakesTheWorker() throws {
    let posters = 4
    let each = 20_000
    let rung = DispatchSemaphore(value: 0)
    let board = CompletionBoard { rung.signal() }
    let threads = try (0..<posters).map { poster in
      try SystemThread(name: "poster", stackSize: SystemThread.smallStack) {
        for number in 0..<each { board.post(tag: UInt32(poster * each + number), result: Int32(number)) }
      }
    }
    var seen = [Bool](repeating: false, count: posters * each)
    var newest = [Int](repeating: -1, count: posters)
    var count = 0
    var list: [(tag: UInt32, result: Int32)] = []
    while count < seen.count {
      guard rung.wait(timeout: .now() + 120) == .success else {
        Issue.record("the worker was not woken, with \(seen.count - count) results missing")
        break
      }
      board.take(into: &list)
      while let (tag, result) = list.popLast() {
        let isNew = !seen[Int(tag)]
        #expect(isNew)
        seen[Int(tag)] = true
        // One thread's results come in the order in which it posted them.
        let poster = Int(tag) / each
        let isLater = Int(result) > newest[poster]
        #expect(isLater)
        newest[poster] = Int(result)
        count += 1
      }
    }
    for thread in threads { thread.join() }
    board.awaitPosters()
    #expect(count == seen.count)
  }
}
