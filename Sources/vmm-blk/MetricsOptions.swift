/// Where a process that serves shows its figures.
public import ArgumentParser
public import Metrics
internal import Sockets

extension MetricsAddress: ExpressibleByArgument {
  public init?(argument: String) { self.init(argument) }
}

struct MetricsOptions: ParsableArguments {
  @Option(
    help: .init(
      "Show figures to Prometheus at http://<address>/metrics: a port on the loopback address, an address with a port, or the path "
        + "of a UNIX socket, with a slash in it.", valueName: "address"))
  var metrics: MetricsAddress?

  /// Binds the address, if there is to be one.
  func server(of figures: OperatorFigures, in loop: EventLoop) throws -> MetricsServer? {
    try metrics.map { try MetricsServer(on: $0, in: loop) { MetricsPage.page(figures.all).bytes } }
  }
}
