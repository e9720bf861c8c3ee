/// What a worker waits for that is no operation of its engine's: a word of another worker, or a record of a disk's zones.
internal import VirtioCore

extension Medium where Engine: ~Copyable {
  /// Threads that write records.
  private static var recorderCount: Int { 1 }

  /// Whom to give a word for a request. `expectWord` is due before the next event is asked for.
  func waiter(_ tag: UInt32) -> ZoneWaiter { ZoneWaiter(board: board, tag: tag) }

  /// An event with the tag comes when somebody gives the word, which may have happened already. What was prepared with the tag stays.
  func expectWord(_ tag: UInt32) {
    let job = unsafe jobs[tag]
    unsafe job.pointee.stage = .word
    unsafe job.pointee.waitsForOthers = false
    unsafe job.pointee.sync = 0
  }

  /// The word that came. Not a negative number.
  func word(_ tag: UInt32) -> UInt32 { unsafe jobs[tag].pointee.part }

  /// The zones' states go to stable storage, as far as a ticket says; the word is 0 when they are there.
  /// - Returns: false when nobody can do it.
  mutating func record(ticket: UInt32, tag: UInt32) -> Bool {
    guard let zones = facts.zones else { return false }
    if recorders == nil {
      recorders = try? CallPool(ZoneRecorder(disk: zones), board: board, threads: Self.recorderCount)
    }
    guard let recorders else { return false }
    expectWord(tag)
    recorders.add(unsafe IOOperation(kind: .flush, offset: UInt64(ticket)), tag: tag)
    return true
  }
}
