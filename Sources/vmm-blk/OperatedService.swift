/// A running process as its operator sees it.
internal import Control
internal import OperatorWords
internal import Sandbox
internal import Sockets
internal import VirtioBlkDevice

/// A disk as its operator sees it.
protocol OperatedDisk: GivenDisk {
  /// Its front-end or driver at present.
  var driver: Operator.Driver? { get }
  /// A front-end or driver is using the disk.
  var isDriven: Bool { get }
}

extension OperatedDisk {
  /// The state of a disk that is not being closed.
  var state: Operator.State { device.isPaused ? .paused : isDriven ? .driven : .idle }
}

/// What an operator can ask for. Everything happens on the loop's thread, and nothing waits.
protocol OperatedService: AnyObject {
  var transport: Takeover.Transport { get }
  /// In the order in which they were added.
  var disks: [any OperatedDisk] { get }
  /// Disks that are no longer served but not yet released.
  var leavingDisks: [any OperatedDisk] { get }
  var resizing: OperatorResize { get }
  /// What the process has given up.
  var sandbox: SandboxReport { get }
  /// It is about to end.
  var isEnding: Bool { get }

  /// Opens a disk and serves it.
  ///
  /// - Parameters:
  ///   - entry: a request with the disk's description, in the words of `serve --disks`, under "entry".
  ///   - then: called once, with its name, or with the reason why it failed.
  func add(_ entry: ControlLine, then: @escaping (Result<String, OperatorRefusal>) -> Void)
  /// Drains a disk and releases it.
  ///
  /// - Parameter then: called once when that is done, or with what prevents it.
  func remove(_ name: String, then: @escaping (Result<Void, OperatorRefusal>) -> Void)
  /// Reads the list of disks again.
  ///
  /// - Parameter then: called once with what has changed; after a failure nothing has.
  func reload(then: @escaping (Result<DiskChange, OperatorRefusal>) -> Void)
  /// Drains everything and ends.
  func drain()
  /// Another process serves a disk from now on. If that was the last disk, this process ends.
  func handedOver(_ name: String)
}

/// What reading the list again has changed.
struct DiskChange: CustomStringConvertible {
  /// Names of disks.
  var added: [String] = []
  var removed: [String] = []
  var untouched = 0

  var description: String {
    "\(added.count) \(added.count == 1 ? "disk" : "disks") added, \(removed.count) removed, \(untouched) left as they are"
  }
}

/// The control socket of a running process, and what answers on it.
struct ServiceControl {
  private let server: ControlServer
  let giver: TakeoverGiver

  /// Starts to listen.
  init(
    on listener: Listener, for service: any OperatedService, _ figures: OperatorFigures, in loop: EventLoop, log: ServeLog
  ) throws {
    let giver = TakeoverGiver(of: service, control: listener, in: loop, log: log)
    let desk = OperatorDesk(of: service, figures, giver, in: loop, log: log)
    self.giver = giver
    server = ControlServer(on: listener, in: loop, report: { log.event($0) }, take: { desk.take($0, from: $1) })
    try server.open()
  }

  func close() { server.close() }
  func removeFile() { server.listener.removeFile() }
}
