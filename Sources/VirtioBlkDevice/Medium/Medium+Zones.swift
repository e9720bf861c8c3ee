/// Waiting for something other than an operation of the engine: a word from another worker, or a record of a disk's zones.
internal import VirtioCore

extension Medium where Engine: ~Copyable {
  /// Threads that write records.
  private static var recorderCount: Int { 1 }

  /// Where to post the word for a request. Call `expectWord` before the next event is taken.
  func waiter(_ tag: UInt32) -> ZoneWaiter { ZoneWaiter(board: board, tag: tag) }

  /// An event with the tag comes when the word is posted, which may have happened already. The operation prepared for the tag
  /// is kept.
  func expectWord(_ tag: UInt32) {
    let job = unsafe jobs[tag]
    unsafe job.pointee.stage = .word
    unsafe job.pointee.waitsForOthers = false
    unsafe job.pointee.sync = 0
  }

  /// The word that was posted; never negative.
  func word(_ tag: UInt32) -> UInt32 { unsafe jobs[tag].pointee.part }

  /// Writes the record that a ticket stands for to stable storage; the word is 0 if that succeeded.
  /// - Returns: false if there is no thread to do it.
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
