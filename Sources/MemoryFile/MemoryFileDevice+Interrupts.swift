/// Routes notifications to doorbells according to the registers.
internal import VirtioCore
internal import VirtioRegisters

/// A doorbell is rung if the interrupt would be delivered: the line is asserted, or a message is sent. A notification whose
/// vector is masked is held back and rung later. Queues signal from their own threads, so each is given the right sink, and
/// another one when the route changes.
extension MemoryFileDevice {
  /// The sink for the present route of the queue's notifications.
  func callSink(_ queue: Int) -> CallSink {
    let source = InterruptSource.queue(queue)
    let control = file.control
    let silent = control.silent(source)
    let route = registers.route(of: source)
    routes[source] = route
    return switch route {
    case .line: .doorbell(control.call(queue), interruptStatus: control.interruptStatus)
    case .lineDisabled: .doorbell(silent.doorbell, interruptStatus: control.interruptStatus)
    // With messages, ISR is not used for queues (virtio 4.1.4.5).
    case .message: .doorbell(control.call(queue), interruptStatus: silent.status)
    case .masked: .doorbell(silent.doorbell, interruptStatus: silent.heldBack)
    case .none: .none
    }
  }

  /// Bit 1 of ISR is set in any case, even if a message is sent (virtio 4.1.4.5.1).
  func notifyConfigurationChange() {
    let control = file.control
    control.interruptStatus.formUnion(MMIORegisters.configurationInterrupt)
    let route = registers.route(of: .configuration)
    routes[.configuration] = route
    if route.isDelivered {
      control.configuration.ring()
    } else if case .masked = route {
      control.silent(.configuration).heldBack.formUnion(1)
    }
  }

  /// Applies changed routes. A queue's thread signals once through its new sink, so that nothing is lost between the two: one
  /// notification too many is allowed, one too few is not. Notifications of a stopped queue stay held back until it runs again,
  /// because a suspended device sends none (virtio 3.4.2), and neither does one that may not access memory.
  func reroute() {
    for queue in 0..<device.queueCount {
      let source = InterruptSource.queue(queue)
      let route = registers.route(of: source)
      guard let before = routes[source], !route.isLike(before) else { continue }
      let sink = callSink(queue)
      let held = file.control.silent(source).heldBack
      switch attended.state(of: queue) {
      case .running, .starting:
        held.storeRelease(0)
        device.replaceCall(queue: queue, sink)
      default:
        if case .lineDisabled = before { held.formUnion(file.control.interruptStatus.loadAcquire() & 1) }
      }
    }
    let before = routes[.configuration] ?? .line
    let route = registers.route(of: .configuration)
    routes[.configuration] = route
    guard !route.isLike(before) else { return }
    let held = file.control.silent(.configuration).heldBack
    let isPending: Bool
    switch before {
    case .masked: isPending = held.loadAcquire() & 1 != 0
    case .lineDisabled:
      isPending = file.control.interruptStatus.loadAcquire() & MMIORegisters.configurationInterrupt != 0
    case .line, .message, .none: isPending = false
    }
    held.storeRelease(0)
    guard isPending, route.isDelivered else { return }
    if isSuspended {
      // The driver is notified when it resumes the device.
      _ = registers.configurationChanged()
    } else {
      file.control.configuration.ring()
    }
  }

  /// Sends the notification that was held back for a queue that runs again, if it may be sent now.
  func callHeldBack(_ queue: Int) {
    let source = InterruptSource.queue(queue)
    let held = file.control.silent(source).heldBack
    guard held.loadAcquire() & 1 != 0, registers.route(of: source).isDelivered else { return }
    held.storeRelease(0)
    callSink(queue).signal()
  }

  /// A reset clears pending notifications.
  func forgetHeldBack(_ sources: [InterruptSource]) {
    for source in sources {
      file.control.silent(source).heldBack.storeRelease(0)
      routes[source] = nil
    }
  }
}

extension InterruptRoute {
  /// Whether both need the same sink, which does not depend on the message.
  fileprivate func isLike(_ other: InterruptRoute) -> Bool {
    switch (self, other) {
    case (.line, .line), (.lineDisabled, .lineDisabled), (.message, .message), (.masked, .masked), (.none, .none): true
    default: false
    }
  }
}
