/// The one place where ring format and engine are chosen: below it everything is statically typed.
internal import SystemPackage
internal import VirtioCore

/// The body of a worker thread. An engine that cannot be made here (out of locked memory, say) is replaced by the plain one.
func serve(_ configuration: WorkerConfiguration, kind: EngineKind, descriptor: Int32, depth: Int) {
  let mailbox = configuration.mailbox.descriptor
  do throws(Errno) {
    switch kind {
    case .uring:
      var worker = QueueWorker<SplitQueue, UringEngine>(
        configuration, engine: try UringEngine(descriptor: descriptor, mailbox: mailbox, depth: depth))
      worker.run()
    case .aio:
      var worker = QueueWorker<SplitQueue, AioEngine>(
        configuration, engine: try AioEngine(descriptor: descriptor, mailbox: mailbox, depth: depth))
      worker.run()
    case .null:
      var worker = QueueWorker<SplitQueue, NullEngine>(configuration, engine: try NullEngine(mailbox: mailbox))
      worker.run()
    case .sync, .auto:
      var worker = QueueWorker<SplitQueue, SyncEngine>(
        configuration, engine: try SyncEngine(descriptor: descriptor, mailbox: mailbox))
      worker.run()
    }
  } catch {
    if kind == .sync || kind == .null { return refuse(configuration) }
    serve(configuration, kind: .sync, descriptor: descriptor, depth: depth)
  }
}

/// Not even a descriptor for epoll is to be had: every start is answered with an error.
private func refuse(_ configuration: WorkerConfiguration) {
  while true {
    EventWait.untilReadable(configuration.mailbox.descriptor)
    for message in configuration.mailbox.take() {
      switch message {
      case .start(_, let reply): reply.give(.outOfMemory)
      case .stop(_, let reply): reply.give(nil)
      case .replaceCall, .replaceFailure: break
      case .end: return
      }
    }
  }
}
