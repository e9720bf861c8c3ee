/// Withdrawal of translations from a worker's queues.
internal import VirtioCore

extension QueueWorker where Ring: ~Copyable, Engine: ~Copyable {
  /// From now on the lane pops nothing with these translations.
  mutating func withdraw(_ lane: Int, _ withdrawal: Withdrawal) {
    // Answers are published before the worker reports that nothing is in use any more.
    unsafe lanes[lane].pointee.publish()
    guard unsafe !lanes[lane].pointee.withdraw(withdrawal, isPaused: isPaused, &medium) else { return tellWithdrawn(lane) }
    if !withdrawals.contains(lane) { withdrawals.append(lane) }
    mayEnd = true
  }

  /// To be called after the turn's answers were published.
  mutating func finishWithdrawals() {
    for lane in withdrawals where unsafe lanes[lane].pointee.hasWithdrawn { finishWithdrawal(lane) }
  }

  /// Nothing that was popped before the withdrawal is in flight any more.
  mutating func finishWithdrawal(_ lane: Int) {
    withdrawals.removeAll { $0 == lane }
    unsafe lanes[lane].pointee.endWithdrawal()
    tellWithdrawn(lane)
  }

  private func tellWithdrawn(_ lane: Int) {
    configuration.events.post(.withdrawn(queue: unsafe lanes[lane].pointee.queue))
  }
}
