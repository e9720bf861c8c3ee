/// How the model's queues drain when their device is suspended (virtio 3.4), correctly or with a fault.
import VirtioCore

extension ModelQueue {
  /// Finishes what it has begun, here three requests, and begins no others.
  func drain() {
    isKicked = EventCounter.drain(kick.rawValue) > 0 || isKicked
    guard isKicked, !isReset, !transport.device.isDead else { return }
    if fault == .usesSuspended {
      late.append { [unowned self] in work() }
      return
    }
    isDraining = true
    work()
    isDraining = false
    // There may be more chains that it has not looked at.
    isKicked = true
  }

  /// Whether to take one more request.
  func takes(after finished: Int) -> Bool { !isDraining || finished < 3 }

  /// A drain that ends too early: what was begun is published when the device is resumed.
  var leavesInFlight: Bool {
    switch fault {
    case .suspendsInFlight, .suspendsHalfway: isDraining
    case .drainsOneQueue: isDraining && index > 0
    default: false
    }
  }

  /// Calls for the first of several requests only.
  var callsOnce: Bool { isDraining && fault == .drainsCalledOnce }

  func tell() {
    switch fault {
    case .drainsUncalled where isDraining: return
    case .callsSuspended where isDraining: late.append { [unowned self] in EventCounter.signal(call.rawValue) }
    default: EventCounter.signal(call.rawValue)
    }
  }
}
