/// What a worker does about translations that are taken back from its queues.
internal import VirtioCore

extension QueueWorker where Ring: ~Copyable, Engine: ~Copyable {
  /// From now on the lane takes nothing by these translations.
  mutating func withdraw(_ lane: Int, _ withdrawal: Withdrawal) {
    // What was answered is shown before it is said that nothing is in use any more.
    unsafe lanes[lane].pointee.publish()
    guard unsafe !lanes[lane].pointee.withdraw(withdrawal, isPaused: isPaused, &medium) else { return tellWithdrawn(lane) }
    if !withdrawals.contains(lane) { withdrawals.append(lane) }
    mayEnd = true
  }

  /// Comes after the turn's answers were published.
  mutating func finishWithdrawals() {
    for lane in withdrawals where unsafe lanes[lane].pointee.hasWithdrawn { finishWithdrawal(lane) }
  }

  /// The lane has nothing in flight that was taken before.
  mutating func finishWithdrawal(_ lane: Int) {
    withdrawals.removeAll { $0 == lane }
    unsafe lanes[lane].pointee.endWithdrawal()
    tellWithdrawn(lane)
  }

  private func tellWithdrawn(_ lane: Int) {
    configuration.events.post(.withdrawn(queue: unsafe lanes[lane].pointee.queue))
  }
}
