/// A disk on a memory file, at both ends of a takeover.
internal import MemoryFile
internal import OperatorWords
internal import Sockets
internal import VhostUser
internal import VirtioBlkDevice
internal import VirtioCore

struct RunDisk: OperatedDisk {
  let device: BlockDevice
  let transport: MemoryFileDevice

  var name: String { Takeover.absolute(transport.file.path) }

  var isDriven: Bool { transport.isDriven }

  var driver: Operator.Driver? {
    transport.driver.map { driver in
      Operator.Driver(
        features: Operator.names(of: driver.features), memory: driver.memory,
        rings: driver.rings.map { ring in
          Operator.Ring(
            queue: ring.queue, size: ring.size, state: ring.hasFailed ? .failed : ring.isRunning ? .running : .stopped)
        })
    }
  }

  func describe() -> (Takeover.Part, DescriptorList) {
    var list = DescriptorList()
    let file = Takeover.File(file: list.add(transport.file.descriptor), device: transport.offer)
    return (.file(file), list)
  }

  func pause(then: @escaping (String?) -> Void) {
    guard transport.isServing else {
      return then("the running server is busy: queues are stopping, or have to begin again; try again later")
    }
    guard !transport.isSuspended else { return then("\(MemoryFileError.suspended(path: name))") }
    transport.pauseForHandOver { then(nil) }
  }

  func goOn(fromMemory: Bool) { fromMemory ? transport.resumeFromFile() : transport.resume() }
  func leave() { transport.leaveRole() }
  // The role comes back when the device continues from the file.
  func own() {}
  func handOver() { transport.handOver() }
}

struct RunTakenDisk: TakenDisk {
  let name: String
  let device: BlockDevice
  let transport: MemoryFileDevice
  let errands: ErrandQueue
  let loop: EventLoop

  var place: String { transport.file.path }

  func prepare(_ part: Takeover.Part, _ list: DescriptorList, then: @escaping (String?) -> Void) {
    guard case .file(let file) = part else { return then(Self.noFile) }
    do throws(MemoryFileError) {
      try transport.prepare(for: file.device, in: loop) { then($0.map { "\($0)" }) }
    } catch { then("\(error)") }
  }

  func adopt(_ part: Takeover.Part, _ list: DescriptorList, then: @escaping (String?) -> Void) {
    guard case .file(let file) = part else { return then(Self.noFile) }
    do throws(MemoryFileError) {
      try transport.hold(in: loop, running: file.device.running) { then($0.map { "\($0)" }) }
    } catch { then("\(error)") }
  }

  func release() { transport.release() }
  func giveBack() { transport.close {} }

  static let noFile = "the running server does not say which memory file it serves"
}

extension RunTakenDisk {
  /// The memory file of a running server.
  ///
  /// - Parameter path: where the file has to be.
  static func file(_ state: Takeover.Disk, _ list: DescriptorList, name: String, path: String) throws -> MemoryFile {
    guard let file = state.file else { throw TakeoverFailure.disk(name, noFile) }
    return try MemoryFile.adopt(try list.descriptor(file.file), path: path)
  }
}
