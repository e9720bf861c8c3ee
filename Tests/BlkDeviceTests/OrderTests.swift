/// Publication in order: in the order of the requests, whatever the order of completion.
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct OrderTests {
  /// Requests complete in any order, also across the wrap of their numbers: each answer is published once, when it is due.
  @Test(arguments: [1, 2, 7, 128, 32768], [0, .max - 20, 1 << 31 - 20] as [UInt32])
  func answersAreDueInTheOrderOfTheNumbers(capacity: Int, first: UInt32) {
    var generator = SeededRandom(seed: UInt64(capacity) ^ UInt64(first))
    for isWatched in [false, true] {
      var order = AnswerOrder(capacity: capacity, isWatched: isWatched, first: first)
      var free = Array(0..<capacity)
      var pending: [(slot: Int, number: UInt32)] = []
      var taken: [Int] = []
      var answered: [Int] = []
      for _ in 0..<2000 {
        #expect(order.isEmpty == (taken.count == answered.count))
        #expect(order.isClear == (order.isEmpty && !isWatched))
        if !free.isEmpty, pending.isEmpty || generator.next() % 2 == 0 {
          let slot = free.remove(at: Int(generator.next() % UInt64(free.count)))
          pending.append((slot, order.takeNumber()))
          taken.append(slot)
        } else {
          let (slot, number) = pending.remove(at: Int(generator.next() % UInt64(min(pending.count, 40))))
          if order.isDue(number), order.waitingCount == 0, generator.next() % 2 == 0 {
            order.advance()
            answered.append(slot)
            free.append(slot)
          } else {
            order.wait(slot, number)
          }
          while let due = order.takeDue() {
            answered.append(due)
            free.append(due)
          }
        }
      }
      #expect(answered.elementsEqual(taken.prefix(answered.count)))
      #expect(order.waitingCount + pending.count == taken.count - answered.count)
    }
  }

  /// The medium completes in reverse order; answers are published in the order of the requests if asked for.
  @Test(arguments: [false, true]) func publishesInOrder(isInOrder: Bool) throws {
    let scratch = try Scratch()
    let script = try Script(completesLater: true, isBackwards: true)
    let image = try ImageFile(ImageOptions(path: scratch.image()))
    let device = try BlockDevice(image: image, options: BlockDeviceOptions()) { script.serve($0, $1) }
    let queue = try HandQueue(
      device, 0, SharedMemory(), size: 64, features: [.version1], publishesInOrder: isInOrder)
    try queue.start()
    for _ in 0..<3 {
      script.hold()
      var tags: [UInt32] = []
      for number in 0..<10 {
        // The fourth request is refused at once; in order it has to wait for the three before it.
        let unknown = BlockRequest(type: BlockRequestType(rawValue: 77))
        let request = number == 3 ? unknown : .read(sector: UInt64(number), bytes: 512)
        tags.append(try queue.submit(request))
      }
      let used = queue.usedIndex
      queue.queue.publish()
      try waitUntil("they are in flight") { script.held == 9 }
      if isInOrder { #expect(queue.usedIndex == used) }
      script.release()
      var order: [UInt32] = []
      try waitUntil("all are answered") {
        while let outcome = try queue.queue.reap() {
          order.append(outcome.tag)
          #expect(outcome.status == (outcome.tag == tags[3] ? .unsupported : .ok))
        }
        return order.count == 10
      }
      #expect(Set(order) == Set(tags))
      #expect((order == tags) == isInOrder)
    }
    #expect(queue.stop() == QueuePosition(available: 30, used: 30))
  }

  /// A request that is done in place is answered at once only if no earlier one is in flight.
  @Test func whatIsDoneInPlaceWaitsForWhatIsNot() throws {
    let scratch = try Scratch()
    let script = try Script(completesLater: true, transfersInPlace: true)
    let image = try ImageFile(ImageOptions(path: scratch.image()))
    let device = try BlockDevice(image: image, options: BlockDeviceOptions()) { script.serve($0, $1) }
    let queue = try HandQueue(device, 0, SharedMemory(), size: 64, features: [.version1, .blockFlush], publishesInOrder: true)
    try queue.start()
    for round in 1...3 {
      script.hold()
      let begin = queue.usedIndex
      var tags: [UInt32] = []
      for number in 0..<6 { tags.append(try queue.submit(number == 2 ? .flush : .read(sector: UInt64(number), bytes: 512))) }
      queue.queue.publish()
      try waitUntil("the flush is in flight, and what was before it is answered") {
        script.held == 1 && queue.usedIndex == begin &+ 2 && script.records.count == 6 * round
      }
      script.release()
      var order: [UInt32] = []
      try waitUntil("all are answered") {
        while let outcome = try queue.queue.reap() { order.append(outcome.tag) }
        return order.count == 6
      }
      #expect(order == tags)
    }
    #expect(queue.stop() == QueuePosition(available: 18, used: 18))
  }

  /// In order also means that no request after an unanswered one is published, even if it is done.
  @Test func nothingOvertakesInOrder() throws {
    let scratch = try Scratch()
    // The first request needs two operations, the others one each.
    let script = try Script([.short(512)], completesLater: true)
    let image = try ImageFile(ImageOptions(path: scratch.image()))
    let device = try BlockDevice(image: image, options: BlockDeviceOptions()) { script.serve($0, $1) }
    let queue = try HandQueue(device, 0, SharedMemory(), size: 64, features: [.version1], publishesInOrder: true)
    try queue.start()
    var tags: [UInt32] = []
    for _ in 0..<6 { tags.append(try queue.submit(.read(sector: 0, bytes: 1024))) }
    queue.queue.publish()
    var order: [UInt32] = []
    try waitUntil("all are answered") {
      while let outcome = try queue.queue.reap() { order.append(outcome.tag) }
      return order.count == 6
    }
    #expect(order == tags)
    #expect(script.records.count == 7)
    #expect(queue.stop() != nil)
  }
}
