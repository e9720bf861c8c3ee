/// `vmm-blk run --once`: one pass, reported as a table or as JSON.
internal import ArgumentParser
internal import CLinux
internal import Foundation
internal import Glibc
internal import MemoryFile
internal import OperatorWords
internal import RingInspector
internal import SystemPackage
internal import TextTable
internal import VirtioBlkDevice
internal import VirtioCore
internal import VirtioRegisters

struct OnceRun {
  let command: RunCommand

  func run() throws {
    let checks = try command.driverCheck.begin()
    let account = try command.raw ? raw(checks) : file(checks)
    if command.json {
      try account.printJSON()
    } else {
      account.printTable()
    }
    // The driver's violations are reported first: they may be why a queue failed.
    try checks?.finish()
    if account.problem != nil || account.queues.contains(where: { $0.failure != nil }) { throw ExitCode(1) }
  }

  /// The queues are those that the file's registers describe.
  private func file(_ checks: DriverChecks?) throws -> OnceAccount {
    let path = try command.memoryPath()
    let before = MemoryFilePicture(try MemoryFileSnapshot(path: path)).queues.filter(\.ready)
    let file = try MemoryFile.open(path: path)
    let device = try command.disk.makeDevice(on: .memoryFile, queues: file.layout.maximumQueues)
    var problem: String? = nil
    func make(_ device: any VirtioDevice) throws(MemoryFileError) -> MemoryFileDevice {
      try MemoryFileDevice(
        file: file, device: device, withholding: command.disk.featureWords.withheldFromRegisters, log: { problem = $0 },
        notice: { _ in })
    }
    let transport = try checks?.watch(device, isNew: false, make: make) ?? make(device)
    command.protection.enterQuietly(
      reading: [path] + command.disk.credentials, connects: command.disk.imageServer?.isInternet == true)
    let outcomes = transport.runOnce()
    let after = try MemoryFileSnapshot(path: path)
    let status = after.registers.status
    if outcomes.contains(where: { $0.failure != nil }) {
      problem = nil  // each queue reports its own
    } else if problem == nil, !status.contains(.driverOK) {
      problem = "the driver has not set DRIVER_OK, so nothing may be processed"
    } else if problem == nil, status.contains(.needsReset) {
      problem = "the device needed a reset before, so nothing may be processed"
    }
    return OnceAccount(before, outcomes, memory: after.memory, problem: problem)
  }

  /// The queues are those of the command line.
  private func raw(_ checks: DriverChecks?) throws -> OnceAccount {
    let path = try command.memoryPath()
    // What --features says is what the driver has accepted.
    let device = try command.disk.makeDevice(on: .memoryFile, queues: command.queue.count, offersAll: true)
    var features: FeatureSet = .version1
    if let given = command.disk.features {
      features = given.isNumber ? given.features : given.features.union(.version1)
      guard !given.hasDefaults, !given.hasAll else {
        throw ValidationError("with --raw, --features is what the driver accepted: leave out 'default' and 'all'")
      }
    }
    guard device.accepts(features) else {
      throw ValidationError("the disk does not offer all of the features \(features): it offers \(device.features)")
    }
    guard command.queue.count <= device.queueCount else {
      throw ValidationError("\(command.queue.count) queues are described: add --num-queues \(command.queue.count)")
    }
    let base = GuestAddress(command.memoryBase?.bytes ?? 0)
    let copies = try GuestBytes(rawFile: path, base: base)
    let queues = command.queue.enumerated().map { (queue: $0.offset, configuration: $0.element.configuration) }
    let before = queues.map { queue, configuration in
      QueuePicture(queue: queue, configuration: configuration, features: features, memory: copies)
    }
    let number = unsafe clinux_open(path, O_RDWR | O_CLOEXEC, 0)
    guard number >= 0 else { throw MemoryFileError.system(path: path, action: "open", Errno(rawValue: errno)) }
    let owner = OwnedDescriptor(number)
    guard let count = Int(exactly: copies.size), count > 0 else {
      throw ValidationError("the memory file \(path) is empty: give it the guest's memory")
    }
    let mapping = try Mapping(descriptor: owner.rawValue, count: count)
    let memory = try GuestMemory([GuestRegion(start: base, size: copies.size, mapping: mapping)])
    command.protection.enterQuietly(
      reading: [path] + command.disk.credentials, connects: command.disk.imageServer?.isInternet == true)
    let watched = checks?.watch(device, name: device.image.path) ?? device
    let outcomes = try MemoryFileDevice.runOnce(watched, memory: memory, features: features, queues: queues)
    return OnceAccount(before, outcomes, memory: copies, problem: nil)
  }
}

/// What was done, for people and for programs.
struct OnceAccount: Encodable {
  struct Request: Encodable {
    let queue: Int
    let head: Int
    let type: String?
    let sector: UInt64?
    let length: UInt64?
    let status: String?
    let usedIndex: Int?
    let usedID: Int?
    let usedLength: UInt32?
    let problems: [String]
  }

  struct Queue: Encodable {
    let queue: Int
    let available: Int
    let used: Int
    let failure: String?
  }

  /// Why not everything was processed, if there is a reason.
  let problem: String?
  let queues: [Queue]
  let requests: [Request]

  /// - Parameters:
  ///   - before: pictures taken before the pass.
  ///   - memory: its contents after the pass.
  init(_ before: [QueuePicture], _ outcomes: [OnceOutcome], memory: GuestBytes, problem: String?) {
    self.problem = problem
    queues = outcomes.map {
      Queue(queue: $0.queue, available: $0.available, used: $0.used, failure: $0.failure?.description)
    }
    requests = before.flatMap { RequestAccount.accounts(of: $0, after: memory) }.map(Request.init)
  }

  func printJSON() throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
    print(String(decoding: try encoder.encode(self), as: UTF8.self))
  }

  func printTable() {
    if queues.isEmpty { print("no queue is ready, so there was nothing to do") }
    if !requests.isEmpty {
      let table = TextTable<Request> { $0.columns }
      table.print(requests, style: Style.psql)
    }
    if let problem { print(printable(problem)) }
    for queue in queues {
      print("queue \(queue.queue): \(queue.used) of \(queue.available) available requests used")
      if let failure = queue.failure { print("queue \(queue.queue) stopped: \(failure)") }
    }
  }
}

extension OnceAccount.Request {
  init(_ account: RequestAccount) {
    queue = account.queue
    head = Int(account.head)
    type = account.request?.name
    sector = account.request?.sector
    length = account.request?.length
    status = account.status.map(BlockWords.status)
    usedIndex = account.usedPosition.map { Int($0) }
    usedID = account.usedPosition == nil ? nil : Int(account.head)
    usedLength = account.usedLength
    problems = account.problems
  }

  fileprivate var columns: [Column] {
    func number(_ title: String, _ value: Int?) -> Column {
      Column(title: title, value: value.map { "\($0)" } ?? "", align: .right)
    }
    return [
      number("queue", queue), number("head", head), Column(title: "request", value: type ?? "no header"),
      Column(title: "sector", value: sector.map { "\($0)" } ?? "", align: .right),
      Column(title: "bytes", value: length.map { "\($0)" } ?? "", align: .right),
      Column(title: "status", value: usedID == nil ? "not used" : status ?? "none"), number("used idx", usedIndex),
      number("id", usedID), number("len", usedLength.map { Int($0) }),
    ]
  }
}
