/// A disk on a vhost-user socket, at both ends of a takeover.
internal import Sockets
internal import VhostUser
internal import VirtioBlkDevice
internal import VirtioCore

extension ServedDisk: GivenDisk {
  func describe() -> (Takeover.Part, DescriptorList) {
    let (state, list) = server.state
    return (.server(state), list)
  }

  func pause(then: @escaping (String?) -> Void) {
    server.pause { result in
      if case .failure(let error) = result { then("\(error)") } else { then(nil) }
    }
  }

  func goOn(fromMemory: Bool) { server.goOn(fromMemory: fromMemory) }
  func leave() { server.leaveSocket() }
  func own() { server.ownSocket() }
  func handOver() { server.handOver() }
}

struct ServeTakenDisk: TakenDisk {
  let name: String
  let disk: ServedDisk
  let errands: ErrandQueue

  var place: String { disk.place }
  var device: BlockDevice { disk.device }

  func prepare(_ part: Takeover.Part, _ list: DescriptorList, then: @escaping (String?) -> Void) {
    guard case .server(let state) = part else { return then("\(TakeoverError.overtaken)") }
    disk.server.prepare(state, list, errands: errands) { then($0.map { "\($0)" }) }
  }

  func adopt(_ part: Takeover.Part, _ list: DescriptorList, then: @escaping (String?) -> Void) {
    guard case .server(let state) = part else { return then("\(TakeoverError.overtaken)") }
    disk.server.adopt(state, list, errands: errands) { then($0.map { "\($0)" }) }
  }

  func release() { disk.server.release() }
  func giveBack() { disk.server.giveBack() }
}

extension ServeTakenDisk {
  /// The socket of a running server.
  ///
  /// - Parameter path: its path, so that the file can be removed at the end; `nil` if this process must not remove it.
  static func socket(_ state: Takeover.Disk, _ list: DescriptorList, path: String?) throws -> ServerSocket {
    guard let server = state.server else { throw TakeoverError.overtaken }
    if let listener = server.listener {
      return .listening(try Listener(takingOver: try list.descriptor(listener), path: path))
    }
    guard let connection = server.connection else { throw TakeoverError.overtaken }
    return .connected(try list.descriptor(connection.socket))
  }
}
