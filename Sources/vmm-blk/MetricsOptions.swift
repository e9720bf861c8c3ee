/// Where a serving process exports its metrics.
public import ArgumentParser
public import MetricsExport
internal import OperatorWords
internal import Sockets

extension MetricsAddress: ExpressibleByArgument {
  public init?(argument: String) { self.init(argument) }
}

struct MetricsOptions: ParsableArguments {
  @Option(
    help: .init(
      "Serve metrics for Prometheus at http://<address>/metrics: a port on the loopback address, an address with a port, or the path "
        + "of a UNIX socket (with a slash in it).", valueName: "address"))
  var metrics: MetricsAddress?

  /// Binds the address, if one was given.
  func server(of figures: OperatorFigures, in loop: EventLoop) throws -> MetricsServer? {
    try metrics.map { try MetricsServer(on: $0, in: loop) { MetricsPage.page(figures.all).bytes } }
  }

  /// How long the old server may take to end, and how often to check whether it has.
  private static let patience = (whole: Duration.seconds(60), step: Duration.milliseconds(50))

  /// Opens the server after a takeover, when the address may still belong to the old server, which is about to end.
  ///
  /// - Parameter keep: called once, with an open server, if an address was given.
  func open(of figures: OperatorFigures, in loop: EventLoop, log: ServeLog, keep: @escaping (MetricsServer) -> Void) {
    open(until: ContinuousClock.now + Self.patience.whole, of: figures, in: loop, log: log, keep: keep)
  }

  private func open(
    until end: ContinuousClock.Instant, of figures: OperatorFigures, in loop: EventLoop, log: ServeLog,
    keep: @escaping (MetricsServer) -> Void
  ) {
    do {
      guard let server = try server(of: figures, in: loop) else { return }
      try server.open()
      keep(server)
    } catch SocketError.inUse where ContinuousClock.now < end {
      loop.after(Self.patience.step) { open(until: end, of: figures, in: loop, log: log, keep: keep) }
    } catch { log.warn("the metrics are not served: \(error)") }
  }
}
