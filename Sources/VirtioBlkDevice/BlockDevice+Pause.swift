/// Pausing a disk at its operator's request: to copy the image, or to repair the medium.
internal import VirtioCore

extension BlockDevice {
  /// Stops all queues from popping requests, including those that start later. Requests in flight are completed and answered;
  /// the driver sees a delay but no error. Queues can be started and stopped in the meantime.
  public func pause() {
    isPaused = true
    pauseNumber &+= 1
    restlessWorkers = []
    let number = pauseNumber
    for index in places.indices {
      let isTold = places[index].worker?.mailbox.post { orders in
        orders.pause = number
        orders.resumesAll = false
      }
      if isTold == true { restlessWorkers.insert(index) }
    }
  }

  /// Nothing has been in flight since `pause`, and nothing will be before `resume`. True some time after `pause`, when the
  /// device's events have been taken.
  public var isAtRest: Bool { isPaused && restlessWorkers.isEmpty }

  /// Resumes queues that were paused, or that stall because their medium failed a request: failed requests are retried.
  public func resume() {
    isPaused = false
    restlessWorkers = []
    for place in places {
      _ = place.worker?.mailbox.post { orders in
        orders.resumesAll = true
        orders.pause = nil
      }
    }
  }

  /// A worker reports that nothing is in flight on its queues.
  func rests(_ worker: Int, _ pause: UInt64) {
    if pause == pauseNumber { restlessWorkers.remove(worker) }
  }
}
